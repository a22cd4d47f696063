"""Wake-up jitter as `ionto-rt latency` measures it beside cyclictest's, in turns, at one priority and interval."""

import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_support import percentiles

from ionto_rt.core.clock import LatencyHistogram, bucket_ends
from ionto_rt.core.latency import WakeUpLoop
from ionto_rt.host import LOOP_PRIORITY, awake_processors
from ionto_rt.latency import prepare

BAR = 1.25
INTERVAL_US = 1000
ROUNDS, TURN = 24, 1000
"""Each turn has its own percentiles, and the medians over the turns are compared: a turn that another program has
disturbed counts as one."""
HIGHEST_NS = 400_000
"""cyclictest's histogram has a line for each ns up to here, and counts what is beyond as overflows."""


def cyclictest(program: str, log: Path) -> np.ndarray:
    """One turn of cyclictest; its times in ns, those beyond its histogram as that end."""
    command = [
        program, "--quiet", "--mlockall", "--nsecs", f"--priority={LOOP_PRIORITY}", f"--interval={INTERVAL_US}",
        f"--loops={TURN}", f"--histogram={HIGHEST_NS}", f"--histfile={log}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    lines = (line.split() for line in log.read_text().splitlines() if line[:1].isdigit() and line[-6:] != "000000")
    counted = {int(ns): int(count) for ns, count in lines}
    times = np.repeat(np.array(list(counted)), np.array(list(counted.values())))
    return np.concatenate([times, np.full(TURN - len(times), HIGHEST_NS)])


def wake_up() -> np.ndarray:
    """One turn of ours, on a thread of its own, with the processors kept awake as cyclictest keeps them; in ns."""
    raw = LatencyHistogram()
    loop = WakeUpLoop(INTERVAL_US * 1000, raw, LatencyHistogram())

    def work() -> None:
        prepare(LOOP_PRIORITY, None)
        loop.lock_memory()
        loop.run(TURN)

    with awake_processors(True):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return np.repeat(bucket_ends().astype(float), raw.counts.astype(np.int64))


def test_wake_up_beside_cyclictest(benchmark: Any, built: Path, table: Any) -> None:
    program = shutil.which("cyclictest")
    if program is None:
        pytest.skip("cyclictest is not installed (package rt-tests)")
    own: list[np.ndarray] = []
    beside: list[np.ndarray] = []
    benchmark.pedantic(
        lambda: own.append(wake_up()),
        setup=lambda: beside.append(cyclictest(program, built / "cyclictest.txt")),
        rounds=ROUNDS,
    )
    medians = {
        share: [float(np.median([np.percentile(turn, share) for turn in turns])) for turns in (own, beside)]
        for share in (50, 99)
    }
    ratios = {share: ours / theirs for share, (ours, theirs) in medians.items()}
    table.add(
        f"wake-up at 1 kHz, priority {LOOP_PRIORITY}: p50, p99",
        " ".join(f"{ours / 1e3:.1f}" for ours, _ in medians.values()) + " µs",
        beside="cyclictest",
        beside_own=" ".join(f"{theirs / 1e3:.1f}" for _, theirs in medians.values()) + " µs",
        ratio=max(ratios.values()), bar=f"at most {BAR}, both", kept=max(ratios.values()) <= BAR, ratios=ratios,
        own_ns=percentiles(np.concatenate(own)), beside_ns=percentiles(np.concatenate(beside)),
    )  # fmt: skip
