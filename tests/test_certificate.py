"""The certificate: its polynomial is the loop's, its bounds hold, and what is unstable is refused."""

import itertools
import json
import math
import re
import time
from pathlib import Path

import control
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_support import ionto
from ionto_rt.certificate.cells import exclude
from ionto_rt.certificate.enclosures import problems
from ionto_rt.certificate.envelope import CASES, VoltageCase, certified_region
from ionto_rt.certificate.grid import delays_of, loops
from ionto_rt.certificate.loop import (
    Plant,
    Tuning,
    characteristic_polynomial,
    jury_stable,
    predict_stable,
    running,
    spectral_radius,
    voltage_source,
)
from ionto_rt.certificate.margins import complementary_sensitivity, gain_limit, largest_sensitivity, margins_at
from ionto_rt.certificate.verdict import certify, try_case
from ionto_rt.codes import FrontEnd
from ionto_rt.core.constant_current import INTEGRAL_SHARE, PARALLEL_RATIO_MOST, TRACKING_POLE, configure
from ionto_rt.core.trial import Trial
from stability_survey import survey

DELAYS = (1, 2, 3, 4)
UNIT = st.floats(0.0, 0.999)
STAGE = {
    "front_end": "voltage",
    "tick_s": 1e-3,
    "full_scale_a": 1e-3,
    "compliance_v": 80.0,
    "current_lsb_a": 1e-8,
    "output_lsb": 1e-3,
    "output_min": -80.0,
    "output_max": 80.0,
}


def state_matrix(load: Plant, model: Plant, delay: int, model_delay: int, tuning: Tuning) -> np.ndarray:
    """The loop by its equations, tick by tick: (previous sample, disturbance, outputs given) to the same one later."""
    beta = min(float(model.pole), tuning.integral_pole_most)
    size = max(delay, model_delay) + 1

    def tick(state: np.ndarray) -> np.ndarray:
        before, disturbance, outputs = state[0], state[1], np.concatenate([[0.0], state[2:]])
        sample = load.pole * before + load.gain * outputs[delay] - load.gain_before * outputs[delay + 1]
        surprise = sample - model.pole * before
        surprise += -model.gain * outputs[model_delay] + model.gain_before * outputs[model_delay + 1]
        disturbance += (1.0 - beta) * (surprise - disturbance)
        predicted = sample
        for age in range(model_delay - 1, 0, -1):
            predicted = model.pole * predicted + model.gain * outputs[age] - model.gain_before * outputs[age + 1]
            predicted += disturbance
        pull = (tuning.tracking_pole - model.pole) * predicted - disturbance
        output = (pull + model.gain_before * outputs[1]) / model.gain
        return np.concatenate([[sample, disturbance, output], state[2:-1]])

    return np.array([tick(unit) for unit in np.eye(size + 2)]).T


@given(
    st.tuples(UNIT, st.floats(0.2, 2.0), UNIT),
    st.tuples(UNIT, st.floats(0.2, 2.0), UNIT),
    st.sampled_from(DELAYS),
    st.sampled_from((-1, 0, 1)),
    st.tuples(st.floats(0.1, 0.9), st.floats(0.5, 0.99)),
)
def test_the_polynomial_has_every_mode_of_the_loop(load, model, delay, error, poles):
    tuning = Tuning(*poles)
    true, believed = (Plant(pole, gain, gain * ratio) for pole, gain, ratio in (load, model))
    model_delay = max(1, delay + error)
    polynomial = characteristic_polynomial(true, believed, delay, model_delay, tuning)
    simulated = np.poly(state_matrix(true, believed, delay, model_delay, tuning))
    # The previous sample repeats what the outputs say: one mode more, at zero.
    expected = np.append(polynomial / polynomial[0], 0.0)
    assert np.abs(simulated - expected).max() <= 1e-11 * np.abs(expected).max()


