"""Limits: the tightest source wins, at the limit is allowed, one step beyond it is refused before any current."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.codes import FrontEnd
from ionto_rt.errors import RefusedError
from ionto_rt.plan import compile_plan
from ionto_rt.safety import (
    CurrentRange,
    DeviceCapabilities,
    Limits,
    OperatorLimits,
    common_range,
    exceeds,
    resolve_channels,
    resolve_limits,
)
from ionto_rt.treatment import Treatment
from treatments import CATALOGUE, DEVICE, perfusion, together, treatment

TWO = replace(DEVICE, channels=2)


def refusal(
    of: Treatment, device: DeviceCapabilities | None = None, operator: OperatorLimits | None = None
) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        compile_plan(of, resolve_limits(of, CATALOGUE, device, operator), 1e-3)
    assert str(caught.value).isprintable()
    assert caught.value.file == "t.toml" and caught.value.line is not None and caught.value.remedy
    return caught.value


def accepted(of: Treatment, device: DeviceCapabilities | None = None, operator: OperatorLimits | None = None) -> Limits:
    limits = resolve_limits(of, CATALOGUE, device, operator)
    compile_plan(of, limits, 1e-3)
    return limits


def step(current: str = "2 mA", dose: str = "20 mA*min", ramp: str = "30 s") -> str:
    return f'[[steps]]\ncurrent = "{current}"\ndose = "{dose}"\nramp = "{ramp}"'


def test_the_catalogue_alone_gives_every_row() -> None:
    limits = accepted(treatment())
    assert [(row.quantity, row.value, row.source) for row in limits.rows] == [
        ("current", 0.004, "catalogue"),
        ("density", 5.0, "catalogue"),
        ("dose", 4.8, "catalogue"),
        ("day dose", 4.8, "catalogue"),
        ("voltage", 60.0, "catalogue"),
        ("session time", 5400.0, "catalogue"),
        ("ramp rate", 8e-4, "catalogue"),
        ("step", 0.0, "catalogue"),
    ]


def test_each_row_names_the_source_that_is_tightest() -> None:
    of = treatment(step("1 mA"), limits='current = "3 mA"\ndose = "60 mA*min"\nvoltage = "30 V"\ntime = "1 h"')
    limits = accepted(of, DEVICE, OperatorLimits(current_a=0.0015, day_dose_c=4.2, time_s=3000.0))
    assert {row.quantity: (row.value, row.source) for row in limits.rows} == {
        "current": (0.0015, "operator"),
        "density": (5.0, "catalogue"),
        "dose": (3.6, "treatment"),
        "day dose": (4.2, "operator"),
        "voltage": (24.0, "device"),
        "session time": (3000.0, "operator"),
        "ramp rate": (8e-4, "catalogue"),
        "step": (0.0, "catalogue"),
    }
    assert limits.row("dose").origin == "treatment: line 13"


def test_three_numbers_rise_from_prescription_to_guard_to_device() -> None:
    limits = accepted(treatment(), DEVICE)
    for row in limits.rows:
        numbers = [row.value] + [number for number in (row.guard, row.device_cap) if number is not None]
        assert numbers == sorted(numbers), row
    assert limits.row("current").guard == pytest.approx(1.1 * 0.004)
    assert limits.current_cap_a == pytest.approx(1.25 * 0.004)
    assert limits.density_trip_a == pytest.approx(1.1 * 5.0 * 8e-4)
    assert limits.charge_cap_c == pytest.approx(1.02 * 4.8 + 0.003)
    assert limits.charge_device_cap_c == pytest.approx(1.25 * 4.8)
    assert limits.session_time_trip_s == pytest.approx(1.02 * 5400 + 1)


def test_the_charge_margin_stays_small_on_research_doses() -> None:
    limits = accepted(perfusion(step("100 uA", "8 mC", "0 s")))
    assert limits.charge_cap_c == pytest.approx(0.008 * 1.07)


@pytest.mark.parametrize(
    ("at_limit", "beyond", "key", "says"),
    [
        (treatment(step("4 mA", "40 mA*min")), treatment(step("4.001 mA")), "steps[0].current", "0.5 mA/cm"),
        (
            treatment(step("4 mA"), area="12 cm^2"),
            treatment(step("4.001 mA"), area="12 cm^2"),
            "steps[0].current",
            "is beyond 4 mA (catalogue: dexamethasone-phosphate)",
        ),
        (
            treatment(step("3.3 mA"), area="6.6 cm^2"),
            treatment(step("3.301 mA"), area="6.6 cm^2"),
            "steps[0].current",
            "on the active electrode's 6.6 cm",
        ),
        (
            treatment(step("3 mA"), pad="buffered-pad", return_pad="buffered-pad-small", return_area="6 cm^2"),
            treatment(step("3.001 mA"), pad="buffered-pad", return_pad="buffered-pad-small", return_area="6 cm^2"),
            "steps[0].current",
            "on the return electrode's 6 cm",
        ),
        (treatment(step("4 mA", "80 mA*min")), treatment(step("4 mA", "80.001 mA*min")), "steps[0].dose", "80 mA"),
        (
            treatment(step(dose="20 mA*min"), limits='dose = "20 mA*min"'),
            treatment(step(dose="20.001 mA*min"), limits='dose = "20 mA*min"'),
            "steps[0].dose",
            "(treatment: line 12)",
        ),
        (
            treatment(step(dose="20 mA*min"), limits='day_dose = "20 mA*min"'),
            treatment(step(dose="20.001 mA*min"), limits='day_dose = "20 mA*min"'),
            "steps[0].dose",
            "beyond a day's 20 mA·min (treatment: line 12)",
        ),
        (
            treatment(step("4 mA", ramp="5 s")),
            treatment(step("4 mA", ramp="4.999 s")),
            "steps[0].ramp",
            "steeper than 0.8 mA/s",
        ),
        (
            perfusion(step("100 uA", "6 mC", "0 s")),
            perfusion('[[steps]]\ncurrent = "100 uA"\ntime = "20 s"\nramp = "0 s"\n' + step("100.1 uA", "6 mC", "0 s")),
            "steps[1].current",
            "0.1 mA/cm",
        ),
        (
            treatment('[[steps]]\ncurrent = "0.5 mA"\ntime = "5368.765 s"\nramp = "30 s"'),
            treatment('[[steps]]\ncurrent = "0.5 mA"\ntime = "5368.766 s"\nramp = "30 s"'),
            "steps[0].time",
            "beyond 1:30:00",
        ),
        (
            treatment('[[steps]]\ncurrent = "1 mA"\ntime = "30 s"\nramp = "30 s"'),
            treatment('[[steps]]\ncurrent = "1 mA"\ntime = "29.999 s"\nramp = "30 s"'),
            "steps[0].time",
            "shorter than its ramp",
        ),
        (
            treatment(step("4 mA", "2 mA*min")),
            treatment(step("4 mA", "1.999 mA*min")),
            "steps[0].dose",
            "that its ramps deliver",
        ),
        (
            treatment(step() + '\n[[steps]]\npause = "30 s"\n' + step()),
            treatment(step() + '\n[[steps]]\npause = "29.999 s"\n' + step()),
            "steps[1].pause",
            "shorter than the ramp down",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_at_the_limit_is_accepted_and_one_step_beyond_is_refused(
    at_limit: Treatment, beyond: Treatment, key: str, says: str
) -> None:
    accepted(at_limit, DEVICE)
    error = refusal(beyond, DEVICE)
    assert error.key == key and says in str(error), str(error)


@given(
    limit_ua=st.integers(100, 4000),
    beyond_ua=st.integers(1, 100),
    area_tenth_cm2=st.integers(60, 120),
)
def test_a_tightened_current_limit_holds_to_the_microampere(limit_ua: int, beyond_ua: int, area_tenth_cm2: int) -> None:
    density_ua = area_tenth_cm2 * 50
    limits = f'current = "{limit_ua} uA"'
    area = f"{area_tenth_cm2 / 10} cm^2"
    allowed_ua = min(limit_ua, density_ua)
    dose = "30 mA*min" if allowed_ua > 1000 else "5 mA*min"
    ok = treatment(step(f"{allowed_ua} uA", dose, "10 s"), limits=limits, area=area)
    assert accepted(ok).current_max_a >= allowed_ua * 1e-6 * (1 - 1e-12)
    refusal(treatment(step(f"{allowed_ua + beyond_ua} uA", dose, "10 s"), limits=limits, area=area))


@given(st.floats(1e-9, 1e6))
def test_rounding_is_not_beyond_a_limit_and_a_billionth_is(limit: float) -> None:
    assert not exceeds(limit, limit)
    assert not exceeds(limit * (1 + 4e-16), limit)
    assert exceeds(limit * (1 + 3e-9), limit)
    assert exceeds(float("nan"), limit)


@pytest.mark.parametrize(
    ("key", "loose"),
    [
        ("current", "4.1 mA"),
        ("density", "0.6 mA/cm^2"),
        ("dose", "81 mA*min"),
        ("day_dose", "81 mA*min"),
        ("voltage", "61 V"),
        ("time", "91 min"),
    ],
)
def test_a_treatment_may_not_loosen_a_limit(key: str, loose: str) -> None:
    error = refusal(treatment(limits=f'{key} = "{loose}"'))
    assert (error.key, error.line) == (f"limits.{key}", 12)
    assert "only tighten" in str(error)


@pytest.mark.parametrize(
    ("of", "key", "says"),
    [
        (treatment(drug="dexamethason"), "drug", 'did you mean "dexamethasone-phosphate"?'),
        (treatment(polarity="anode"), "electrodes.active.polarity", 'polarity = "cathode"'),
        (treatment(pad="bufered-pad"), "electrodes.active.type", 'did you mean "buffered-pad"?'),
        (treatment(area="80 cm^2"), "electrodes.active.area", "6 cm\u00b2 to 12 cm\u00b2"),
        (treatment(return_area="2.5 cm^2"), "electrodes.return.area", "15 cm\u00b2 to 50 cm\u00b2"),
        (treatment(pad="lidocaine-patch", area="5 cm^2"), "electrodes.active.type", "may only be the anode"),
        (
            treatment(step("1 mA", "20 mA*min"), drug="saline", polarity="anode", pad="lidocaine-patch", area="5 cm^2"),
            "steps[0].dose",
            "(catalogue: rating of lidocaine-patch)",
        ),
        (treatment(step("4 mA", ramp="0 s")), "steps[0].ramp", "no step may be made at once"),
        (perfusion(step("100 uA", "8.001 mC", "0 s")), "steps[0].dose", "8 mC"),
        (treatment('[[steps]]\ncurrent = "1 mA"\ntime = "0.1 ms"'), "steps[0].time", "half a sample period"),
    ],
)
def test_what_cannot_be_right_is_refused(of: Treatment, key: str, says: str) -> None:
    error = refusal(of)
    assert error.key == key and says in str(error), str(error)


def test_a_device_that_cannot_reach_the_current_is_refused() -> None:
    small = replace(DEVICE, ranges=(CurrentRange(0.002, 1e-7),))
    accepted(treatment(step("2 mA")), small)
    error = refusal(treatment(step("2.001 mA")), small)
    assert error.key == "steps[0].current" and "reaches 2 mA at most" in str(error)


def test_a_device_without_ranges_reaches_nothing() -> None:
    assert "reaches 0 mA" in str(refusal(treatment(), replace(DEVICE, ranges=())))


def ballasted(ballast_ohm: float) -> DeviceCapabilities:
    ranges = tuple(replace(item, ballast_ohm=ballast_ohm) for item in DEVICE.ranges)
    return replace(DEVICE, front_end=FrontEnd.VOLTAGE_SOURCE, compliance_v=16.0, ranges=ranges)


def test_compliance_must_hold_a_plausible_load_beside_the_ballast() -> None:
    weak = ballasted(2000.0)
    accepted(treatment(step("4 mA")), weak)
    error = refusal(treatment(step("4 mA")), ballasted(2001.0))
    assert error.key == "steps[0].current"
    assert "through 2 k\u03a9 and the ballast" in str(error) and "device: compliance voltage" in str(error)


def test_a_voltage_limit_of_the_treatment_is_checked_as_the_compliance_is() -> None:
    accepted(treatment(step("4 mA"), limits='voltage = "8 V"'))
    error = refusal(treatment(step("4 mA"), limits='voltage = "7.999 V"'))
    assert "(treatment: line 12)" in str(error)


@pytest.mark.parametrize(
    ("current", "full_scale_a"),
    [("2 mA", 0.005), ("190 uA", 0.0002), ("200 uA", 0.0002), ("201 uA", 0.005), ("4 mA", 0.005)],
)
def test_the_smallest_range_that_holds_the_setpoint_is_chosen(current: str, full_scale_a: float) -> None:
    chosen = accepted(treatment(step(current, "2 mA*min")), DEVICE).current_range
    assert chosen is not None and chosen.full_scale_a == full_scale_a


def test_the_level_limit_never_passes_the_range_in_use() -> None:
    limits = accepted(treatment(step("150 uA", "1 mA*min")), DEVICE)
    assert limits.current_max_a == 0.0002
    assert limits.row("current").origin == "device: range of 0.2 mA"


def test_a_largest_range_that_reads_no_further_still_serves() -> None:
    exact = replace(DEVICE, ranges=(CurrentRange(0.004, 1e-7),))
    chosen = accepted(treatment(step("4 mA")), exact).current_range
    assert chosen is not None and chosen.full_scale_a == 0.004


def test_a_range_is_used_up_to_its_full_scale_where_its_readings_go_beyond_the_cap() -> None:
    wide = replace(DEVICE, ranges=(CurrentRange(0.004, 1.6e-7, 0, 0.0, 0.0052), CurrentRange(0.04, 1.6e-6, 1)))
    narrow = replace(DEVICE, ranges=(CurrentRange(0.004, 1.6e-7, 0, 0.0, 0.0049), CurrentRange(0.04, 1.6e-6, 1)))
    for device, index in ((wide, 0), (narrow, 1)):
        chosen = accepted(treatment(step("4 mA")), device).current_range
        assert chosen is not None and chosen.index == index


@pytest.mark.parametrize(("ballast_ohm", "accepted_"), [(600.0, True), (590.0, False), (0.0, False)])
def test_a_voltage_source_needs_a_tenth_of_compliance_over_full_scale_as_ballast(
    ballast_ohm: float, accepted_: bool
) -> None:
    """24 V over 4 mA."""
    device = replace(
        DEVICE, front_end=FrontEnd.VOLTAGE_SOURCE, ranges=(CurrentRange(0.004, 1e-7, 0, ballast_ohm, 0.005),)
    )
    made = treatment('[[steps]]\ncurrent = "2 mA"\ndose = "2 mA*min"\nramp = "10 s"')
    if accepted_:
        accepted(made, device)
    else:
        assert f"has a ballast of {ballast_ohm:.0f} ohm" in str(refusal(made, device))


def test_an_operator_limit_refuses_by_name() -> None:
    error = refusal(treatment(), operator=OperatorLimits(current_a=0.0039))
    assert "is beyond 3.9 mA (operator)" in str(error)


@given(area_tenth_cm2=st.integers(60, 79))
def test_the_remedy_of_a_refused_density_is_itself_accepted(area_tenth_cm2: int) -> None:
    area = f"{area_tenth_cm2 / 10} cm^2"
    error = refusal(treatment(step("4 mA"), area=area))
    assert error.remedy is not None
    current = error.remedy.removeprefix("stay at or below ").partition(",")[0]
    accepted(treatment(step(current), area=area))


@given(ramp_ms=st.integers(1, 4999))
def test_the_remedy_of_a_refused_ramp_is_itself_accepted(ramp_ms: int) -> None:
    error = refusal(treatment(step("4 mA", ramp=f"{ramp_ms} ms")))
    assert error.remedy is not None
    ramp = error.remedy.partition('"')[2].partition('"')[0]
    accepted(treatment(step("4 mA", ramp=ramp)))


def test_the_table_is_told_to_people_and_to_the_record() -> None:
    limits = accepted(treatment(), DEVICE)
    text = limits.text()
    for row in limits.rows:
        assert row.quantity in text
    assert "device: compliance voltage" in text
    assert limits.as_rows()[0] == {
        "quantity": "current",
        "unit": "A",
        "value": 0.004,
        "guard": pytest.approx(0.0044),
        "device_cap": pytest.approx(0.005),
        "source": "catalogue",
        "detail": "dexamethasone-phosphate",
    }


def several(*levels: str) -> Treatment:
    """A treatment of several channels, each of one step at its level."""
    singles = [treatment(step(level, "2 mA*min", "10 s")).source.decode() for level in levels]
    return Treatment.parse(together(singles).encode(), "t.toml")


def test_a_treatment_of_more_channels_than_the_device_has_is_refused() -> None:
    of = several("2 mA", "2 mA", "2 mA")
    with pytest.raises(RefusedError, match="has 2 channels, the treatment 3; use a device with 3 channels") as caught:
        resolve_channels(of, CATALOGUE, TWO)
    assert caught.value.key == "channels[2]" and caught.value.line is not None
    assert len(resolve_channels(of, CATALOGUE, replace(DEVICE, channels=32))) == 3, "the rest stay at zero"


def test_all_channels_are_on_the_smallest_range_that_holds_the_highest_level() -> None:
    for low, high, full_scale_a in [("0.1 mA", "0.2 mA", 0.0002), ("0.25 mA", "4 mA", 0.005), ("1 mA", "2 mA", 0.005)]:
        limits = resolve_channels(several(low, high), CATALOGUE, TWO)
        assert [each.current_range and each.current_range.full_scale_a for each in limits] == [full_scale_a] * 2


def test_a_channel_on_the_range_of_another_has_the_limits_of_that_range() -> None:
    """Its highest level is no longer cut at the range that it would have had, and its guard has the coarser margin."""
    of = several("0.25 mA", "4 mA")
    one_range = replace(TWO, ranges=TWO.ranges[:1])
    assert resolve_channels(of, CATALOGUE, TWO)[0].rows == resolve_limits(of.channels[0], CATALOGUE, one_range).rows


def test_a_level_below_a_twentieth_of_the_common_range_is_refused() -> None:
    ranges = (CurrentRange(0.005, 2e-7, 0, 0.0, 0.00625), CurrentRange(0.0005, 2e-8, 1, 0.0, 0.000625))
    device = replace(TWO, ranges=ranges)
    resolve_channels(several("4 mA", "0.25 mA"), CATALOGUE, device)
    with pytest.raises(RefusedError) as caught:
        resolve_channels(several("4 mA", "0.249 mA"), CATALOGUE, device)
    assert caught.value.key == "channels[1].steps[0].current" and caught.value.value == "0.249 mA"
    for part in ('range of 5 mA that "0" needs', "a twentieth of it, 0.25 mA", 'treat "1" in a session of its own'):
        assert part in str(caught.value)


def test_a_level_that_alone_would_be_on_the_same_range_is_judged_as_alone() -> None:
    """A small level on a device of one range is accepted in a session of its own, so beside another one too."""
    device = replace(TWO, ranges=TWO.ranges[:1])
    accepted(treatment(step("0.1 mA", "2 mA*min", "10 s")), device)
    resolve_channels(several("4 mA", "0.1 mA"), CATALOGUE, device)


def test_every_step_of_a_channel_must_fit_the_common_range_not_only_its_highest() -> None:
    low = treatment(step("0.2 mA", "2 mA*min", "10 s") + "\n" + step("0.05 mA", "2 mA*min", "10 s"))
    both = together([treatment().source.decode(), low.source.decode()])
    accepted(low, DEVICE)
    with pytest.raises(RefusedError) as caught:
        resolve_channels(Treatment.parse(both.encode(), "t.toml"), CATALOGUE, TWO)
    assert caught.value.key == "channels[1].steps[0].current"


def test_a_level_beyond_the_device_is_told_of_the_channel_that_has_it() -> None:
    small = replace(TWO, ranges=(CurrentRange(0.002, 1e-7),))
    with pytest.raises(RefusedError, match="reaches 2 mA at most") as caught:
        resolve_channels(several("1 mA", "2.5 mA"), CATALOGUE, small)
    assert caught.value.key == "channels[1].steps[0].current"


def test_the_catalogue_speaks_before_the_device_does() -> None:
    """A slip in one channel must not be told as the other channel being too small for the range of the slip."""
    wide = replace(TWO, ranges=(CurrentRange(0.04, 1e-6), *TWO.ranges))
    with pytest.raises(RefusedError, match="mA/cm") as caught:
        resolve_channels(several("0.2 mA", "40 mA"), CATALOGUE, wide)
    assert caught.value.key == "channels[1].steps[0].current"


def test_a_small_range_without_enough_ballast_is_no_obstacle_if_it_is_not_used() -> None:
    ranges = (CurrentRange(0.005, 2e-7, 0, 500.0, 0.00625), CurrentRange(0.0005, 2e-8, 1, 500.0, 0.000625))
    device = replace(TWO, front_end=FrontEnd.VOLTAGE_SOURCE, ranges=ranges)
    refusal(treatment(step("0.5 mA", "2 mA*min", "10 s")), device)
    resolve_channels(several("0.5 mA", "4 mA"), CATALOGUE, device)


def test_the_operator_s_limits_hold_for_each_channel() -> None:
    with pytest.raises(RefusedError, match="operator") as caught:
        resolve_channels(several("1 mA", "2 mA"), CATALOGUE, TWO, OperatorLimits(current_a=0.0015))
    assert caught.value.key == "channels[1].steps[0].current"


@given(
    levels_ua=st.lists(st.integers(10, 4000), min_size=1, max_size=6),
    full_scales_ua=st.sets(st.integers(100, 40_000), min_size=1, max_size=4),
)
def test_the_common_range_holds_every_level_and_never_takes_one_out_of_what_is_surveyed(
    levels_ua: list[int], full_scales_ua: set[int]
) -> None:
    ranges = tuple(CurrentRange(ua * 1e-6, 1e-9, at, 0.0, 1.25e-6 * ua) for at, ua in enumerate(full_scales_ua))
    device = replace(DEVICE, channels=8, ranges=ranges)
    channels = [treatment(step(f"{ua} uA")) for ua in levels_ua]
    levels_a = [ua * 1e-6 for ua in levels_ua]
    try:
        shared = common_range(channels, device)
    except RefusedError as error:
        assert "is too small for the range" in str(error) or "at most" in str(error)
        own = device.range_for(max(levels_a))
        assert own is None or exceeds(own.full_scale_a / 20, min(levels_a))
        return
    assert not exceeds(max(levels_a), shared.full_scale_a)
    for level_a in levels_a:
        assert not exceeds(shared.full_scale_a / 20, level_a) or device.range_for(level_a) == shared
