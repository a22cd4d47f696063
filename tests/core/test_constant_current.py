"""The bare regulator on any load of its envelope, whatever happens to load, lead and setpoint; and its Python face."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from survey import LOAD_STEPS, PARALLEL_RATIO_MOST, SAMPLES, bars, draw, survey

from ionto_rt import ConstantCurrentRegulator
from ionto_rt.core.constant_current import configure
from ionto_rt.core.trial import Trial

SOUND: dict[str, Any] = {
    "front_end": "voltage",
    "tick_s": 1e-3,
    "full_scale_a": 4e-3,
    "compliance_v": 80.0,
    "ballast_ohm": 2e3,
}


class AnyLoop(RuleBasedStateMachine):
    """A loop of the envelope and what may happen to it.

    Where the current's cap holds: a current source never passes the largest setpoint of its loop's delay by more than
    3 %, at samples and between. A voltage source keeps 15 % at the samples while neither load nor contact changes (the
    survey has the percentiles; this is the hard end) and 6 % on ramps; a step on a load of half the probed impedance
    may reach twice the setpoint. For the d + 2 samples after its load fell, or its lead came back, the current is what
    the circuit makes of the output in force, and no regulator's doing.
    """

    @initialize(seed=st.integers(0, 2**32), front_end=st.sampled_from(["voltage", "current"]))
    def begin(self, seed: int, front_end: str) -> None:
        self.loop = draw(np.random.default_rng(seed), front_end)
        self.trial = Trial(**self.loop)
        verdict, _, _ = self.trial.probe()
        self.regulated = verdict == "good"
        self.voltage = front_end == "voltage"
        self.level = self.largest = self.loop["setpoint_a"]
        self.area = self.parallel = 1.0
        self.is_open = False
        self.last = np.zeros((4, 1))
        self.run(np.full(SAMPLES, self.level))
        self.settled()

    def run(self, setpoints: np.ndarray) -> None:
        self.last = self.trial.run(setpoints)

    def settled(self) -> None:
        if self.regulated and not self.is_open:
            tail = self.last[0][-20:]
            assert np.abs(tail / self.level - 1.0).max() < 0.03

    def keeps(self, row: int, most: float, since: int = 0) -> None:
        assert not self.regulated or np.abs(self.last[row][since:]).max() <= most * self.largest

    @precondition(lambda self: not self.is_open)
    @rule(share=st.floats(0.25, 1.0))
    def step(self, share: float) -> None:
        target = share * self.loop["setpoint_a"]
        self.largest = max(self.level, target)
        self.level = target
        self.run(np.full(SAMPLES, target))
        if self.voltage:
            self.keeps(0, 1.15 if self.area == self.parallel == 1.0 else 2.0)
        else:
            self.keeps(1, 1.03)
        self.settled()

    @precondition(lambda self: not self.is_open)
    @rule(share=st.floats(0.25, 1.0))
    def ramp(self, share: float) -> None:
        target = share * self.loop["setpoint_a"]
        series = self.loop["series_ohm"] + self.loop["ballast_ohm"]
        samples = int(0.5 / self.loop["tick_s"])
        if self.voltage:
            samples = max(samples, int(50 * 2 * (1.0 + self.loop["parallel_ohm"] / series)))
        self.largest = max(self.level, target)
        way = np.minimum(1.0, np.arange(samples + SAMPLES) / samples)
        self.run(self.level + (target - self.level) * way)
        self.level = target
        self.keeps(1, 1.06)
        self.settled()

    @precondition(lambda self: not self.is_open)
    @rule(name=st.sampled_from(sorted(LOAD_STEPS)))
    def load(self, name: str) -> None:
        area = {"area x2": 2.0, "area x0.5": 0.5}.get(name, 1.0)
        parallel = {"Rp x2": 2.0, "Rp x0.5": 0.5}.get(name, 1.0)
        if not (0.5 <= self.area * area <= 2.0 and 0.5 <= self.parallel * parallel <= 2.0):
            return
        series = self.loop["series_ohm"] / (self.area * area) + self.loop["ballast_ohm"]
        rest = self.loop["parallel_ohm"] * self.parallel * parallel / (self.area * area)
        if self.voltage and rest > PARALLEL_RATIO_MOST * series:
            return
        if self.loop["setpoint_a"] * (series + rest) > 0.9 * self.loop["compliance_v"]:
            return
        self.area *= area
        self.parallel *= parallel
        self.largest = self.level
        self.trial.load(**LOAD_STEPS[name])
        self.run(np.full(2 * SAMPLES, self.level))
        if self.voltage:
            # A load of half the impedance lets flow twice the current, until the first answer to it acts.
            self.keeps(0, 2.1)
            self.keeps(0, 1.35, since=self.loop["delay_ticks"] + 60)
        else:
            self.keeps(1, 1.03)
        self.settled()

    @precondition(lambda self: not self.is_open)
    @rule(samples=st.integers(1, 400))
    def lose_contact(self, samples: int) -> None:
        self.trial.open()
        self.is_open = True
        self.open_for = samples
        self.run(np.full(samples, self.level))
        assert not self.last[1].any()
        if samples > self.loop["delay_ticks"] + 3 and self.regulated:
            assert self.trial.regulator["contact_lost"] == 1 or not self.voltage

    @precondition(lambda self: self.is_open)
    @rule()
    def connect(self) -> None:
        self.trial.close()
        self.is_open = False
        self.largest = self.level
        self.run(np.full(4 * SAMPLES, self.level))
        if not self.voltage:
            self.keeps(1, 1.05)
        elif self.open_for > self.loop["delay_ticks"] + 2 and self.area == self.parallel == 1.0:
            # The decay in the open lead is that of the load that was probed.
            self.keeps(1, 1.25)
        self.settled()

    @invariant()
    def nothing_grows_and_nothing_is_undefined(self) -> None:
        if hasattr(self, "last"):
            assert np.isfinite(self.last).all()
            widest = 80.0 if self.voltage else 1.25 * self.loop["full_scale_a"]
            assert np.abs(self.last[3]).max() <= widest


TestAnyLoop = AnyLoop.TestCase
TestAnyLoop.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)


def test_a_slice_of_the_survey_keeps_its_bars() -> None:
    """Two thousand loops; `make survey` runs the rest."""
    # Missed, as the table in docs/regulator.md says: one ramp in thousands, and the slowest recoveries from Rp x2.
    ends = ("ramp overshoot", "Rp x2 N, voltage, 9")
    missed = [
        f"{bar.what}: {bar.measured:.4g}, at most {bar.most}"
        for bar in bars(survey(1000, seed=20))
        if not bar.kept and not bar.what.startswith(ends)
    ]
    assert not missed


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"front_end": "magic"}, "front_end"),
        ({"tick_s": 0.0}, "tick_s"),
        ({"full_scale_a": math.nan}, "full_scale_a"),
        ({"compliance_v": -1.0}, "compliance_v"),
        ({"output_lsb": -1.0}, "output_lsb"),
        ({"ballast_ohm": math.inf}, "ballast_ohm"),
        ({"delay_ticks": 0}, "delay_ticks"),
        ({"delay_ticks": 11}, "delay_ticks"),
        ({"output_min": 5.0, "output_max": 4.0}, "output_min"),
        ({"setpoint_pole": 1.0}, "setpoint_pole"),
        ({"tracking_pole": -0.1}, "tracking_pole"),
        ({"slew_per_tick": math.nan}, "slew_per_tick"),
    ],
)
def test_what_is_out_of_range_is_named(bad: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ConstantCurrentRegulator(**{**SOUND, **bad})


def test_the_probe_never_gets_more_than_fifty_microamperes() -> None:
    given = configure(
        **SOUND, current_lsb_a=1e-7, output_lsb=0.0, output_min=-80.0, output_max=80.0, delay_ticks=2, probe_a=1.0
    )
    assert given["probe"]["current_a"] == 50e-6


def follow(
    regulator: ConstantCurrentRegulator, setpoints: np.ndarray, resistance_ohm: float, seed: int = 1
) -> list[float]:
    """Currents of a resistor behind the regulator's ballast, with a code of noise; delay 2."""
    rng, history, currents = np.random.default_rng(seed), [0.0, 0.0], []
    lsb = SOUND["full_scale_a"] / 32768.0
    for setpoint in setpoints:
        current = history[1] / (resistance_ohm + SOUND["ballast_ohm"])
        currents.append(current)
        measured = lsb * round(current / lsb + rng.normal())
        history = [regulator.step(setpoint, measured, current * resistance_ohm), history[0]]
    return currents


