"""Devices by URI: the talk before and after the loop. Hello, limits pushed and read back, arming, disarming.

While the loop runs it alone owns the port; the frames are those of docs/wire-protocol.md.
"""

import array
import contextlib
import fcntl
import json
import os
import secrets
import select
import struct
import subprocess
import sys
import termios
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Protocol, Self

from ionto_rt.codes import FrontEnd, Pacing
from ionto_rt.core.daq import daq_capsule as daq_capsule
from ionto_rt.core.wire import FrameReader, encode_frame
from ionto_rt.errors import IontoError, RefusedError, system_words
from ionto_rt.exclusive import lock_port
from ionto_rt.safety import CurrentRange, DeviceCapabilities

ASYNC_LOW_LATENCY = 0x2000
"""Of the flags in struct serial_struct (linux/serial.h), its fifth word."""
PROTOCOL_VERSION = 1
ANSWER_S = 0.4
HELLO_TRIES = 5
SPAWN_S = 10.0
GARBAGE_BYTES = 65536
VIRTUAL_MODEL = "ionto-virtual"
"""What a virtual device calls itself in its hello, on whichever port it is served."""

HELLO_REQUEST, LIMITS, ARM, DISARM, COUNTERS_REQUEST = 0x01, 0x02, 0x03, 0x04, 0x06
HELLO, LIMITS_READ_BACK, ARMED, DISARMED, COUNTERS, ERROR = 0x81, 0x82, 0x83, 0x84, 0x86, 0xFF

_HELLO = struct.Struct("<BBBBBBHIIIIii16s16sIqqIB7x")
_RANGE = struct.Struct("<IIiIiIhhI")
_FEATURES = struct.Struct("<B3xIi")
SENTINEL = 1
"""Bit of the hello's features: a sentinel electrode is wired."""
CHANNEL_CHARGES = 2
"""Bit of the hello's features: charges of the channels from 1 on follow. Set by every device of several channels."""
MOST_CHANNELS = 32
_LIMITS = struct.Struct("<BBHII")
_CHANNEL_LIMITS = struct.Struct("<iiiq")
_ARM = struct.Struct("<BBHI")
_COUNTERS = struct.Struct("<BBHIIIIIIqq")
_CHARGES = struct.Struct("<qq")

ERROR_TEXTS = {
    1: "a frame it could not decode",
    2: "a frame of a type it does not know",
    3: "another protocol version",
    4: "a frame that its state does not allow",
    5: "a wrong session token",
    6: "a wrong nonce",
    7: "a command not newer than the one in force",
    8: "a lease longer than it allows",
    9: "limits beyond its own",
    10: "a pacing it does not offer",
}


class DeviceError(IontoError):
    """The device failed after it had been armed."""


class LoopPort(Protocol):
    """What the compiled loop reaches a device by."""

    def loop_port(self) -> Any:
        """What the compiled loop takes: a file descriptor, a PyCapsule "ionto_rt.core.types.Port", or one of
        `daq_capsule`.
        """


class BytePort(LoopPort, Protocol):
    """Bytes to and from a device before and after the loop."""

    def read(self, most: int, timeout_s: float) -> bytes:
        """Up to `most` bytes; empty after `timeout_s` without any. OSError if the port is gone."""

    def write(self, data: bytes) -> None:
        """All of `data`. OSError if the port is gone."""

    def close(self) -> None:
        """Give the port back."""


@dataclass(frozen=True)
class Range:
    """One current range, calibration included. value = (code - offset_q16/65536) * lsb."""

    full_scale_a: float
    current_lsb_a: float
    current_offset_q16: int
    redundant_lsb_a: float
    redundant_offset_q16: int
    output_lsb: float
    output_code_min: int
    output_code_max: int
    ballast_ohm: float


