"""Real time over a pseudo-terminal: the loop beside a bare host in C, by the device's clock; and a whole session."""

import threading
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from bench_support import HERE
from real_time import BUSY_THREADS, Bench, interleaved

from ionto_rt.device import open_device
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment


class BusyThread:
    """A thread of Python that takes whatever the interpreter gives it."""

    def __enter__(self) -> "BusyThread":
        self.turns = 0
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="busy")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()

    def _run(self) -> None:
        while not self._stop:
            sum(range(1000))
            self.turns += 1


def test_a_minute_beside_a_busy_thread(benchmark: Any, tmp_path: Path, table: Any) -> None:
    with open_device("virtual:") as device:
        session = Session(Treatment.load(HERE / "minute.toml"), device, out_dir=tmp_path / "sessions")
        with BusyThread() as busy:
            receipt = benchmark.pedantic(session.run, rounds=1)
    latency = receipt["latency_us"]
    counted = receipt["device"]
    kept = (
        receipt["outcome"] == "complete" and receipt["ticks"] >= 60_000 and receipt["gaps"] == 0
        and counted["lapsed"] == 0 and not receipt["trips"]
    )  # fmt: skip
    table.add(
        "real time, 1 kHz, 60 s: tick p50, p99, p99.9, worst",
        " ".join(f"{latency[name]:.0f}" for name in ("p50", "p99", "p999", "max")) + " µs",
        beside="late commands, by the device", beside_own=f"{counted['late']} of {receipt['ticks']:,}",
        bar="no sample lost, no lease lapsed, no trip", kept=kept, latency_us=latency, late=counted["late"],
        device=counted, loop=receipt["loop"], trips=receipt["trips"], outcome=receipt["outcome"], busy_turns=busy.turns,
    )  # fmt: skip


ROUND_TRIP_BAR = 1.25
LATE_BAR = 1.25
PROCESSOR_BAR = 2.0


QUIET: dict[str, float] = {}
"""Percentiles of the quiet run, for the busy one to be set beside."""


@pytest.mark.parametrize("busy", [0, BUSY_THREADS], ids=["quiet", "busy"])
def test_round_trip_by_the_devices_clock(benchmark: Any, built: Path, table: Any, busy: int) -> None:
    bench = Bench(built, rate_hz=1000)
    own, bare = benchmark.pedantic(interleaved, (bench,), {"rounds": 6, "seconds": 5.0, "busy": busy}, rounds=1)
    beside = f", {busy} busy threads, gc, an import" if busy else ""
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        if busy and name in QUIET:
            table.add(
                f"sample to command at 1 kHz, {name}: busy beside quiet", f"{own.percentile_us(share):.1f} µs",
                beside="quiet", beside_own=f"{QUIET[name]:.1f} µs", ratio=own.percentile_us(share) / QUIET[name],
            )  # fmt: skip
        elif not busy:
            QUIET[name] = own.percentile_us(share)
        ratio = own.percentile_us(share) / bare.percentile_us(share)
        table.add(
            f"sample to command at 1 kHz{beside}, {name}", f"{own.percentile_us(share):.1f} µs",
            beside="bare C loop", beside_own=f"{bare.percentile_us(share):.1f} µs", ratio=ratio,
            bar=f"at most {ROUND_TRIP_BAR}", kept=ratio <= ROUND_TRIP_BAR, own_facts=own.facts(),
            bare_facts=bare.facts(),
        )  # fmt: skip


@pytest.mark.parametrize(("rate_hz", "channels"), [(10_000, 1), (1_000, 32)], ids=["10kHz", "32-channels"])
def test_a_minute_at_the_limit(benchmark: Any, built: Path, table: Any, rate_hz: int, channels: int) -> None:
    bench = Bench(built, rate_hz=rate_hz, channels=channels, apart=True)
    own, bare = benchmark.pedantic(interleaved, (bench,), {"rounds": 3, "seconds": 20.0}, rounds=1)
    what = f"{rate_hz // 1000} kHz, {channels} channel{'s' if channels > 1 else ''}, 60 s"
    most = LATE_BAR * bare.late + 3.0 * sqrt(bare.late)
    table.add(
        f"{what}: late commands", f"{own.late:,}", beside="bare C loop", beside_own=f"{bare.late:,}",
        bar="no lost sample, late at most 1.25 x + 3 sqrt", kept=own.lost == 0 and own.late <= most,
        own_facts=own.facts(), bare_facts=bare.facts(),
    )  # fmt: skip
    ratio = own.share_of_a_core / bare.share_of_a_core
    table.add(
        f"{what}: share of a core", f"{own.share_of_a_core:.2%}", beside="bare C loop",
        beside_own=f"{bare.share_of_a_core:.2%}", ratio=ratio,
        **({"bar": f"at most {PROCESSOR_BAR:g}", "kept": ratio <= PROCESSOR_BAR} if channels > 1 else {}),
    )  # fmt: skip
