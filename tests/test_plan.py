"""Plans: the segments deliver the prescription, with exact widths, gaps and doses."""

import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ionto_rt.codes as codes
from ionto_rt.codes import MAX_SEGMENTS, FrontEnd, OnTrip, SegmentKind
from ionto_rt.core.constant_current import nominal_probe_ticks
from ionto_rt.errors import RefusedError
from ionto_rt.plan import Plan, Segment, compile_plan, format_mass, format_plan, format_plans
from ionto_rt.safety import DeviceCapabilities, resolve_channels, resolve_limits
from ionto_rt.treatment import Treatment
from treatments import CATALOGUE, DEVICE, mutated, perfusion, together, treatment

EXAMPLES = Path(__file__).parent.parent / "examples"
EIGHT = replace(DEVICE, channels=8)


def plans_of(of: Treatment, tick_s: float = 1e-3, device: DeviceCapabilities | None = EIGHT) -> list[Plan]:
    limits = resolve_channels(of, CATALOGUE, device)
    return [compile_plan(channel, found, tick_s) for channel, found in zip(of.channels, limits, strict=True)]


def plan_of(of: Treatment, tick_s: float = 1e-3, device: DeviceCapabilities | None = DEVICE) -> Plan:
    return compile_plan(of, resolve_limits(of, CATALOGUE, device), tick_s)


def example(name: str) -> Plan:
    return plan_of(Treatment.load(EXAMPLES / f"{name}.toml"))


def kinds(plan: Plan) -> list[SegmentKind]:
    return [SegmentKind(segment["kind"]) for segment in plan.segments]


def delivering(plan: Plan) -> list[Segment]:
    return [segment for segment in plan.segments if segment["kind"] == SegmentKind.DELIVER]


def run_ideally(plan: Plan) -> tuple[list[tuple[int, float]], float]:
    """Corners (tick, level) and charge of a source that follows the segments exactly, in continuous time."""
    corners: list[tuple[int, float]] = []
    level_a = charge_c = time_ticks = 0.0

    def ramp(to_a: float, slope: float) -> float:
        nonlocal level_a, charge_c, time_ticks
        ticks = abs(to_a - level_a) / slope if slope > 0.0 else 0.0
        charge_c += 0.5 * (level_a + to_a) * ticks * plan.tick_s
        corners.append((round(time_ticks), level_a))
        time_ticks += ticks
        level_a = to_a
        corners.append((round(time_ticks), level_a))
        return ticks

    for segment in plan.segments:
        if segment["kind"] == SegmentKind.DELIVER:
            start_c, start_ticks = charge_c, time_ticks
            ramp(segment["level_a"], segment["slope_a_per_tick"])
            if segment["duration_ticks"]:
                hold_ticks = segment["duration_ticks"] - (time_ticks - start_ticks)
            else:
                out = segment["ramp_out_a_per_tick"]
                out_c = 0.5 * level_a * level_a / out * plan.tick_s if out > 0.0 else 0.0
                hold_ticks = (segment["charge_c"] - (charge_c - start_c) - out_c) / level_a / plan.tick_s
            assert hold_ticks > -1e-6
            charge_c += level_a * hold_ticks * plan.tick_s
            time_ticks += hold_ticks
        elif segment["kind"] == SegmentKind.RAMP_DOWN:
            ramp(0.0, segment["slope_a_per_tick"])
        elif segment["kind"] == SegmentKind.CONTACT_CHECK:
            time_ticks = round(plan.service_s / plan.tick_s)
        else:
            assert level_a == 0.0
            time_ticks += segment["duration_ticks"]
        assert charge_c <= segment["charge_total_c"] * (1 + 1e-9) + 1e-15
    assert level_a == 0.0
    assert time_ticks * plan.tick_s == pytest.approx(plan.nominal_duration_s, rel=1e-9)
    return corners, charge_c