def test_it_probes_and_then_follows_the_setpoint() -> None:
    regulator = ConstantCurrentRegulator(**SOUND)
    assert regulator.verdict == "running"
    currents = follow(regulator, np.full(2000, 1e-3), 5e3)
    assert regulator.verdict == "good"
    assert regulator.identified["resistance_ohm"] == pytest.approx(5e3, rel=0.02)
    assert currents[-1] == pytest.approx(1e-3, rel=2e-3)
    terms = regulator.terms
    assert terms["output"] == pytest.approx(terms["proportional"] + terms["integral"] + terms["feed_forward"])
    assert set(terms) == {
        "output", "proportional", "integral", "derivative", "feed_forward", "unlimited", "saturated",
    }  # fmt: skip


@pytest.mark.parametrize("delay", [1, 2, 3, 4])
def test_a_loop_that_was_told_too_much_impedance_calms_down(delay: int) -> None:
    """Skin that conducts six times better than the probe saw: without the rule the loop rings for good."""
    peaks = {}
    for jump_ratio in (0.0, 1.3):
        trial = Trial(
            front_end="voltage", series_ohm=200.0, parallel_ohm=8e3, capacitance_f=1e-9, tick_s=1e-3,
            delay_ticks=delay, setpoint_a=1e-3, full_scale_a=4e-3, ballast_ohm=2e3, seed=3,
            options={"jump_ratio": jump_ratio, "schedule_ticks": 0},
        )  # fmt: skip
        assert trial.probe()[0] == "good"
        model = trial.regulator["model"]
        trial.assume({**model, "gain": model["gain"] / 6.0, "gain_before": model["gain_before"] / 6.0})
        rows = trial.run(np.minimum(1.0, np.arange(3000) / 1000.0) * 1e-3)
        peaks[jump_ratio] = np.abs(rows[0][1500:] / 1e-3 - 1.0).max()
    assert peaks[0.0] > 0.5
    assert peaks[1.3] < 0.02


