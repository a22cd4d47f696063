"""Who writes the record while current flows: one thread that alone touches the disk.

The orchestrator hands events over and never waits; the rows come from the loop's ring, of which this is the single
consumer. A disk that stalls stops this thread and nothing else: the ring holds `RING_S` of rows, and what finds it full
is counted by the loop. On a virtual clock the session calls `work` between two turns of the loop, in its own thread.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt.channel_run import ChannelRun
from ionto_rt.configuration import RING_S
from ionto_rt.core.loop import Loop
from ionto_rt.errors import IontoError
from ionto_rt.journal import Journal
from ionto_rt.record import RENEW_S, SessionFolder, TelemetryWriter, reserve_ahead_c, write_atomic

PASS_S = 0.1
"""Between two passes of the thread: a batch of the record."""
DRAIN_ROWS = 500
"""Rows taken at a time. numpy lets go of the interpreter for more than these, once a column; beside busy threads each
time costs milliseconds until it comes back."""
EVENTS_MOST = 4096
"""Events that may wait for the disk; a session has some tens."""


def ring_rows(rate_hz: float, channels: int) -> int:
    """Rows of the telemetry ring: a row a tick and channel for RING_S."""
    return max(2, round(rate_hz * channels * RING_S))


def reserved_first_c(channel: ChannelRun) -> float:
    """Charge (C) that a channel reserves before any has flowed."""
    return reserve_ahead_c(channel.limits.current_cap_a)


@dataclass(frozen=True)
class _Posted:
    kind: str
    tick: int | None
    safety: bool
    at: datetime
    fields: dict[str, Any] = field(default_factory=dict)
    data: bytes | None = None


class Recorder:
    """Writes what a running session leaves behind: rows, events, and the reservation in the journal.

    `now_s` is the session's clock in s: the host's in real time, the ticks on a virtual clock. `durable` says that rows
    are to be on disk before the reservation moves on. `folder`, `telemetry` and `journal` are the recorder's until
    `done` is set, and the caller's again after it.

    problem      what the disk said last, in one line; empty while it takes what it is given
    failure      an error that is none of the disk's
    written_at_s clock at which everything before it was written, and the reservation ahead of it
    passes       rounds that ended, for who wants to see that the thread lives
    dropped      events that found the queue full
    """

    def __init__(
        self,
        folder: SessionFolder,
        telemetry: TelemetryWriter,
        journal: Journal,
        loop: Loop,
        channels: Sequence[ChannelRun],
        *,
        now_s: Callable[[], float],
        durable: bool,
    ) -> None:
        self.folder = folder
        self.telemetry = telemetry
        self.journal = journal
        self.loop = loop
        self.channels = channels
        self.done = threading.Event()
        self.problem = ""
        self.failure: Exception | None = None
        self.passes = 0
        self.dropped = 0
        self._now_s = now_s
        self.written_at_s = now_s()
        self._durable = durable
        self._posted: deque[_Posted] = deque()
        self._left: npt.NDArray[np.void] | None = None
        self._overflowed = 0
        self._dropped_told = 0
        self._reserved_c = [reserved_first_c(channel) for channel in channels]
        self._synced_at_s = self.written_at_s
        self._wake = threading.Event()
        self._ending = False
        self._abandoned = self._closes = False

    def post(self, kind: str, tick: int | None, *, safety: bool = False, **fields: Any) -> None:
        """Hand an event over, as `EventLog.write` takes it; never waits. The time on record is this moment's."""
        if len(self._posted) >= EVENTS_MOST:
            self.dropped += 1
            return
        self._posted.append(_Posted(kind, tick, safety, datetime.now(UTC), fields))
        if safety:
            self._wake.set()

    def keep(self, kind: str, tick: int | None, name: str, data: bytes, **fields: Any) -> None:
        """A file of its own in the session's folder, whole or not at all, and the event that vouches for it."""
        facts = {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self._posted.append(_Posted(kind, tick, True, datetime.now(UTC), facts | fields, data))
        self._wake.set()

    def start(self) -> None:
        """Begin to work in a thread of its own. A daemon: a disk that never answers must not hold the process."""
        threading.Thread(target=self._run, name="ionto-rt recorder", daemon=True).start()

    def end(self) -> None:
        """Nothing comes any more: `done` is set when all is written. In a thread; without one `work` does it."""
        self._ending = True
        self._wake.set()

    def give_up(self) -> bool:
        """Wait no longer for a disk that refuses: True if the thread has ended and the files are the caller's again.

        False if it is in the middle of a call that does not return; if that ever does, the thread closes the files.
        """
        self._abandoned = True
        self.end()
        if self.done.wait(2.0 * PASS_S):
            return True
        self._closes = True
        return False

    def _run(self) -> None:
        while not (self._ending and (self.work() or self._abandoned)):
            self._wake.wait(PASS_S)
            self._wake.clear()
            if not self._ending:
                self.work()
        if self._closes:
            try:
                self.folder.close()
                self.journal.close()
            except (IontoError, OSError) as error:
                self.problem = str(error)
        self.done.set()

    def work(self) -> bool:
        """One pass: events, rows, reservation. True if all that had come before it is written."""
        began_s = self._now_s()
        try:
            self._write_events()
            overflowed = self.loop.counters["ring_dropped"]
            self._write_rows()
            self._write_events()
            self._reserve(began_s)
        except (IontoError, OSError) as error:
            self.problem = " ".join(str(error).split())
            return False
        except Exception as failure:
            self.failure = self.failure or failure
            return False
        finally:
            self.passes += 1
        self.problem = ""
        # While rows find no room, the newest written one is old: the reservation is not ahead of now.
        if overflowed == self._overflowed:
            self.written_at_s = began_s
        self._overflowed = overflowed
        return True

    def _write_events(self) -> None:
        while self._posted:
            event = self._posted[0]
            if event.data is not None:
                write_atomic(self.folder.path / event.fields["file"], event.data, self.folder.files)
            self.folder.events.write(event.kind, event.tick, event.safety, at=event.at, **event.fields)
            self._posted.popleft()
        if self.dropped != self._dropped_told:
            self.folder.events.write("events-dropped", None, dropped=self.dropped)
            self._dropped_told = self.dropped

    def _write_rows(self) -> None:
        """All rows that the ring held at the beginning; it is not chased by what comes meanwhile."""
        left = self.loop.counters["ring_rows"]
        while left > 0:
            rows = self._left
            if rows is None:
                rows = self.loop.drain(DRAIN_ROWS)
                if not len(rows):
                    return
                self._add(rows)
                left -= len(rows) if len(rows) == DRAIN_ROWS else left
            self._left = rows
            try:
                self.telemetry.append(rows)
            except BaseException:
                self._left = rows[self.telemetry.taken :]
                raise
            self._left = None

    def _add(self, rows: npt.NDArray[np.void]) -> None:
        for channel in self.channels:
            own = rows if len(self.channels) == 1 else rows[rows["channel"] == channel.number]
            if not len(own):
                continue
            for tick, count in channel.totals.add(own):
                of_channel: dict[str, Any] = {"channel": channel.number} if len(self.channels) > 1 else {}
                self.post("rows-missing", tick, rows=count, **of_channel)

    def _reserve(self, began_s: float) -> None:
        """Keep the reservation ahead of what is written, so that it covers all that can flow before the session ends
        because of a disk that stalls from here on.
        """
        if self._durable and began_s - self._synced_at_s >= RENEW_S:
            self.telemetry.sync()
            self._synced_at_s = began_s
        wanted_c = [channel.absolute_c + reserve_ahead_c(channel.limits.current_cap_a) for channel in self.channels]
        used_c = [wanted - reserved for wanted, reserved in zip(wanted_c, self._reserved_c, strict=True)]
        if any(
            used >= RENEW_S * channel.limits.current_cap_a for used, channel in zip(used_c, self.channels, strict=True)
        ):
            absolute_c = [channel.absolute_c for channel in self.channels]
            self.journal.extend(self.folder.session_id, list(zip(absolute_c, wanted_c, strict=True)))
            self._reserved_c = wanted_c