def test_segments_have_exactly_the_fields_of_the_struct() -> None:
    types = (Path(codes.__file__).parent / "core" / "types.pxd").read_text(encoding="utf-8")
    body = re.search(r"cdef struct Segment:\n((?:    .*\n)+)", types)
    assert body is not None
    fields = re.findall(r"^    \w+ (\w+)", body.group(1), re.MULTILINE)
    for segment in example("varying-dose").segments:
        assert list(segment) == fields


def test_dexamethasone_40() -> None:
    plan = example("dexamethasone-40")
    assert kinds(plan) == [
        SegmentKind.SELF_TEST,
        SegmentKind.CONTACT_CHECK,
        SegmentKind.DELIVER,
        SegmentKind.RAMP_DOWN,
    ]
    assert plan.segments[0]["duration_ticks"] == 500
    assert plan.segments[1]["duration_ticks"] == 0, "the probe ends it"
    assert plan.segments[1]["level_a"] == 50e-6
    assert plan.segments[2] == {
        "kind": SegmentKind.DELIVER,
        "step": 0,
        "duration_ticks": 0,
        "level_a": 0.004,
        "slope_a_per_tick": 0.004 / 30000,
        "ramp_out_a_per_tick": 0.004 / 30000,
        "charge_c": 2.4,
        "charge_total_c": 2.4,
    }
    assert plan.segments[3]["slope_a_per_tick"] == 0.004 / 30000
    assert (plan.polarity, plan.prescribed_c, plan.max_level_a) == (-1, 2.4, 0.004)
    assert plan.service_s == pytest.approx(0.5 + 1e-3 * nominal_probe_ticks(1e-3))
    assert plan.nominal_duration_s == pytest.approx(630.0 + plan.service_s)


def test_lidocaine_takes_the_ramp_of_the_catalogue() -> None:
    plan = example("lidocaine")
    assert (plan.polarity, plan.prescribed_c, plan.max_level_a) == (1, 1.062, 0.00177)
    assert plan.steps[0].ramp_in_s == plan.steps[0].ramp_out_s == pytest.approx(30.0)


def test_perfusion_pulses_and_gaps_are_exact_to_the_tick() -> None:
    plan = example("perfusion-pulses")
    corners, charge_c = run_ideally(plan)
    starts = [round(plan.service_s / plan.tick_s) + 80000 * pulse for pulse in range(3)]
    assert corners == [
        corner
        for start in starts
        for corner in ((start, 0.0), (start, 1e-4), (start + 20000, 1e-4), (start + 20000, 0.0))
    ]
    assert charge_c == pytest.approx(0.006, rel=1e-12)
    assert plan.prescribed_c == 0.006
    assert plan.segments[1]["level_a"] == pytest.approx(30e-6)


def test_varying_dose_sums_its_steps() -> None:
    plan = example("varying-dose")
    assert plan.prescribed_c == pytest.approx(33 * 0.06, rel=1e-15)
    assert [segment["level_a"] for segment in delivering(plan)] == [0.001, 0.003, 0.002, 0.002]
    first, second = delivering(plan)[:2]
    assert first["ramp_out_a_per_tick"] == 0.0
    assert second["slope_a_per_tick"] == pytest.approx(0.002 / 30000)
    assert second["ramp_out_a_per_tick"] == pytest.approx(0.003 / 30000)
    assert run_ideally(plan)[1] == pytest.approx(plan.prescribed_c, rel=1e-12)


def test_width_at_half_level_is_the_time_and_the_gap_is_the_pause() -> None:
    pulse = '[[steps]]\ncurrent = "80 uA"\ntime = "20 s"\nramp = "0.2 s"\n'
    plan = plan_of(perfusion(f'{pulse}[[steps]]\npause = "60 s"\n{pulse}'))
    corners, _ = run_ideally(plan)
    halves = [
        (tick_a + tick_b) / 2
        for (tick_a, level_a), (tick_b, level_b) in itertools.pairwise(corners)
        if {level_a, level_b} == {0.0, 8e-5}
    ]
    assert [b - a for a, b in itertools.pairwise(halves)] == [20000, 60000, 20000]


