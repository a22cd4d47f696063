"""The tick and its stages beside a C transcription of their arithmetic, and the Python calls beside simple-pid's."""

from typing import Any

import numpy as np
import pytest
from bench_support import percentiles, side_by_side
from simple_pid import PID

from ionto_rt.core.regulator import Regulator

ROUNDS = 800
TICK_BAR = 3.0
STAGE_BAR = 1.2
CALL_BAR = 8.0
ARRAY_BAR = 100.0


def test_the_transcription_has_the_bits_of_the_core(recording: Any) -> None:
    """Every term of every tick, and the state after it: the recording compares them."""
    assert {0, 1} == set(recording.replayed["probe_verdict"])
    assert recording.replayed["series_ohm"].any()


@pytest.mark.parametrize("what", ["whole tick, decode to encode", "tick, no skin, no wire"])
def test_tick(what: str, benchmark: Any, recording: Any, table: Any) -> None:
    step = recording.whole_tick if what.startswith("whole") else recording.tick
    assert step() == recording.replayed[-1]["output_code"]
    own, floor = side_by_side(benchmark, step, recording.transcribed_tick, rounds=ROUNDS, per=len(recording))
    ratio = float(own.min() / floor.min())
    table.add(
        what, f"{own.min():.0f} ns", beside="C: readings, ledger, estimator, regulator",
        beside_own=f"{floor.min():.0f} ns", ratio=ratio, bar=f"at most {TICK_BAR:g}", kept=ratio <= TICK_BAR,
        **benchmark.extra_info,
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["regulator", "estimator", "ledger"])
def test_stage(stage: str, benchmark: Any, recording: Any, table: Any) -> None:
    step = getattr(recording, stage)
    assert step() == step(True), "the transcription gives another result"
    rows = recording.replayed
    if stage == "ledger":
        assert step() == rows[-1]["net_codes"]
    elif stage == "regulator":
        assert step() == rows[rows["close_relay"] != 0][-1]["output"]
    own, floor = side_by_side(benchmark, step, lambda: step(True), rounds=ROUNDS, per=len(recording))
    ratio = float(own.min() / floor.min())
    table.add(
        f"  {stage}", f"{own.min():.1f} ns", beside="its transcription in C", beside_own=f"{floor.min():.1f} ns",
        ratio=ratio, bar=f"at most {STAGE_BAR:g}", kept=ratio <= STAGE_BAR, **benchmark.extra_info,
    )  # fmt: skip


def test_worst_ticks(benchmark: Any, recording: Any, table: Any) -> None:
    """The best of many rounds for each whole tick: what is left is the arithmetic."""
    best = np.full(len(recording), np.inf)

    def measure() -> None:
        np.minimum(best, recording.tick_times(1), out=best)

    benchmark.pedantic(measure, rounds=100)
    rows = recording.replayed
    closing = np.append(False, np.diff(rows["estimate_block"].astype(np.int64)) != 0)
    checking = (rows["probe_verdict"] == 0) & (rows["close_relay"] != 0)
    checking[1:] |= checking[:-1]
    median_us = float(np.median(best)) / 1e3
    for what, ticks in (("closes a block", closing), ("identifies the contact", checking)):
        table.add(
            f"  worst tick that {what}", f"{best[ticks].max() / 1e3:.1f} µs", beside="the median tick",
            beside_own=f"{median_us:.2f} µs", ratio=float(best[ticks].max() / 1e3 / median_us), ticks=int(ticks.sum()),
            ticks_us=percentiles(best[ticks] / 1e3),
        )  # fmt: skip


@pytest.mark.parametrize("stage", ["programme", "guard", "contact_area"])
def test_stage_as_a_share_of_the_tick(stage: str, benchmark: Any, recording: Any, table: Any) -> None:
    step = getattr(recording, stage)
    row = recording.replayed[-1]
    result = step()
    if stage == "programme":
        assert result == row["level_a"]
    elif stage == "guard":
        assert result == (row["output_code"], 0)
    elif stage == "contact_area":
        assert result == row["area_ratio"]
    own, whole = side_by_side(benchmark, step, recording.tick, rounds=ROUNDS, per=len(recording))
    names = {"contact_area": "contact area, which runs once a block"}
    table.add(
        f"  {names.get(stage, stage)}", f"{own.min():.1f} ns", beside="the tick", beside_own=f"{whole.min():.0f} ns",
        ratio=float(own.min() / whole.min()), **benchmark.extra_info,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 32])
def test_wire(channels: int, benchmark: Any, harness: Any, recording: Any, table: Any) -> None:
    wire = harness.Wire(recording, channels)
    own, whole = side_by_side(
        benchmark, wire.exchange, recording.tick, rounds=200, per=len(wire), peer_per=len(recording)
    )  # fmt: skip
    ticks = f"{channels} ticks" if channels > 1 else "the tick"
    table.add(
        f"  wire, {channels} channel{'s' * (channels > 1)}: decode a sample, encode a command", f"{own.min():.1f} ns",
        beside=ticks, beside_own=f"{channels * whole.min():.0f} ns", ratio=float(own.min() / whole.min() / channels),
        **benchmark.extra_info,
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
    ratio = float(own.min() / others.min())
    table.add(
        "Regulator.step from Python", f"{own.min():.0f} ns", beside="simple-pid's call",
        beside_own=f"{others.min():.0f} ns", ratio=ratio, bar=f"at most 1/{CALL_BAR:g}", kept=ratio <= 1.0 / CALL_BAR,
        **benchmark.extra_info,
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
    ratio = float(own.min() / others.min())
    table.add(
        "Regulator.run on an array", f"{own.min():.1f} ns", beside="simple-pid in a loop",
        beside_own=f"{others.min():.0f} ns", ratio=ratio, bar=f"at most 1/{ARRAY_BAR:g}", kept=ratio <= 1.0 / ARRAY_BAR,
        **benchmark.extra_info,
    )  # fmt: skip
