"""The product: a whole treatment of 631 s with record and journal, and the memory that it takes."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_support import CHUNK_TICKS, TREATMENT, arm

from ionto_rt.device import open_device
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

RUN_BAR_S = 40.0
MEMORY_BAR_MB = 120.0
GROWTH_BAR_MB = 1.0
SAMPLE_S = 0.1


def resident_mb(pid: int) -> float | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Run:
    """`ionto-rt run` on the example as a process, its memory sampled while it runs."""

    def __init__(self, out: Path) -> None:
        self.memory: list[float] = []
        began = time.perf_counter()
        command = [sys.executable, "-m", "ionto_rt", "run", str(TREATMENT), "--speed", "max", "--json"]
        process = subprocess.Popen(
            [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        sampler = threading.Thread(target=self._sample, args=(process,))
        sampler.start()
        before = os.times()
        output, errors = process.communicate()
        after = os.times()
        self.wall_s = time.perf_counter() - began
        self.cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
        sampler.join()
        assert process.returncode == 0, errors
        self.receipt: dict[str, Any] = json.loads(output)

    def _sample(self, process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            resident = resident_mb(process.pid)
            if resident:
                self.memory.append(resident)
            time.sleep(SAMPLE_S)


def test_treatment_over_a_pseudo_terminal(benchmark: Any, tmp_path: Path, table: Any) -> None:
    run: Run = benchmark.pedantic(Run, args=(tmp_path / "sessions",), rounds=1)
    ticks, data_s = run.receipt["ticks"], run.receipt["duration_s"]
    assert run.receipt["outcome"] == "complete"
    table.add(
        "ionto-rt run --speed max, 631 s, over a pty", f"{run.wall_s:.1f} s", beside="real time",
        beside_own=f"{data_s:.0f} s", ratio=run.wall_s / data_s, bar=f"under {RUN_BAR_S:.0f} s",
        kept=run.wall_s < RUN_BAR_S, processor_s=run.cpu_s, processor_us_per_tick=run.cpu_s / ticks * 1e6,
        latency_us=run.receipt["latency_us"],
    )  # fmt: skip
    # The first quarter is imports and the first turns; from there on nothing may be kept.
    settled = run.memory[len(run.memory) // 4 :]
    peak, growth = max(run.memory), max(settled) - settled[0]
    table.add(
        "  resident memory, ring included", f"{peak:.1f} MB", beside="its growth over the run",
        beside_own=f"{growth:.2f} MB", bar=f"at most {MEMORY_BAR_MB:.0f} MB, flat",
        kept=peak <= MEMORY_BAR_MB and growth <= GROWTH_BAR_MB, samples=len(run.memory),
    )  # fmt: skip


def test_treatment_in_process(benchmark: Any, tmp_path: Path, table: Any) -> None:
    with open_device("sim:") as device:
        armed = arm(device)
        bare_s = 0.0
        running = True
        while running:
            began = time.perf_counter()
            running = armed.chunk()
            bare_s += time.perf_counter() - began
            armed.turn()
        ticks = armed.loop.counters["ticks"]
    with open_device("sim:") as device:
        session = Session(Treatment.load(TREATMENT), device, out_dir=tmp_path / "sessions", speed="max")
        receipt = benchmark.pedantic(session.run, rounds=1)
    assert receipt["outcome"] == "complete" and receipt["ticks"] == ticks
    whole_s = benchmark.stats.stats.max
    table.add(
        "the same on sim:, record and journal included", f"{whole_s:.2f} s", beside="its loop alone",
        beside_own=f"{bare_s:.2f} s", ratio=whole_s / bare_s, ticks=ticks, chunk_ticks=CHUNK_TICKS,
        rows_mb=round(ticks * np.dtype(armed.loop.drain(1).dtype).itemsize / 1e6, 1),
    )  # fmt: skip
