"""`blackbox-N.bin`: what went over the port, both ways, from 2 s before a trip until the output was off.

A line of JSON, then the records as they lay in the loop's rings, little-endian: a head of 32 bytes and its data. The
format is docs/black-box.md; the `black-box` event has the file's hash.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ionto_rt.core.wire import FrameReader, unpack_command, unpack_sample
from ionto_rt.errors import IontoError, one_line
from ionto_rt.events import canonical, plain

BLACK_BOX = "black-box"
"""Kind of the event."""
FORMAT = 1
RECEIVED, SENT, SAMPLES, COMMANDS = 1, 2, 3, 4
"""Kinds of records: bytes of one read, of one write; structs from and to a device that is called."""
_HEAD = struct.Struct("<QQIiii")
_SAMPLE_FRAME, _COMMAND_FRAME = 0x85, 0x05
SAMPLE = np.dtype(
    [
        ("index", "<u4"),
        ("device_time_us", "<u4"),
        ("applied_index", "<u4"),
        ("nonce", "<u2"),
        ("status", "<u2"),
        ("current_code", "<i4"),
        ("redundant_code", "<i4"),
        ("voltage_code", "<i4"),
        ("applied_code", "<i4"),
        ("charge_codes", "<i8"),
        ("sentinel_code", "<i4"),
    ],
    align=True,
)
"""Struct Sample of types.pxd."""
COMMAND = np.dtype(
    [
        ("index", "<u4"),
        ("token", "<u4"),
        ("nonce", "<u2"),
        ("lease_ticks", "<u2"),
        ("flags", "u1"),
        ("code", "<i4"),
    ],
    align=True,
)
"""Struct Command of types.pxd."""


class BlackBoxError(IontoError):
    """A black box cannot be read; the message is one line with what, where and the remedy."""

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


def file_name(number: int) -> str:
    """Of a session's black box, from 1."""
    return f"blackbox-{number}.bin"


def is_black_box(name: str) -> bool:
    return re.fullmatch(r"blackbox-[1-9][0-9]*\.bin", name) is not None


def encode(taken: Mapping[str, Any], **facts: Any) -> bytes:
    """The file's bytes, from what `Loop.take_black_box` gave; `facts` join its first line."""
    head = {"format": FORMAT, **facts, **{key: value for key, value in taken.items() if key != "records"}}
    return canonical(plain(head)) + b"\n" + bytes(taken["records"])


@dataclass(frozen=True)
class Entry:
    """What went over the port at one time.

    tick      sample periods that the loop had ticked before
    host_s    host clock since the loop began; None on a virtual clock
    kind      RECEIVED, SENT, SAMPLES or COMMANDS
    outcome   bytes that the port took, or -errno; 0 is well for COMMANDS
    data      as they went
    """

    tick: int
    host_s: float | None
    kind: int
    outcome: int
    data: bytes

    @property
    def to_device(self) -> bool:
        return self.kind in (SENT, COMMANDS)


@dataclass(frozen=True)
class Message:
    """A sample or a command of all channels, or a frame that is neither (`channels` is empty then).

    `entry` is the one with which it was whole; `payload` is empty where no bytes were spoken.
    """

    entry: Entry
    what: str
    channels: Sequence[Mapping[str, int]]
    payload: bytes = b""


class BlackBox:
    """A black box as it was written.

    facts     the first line: `session_id`, `trips`, `trip_tick` (None: none, the device was lost), `channels` of the
              device, `period_ns`, `sentinel`, `window_ticks`, `entries`, `left_out`
    entries   in their order
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            line, _, data = path.read_bytes().partition(b"\n")
            self.facts: dict[str, Any] = dict(json.loads(line))
            if self.facts.get("format") != FORMAT:
                raise ValueError(f"format {self.facts.get('format')!r}, this version reads {FORMAT}")
            self.entries = tuple(_entries(data))
        except OSError as error:
            raise BlackBoxError(f"{path}: cannot be read ({error.strerror}); give a session's folder") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise BlackBoxError(f"{path}: no black box ({error}); check the record with `ionto-rt verify`") from None

    def messages(self) -> Iterator[Message]:
        """What was said, decoded; bytes of which no frame came out are counted as `bad frames` at the next one."""
        channels, sentinel = int(self.facts["channels"]), bool(self.facts["sentinel"])
        readers = {RECEIVED: FrameReader(), SENT: FrameReader()}
        bad = dict.fromkeys(readers, 0)
        for entry in self.entries:
            if entry.kind in (SAMPLES, COMMANDS):
                dtype, what = (SAMPLE, "sample") if entry.kind == SAMPLES else (COMMAND, "command")
                rows = np.frombuffer(entry.data, dtype)
                names = dtype.names or ()
                yield Message(entry, what, [{name: int(row[name]) for name in names} for row in rows])
                continue
            reader = readers[entry.kind]
            for payload in reader.feed(entry.data):
                yield _message(entry, payload, channels, sentinel)
            if reader.bad_frames != bad[entry.kind]:
                yield Message(entry, f"bad frames: {reader.bad_frames - bad[entry.kind]}", [])
                bad[entry.kind] = reader.bad_frames


def _entries(data: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(data):
        if len(data) - at < _HEAD.size:
            raise ValueError(f"{len(data) - at} bytes behind the last record")
        host_ns, tick, length, outcome, kind, _ = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if kind not in (RECEIVED, SENT, SAMPLES, COMMANDS) or length > len(data) - at:
            raise ValueError(f"no record at byte {at - _HEAD.size} behind the first line")
        yield Entry(tick, host_ns * 1e-9 if host_ns else None, kind, outcome, data[at : at + length])
        at += length


def _message(entry: Entry, payload: bytes, channels: int, sentinel: bool) -> Message:
    try:
        if payload[0] == _SAMPLE_FRAME and entry.kind == RECEIVED:
            return Message(entry, "sample", unpack_sample(payload, sentinel), payload)
        if payload[0] == _COMMAND_FRAME and entry.kind == SENT:
            return Message(entry, "command", unpack_command(payload, channels), payload)
    except ValueError as error:
        return Message(entry, f"frame {payload[0]:#04x} ({error})", [], payload)
    return Message(entry, f"frame {payload[0]:#04x}", [], payload)


def black_boxes(folder: Path) -> list[BlackBox]:
    """Those of a session, in their order."""
    found = [path for path in folder.iterdir() if is_black_box(path.name)]
    return [BlackBox(path) for path in sorted(found, key=lambda path: int(path.stem.partition("-")[2]))]