def test_a_pause_as_long_as_its_ramp_down_leaves_no_rest() -> None:
    step = '[[steps]]\ncurrent = "2 mA"\ndose = "5 mA*min"\nramp = "30 s"\n'
    plan = plan_of(treatment(f'{step}[[steps]]\npause = "30 s"\n{step}'))
    assert SegmentKind.REST not in kinds(plan)
    assert kinds(plan)[2:] == [SegmentKind.DELIVER, SegmentKind.RAMP_DOWN] * 2


def test_no_segment_that_ends_by_time_has_no_time() -> None:
    for path in EXAMPLES.glob("*.toml"):
        for segment in (each for plan in plans_of(Treatment.load(path)) for each in plan.segments):
            if segment["kind"] in (SegmentKind.SELF_TEST, SegmentKind.REST):
                assert segment["duration_ticks"] > 0
            if segment["kind"] == SegmentKind.DELIVER:
                assert (segment["duration_ticks"] > 0) != (segment["charge_c"] > 0.0)


@pytest.mark.parametrize(("level", "probe_a"), [("4 mA", 50e-6), ("0.2 mA", 50e-6), ("100 uA", 30e-6)])
def test_the_probe_has_50_microamperes_and_three_tenths_of_the_level_at_most(level: str, probe_a: float) -> None:
    plan = plan_of(treatment(f'[[steps]]\ncurrent = "{level}"\ntime = "60 s"'))
    assert plan.segments[1]["level_a"] == pytest.approx(probe_a)


@pytest.mark.parametrize(("front_end", "accepted"), [(FrontEnd.CURRENT_SOURCE, True), (FrontEnd.VOLTAGE_SOURCE, False)])
def test_ramps_of_a_voltage_source_last_half_a_second_at_least(front_end: FrontEnd, accepted: bool) -> None:
    ranges = tuple(replace(one, ballast_ohm=0.1 * DEVICE.compliance_v / one.full_scale_a) for one in DEVICE.ranges)
    device = replace(DEVICE, front_end=front_end, ranges=ranges)
    made = treatment('[[steps]]\ncurrent = "0.1 mA"\ndose = "1 mA*min"\nramp = "0.49 s"')
    if accepted:
        assert plan_of(made, device=device).steps[0].ramp_in_s == pytest.approx(0.49)
    else:
        with pytest.raises(RefusedError, match=r'ramp = "0.49 s": is shorter than.*write ramp = "0.5 s"'):
            plan_of(made, device=device)
    small = plan_of(treatment('[[steps]]\ncurrent = "10 uA"\ndose = "0.1 mA*min"'), device=device)
    assert small.steps[0].ramp_in_s >= (0.0 if accepted else 0.5)


def test_a_time_between_ticks_is_rounded_and_said_so() -> None:
    plan = plan_of(perfusion('[[steps]]\ncurrent = "50 uA"\ntime = "20.0004 s"\nramp = "0 s"'))
    assert delivering(plan)[0]["duration_ticks"] == 20000
    assert any("20.0004 s is taken as 20 s" in note for note in plan.notes)


def test_decimal_times_are_whole_ticks_in_spite_of_binary_rounding() -> None:
    for time in ("0.3 s", "0.7 s", "1.1 s", "2.3 s", "4.35 s"):
        plan = plan_of(perfusion(f'[[steps]]\ncurrent = "50 uA"\ntime = "{time}"\nramp = "0 s"'))
        assert delivering(plan)[0]["duration_ticks"] == round(float(time[:-2]) * 1000)
        assert not any("is taken as" in note for note in plan.notes)


