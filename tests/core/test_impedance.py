"""The impedance estimator: exact where the model is exact, honest where it is not, a verdict on contact to the tick."""

import ctypes
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ionto_rt.core.impedance import ImpedanceEstimator, tone_table
from support import as_dict, fill, function, struct

T = 1e-3
PERIOD, BLOCK = 8, 200
OMEGA = 2.0 * math.pi / (PERIOD * T)
TONE_A = 19e-6
LEVEL_A = 1e-3
EXACT: dict[str, Any] = {
    "tick_s": T,
    "tone_a": TONE_A,
    "tone_period_ticks": PERIOD,
    "block_ticks": BLOCK,
    "electrode_emf_v": 0.0,
    "nonlinearity": 0.0,
    "open_floor_a": 1e-5,
}
Signal = np.ndarray[Any, np.dtype[np.float64]]

loads = st.tuples(st.floats(100.0, 5e3), st.floats(200.0, 1e5), st.floats(1e-9, 1e-6))


def readings(load: tuple[float, float, float], ticks: int = BLOCK, level_a: float = LEVEL_A) -> tuple[Signal, Signal]:
    """Current and voltage of level and tone through Rs + (Rp || C), long after the start."""
    rs, rp, c = load
    phase = OMEGA * T * np.arange(ticks)
    z = rs + rp / (1.0 + 1j * OMEGA * rp * c)
    current = level_a + TONE_A * np.sin(phase)
    return current, level_a * (rs + rp) + TONE_A * abs(z) * np.sin(phase + np.angle(z))


def corner_ratio(load: tuple[float, float, float]) -> float:
    """Tone over corner frequency."""
    return OMEGA * load[1] * load[2]


@given(loads, st.sampled_from([1.0, -1.0]))
def test_a_known_load_is_found_exactly(load: tuple[float, float, float], sign: float) -> None:
    assume(0.1 < corner_ratio(load) < 10.0)
    current, voltage = readings(load)
    found = ImpedanceEstimator(**EXACT).run(sign * current, sign * voltage)
    assert found["block"] == 1
    assert found["resistance_ohm"] == pytest.approx(load[0] + load[1], rel=1e-12)
    assert (found["series_ohm"], found["parallel_ohm"], found["capacitance_f"]) == pytest.approx(load, rel=1e-6)


@given(loads)
def test_without_a_tone_only_the_total_resistance_is_known(load: tuple[float, float, float]) -> None:
    current, voltage = readings(load)
    for tone, on in ((TONE_A, False), (0.0, True)):
        found = ImpedanceEstimator(**{**EXACT, "tone_a": tone}).run(current, voltage, tone_on=on)
        assert found["resistance_ohm"] == pytest.approx(load[0] + load[1], rel=1e-12)
        names = ("series_ohm", "parallel_ohm", "capacitance_f")
        assert [found[name] for name in names] == [0.0, 0.0, 0.0]


@given(loads, st.integers(0, PERIOD - 1))
def test_a_tone_of_another_phase_is_the_same_load(load: tuple[float, float, float], shift: int) -> None:
    """The current that flows carries the phase: the loop's delay takes no part in it."""
    assume(0.1 < corner_ratio(load) < 10.0)
    current, voltage = readings(load, BLOCK + shift)
    found = ImpedanceEstimator(**EXACT).run(current[shift:], voltage[shift:])
    assert (found["series_ohm"], found["parallel_ohm"], found["capacitance_f"]) == pytest.approx(load, rel=1e-6)


@given(loads, st.integers(-8, 8), st.integers(-8, 8))
def test_scaling_the_voltage_scales_the_impedance(load: tuple[float, float, float], up: int, down: int) -> None:
    """By powers of two, so to the bit; a scaled current of course scales the tone that is looked for, too."""
    current, voltage = readings(load)
    one = ImpedanceEstimator(**EXACT).run(current, voltage)
    k, m = 2.0**up, 2.0**down
    two = ImpedanceEstimator(**{**EXACT, "tone_a": m * TONE_A, "open_floor_a": m * 1e-5}).run(m * current, k * voltage)
    for name in ("resistance_ohm", "series_ohm", "parallel_ohm", "series_sigma_ohm", "parallel_sigma_ohm"):
        assert two[name] == one[name] * k / m
    assert two["capacitance_f"] == one["capacitance_f"] * m / k


