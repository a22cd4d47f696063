"""What the injecting tests share: a session on a virtual device with a fault script, and when what showed.

Times are the device's: sample k is taken at the end of its period, at (k + 1) sample periods. A fault acts from the
period on whose start is not before its time, so scripts here use whole periods. A response starts with the answer to
the sample in which it was decided.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cli_support import Truth, treatment
from ionto_rt.codes import Phase
from ionto_rt.device import open_device
from ionto_rt.files import Files
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.safety import OperatorLimits
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify

NOTHING_A = 1e-6
"""A current that is none: some codes of the largest range are more."""


@dataclass
class Clock:
    """Of `--in-real-time`: every session is one of real time, on a device that is a process on a pseudo-terminal.

    sessions    so many were begun in this test for that reason
    """

    real: bool = False
    sessions: int = 0


clock = Clock()


@dataclass(frozen=True)
class Injected:
    """A session that has ended: its receipt, the rows of its record, what the device knows to have flowed."""

    receipt: dict[str, Any]
    record_path: Path
    truth: Truth

    @property
    def rows(self) -> Any:
        return Record.open(self.record_path).telemetry()

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = Record.open(self.record_path).events().events
        return [event.fields | {"tick": event.tick} for event in found if event.kind == kind]

    def first(self, column: str, value: int | None = None, *, after_s: float = 0.0) -> float:
        """Device time (s) of the first row whose column has this value, or is not zero; only rows after `after_s`. In
        real time, when that row was worked out."""
        rows = self.rows
        time_s = device_time_s(rows) + (1e-6 * rows["host_late_us"] if clock.real else 0.0)
        shown = rows[column] != 0 if value is None else rows[column] == value
        found = np.flatnonzero(shown & (time_s > after_s))
        assert len(found), f"{column} never was {'set' if value is None else value}: {self.receipt['reason']}"
        return float(time_s[found[0]])

    def off(self, *, after_s: float) -> float:
        """Device time (s) of the first period after `after_s` at whose end the relay is open and nothing flows."""
        time_s = self.truth["device_time_s"]
        still = (self.truth["relay_closed"] == 0) & (np.abs(self.truth["current_a"]) < NOTHING_A)
        found = np.flatnonzero(still & (time_s > after_s))
        assert len(found), f"never off: {self.receipt['reason']}"
        return float(time_s[found[0]])

    def phase(self, phase: Phase) -> float:
        """Device time (s) of its first row."""
        return self.first("phase", int(phase)) if phase else 0.001


def device_time_s(rows: Any) -> Any:
    """Of each row; sessions here are shorter than the wrap of the device's clock."""
    return rows["device_time_us"] * 1e-6


def session(
    folder: Path,
    *faults: str,
    uri: str = "virtual:",
    options: str = "",
    current: str = "2 mA",
    hold: str = "4 s",
    ramp: str = "2.5 s",
    steps: str | None = None,
    acts: Mapping[float, Callable[[Session], object]] | None = None,
    speed: Literal["max", "real"] = "max",
    whole: bool = True,
    files: Files | None = None,
    operator: OperatorLimits | None = None,
    attended: bool = False,
) -> Injected:
    """A short treatment on a virtual device (a process on a pseudo-terminal, unless `uri` is "sim:").

    faults: lines of the fault script. acts: what the orchestrator does at its first visit at or after that time (s of
    the session). whole: the record must be whole, and replay to the bit.
    """
    if clock.real:
        uri, speed = "virtual:", "real"
        clock.sessions += 1
    place = folder / f"session-{len(list(folder.glob('session-*')))}"
    place.mkdir()
    query = [f"truth={place / 'truth.csv'}", *(f"fault={fault}" for fault in faults), *filter(None, [options])]
    waiting = sorted((acts or {}).items())

    def watch(running: Session) -> None:
        elapsed_s = running.loop.counters["ticks"] * running.device.hello.tick_s
        while waiting and elapsed_s >= waiting[0][0] - 1e-9:
            waiting.pop(0)[1](running)

    path = treatment(place, current=current, hold=hold, ramp=ramp)
    if steps is not None:
        head = path.read_text().partition("[[steps]]")[0]
        path.write_text(head + steps)
    with open_device(f"{uri}?{'&'.join(query)}") as device:
        running = Session(
            Treatment.load(path),
            device,
            out_dir=place / "sessions",
            speed=speed,
            watcher=watch,
            operator=operator,
            attended=attended,
            **({"files": files} if files is not None else {}),
        )
        receipt = running.run()
        process = device.process
    if process is not None:
        process.wait(20)
    assert not waiting, "the session ended before all was done to it"
    assert running.record_path is not None
    if whole:
        assert replay(running.record_path).identical
        assert verify(running.record_path).ok, verify(running.record_path).problems
    truth = Truth(place / "truth.csv")
    assert truth["relay_closed"][-1] == 0 and truth["current_a"][-1] == 0.0
    return Injected(receipt, running.record_path, truth)


class FullDisk(Files):
    """A file system that takes no more bytes while it is full."""

    def __init__(self) -> None:
        self.full = False

    def _refuse(self, size: int) -> None:
        if self.full and size > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._refuse(len(data))
        return super().write(fd, data)

    def write_at(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        self._refuse(sum(map(len, parts)))
        return super().write_at(fd, parts, offset)