def test_too_many_segments_are_refused_in_one_line() -> None:
    block = '[[blocks.p]]\ncurrent = "1 uA"\ntime = "2 ms"\nramp = "0 s"\n[[blocks.p]]\npause = "2 ms"\n'
    repeat = '[[steps]]\nrepeat = "p"\ntimes = {}\n'
    fits = (MAX_SEGMENTS - 2) // 3
    assert len(plan_of(perfusion(repeat.format(fits) + block)).segments) <= MAX_SEGMENTS
    with pytest.raises(RefusedError, match=f"more than {MAX_SEGMENTS} segments"):
        plan_of(perfusion(repeat.format(fits + 1) + block))


def test_a_sample_period_that_is_none_is_a_programming_error() -> None:
    for tick_s in (0.0, -1.0, math.nan, 1.0):
        with pytest.raises(ValueError, match="tick_s"):
            plan_of(treatment(), tick_s)


steps_text = st.lists(
    st.one_of(
        st.tuples(
            st.integers(1, 8).map(lambda half: f"{half / 2} mA"),
            st.one_of(
                st.integers(20, 80).map(lambda tenth: f'dose = "{tenth / 10} mA*min"'),
                st.integers(60, 200).map(lambda seconds: f'time = "{seconds} s"'),
            ),
            st.sampled_from(["", 'ramp = "10 s"', 'ramp = "20 s"', 'ramp = "7.5 s"']),
        ).map(lambda parts: f'[[steps]]\ncurrent = "{parts[0]}"\n{parts[1]}\n{parts[2]}'),
        st.integers(31, 90).map(lambda seconds: f'[[steps]]\npause = "{seconds} s"'),
    ),
    min_size=1,
    max_size=8,
).map("\n".join)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(steps_text, st.sampled_from([1e-4, 1e-3, 1 / 1024, 1 / 300]))
def test_the_charge_of_the_segments_is_the_prescription(text: str, tick_s: float) -> None:
    try:
        plan = plan_of(treatment(text), tick_s)
    except RefusedError as error:
        assert str(error).isprintable()
        return
    _, charge_c = run_ideally(plan)
    assert charge_c == pytest.approx(plan.prescribed_c, rel=1e-9)
    assert math.fsum(step.charge_c for step in plan.steps) == plan.prescribed_c
    totals = [segment["charge_total_c"] for segment in plan.segments]
    assert totals == sorted(totals) and totals[-1] == plan.prescribed_c
    for segment in plan.segments:
        slope_a_per_s = segment["slope_a_per_tick"] / tick_s
        assert slope_a_per_s <= plan.limits.ramp_rate_max_a_per_s * (1 + 1e-9)
        assert segment["level_a"] <= plan.limits.current_max_a


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_a_mutated_example_becomes_a_plan_or_one_line(source: bytes) -> None:
    try:
        of = Treatment.parse(source)
        plans = plans_of(of)
    except RefusedError as error:
        assert str(error).isprintable()
        return
    for plan in plans:
        assert plan.prescribed_c > 0.0
        assert len(plan.segments) <= MAX_SEGMENTS
        assert all(math.isfinite(value) for segment in plan.segments for value in segment.values())
    format_plans(plans, of.on_channel_trip)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(steps_text.filter(lambda text: "current" in text), min_size=2, max_size=4),
    st.sampled_from([None, EIGHT]),
    st.sampled_from([1e-4, 1 / 300]),
)
def test_every_channel_of_a_file_gets_the_plan_of_a_file_of_its_own(
    texts: list[str], device: DeviceCapabilities | None, tick_s: float
) -> None:
    """All levels are on one range here, so that nothing but the name and the lines of the file may differ."""
    refused, alone = [], []
    singles = [treatment(text) for text in texts]
    for single in singles:
        try:
            alone.append(plan_of(single, tick_s, device))
        except RefusedError as error:
            refused.append(error)
    of = Treatment.parse(together([single.source.decode() for single in singles]).encode(), "t.toml")
    try:
        plans = plans_of(of, tick_s, device)
    except RefusedError as error:
        assert str(error).isprintable() and error.key is not None and error.line is not None
        assert error.key.split(".", 1)[1] in [each.key for each in refused]
        assert error.problem in [each.problem for each in refused]
        return
    assert not refused
    for number, (plan, same) in enumerate(zip(plans, alone, strict=True)):
        assert plan.channel == str(number)
        assert replace(plan, channel="", notes=[]) == replace(same, notes=[])
        assert len(plan.notes) == len(same.notes)