@dataclass(frozen=True)
class Hello:
    """What a device says of itself."""

    version: int
    channels: int
    pacing: int
    front_end: FrontEnd
    lease_max_ticks: int
    firmware_version: int
    tick_s: float
    compliance_v: float
    voltage_lsb_v: float
    voltage_offset_q16: int
    code_limit: int
    model: str
    serial: str
    last_token: int
    last_net_codes: int
    last_absolute_codes: int
    last_samples: int
    last_range: int
    ranges: tuple[Range, ...]
    sentinel_lsb_v: float = 0.0
    """Of the sentinel electrode's reading; 0: none is wired."""
    sentinel_offset_q16: int = 0
    last_channel_charges: tuple[tuple[int, int], ...] = ()
    """(net, absolute) of the last session, one for each channel, in 1/65536 code; `last_net_codes` is channel 0's."""

    @property
    def name(self) -> str:
        """Model and serial number."""
        return f"{self.model} {self.serial}".strip()

    def calibration(self, index: int) -> dict[str, Any]:
        """Struct Calibration of types.pxd for the range `index`."""
        chosen = self.ranges[index]
        return {
            "front_end": int(self.front_end),
            "current_offset_q16": chosen.current_offset_q16,
            "redundant_offset_q16": chosen.redundant_offset_q16,
            "voltage_offset_q16": self.voltage_offset_q16,
            "output_offset_q16": 0,
            "code_limit": self.code_limit,
            "output_code_min": chosen.output_code_min,
            "output_code_max": chosen.output_code_max,
            "current_lsb_a": chosen.current_lsb_a,
            "redundant_lsb_a": chosen.redundant_lsb_a,
            "voltage_lsb_v": self.voltage_lsb_v,
            "output_lsb": chosen.output_lsb,
            "full_scale_a": chosen.full_scale_a,
            "compliance_v": self.compliance_v,
            "ballast_ohm": chosen.ballast_ohm,
            "tick_s": self.tick_s,
            "sentinel_lsb_v": self.sentinel_lsb_v,
            "sentinel_offset_q16": self.sentinel_offset_q16,
        }

    @property
    def capabilities(self) -> DeviceCapabilities:
        """What limits and plans need to know."""
        return DeviceCapabilities(
            name=self.name,
            front_end=self.front_end,
            compliance_v=self.compliance_v,
            ranges=tuple(
                CurrentRange(r.full_scale_a, r.current_lsb_a, k, r.ballast_ohm, self.code_limit * r.current_lsb_a)
                for k, r in enumerate(self.ranges)
            ),
            tick_s=self.tick_s,
            lease_max_ticks=self.lease_max_ticks,
            channels=self.channels,
        )


@dataclass(frozen=True)
class DeviceCounters:
    """The device's own counts since it was armed. Charges are in 1/65536 code; `net_codes` and `absolute_codes` are
    channel 0's, and `channel_charges` has (net, absolute) of each channel. `status` is or-ed over the channels.
    """

    status: int
    token: int
    samples: int
    late: int
    lapsed: int
    refused: int
    bad_frames: int
    net_codes: int
    absolute_codes: int
    channel_charges: tuple[tuple[int, int], ...]


class SessionDevice(Protocol):
    """What a session needs of a device: `Device` has it, and so must one that no frame reaches.

    That is a device behind a vendor's library: its `port.loop_port()` is a `daq_capsule`, and the rest is for its own
    Python to do, outside the loop, in the order of docs/wire-protocol.md, section 5. What an entry point of
    `ionto_rt.devices` returns has these members; examples/daq is one. RefusedError, with the URI as its key, says
    before arming why the device cannot be used.
    """

    @property
    def uri(self) -> str:
        """What the person wrote."""

    @property
    def hello(self) -> Hello:
        """Identity, ranges and calibration, from `greet` on. `pacing` has the Pacing bits that it offers."""

    @property
    def port(self) -> LoopPort:
        """What the loop takes. An attribute `low_latency` (str), if it has one, goes into the record."""

    @property
    def process(self) -> "subprocess.Popen[bytes] | None":
        """The process that a virtual device runs in; None otherwise."""

    @property
    def cpu(self) -> int | None:
        """The processor that a virtual device's process stays on; None otherwise."""

    @property
    def hardware(self) -> bool:
        """Whether it may drive current through somebody; False only if it is known to be a simulation."""

    def greet(self) -> Hello:
        """Find out that the device is there, and return its hello. RefusedError if it cannot be used."""

    def push_limits(
        self,
        *,
        range_index: int,
        lease_max_ticks: int,
        token: int,
        session_ticks: int,
        current_cap_code: int | Sequence[int],
        output_code_min: int | Sequence[int],
        output_code_max: int | Sequence[int],
        charge_cap_codes: int | Sequence[int],
    ) -> None:
        """The session's limits, as frame LIMITS has them, which the device holds by itself from `arm` on.

        The last four are one number for all channels, or one for each. RefusedError if it cannot hold them.
        """

    def arm(self, pacing: Pacing, token: int) -> None:
        """Arm: samples from index 0 on, relay open, output zero. RefusedError if it cannot."""

    def disarm(self, token: int) -> "DeviceCounters | None":
        """Output zero, relay open; the device's counts of the session, or None if it is gone. Raises nothing."""

    def close(self) -> None:
        """Give the device back, switched off. May be called in any state."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`close`."""