def test_with_an_exact_model_the_loop_has_the_poles_it_was_designed_for():
    for delay in DELAYS:
        for pole, zero in ((0.3, 0.8), (0.97, 0.99)):
            plant = Plant(pole, 2.0, 2.0 * zero)
            roots = np.sort(np.abs(np.roots(characteristic_polynomial(plant, plant, delay, delay, Tuning(0.6, 0.9)))))
            assert np.sort([0.6, min(pole, 0.9), zero]) == pytest.approx(roots[-3:], abs=1e-6)
            assert roots[:-3] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("delay", DELAYS)
def test_loads_of_any_shape_are_tried_on_one_model(delay):
    model = Plant(0.6, 1.0, 0.4)
    for gains in (np.array([0.5, 9.0]), np.array([[0.5, 2.0, 9.0]])):
        answer = predict_stable(Plant(0.6, gains, 0.4 * gains), model, delay, delay)
        one_by_one = [
            predict_stable(Plant(0.6, gain, 0.4 * gain), model, delay, delay).item() for gain in gains.reshape(-1)
        ]
        assert answer.shape == gains.shape and answer.reshape(-1).tolist() == one_by_one


@given(st.lists(st.floats(-2.0, 2.0), min_size=2, max_size=8))
def test_jury_agrees_with_the_roots(coefficients):
    polynomial = np.array([1.0, *coefficients])
    radius = float(spectral_radius(polynomial[:, None])[0])
    if abs(radius - 1.0) > 1e-6:
        assert bool(jury_stable(polynomial)) == (radius < 1.0)


def test_a_polynomial_that_is_not_a_number_is_not_stable():
    assert not jury_stable(np.array([1.0, math.nan, 0.1]))


@pytest.mark.parametrize("tracking_pole", [0.0, 0.3, 0.5, 0.6, 0.8])
@pytest.mark.parametrize("delay", [*DELAYS, 8])
def test_the_gain_limit_is_where_a_root_leaves_the_circle(delay, tracking_pole):
    limit = gain_limit(delay, tracking_pole)
    for factor, stable in ((0.999, True), (1.001, False)):
        polynomial = np.zeros(delay + 1)
        polynomial[:2] = 1.0, -tracking_pole
        polynomial[-1] += (factor * limit - 1.0) * (1.0 - tracking_pole)
        assert (np.abs(np.roots(polynomial)).max() < 1.0) == stable


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("pole", [0.0, 0.8, 0.95, 0.999])
def test_margins_are_those_of_python_control(delay, pole):
    tuning = Tuning(0.6, 0.9)
    model = Plant(pole, 1.0, 0.5)
    margins = margins_at(model, delay, tuning)
    # T = L/(1 + L): numerator of T from its values, over the design's poles.
    beta = min(pole, 0.9)
    poles = np.polymul([1.0, -beta], [1.0, -0.6])
    omega = np.array([0.5, 1.5])
    back = np.exp(-1j * omega)
    shaped = complementary_sensitivity(model, delay, omega, tuning) * np.polyval(poles[::-1], back) / back**delay
    slope = ((shaped[1] - shaped[0]) / (back[1] - back[0])).real
    constant = (shaped[0] - slope * back[0]).real
    denominator = np.concatenate([poles, np.zeros(delay)])
    numerator = np.concatenate([np.zeros(delay), [constant, slope, 0.0]])
    loop = control.TransferFunction(np.trim_zeros(numerator, "f"), denominator - numerator, True)
    gain, phase_deg, sensitivity, *_ = control.stability_margins(loop)
    # With a delay of 1 the phase crosses at the Nyquist frequency itself, where python-control does not look.
    if delay > 1:
        assert margins.gain == pytest.approx(gain, rel=1e-3)
    assert margins.phase_deg == pytest.approx(phase_deg, rel=1e-3)
    assert 1.0 / margins.sensitivity == pytest.approx(sensitivity, rel=1e-3)
    if pole <= 0.9:
        assert margins.gain == pytest.approx(gain_limit(delay, 0.6), rel=1e-9)


