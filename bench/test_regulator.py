"""The predictor's step beside a C transcription with the same bits, and the worst tick of the contact probe."""

import ctypes
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from bench_support import HERE, compile_c, side_by_side

from ionto_rt.core.constant_current import ConstantCurrentRegulator

sys.path.insert(0, str(HERE.parent / "tests"))  # what is below comes from there
from regulator_support import PLAIN_LAW, Predictive, voltage_source_model
from support import address

TICKS = 20_000
RATIO_BAR = 2.0
PROBE_TICKS = 1500
LSB_V = 2.0**-9


class Law(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in (
            "pole", "gain", "gain_before", "tracking", "setpoint", "integral_pole_most", "low", "high", "lsb")),
        ("delay", ctypes.c_int32),
    ]  # fmt: skip


def test_predictive_step(benchmark: Any, built: Path, table: Any) -> None:
    from ionto_rt.core import predictive

    library = ctypes.CDLL(str(compile_c(HERE / "predictive.c", built / "predictive.so", "-shared", "-fPIC")))
    library.run_law.restype = library.run_core.restype = ctypes.c_double
    model = voltage_source_model(2.5e3, 8e3, 60e-9, 1e-3, 2)
    config = {**PLAIN_LAW, "output_min": -80.0, "output_max": 80.0, "output_lsb": LSB_V}
    law = Law(
        model["pole"], model["gain"], model["gain_before"], config["tracking_pole"], config["setpoint_pole"],
        config["integral_pole_most"], -80.0, 80.0, LSB_V, model["delay_ticks"],
    )  # fmt: skip
    rng = np.random.default_rng(1)
    setpoints = np.repeat(rng.uniform(0.0, 4e-3, TICKS // 100), 100)
    measured = setpoints + rng.normal(0.0, 1e-5, TICKS)
    ours, theirs = np.empty(TICKS), np.empty(TICKS)
    given = [ctypes.c_void_p(array.ctypes.data) for array in (setpoints, measured)]
    step = ctypes.c_void_p(address(predictive.__pyx_capi__["predictive_step"]))
    core = Predictive(config, model)
    places = [ctypes.c_void_p(ctypes.addressof(part)) for part in (core.state, core.config, core.last)]

    def run_core() -> None:
        library.run_core(step, *places, *given, ctypes.c_size_t(TICKS), ctypes.c_void_p(ours.ctypes.data))

    def run_law() -> None:
        library.run_law(ctypes.byref(law), *given, ctypes.c_size_t(TICKS), ctypes.c_void_p(theirs.ctypes.data))

    run_core()
    run_law()
    assert ours.tobytes() == theirs.tobytes(), "the transcription has other bits"
    own, floor = side_by_side(benchmark, run_core, run_law, rounds=200, per=TICKS)
    ratio = float(own.min() / floor.min())
    table.add(
        "predictor, delay 2", f"{own.min():.1f} ns", beside="its equations in C", beside_own=f"{floor.min():.1f} ns",
        ratio=ratio, bar="at most 2", kept=ratio <= RATIO_BAR, **benchmark.extra_info,
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
