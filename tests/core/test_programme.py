"""The programme: doses to the tick, widths to the sample, and what pauses, stops and derating do to them.

The plant here is ideal but for the loop's delay: the setpoint of tick k is the current of sample k + 2. Time is in
ticks of 1 s and current in A, so charge is a plain sum of levels.
"""

import ctypes
import math
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ionto_rt.codes import Contact, EndReason, OperatorCommand, Phase, ProbeVerdict, SegmentKind
from support import fill, function, segment, struct

HIGHEST = 10.0
CONTACT = 0.5
FINISHED = (Phase.COMPLETE, Phase.ABORTED, Phase.FAULTED)

levels = st.floats(0.2, 8.0)
ramps = st.integers(0, 40)


class Course:
    """A programme on the ideal delayed plant, below its Python face. A rest of no time leads in, as a check would."""

    def __init__(self, segments: list[dict[str, Any]], *, load_ohm: float = 0.0, **config: float) -> None:
        segments = [segment(SegmentKind.REST, step=-1, duration_ticks=1), *segments]
        made = {
            "tick_s": 1.0,
            "polarity": -1.0,
            "level_limit_a": HIGHEST,
            "slope_up_a_per_tick": 0.25,
            "slope_down_a_per_tick": 0.5,
            "compliance_v": 0.0,
            "contact_level_a": CONTACT,
            "zero_tolerance_a": 0.01,
            "loop_delay_ticks": 1.0,
            "compliance_ticks": 5,
            "segments": len(segments),
        } | config
        self.config: Any = fill(struct("ProgrammeConfig")(), made)
        self.segments: Any = (struct("Segment") * len(segments))()
        for at, one in enumerate(segments):
            fill(self.segments[at], one)
        self.state: Any = struct("ProgrammeState")(ceiling_a=made["level_limit_a"])
        self.given: Any = struct("ProgrammeInput")()
        self.setpoint: Any = struct("Setpoint")()
        step = function("programme", "programme_step", None, *[ctypes.c_void_p] * 5)
        places = [ctypes.byref(x) for x in (self.state, self.config, self.segments, self.given, self.setpoint)]
        self._step = lambda: step(*places)
        self.load_ohm = load_ohm
        self.on_the_way = [0.0, 0.0]
        self.net = 0.0
        self.levels: list[float] = []
        self.phases: list[Phase] = []

    def tick(self, **changes: Any) -> float:
        """One tick; the level it sets, in the treatment's direction."""
        polarity, load = self.config.polarity, self.load_ohm
        current = self.on_the_way.pop(0)
        if load and self.config.compliance_v:
            most = self.config.compliance_v / load
            current = max(-most, min(most, current))
        self.net += current
        given = {
            "ticks": 1,
            "contact": Contact.GOOD,
            "pause": 0,
            "operator_command": 0,
            "operator_value_a": 0.0,
            "stop": 0,
            "current_a": current,
            "redundant_a": current,
            "voltage_v": current * load,
            "probe_verdict": ProbeVerdict.RUNNING,
            "net_c": self.net,
        } | changes
        fill(self.given, given)
        self._step()
        self.on_the_way.append(self.setpoint.current_a if self.setpoint.close_relay else 0.0)
        self.levels.append(polarity * self.setpoint.level_a)
        self.phases.append(Phase(self.setpoint.phase))
        return self.levels[-1]

    @property
    def ended(self) -> bool:
        return self.setpoint.end_reason != EndReason.NONE

    @property
    def delivered(self) -> float:
        return float(self.config.polarity * self.net)

    def run(self, ticks: int, **changes: Any) -> None:
        for _ in range(ticks):
            self.tick(**changes)

    def finish(self, most: int = 100_000) -> EndReason:
        """Run to the end, and on until all of the current has been counted."""
        for _ in range(most):
            if self.ended:
                break
            self.tick()
        assert self.ended, f"no end in {most} ticks"
        self.run(3)
        return EndReason(self.setpoint.end_reason)