def test_on_slow_loads_the_filter_raises_the_sensitivity_by_the_same_term_for_every_delay():
    """docs/control.md, section 4: T = z^-d F (1 + k (1 - z^-1)/(1 - beta z^-1))."""
    back = np.exp(-1j * np.linspace(1e-3, math.pi, 4000))
    for delay in DELAYS:
        pole, beta = running(delay)
        share = (1.0 - beta) * (1.0 / (1.0 - pole) + delay - 1.0)
        assert share == pytest.approx(INTEGRAL_SHARE * (delay + 1.5) / (delay + 1.0))
        limit = (1.0 - pole) / (1.0 - pole * back) * (1.0 + share * (1.0 - back) / (1.0 - beta * back))
        exact = complementary_sensitivity(Plant(1.0, 1.0, 0.0), delay, -np.angle(back))
        assert exact == pytest.approx(limit * back**delay, abs=1e-12)
        assert largest_sensitivity(delay) == pytest.approx(np.abs(limit).max(), rel=1e-4)


def test_more_gain_than_the_margin_is_unstable_and_less_is_not():
    for delay in DELAYS:
        for pole in (0.2, 0.97):
            model = Plant(pole, 1.0, 0.4)
            limit = margins_at(model, delay).gain
            for factor, stable in ((0.999, True), (1.001, False)):
                load = Plant(pole, factor * limit, 0.4 * factor * limit)
                assert predict_stable(load, model, delay, delay) == stable


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cells_enclose_the_logarithm_of_the_loop(case):
    """Also beside the transfer function itself, computed another way: L = -1 where the polynomial vanishes."""
    rng = np.random.default_rng(7)
    for (told, model_delay, delay), also in itertools.product(delays_of(case, DELAYS), (None, Tuning(0.6, 0.9))):
        tuning = also or running(told)
        for problem in problems(case, model_delay, delay, tuning):
            low, high = problem.low[:, None], problem.high[:, None]
            centre = low + (high - low) * rng.random((len(low), 200))
            centre[0] = rng.uniform(-4.0, 1.0, 200)
            half = np.where(high > low, 10.0 ** rng.uniform(-3.0, -1.0, centre.shape), 0.0)
            half[0] = np.minimum(half[0], math.log(math.pi) - centre[0])
            half[1] = np.minimum(half[1], np.minimum(centre - low, high - centre)[1])
            with np.errstate(all="ignore"):
                cell = problem.enclose(centre, half)
                for _ in range(6):
                    step = half * rng.choice([-1.0, 1.0], half.shape)
                    there = problem.enclose(centre + step, np.zeros_like(half)).value
                    off = there - cell.value - (cell.gradient * step).sum(axis=0)
                    off = off.real + 1j * (np.remainder(off.imag + np.pi, 2.0 * np.pi) - np.pi)
                    room = (cell.radius * half).sum(axis=0) + 1e-9
                    known = np.isfinite(room)
                    assert (np.abs(off) <= room)[known].all()
            if len(low) >= 4:
                at = np.exp(centre[1:]) if len(low) == 6 else np.exp(np.stack([centre[1], centre[1], *centre[2:]]))
                load, model = loops(case, at)
                back = np.exp(-1j * np.exp(centre[0]))
                polynomial = characteristic_polynomial(load, model, delay, model_delay, tuning)
                alone = characteristic_polynomial(
                    load._replace(gain=0.0 * load.gain, gain_before=0.0 * load.gain), model, delay, model_delay, tuning
                )
                powers = back ** np.arange(len(polynomial))[:, None]
                transfer = (polynomial * powers).sum(axis=0) / (alone * powers).sum(axis=0) - 1.0
                assert np.exp(cell.value) == pytest.approx(-transfer, rel=1e-6)


@pytest.mark.parametrize("delay", DELAYS)
def test_the_regulator_that_runs_is_certified_where_the_model_is_1_3_off(delay):
    result = try_case(CASES[0], (delay,))
    assert result.certified
    assert result.worst.grid.worst.gain > 1.2