@given(loads)
def test_reversing_the_polarity_changes_nothing(load: tuple[float, float, float]) -> None:
    current, voltage = readings(load, 3 * BLOCK)
    setpoint = np.full(3 * BLOCK, LEVEL_A)
    anode = ImpedanceEstimator(**EXACT).run(current, voltage, setpoint)
    cathode = ImpedanceEstimator(**EXACT).run(-current, -voltage, -setpoint)
    assert anode == cathode


@given(loads, st.floats(-0.05, 0.05))
def test_drift_does_not_leak_into_the_tone(load: tuple[float, float, float], drift_v_per_s: float) -> None:
    """A voltage that drifts by up to ten times what skin does; its mean over the block is left at zero."""
    assume(0.1 < corner_ratio(load) < 10.0)
    current, voltage = readings(load)
    drift = drift_v_per_s * T * (np.arange(BLOCK) - 0.5 * (BLOCK - 1))
    found = ImpedanceEstimator(**EXACT).run(current, voltage + drift)
    assert (found["series_ohm"], found["parallel_ohm"], found["capacitance_f"]) == pytest.approx(load, rel=1e-5)


@pytest.mark.parametrize("phase", np.linspace(0.0, 2.0 * math.pi, 8, endpoint=False))
def test_mains_hum_stays_within_the_uncertainty(phase: float) -> None:
    load = (500.0, 20e3, 50e-9)
    current, voltage = readings(load)
    hum = 0.05 * np.sin(2.0 * math.pi * 50.0 * T * np.arange(BLOCK) + phase)
    found = ImpedanceEstimator(**EXACT).run(current, voltage + hum)
    for name, sigma, truth in zip(
        ("series_ohm", "parallel_ohm", "capacitance_f"),
        ("series_sigma_ohm", "parallel_sigma_ohm", "capacitance_sigma_f"),
        load,
        strict=True,
    ):
        assert abs(found[name] - truth) <= found[sigma]


@pytest.mark.parametrize("load", [(500.0, 20e3, 50e-9), (1e3, 10e3, 100e-9), (300.0, 50e3, 30e-9)])
@pytest.mark.parametrize("emf_v", [0.0, 0.2])
def test_the_uncertainty_covers_the_truth(load: tuple[float, float, float], emf_v: float) -> None:
    """Noise on both readings and an electrode potential of the stated spread: two deviations hold 95 % of the time."""
    current, voltage = readings(load)
    noise_v, noise_a, draws = 2e-3, 1e-7, 400
    rng = np.random.default_rng(20)
    inside = np.zeros(4)
    for _ in range(draws):
        estimator = ImpedanceEstimator(
            **{**EXACT, "electrode_emf_v": emf_v, "voltage_noise_v": noise_v, "current_noise_a": noise_a}
        )
        found = estimator.run(
            current + rng.normal(0.0, noise_a, BLOCK),
            voltage + rng.normal(0.0, noise_v, BLOCK) + rng.normal(0.0, emf_v),
        )
        for at, (name, sigma, truth) in enumerate(
            (
                ("resistance_ohm", "resistance_sigma_ohm", load[0] + load[1]),
                ("series_ohm", "series_sigma_ohm", load[0]),
                ("parallel_ohm", "parallel_sigma_ohm", load[1]),
                ("capacitance_f", "capacitance_sigma_f", load[2]),
            )
        ):
            # No split at all is an honest answer too.
            inside[at] += abs(found[name] - truth) <= 2.0 * found[sigma] or found[name] == 0.0
    # 95.4 % expected; 400 draws lie below 91 % once in ten thousand times.
    assert (inside / draws > 0.91).all()


def test_the_uncertainty_is_not_a_blanket() -> None:
    """At its best load the linear part of it is the size of the errors that do occur."""
    load = (500.0, 20e3, 50e-9)
    current, voltage = readings(load)
    rng = np.random.default_rng(7)
    scores = []
    for _ in range(400):
        estimator = ImpedanceEstimator(**{**EXACT, "voltage_noise_v": 2e-3})
        found = estimator.run(current, voltage + rng.normal(0.0, 2e-3, BLOCK))
        scores.append((found["parallel_ohm"] - load[1]) / found["parallel_sigma_ohm"])
    assert 0.8 < np.std(scores) < 1.2
    assert abs(np.mean(scores)) < 0.3


