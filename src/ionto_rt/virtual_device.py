"""The virtual device as a process of its own on a pseudo-terminal, and as a port inside this process.

Only what it needs is imported: the process must be ready in a blink.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tty
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from ionto_rt.core.virtual_device import DEVICE_FAULTS, FAULT_KINDS, FAULT_OFF, FAULT_VALUES, OFF, VirtualDevice
from ionto_rt.files import read_regular

PACINGS = {"real": 1, "host": 2, "lock-step": 4, "both": 5, "all": 7}
"""Bits of the hello: its own clock; answers to the host alone; a virtual clock; the first and the third; all three."""
STATE_KEYS = ("serial", "token", "range", "samples", "net_codes", "absolute_codes")
IDLE_MS = 500
MOST_STATE_BYTES = 1 << 20
CHANNEL_DIGITS = 9
"""Of a channel's number in a fault: what the device can still compare with its channels."""


Fault = tuple[str, float, float] | tuple[str, float, float, int]


def parse_fault(text: str) -> Fault:
    """One line of a fault script.

    Args:
        text: ``open@60``, ``close@60.5``, ``short@60``, ``area=0.5@60``, ``return-area=0.5@60``, ``unplug@60``,
            ``stall@60+0.02``, ``stuck@60``, ``peel=120@60`` (seconds until the pad is off), ``dry=8@60`` (percent a
            minute), ``loose=5@60`` (openings a minute) or ``leak=100000@60`` (ohm between the leads); times in seconds
            of armed device time, the length of a stall in seconds. ``2:open@60`` is on channel 2; without a number it
            is on channel 0. ``unplug``, ``stall`` and the others of `DEVICE_FAULTS` are the whole device's, and take
            none. What can be ended is ended by ``=off``: ``gain=1.05@60`` and ``gain=off@70``. docs/simulator.md has
            the list.

    Returns:
        (kind, value, time_s), with the channel behind them where the text names one; what value is,
        `ionto_rt.core.virtual_device.FAULT_VALUES` says.

    Raises:
        ValueError: anything else; the message names the text and what is allowed.
    """
    before, colon, behind = text.partition(":")
    head, at, when = (behind if colon else text).partition("@")
    kind, _, given = head.partition("=")
    start, _, length = when.partition("+")
    valued = kind in FAULT_VALUES and kind != "stall"
    value = given if valued else length if kind == "stall" else "0"
    ends = given == "off" and kind in FAULT_OFF
    try:
        if colon and (not before.isdecimal() or len(before) > CHANNEL_DIGITS or kind in DEVICE_FAULTS):
            raise ValueError
        if not at or kind not in FAULT_KINDS or (given and not valued and not ends) or (length and kind != "stall"):
            raise ValueError
        numbers = OFF if ends else float(value), float(start)
        if not (-1e9 < numbers[0] < 1e9 and 0.0 <= numbers[1] < 1e9):
            raise ValueError
    except ValueError:
        kinds = ", ".join(FAULT_KINDS)
        raise ValueError(
            f"fault {text!r} is not understood: write {kinds} as in open@60, area=0.5@60, peel=120@60, stall@60+0.02; "
            "of another channel than 0 as in 2:open@60"
        ) from None
    return (kind, *numbers, int(before)) if colon else (kind, *numbers)


