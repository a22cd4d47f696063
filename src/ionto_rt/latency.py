"""How late this host wakes up, and how long a device takes to answer, each beside the floor of this host.

Three series on one thread, in turns of a second so that all meet the same disturbances: wake-ups as cyclictest measures
them; round trips on the device, not armed (COUNTERS_REQUEST out, COUNTERS back, docs/wire-protocol.md); and the floor,
bare frames of the same lengths over a pseudo-terminal to a thread of this process that answers without the GIL.
"""

import contextlib
import os
import signal
import threading
import tty
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ionto_rt.core.clock import LatencyHistogram
from ionto_rt.core.host_thread import prepare
from ionto_rt.core.latency import Echo, RoundTripLoop, WakeUpLoop
from ionto_rt.core.wire import encode_frame
from ionto_rt.device import Hello, SessionDevice, split_uri
from ionto_rt.errors import RefusedError
from ionto_rt.hdr_log import HdrLog
from ionto_rt.host import LOOP_PRIORITY, awake_processors

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}
LEAST_RATE_HZ, MOST_RATE_HZ = 1.0, 20_000.0
MOST_DURATION_S = 86_400.0
TURN_S = 1.0
WAKE_UP, ROUND_TRIP, FLOOR = "wake-up", "round-trip", "floor"
CORRECTED = "-corrected"
"""Ending of a tag: with the times that a stall kept from being taken."""


@dataclass(frozen=True)
class Series:
    """One series of times.

    `corrected` has also those that a stall kept from being taken; None in a log without them. `interval_s` is what they
    were to be apart, `worst` the longest with its phases in ns (empty in a log), `use` what the thread used meanwhile.
    """

    name: str
    raw: LatencyHistogram
    corrected: LatencyHistogram | None
    interval_s: float = 0.0
    skipped: int = 0
    worst: Mapping[str, int] | None = None
    use: Mapping[str, int] | None = None
    counters: Mapping[str, int] | None = None

    @property
    def judged(self) -> LatencyHistogram:
        """The corrected times, where they are known."""
        return self.raw if self.corrected is None else self.corrected

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times in µs."""
        told: dict[str, Any] = {
            "count": self.raw.total,
            "interval_us": self.interval_s * 1e6,
            "skipped": self.skipped,
            "raw_us": percentiles_us(self.raw),
        }
        if self.corrected is not None:
            told["corrected_us"] = percentiles_us(self.corrected)
        if self.worst is not None:
            phases = {name: ns / 1e3 for name, ns in self.worst.items() if name not in ("ns", "cycle", "at_ns")}
            told["worst"] = {
                "us": self.worst["ns"] / 1e3,
                "cycle": self.worst["cycle"],
                "at_s": self.worst["at_ns"] / 1e9,
                **({"phases_us": phases} if phases else {}),
            }
        if self.use is not None:
            told["thread"] = dict(self.use)
        if self.counters is not None:
            told["counters"] = dict(self.counters)
        return told


@dataclass(frozen=True)
class LatencyResult:
    """What was measured. `ended`: done, stopped (before its time), silent or lost (the device), with `error`."""

    uri: str
    device: str
    started_utc: datetime
    duration_s: float
    rate_hz: float
    host: Mapping[str, str]
    ended: str
    error: str
    series: tuple[Series, ...]

    def __getitem__(self, name: str) -> Series:
        return next(one for one in self.series if one.name == name)

    @property
    def over_floor(self) -> dict[str, float]:
        """Percentiles of the round trip over those of the bare exchange, both corrected; empty without them."""
        ours, floor = percentiles_us(self[ROUND_TRIP].judged), percentiles_us(self[FLOOR].judged)
        return {name: ours[name] / floor[name] for name in ours if floor[name] > 0.0}

    @property
    def histograms(self) -> dict[str, LatencyHistogram]:
        """By tag of the log."""
        found = {}
        for one in self.series:
            found[one.name] = one.raw
            if one.corrected is not None:
                found[one.name + CORRECTED] = one.corrected
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times in µs."""
        return {
            "device": self.device,
            "uri": self.uri,
            "started_utc": self.started_utc.isoformat(timespec="milliseconds"),
            "duration_s": self.duration_s,
            "rate_hz": self.rate_hz,
            "ended": self.ended,
            "error": self.error,
            "host": dict(self.host),
            **{one.name.replace("-", "_"): one.as_dict() for one in self.series},
            "round_trip_over_floor": self.over_floor,
        }


def percentiles_us(histogram: LatencyHistogram) -> dict[str, float]:
    """p50, p90, p99, p999, p9999 and max of a histogram, in µs."""
    found = {name: histogram.percentile(share) / 1e3 for name, share in PERCENTILES.items()}
    return {**found, "max": histogram.highest_ns / 1e3}


def series_of_log(log: HdrLog) -> tuple[Series, ...]:
    """The series of a log, a corrected one beside its raw one."""
    found = log.histograms
    pairs = [name for name in found if not (name.endswith(CORRECTED) and name.removesuffix(CORRECTED) in found)]
    return tuple(Series(name or "times", found[name], found.get(name + CORRECTED)) for name in pairs)