def test_the_electrode_potential_is_uncertainty_of_the_chord() -> None:
    current, voltage = readings((500.0, 20e3, 50e-9))
    found = ImpedanceEstimator(**{**EXACT, "electrode_emf_v": 0.5}).run(current, voltage)
    assert found["resistance_sigma_ohm"] == pytest.approx(0.5 / LEVEL_A, rel=1e-6)


OPEN: dict[str, Any] = {"open_ratio": 0.125, "open_floor_a": 1e-4, "open_voltage_v": 54.0}
UNKNOWN, GOOD, LOST = 0, 1, 2
BELOW = math.nextafter(0.125 * LEVEL_A, 0.0)


def judged(estimator: ImpedanceEstimator, ticks: int, current: float, voltage: float, setpoint: float = LEVEL_A) -> int:
    for _ in range(ticks):
        found = estimator.step(current, voltage, setpoint)
    return int(found["contact"])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ticks", [1, 3, 5])
def test_contact_is_lost_at_its_tick_and_not_at_its_limits(sign: float, ticks: int) -> None:
    estimator = ImpedanceEstimator(**{**EXACT, **OPEN, "open_ticks": ticks})
    setpoint = sign * LEVEL_A
    assert judged(estimator, 50, sign * 0.125 * LEVEL_A, sign * 60.0, setpoint) == UNKNOWN, (
        "at the share of the setpoint"
    )
    assert judged(estimator, 50, sign * BELOW, sign * math.nextafter(54.0, 0.0), setpoint) == UNKNOWN, (
        "below the voltage"
    )
    if ticks > 1:
        assert judged(estimator, ticks - 1, sign * BELOW, sign * 54.0, setpoint) == UNKNOWN
    assert judged(estimator, 1, sign * 0.2 * LEVEL_A, sign * 54.0, setpoint) == UNKNOWN
    if ticks > 1:
        assert judged(estimator, ticks - 1, sign * BELOW, sign * 54.0, setpoint) == UNKNOWN
    assert judged(estimator, 1, sign * BELOW, sign * 54.0, setpoint) == LOST


@pytest.mark.parametrize("ticks", [1, 3, 5])
def test_contact_is_good_after_its_ticks_at_half_the_setpoint(ticks: int) -> None:
    estimator = ImpedanceEstimator(**{**EXACT, **OPEN, "good_ticks": ticks})
    half = 0.5 * LEVEL_A
    assert judged(estimator, 50, math.nextafter(half, 0.0), 5.0) == UNKNOWN
    if ticks > 1:
        assert judged(estimator, ticks - 1, half, 5.0) == UNKNOWN
    assert judged(estimator, 1, half, 5.0) == GOOD


def test_below_the_floor_there_is_no_verdict() -> None:
    estimator = ImpedanceEstimator(**{**EXACT, **OPEN})
    judged(estimator, 5, LEVEL_A, 5.0)
    assert judged(estimator, 1, 0.0, 60.0, math.nextafter(1e-4, 0.0)) == UNKNOWN
    assert judged(estimator, 50, 0.0, 60.0, math.nextafter(1e-4, 0.0)) == UNKNOWN
    assert judged(estimator, 3, 0.0, 60.0, 1e-4) == LOST


def test_a_lost_contact_stays_lost_until_current_flows_again() -> None:
    estimator = ImpedanceEstimator(**{**EXACT, **OPEN})
    assert judged(estimator, 3, 0.0, 60.0) == LOST
    assert judged(estimator, 50, 0.0, 5.0) == LOST
    assert judged(estimator, 50, 0.0, 0.0, 0.0) == LOST
    assert judged(estimator, 3, LEVEL_A, 5.0) == GOOD


def test_on_a_voltage_source_any_voltage_will_do_once_contact_was_good() -> None:
    estimator = ImpedanceEstimator(**{**EXACT, **OPEN, "open_any_voltage": True})
    assert judged(estimator, 50, 0.0, 1.0) == UNKNOWN
    assert judged(estimator, 3, LEVEL_A, 5.0) == GOOD
    assert judged(estimator, 3, 0.0, 1.0) == LOST


def test_current_against_the_setpoint_is_no_contact() -> None:
    estimator = ImpedanceEstimator(**{**EXACT, **OPEN})
    assert judged(estimator, 10, -LEVEL_A, 60.0) == LOST