def parse_hello(payload: bytes) -> Hello:
    """A HELLO payload; ValueError says what is wrong with it."""
    if len(payload) < _HELLO.size:
        raise ValueError(f"a hello of {len(payload)} bytes, {_HELLO.size} at least")
    (
        _,
        version,
        channels,
        pacing,
        front_end,
        ranges,
        lease,
        firmware,
        period_ns,
        compliance_mv,
        voltage_nv,
        voltage_offset,
        code_limit,
        model,
        serial,
        token,
        net,
        absolute,
        samples,
        last_range,
    ) = _HELLO.unpack_from(payload)
    if version != PROTOCOL_VERSION:
        raise ValueError(f"protocol version {version}, this host speaks {PROTOCOL_VERSION}")
    if len(payload) < _HELLO.size + ranges * _RANGE.size:
        raise ValueError(f"a hello of {len(payload)} bytes for {ranges} ranges")
    found = []
    for k in range(ranges):
        full, lsb, offset, lsb2, offset2, out, low, high, ballast = _RANGE.unpack_from(
            payload, _HELLO.size + k * _RANGE.size
        )
        output_lsb = out * (1e-15 if front_end == FrontEnd.CURRENT_SOURCE else 1e-12)
        found.append(
            Range(full * 1e-9, lsb * 1e-15, offset, lsb2 * 1e-15, offset2, output_lsb, low, high, ballast * 1e-3)
        )
    features, sentinel_nv, sentinel_offset = 0, 0, 0
    behind = _HELLO.size + ranges * _RANGE.size
    if len(payload) >= behind + _FEATURES.size:
        features, sentinel_nv, sentinel_offset = _FEATURES.unpack_from(payload, behind)
    charges: tuple[tuple[int, int], ...] = ((net, absolute),)
    if channels > 1:
        charges += _further_charges(payload, behind + _FEATURES.size, channels)
    sentinel = bool(features & SENTINEL)
    problems = (
        (sentinel and not sentinel_nv, "a sentinel electrode without a scale"),
        (not 1 <= channels <= MOST_CHANNELS, f"{channels} channels"),
        (
            channels > 1 and not (features & CHANNEL_CHARGES and len(charges) == channels),
            f"{channels} channels without the charges of each",
        ),
        (front_end not in (0, 1), f"front-end {front_end}"),
        (not ranges, "no current range"),
        # Slower, "off within 2 ms" (H01) would be less than a sample.
        (not 50_000 <= period_ns <= 2_000_000, f"a sample period of {period_ns} ns"),
        (not 1 <= lease * period_ns <= 100_000_000, f"leases of up to {lease} samples, more than 100 ms"),
        (not 1 <= code_limit <= 1 << 30, f"a code limit of {code_limit}"),
        (not compliance_mv or not voltage_nv, "no voltage range"),
        (
            any(not (r.full_scale_a and r.current_lsb_a and r.redundant_lsb_a and r.output_lsb) for r in found),
            "a scale of 0",
        ),
        (any(not r.output_code_min <= 0 < r.output_code_max for r in found), "an output range without zero"),
        (any(r.full_scale_a > 0.1 for r in found), "a range above 100 mA"),
        (any(r.full_scale_a > r.current_lsb_a * code_limit for r in found), "a range its converter cannot read"),
    )
    for wrong, what in problems:
        if wrong:
            raise ValueError(f"its hello claims {what}")
    return Hello(
        version,
        channels,
        pacing,
        FrontEnd(front_end),
        lease,
        firmware,
        period_ns * 1e-9,
        compliance_mv * 1e-3,
        voltage_nv * 1e-9,
        voltage_offset,
        code_limit,
        _text(model),
        _text(serial),
        token,
        net,
        absolute,
        samples,
        last_range,
        tuple(found),
        sentinel_nv * 1e-9 if sentinel else 0.0,
        sentinel_offset if sentinel else 0,
        charges,
    )