def deliver(level: float, ramp_in: int, ramp_out: int, *, dose: float = 0.0, ticks: int = 0, start: float = 0.0) -> Any:
    """The segments of one step as a plan compiles them, from level `start`; charge_total_c is for the caller."""
    out = level / ramp_out if ramp_out else 0.0
    made = [
        segment(
            SegmentKind.DELIVER,
            level_a=level,
            slope_a_per_tick=abs(level - start) / ramp_in if ramp_in else 0.0,
            ramp_out_a_per_tick=out,
            charge_c=dose,
            duration_ticks=ticks,
        )
    ]
    return [*made, segment(SegmentKind.RAMP_DOWN, slope_a_per_tick=out)]


def total(segments: list[dict[str, Any]], *charges: float) -> list[dict[str, Any]]:
    """The segments with the charge that each never passes: one number for each DELIVER, summed up."""
    so_far, left = 0.0, list(charges)
    for one in segments:
        if one["kind"] == SegmentKind.DELIVER:
            so_far += left.pop(0)
        one["charge_total_c"] = so_far
    return segments


def one_dose(level: float, ramp_in: int, ramp_out: int, hold: float) -> tuple[float, list[dict[str, Any]]]:
    """A dose that holds its level for `hold` ticks, and its segments."""
    dose = level * (0.5 * ramp_in + hold + 0.5 * ramp_out)
    return dose, total(deliver(level, ramp_in, ramp_out, dose=dose), dose)


@given(levels, ramps, ramps, st.floats(2.0, 200.0))
def test_a_dose_ends_within_a_tick_at_its_setpoint(level: float, ramp_in: int, ramp_out: int, hold: float) -> None:
    dose, segments = one_dose(level, ramp_in, ramp_out, hold)
    course = Course(segments)
    assert course.finish() == EndReason.COMPLETE
    assert abs(course.delivered - dose) <= level
    assert max(course.levels) == level


@given(st.lists(st.tuples(levels, ramps, ramps, st.floats(2.0, 60.0), st.integers(1, 20)), min_size=1, max_size=5))
def test_doses_with_rests_between_sum_up(steps: list[tuple[float, int, int, float, int]]) -> None:
    segments, doses = [], []
    for level, ramp_in, ramp_out, hold, rest in steps:
        dose, own = one_dose(level, ramp_in, ramp_out, hold)
        segments += [*own, segment(SegmentKind.REST, duration_ticks=rest)]
        doses.append(dose)
    course = Course(total(segments[:-1], *doses))
    assert course.finish() == EndReason.COMPLETE
    allowed = sum(level for level, *_ in steps)
    assert sum(doses) - allowed <= course.delivered <= sum(doses) + max(level for level, *_ in steps)


@given(
    st.lists(st.tuples(levels, st.integers(1, 40), st.floats(3.0, 60.0)), min_size=2, max_size=5), st.integers(1, 40)
)
def test_doses_at_one_level_after_another_sum_up(steps: list[tuple[float, int, float]], ramp_out: int) -> None:
    segments, doses, before = [], [], 0.0
    for at, (level, ramp_in, hold) in enumerate(steps):
        last = at == len(steps) - 1
        dose = 0.5 * (before + level) * ramp_in + level * hold + (0.5 * level * ramp_out if last else 0.0)
        segments += deliver(level, ramp_in, ramp_out if last else 0, dose=dose, start=before)[: 2 if last else 1]
        doses.append(dose)
        before = level
    course = Course(total(segments, *doses))
    assert course.finish() == EndReason.COMPLETE
    highest = max(level for level, *_ in steps)
    assert -len(steps) * highest <= course.delivered - sum(doses) <= highest