def _are_charges(value: object) -> bool:
    """Whether value is a list of pairs of whole numbers."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair) for pair in value
    )


def read_state(path: Path) -> dict[str, Any] | None:
    """The device's memory of its last session, or None if there is no file.

    Raises:
        ValueError: the file is there and is no such memory.
    """
    try:
        state = json.loads(read_regular(path, MOST_STATE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        state = None
    if (
        not isinstance(state, dict)
        or state.get("format") != 1
        or any(type(state.get(key)) is not (str if key == "serial" else int) for key in STATE_KEYS)
        or not _are_charges(state.get("further_channels", []))
    ):
        raise ValueError(f"{path}: not the state of a virtual device: move it away to start with an empty one")
    further = state.get("further_channels", [])
    kept = {key: state[key] for key in STATE_KEYS}
    return {**kept, "further_channels": [tuple(pair) for pair in further]} if further else kept


def make_device(
    *,
    state: str | os.PathLike[str] | None = None,
    truth_fd: int = -1,
    serial: str | None = None,
    faults: Iterable[str] = (),
    pacing: str = "both",
    load: str | tuple[float, float, float] | None = None,
    **options: Any,
) -> VirtualDevice:
    """A device in this process that remembers its last session in the file ``state``.

    Args:
        state: path; read if it exists, replaced at least once a second of device time.
        truth_fd: descriptor of the truth file, or -1.
        serial: serial number, at most 15 characters; by default the state's, or ``VIRTUAL-0001``.
        faults: fault script, see `parse_fault`; put in the order of its times.
        pacing: real, host, lock-step, both (real and lock-step) or all: what the hello offers.
        load: a dummy load instead of skin, as text (`ionto_rt.dummy_load`) or as `VirtualDevice` takes it.
        options: the other arguments of `ionto_rt.core.virtual_device.VirtualDevice`; channels as the state has them, if
            they are not given.

    Raises:
        ValueError: an option out of range, a fault that is not understood, a state file of another device or kind.
    """
    if pacing not in PACINGS:
        raise ValueError(f"pacing {pacing!r} is not known: use {', '.join(PACINGS)}")
    if isinstance(load, str):
        from ionto_rt.dummy_load import DummyLoad
        from ionto_rt.units import UnitError

        try:
            load = DummyLoad.parse(load).elements
        except UnitError as error:
            raise ValueError(f"load {load!r}: {error}") from None
    path = None if state is None else Path(state).absolute()
    memory = None if path is None else read_state(path)
    if memory is not None and serial not in (None, memory["serial"]):
        raise ValueError(f"{path}: state of device {memory['serial']}, not of {serial}: give each device its own file")
    count = 1 if memory is None else 1 + len(memory.get("further_channels", ()))
    channels = options.setdefault("channels", count)
    if memory is not None and count != channels:
        raise ValueError(f"{path}: state of a device of channels={count}, not {channels}: give each its own file")
    device = VirtualDevice(
        serial=serial or (memory["serial"] if memory else "VIRTUAL-0001"),
        faults=sorted((parse_fault(text) for text in faults), key=lambda fault: fault[2]),
        pacing=PACINGS[pacing],
        truth_fd=truth_fd,
        state_path=path,
        load=load,
        **options,
    )
    if memory is not None:
        try:
            device.recall(**{key: value for key, value in memory.items() if key != "serial"})
        except OverflowError:
            raise ValueError(f"{path}: counts that no device can have: move it away to start with none") from None
    return device


class SimPort:
    """A device in this process, in lock-step, with the bytes of its port.

    Args:
        options: arguments of `make_device`.

    Attributes:
        device: the `VirtualDevice`, with its true values and faults.
        capsule: PyCapsule ``ionto_rt.core.types.Port`` for the compiled loop; it keeps the device alive.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("pacing", "lock-step")
        if PACINGS.get(options["pacing"], 0) & PACINGS["host"]:
            raise ValueError(
                f"pacing {options['pacing']!r} needs the host's clock, and sim: has a virtual one: use virtual:"
            )
        self.device = make_device(**options)
        self.capsule: object = self.device.port_capsule()

    def read(self, size: int, timeout: float = 0.0) -> bytes:
        """Up to ``size`` bytes that wait for the host, or none. Never waits: in lock-step none would come."""
        return self.device.transmit(size)

    def write(self, data: bytes) -> int:
        """Bytes to the device; all are taken."""
        self.device.receive(data)
        return len(data)

    def close(self) -> None:
        """The host lets go: the lease runs out, the relay opens, truth and state are written."""
        self.device.run_down()


def _open_pty() -> tuple[int, int, str]:
    """(port, host's side, path) of a raw pseudo-terminal: no echo, no line editing, no flow control."""
    port_fd, host_fd = os.openpty()
    tty.setraw(host_fd)
    os.set_blocking(port_fd, False)
    os.set_inheritable(port_fd, False)
    return port_fd, host_fd, os.ttyname(host_fd)


