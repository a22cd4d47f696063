"""A minute in real time at 1 kHz over a pseudo-terminal, with a Python thread that never rests in the same process."""

import threading
from pathlib import Path
from typing import Any

from bench_support import HERE

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