@given(levels, st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_rectangular_pulses_and_gaps_are_exact_to_the_sample(level: float, pulses: list[tuple[int, int]]) -> None:
    segments, charges = [], []
    for width, gap in pulses:
        segments += [*deliver(level, 0, 0, ticks=width), segment(SegmentKind.REST, duration_ticks=gap)]
        charges.append(level * width)
    course = Course(total(segments, *charges))
    assert course.finish() == EndReason.COMPLETE
    runs = [(set_level, len(list(run))) for set_level, run in groupby(course.levels)]
    wanted = [run for width, gap in pulses for run in ((level, width), (0.0, gap))]
    assert runs[:-1] == wanted[:-1]
    assert runs[-1][1] >= pulses[-1][1]


@given(levels, st.integers(1, 40), st.integers(0, 60), st.integers(0, 60), st.integers(2, 4))
def test_pulses_with_ramps_have_exact_widths_and_pauses(
    level: float, ramp: int, hold: int, rest: int, times: int
) -> None:
    """From the start of a ramp in to that of the ramp out is the width, from there to the next ramp in the pause."""
    width, pause = ramp + hold, ramp + rest
    segments = []
    for _ in range(times):
        segments += deliver(level, ramp, ramp, ticks=width)
        if rest:
            segments.append(segment(SegmentKind.REST, duration_ticks=rest))
    course = Course(total(segments, *[level * (ramp + hold)] * times))
    assert course.finish() == EndReason.COMPLETE
    for turn in range(times):
        start = turn * (width + pause)
        up = [level * min(1.0, (k + 1) / ramp) for k in range(width)]
        down = [level * max(0.0, 1.0 - (k + 1) / ramp) for k in range(pause)]
        assert course.levels[start : start + width] == pytest.approx(up, abs=1e-9 * level)
        shown = course.levels[start + width : start + width + pause]
        assert shown == pytest.approx(down[: len(shown)], abs=1e-9 * level)
    assert course.delivered == pytest.approx(times * level * (ramp + hold), abs=1e-6 * level)


@given(levels, ramps, ramps, st.floats(2.0, 60.0), st.data())
def test_a_pause_freezes_the_dose_but_for_its_ramps(
    level: float, ramp_in: int, ramp_out: int, hold: float, data: st.DataObject
) -> None:
    dose, segments = one_dose(level, ramp_in, ramp_out, hold)
    course = Course(segments)
    course.run(data.draw(st.integers(1, max(1, int(ramp_in + hold - 2)))))
    at, before = course.levels[-1], course.delivered + abs(sum(course.on_the_way))
    course.tick(operator_command=OperatorCommand.PAUSE)
    course.run(data.draw(st.integers(0, 100)))
    slope = course.config.slope_down_a_per_tick
    while course.levels[-1] > 0.0:
        assert course.tick() <= max(0.0, course.levels[-2] - slope) + 1e-9
    course.run(50)
    assert course.phases[-1] == Phase.PAUSE
    assert course.levels[-50:] == [0.0] * 50
    assert course.delivered - before <= 0.5 * at * at / slope + 1e-9
    resumed = len(course.levels)
    course.tick(operator_command=OperatorCommand.RESUME)
    assert course.finish() == EndReason.COMPLETE
    assert abs(course.delivered - dose) <= level, "paused or not, the dose is the dose"
    rises = [b - a for a, b in pairwise([0.0, *course.levels[resumed:]])]
    assert max(rises) <= course.config.slope_up_a_per_tick + 1e-9


@given(levels, st.integers(1, 40), st.integers(1, 40), st.floats(2.0, 60.0), st.floats(0.05, 8.0), st.data())
def test_a_pause_shortly_before_the_end_never_overshoots_the_dose(
    level: float, ramp_in: int, ramp_out: int, hold: float, slope_up: float, data: st.DataObject
) -> None:
    """However steep the way back up is, beside the ramp out."""
    dose, segments = one_dose(level, ramp_in, ramp_out, hold)
    course = Course(segments, slope_up_a_per_tick=slope_up)
    course.run(max(1, int(ramp_in + hold) - data.draw(st.integers(0, 10))))
    course.run(20 + int(level / 0.5), pause=1)
    course.finish()
    assert course.delivered <= dose + level


def test_a_pause_of_the_guard_and_one_of_the_operator_are_one_pause() -> None:
    _, segments = one_dose(2.0, 5, 5, 50.0)
    course = Course(segments)
    course.run(20)
    course.tick(pause=1, operator_command=OperatorCommand.PAUSE)
    course.run(30, pause=1)
    course.run(30)
    assert course.levels[-1] == 0.0, "the guard lets go, the operator does not"
    course.tick(pause=1, operator_command=OperatorCommand.RESUME)
    course.run(30, pause=1)
    assert course.levels[-1] == 0.0, "the operator lets go, the guard does not"
    assert course.tick() > 0.0


def test_time_stands_still_in_a_pause() -> None:
    course = Course(total(deliver(2.0, 0, 0, ticks=30), 60.0), slope_up_a_per_tick=10.0, slope_down_a_per_tick=10.0)
    course.run(10)
    course.run(100, pause=1)
    course.finish()
    assert sum(level == 2.0 for level in course.levels) == 30


@example(level=1.0, trims=[(-1.0, 1), (1.0, 1)])
@given(levels, st.lists(st.tuples(st.floats(-20.0, 20.0), st.integers(1, 30)), max_size=6))
def test_trim_moves_the_level_within_the_limits_and_along_ramps(level: float, trims: list[tuple[float, int]]) -> None:
    course = Course([segment(SegmentKind.DELIVER, level_a=level)])
    wanted = 0.0
    course.run(5)
    for trim, ticks in trims:
        wanted = max(-HIGHEST, min(HIGHEST, wanted + trim))
        course.tick(operator_command=OperatorCommand.TRIM, operator_value_a=trim)
        course.run(ticks)
    course.run(100)
    assert course.levels[-1] == pytest.approx(max(0.0, min(HIGHEST, level + wanted)), abs=1e-12)
    assert all(0.0 <= one <= HIGHEST for one in course.levels)
    steps = [b - a for a, b in pairwise(course.levels[5:])]
    assert max(steps) <= course.config.slope_up_a_per_tick + 1e-9
    assert min(steps) >= -course.config.slope_down_a_per_tick - 1e-9


@pytest.mark.parametrize("trim", [math.nan, math.inf, -math.inf])
def test_a_trim_that_is_no_number_is_none(trim: float) -> None:
    course = Course([segment(SegmentKind.DELIVER, level_a=3.0)])
    course.run(5)
    course.tick(operator_command=OperatorCommand.TRIM, operator_value_a=trim)
    course.run(50)
    assert course.levels[-1] == 3.0


@given(levels, st.integers(1, 40), st.floats(2.0, 60.0), st.floats(-4.0, 4.0))
def test_a_trimmed_dose_is_the_same_dose(level: float, ramp: int, hold: float, trim: float) -> None:
    assume(level + trim > 0.1)
    dose, segments = one_dose(level, ramp, ramp, hold)
    course = Course(segments)
    course.run(ramp)
    course.tick(operator_command=OperatorCommand.TRIM, operator_value_a=trim)
    assert course.finish() == EndReason.COMPLETE
    assert abs(course.delivered - dose) <= max(level, level + trim)


@given(levels, st.integers(1, 40), st.floats(5.0, 60.0), st.floats(0.1, 0.9), st.integers(0, 60))
def test_at_the_compliance_limit_the_time_grows_and_the_dose_stays(
    level: float, ramp: int, hold: float, share: float, heals_after: int
) -> None:
    assume(share * level > 1.1 * CONTACT)
    dose, segments = one_dose(level, ramp, ramp, hold)
    free = Course(segments)
    free.finish()
    course = Course(segments, compliance_v=60.0, load_ohm=60.0 / (share * level), slope_up_a_per_tick=0.02)
    course.run(heals_after)
    limited = course.setpoint.limited
    while not course.ended and len(course.levels) < 3 * heals_after:
        course.tick()
        limited |= course.setpoint.limited
    course.load_ohm = course.load_ohm if heals_after % 2 else 1.0
    assert course.finish() == EndReason.COMPLETE
    assert abs(course.delivered - dose) <= level
    # A lower level has a shorter ramp down, by less than the time grew but for some ticks.
    assert len(course.levels) >= len(free.levels) - 3


def test_derating_asks_for_what_can_flow_and_comes_back_on_a_ramp() -> None:
    course = Course([segment(SegmentKind.DELIVER, level_a=4.0)], compliance_v=60.0, load_ohm=30.0)
    course.run(2 + 4)
    assert course.levels[-1] == 4.0
    course.tick()
    assert course.setpoint.limited
    assert course.levels[-1] == pytest.approx(0.98 * 2.0)
    assert -course.setpoint.prescribed_a == 4.0
    course.load_ohm = 1.0
    back = len(course.levels)
    course.run(30)
    assert course.levels[-1] == 4.0
    assert not course.setpoint.limited
    assert max(b - a for a, b in pairwise(course.levels[back:])) <= course.config.slope_up_a_per_tick + 1e-12


@pytest.mark.parametrize("at_limit_ticks", [4, 5])
def test_derating_begins_after_its_time_at_95_percent_of_the_limit(at_limit_ticks: int) -> None:
    course = Course([segment(SegmentKind.DELIVER, level_a=4.0)], compliance_v=60.0)
    course.run(10)
    course.run(20, voltage_v=math.nextafter(57.0, 0.0))
    course.run(at_limit_ticks, voltage_v=-57.0)
    assert course.setpoint.limited == (at_limit_ticks >= 5)


@pytest.mark.parametrize("way", [{"stop": 1}, {"operator_command": OperatorCommand.STOP}])
@given(levels, st.integers(0, 40), st.integers(1, 120))
def test_stop_ramps_down_from_anywhere_and_ends(way: dict[str, int], level: float, ramp: int, after: int) -> None:
    _, segments = one_dose(level, ramp, ramp, 60.0)
    course = Course(segments)
    course.run(after)
    assume(not course.ended)
    at = course.levels[-1]
    course.tick(**way)
    reason = course.finish()
    assert reason == EndReason.OPERATOR
    falling = course.levels[after - 1 :]
    assert all(b <= max(0.0, a - course.config.slope_down_a_per_tick) + 1e-9 for a, b in pairwise(falling))
    assert len([one for one in falling if one > 0.0]) <= at / course.config.slope_down_a_per_tick + 1
    assert course.phases[-1] == Phase.ABORTED


@pytest.mark.parametrize("way", [{"stop": 1}, {"pause": 1}, {"operator_command": OperatorCommand.PAUSE}])
def test_a_derated_current_falls_from_where_it_is(way: dict[str, int]) -> None:
    """Not from the prescribed level: that would keep it up for as long as the ramp takes to come down to it."""
    course = Course([segment(SegmentKind.DELIVER, level_a=8.0)], compliance_v=60.0, load_ohm=60.0)
    course.run(30)
    at = course.levels[-1]
    assert at < 1.5
    assert course.tick(**way) <= at - course.config.slope_down_a_per_tick + 1e-12


def test_lost_contact_drops_to_the_contact_level_and_re_ramps_from_there() -> None:
    course = Course([segment(SegmentKind.DELIVER, level_a=4.0)])
    course.run(10)
    assert course.tick(contact=Contact.LOST) == CONTACT
    course.run(100, contact=Contact.LOST)
    assert course.levels[-1] == CONTACT
    rising = [CONTACT, *(course.tick() for _ in range(20))]
    assert rising == pytest.approx([min(4.0, CONTACT + 0.25 * k) for k in range(21)], abs=1e-12)


@given(levels, st.integers(1, 40), st.floats(5.0, 60.0), st.lists(st.tuples(st.integers(1, 20), st.integers(1, 4))))
def test_interrupted_contact_never_overshoots_the_dose(
    level: float, ramp: int, hold: float, opens: list[tuple[int, int]]
) -> None:
    dose, segments = one_dose(level, ramp, ramp, hold)
    course = Course(segments)
    for good, lost in opens:
        course.run(good)
        course.run(lost, contact=Contact.LOST)
    assert course.finish() == EndReason.COMPLETE
    assert course.delivered <= dose + level


CHECK = segment(SegmentKind.CONTACT_CHECK, step=-1, level_a=0.5)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (ProbeVerdict.GOOD, EndReason.COMPLETE),
        (ProbeVerdict.OPEN, EndReason.CONTACT_OPEN),
        (ProbeVerdict.SHORT, EndReason.CONTACT_SHORT),
        (ProbeVerdict.OUTSIDE, EndReason.CONTACT_OUTSIDE),
        (ProbeVerdict.UNCLEAR, EndReason.CONTACT_UNCLEAR),
    ],
)
def test_the_contact_check_lasts_until_the_probe_has_its_verdict(verdict: ProbeVerdict, reason: EndReason) -> None:
    course = Course([CHECK])
    course.run(50, probe_verdict=ProbeVerdict.RUNNING)
    assert course.setpoint.probing
    assert set(course.levels) == {0.0}, "the probe has the output, the programme asks for nothing"
    course.tick(probe_verdict=verdict)
    assert course.setpoint.end_reason == reason
    assert not course.setpoint.probing
    assert not course.setpoint.close_relay