def _link(path: Path, target: str) -> None:
    """Makes path a symbolic link to target; what stands there already must be a link."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        raise ValueError(f"{path}: is there and is no symbolic link: choose another path for the link")
    path.symlink_to(target)


def serve(
    *,
    truth: str | os.PathLike[str] | None = None,
    link: str | os.PathLike[str] | None = None,
    cpu: int | None = None,
    round_trip: str | os.PathLike[str] | None = None,
    keep: bool = False,
    stream: TextIO | None = None,
    parent: int | None = None,
    **options: Any,
) -> str:
    """Runs a virtual device on a new pseudo-terminal until its host closes it.

    Prints one line of JSON when ready: ``{"port": "/dev/pts/N", "serial": ..., "pid": ...}``. When the host goes, the
    device's clock runs on until the lease has run out and the relay is open; truth and state are then complete. It also
    ends when its parent process dies before any host has spoken, and on SIGTERM or SIGINT.

    Args:
        truth: CSV file for what truly happened, one row each sample period, flushed each 0.1 s of device time:
            index, device_time_s, current_a (mean through the skin), current_peak_a, charge_c, absolute_charge_c,
            voltage_v (end of the period), applied_code, lease_ticks_left, relay_closed, lapsed, contact_fraction.
            A disarming adds one row without a sample, with the relay open. Of several channels one row each for each
            period, with a column channel in front.
        link: symbolic link to the pseudo-terminal, removed at the end.
        cpu: processor to stay on; None: any.
        round_trip: JSON file for the time from just before a sample's write(2) to the read(2) that brought the accepted
            command answering that very sample, on the device's clock and in real time: samples (sent), answered, late
            and dropped (counts), p50_us, p90_us, p99_us, p999_us, p9999_us, max_us, mean_us, and counts, a list of
            [largest time of the bucket in ns, count]. Written when a session ends.
        keep: serve the next host after this one, instead of ending.
        stream: where the line goes; standard output by default.
        parent: number of the process that started this one, which may have died before this line; by default whose
            child it is now.
        options: arguments of `make_device`.

    Returns:
        Why it ended: closed, unplugged, silent (lock-step, no frame for a second), stopped, idle (its parent died) or
        failed.

    Raises:
        ValueError: an option out of range.
        OSError: a file cannot be written, or the processor is not to be had.
    """
    stream = sys.stdout if stream is None else stream
    parent = os.getppid() if parent is None else parent
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    truth_fd = -1
    if truth is not None:
        truth_fd = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    if round_trip is not None:
        os.close(os.open(round_trip, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644))
        options["round_trip_path"] = Path(round_trip).absolute()
    link_path = None if link is None else Path(link)
    stop_read, stop_write = os.pipe()
    os.set_blocking(stop_write, False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(stop_write)
    end = "closed"
    port_fd = host_fd = -1
    try:
        for number in handlers:
            signal.signal(number, lambda *_: None)
        device = make_device(truth_fd=truth_fd, **options)
        port_fd, host_fd, path = _open_pty()
        if link_path is not None:
            _link(link_path, path)
        print(json.dumps({"port": path, "serial": device.serial, "pid": os.getpid()}), file=stream, flush=True)
        while True:
            end, host_fd = device.serve(port_fd, host_fd, stop_read, IDLE_MS)
            if end == "idle":
                if host_fd >= 0 and os.getppid() != parent:
                    break
            elif keep and end in ("closed", "silent"):
                if host_fd < 0:
                    host_fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
            else:
                break
        for name, error in zip(("truth", "state", "round-trip"), device.file_errors, strict=True):
            if error:
                raise OSError(error, f"the {name} file is not complete: {os.strerror(error)}")
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for fd in (port_fd, host_fd, truth_fd, stop_read, stop_write):
            if fd >= 0:
                os.close(fd)
        if link_path is not None and link_path.is_symlink():
            link_path.unlink()
    return end


def main(arguments: list[str]) -> int:
    """Entry for programs that start a device: one argument, the options of `serve` as a JSON object."""
    try:
        serve(**json.loads(arguments[0] if arguments else "{}"))
    except OSError as error:
        print(f"virtual device: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (ValueError, TypeError) as error:
        print(f"virtual device: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
