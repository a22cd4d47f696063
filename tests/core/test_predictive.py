"""The PI with delay predictor: the equations bit for bit, python-control's loop, and what no change of mode may do."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regulator_support import PLAIN_LAW, Plant, Predictive, voltage_source_model

signals = st.floats(-10.0, 10.0)
traces = st.lists(st.tuples(signals, signals), min_size=1, max_size=40)


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Any plant whose zero lies inside the unit circle."""
    gain = 10.0 ** draw(st.floats(-4.0, 1.0))
    return {
        "pole": draw(st.floats(0.0, 0.999)),
        "gain": gain,
        "gain_before": gain * draw(st.floats(-0.7, 0.99)),
        "delay_ticks": draw(st.integers(1, 12)),
    }


@st.composite
def loads(draw: st.DrawFn) -> dict[str, Any]:
    """The plant of a load behind a voltage source, delay 1 to 4."""
    series = 10.0 ** draw(st.floats(2.3, 4.0))
    parallel = series * 10.0 ** draw(st.floats(-1.0, math.log10(19.0)))
    capacitance = 10.0 ** draw(st.floats(-9.0, -5.7))
    tick, delay = 10.0 ** draw(st.floats(-4.0, -2.7)), draw(st.integers(1, 4))
    load = voltage_source_model(series, parallel, capacitance, tick, delay)
    # Where the zero is slow, so is the output's way to rest.
    assume(load["gain_before"] < 0.97 * load["gain"])
    return load


class Transcription:
    """The equations of predictive.pyx's docstring in Python, limits included, contact and jumps left out."""

    def __init__(self, config: dict[str, Any], model: dict[str, Any]) -> None:
        self.config = config
        self.a, self.b0, self.b1, self.d = (model[name] for name in ("pole", "gain", "gain_before", "delay_ticks"))
        self.u = [0.0] * 16
        self.y1 = self.q = self.m = self.tone = self.carried = 0.0
        self.started = False

    def step(self, r: float, y: float, tone: float) -> float:
        a, b0, b1, d, u, c = self.a, self.b0, self.b1, self.d, self.u, self.config
        if self.started:
            beta = min(a, c["integral_pole_most"])
            e = y - a * self.y1 - b0 * u[d - 1] + b1 * u[d]
            self.q = self.q + (1.0 - beta) * (e - self.q)
        p = y
        for j in range(d - 1, 0, -1):
            p = a * p + b0 * u[j - 1] - b1 * u[j] + self.q
        before = self.m + self.tone
        m = c["setpoint_pole"] * self.m + (1.0 - c["setpoint_pole"]) * r
        self.fed = (m + tone - a * before + b1 * u[0]) / b0
        self.proportional = (c["tracking_pole"] - a) * (p - before) / b0
        self.integral = -self.q / b0
        wanted = self.fed + self.proportional + self.integral
        low, high = c["output_min"], c["output_max"]
        if c.get("slew_per_tick"):
            high = min(max(u[0], 0.0) + c["slew_per_tick"], high)
            low = max(min(u[0], 0.0) - c["slew_per_tick"], low)
        output = min(max(wanted + self.carried, low), high)
        lsb = c.get("output_lsb", 0.0)
        if lsb:
            output = lsb * (int(output / lsb + 0.5) if output >= 0.0 else -int(0.5 - output / lsb))
        carried = self.carried + wanted - output
        self.carried = carried if -lsb < carried < lsb and low <= wanted <= high else 0.0
        if wanted > high or wanted < low:
            m = a * p + b0 * output - b1 * u[0] + self.q - tone
        self.m, self.tone, self.y1, self.started = m, tone, y, True
        self.u = [output, *u[:-1]]
        return output