def test_a_set_with_an_unstable_loop_is_never_proven():
    case = VoltageCase("too far off", (1.0, 4.0), (1.0, 4.0), (1.0, 1.0))
    parts = [exclude(part, cells_max=200_000) for part in problems(case, 3, 3, running(3))]
    assert min(part.proven for part in parts) < 1.0


def test_a_regulator_that_is_too_fast_is_refused():
    certificate = certify((3,), CASES[:1], lambda delay: Tuning(0.1, 0.7))
    assert not certificate.certified
    (pair,) = certificate.cases[0].pairs
    assert pair.grid.unstable > 0
    assert pair.grid.worst.gain < 1.0 < pair.grid.worst.radius


def test_the_tuning_is_that_of_the_tick_for_each_delay():
    for delay in DELAYS:
        assert running(delay) == Tuning(TRACKING_POLE, 1.0 - INTEGRAL_SHARE / (delay + 1.0))


def test_every_delay_error_that_the_probe_may_leave_is_tried():
    def tried(*names):
        return {one for case in CASES if case.name.startswith(names) for one in delays_of(case, DELAYS)}

    assert {(told, told) for told in DELAYS} <= {one[:2] for one in tried("Rs', Rp, C")}
    found = {(one.told, one.model) for one in tried("the same, told another delay")}
    # As the probe tries them (delay_of in probe.pyx): one less, one and two more.
    assert found == {(told, told + error) for told in DELAYS for error in (-1, 1, 2) if told + error >= 1}
    wrong = {(one.model, one.true) for one in tried("delay one off")}
    assert wrong == {(told, told + error) for told in DELAYS for error in (-1, 1) if told + error >= 1}


def test_margins_take_under_50_ms():
    begun = time.process_time()
    margins_at(Plant(0.97, 1.0, 0.5), 4)
    assert time.process_time() - begun < 0.05


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"parallel_ohm": 60e3}, "60 times the series resistance.*ballast"),
        ({"sample_rate_hz": 20e3}, "20000 Hz is outside"),
        ({"delay_ticks": 5}, "5 ticks is outside"),
        ({"capacitance_f": math.nan}, "not identified"),
        ({"capacitance_f": 1.0}, "time constant"),
        ({"front_end": FrontEnd.CURRENT_SOURCE, "bandwidth_hz": 2236.0}, None),
        ({"front_end": FrontEnd.CURRENT_SOURCE, "bandwidth_hz": 90.0}, "90 Hz is under 100 Hz"),
    ],
)
def test_a_load_outside_the_region_is_refused_in_one_line(changes, said):
    load = {
        "front_end": FrontEnd.VOLTAGE_SOURCE,
        "sample_rate_hz": 1000.0,
        "delay_ticks": 2,
        "series_ohm": 1e3,
        "parallel_ohm": 10e3,
        "capacitance_f": 1e-7,
    }
    reason = certified_region(**{**load, **changes})
    if said is None:
        assert reason is None
    else:
        assert reason is not None and "\n" not in reason
        assert re.search(said, reason)


@pytest.mark.parametrize("delay", DELAYS)
def test_an_exact_load_at_the_probes_limit_bears_a_delay_one_off_however_slow_it_is(delay):
    limit = configure(**STAGE, delay_ticks=delay)["probe"]["parallel_ratio_most"]
    assert limit == PARALLEL_RATIO_MOST
    ratio = np.geomspace(1e-4, 80.0, 400)
    plant = voltage_source(1.0, limit, (1.0 + limit) / (ratio * limit), 1.0)
    for error in (-1, 0, 1):
        if delay + error >= 1:
            assert predict_stable(plant, plant, delay + error, delay, running(delay)).all()


