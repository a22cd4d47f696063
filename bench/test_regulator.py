"""The predictor on another plant beside its transcription, and the worst tick of the contact probe."""

import sys
from time import perf_counter_ns
from typing import Any

import numpy as np
from bench_support import HERE, side_by_side

from ionto_rt.core.constant_current import ConstantCurrentRegulator

sys.path.insert(0, str(HERE.parent / "tests"))  # what is below comes from there
from regulator_support import PLAIN_LAW, voltage_source_model

TICKS = 20_000
RATIO_BAR = 1.2
PROBE_TICKS = 1500
LSB_V = 2.0**-9
UNUSED = (
    "slew_per_tick", "spike_a", "trim_ratio", "trim_floor", "compliance_v", "jump_ratio", "series_least_ohm",
    "schedule_ratio", "schedule_ticks", "voltage_source", "quick_pole_most", "surprise_ratio", "quick_ticks",
    "quick_rest_ticks",
)  # fmt: skip


def test_predictive_step(benchmark: Any, harness: Any, table: Any) -> None:
    model = voltage_source_model(2.5e3, 8e3, 60e-9, 1e-3, 2)
    config = dict.fromkeys(UNUSED, 0) | PLAIN_LAW
    config |= {"output_min": -80.0, "output_max": 80.0, "output_lsb": LSB_V}
    rng = np.random.default_rng(1)
    setpoints = np.repeat(rng.uniform(0.0, 4e-3, TICKS // 100), 100)
    measured = setpoints + rng.normal(0.0, 1e-5, TICKS)

    def run(transcribed: bool) -> np.ndarray:
        return harness.regulate(config, model, setpoints, measured, transcribed)

    assert run(False).tobytes() == run(True).tobytes(), "the transcription has other bits"
    own, floor = side_by_side(benchmark, lambda: run(False), lambda: run(True), rounds=200, per=TICKS)
    ratio = float(own.min() / floor.min())
    table.add(
        "regulator on a plant with a pole", f"{own.min():.1f} ns", beside="its transcription in C",
        beside_own=f"{floor.min():.1f} ns", ratio=ratio, bar=f"at most {RATIO_BAR:g}", kept=ratio <= RATIO_BAR,
        **benchmark.extra_info,
    )  # fmt: skip


def test_worst_tick_of_the_probe(benchmark: Any, table: Any) -> None:
    """The best of seven probes for each tick: what is left is the arithmetic."""
    best = np.full(PROBE_TICKS, np.inf)

    def probe() -> None:
        regulator = ConstantCurrentRegulator(
            front_end="voltage", tick_s=1e-3, full_scale_a=4e-3, compliance_v=80.0, ballast_ohm=2e3
        )
        rng, history, lsb = np.random.default_rng(1), [0.0, 0.0], 4e-3 / 32768.0
        for k in range(PROBE_TICKS):
            current = history[1] / 7e3
            measured = lsb * round(current / lsb + rng.normal())
            began = perf_counter_ns()
            output = regulator.step(1e-3, measured, current * 5e3)
            best[k] = min(best[k], perf_counter_ns() - began)
            history = [output, history[0]]
        assert regulator.verdict == "good"

    benchmark.pedantic(probe, rounds=7)
    table.add("contact probe, worst tick, called from Python", f"{best.max() / 1e3:.1f} µs")