@settings(max_examples=150)
@given(
    models(),
    st.lists(st.tuples(signals, signals, st.sampled_from([0.0, 0.1, -0.1])), min_size=1, max_size=50),
    st.floats(0.0, 0.95),
    st.floats(0.0, 0.95),
    st.sampled_from([0.0, 1e-3]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([1e6, 5.0]),
)
def test_the_law_is_the_equations_bit_for_bit(
    model: dict[str, Any],
    trace: list[tuple[float, float, float]],
    tracking: float,
    setpoint: float,
    lsb: float,
    slew: float,
    limit: float,
) -> None:
    config = {
        **PLAIN_LAW, "tracking_pole": tracking, "setpoint_pole": setpoint, "output_lsb": lsb, "slew_per_tick": slew,
        "output_min": -limit, "output_max": limit,
    }  # fmt: skip
    compiled, plain = Predictive(config, model), Transcription(config, model)
    for r, y, tone in trace:
        assert compiled.step(r, y, tone_a=tone) == plain.step(r, y, tone)
        terms = compiled.terms
        assert (terms["feed_forward"], terms["proportional"], terms["integral"]) == (
            plain.fed, plain.proportional, plain.integral,
        )  # fmt: skip
        assert (compiled.state.reference, compiled.state.disturbance) == (plain.m, plain.q)


@settings(max_examples=150)
@given(models(), traces)
def test_the_terms_sum_to_the_output_before_its_limits(model: dict[str, Any], trace: list[tuple[float, float]]) -> None:
    law = Predictive({**PLAIN_LAW, "output_max": 3.0}, model)
    for r, y in trace:
        output = law.step(r, y)
        terms = law.terms
        assert terms["feed_forward"] + terms["proportional"] + terms["integral"] == terms["unlimited"]
        assert terms["derivative"] == 0.0
        assert output == min(max(terms["unlimited"], -1e6), 3.0)
        assert terms["saturated"] == (1 if terms["unlimited"] > 3.0 else -1 if terms["unlimited"] < -1e6 else 0)


def padded(coefficients: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([coefficients, np.zeros(length - len(coefficients))])


def closed_loop(config: dict[str, Any], model: dict[str, Any], true: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of current over setpoint, in powers of 1/z, for a plant that is not the model."""
    a, b0, b1, d = (model[name] for name in ("pole", "gain", "gain_before", "delay_ticks"))
    s, lam = config["setpoint_pole"], config["tracking_pole"]
    beta = min(a, config["integral_pole_most"])
    w = np.polynomial.Polynomial([0.0, 1.0])
    one = w**0
    summed = sum(a ** (j - 1) for j in range(1, d))
    foreseen = sum(((b0 - b1 * w) * w**j * a ** (j - 1) for j in range(1, d)), 0.0 * one)
    # q = (from_y y + from_u u)/(1 - beta w)
    filtered = 1.0 - beta * w
    from_y, from_u = (1.0 - beta) * (1.0 - a * w), -(1.0 - beta) * (b0 - b1 * w) * w**d
    gained = (lam - a) * summed - 1.0
    of_u = (b0 - b1 * w - (lam - a) * foreseen) * filtered - gained * from_u
    of_y = (lam - a) * a ** (d - 1) * filtered + gained * from_y
    of_r = (1.0 - lam * w) * (1.0 - s) * filtered
    plant = (true["gain"] - true["gain_before"] * w) * w ** true["delay_ticks"]
    rest = 1.0 - true["pole"] * w
    numerator = of_r * plant
    denominator = (of_u * rest - of_y * plant) * (1.0 - s * w)
    length = max(len(numerator.coef), len(denominator.coef))
    return padded(numerator.coef, length), padded(denominator.coef, length)


@pytest.mark.parametrize("delay", [1, 2, 3, 4])
@pytest.mark.parametrize("off", [1.0, 1.25, 0.8])
def test_the_closed_loop_is_that_of_python_control(delay: int, off: float) -> None:
    control = pytest.importorskip("control")
    true = voltage_source_model(2500.0, 8e3, 60e-9, 2e-4, delay)
    model = voltage_source_model(2500.0 * off, 8e3 / off, 60e-9 * off, 2e-4, delay)
    setpoints = np.repeat([0.0, 1e-3, -0.4e-3, 0.7e-3], 150)
    numerator, denominator = closed_loop(PLAIN_LAW, model, true)
    loop = control.ss(control.tf(numerator, denominator, 2e-4))
    theirs = control.forced_response(loop, np.arange(len(setpoints)) * 2e-4, setpoints).outputs
    law, plant, ours = Predictive(PLAIN_LAW, model), Plant(**true), []
    for setpoint in setpoints:
        ours.append(plant.sample())
        plant.answer(law.step(setpoint, ours[-1]))
    assert np.abs(np.array(ours) - theirs).max() < 1e-11 * np.abs(setpoints).max()


@settings(max_examples=50)
@given(loads(), st.floats(0.0, 0.9))
def test_with_the_true_model_the_current_is_the_reference_after_the_delay(load: dict[str, Any], pole: float) -> None:
    law, plant = Predictive({**PLAIN_LAW, "setpoint_pole": pole}, load), Plant(**load)
    for k in range(60):
        current = plant.sample()
        plant.answer(law.step(1e-3, current))
        wanted = 1e-3 * (1.0 - pole ** (k - load["delay_ticks"] + 1)) if k >= load["delay_ticks"] else 0.0
        assert current == pytest.approx(wanted, rel=0.0, abs=1e-14)


def at_rest(load: dict[str, Any], setpoint: float = 1e-3, **config: Any) -> tuple[Predictive, Plant]:
    """Until the output stands; where the plant's zero is slow, long after the current does."""
    law, plant = Predictive({**PLAIN_LAW, **config}, load), Plant(**load)
    for _ in range(3000):
        plant.answer(law.step(setpoint, plant.sample()))
        if max(abs(each / law.state.output - 1.0) for each in plant.given) < 1e-13 and plant.current != 0.0:
            break
    assert plant.current == pytest.approx(setpoint, rel=1e-9)
    return law, plant


@settings(max_examples=50)
@given(loads(), st.floats(0.3, 3.0), st.floats(0.5, 1.0))
def test_another_model_does_not_move_the_output(load: dict[str, Any], scale: float, slower: float) -> None:
    law, plant = at_rest(load)
    before = law.state.output
    law.adopt({**load, "gain": load["gain"] * scale, "gain_before": load["gain_before"] * scale})
    assert law.step(1e-3, plant.sample()) == pytest.approx(before, rel=1e-7)
    law, plant = at_rest(load)
    law.adopt({**load, "pole": load["pole"] * slower})
    assert law.step(1e-3, plant.sample()) == pytest.approx(before, rel=1e-7)


@settings(max_examples=50)
@given(loads(), st.floats(0.2, 3.0))
def test_from_manual_to_automatic_without_a_jump(load: dict[str, Any], share: float) -> None:
    law, plant = at_rest(load)
    held = law.state.output * share
    law.state.manual, law.state.manual_output = 1, held
    for _ in range(1500):
        current = plant.sample()
        plant.answer(law.step(1e-3, current))
        assert law.state.output == held
    law.state.manual = 0
    # The setpoint is what flows: nothing moves.
    assert law.step(current, plant.sample()) == pytest.approx(held, rel=1e-9)


@settings(max_examples=50)
@given(loads(), st.floats(0.3, 0.9))
def test_after_a_long_saturation_the_output_leaves_its_limit_at_once(load: dict[str, Any], share: float) -> None:
    limit = share * 1e-3 * (1.0 - load["pole"]) / (load["gain"] - load["gain_before"])
    law, plant = Predictive({**PLAIN_LAW, "output_max": limit}, load), Plant(**load)
    for _ in range(3000):
        plant.answer(law.step(1e-3, plant.sample()))
    assert law.state.output == limit
    assert law.state.saturated_ticks > 2000
    reached = share * 1e-3
    currents = []
    for k in range(200):
        currents.append(plant.sample())
        plant.answer(law.step(0.5 * reached, currents[-1]))
        assert k > 0 or law.state.output < limit
    # And the current goes straight to the new setpoint: nothing was wound up.
    assert min(currents) >= 0.5 * reached * (1.0 - 1e-6)
    assert currents[-1] == pytest.approx(0.5 * reached, rel=1e-6)


@given(models(), traces, st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3))
def test_a_non_finite_input_changes_no_byte_of_the_state(
    model: dict[str, Any], trace: list[tuple[float, float]], bad: float, which: int
) -> None:
    law = Predictive({**PLAIN_LAW, "contact_floor_a": 1e-3, "voltage_source": 1, "jump_ratio": 1.3}, model)
    for r, y in trace:
        last = law.step(r, y)
    before = law.memory
    inputs = [1.0, 1.0, 1.0, 1.0]
    inputs[which] = bad
    assert law.step(*inputs) == last
    assert law.refused == 1 and law.terms["fault"] == 1
    assert law.memory == before


@given(models(), traces, st.floats(width=64, allow_nan=False, allow_infinity=False))
def test_a_huge_sample_leaves_a_state_that_goes_on(
    model: dict[str, Any], trace: list[tuple[float, float]], huge: float
) -> None:
    law = Predictive({**PLAIN_LAW, "output_min": -5.0, "output_max": 5.0}, model)
    for r, y in trace:
        law.step(r, y)
    assert -5.0 <= law.step(1.0, huge) <= 5.0
    for _ in range(40):
        assert -5.0 <= law.step(1.0, 1.0) <= 5.0
    assert all(math.isfinite(value) for value in law.state.outputs)


@settings(max_examples=50)
@given(models(), traces, st.floats(0.01, 1.0), st.sampled_from([0.0, 0.03]))
def test_the_output_keeps_its_limits_and_its_slew(
    model: dict[str, Any], trace: list[tuple[float, float]], slew: float, trim_ratio: float
) -> None:
    """Whatever the model: where a trim's limits lie beyond the slew's, they give way."""
    config = {**PLAIN_LAW, "output_min": -4.0, "output_max": 4.0, "slew_per_tick": slew, "trim_ratio": trim_ratio}
    law = Predictive(config, model)
    before = 0.0
    for r, y in trace:
        output = law.step(r, y)
        assert -4.0 <= output <= 4.0
        # Towards zero it is free.
        rise = abs(output) - abs(before) if output * before > 0.0 else abs(output)
        assert rise <= slew * (1.0 + 1e-12)
        before = output


@settings(max_examples=50)
@given(models(), st.lists(signals, min_size=1, max_size=40), st.floats(0.1, 5.0))
def test_a_trim_stays_within_its_share(model: dict[str, Any], measured: list[float], setpoint: float) -> None:
    law = Predictive({**PLAIN_LAW, "trim_ratio": 0.03, "trim_floor": 0.01}, model)
    asked = setpoint * (1.0 - model["pole"]) / (model["gain"] - model["gain_before"])
    for y in measured:
        assert abs(law.step(setpoint, y) - asked) <= (0.03 * asked + 0.01) * (1.0 + 1e-9)


@settings(max_examples=40)
@given(loads(), st.floats(0.01, 0.2), st.floats(1e-3, 0.4))
def test_a_tone_is_tracked_exactly_past_the_reference_model(load: dict[str, Any], share: float, turns: float) -> None:
    law, plant = at_rest(load)
    tones = [share * 1e-3 * math.sin(math.tau * turns * k) for k in range(80)]
    currents = []
    for tone in tones:
        currents.append(plant.sample())
        plant.answer(law.step(1e-3, currents[-1], tone_a=tone))
    d = load["delay_ticks"]
    assert np.array(currents[d:]) == pytest.approx(1e-3 + np.array(tones[:-d]), rel=0.0, abs=1e-11)


def test_lost_samples_count_as_ticks_of_the_last_output() -> None:
    load = voltage_source_model(2500.0, 8e3, 60e-9, 1e-3, 3)
    law, plant = at_rest(load)
    for _ in range(5):
        plant.sample()
        plant.answer(law.state.output)
    law.skip(5)
    assert law.step(1e-3, plant.sample()) == pytest.approx(plant.given[0], rel=1e-9)


def test_the_predictor_believes_the_device_about_what_was_in_force() -> None:
    """The output that the device clamped, not the one that was sent."""
    load = voltage_source_model(2500.0, 8e3, 60e-9, 1e-3, 2)
    told, untold = at_rest(load), at_rest(load)
    for (law, plant), tell in ((told, True), (untold, False)):
        for _ in range(3):
            current = plant.sample()
            if tell:
                law.applied(plant.given[0], 1)
            law.step(2e-3, current)
            plant.answer(plant.given[0])
    assert abs(told[0].state.disturbance) < 1e-12
    assert abs(untold[0].state.disturbance) > 1e-6


@pytest.mark.parametrize("voltage_source", [0, 1])
def test_an_open_lead_is_seen_within_three_ticks_of_its_samples(voltage_source: int) -> None:
    load = voltage_source_model(2500.0, 8e3, 60e-9, 1e-3, 2)
    law, _ = at_rest(
        load, contact_floor_a=1e-6, voltage_source=voltage_source, series_least_ohm=2100.0, compliance_v=80.0,
        open_ticks=3,
    )  # fmt: skip
    for k in range(3):
        assert law.state.contact_lost == 0, k
        law.step(1e-3, 0.0, voltage_v=80.0)
    assert law.state.contact_lost == 1
    assert law.state.opens == 1
    # The output is one that does no harm when the lead is whole again.
    for _ in range(300):
        law.step(1e-3, 0.0, voltage_v=80.0)
    assert 0.0 < law.state.output / 2500.0 <= 0.9e-3 if voltage_source else law.state.output > 0.0


def test_at_the_stages_limit_nothing_is_made_up_for() -> None:
    load = voltage_source_model(2500.0, 8e3, 60e-9, 1e-3, 2)
    law, plant = at_rest(load, trim_ratio=0.03, trim_floor=1e-4)
    before = law.state.output
    for _ in range(500):
        law.step(1e-3, 0.2e-3, at_limit=True)
    assert law.state.output == pytest.approx(before, rel=1e-6)
    assert plant.current == pytest.approx(1e-3)