def refuse_without_bytes(uri: str) -> None:
    """RefusedError if a device by this URI has no way that its bytes would take."""
    if split_uri(uri)[0] == "sim":
        raise RefusedError(
            "is in this process: there is no way to measure",
            key="--device",
            value=uri,
            remedy="use virtual: or serial:PATH",
        )


def counters_frame_bytes(hello: Hello) -> int:
    """Length of a device's COUNTERS frame: a payload of zeros has the same."""
    return len(encode_frame(bytes(44 + 16 * (hello.channels - 1))))


class Measurement:
    """The three series of a device that is open and not armed.

    `rate_hz` is from 1 to 20,000, `duration_s` the time for each series, `priority` of SCHED_FIFO (None: as it is),
    `cpu` the processor to stay on (None: any). RefusedError if the device's port carries no bytes.
    """

    def __init__(
        self,
        device: SessionDevice,
        *,
        rate_hz: float | None = None,
        duration_s: float = 10.0,
        priority: int | None = LOOP_PRIORITY,
        cpu: int | None = None,
    ) -> None:
        self._device = device
        self._rate_hz = 1.0 / device.hello.tick_s if rate_hz is None else rate_hz
        self._duration_s = duration_s
        self._priority, self._cpu = priority, cpu
        self._interval_ns = round(1e9 / self._rate_hz)
        self._question = len(encode_frame(bytes(1)))
        self._answer = counters_frame_bytes(device.hello)
        self._histograms = {name: (LatencyHistogram(), LatencyHistogram()) for name in (WAKE_UP, ROUND_TRIP, FLOOR)}
        self._wake_up = WakeUpLoop(self._interval_ns, *self._histograms[WAKE_UP])
        try:
            port = device.port.loop_port()
            self._round_trip = RoundTripLoop(port, self._interval_ns, *self._histograms[ROUND_TRIP])
        except ValueError as error:
            raise RefusedError(
                str(error), key="--device", value=device.uri, remedy="use virtual: or serial:PATH"
            ) from None
        self._stopped = threading.Event()
        self._loops: list[WakeUpLoop | RoundTripLoop] = [self._wake_up, self._round_trip]
        self._ended = "done"
        self._host: dict[str, str] = {}
        self._failure: BaseException | None = None

    def run(self) -> LatencyResult:
        """Measure. An interrupt (Ctrl-C) ends it early, with what has been measured until then."""
        started = datetime.now(UTC)
        with awake_processors(True) as processors, self._floor() as floor:
            worker = threading.Thread(target=self._work, args=(floor,), name="latency")
            worker.start()
            while worker.is_alive():
                try:
                    worker.join()
                except KeyboardInterrupt:
                    self.stop()
        if self._failure is not None:
            raise self._failure
        loops: dict[str, WakeUpLoop | RoundTripLoop]
        loops = {WAKE_UP: self._wake_up, ROUND_TRIP: self._round_trip, FLOOR: floor}
        return LatencyResult(
            uri=self._device.uri,
            device=self._device.hello.name,
            started_utc=started,
            duration_s=sum(loop.measured_ns for loop in loops.values()) / 1e9,
            rate_hz=self._rate_hz,
            host={**self._host, "processors": processors},
            ended=self._ended,
            error=self._round_trip.error,
            series=tuple(self._series(name, loop) for name, loop in loops.items()),
        )

    def stop(self) -> None:
        """End it early, from any thread."""
        self._stopped.set()
        for loop in self._loops:
            loop.stop()

    def _series(self, name: str, loop: WakeUpLoop | RoundTripLoop) -> Series:
        raw, corrected = self._histograms[name]
        counters = loop.counters if isinstance(loop, RoundTripLoop) else None
        return Series(
            name, raw, corrected, self._interval_ns / 1e9, loop.skipped, loop.worst, loop.use, counters
        )

    @contextlib.contextmanager
    def _floor(self) -> Iterator[RoundTripLoop]:
        """The bare exchange, and the thread that answers it."""
        far, near = os.openpty()
        try:
            tty.setraw(near)
            os.set_blocking(far, False)
            os.set_blocking(near, False)
            echo = Echo(far, self._question, self._answer)
            loop = RoundTripLoop(
                near,
                self._interval_ns,
                *self._histograms[FLOOR],
                question_bytes=self._question,
                answer_bytes=self._answer,
            )
            self._loops.append(loop)
            answering = threading.Thread(target=echo.run, name="latency echo")
            answering.start()
            try:
                yield loop
            finally:
                echo.stop()
                answering.join()
        finally:
            os.close(far)
            os.close(near)

    def _work(self, floor: RoundTripLoop) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._host = prepare(self._priority, self._cpu)
            locked = {loop.lock_memory() for loop in (self._wake_up, self._round_trip, floor)}
            self._host["memory"] = ", ".join(sorted(locked))
            self._take_turns(floor)
        except BaseException as error:
            self._failure = error

    def _take_turns(self, floor: RoundTripLoop) -> None:
        left = max(1, round(self._duration_s * self._rate_hz))
        while left and not self._stopped.is_set():
            turn = min(left, max(1, round(TURN_S * self._rate_hz)))
            for loop in (self._wake_up, floor, self._round_trip):
                self._ended = loop.run(turn)
                if self._ended != "done":
                    return
            left -= turn
        if left:
            self._ended = "stopped"