def test_an_error_of_a_channel_names_its_key_and_line_in_the_file() -> None:
    good, steep = treatment().source.decode(), '[[steps]]\ncurrent = "4 mA"\ndose = "40 mA*min"\nramp = "1 s"'
    text = together([good, treatment(steep).source.decode()])
    with pytest.raises(RefusedError, match="steeper than") as caught:
        plans_of(Treatment.parse(text.encode(), "t.toml"))
    assert caught.value.key == "channels[1].steps[0].ramp"
    assert caught.value.line == text.splitlines().index('ramp = "1 s"') + 1


def test_the_printed_plans_have_the_title_once_and_a_part_for_each_channel() -> None:
    of = Treatment.load(EXAMPLES / "two-elbows.toml")
    plans = plans_of(of)
    text = format_plans(plans, of.on_channel_trip)
    assert text.startswith(f"{of.title}\n2 channels; if one trips or ends short, the others pause\n")
    assert text.count(of.title) == 1
    for number, plan in enumerate(plans):
        heading = f"{plan.channel} (key {number + 1}, device channel {number})"
        assert f"{heading}\n{format_plan(plan).partition(chr(10))[2]}" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_channel_beyond_the_ninth_has_no_key_and_is_printed_without_one() -> None:
    plans = [replace(example("dexamethasone-40"), channel=f"site {number}") for number in range(10)]
    text = format_plans(plans, OnTrip.STOP)
    assert "site 8 (key 9, device channel 8)\n" in text and "site 9 (device channel 9)\n" in text


def test_the_plan_of_one_channel_is_printed_as_that_of_one() -> None:
    plan = example("dexamethasone-40")
    assert format_plans([plan], OnTrip.STOP) == format_plan(plan)


def test_the_printed_plan_tells_steps_times_charge_and_drug() -> None:
    text = format_plan(example("varying-dose"))
    for part in (
        "dexamethasone-phosphate: Dexamethasone sodium phosphate",
        "buffered-pad, 10 cm\u00b2, cathode",
        "self-test, contact check",
        "rest-and-go 2/2 pause",
        "33 mA\u00b7min in 19:26, up to 3 mA",
        "81 \u00b5g to 0.89 mg of dexamethasone, at a transport number of 0.01 to 0.11",
        "set by",
        "device: compliance voltage",
        "note: unconfirmed in the catalogue",
    ):
        assert part in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_density_above_the_advised_one_is_noted() -> None:
    assert any("advised" in note for note in example("perfusion-pulses").notes)


def test_a_block_that_nothing_repeats_is_noted() -> None:
    base = '[[steps]]\ncurrent = "1 mA"\ndose = "2 mA*min"\n'
    plan = plan_of(treatment(base + '[[blocks.spare]]\npause = "1 s"'))
    assert any("spare" in note for note in plan.notes)


def test_a_long_plan_is_cut_when_printed() -> None:
    block = '[[blocks.p]]\ncurrent = "1 uA"\ntime = "2 ms"\nramp = "0 s"\n[[blocks.p]]\npause = "2 ms"\n'
    text = format_plan(plan_of(perfusion('[[steps]]\nrepeat = "p"\ntimes = 100\n' + block)))
    assert "and 140 more steps" in text


def test_masses_have_two_digits() -> None:
    assert [format_mass(mass) for mass in (9.762e-8, 1.074e-6, 2.6e-9)] == ["98 \u00b5g", "1.1 mg", "2.6 \u00b5g"]


def test_pydantic_is_not_loaded_for_codes_alarms_limits_and_plans() -> None:
    modules = "alarms, codes, errors, plan, safety, units"
    program = f"import sys; from ionto_rt import {modules}; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
