"""The tick and its stages beside a C transcription of their arithmetic, and the Python calls beside simple-pid's."""

from typing import Any

import numpy as np
import pytest
from bench_support import Transcription, side_by_side
from simple_pid import PID

from ionto_rt.core.regulator import Regulator

ROUNDS = 800
TICK_BAR = 5.0
ESTIMATE = (
    "resistance_ohm", "resistance_sigma_ohm", "series_ohm", "parallel_ohm", "capacitance_f", "series_sigma_ohm",
    "parallel_sigma_ohm", "capacitance_sigma_f",
)  # fmt: skip


def test_tick_without_skin(benchmark: Any, recording: Any, transcription: Transcription, table: Any) -> None:
    own, floor = side_by_side(benchmark, recording.tick, transcription.tick, rounds=ROUNDS, per=len(recording))
    ratio = float(own.min() / floor.min())
    table.add(
        "tick, no skin, no wire", f"{own.min():.0f} ns", beside="C: readings, ledger, estimator, regulator",
        beside_own=f"{floor.min():.0f} ns", ratio=ratio, bar="at most 5", kept=ratio <= TICK_BAR,
        **benchmark.extra_info,
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["regulator", "estimator", "ledger"])
def test_stage(stage: str, benchmark: Any, recording: Any, transcription: Transcription, table: Any) -> None:
    step = getattr(recording, stage)
    row = recording.replayed[-1]
    result = step()
    if stage == "estimator":
        assert all(result[name] == row[name] for name in ESTIMATE), "another estimate than in the tick"
    else:
        assert result == row[{"regulator": "output", "ledger": "net_codes"}[stage]], "another result than in the tick"
    own, floor = side_by_side(
        benchmark, step, lambda: transcription.stage(stage), rounds=ROUNDS, per=len(recording)
    )  # fmt: skip
    ratio = float(own.min() / floor.min())
    table.add(
        f"  {stage}", f"{own.min():.1f} ns", beside="its transcription in C", beside_own=f"{floor.min():.1f} ns",
        ratio=ratio, **benchmark.extra_info,
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["programme", "guard", "wire"])
def test_stage_as_a_share_of_the_tick(stage: str, benchmark: Any, recording: Any, table: Any) -> None:
    step = getattr(recording, stage)
    row = recording.replayed[-1]
    result = step()
    if stage == "programme":
        assert result == row["level_a"]
    elif stage == "guard":
        assert result == (row["output_code"], 0)
    own, whole = side_by_side(benchmark, step, recording.tick, rounds=ROUNDS, per=len(recording))
    names = {"wire": "wire: decode a sample, encode a command"}
    table.add(
        f"  {names.get(stage, stage)}", f"{own.min():.1f} ns", beside="the tick", beside_own=f"{whole.min():.0f} ns",
        ratio=float(own.min() / whole.min()), **benchmark.extra_info,
    )  # fmt: skip


CALLS = 20_000


def test_regulator_called_from_python(benchmark: Any, table: Any) -> None:
    regulator = Regulator(tick_s=1e-3, kp=0.1, ki=150.0, output_min=-5e-3, output_max=5e-3)
    pid = PID(0.1, 150.0, 0.0, setpoint=4e-3, sample_time=None, output_limits=(-5e-3, 5e-3))

    def ours() -> None:
        for _ in range(CALLS):
            regulator.step(4e-3, 3.9e-3)

    def theirs() -> None:
        for _ in range(CALLS):
            pid(3.9e-3, dt=1e-3)

    own, others = side_by_side(benchmark, ours, theirs, rounds=15, per=CALLS)
    table.add(
        "Regulator.step from Python", f"{own.min():.0f} ns", beside="simple-pid's call",
        beside_own=f"{others.min():.0f} ns", ratio=float(own.min() / others.min()), **benchmark.extra_info,
    )  # fmt: skip


def test_regulator_on_arrays(benchmark: Any, table: Any) -> None:
    regulator = Regulator(tick_s=1e-3, kp=0.1, ki=150.0, output_min=-5e-3, output_max=5e-3)
    pid = PID(0.1, 150.0, 0.0, setpoint=4e-3, sample_time=None, output_limits=(-5e-3, 5e-3))
    setpoints, measured = np.full(CALLS, 4e-3), np.linspace(3.9e-3, 4.1e-3, CALLS)
    values = measured.tolist()

    def theirs() -> None:
        for value in values:
            pid(value, dt=1e-3)

    own, others = side_by_side(
        benchmark, lambda: regulator.run(setpoints, measured), theirs, rounds=15, per=CALLS
    )  # fmt: skip
    table.add(
        "Regulator.run on an array", f"{own.min():.1f} ns", beside="simple-pid in a loop",
        beside_own=f"{others.min():.0f} ns", ratio=float(own.min() / others.min()), **benchmark.extra_info,
    )  # fmt: skip