def _further_charges(payload: bytes, start: int, channels: int) -> tuple[tuple[int, int], ...]:
    """(net, absolute) of the channels from 1 on; none if the payload is too short for all of them."""
    end = start + (channels - 1) * _CHARGES.size
    return tuple(_CHARGES.iter_unpack(payload[start:end])) if len(payload) >= end else ()


def _text(raw: bytes) -> str:
    return "".join(c for c in raw.split(b"\0")[0].decode("utf-8", "replace") if c.isprintable())


class SerialBytes:
    """A serial port: pyserial opens it, exclusively, and asks for low latency. RefusedError if it cannot be had."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = lock_port(path, f"serial:{path}")
        try:
            self._open(path)
        except BaseException:
            self._let_go()
            raise
        self.fd: int = self.port.fileno()
        self.low_latency = self._ask_low_latency()

    def _open(self, path: str) -> None:
        import serial

        try:
            self.port = serial.Serial(path, baudrate=2_000_000, timeout=0, write_timeout=1.0, exclusive=True)
        except serial.SerialException as error:
            text = str(error)
            if "Errno 2]" in text or "Errno 20]" in text:
                raise RefusedError("no such port", key=f"serial:{path}", remedy="see `ionto-rt devices`") from None
            if "Errno 11]" in text or "Errno 16]" in text or "lock" in text:
                raise RefusedError(
                    "the port is in use by another program", key=f"serial:{path}", remedy="close it first"
                ) from None
            if "Errno 13]" in text:
                remedy = "join the group of the port, usually `dialout`"
                raise RefusedError("no permission to open the port", key=f"serial:{path}", remedy=remedy) from None
            raise RefusedError(
                f"cannot be opened ({system_words(error)})", key=f"serial:{path}", remedy="give a serial device"
            ) from None
        except (OSError, ValueError) as error:
            words = system_words(error) if isinstance(error, OSError) else str(error)
            raise RefusedError(
                f"cannot be opened ({words})", key=f"serial:{path}", remedy="give a serial device"
            ) from None

    def _ask_low_latency(self) -> str:
        try:
            self.port.set_low_latency_mode(True)
        except (ValueError, OSError, NotImplementedError):
            return "not offered by the driver"
        # A driver may take the flag and forget it.
        words = array.array("i", bytes(128))
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.fd, termios.TIOCGSERIAL, words)
        return "set" if words[4] & ASYNC_LOW_LATENCY else "taken but not kept by the driver"

    def read(self, most: int, timeout_s: float) -> bytes:
        if not select.select([self.fd], [], [], timeout_s)[0]:
            return b""
        data = os.read(self.fd, most)
        if not data:
            raise OSError("hung up")
        return data

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [self.fd], [], 1.0)[1]:
                raise OSError("the device takes no bytes")
            view = view[os.write(self.fd, view) :]

    def loop_port(self) -> int:
        return self.fd

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.port.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()


@dataclass
class Device:
    """One device, open. `uri` is what the person wrote; `cpu` the processor a virtual device's process stays on.

    `virtual`: no current flows through anybody, whatever its URI and its model say.
    """

    uri: str
    port: BytePort
    hello: Hello = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    cpu: int | None = None
    reader: FrameReader = field(default_factory=FrameReader)
    raw_bytes: int = 0
    virtual: bool = False

    @property
    def hardware(self) -> bool:
        """Whether it may drive current through somebody: all that is not known to be a virtual device."""
        scheme = self.uri.partition(":")[0]
        return not (self.virtual or scheme in ("virtual", "sim") or self.hello.model == VIRTUAL_MODEL)

    def greet(self) -> Hello:
        """Ask for the hello. RefusedError if nothing, garbage or another version answers."""
        said: Hello | None = None
        for _ in range(HELLO_TRIES):
            try:
                payload = self._ask(bytes([HELLO_REQUEST, PROTOCOL_VERSION]), HELLO)
            except OSError as error:
                raise self._refused(f"the port failed ({system_words(error)})", "connect the device again") from None
            if payload is not None:
                try:
                    said = parse_hello(payload)
                except ValueError as error:
                    raise self._refused(str(error), "use a device that follows docs/wire-protocol.md") from None
                break
            if self.raw_bytes > GARBAGE_BYTES:
                break
        if said is None:
            if self.reader.bad_frames or self.raw_bytes:
                problem = f"sent {self.raw_bytes} bytes but no valid frame: it speaks another protocol"
                raise self._refused(problem, "check that this port is the DAQ, and its baud rate")
            raise self._refused("nothing answered", "check power, cable and port")
        self.hello = said
        return said

    def _refused(self, problem: str, remedy: str) -> RefusedError:
        return RefusedError(problem, key=self.uri, remedy=remedy)

    def _ask(self, payload: bytes, wanted: int, timeout_s: float = ANSWER_S, most: int = 4096) -> bytes | None:
        """Send, and wait for a payload of type `wanted`; None after the time-out. An ERROR frame about ours raises."""
        self.port.write(encode_frame(payload))
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            data = self.port.read(most, left)
            self.raw_bytes += len(data)
            if self.raw_bytes > 4 * GARBAGE_BYTES and not self.reader.frames:
                return None
            for answer in self.reader.feed(data):
                if answer[0] == wanted:
                    return answer
                if answer[0] == ERROR and len(answer) >= 3 and answer[2] == payload[0]:
                    said = ERROR_TEXTS.get(answer[1], f"error {answer[1]}")
                    raise self._refused(f"the device refused {said}", "see docs/wire-protocol.md, error replies")
        return None

    def _ask_or_refuse(self, payload: bytes, wanted: int, what: str, most: int = 4096) -> bytes:
        try:
            answer = self._ask(payload, wanted, most=most)
        except OSError as error:
            raise self._refused(f"the port failed ({system_words(error)})", "connect the device again") from None
        if answer is None:
            raise self._refused(f"no answer to {what}", "connect the device again")
        return answer

    def push_limits(
        self,
        *,
        range_index: int,
        lease_max_ticks: int,
        token: int,
        session_ticks: int,
        current_cap_code: int | Sequence[int],
        output_code_min: int | Sequence[int],
        output_code_max: int | Sequence[int],
        charge_cap_codes: int | Sequence[int],
    ) -> None:
        """Push the session's limits and read them back. RefusedError if the device holds others.

        The last four are one number for all channels, or one for each channel of the device.
        """
        count = self.hello.channels
        caps = (current_cap_code, output_code_min, output_code_max, charge_cap_codes)
        columns = [[cap] * count if isinstance(cap, int) else cap for cap in caps]
        if any(len(column) != count for column in columns):
            given = min(len(column) for column in columns if len(column) != count)
            raise self._refused(f"has {count} channels, and {given} were given limits", "use a device of as many")
        pushed = _LIMITS.pack(LIMITS, range_index, lease_max_ticks, token, session_ticks)
        pushed += b"".join(_CHANNEL_LIMITS.pack(*channel) for channel in zip(*columns, strict=True))
        stored = self._ask_or_refuse(pushed, LIMITS_READ_BACK, "the limits")
        if stored[1 : len(pushed)] != pushed[1:]:
            raise self._refused("the device read back other limits than were pushed", "do not use it")

    def arm(self, pacing: Pacing, token: int) -> None:
        """Arm: samples flow from here on, relay open, output zero."""
        # Byte by byte: what follows the answer are samples, and those are the loop's.
        answer = self._ask_or_refuse(_ARM.pack(ARM, int(pacing), 0, token), ARMED, "arming", most=1)
        if answer[: _ARM.size] != _ARM.pack(ARMED, int(pacing), 0, token):
            raise self._refused("the device armed something else than was asked", "do not use it")

    def disarm(self, token: int) -> DeviceCounters | None:
        """Switch off, and fetch the device's counts; None if it does not answer any more."""
        with contextlib.suppress(OSError, RefusedError):
            for _ in range(3):
                answer = self._ask(_ARM.pack(DISARM, 0, 0, token), DISARMED)
                if answer is not None and len(answer) >= _COUNTERS.size:
                    counted = _counters(answer, self.hello.channels)
                    # Another session's count, or another device's, is none.
                    return counted if counted.token == token else None
        return None

    def close(self) -> None:
        """Give the port back, and end a virtual device's process that this call to `open_device` had started."""
        self.port.close()
        if self.process is not None:
            # It runs its clock on until the lease has lapsed and the relay is open, then it saves its state and ends.
            try:
                self.process.wait(3.0)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(2.0)
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _counters(answer: bytes, channels: int) -> DeviceCounters:
    _, _, status, token, samples, late, lapsed, refused, bad, net, absolute = _COUNTERS.unpack_from(answer)
    charges = ((net, absolute), *_further_charges(answer, _COUNTERS.size, channels))
    return DeviceCounters(status, token, samples, late, lapsed, refused, bad, net, absolute, charges)