def test_a_pause_in_the_contact_check_takes_the_probe_away_and_the_check_begins_again() -> None:
    course = Course([CHECK])
    course.run(20)
    course.tick(operator_command=OperatorCommand.PAUSE)
    course.run(300)
    assert not course.setpoint.probing
    assert course.setpoint.close_relay
    assert course.phases[-1] == Phase.PAUSE
    course.tick(operator_command=OperatorCommand.RESUME)
    assert course.setpoint.probing
    course.tick(probe_verdict=ProbeVerdict.GOOD)
    assert course.setpoint.end_reason == EndReason.COMPLETE


def test_a_stop_in_the_contact_check_ends_at_once() -> None:
    course = Course([CHECK])
    course.run(20)
    course.tick(operator_command=OperatorCommand.STOP)
    assert course.setpoint.end_reason == EndReason.OPERATOR
    assert not course.setpoint.close_relay


@pytest.mark.parametrize(("field", "value"), [("current_a", 0.0101), ("current_a", -0.0101), ("redundant_a", 0.0101)])
def test_the_self_test_refuses_a_reading_without_current(field: str, value: float) -> None:
    test = segment(SegmentKind.SELF_TEST, step=-1, duration_ticks=20)
    course = Course([test])
    while not course.ended:
        course.tick(**{field: value * 0.99})
        assert not course.setpoint.close_relay
    assert course.setpoint.end_reason == EndReason.COMPLETE
    course = Course([test])
    while not course.ended:
        course.tick(**{field: value})
    assert (course.setpoint.end_reason, course.phases[-1]) == (EndReason.SELF_TEST, Phase.FAULTED)