@given(
    loads,
    st.integers(0, 2 * BLOCK),
    st.sampled_from([(math.nan, 1.0), (1e-3, math.nan), (math.inf, 1.0), (1e-3, -math.inf)]),
)
def test_a_non_finite_reading_changes_no_state(
    load: tuple[float, float, float], after: int, bad: tuple[float, float]
) -> None:
    current, voltage = readings(load, 3 * BLOCK)
    estimator = ImpedanceEstimator(**EXACT)
    estimator.run(current[:after], voltage[:after])
    before = estimator.state_values
    estimator.step(*bad, LEVEL_A)
    assert estimator.state_values == before


@given(loads, st.integers(1, 5 * BLOCK), st.integers(0, 99))
def test_step_and_run_give_the_same_state(load: tuple[float, float, float], ticks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    current, voltage = (signal * rng.uniform(0.0, 1.5, ticks) for signal in readings(load, ticks))
    setpoint = np.full(ticks, LEVEL_A)
    stepped, run = ImpedanceEstimator(**EXACT, open_voltage_v=1.0), ImpedanceEstimator(**EXACT, open_voltage_v=1.0)
    for at in range(ticks):
        stepped.step(current[at], voltage[at], setpoint[at])
    assert stepped.estimate == run.run(current, voltage, setpoint)
    assert stepped.state_values == run.state_values


@given(loads, st.integers(0, BLOCK - 1), st.integers(0, 100))
def test_after_lost_samples_the_block_begins_anew_and_the_tone_keeps_its_time(
    load: tuple[float, float, float], before: int, lost: int
) -> None:
    assume(0.1 < corner_ratio(load) < 10.0)
    step = function("impedance", "impedance_step", None, *[ctypes.c_void_p] * 2, *[ctypes.c_double] * 3, ctypes.c_int32)
    broken = function("impedance", "impedance_break", None, *[ctypes.c_void_p] * 2, ctypes.c_uint32)
    config = fill(struct("ImpedanceConfig")(), {**EXACT, "open_ticks": 3, "good_ticks": 3, "open_voltage_v": 1e3})
    state = struct("ImpedanceState")()
    both = ctypes.byref(state), ctypes.byref(config)
    current, voltage = readings(load, before + lost + BLOCK + PERIOD)
    for at in range(before):
        step(*both, current[at], voltage[at], LEVEL_A, 1)
    broken(*both, lost)
    assert state.phase_ticks == (before + lost) % PERIOD
    for at in range(before + lost, len(current)):
        step(*both, current[at], voltage[at], LEVEL_A, 1)
    found = as_dict(state.estimate)
    assert found["block"] == 1
    assert (found["series_ohm"], found["parallel_ohm"], found["capacitance_f"]) == pytest.approx(load, rel=1e-6)


@pytest.mark.parametrize("period", [4, 8, 64, 1024])
def test_the_tone_is_a_sine_of_its_period(period: int) -> None:
    estimator = ImpedanceEstimator(**{**EXACT, "tone_period_ticks": period, "block_ticks": 2 * period})
    tone = []
    for _ in range(2 * period):
        tone.append(estimator.tone())
        estimator.step(LEVEL_A, 5.0)
    assert tone == pytest.approx(list(TONE_A * np.sin(2.0 * np.pi * np.arange(2 * period) / period)), abs=1e-18)
    assert sum(tone[:period]) == pytest.approx(0.0, abs=1e-18)


def test_the_table_is_cosine_and_sine_to_the_last_digits() -> None:
    cosine, sine = tone_table()
    angle = 2.0 * np.pi * np.arange(1024) / 1024
    assert np.abs(cosine - np.cos(angle)).max() < 1e-15
    assert np.abs(sine - np.sin(angle)).max() < 1e-15


@pytest.mark.parametrize(
    "wrong",
    [
        {"tick_s": 0.0},
        {"tone_a": -1.0},
        {"electrode_emf_v": math.nan},
        {"tone_period_ticks": 6},
        {"tone_period_ticks": 2048},
        {"block_ticks": 201},
        {"block_ticks": 8},
        {"open_ticks": 0},
        {"open_floor_a": 0.0},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImpedanceEstimator(**{**EXACT, **wrong})


def test_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        ImpedanceEstimator(**EXACT).run(np.zeros(3), np.zeros(2))