def test_the_hand_takes_over_and_gives_back_without_a_jump() -> None:
    regulator = ConstantCurrentRegulator(**SOUND)
    with pytest.raises(ValueError, match="not identified yet"):
        regulator.manual(3.0)
    follow(regulator, np.full(2000, 1e-3), 5e3)
    regulator.manual(math.copysign(regulator.terms["output"], 1.0))
    held = 1.1 * regulator.terms["output"]
    regulator.manual(held)
    current = held / (5e3 + SOUND["ballast_ohm"])
    outputs = [regulator.step(1e-3, current, current * 5e3) for _ in range(50)]
    assert outputs == [held] * 50, "whatever the setpoint"
    regulator.automatic()
    assert regulator.step(current, current, current * 5e3) == pytest.approx(held, rel=1e-3)
    first = regulator.step(1e-3, current, current * 5e3)
    assert 0.9 * held < first < held, "and goes towards the setpoint from there"


@settings(max_examples=20)
@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3), st.integers(0, 1500))
def test_a_non_finite_input_changes_no_state_at_any_time(bad: float, which: int, ticks: int) -> None:
    """While it probes the setpoint is not looked at, nor the tone."""
    regulator = ConstantCurrentRegulator(**SOUND)
    follow(regulator, np.full(ticks, 1e-3), 5e3)
    before, running = repr(regulator.state_values), regulator.verdict == "running"
    inputs = [1e-3, 1e-3, 5.0, 0.0]
    inputs[which] = bad
    if running and which in (0, 3):
        return
    output = regulator.step(*inputs)
    assert regulator.fault
    assert math.isfinite(output)
    assert repr(regulator.state_values) == before


