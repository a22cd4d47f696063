"""The guard's rows on estimates: at a limit nothing, beyond it the trip, the pause or the advice."""

import ctypes
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.codes import Advice, OperatorCommand, Trip
from support import fill, function, planned, struct

STEP = function("guard_estimates", "estimates_step", None, *[ctypes.c_void_p] * 4)
GLANCE = function(
    "guard_estimates", "estimates_glance", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_double, ctypes.c_double
)
OPERATOR = function("guard_estimates", "estimates_operator", None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
LEVEL_A = 2.0**-9
"""About 2 mA, a power of two so that limits can be met exactly."""


class Watched:
    """The rows on blocks that a test makes up; what a block does not say is that of a healthy treatment."""

    def __init__(self, **limits: float) -> None:
        config, _ = planned()
        self.limits = fill(struct("EstimateLimits")(), {**config["estimates"], **limits})
        self.watch = struct("EstimateWatch")()

    @property
    def verdict(self) -> Any:
        return self.watch.verdict

    def block(self, current_a: float = LEVEL_A, *, area: float = 1.0, smaller: bool = False, **seen: float) -> Any:
        healthy = {
            "resistance_ohm": 2048.0, "series_ohm": 600.0, "series_sigma_ohm": 6.0, "parallel_ohm": 1400.0,
            "emf_v": 0.5, "emf_sigma_v": 0.01,
        }  # fmt: skip
        hums = {name: seen.pop(name) for name in ("hum_a", "hum_v", "limited", "pausing") if name in seen}
        estimate = fill(struct("Estimate")(), {**healthy, **seen})
        given = fill(
            struct("EstimateInput")(),
            {"current_a": current_a, "area_ratio": area, "area_smaller": smaller, **hums},
        )
        STEP(*map(ctypes.byref, (self.watch, self.limits, estimate, given)))
        return self.verdict

    def blocks(self, count: int, **seen: Any) -> Any:
        for _ in range(count):
            self.block(**seen)
        return self.verdict

    def glance(self, resistance_ohm: float, current_a: float = LEVEL_A) -> Any:
        GLANCE(ctypes.byref(self.watch), ctypes.byref(self.limits), current_a, resistance_ohm * current_a)
        return self.verdict

    def operator(self, command: int, pause: int = 0) -> None:
        OPERATOR(ctypes.byref(self.watch), command, pause)


@pytest.mark.parametrize(("ohm", "pauses"), [(2048.0 - 512.0, False), (math.nextafter(1536.0, 0.0), True)])
def test_h11_breakdown(ohm: float, pauses: bool) -> None:
    """Of 2048 ohm 1280 are Rs, and 256 the electrodes' potential at most. Here Rp has to lose all of its 512."""
    made = Watched(breakdown_ratio=0.0, potential_v=256.0 * LEVEL_A)
    made.blocks(40, series_ohm=1280.0)
    for _ in range(60):
        assert made.glance(2048.0).pause == 0
    verdict = made.glance(ohm)
    assert (verdict.pause, verdict.latched) == ((Trip.BREAKDOWN, 1) if pauses else (0, 0))


@pytest.mark.parametrize(("ohm", "pauses"), [(1024.0, False), (math.nextafter(1024.0, 0.0), True)])
def test_h11_breakdown_by_the_whole_resistance_where_rs_is_not_known(ohm: float, pauses: bool) -> None:
    made = Watched(breakdown_ratio=0.0, fall_ratio=0.5)
    made.blocks(40, series_ohm=0.0, series_sigma_ohm=0.0, parallel_ohm=0.0)
    for _ in range(60):
        assert made.glance(2048.0).pause == 0
    assert made.glance(ohm).pause == (Trip.BREAKDOWN if pauses else 0)


@pytest.mark.parametrize(("before", "pauses"), [(8, True), (9, False)])
def test_h11_a_current_that_has_just_moved_is_judged_for_nine_glances_more(before: int, pauses: bool) -> None:
    """On a voltage source the breakdown itself moves the mean of its block."""
    made = Watched()
    made.blocks(40)
    for _ in range(60):
        made.glance(2048.0)
    made.block(1.1 * LEVEL_A)
    for _ in range(before):
        assert made.glance(2048.0).pause == 0
    assert made.glance(400.0).pause == (Trip.BREAKDOWN if pauses else 0)


def test_h11_a_current_that_moves_explains_itself() -> None:
    made = Watched()
    made.blocks(40)
    current_a, ohm = LEVEL_A / 16.0, 32768.0
    for _ in range(200):
        current_a, ohm = current_a * 1.06, ohm / 1.06
        assert made.glance(ohm, current_a).pause == 0


@given(st.floats(0.0, 0.0199), st.floats(200.0, 1e6))
def test_h12_a_slope_below_two_percent_a_second_is_none(slope: float, ohm: float) -> None:
    made = Watched()
    for k in range(400):
        # Two percent of what it was five seconds before, each second: linear growth gets slower in that measure.
        assert made.block(resistance_ohm=ohm * (1.0 + slope * k / 10.0)).trip == 0


def test_h12_a_slope_trips_within_its_five_seconds() -> None:
    made = Watched()
    made.blocks(80)
    taken = 0
    while made.verdict.trip == 0:
        taken += 1
        made.block(resistance_ohm=2048.0 * (1.0 + 0.03 * taken / 10.0))
    assert made.verdict.trip == Trip.RESISTANCE_RISING
    assert taken <= 60


def test_h12_a_potential_does_not_dilute_the_slope() -> None:
    """Rs + Rp rises by 3 % a second; V/I, most of which is the electrodes' potential, by a third of that."""
    made = Watched()
    made.blocks(80)
    for taken in range(1, 62):
        rise = 0.03 * taken / 10.0
        if made.block(resistance_ohm=2048.0 * (1.0 + rise / 3.0), parallel_ohm=1400.0 + 2000.0 * rise).trip:
            break
    assert made.verdict.trip == Trip.RESISTANCE_RISING and taken <= 60


def test_h12_elements_that_are_not_known_have_no_slope() -> None:
    made = Watched()
    made.blocks(80)
    for k in range(200):
        assert made.block(parallel_ohm=1400.0 * 1.005**k, parallel_sigma_ohm=100.0).trip == 0


@pytest.mark.parametrize("seen", [{"limited": 1}, {"pausing": 1}])
def test_h12_says_nothing_while_derated_or_paused(seen: dict[str, int]) -> None:
    made = Watched()
    for k in range(300):
        assert made.block(resistance_ohm=2048.0 * 1.05 ** (k / 10.0), **seen).trip == 0


def test_h12_a_step_is_no_slope_and_a_moving_current_none_either() -> None:
    made = Watched()
    made.blocks(80)
    assert made.blocks(80, resistance_ohm=4096.0).trip == 0
    ramp = Watched()
    for k in range(200):
        assert ramp.block(LEVEL_A * 1.01**k, resistance_ohm=2048.0 * 1.03 ** (k / 10.0)).trip == 0


@pytest.mark.parametrize(("series", "dry"), [(1.3, False), (1.31, True)])
def test_h10_drying_is_rs_alone(series: float, dry: bool) -> None:
    made = Watched()
    made.blocks(60)
    verdict = made.blocks(300, series_ohm=600.0 * series)
    assert bool(verdict.advice & Advice.WET_PADS) == dry
    assert (verdict.trip, verdict.pause) == (0, 0)
    made.blocks(100, series_ohm=600.0 * 1.19)
    assert made.verdict.advice == 0, "it clears by itself"


def test_h10_contact_that_is_lost_is_not_drying() -> None:
    """Rp grows along, within the seconds in which Rs does."""
    made = Watched()
    made.blocks(60)
    for k in range(100):
        made.block(series_ohm=600.0 * 1.005**k, parallel_ohm=1400.0 * 1.05**k)
    assert made.verdict.advice == 0


def test_h13_the_level_is_capped_by_the_area_that_is_left() -> None:
    made = Watched(density_a=LEVEL_A, density_ratio=1.125)
    assert made.block(area=0.8).cap_a == 0.0, "no alarm, no cap"
    assert made.block(area=1.2, smaller=True).cap_a == 0.0
    verdict = made.block(area=0.75, smaller=True)
    assert verdict.cap_a == 0.75 * LEVEL_A and verdict.advice == Advice.AREA
    assert made.blocks(100, current_a=0.75 * 1.125 * LEVEL_A, area=0.75, smaller=True).trip == 0
    made.blocks(10, current_a=0.7500001 * 1.125 * LEVEL_A, area=0.75, smaller=True)
    assert made.verdict.trip == 0
    assert made.block(0.7500001 * 1.125 * LEVEL_A, area=0.75, smaller=True).trip == Trip.DENSITY


def test_h13_the_cap_stays_when_its_alarm_ends_and_only_falls() -> None:
    """Neither the alarm's end, which the lower current itself may bring, nor a pad that is seen no more ends it."""
    made = Watched(density_a=LEVEL_A)
    capped = made.block(area=0.75, smaller=True)
    assert (capped.cap_a, capped.advice) == (0.75 * LEVEL_A, Advice.AREA)
    less_a = 0.5 * LEVEL_A
    for area in (0.75, 0.0, 0.95, 1.05):
        assert made.blocks(100, current_a=less_a, area=area).cap_a == 0.75 * LEVEL_A
    made.blocks(4, current_a=less_a, area=0.625)
    assert made.block(less_a, area=0.75).cap_a == 0.75 * LEVEL_A, "some blocks may be outliers"
    for area in (0.25, 0.625, 0.5, 0.5625, 0.25):
        verdict = made.block(less_a, area=area)
    assert (verdict.cap_a, verdict.advice, verdict.trip) == (0.625 * LEVEL_A, Advice.AREA, 0)


def test_h13_an_operator_who_resumes_ends_the_cap() -> None:
    made = Watched(density_a=LEVEL_A)
    made.block(area=0.75, smaller=True)
    made.operator(OperatorCommand.PAUSE)
    assert made.block(area=0.75).cap_a > 0.0
    made.operator(OperatorCommand.RESUME)
    assert made.verdict.cap_a == 0.0


@pytest.mark.parametrize("quantity", ["hum_a", "hum_v"])
def test_h41_mains(quantity: str) -> None:
    whole = LEVEL_A if quantity == "hum_a" else 2048.0 * LEVEL_A
    limits = {"hum_advise_ratio": 1.0 / 64.0, "hum_pause_ratio": 1.0 / 16.0}
    assert Watched(**limits).blocks(50, **{quantity: whole / 64.0}).advice == 0
    made = Watched(**limits)
    assert made.block(**{quantity: math.nextafter(whole / 64.0, 1e9)}).advice == 0
    assert made.block(**{quantity: whole / 16.0}).advice == Advice.MAINS
    assert made.blocks(10, **{quantity: whole / 16.0}).pause == 0
    made.block(**{quantity: math.nextafter(whole / 16.0, 1e9)})
    assert made.verdict.pause == 0
    verdict = made.block(**{quantity: math.nextafter(whole / 16.0, 1e9)})
    assert (verdict.pause, verdict.latched) == (Trip.INTERFERENCE, 0)
    assert made.block().advice == 0


@pytest.mark.parametrize(("rise_v", "trips"), [(0.75, False), (0.7501, True)])
@pytest.mark.parametrize("direction", [1, -1])
def test_h43_the_electrodes_potential_rises_within_two_minutes(rise_v: float, trips: bool, direction: int) -> None:
    made = Watched(potential_rise_v=0.75)
    made.blocks(320, current_a=direction * LEVEL_A, emf_v=direction * 0.5)
    made.blocks(200, current_a=direction * LEVEL_A, emf_v=direction * (0.5 + rise_v))
    assert made.verdict.trip == (Trip.ELECTRODE_SPENT if trips else 0)


def test_h43_goes_by_nothing_that_is_not_known() -> None:
    made = Watched()
    made.blocks(320)
    assert made.blocks(300, emf_v=5.0, emf_sigma_v=0.2).trip == 0
    assert made.blocks(300, emf_v=5.0, emf_sigma_v=0.0).trip == 0


@pytest.mark.parametrize(
    ("ohm", "pauses"), [(3072.0, False), (3072.1, True), (2048.0 / 1.5 + 0.1, False), (2048.0 / 1.5 - 0.1, True)]
)
def test_h48_another_impedance_after_an_operators_pause(ohm: float, pauses: bool) -> None:
    made = Watched()
    made.blocks(60)
    made.operator(OperatorCommand.PAUSE)
    made.blocks(20, current_a=0.0, pausing=1)
    made.operator(OperatorCommand.RESUME)
    made.blocks(20, current_a=0.5 * LEVEL_A, resistance_ohm=9 * ohm)
    assert made.verdict.pause == 0, "less current, more resistance: not to be compared"
    made.blocks(5, resistance_ohm=ohm)
    assert made.verdict.pause == (Trip.PAD_CHANGED if pauses else 0)
    if pauses:
        made.verdict.pause = 0
        made.operator(OperatorCommand.RESUME, Trip.PAD_CHANGED)
        assert made.blocks(50, resistance_ohm=ohm).pause == 0, "who resumes then vouches for the pads"


@pytest.mark.parametrize(("nano", "sigma", "pauses"), [(100.0, 1.0, True), (131.0, 1.0, False), (100.0, 16.0, False),
                                                      (310.0, 1.0, True)])  # fmt: skip
def test_h48_another_capacitance_is_seen_on_the_way_up(nano: float, sigma: float, pauses: bool) -> None:
    """C is 200 nF before. 133 nF are within the ratio, and less than three deviations below that are no proof."""
    made = Watched()
    made.blocks(60, capacitance_f=200e-9, capacitance_sigma_f=2e-9)
    made.operator(OperatorCommand.PAUSE)
    made.blocks(20, current_a=0.0, pausing=1)
    made.operator(OperatorCommand.RESUME)
    for k in range(5):
        assert made.verdict.pause == 0, k
        made.block(0.1 * LEVEL_A, resistance_ohm=2e4, capacitance_f=nano * 1e-9, capacitance_sigma_f=sigma * 1e-9)
    assert made.verdict.pause == (Trip.PAD_CHANGED if pauses else 0)
