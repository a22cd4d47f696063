"""The pseudo-random excitation: balanced and flat; exact where the model is exact, honest where it is not."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_impedance import BAR, LEVEL_A, NAMES, SIGMAS, Load, T, found, held, loads

from ionto_rt import PrbsEstimator

PERIOD = 127
PAIR = 2 * PERIOD
AMPLITUDE_A = 19e-6
FIT_TICKS = 317
LSB_V, LSB_A = 2.44e-3, 0.12e-6
Signal = np.ndarray[Any, np.dtype[np.float64]]


def estimator(**changes: Any) -> PrbsEstimator:
    return PrbsEstimator(**{"tick_s": T, "amplitude_a": AMPLITUDE_A, "pairs": 3, "electrode_emf_v": 0.0, **changes})


def sequence(own: PrbsEstimator, ticks: int) -> Signal:
    made = np.empty(PAIR)
    for k in range(PAIR):
        made[k] = own.excitation()
        own.step(0.0, 0.0)
    return np.resize(made, ticks)


def ticks_of(own: PrbsEstimator) -> int:
    """Until the first estimate is there."""
    return PAIR + own.window_ticks + FIT_TICKS


def responses(load: Load, ticks: int, level_a: float = LEVEL_A) -> tuple[Signal, Signal]:
    """Held current and voltage in steady state, of the sequence on a level."""
    rs, rp, c = load
    current = sequence(estimator(), PAIR)
    decay = math.exp(-T / (rp * c))
    kernel = rp * (1.0 - decay) * decay ** np.arange(PAIR) / (1.0 - decay**PAIR)
    skin = np.real(np.fft.ifft(np.fft.fft(current) * np.fft.fft(kernel)))
    voltage = rs * current + skin + level_a * (rs + rp)
    return np.resize(level_a + current, ticks), np.resize(voltage, ticks)


def test_the_sequence_repeats_with_the_opposite_sign_and_carries_no_charge() -> None:
    made = sequence(estimator(), PAIR) / AMPLITUDE_A
    assert set(made) == {-1.0, 1.0}
    assert (made[PERIOD:] == -made[:PERIOD]).all()
    assert np.abs(np.cumsum(made)).max() < 20, "0.08 nC at 19 uA and 5 kHz: never far from balance, either"


def test_all_odd_harmonics_have_the_same_power() -> None:
    """127 + 1 of a maximum-length sequence, doubled by the second period; at half the rate there is next to none."""
    power = np.abs(np.fft.rfft(sequence(estimator(), PAIR) / AMPLITUDE_A)) ** 2
    assert power[1:PERIOD:2] == pytest.approx(4.0 * 128.0, rel=1e-9)
    assert power[0::2] == pytest.approx(0.0, abs=1e-9)
    assert power[PERIOD] == pytest.approx(4.0, rel=1e-9)


@settings(max_examples=25)
@given(loads(), st.sampled_from([1.0, -1.0]), st.integers(0, PAIR))
def test_a_known_load_is_found_exactly_whatever_the_delay_of_the_loop(load: Load, sign: float, delay: int) -> None:
    own = estimator()
    current, voltage = responses(load, ticks_of(own) + PAIR)
    estimate = own.run(*(sign * np.roll(values, delay)[: ticks_of(own)] for values in (current, voltage)))
    assert estimate["block"] == 1
    assert found(estimate) == pytest.approx(load, rel=1e-6)
    assert estimate["misfit"] == pytest.approx(0.0, abs=1.0)
    assert estimate["resistance_ohm"] == pytest.approx(load[0] + load[1], rel=1e-2)


@pytest.mark.parametrize(
    ("load", "ballast_ohm"), [(BAR[0], 0.0), (BAR[1], 0.0), (BAR[2], 0.0), (BAR[0], 2e3), (BAR[1], 15e3)]
)
@pytest.mark.parametrize("output_time_s", [0.0, 80e-6])
def test_ballast_and_output_stage_are_those_of_the_two_tones(
    load: Load, ballast_ohm: float, output_time_s: float
) -> None:
    own = estimator(ballast_ohm=ballast_ohm, output_time_s=output_time_s)
    drive = LEVEL_A + sequence(estimator(), 6 * PAIR)
    drive *= sum(load[:2]) + ballast_ohm if ballast_ohm else 1.0
    # The simulation's start, not yet periodic, is over after its first pairs; its last is repeated.
    current, voltage = held(load, drive, steps=40 if output_time_s else 1, output_time_s=output_time_s,
                            ballast_ohm=ballast_ohm)  # fmt: skip
    current, voltage = (np.resize(values[-PAIR:], ticks_of(own)) for values in (current, voltage))
    assert found(own.run(current, voltage)) == pytest.approx(load, rel=2e-3 if output_time_s else 1e-5)


@settings(max_examples=20)
@given(loads(), st.floats(-0.05, 0.05), st.floats(-1.5, 1.5))
def test_potential_and_drift_drop_out(load: Load, drift_v_per_s: float, emf_v: float) -> None:
    own = estimator()
    current, voltage = responses(load, ticks_of(own))
    estimate = own.run(current, voltage + emf_v + drift_v_per_s * T * np.arange(len(voltage)))
    assert found(estimate) == pytest.approx(load, rel=1e-5)
    middle_s = T * (PAIR + 0.5 * (own.window_ticks - 1))
    # The level's ripple of half a period in the odd window is 19 uA over 7 periods.
    assert estimate["emf_v"] == pytest.approx(emf_v + drift_v_per_s * middle_s, abs=1e-4 + 1e-7 * load[1])


@settings(max_examples=20)
@given(loads(), st.sampled_from([50.0, 60.0]), st.floats(0.0, 6.28), st.floats(0.0, 0.5))
def test_mains_of_50_and_60_hz_do_not_reach_the_load(load: Load, hz: float, phase: float, hum_v: float) -> None:
    own = estimator()
    current, voltage = responses(load, ticks_of(own))
    hum = hum_v * np.sin(2.0 * math.pi * hz * T * np.arange(len(voltage)) + phase)
    assert found(own.run(current, voltage + hum)) == pytest.approx(load, rel=1e-5)


def noisy(load: Load, seed: int) -> dict[str, Any]:
    """One window of a second of converters of 2.44 mV and 0.12 uA, one step of noise, hum and drift."""
    rng = np.random.default_rng(seed)
    own = estimator(pairs=0, voltage_noise_v=LSB_V / 12**0.5, current_noise_a=LSB_A / 12**0.5)
    ticks = ticks_of(own)
    current, voltage = responses(load, ticks, min(LEVEL_A, 20.0 / (load[0] + load[1])))
    k = np.arange(ticks)
    voltage = voltage + 0.02 * np.sin(100.0 * math.pi * T * k + rng.uniform(0.0, 6.28)) + 5e-3 * T * k + rng.normal()
    voltage = LSB_V * np.round(voltage / LSB_V + rng.normal(size=ticks))
    current = LSB_A * np.round(current / LSB_A + rng.normal(size=ticks))
    return own.run(current, voltage)


@pytest.mark.parametrize("load", BAR[:3])
def test_the_uncertainty_is_the_size_of_the_errors(load: Load) -> None:
    """A second: scores of mean 0 and deviation 1, for each parameter; and never 0.3 % of bias."""
    draws = [noisy(load, seed) for seed in range(100)]
    for name, sigma, truth in zip(NAMES, SIGMAS, load, strict=True):
        values = np.array([estimate[name] for estimate in draws])
        scores = (values - truth) / np.array([estimate[sigma] for estimate in draws])
        assert 0.75 < scores.std() < 1.25
        assert abs(values.mean() / truth - 1.0) < 3e-3 + 3.0 * values.std() / truth / 10.0


def test_a_load_beyond_the_rate_falls_back_to_its_total_resistance() -> None:
    estimate = noisy(BAR[3], 1)
    assert estimate["resistance_ohm"] > 0.0
    assert found(estimate) == (0.0, 0.0, 0.0)


def test_a_load_that_is_lost_takes_its_estimate_with_it() -> None:
    own = estimator(voltage_noise_v=LSB_V)
    current, voltage = responses(BAR[0], ticks_of(own))
    assert own.run(current, voltage)["series_ohm"] > 0.0
    rng = np.random.default_rng(1)
    estimate = own.run(*(rng.normal(size=2 * own.window_ticks) * scale for scale in (1e-7, 1.0)))
    assert found(estimate) == (0.0, 0.0, 0.0)
    assert estimate["series_sigma_ohm"] == estimate["misfit"] == 0.0


def test_lost_samples_cost_the_open_window_and_nothing_else() -> None:
    own = estimator()
    current, voltage = responses(BAR[0], 4 * ticks_of(own))
    for first, lost in ((0, 100), (777, 1), (900, 1000)):
        at = first + 500
        own.run(current[first:at], voltage[first:at])
        own.skip(lost)
    rest = slice(1400 + 1000, None)
    assert found(own.run(current[rest], voltage[rest])) == pytest.approx(BAR[0], rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_changes_no_state(bad: float) -> None:
    own = estimator()
    current, voltage = responses(BAR[0], 500)
    own.run(current, voltage)
    before = own.state_values
    own.step(bad, 1.0)
    own.step(1e-3, bad)
    assert own.state_values == before


def test_steps_and_arrays_are_the_same() -> None:
    one, two = estimator(pairs=2), estimator(pairs=2)
    current, voltage = responses(BAR[0], ticks_of(one))
    for a, v in zip(current, voltage, strict=True):
        one.step(a, v)
    two.run(current, voltage)
    assert one.state_values == two.state_values


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tick_s": 0.0}, "tick_s"), ({"amplitude_a": math.nan}, "amplitude_a"), ({"pairs": 1}, "pairs"),
        ({"skew_s": 1.0}, "skew_s"), ({"ballast_ohm": -1.0}, "ballast_ohm"),
        ({"current_between_samples": "wavy"}, "current_between_samples"),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        estimator(**changes)