def test_a_refused_load_gets_no_current() -> None:
    regulator = ConstantCurrentRegulator(**SOUND)
    follow(regulator, np.full(3000, 1e-3), 10.0)
    assert regulator.verdict == "short"
    assert regulator.step(4e-3, 0.0) == 0.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_both_directions_are_the_same(sign: float) -> None:
    regulator = ConstantCurrentRegulator(**SOUND)
    assert follow(regulator, np.full(2000, sign * 1e-3), 5e3)[-1] == pytest.approx(sign * 1e-3, rel=2e-3)


def test_importing_the_package_does_not_load_it() -> None:
    import ionto_rt

    assert "ConstantCurrentRegulator" in ionto_rt.__all__


FASTER_THAN_THE_SAMPLES: dict[str, dict[str, Any]] = {
    # The time constant is a fifth of the sample period: pole over gain_before was fifteen times the series impedance.
    "33 kohm": {
        "series_ohm": 447.0, "parallel_ohm": 33395.0, "capacitance_f": 1.6e-8, "tick_s": 1 / 3602, "delay_ticks": 4,
        "setpoint_a": 4.47e-4, "full_scale_a": 4e-3, "ballast_ohm": 2e3,
    },
    "148 kohm": {
        "series_ohm": 333.0, "parallel_ohm": 147549.0, "capacitance_f": 2.1e-9, "tick_s": 1 / 4072, "delay_ticks": 1,
        "setpoint_a": 1.86e-4, "full_scale_a": 4e-4, "ballast_ohm": 20e3,
    },
    "41 kohm": {
        "series_ohm": 225.0, "parallel_ohm": 40958.0, "capacitance_f": 1.987e-8, "tick_s": 1 / 5289, "delay_ticks": 2,
        "setpoint_a": 4.81e-4, "full_scale_a": 4e-3, "ballast_ohm": 2e3,
    },
}  # fmt: skip


def reconnect_peak(loop: dict[str, Any], samples: int, seed: int) -> float:
    """Of the setpoint, between samples too, after an open of so many."""
    trial = Trial(front_end="voltage", **loop, seed=seed)
    assert trial.probe()[0] == "good"
    setpoints = np.full(1500, loop["setpoint_a"])
    trial.run(setpoints[:300])
    trial.open()
    trial.run(setpoints[:samples])
    trial.close()
    return float(trial.run(setpoints)[1].max() / loop["setpoint_a"])


@pytest.mark.parametrize(("load", "samples"), [("33 kohm", 169), ("148 kohm", 121)])
def test_a_load_faster_than_the_samples_reconnects_without_a_peak(load: str, samples: int) -> None:
    """Twenty probes, each with its own noise: one in twenty takes the pole for a seen one."""
    peaks = sorted(reconnect_peak(FASTER_THAN_THE_SAMPLES[load], samples, seed) for seed in range(1, 21))
    assert peaks[-2] <= 1.05
    assert peaks[-1] <= 1.26


@pytest.mark.xfail(reason="how fast the open load discharges cannot be seen: up to 2.3 of the setpoint", strict=True)
def test_a_short_open_of_a_load_faster_than_the_samples_has_no_peak() -> None:
    assert max(reconnect_peak(FASTER_THAN_THE_SAMPLES["41 kohm"], 7, seed) for seed in range(1, 21)) <= 1.05
