"""What the record costs: one channel at 1 kHz, handed over in tenths of a second as in a run in real time."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_support import percentiles

from ionto_rt.record import TelemetryWriter

RATE_HZ = 1000
VISIT_ROWS = RATE_HZ // 10
SECONDS = 12


def test_telemetry(benchmark: Any, recording: Any, tmp_path: Path, table: Any) -> None:
    rows = recording.replayed[: SECONDS * RATE_HZ]
    visits = [rows[start : start + VISIT_ROWS] for start in range(0, len(rows), VISIT_ROWS)]
    count = 0
    plain: list[float] = []
    costs: list[float] = []

    def write_plain() -> None:
        with (tmp_path / f"plain-{count}").open("wb", buffering=0) as file:
            began = time.process_time()
            for visit in visits:
                file.write(memoryview(visit).cast("B"))
            plain.append((time.process_time() - began) / SECONDS)

    def write_record() -> None:
        nonlocal count
        count += 1
        writer = TelemetryWriter(tmp_path / f"telemetry-{count}.arrows", rows.dtype, {}, RATE_HZ)
        began = time.process_time()
        for visit in visits:
            writer.append(visit)
        costs.append((time.process_time() - began) / SECONDS)
        writer.close()

    benchmark.pedantic(write_record, setup=write_plain, rounds=20, warmup_rounds=1)
    own, floor = min(costs), min(plain)
    table.add(
        "record, 1 kHz, one channel: share of a core", f"{own:.4%}", beside="the same bytes to a file",
        beside_own=f"{floor:.4%}", ratio=own / floor, bytes_per_s=rows.itemsize * RATE_HZ,
        own_us_per_s=percentiles(np.array(costs) * 1e6), beside_us_per_s=percentiles(np.array(plain) * 1e6),
    )  # fmt: skip
