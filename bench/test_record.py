"""What the record costs: rows of tenths of a second, as the recorder's thread takes them out of the ring."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_support import percentiles

from ionto_rt.channel_run import Totals
from ionto_rt.record import BATCHES_PER_SECOND, TelemetryWriter
from ionto_rt.recorder import DRAIN_ROWS

SECONDS = 2
BARS = {(1_000, 1): 0.02, (10_000, 8): 0.40}


@pytest.mark.parametrize(("rate_hz", "channels"), BARS, ids=["1kHz", "10kHz-8-channels"])
def test_telemetry(benchmark: Any, recording: Any, tmp_path: Path, table: Any, rate_hz: int, channels: int) -> None:
    visit_rows = rate_hz * channels // BATCHES_PER_SECOND
    rows = np.resize(recording.replayed, SECONDS * rate_hz * channels)
    rows["channel"] = np.arange(len(rows)) % channels
    rows["index"] = np.arange(len(rows)) // channels
    visits = [rows[start : start + visit_rows] for start in range(0, len(rows), visit_rows)]
    count = 0
    plain: list[float] = []
    costs: list[float] = []

    def write_plain() -> None:
        with (tmp_path / "plain").open("wb", buffering=0) as file:
            began = time.process_time()
            for visit in visits:
                file.write(memoryview(visit).cast("B"))
            plain.append((time.process_time() - began) / SECONDS)

    def write_record() -> None:
        nonlocal count
        count += 1
        path = tmp_path / f"telemetry-{count}.arrows"
        writer = TelemetryWriter(path, rows.dtype, {}, rate_hz, channels=channels)
        totals = [Totals() for _ in range(channels)]
        began = time.process_time()
        for visit in visits:
            for start in range(0, len(visit), DRAIN_ROWS):
                taken = visit[start : start + DRAIN_ROWS].copy()
                for channel, total in enumerate(totals):
                    total.add(taken if channels == 1 else taken[taken["channel"] == channel])
                writer.append(taken)
        costs.append((time.process_time() - began) / SECONDS)
        writer.close()
        path.unlink()

    benchmark.pedantic(write_record, setup=write_plain, rounds=12, warmup_rounds=1)
    own, floor = min(costs), min(plain)
    bar = BARS[rate_hz, channels]
    what = "one channel" if channels == 1 else f"{channels} channels"
    table.add(
        f"record, {rate_hz // 1000} kHz, {what}: share of a core", f"{own:.2%}", beside="the same bytes to a file",
        beside_own=f"{floor:.2%}", ratio=own / floor, bar=f"at most {bar:.0%}", kept=own <= bar,
        bytes_per_s=rows.itemsize * rate_hz * channels, own_us_per_s=percentiles(np.array(costs) * 1e6),
        beside_us_per_s=percentiles(np.array(plain) * 1e6),
    )  # fmt: skip
