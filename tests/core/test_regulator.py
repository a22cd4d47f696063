"""The regulator: the same numbers as three independent PIDs, and the properties that safety rests on."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ionto_rt.core.regulator import Regulator

T = 1e-3
SCHEMES = ("backward", "forward", "trapezoidal")

gains = st.floats(-50.0, 50.0)
signals = st.floats(-10.0, 10.0)
traces = st.lists(st.tuples(signals, signals), min_size=1, max_size=60)
hostile = st.floats(width=64) | signals


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, Any]:
    """Any regulator that may be made, limits and slew included."""
    low = draw(st.floats(-5.0, 4.0))
    return {
        "tick_s": draw(st.sampled_from([1e-4, 1e-3, 1.0])),
        "kp": draw(gains),
        "ki": draw(gains),
        "kd": draw(st.floats(-0.1, 0.1)),
        "derivative_filter_s": draw(st.sampled_from([0.0, 4e-3])),
        "setpoint_weight": draw(st.floats(0.0, 1.0)),
        "derivative_weight": draw(st.sampled_from([0.0, 1.0])),
        "feed_forward": draw(st.floats(-2.0, 2.0)),
        "output_min": low,
        "output_max": low + draw(st.floats(0.1, 10.0)),
        "slew_per_tick": draw(st.sampled_from([0.0, 0.01, 1.0])),
        "tracking_s": draw(st.sampled_from([0.0, 0.05])),
        "delay_ticks": draw(st.integers(0, 7)),
        "free_fall": draw(st.booleans()),
        "integration": draw(st.sampled_from(SCHEMES)),
        "anti_windup": draw(st.sampled_from(["none", "back-calculation", "conditional"])),
    }


@given(kp=gains, ki=gains, kd=st.floats(-0.1, 0.1), trace=traces)
def test_equals_simple_pid_where_the_two_agree_on_the_form(
    kp: float, ki: float, kd: float, trace: list[tuple[float, float]]
) -> None:
    simple_pid = pytest.importorskip("simple_pid")
    theirs = simple_pid.PID(kp, ki, kd, sample_time=None)
    ours = Regulator(tick_s=T, kp=kp, ki=ki, kd=kd)
    scale = sum(abs(kp) * 20.0 + abs(ki) * 20.0 * T + abs(kd) * 20.0 / T for _ in trace) + 1.0
    for setpoint, measured in trace:
        theirs.setpoint = setpoint
        assert ours.step(setpoint, measured) == pytest.approx(theirs(measured, dt=T), rel=0.0, abs=1e-12 * scale)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("b", [1.0, 0.3])
@pytest.mark.parametrize("kd", [0.0, 0.004])
def test_the_closed_loop_is_that_of_python_control(scheme: str, b: float, kd: float) -> None:
    control = pytest.importorskip("control")
    kp, ki, filter_s = 1.7, 12.0, 3e-3
    a = math.exp(-T / 0.05)
    plant = control.ss(a, 1.0 - a, 1.0, 0.0, T)
    through = {"backward": ki * T, "forward": 0.0, "trapezoidal": 0.5 * ki * T}[scheme]
    integrator = control.ss(1.0, 1.0, ki * T, through, T)
    pole = filter_s / (filter_s + T)
    # kd (1 - z^-1) / ((Tf + T) - Tf z^-1), acting on -y.
    differentiator = control.ss(pole, 1.0, kd / (filter_s + T) * (pole - 1.0), kd / (filter_s + T), T)
    proportional = control.ss([], [], [], [[kp * b, -kp]], T)
    from_error = integrator * control.ss([], [], [], [[1.0, -1.0]], T)
    from_measured = differentiator * control.ss([], [], [], [[0.0, -1.0]], T)
    law = proportional + from_error + from_measured
    law.input_labels, law.output_labels = ["r", "y"], ["u"]
    plant.input_labels, plant.output_labels = ["u"], ["y"]
    loop = control.interconnect([law, plant], inputs=["r"], outputs=["y", "u"], dt=T)

    setpoints = np.repeat([0.0, 1.0, -0.4, 0.7], 300)
    theirs = control.forced_response(loop, np.arange(len(setpoints)) * T, setpoints).outputs
    regulator = Regulator(
        tick_s=T, kp=kp, ki=ki, kd=kd, derivative_filter_s=filter_s, setpoint_weight=b, integration=scheme
    )
    measured, ours = 0.0, []
    for setpoint in setpoints:
        output = regulator.step(setpoint, measured)
        ours.append((measured, output))
        measured = a * measured + (1.0 - a) * output
    assert np.abs(np.array(ours).T - theirs).max() < 1e-11


@pytest.mark.parametrize(
    ("anti_windup", "errors", "integrals", "commands"),
    [
        ("back-calculation", [1, 2, 3, 1, 2, -1, 1], [1, 3, 6, 6, 7, 4, 5], [0, 1, 3, 5, 5, 5, 4]),
        ("conditional", [1, 2, 3, 1, 2, -1, 0], [1, 3, 6, 6, 6, 5, 5], [0, 1, 3, 5, 5, 5, 5]),
    ],
)
def test_anti_windup_follows_the_tables_of_control_toolbox(
    anti_windup: str, errors: list[float], integrals: list[float], commands: list[float]
) -> None:
    """Values of the tests backCalculationPIDTest and conditionalIntegrationPIDTest of ros-controls/control_toolbox."""
    regulator = Regulator(
        tick_s=1.0,
        ki=1.0,
        output_min=-5.0,
        output_max=5.0,
        tracking_s=1.0,
        integration="forward",
        anti_windup=anti_windup,
    )
    seen = [(regulator.step(error, 0.0), regulator.state_values["integral"]) for error in errors]
    assert [output for output, _ in seen] == commands
    assert [integral for _, integral in seen] == integrals


@pytest.mark.parametrize(
    ("one_term", "trace", "output"),
    [
        ({"kp": 2.0}, [(1.0, 0.25)], 1.5),
        ({"ki": 2.0}, [(1.0, 0.25)], 2.0 * T * 0.75),
        ({"kd": 2.0}, [(1.0, 0.0), (1.0, 0.001)], -2.0),
        ({"kd": 2.0, "derivative_weight": 1.0}, [(1.0, 0.0), (1.001, 0.0)], 2.0),
        ({"feed_forward": 2.0}, [(1.0, 5.0)], 2.0),
        ({"kp": 2.0, "setpoint_weight": 0.5}, [(1.0, 0.25)], 0.5),
    ],
)
def test_every_term_has_its_sign(one_term: dict[str, float], trace: list[tuple[float, float]], output: float) -> None:
    regulator = Regulator(tick_s=T, **one_term)
    for setpoint, measured in trace:
        found = regulator.step(setpoint, measured)
    assert found == pytest.approx(output, rel=1e-12)


@given(parameters(), traces)
def test_the_terms_add_up_to_the_output_before_its_limits(
    made: dict[str, Any], trace: list[tuple[float, float]]
) -> None:
    regulator = Regulator(**made)
    for setpoint, measured in trace:
        output = regulator.step(setpoint, measured)
        terms = regulator.terms
        parts = terms["proportional"] + terms["integral"] + terms["derivative"] + terms["feed_forward"]
        assert parts == terms["unlimited"]
        assert output == terms["output"]
        if terms["saturated"] == 0 and made["slew_per_tick"] == 0.0:
            assert output == terms["unlimited"]


@given(parameters(), signals, signals)
def test_the_first_sample_has_no_derivative(made: dict[str, Any], setpoint: float, measured: float) -> None:
    regulator = Regulator(**made)
    regulator.step(setpoint, measured)
    assert regulator.terms["derivative"] == 0.0


@given(parameters(), st.lists(signals, min_size=2, max_size=40), signals)
def test_a_moving_setpoint_gives_no_derivative_kick(
    made: dict[str, Any], setpoints: list[float], measured: float
) -> None:
    regulator = Regulator(**{**made, "derivative_weight": 0.0})
    for setpoint in setpoints:
        regulator.step(setpoint, measured)
        assert regulator.terms["derivative"] == 0.0


@given(parameters(), st.floats(-5.0, 5.0), traces, signals, signals)
def test_from_manual_to_automatic_without_a_jump(
    made: dict[str, Any], hand: float, trace: list[tuple[float, float]], setpoint: float, measured: float
) -> None:
    regulator = Regulator(**made)
    for one in trace:
        regulator.step(*one)
    regulator.manual(hand)
    for _ in range(1200):
        held = regulator.step(setpoint, measured)
    assume(held == hand)
    regulator.automatic()
    # The integral does count the tick in which it takes over.
    counted = abs(made["ki"] * made["tick_s"] * (setpoint - measured))
    assert abs(regulator.step(setpoint, measured) - held) <= counted + 1e-9 * (1.0 + abs(regulator.terms["integral"]))


@given(parameters(), gains, gains, st.floats(-0.1, 0.1), st.floats(0.0, 1.0), st.floats(-2.0, 2.0), signals, signals)
def test_a_change_of_gains_does_not_move_the_output(
    made: dict[str, Any], kp: float, ki: float, kd: float, b: float, ff: float, setpoint: float, measured: float
) -> None:
    wide = {**made, "output_min": -1e6, "output_max": 1e6, "slew_per_tick": 0.0, "derivative_filter_s": 0.0}
    regulator = Regulator(**wide)
    for _ in range(12):
        before = regulator.step(setpoint, measured)
    regulator.retune(kp=kp, ki=ki, kd=kd, setpoint_weight=b, feed_forward=ff)
    counted = max(abs(ki), abs(made["ki"])) * made["tick_s"] * abs(setpoint - measured)
    assert abs(regulator.step(setpoint, measured) - before) <= counted + 1e-9 * (1.0 + abs(before) + abs(kp) * 10.0)


@given(parameters(), st.lists(st.tuples(hostile, hostile), max_size=60))
def test_the_output_keeps_its_limits_whatever_comes(made: dict[str, Any], trace: list[tuple[float, float]]) -> None:
    start = min(max(0.0, made["output_min"]), made["output_max"])
    regulator = Regulator(**made, output=start)
    for setpoint, measured in trace:
        assert made["output_min"] <= regulator.step(setpoint, measured) <= made["output_max"]


@given(parameters(), st.lists(st.tuples(hostile, hostile), max_size=60))
def test_the_output_keeps_its_slew_whatever_comes(made: dict[str, Any], trace: list[tuple[float, float]]) -> None:
    slew = made["slew_per_tick"] or 0.25
    start = min(max(0.0, made["output_min"]), made["output_max"])
    regulator = Regulator(**{**made, "slew_per_tick": slew}, output=start)
    outputs = [start, *(regulator.step(setpoint, measured) for setpoint, measured in trace)]
    for before, after in pairwise(outputs):
        rising = abs(after) - abs(before) if before * after >= 0.0 else abs(after)
        assert (rising if made["free_fall"] else abs(after - before)) <= slew * (1.0 + 1e-12) + 1e-15


def test_free_fall_reaches_zero_in_one_tick_and_rises_at_the_slew() -> None:
    regulator = Regulator(tick_s=T, feed_forward=1.0, slew_per_tick=0.1, free_fall=True, output=5.0)
    assert [regulator.step(setpoint, 0.0) for setpoint in (0.0, 5.0, 5.0, -5.0)] == [0.0, 0.1, 0.2, -0.1]


@given(parameters(), traces, st.sampled_from([math.nan, math.inf, -math.inf]), signals, st.booleans())
def test_a_non_finite_input_changes_no_state(
    made: dict[str, Any], trace: list[tuple[float, float]], bad: float, good: float, in_setpoint: bool
) -> None:
    regulator = Regulator(**made)
    for one in trace:
        last = regulator.step(*one)
    before = regulator.state_values
    assert regulator.step(*((bad, good) if in_setpoint else (good, bad))) == last
    assert regulator.fault
    assert regulator.state_values == before
    regulator.step(*trace[-1])
    assert not regulator.fault


def test_a_term_that_overflows_changes_no_state() -> None:
    regulator = Regulator(tick_s=T, kp=1e300, ki=1.0)
    regulator.step(1e-300, 0.0)
    before = regulator.state_values
    assert regulator.step(1e300, -1e300) == before["output"]
    assert regulator.fault
    assert regulator.state_values == before


@given(parameters(), st.lists(st.tuples(hostile, hostile), max_size=60))
def test_the_counters_of_saturation_agree_with_the_trace(
    made: dict[str, Any], trace: list[tuple[float, float]]
) -> None:
    regulator = Regulator(**made)
    saturated = slewed = 0
    for setpoint, measured in trace:
        output = regulator.step(setpoint, measured)
        if regulator.fault:
            continue
        terms = regulator.terms
        cut = output != terms["unlimited"]
        at_limit = output in (made["output_min"], made["output_max"])
        assert terms["saturated"] == (0 if not (cut and at_limit) else 1 if output == made["output_max"] else -1)
        saturated += cut and at_limit
        slewed += cut and not at_limit
    assert (regulator.saturated_ticks, regulator.slewed_ticks) == (saturated, slewed)


@pytest.mark.parametrize("anti_windup", ["back-calculation", "conditional"])
def test_after_a_long_saturation_the_output_leaves_its_limit_at_once(anti_windup: str) -> None:
    regulator = Regulator(tick_s=T, kp=0.1, ki=50.0, output_min=-1.0, output_max=1.0, anti_windup=anti_windup)
    for _ in range(10_000):
        assert regulator.step(1.0, 0.0) <= 1.0
    steps = 0
    while regulator.step(-1.0, 0.0) == 1.0:
        steps += 1
    assert steps <= 2


def test_hold_freezes_the_integral_and_leaves_p_and_d_out() -> None:
    regulator = Regulator(tick_s=T, kp=1.0, ki=50.0, kd=0.01, feed_forward=1.0)
    regulator.step(1.0, 0.5)
    integral = regulator.state_values["integral"]
    regulator.hold()
    for measured in (0.4, 0.3, 0.2):
        assert regulator.step(1.0, measured) == 1.0 + integral
    regulator.hold(False)
    regulator.step(1.0, 0.2)
    assert regulator.state_values["integral"] > integral


@pytest.mark.parametrize(
    "refused",
    [
        {"output_min": 2.0, "output_max": 1.0},
        {"kp": math.nan},
        {"ki": math.inf},
        {"tick_s": 0.0},
        {"slew_per_tick": -1.0},
        {"tracking_s": -1.0},
        {"delay_ticks": 8},
        {"integration": "simpson"},
        {"anti_windup": "hope"},
        {"kq": 1.0},
    ],
)
def test_a_refused_change_keeps_the_old_gains(refused: dict[str, Any]) -> None:
    regulator = Regulator(tick_s=T, kp=1.0, ki=2.0)
    regulator.step(1.0, 0.0)
    before, made = regulator.state_values, regulator.parameters
    name = next(iter(refused))
    with pytest.raises(ValueError, match=name):
        regulator.retune(**refused)
    assert (regulator.state_values, regulator.parameters) == (before, made)
    if name != "kq":
        with pytest.raises(ValueError, match=name):
            Regulator(**{"tick_s": T, **refused})


@given(parameters(), st.lists(st.tuples(hostile, hostile), min_size=1, max_size=80))
def test_step_and_run_give_the_same_bits(made: dict[str, Any], trace: list[tuple[float, float]]) -> None:
    one, other = Regulator(**made), Regulator(**made)
    setpoints, measured = np.array(trace).T
    stepped = np.array([one.step(*pair) for pair in trace])
    assert stepped.tobytes() == other.run(setpoints, measured).tobytes()
    assert repr(one.state_values) == repr(other.state_values)


@given(parameters(), st.lists(st.tuples(hostile, hostile), min_size=1, max_size=80))
def test_a_slew_limit_that_never_acts_changes_no_bit(
    made: dict[str, Any], trace: list[tuple[float, float]]
) -> None:
    """With one, the terms that a plain PI does not have are worked out all the same."""
    made |= {"kd": 0.0, "slew_per_tick": 0.0, "delay_ticks": 0, "integration": "backward"}
    made["anti_windup"] = "conditional"
    one, other = Regulator(**made), Regulator(**made | {"slew_per_tick": 1e300})
    setpoints, measured = np.array(trace).T
    assert one.run(setpoints, measured).tobytes() == other.run(setpoints, measured).tobytes()
    assert repr((one.state_values, one.terms, one.fault)) == repr((other.state_values, other.terms, other.fault))


def test_run_refuses_arrays_of_two_lengths() -> None:
    with pytest.raises(ValueError, match="3 values and measured_a 2"):
        Regulator(tick_s=T).run(np.zeros(3), np.zeros(2))


@given(parameters(), traces)
def test_reset_forgets_everything(made: dict[str, Any], trace: list[tuple[float, float]]) -> None:
    regulator = Regulator(**made)
    fresh = regulator.state_values
    first = [regulator.step(*pair) for pair in trace]
    regulator.reset()
    assert regulator.state_values == fresh
    assert [regulator.step(*pair) for pair in trace] == first


@given(parameters())
def test_the_parameters_make_an_equal_regulator(made: dict[str, Any]) -> None:
    assert Regulator(**Regulator(**made).parameters).parameters == Regulator(**made).parameters == made


def test_the_delay_compares_with_the_setpoint_of_then() -> None:
    regulator = Regulator(tick_s=T, kp=1.0, delay_ticks=2)
    assert [regulator.step(setpoint, 0.0) for setpoint in (1.0, 2.0, 3.0, 4.0)] == [0.0, 0.0, 1.0, 2.0]