def new_token() -> int:
    """A session token: random, never 0."""
    return secrets.randbelow(0xFFFFFFFF) + 1


def split_uri(uri: str) -> tuple[str, str, dict[str, list[str]]]:
    """Scheme, rest and options of a device URI. RefusedError if it is none."""
    scheme, colon, rest = uri.partition(":")
    if not colon or not scheme.isidentifier():
        known = "virtual:, sim:, serial:/dev/ttyACM0"
        raise RefusedError("not a device URI", key="--device", value=uri, remedy=f"write one of {known}")
    path, _, query = rest.partition("?")
    try:
        options = urllib.parse.parse_qs(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise RefusedError(
            "not a device URI", key="--device", value=uri, remedy="write options as ?name=value&name=value"
        ) from None
    return scheme, path, options


def serial_path(uri: str) -> str:
    """Path of the port in a URI of scheme `serial`. RefusedError if it has none."""
    _, path, options = split_uri(uri)
    if options or not path:
        raise RefusedError(
            "a serial device is a path", key="--device", value=uri, remedy='write "serial:/dev/ttyACM0"'
        )
    return path


VIRTUAL_OPTIONS: dict[str, tuple[str, type]] = {
    "skin": ("skin", str),
    "load": ("load", str),
    "seed": ("seed", int),
    "front-end": ("front_end", str),
    "rate": ("sample_rate_hz", float),
    "active-area": ("active_area_cm2", float),
    "return-area": ("return_area_cm2", float),
    "compliance": ("compliance_v", float),
    "onset-scale": ("onset_scale", float),
    "cpe": ("cpe_exponent", float),
    "hydration": ("hydration", float),
    "electroporation": ("electroporation", int),
    "sweat": ("sweat", float),
    "motion": ("motion_per_min", float),
    "electrode-charge": ("electrode_mc_cm2", float),
    "emf": ("half_cell_v", float),
    "bandwidth": ("bandwidth_hz", float),
    "hum": ("hum_v", float),
    "hum-hz": ("hum_hz", float),
    "jitter-us": ("jitter_us", float),
    "substeps": ("substeps", int),
    "noise": ("noise_codes", float),
    "skew-us": ("skew_us", float),
    "sentinel": ("sentinel", int),
    "dac-gain-error": ("dac_gain_error", float),
    "clock-error-ppm": ("clock_error_ppm", float),
    "serial": ("serial", str),
    "channels": ("channels", int),
    "pacing": ("pacing", str),
    "truth": ("truth", str),
    "state": ("state", str),
    "link": ("link", str),
    "cpu": ("cpu", int),
    "round-trip": ("round_trip", str),
    "fault": ("faults", list),
}
"""Options of a virtual device, as written in a URI or on the command line: argument of `serve` and its type."""


MOST_SEED = (1 << 64) - 1
MOST_SUBSTEPS = 1000


def whole_range(name: str) -> tuple[int, int]:
    """Least and greatest value of an option of a virtual device that is a whole number."""
    return {
        "seed": (0, MOST_SEED),
        "electroporation": (0, 1),
        "substeps": (0, MOST_SUBSTEPS),
        "sentinel": (0, 1),
        "channels": (1, MOST_CHANNELS),
        "cpu": (0, max(os.sched_getaffinity(0))),
    }[name]


def virtual_arguments(options: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Options as text -> arguments of `ionto_rt.virtual_device.serve`. RefusedError names what is not understood."""
    arguments: dict[str, Any] = {}
    for written, values in options.items():
        name = written.replace("_", "-")
        if name not in VIRTUAL_OPTIONS:
            remedy = f"use one of {', '.join(VIRTUAL_OPTIONS)}"
            raise RefusedError("no such option of a virtual device", key=f"--device ?{written}", remedy=remedy)
        argument, kind = VIRTUAL_OPTIONS[name]
        if kind is list:
            arguments[argument] = [text for value in values for text in value.split(",") if text]
            continue
        if len(values) > 1:
            key = f"--device ?{written}"
            raise RefusedError("is given more than once", key=key, value=", ".join(values), remedy="give it once")
        low, high = whole_range(name) if kind is int else (0, 0)
        try:
            value = kind(values[0])
            if (kind is int and not low <= value <= high) or value == "":
                raise ValueError
        except ValueError:
            what = f"a whole number from {low} to {high}" if kind is int else "a number" if kind is float else "a text"
            key = f"--device ?{written}"
            raise RefusedError(f"must be {what}", key=key, value=values[0], remedy="correct it") from None
        arguments[argument] = value
    return arguments


class SimBytes:
    """A virtual device in this process, in lock-step."""

    low_latency = "in process"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        from ionto_rt.virtual_device import SimPort

        given = dict(arguments)
        truth = given.pop("truth", None)
        if "round_trip" in given:
            raise ValueError("round trips are measured by the clock, and sim: has a virtual one: use virtual:")
        for of_a_process in ("link", "cpu"):
            given.pop(of_a_process, None)
        self._truth_fd = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644) if truth else -1
        self.sim = SimPort(truth_fd=self._truth_fd, **given)

    def read(self, most: int, timeout_s: float) -> bytes:
        return self.sim.read(most, timeout_s)

    def write(self, data: bytes) -> None:
        self.sim.write(data)

    def loop_port(self) -> object:
        return self.sim.capsule

    def close(self) -> None:
        self.sim.close()
        if self._truth_fd >= 0:
            os.close(self._truth_fd)
            self._truth_fd = -1


def open_device(uri: str, *, defaults: Mapping[str, Any] | None = None) -> SessionDevice:
    """Open a device and greet it.

    `virtual:` starts a virtual device as its own process, `sim:` one in this process, `serial:PATH` opens a port; other
    schemes come from the entry points `ionto_rt.devices`, each a function of the URI that returns a `SessionDevice`.
    `defaults` are arguments for a virtual device that its URI does not give. RefusedError if it cannot be used.
    """
    scheme, path, options = split_uri(uri)
    if scheme == "serial":
        device: SessionDevice = Device(uri, SerialBytes(serial_path(uri)))
    elif scheme in ("virtual", "sim"):
        if path:
            raise RefusedError("takes options only", key="--device", value=uri, remedy='write "virtual:?skin=dry"')
        arguments = {**(defaults or {}), **virtual_arguments(options)}
        try:
            device = _start_virtual(uri, arguments) if scheme == "virtual" else Device(uri, SimBytes(arguments))
        except OSError as error:
            remedy = "correct the option"
            raise RefusedError(system_words(error), key="--device", value=uri, remedy=remedy) from None
        except ValueError as error:
            raise RefusedError(str(error), key="--device", value=uri, remedy="correct the option") from None
    else:
        found = [entry for entry in entry_points(group="ionto_rt.devices") if entry.name == scheme]
        if not found:
            remedy = "use virtual:, sim: or serial:PATH, or install the package that brings it"
            raise RefusedError("no such kind of device", key="--device", value=uri, remedy=remedy)
        device = found[0].load()(uri)
    try:
        device.greet()
    except BaseException:
        device.close()
        raise
    return device


def _start_virtual(uri: str, arguments: Mapping[str, Any]) -> Device:
    process = subprocess.Popen(
        [sys.executable, "-m", "ionto_rt.virtual_device", json.dumps({**arguments, "parent": os.getpid()})],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    ready, _, _ = select.select([process.stdout], [], [], SPAWN_S)
    line = process.stdout.readline() if ready else b""
    if not line:
        process.kill()
        process.wait()
        said = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        problem = said[-1] if said else "it did not start"
        remedy = "see `ionto-rt virtual-device --help`"
        raise RefusedError(problem, key="--device", value=uri, remedy=remedy)
    try:
        port = SerialBytes(json.loads(line)["port"])
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Device(uri, port, process, cpu=arguments.get("cpu"))