@given(levels, ramps, st.floats(5.0, 60.0), st.lists(st.integers(0, 6), max_size=20))
def test_lost_samples_pass_time_and_never_add_charge(level: float, ramp: int, hold: float, gaps: list[int]) -> None:
    """While samples are lost the last setpoint goes on; the charge of that time is counted when the next one comes."""
    dose, segments = one_dose(level, ramp, ramp, hold)
    course = Course(segments)
    for gap in gaps:
        if course.ended:
            break
        for _ in range(gap):
            course.net += course.on_the_way.pop(0)
            course.on_the_way.append(course.on_the_way[-1])
        course.tick(ticks=1 + gap)
    assert course.finish() == EndReason.COMPLETE
    assert course.delivered <= dose + level * (1 + max(gaps, default=0))


def test_without_a_sample_only_the_operator_is_served() -> None:
    """A refused sample says nothing; the operator's word that came with it still counts."""
    _, segments = one_dose(2.0, 5, 5, 50.0)
    course = Course(segments)
    course.run(20)
    before = bytes(course.state)
    course.tick(ticks=0, current_a=9.0, voltage_v=99.0, contact=Contact.LOST, pause=1)
    assert bytes(course.state) == before
    course.tick(ticks=0, operator_command=OperatorCommand.STOP)
    assert course.finish() == EndReason.OPERATOR


def test_after_the_end_nothing_moves() -> None:
    _, segments = one_dose(2.0, 5, 5, 10.0)
    course = Course(segments)
    course.finish()
    before = bytes(course.state)
    for command in OperatorCommand:
        course.tick(operator_command=command, operator_value_a=1.0, contact=Contact.LOST, voltage_v=1e3)
    assert bytes(course.state) == before
    assert course.levels[-1] == 0.0
    assert not course.setpoint.close_relay