def on_voltage_source(series_ohm, ballast_ohm, parallel_ratio, capacitance_f, delay, tick_s=1e-3, seed=1):
    parallel_ohm = parallel_ratio * (series_ohm + ballast_ohm)
    setpoint_a = min(1e-3, 8.0 / (series_ohm + ballast_ohm + parallel_ohm))
    return Trial(
        front_end="voltage",
        series_ohm=series_ohm,
        parallel_ohm=parallel_ohm,
        capacitance_f=capacitance_f,
        tick_s=tick_s,
        delay_ticks=delay,
        setpoint_a=setpoint_a,
        full_scale_a=2.0 * setpoint_a,
        ballast_ohm=ballast_ohm,
        seed=seed,
    )


@pytest.mark.parametrize("share", [0.5, 0.8, 1.2, 2.0])
def test_the_probe_refuses_what_the_certificate_does_where_the_rate_shows_the_load(share):
    ratio, delay = share * PARALLEL_RATIO_MOST, 2
    reason = certified_region(
        FrontEnd.VOLTAGE_SOURCE, 1e3, delay, series_ohm=2e3, parallel_ohm=2e3 * ratio, capacitance_f=1e-6
    )
    verdict, _, _ = on_voltage_source(1e3, 1e3, ratio, 1e-6, delay).probe()
    assert (verdict, reason is None) == (("outside", False) if share > 1.0 else ("good", True))


def test_a_load_beyond_the_limit_that_the_rate_does_not_show_is_far_from_unstable():
    """With ticks of many time constants the probe sees a resistance, and lets it pass: the model holds at rest."""
    rng = np.random.default_rng(5)
    passed = 0
    for seed in range(1, 401):
        delay, ratio = int(rng.integers(1, 5)), float(np.exp(rng.uniform(math.log(1.3 * PARALLEL_RATIO_MOST), 6.2)))
        series, capacitance, rate = np.exp(rng.uniform(np.log([1e2, 1e-9, 5e2]), np.log([5e3, 2e-6, 1e4])))
        trial = on_voltage_source(series, 0.0, ratio, capacitance, delay, 1.0 / rate, seed)
        if trial.probe()[0] != "good":
            continue
        passed += 1
        found, (pole, gain, before) = trial.regulator["model"], trial.plant
        model = Plant(found["pole"], found["gain"], found["gain_before"])
        more = np.linspace(0.1, 1.5, 8)
        load = Plant(pole, gain * more, before * more)
        assert predict_stable(load, model, delay, found["delay_ticks"], running(delay)).all()
    assert passed > 50


@given(
    st.floats(100.0, 5000.0),
    st.floats(0.0, 200e3),
    st.floats(math.log(200.0), math.log(1e6)),
    st.floats(math.log(1e-9), math.log(2e-6)),
    st.floats(500.0, 10e3),
)
def test_every_load_of_the_envelope_is_inside_but_for_its_ratio(series, ballast, parallel, capacitance, rate):
    reason = certified_region(
        FrontEnd.VOLTAGE_SOURCE,
        rate,
        2,
        series_ohm=series + ballast,
        parallel_ohm=math.exp(parallel),
        capacitance_f=math.exp(capacitance),
    )
    assert (reason is None) == (math.exp(parallel) / (series + ballast) <= PARALLEL_RATIO_MOST)


def test_the_command_says_its_verdict_in_json_and_exit_code(tmp_path: Path):
    pytest.importorskip("matplotlib")
    done = ionto("certify", "--delay", "4", "--tracking-pole", "0.05", "--json", "--plot", "region.png", cwd=tmp_path)
    assert done.code == 1
    said = json.loads(done.out)
    assert said["format"] == 1 and said["certified"] is False
    assert {"version", "envelope", "unmodelled", "delays", "cases", "seconds"} <= set(said)
    assert said["delays"][0]["tuning"]["tracking_pole"] == 0.05
    pair = said["cases"][0]["pairs"][0]
    assert pair["grid"]["unstable"] > 0 and pair["proven"] is None and not pair["certified"]
    assert (tmp_path / "region.png").read_bytes().startswith(b"\x89PNG")


def test_no_simulated_loop_contradicts_the_prediction():
    found = survey(3000, 11)
    assert found.loops > 2900 and found.unstable > 50
    assert found.contradictions == []
