"""The guard: at a limit nothing trips; one code, tick or microsecond beyond it trips, once, and stays tripped.

Each test runs the whole tick with every other limit out of reach, so that what trips is what the test is about.
"""

import ctypes
import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.codes import Action, AreaAlarm, DeviceStatus, EndReason, Event, OperatorCommand, Phase, Trip
from ionto_rt.heartbeat import answer_of
from support import (
    LSB_A,
    LSB_V,
    SILENT,
    TOKEN,
    Rig,
    assert_safe_from_here,
    changed,
    endless,
    fill,
    function,
    memory_of,
    planned,
    same_bits,
    state_of,
    struct,
)

LEVEL = 8192
"""Codes of the level at which the rigs run: 1.95 mA, 9.8 V on their 5 kohm."""
SETTLED_TICKS = 60
CODE = 65536
FAR = 1 << 62

OUT_OF_REACH = {
    "over_ratio": 1e3,
    "over_margin_a": 1.0,
    "open_voltage_v": 1e3,
    "short_current_a": 1.0,
    "density_trip_a": 1.0,
    "rest_a": 1.0,
    "disagree_a": 1.0,
    "charge_cap_codes": FAR,
    "charge_mismatch_codes": FAR,
    "session_ticks": FAR,
    "late_pause_us": 1 << 31,
    "late_stop_us": 1 << 31,
    "lease_us": 1 << 31,
    "overrun_us": 1 << 31,
    "heartbeat_ticks": 1 << 31,
    "clock_window_us": 1 << 31,
    "over_mean_margin_a": 1.0,
    "under_margin_a": 1.0,
    "flat_move_a": 1.0,
    "ripple_margin_a": 1.0,
    "pad_charge_codes": FAR,
    "polarity_ticks": 1 << 31,
    "probe_ticks": 1 << 31,
    "mismatch_ticks": 1 << 31,
    "hold_ticks": 0,
}


def rig(settle: bool = True, **limits: float) -> Rig:
    """A rig at LEVEL whose guard has these limits and no other within reach; polarity anode, no probe tone."""
    config, _ = planned()
    made = Rig(
        changed(
            config,
            programme={"polarity": 1.0, "compliance_v": 0.0},
            impedance={"tone_a": 0.0, "open_ticks": 1 << 30},
            guard={**OUT_OF_REACH, **limits},
            estimates={"floor_a": 1.0},
        ),
        endless(LEVEL * LSB_A),
    )
    if settle:
        made.run(SETTLED_TICKS)
        assert made.rows[-1]["setpoint_a"] == LEVEL * LSB_A
        assert made.rows[-1]["current_code"] == LEVEL
    return made


def calm(made: Rig) -> bool:
    """Nothing has tripped or paused so far."""
    return not any(row["trip"] or row["pause"] or row["action"] for row in made.rows)


@pytest.mark.parametrize(("stands", "trip"), [(True, Trip.NONE), (False, Trip.OVER_CURRENT)])
def test_h01_a_command_that_was_not_renewed_is_judged_by_its_own_setpoint(stands: bool, trip: Trip) -> None:
    """The host stood still in a ramp down: samples that queued show the current of the last command until it acts."""
    made = rig(over_ratio=1.0625, over_margin_a=0.0)
    made.tick(operator_command=OperatorCommand.STOP, operator_sequence=1)
    last = int(made.rows[-1]["index"])
    for _ in range(200):
        applied = {"applied_index": last - 1} if stands else {}
        made.tick(current_code=LEVEL, redundant_code=LEVEL, **applied)
    assert 1.0625 * made.rows[-1]["setpoint_a"] < LEVEL * LSB_A
    assert made.rows[-1]["trip"] == trip
    if stands:
        made.tick(current_code=LEVEL, redundant_code=LEVEL)
        made.tick(current_code=LEVEL, redundant_code=LEVEL)
        assert made.rows[-1]["trip"] == Trip.OVER_CURRENT, "once it is renewed, the current must follow"


@pytest.mark.parametrize("reading", ["redundant_code", "current_code"])
def test_h01_a_reading_at_the_end_of_its_converter_counts_as_too_much(reading: str) -> None:
    """It is refused as a sample, and yet it must not make "off" into a ramp down by lost samples."""
    made = rig()
    made.tick(**{reading: -32768})
    made.tick()
    made.tick(**{reading: -32768})
    assert calm(made), "one alone is a bad sample"
    made.tick(**{reading: -32768})
    assert_safe_from_here(made, Trip.OVER_CURRENT, Action.OFF)


@pytest.mark.parametrize(("ratio", "margin_codes", "limit"), [(1.0625, 0, 8704), (1.0, 1024, LEVEL + 1024)])
@pytest.mark.parametrize("sign", [1, -1])
def test_h01_over_current(ratio: float, margin_codes: int, limit: int, sign: int) -> None:
    made = rig(over_ratio=ratio, over_margin_a=margin_codes * LSB_A)
    made.run(500, redundant_code=sign * limit)
    made.tick(redundant_code=sign * (limit + 1))
    made.tick()
    assert calm(made), "at the limit for long, or beyond it for a single tick"
    made.run(made.guard["over_ticks"] - 1, redundant_code=sign * (limit + 1))
    assert calm(made)
    made.tick(redundant_code=sign * (limit + 1))
    assert_safe_from_here(made, Trip.OVER_CURRENT, Action.OFF)


def test_h01_looks_at_the_redundant_reading_alone() -> None:
    made = rig(over_ratio=1.0625, over_margin_a=0.0)
    made.run(10, current_code=32767)
    assert calm(made)


def test_h01_never_trusts_a_setpoint_beyond_the_prescription_limit() -> None:
    made = rig(over_ratio=1.0625, over_margin_a=0.0, current_limit_a=4096 * LSB_A, settle=False)
    made.run(20, redundant_code=4352)
    assert calm(made)
    made.run(2, redundant_code=4353)
    assert_safe_from_here(made, Trip.OVER_CURRENT, Action.OFF)


def test_h09_contact_area() -> None:
    """An alarm below 0.7 of the baseline pauses and waits for the operator; below 0.5 the current ramps down. A ratio
    without an alarm, and a larger area, do nothing."""
    step = function("guard", "guard_step", None, *[ctypes.c_void_p] * 4)
    checksum = function("guard", "guard_checksum", ctypes.c_uint32, ctypes.c_void_p)
    config, _ = planned()
    limits = fill(struct("GuardLimits")(), {**config["guard"], **OUT_OF_REACH})
    limits.checksum = checksum(ctypes.byref(limits))

    def verdict(alarm: AreaAlarm, ratio: float, operator: int = 0) -> tuple[int, int, int]:
        given = fill(
            struct("GuardInput")(),
            {"sample_good": 1, "ticks": 1, "finite": 1, "area_alarm": alarm, "area_ratio": ratio,
             "operator_command": operator},
        )  # fmt: skip
        out = struct("Verdict")()
        step(ctypes.byref(state), ctypes.byref(limits), ctypes.byref(given), ctypes.byref(out))
        return out.trip, out.pause, out.action

    state = struct("GuardState")()
    assert verdict(AreaAlarm.STEADY, 0.1) == (0, 0, 0)
    assert verdict(AreaAlarm.LARGER, 0.1) == (0, 0, 0)
    assert verdict(AreaAlarm.SMALLER, 0.7) == (0, 0, 0)
    assert verdict(AreaAlarm.SMALLER, math.nextafter(0.7, 0.0)) == (0, Trip.CONTACT_AREA, Action.PAUSE)
    for _ in range(5000):
        assert verdict(AreaAlarm.STEADY, 1.0)[1] == Trip.CONTACT_AREA, "it waits for the operator"
    assert verdict(AreaAlarm.STEADY, 1.0, OperatorCommand.RESUME) == (0, 0, 0)
    assert verdict(AreaAlarm.SMALLER, 0.5)[1] == Trip.CONTACT_AREA
    assert verdict(AreaAlarm.SMALLER, math.nextafter(0.5, 0.0))[0] == Trip.CONTACT_AREA
    assert verdict(AreaAlarm.STEADY, 1.0)[0] == Trip.CONTACT_AREA, "latched"


def test_h05_open_lead() -> None:
    made = rig(open_ratio=0.125, open_voltage_v=10240 * LSB_V)
    beyond = {"redundant_code": 1023, "voltage_code": 10240}
    made.run(30, **{**beyond, "redundant_code": 1024})
    made.run(30, **{**beyond, "voltage_code": 10239})
    made.run(made.guard["open_ticks"] - 1, **beyond)
    made.run(30)
    made.run(made.guard["open_ticks"] - 1, **beyond)
    assert calm(made), "at the limits for long, or beyond them for a shorter time"
    made.tick()
    made.run(made.guard["open_ticks"], **beyond)
    assert_safe_from_here(made, Trip.OPEN_LEAD, Action.OFF)


def test_h05_needs_a_setpoint_that_has_been_there_for_the_loops_delay() -> None:
    """Right after a start the current cannot be there yet, whatever the voltage says."""
    made = rig(settle=False, open_ratio=0.125, open_voltage_v=1.0)
    made.run(4, redundant_code=0, voltage_code=30000)
    assert calm(made)
    made.run(made.guard["open_ticks"], redundant_code=0, voltage_code=30000)
    assert made.trips() == [Trip.OPEN_LEAD]


@pytest.mark.parametrize(("opens", "apart", "trips"), [(3, 2, False), (4, 100, True), (4, 101, False)])
def test_h07_intermittent_lead(opens: int, apart: int, trips: bool) -> None:
    """More than three opens, the first and the last of them within the window."""
    made = rig(open_ratio=0.125, open_voltage_v=10240 * LSB_V, intermittent_count=3, intermittent_ticks=100)
    beyond = {"redundant_code": 0, "voltage_code": 20000}
    made.tick(**beyond)
    made.run(apart - 1 - 4)
    for _ in range(opens - 2):
        made.tick(**beyond)
        made.tick()
    assert calm(made)
    made.run(apart - len(made.rows) + SETTLED_TICKS)
    made.tick(**beyond)
    if trips:
        assert_safe_from_here(made, Trip.INTERMITTENT_LEAD, Action.RAMP_DOWN)
    else:
        assert calm(made)


def test_h08_short() -> None:
    made = rig(short_current_a=1024 * LSB_A, short_voltage_v=128 * LSB_V)
    beyond = {"redundant_code": 1025, "voltage_code": 127}
    made.run(50, **{**beyond, "redundant_code": 1024})
    made.run(50, **{**beyond, "voltage_code": 128})
    made.run(made.guard["short_ticks"] - 1, **beyond)
    made.tick()
    made.run(made.guard["short_ticks"] - 1, **beyond)
    assert calm(made)
    made.tick(**beyond)
    assert_safe_from_here(made, Trip.SHORT, Action.RAMP_DOWN)


def test_h13_density() -> None:
    made = rig(settle=False, density_trip_a=LEVEL * LSB_A, second_ticks=100)
    made.run(300, redundant_code=LEVEL)
    assert calm(made)
    made.run(99, redundant_code=LEVEL + 1)
    # Nine tenths of a second are above the limit by a code, one is at it.
    assert made.trips() == [Trip.DENSITY]
    tripped = next(k for k, row in enumerate(made.rows) if row["trip"])
    assert tripped == 309, "at the end of the first tenth that brings the mean over one second above the limit"


def test_h13_is_a_mean_over_a_second() -> None:
    made = rig(settle=False, density_trip_a=LEVEL * LSB_A, second_ticks=100)
    for _ in range(20):
        made.run(50, redundant_code=LEVEL + 100)
        made.run(50, redundant_code=LEVEL - 100)
    assert calm(made)
    made.run(10, redundant_code=LEVEL + 101)
    made.run(40, redundant_code=LEVEL + 100)
    assert made.trips() == [Trip.DENSITY]


def test_h15_charge_cap() -> None:
    made = rig(charge_cap_codes=(LEVEL * 100) * CODE)
    left = LEVEL * 100 - made.rows[-1]["absolute_codes"] // CODE
    while left:
        step = min(left, LEVEL)
        made.tick(current_code=-step)
        left -= step
    made.run(100, current_code=0)
    assert made.rows[-1]["absolute_codes"] == made.guard["charge_cap_codes"]
    assert calm(made), "the cap is on charge in either direction, and at it nothing trips"
    made.tick(current_code=1)
    assert_safe_from_here(made, Trip.CHARGE_CAP, Action.RAMP_DOWN)


def test_h16_session_time() -> None:
    made = rig(session_ticks=100, settle=False)
    made.run(100)
    assert calm(made)
    made.tick()
    assert_safe_from_here(made, Trip.SESSION_TIME, Action.RAMP_DOWN)


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_h16_counts_each_sample_period_once_lost_and_refused_ones_too(refused: int) -> None:
    made = rig(session_ticks=100, settle=False)
    made.run(50)
    made.run(refused, voltage_code=1 << 20)
    made.tick(lose=2 - refused)
    while made.index < 99:
        made.tick()
    assert calm(made)
    made.tick()
    assert made.trips() == [Trip.SESSION_TIME]


def test_h16_a_sample_that_comes_again_is_no_time_that_passes() -> None:
    made = rig(session_ticks=100, settle=False, gap_pause_ticks=1000, gap_stop_ticks=1000)
    made.run(50)
    for _ in range(200):
        made.index -= 1
        made.tick()
    while made.index < 99:
        made.tick()
    assert not made.trips()
    made.tick()
    assert made.trips() == [Trip.SESSION_TIME]


def test_h23_readings_disagree() -> None:
    made = rig(settle=False, disagree_a=64 * LSB_A, second_ticks=100)
    made.run(100, current_code=LEVEL, redundant_code=LEVEL - 64)
    made.run(100, current_code=LEVEL, redundant_code=LEVEL + 64)
    assert calm(made)
    made.run(9, current_code=LEVEL, redundant_code=LEVEL + 64)
    made.tick(current_code=LEVEL, redundant_code=LEVEL + 65)
    assert_safe_from_here(made, Trip.READINGS_DISAGREE, Action.RAMP_DOWN)


def test_h24_lost_samples_pause_beyond_two_and_only_the_operator_ends_that() -> None:
    made = rig(gap_pause_ticks=2, gap_stop_ticks=10, second_ticks=100)
    made.tick(lose=2)
    assert calm(made)
    assert made.tick(lose=3)["pause"] == Trip.LOST_SAMPLES
    assert made.rows[-1]["action"] == Action.PAUSE
    made.until(lambda row: row["setpoint_a"] == 0.0, 60_000)
    made.run(500)
    assert made.rows[-1]["pause"] == Trip.LOST_SAMPLES
    assert made.rows[-1]["phase"] == Phase.PAUSE
    assert made.tick(operator_command=OperatorCommand.RESUME)["pause"] == 0
    made.run(5)
    assert made.rows[-1]["setpoint_a"] > 0.0
    assert not made.trips()


@pytest.mark.parametrize("first", ["stale", "weak"])
def test_h24_in_a_pause_that_would_end_by_itself_waits_for_the_operator_and_is_told(first: str) -> None:
    made = rig(
        gap_pause_ticks=2, gap_stop_ticks=10, second_ticks=1000, late_pause_us=5000, under_ratio=0.875,
        under_margin_a=0.0, retries=2,
    )  # fmt: skip
    if first == "stale":
        assert made.tick(host_late_us=5001)["pause"] == Trip.STALE_DATA
    else:
        made.until(lambda row: row["pause"] == Trip.UNDER_CURRENT, 20_000, redundant_code=6000)
    assert not made.rows[-1]["pause_latched"]
    assert made.tick(lose=3)["pause"] == Trip.LOST_SAMPLES
    assert made.rows[-1]["events"] & Event.PAUSE
    made.tick(host_late_us=5001)
    made.run(20_000)
    assert (made.rows[-1]["pause"], made.rows[-1]["pause_latched"]) == (Trip.LOST_SAMPLES, 1), "the later one is none"
    assert made.tick(operator_command=OperatorCommand.RESUME)["pause"] == 0
    assert not made.rows[-1]["pause_latched"]


@pytest.mark.parametrize("refused", [0, 4, 10])
def test_h24_ramps_down_beyond_ten_lost_or_refused(refused: int) -> None:
    made = rig(gap_pause_ticks=2, gap_stop_ticks=10)
    made.run(refused, voltage_code=1 << 20)
    made.tick(lose=10 - refused)
    assert not made.trips()
    made.run(refused, voltage_code=1 << 20)
    if refused == 10:
        made.tick(voltage_code=1 << 20)
    else:
        made.tick(lose=11 - refused)
    assert_safe_from_here(made, Trip.LOST_SAMPLES, Action.RAMP_DOWN)


def test_h25_stale_data_pauses_and_a_second_without_it_ends_the_pause() -> None:
    made = rig(late_pause_us=5000, late_stop_us=10_000, second_ticks=100)
    made.run(10, host_late_us=5000)
    assert calm(made)
    assert made.tick(host_late_us=5001)["pause"] == Trip.STALE_DATA
    made.run(99)
    assert made.rows[-1]["pause"] == Trip.STALE_DATA
    assert made.tick()["pause"] == 0
    made.tick(host_late_us=10_000)
    assert not made.trips()
    made.tick(host_late_us=10_001)
    assert_safe_from_here(made, Trip.STALE_DATA, Action.RAMP_DOWN)


@pytest.mark.parametrize(
    ("late_ticks", "pause", "trips"), [(2, False, False), (3, True, False), (10, True, False), (11, True, True)]
)
def test_h26_deadlines_missed(late_ticks: int, pause: bool, trips: bool) -> None:
    """More than two of a hundred pause, more than ten ramp down; at the deadline nothing counts."""
    made = rig(overrun_us=1000, overruns_pause=2, overruns_stop=10)
    made.run(100 - SETTLED_TICKS)
    made.run(100, host_late_us=1000)
    assert calm(made)
    made.run(late_ticks, host_late_us=1001)
    assert made.rows[-1]["pause"] == (Trip.DEADLINES if pause else 0)
    if trips:
        assert_safe_from_here(made, Trip.DEADLINES, Action.RAMP_DOWN)
    else:
        made.run(100 - late_ticks)
        made.run(min(late_ticks, 2), host_late_us=1001)
        assert not made.trips()


@settings(max_examples=30)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=12))
def test_h26_counts_the_last_hundred_ticks_wherever_they_begin(gaps: list[int]) -> None:
    """Deadlines missed after so many ticks each: the guard pauses with the fourth of any hundred."""
    made = rig(overrun_us=1000, overruns_pause=3, overruns_stop=1000)
    missed: list[int] = []
    for gap in gaps:
        made.run(gap)
        at = len(made.rows)
        missed.append(at)
        row = made.tick(host_late_us=1001)
        if sum(at - earlier < 100 for earlier in missed) > 3:
            assert row["pause"] == Trip.DEADLINES
            return
        assert not row["pause"]


def test_h28_data_older_than_the_lease_switches_off() -> None:
    made = rig(lease_us=80_000)
    made.tick(host_late_us=80_000)
    assert calm(made)
    made.tick(host_late_us=80_001)
    assert_safe_from_here(made, Trip.HOST_SUSPENDED, Action.OFF)


@pytest.mark.parametrize(
    ("status", "trip"),
    [
        (DeviceStatus.LEASE_EXPIRED, Trip.LEASE_LAPSED),
        (DeviceStatus.OVER_CURRENT, Trip.DEVICE_CAP),
        (DeviceStatus.CHARGE_CAP, Trip.DEVICE_CAP),
        (DeviceStatus.TIME_CAP, Trip.DEVICE_CAP),
    ],
)
def test_h29_what_the_device_did_is_followed_at_once(status: DeviceStatus, trip: Trip) -> None:
    made = rig()
    made.run(5, status=DeviceStatus.RELAY_CLOSED | DeviceStatus.COMPLIANCE | DeviceStatus.CLAMPED | DeviceStatus.LATE)
    assert calm(made)
    made.tick(status=DeviceStatus.RELAY_CLOSED | status)
    assert_safe_from_here(made, trip, Action.OFF)


@pytest.mark.parametrize("lease_ticks", [20, 80, 100])
def test_h20_a_command_in_force_for_two_leases_and_what_it_takes_to_act_is_one_too_many(lease_ticks: int) -> None:
    made = rig(lease_us=1000 * lease_ticks)
    stands = made.index
    held = {"applied_index": stands, "applied_code": LEVEL, "current_code": LEVEL, "redundant_code": LEVEL}
    while made.index - stands < 2 * lease_ticks + 2:
        made.tick(**held)
    assert calm(made)
    made.tick(**held)
    assert_safe_from_here(made, Trip.OUTPUT_MISMATCH, Action.OFF)


CLOSED = DeviceStatus.RELAY_CLOSED


@pytest.mark.parametrize(
    ("bit", "trip", "action"),
    [
        (DeviceStatus.SUPPLY_LOW, Trip.SUPPLY_LOW, Action.RAMP_DOWN),
        (DeviceStatus.LEAKAGE, Trip.LEAKAGE, Action.OFF),
        (DeviceStatus.OVER_TEMPERATURE, Trip.TEMPERATURE, Action.RAMP_DOWN),
        (DeviceStatus.SELF_TEST_FAILED, Trip.DEVICE_SELF_TEST, Action.OFF),
    ],
)
def test_h39_h40_h44_h49_what_the_device_says_of_itself_acts_in_its_tick(
    bit: DeviceStatus, trip: Trip, action: Action
) -> None:
    made = rig()
    made.run(5, status=CLOSED | DeviceStatus.SUPPLY_WARNING | DeviceStatus.SPEAKER_FAULT)
    assert calm(made)
    made.tick(status=CLOSED | bit)
    assert_safe_from_here(made, trip, action)


def test_h39_a_supply_below_its_reserve_starts_nothing() -> None:
    config, plan = planned()
    made = Rig(config, plan.segments)
    made.run(20, status=DeviceStatus.SUPPLY_WARNING)
    assert made.trips() == [Trip.SUPPLY_LOW]
    assert not any(row["close_relay"] for row in made.rows)


def test_h49_a_device_that_failed_its_self_test_starts_nothing() -> None:
    config, plan = planned()
    made = Rig(config, plan.segments)
    made.run(20, status=DeviceStatus.SELF_TEST_FAILED)
    assert made.trips() == [Trip.DEVICE_SELF_TEST]
    assert not any(row["close_relay"] for row in made.rows)


def test_h45_one_sample_is_no_press_two_in_a_row_are() -> None:
    made = rig()
    for _ in range(5):
        made.tick(status=CLOSED | DeviceStatus.PATIENT_STOP)
        made.tick(status=CLOSED)
    assert calm(made)
    made.run(2, status=CLOSED | DeviceStatus.PATIENT_STOP)
    assert (made.rows[-2]["trip"], made.rows[-1]["trip"]) == (Trip.NONE, Trip.PATIENT_STOP)
    assert made.rows[-1]["action"] == Action.RAMP_DOWN


@pytest.mark.parametrize("pressed_after", [0, 300])
def test_h45_the_patients_stop_is_down_in_its_time_from_wherever_the_current_is(pressed_after: int) -> None:
    """Also out of a slower ramp down."""
    made = rig(patient_stop_ticks=200, stop_slope_codes=1.0)
    if pressed_after:
        made.run(pressed_after, status=CLOSED | DeviceStatus.OVER_TEMPERATURE)
    code = made.rows[-1]["output_code"]
    assert code > 2000
    held = CLOSED | DeviceStatus.PATIENT_STOP
    made.run(1, status=held)
    taken = made.until(lambda row: row["action"] == Action.OFF, 202, status=held)
    falling = [row["output_code"] for row in made.rows[-taken:]]
    assert 198 <= taken <= 201
    assert all(before - after <= code / 200 + 1 for before, after in pairwise(falling))
    assert made.trips()[-1] == (Trip.TEMPERATURE if pressed_after else Trip.PATIENT_STOP)


def test_h45_a_second_press_switches_off() -> None:
    made = rig(patient_stop_ticks=200)
    held = CLOSED | DeviceStatus.PATIENT_STOP
    made.run(50, status=held)
    made.tick(status=CLOSED)
    made.tick(status=held)
    assert made.rows[-1]["action"] == Action.RAMP_DOWN
    made.tick(status=held)
    assert_safe_from_here(made, Trip.PATIENT_STOP, Action.OFF)


def test_h30_heartbeat() -> None:
    made = rig(heartbeat_ticks=50)
    made.run(49, heartbeat=SILENT)
    made.tick()
    made.run(49, heartbeat=SILENT)
    assert calm(made)
    made.tick(heartbeat=SILENT)
    assert_safe_from_here(made, Trip.HEARTBEAT, Action.RAMP_DOWN)


def test_h30_lost_samples_age_the_heartbeat_too() -> None:
    made = rig(heartbeat_ticks=50, gap_pause_ticks=1000, gap_stop_ticks=1000)
    made.tick(heartbeat=SILENT, lose=48)
    assert calm(made)
    made.tick(heartbeat=SILENT)
    assert made.trips() == [Trip.HEARTBEAT]


def test_h31_an_answer_renews_the_heartbeat_and_brings_another_challenge() -> None:
    made = rig(heartbeat_ticks=50)
    challenges = {made.challenge}
    for _ in range(100):
        made.run(30, heartbeat=SILENT)
        made.tick()
        challenges.add(made.challenge)
    assert calm(made)
    assert len(challenges) == 101


@pytest.mark.parametrize("apart", [1, 0x80000000, 0xFFFFFFFF])
def test_h31_a_heartbeat_that_does_not_answer_switches_off_at_once(apart: int) -> None:
    made = rig(heartbeat_ticks=50)
    made.run(10)
    made.tick(heartbeat=answer_of(made.challenge) ^ apart)
    assert_safe_from_here(made, Trip.WATCHDOG, Action.OFF)


def test_h31_an_answer_is_good_once() -> None:
    """What repeats answers that it has heard is found out as soon as it goes on to another one."""
    made = rig(heartbeat_ticks=1000)
    heard = [row["heartbeat"] for row in made.run(10)]
    made.run(5, heartbeat=heard[-1])
    assert calm(made)
    made.tick(heartbeat=heard[0])
    assert_safe_from_here(made, Trip.WATCHDOG, Action.OFF)


def test_h31_a_counter_that_somebody_raises_is_no_heartbeat() -> None:
    made = rig(heartbeat_ticks=1000)
    made.tick(heartbeat=made.rows[-1]["heartbeat"] + 1)
    assert_safe_from_here(made, Trip.WATCHDOG, Action.OFF)


def test_h31_challenges_are_of_the_sessions_token() -> None:
    config, plan = planned()
    first = {Rig(config | {"token": token}, plan.segments).challenge for token in (1, 2, 0xFFFFFFFF)}
    assert len(first) == 3


ANSWER = function("guard", "heartbeat_answer", ctypes.c_uint32, ctypes.c_uint32)


@given(challenge=st.integers(0, 2**32 - 1))
def test_h31_the_answer_in_python_is_that_of_the_core(challenge: int) -> None:
    assert answer_of(challenge) == ANSWER(challenge)


def test_h31_every_command_answers_its_own_sample() -> None:
    """A watchdog stuck alive cannot echo the nonce of a sample it has not seen."""
    made = rig(gap_stop_ticks=4)
    made.run(20)
    made.run(6, voltage_code=1 << 20)
    made.run(20)
    assert made.trips() == [Trip.LOST_SAMPLES]
    for row, command in zip(made.rows, made.commands, strict=True):
        assert (command["index"], command["nonce"]) == (row["index"], row["nonce"])
        assert (command["token"], command["lease_ticks"]) == (TOKEN, 80)


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("programme", "trim_a", math.nan),
        ("regulator", "integral", math.nan),
        ("regulator", "integral", math.inf),
        ("impedance", "estimate.resistance_ohm", math.nan),
        ("impedance", "estimate.resistance_ohm", math.inf),
    ],
)
def test_h32_a_non_finite_value_switches_off_in_its_tick(stage: str, field: str, value: float) -> None:
    made = rig()
    part = getattr(state_of(made.controller), stage)
    *inner, name = field.split(".")
    for step in inner:
        part = getattr(part, step)
    setattr(part, name, value)
    made.tick()
    assert_safe_from_here(made, Trip.NOT_FINITE, Action.OFF)


@pytest.mark.parametrize("device_us", [990_000, 1_010_000])
def test_h53_device_clock(device_us: int) -> None:
    made = rig(clock_window_us=1_000_000, clock_ppm=10_000, settle=False)
    outward = 1 if device_us > 1_000_000 else -1
    made.tick(host_time_us=1, device_time_us=5)
    made.tick(host_time_us=1_000_001, device_time_us=5 + device_us)
    made.tick(host_time_us=2_000_001, device_time_us=5 + 2 * device_us)
    assert calm(made)
    made.tick(host_time_us=3_000_001, device_time_us=5 + 3 * device_us + outward)
    assert_safe_from_here(made, Trip.DEVICE_CLOCK, Action.RAMP_DOWN)


def test_h53_follows_the_device_clock_around_its_end() -> None:
    made = rig(clock_window_us=1_000_000, clock_ppm=10_000, settle=False)
    for second in range(6):
        made.tick(host_time_us=1 + second * 1_000_000, device_time_us=(2**32 - 2_500_000 + second * 1_000_000) % 2**32)
    assert calm(made)


def test_h53_a_late_sample_is_no_slow_clock() -> None:
    made = rig(clock_window_us=1_000_000, clock_ppm=10_000, settle=False)
    made.tick(host_time_us=1, device_time_us=0)
    made.tick(host_time_us=1_500_001, device_time_us=1_000_000, host_late_us=500_000)
    assert calm(made)


@pytest.mark.parametrize("sign", [1, -1])
def test_h57_charge_mismatch(sign: int) -> None:
    made = rig(charge_mismatch_codes=1000)

    def count(off: int) -> None:
        made.tick(current_code=LEVEL, charge_codes=made.rows[-1]["net_codes"] + LEVEL * CODE + off)

    for _ in range(10):
        count(sign * 1000)
    assert calm(made)
    count(sign * 1001)
    assert_safe_from_here(made, Trip.CHARGE_MISMATCH, Action.RAMP_DOWN)


@pytest.mark.parametrize("claimed", [-(1 << 63), (1 << 63) - 1])
def test_h57_a_count_at_the_end_of_its_numbers(claimed: int) -> None:
    made = rig(charge_mismatch_codes=1000)
    made.tick(charge_codes=claimed)
    assert_safe_from_here(made, Trip.CHARGE_MISMATCH, Action.RAMP_DOWN)


@pytest.mark.parametrize(("stop", "trips"), [(1, False), (2, True)])
def test_a_second_press_of_stop_switches_off(stop: int, trips: bool) -> None:
    made = rig()
    made.tick(stop=stop)
    if trips:
        assert_safe_from_here(made, Trip.OPERATOR_STOP, Action.OFF)
    else:
        assert calm(made)


def test_every_byte_of_the_limits_is_under_the_checksum() -> None:
    """A flipped bit anywhere in the guard's table, padding included, switches off within a second."""
    made = rig(settle=False)
    made.run(1500)
    assert calm(made)
    healthy = made.table()
    table = memory_of(made.controller, "guard")
    for byte in range(struct("GuardLimits").checksum.offset + 4):
        for bit in (1, 128):
            made.controller.start()
            made.controller.run(healthy[:400])
            table[byte] ^= bit
            after = made.controller.run(healthy[400:])
            table[byte] ^= bit
            # A flipped limit may trip by itself before the checksum is looked at again.
            assert after["trip"][500], f"byte {byte}"
            assert after["action"][500] == Action.OFF, f"byte {byte}"
            assert not after["close_relay"][500], f"byte {byte}"


def test_the_first_cause_is_kept() -> None:
    made = rig(heartbeat_ticks=50, over_ratio=1.0625, over_margin_a=0.0)
    made.run(50, heartbeat=SILENT)
    assert made.rows[-1]["action"] == Action.RAMP_DOWN
    made.run(2, redundant_code=32000)
    assert made.rows[-1]["action"] == Action.OFF, "a worse cause still switches off"
    assert made.trips() == [Trip.HEARTBEAT]


def test_replay_of_a_trip_gives_the_same_bits() -> None:
    made = rig(heartbeat_ticks=50)
    made.run(200, heartbeat=SILENT)
    replayed = Rig(made.controller.config, made.controller.segments).controller.run(made.table())
    assert same_bits(replayed, made.table()) == ""


def aligned(made: Rig, tenth: int) -> None:
    """On to where a tenth of a second begins."""
    made.run(-len(made.rows) % tenth)


@pytest.mark.parametrize("sign", [1, -1])
def test_h02_a_mean_over_a_tenth_of_a_second_above_the_setpoint(sign: int) -> None:
    """5 % here are 1/16, exactly; at it for seconds nothing, one code in one reading of the tenth beyond it trips."""
    made = rig(over_mean_ratio=1.0625, over_mean_margin_a=0.0, second_ticks=1000)
    aligned(made, 100)
    made.run(2000, redundant_code=sign * 8704)
    assert calm(made)
    made.run(99, redundant_code=sign * 8704)
    made.tick(redundant_code=sign * 8705)
    assert_safe_from_here(made, Trip.OVER_CURRENT_MEAN, Action.RAMP_DOWN)


def test_h02_has_a_margin_at_small_levels_and_leaves_zero_to_h01() -> None:
    made = rig(over_mean_ratio=1.0, over_mean_margin_a=64 * LSB_A, second_ticks=1000)
    aligned(made, 100)
    made.run(1000, redundant_code=LEVEL + 64)
    assert calm(made)
    made.run(100, redundant_code=LEVEL + 65)
    assert made.trips() == [Trip.OVER_CURRENT_MEAN]
    rest = rig(over_mean_ratio=1.0, over_mean_margin_a=LSB_A)
    rest.tick(operator_command=OperatorCommand.PAUSE, operator_sequence=1)
    rest.until(lambda row: row["setpoint_a"] == 0.0, 60_000)
    rest.run(400, redundant_code=8)
    assert calm(rest)


def test_h02_a_ramp_is_judged_by_its_own_setpoints() -> None:
    """The current of a healthy loop is two ticks behind a ramp, in both directions, and the mean sees none of it but
    the rounding of its output."""
    limits = {"over_mean_ratio": 1.0, "over_mean_margin_a": LSB_A, "under_ratio": 0.999, "under_margin_a": 0.0}
    made = rig(settle=False, **limits)
    made.run(500)
    made.tick(operator_command=OperatorCommand.TRIM, operator_value_a=-0.5 * LEVEL * LSB_A, operator_sequence=1)
    made.run(3000)
    made.tick(operator_command=OperatorCommand.TRIM, operator_value_a=0.5 * LEVEL * LSB_A, operator_sequence=2)
    made.run(3000)
    assert calm(made)


def under(**limits: float) -> Rig:
    return rig(under_ratio=0.875, under_margin_a=0.0, second_ticks=1000, retries=2, **limits)


def test_h03_a_mean_over_a_second_below_the_setpoint_pauses() -> None:
    """An eighth too little for as long as one likes is at the limit; a code less in one tenth pauses."""
    made = under()
    aligned(made, 100)
    made.run(3000, redundant_code=7168)
    assert calm(made)
    made.run(99, redundant_code=7168)
    assert made.tick(redundant_code=7167)["pause"] == Trip.UNDER_CURRENT
    assert made.rows[-1]["action"] == Action.PAUSE


def test_h03_tries_twice_again_and_then_waits_for_the_operator() -> None:
    """Each try begins from rest, after a second of it."""
    made = under()
    pauses = []
    for _ in range(3):
        made.until(lambda row: row["pause"] == Trip.UNDER_CURRENT, 20_000, redundant_code=6000)
        pauses.append(len(made.rows))
        assert made.rows[-1]["pause_latched"] == (len(pauses) == 3)
        rest = made.until(lambda row: row["setpoint_a"] == 0.0, 10_000)
        back = made.until(lambda row: row["pause"] == 0, 2000) if len(pauses) < 3 else 0
        assert back in (0, 999) and rest > 1000, "a second at zero, its first tick included in the rest"
    made.run(5000)
    assert made.rows[-1]["pause"] == Trip.UNDER_CURRENT
    assert not made.trips()
    made.tick(operator_command=OperatorCommand.RESUME, operator_sequence=1)
    made.run(16_000)
    assert made.rows[-1]["pause"] == 0 and made.rows[-1]["setpoint_a"] == LEVEL * LSB_A
    made.until(lambda row: row["pause"] == Trip.UNDER_CURRENT, 3000, redundant_code=6000)
    made.until(lambda row: row["pause"] == 0, 10_000)


def test_h03_says_nothing_while_the_stage_limits() -> None:
    """Then too little current is the load's, and H04 derates: by the programme, the device's word, or the voltage."""
    made = under(limit_voltage_v=10240 * LSB_V)
    aligned(made, 100)
    for number in range(4):
        made.run(900, redundant_code=6000)
        limiting = {"voltage_code": 10240} if number % 2 else {"status": 1 | DeviceStatus.COMPLIANCE}
        made.tick(redundant_code=6000, **limiting)
        made.run(99, redundant_code=6000)
    assert calm(made)


def test_h17_current_against_its_setpoint() -> None:
    made = rig(polarity_ticks=10)
    made.run(50, redundant_code=-LEVEL // 2 + 1)
    made.run(9, redundant_code=-LEVEL // 2)
    made.tick(redundant_code=LEVEL)
    assert calm(made)
    made.run(9, redundant_code=-LEVEL)
    assert calm(made)
    made.tick(redundant_code=-LEVEL)
    assert_safe_from_here(made, Trip.POLARITY, Action.OFF)


def checked(turned: int, noise_codes: int = 0, seed: int = 0) -> list[tuple[int, int]]:
    """Trip and action of the guard over 200 ticks of a contact check whose current has this sign, and this noise."""
    step = function("guard", "guard_step", None, *[ctypes.c_void_p] * 4)
    checksum = function("guard", "guard_checksum", ctypes.c_uint32, ctypes.c_void_p)
    config, _ = planned()
    limits = fill(struct("GuardLimits")(), {**config["guard"], **OUT_OF_REACH, "probe_ticks": 32})
    limits.checksum = checksum(ctypes.byref(limits))
    state, out = struct("GuardState")(), struct("Verdict")()
    random = Random(seed)
    found, code = [], 0
    for k in range(200):
        code = random.choice([0, 200]) if k % 2 == 0 else code
        reading = turned * code + (random.randint(-noise_codes, noise_codes) if noise_codes else 0)
        given = fill(
            struct("GuardInput")(),
            {"sample_good": 1, "ticks": 1, "finite": 1, "probe_a": 1e-3, "applied_code": code, "index": k,
             "applied_index": k, "redundant_code": reading, "current_code": reading},
        )  # fmt: skip
        step(ctypes.byref(state), ctypes.byref(limits), ctypes.byref(given), ctypes.byref(out))
        found.append((out.trip, out.action))
    return found


def test_h17_the_contact_check_sees_swapped_wires_before_any_treatment_current() -> None:
    assert set(checked(1, 3)) == {(0, 0)}
    swapped = checked(-1, 3)
    assert swapped[31] == (0, 0) and swapped[32] == (Trip.POLARITY, Action.OFF)


@given(st.integers(0, 1 << 32), st.integers(0, 400))
def test_h17_no_noise_has_a_direction(seed: int, noise_codes: int) -> None:
    """An open lead shows the converter's noise alone; it must not be taken for a reversed current."""
    assert set(checked(0, noise_codes, seed)) == {(0, 0)}


def test_h20_another_code_than_the_one_sent_with_that_index() -> None:
    made = rig(mismatch_ticks=1)
    made.run(300)
    assert calm(made)
    made.tick(applied_code=LEVEL + 1)
    assert_safe_from_here(made, Trip.OUTPUT_MISMATCH, Action.OFF)


@pytest.mark.parametrize("age", [3, 40, 120])
def test_h20_a_late_command_is_none(age: int) -> None:
    """The device says which index it applies: the code is compared with what was sent then, however long ago."""
    made = rig(mismatch_ticks=1, settle=False)
    made.tick(operator_command=OperatorCommand.TRIM, operator_value_a=-100 * LSB_A, operator_sequence=1)
    made.run(200)
    for _ in range(30):
        told = made.commands[-age]
        made.tick(applied_index=told["index"], applied_code=told["code"])
    # What stays in force is known without end.
    made.run(500, applied_index=told["index"], applied_code=told["code"])
    assert calm(made)
    made.tick(applied_index=told["index"], applied_code=told["code"] + 1)
    assert made.trips() == [Trip.OUTPUT_MISMATCH]


def test_h20_an_index_that_nobody_remembers_is_no_verdict() -> None:
    made = rig(mismatch_ticks=1)
    made.run(300)
    made.tick(applied_index=made.rows[-1]["index"] - 200, applied_code=17)
    assert calm(made)


@pytest.mark.parametrize(("applied", "trips"), [(LEVEL - 1, False), (0, False), (LEVEL + 1, True), (-1, True)])
def test_h20_a_clamped_code_may_only_be_less(applied: int, trips: bool) -> None:
    """The pushed limits lie beyond what the guard sends, and clamping is a device's duty: it takes away, never adds."""
    made = rig(mismatch_ticks=1)
    made.tick(applied_code=applied, status=DeviceStatus.RELAY_CLOSED | DeviceStatus.CLAMPED)
    assert bool(made.trips()) == trips


@pytest.mark.parametrize("which", ["current_code", "redundant_code"])
def test_h22_a_reading_that_stands_still_while_the_setpoint_moves(which: str) -> None:
    """A ramp moves the setpoint by more than four codes: fifty equal readings are one too many."""
    made = rig(flat_ticks=50, flat_move_a=4 * LSB_A)
    made.tick(operator_command=OperatorCommand.TRIM, operator_value_a=-2000 * LSB_A, operator_sequence=1)
    made.run(20)
    stuck = made.rows[-1][which]
    assert stuck != made.rows[-2][which]
    made.run(49, **{which: stuck})
    made.run(2)
    made.tick(**{which: stuck + 1})
    made.run(49, **{which: stuck + 1})
    assert calm(made)
    made.tick(**{which: stuck + 1})
    assert_safe_from_here(made, Trip.READING_STUCK, Action.OFF)


def test_h22_a_quiet_reading_may_be_flat() -> None:
    """At a level that stands, without a tone, an ideal converter repeats itself; so does a stage at its limit."""
    made = rig(flat_ticks=50, flat_move_a=4 * LSB_A)
    made.run(3000)
    assert calm(made)
    made.tick(operator_command=OperatorCommand.TRIM, operator_value_a=-2000 * LSB_A, operator_sequence=1)
    made.run(800, current_code=5000, redundant_code=5000, status=DeviceStatus.RELAY_CLOSED | DeviceStatus.COMPLIANCE)
    assert calm(made)


@pytest.mark.parametrize(("amplitude", "pauses"), [(512, False), (513, True)])
def test_h34_hunting_pauses_and_halves_the_gain(amplitude: int, pauses: bool) -> None:
    """A square wave of 1/16 of the level is 1/16 rms, exactly at the limit here."""
    made = rig(ripple_ratio=0.0625, ripple_margin_a=0.0, ripple_ticks=50, retries=2)
    made.run(-len(made.rows) % 50)
    for k in range(400):
        made.tick(redundant_code=LEVEL + (amplitude if k % 10 < 5 else -amplitude))
        if made.rows[-1]["pause"]:
            break
    assert (made.rows[-1]["pause"] == Trip.HUNTING) == pauses
    assert made.rows[-1]["loop_gain"] == (0.5 if pauses else 1.0)
    if pauses:
        assert k < 200
        made.run(1)
        jump = abs(made.rows[-1]["output"] - made.rows[-2]["output"])
        assert jump <= 1e-3 * made.calibration["tick_s"] + 8 * LSB_A, "bumpless: it goes down the ramp of a pause"
    else:
        assert calm(made)


def test_h34_the_guards_own_ramp_down_is_no_hunting() -> None:
    made = rig(ripple_ratio=0.0625, ripple_margin_a=0.0, ripple_ticks=50, session_ticks=SETTLED_TICKS)
    made.tick()
    assert made.rows[-1]["action"] == Action.RAMP_DOWN
    begun = len(made.rows)
    while made.rows[-1]["action"] == Action.RAMP_DOWN:
        made.tick(redundant_code=made.rows[-1]["output_code"])
    assert len(made.rows) - begun > 4 * 50
    assert not any(row["pause"] for row in made.rows)
    assert made.trips() == [Trip.SESSION_TIME]


@pytest.mark.parametrize("beyond", [0, 1])
def test_h42_current_through_an_open_relay_is_another_channels(beyond: int) -> None:
    """At the least current that counts for 10 ticks, and not before; a code less is none."""
    made = rig(open_floor_a=64 * LSB_A)
    made.tick(operator_command=OperatorCommand.STOP, operator_sequence=1)
    while not made.rows[-1]["end_reason"]:
        made.tick()
    made.run(20)
    assert not made.rows[-1]["status"] & DeviceStatus.RELAY_CLOSED and calm(made)
    made.run(9, current_code=64, redundant_code=64)
    assert calm(made)
    made.tick(current_code=64, redundant_code=64 - 1 + beyond)
    made.tick()
    assert made.trips() == [Trip.CROSS_LEAKAGE] * beyond
    assert made.rows[-1]["end_reason"] == EndReason.OPERATOR, "how it ended stays"


@pytest.mark.parametrize("both", [True, False])
def test_h42_through_a_channel_that_never_began(both: bool) -> None:
    """It tripped in its self-test. What one reading alone sees may be why; what both see comes from a neighbour."""
    made = rig(settle=False, open_floor_a=64 * LSB_A)
    made.tick(status=DeviceStatus.SELF_TEST_FAILED)
    assert not made.rows[-1]["status"] & DeviceStatus.RELAY_CLOSED
    made.run(30, redundant_code=640, **({"current_code": 640} if both else {}))
    assert made.trips() == [Trip.DEVICE_SELF_TEST]
    assert bool(state_of(made.controller).guard.foreign) == both


def test_h43_charge_beyond_what_the_pads_are_rated_for() -> None:
    made = rig()
    spent = made.rows[-1]["absolute_codes"] + 20 * LEVEL * CODE
    exact = rig(pad_charge_codes=spent)
    exact.run(20)
    assert exact.rows[-1]["absolute_codes"] == spent
    assert calm(exact)
    exact.tick()
    assert_safe_from_here(exact, Trip.ELECTRODE_SPENT, Action.RAMP_DOWN)


@pytest.mark.parametrize(("codes", "trips"), [(64, False), (65, True), (-65, True)])
def test_h42_current_beside_a_setpoint_of_zero(codes: int, trips: bool) -> None:
    """For three tenths of a second in a row, each of them wholly at rest."""
    step = function("guard", "guard_step", None, *[ctypes.c_void_p] * 4)
    checksum = function("guard", "guard_checksum", ctypes.c_uint32, ctypes.c_void_p)
    config, _ = planned()
    lsb_a = 2.0**-22
    limits = fill(
        struct("GuardLimits")(),
        {
            **config["guard"], **OUT_OF_REACH, "second_ticks": 100, "rest_a": 64 * lsb_a, "redundant_lsb_a": lsb_a,
            "current_lsb_a": lsb_a, "redundant_offset_q16": 0, "current_offset_q16": 0,
        },
    )  # fmt: skip
    limits.checksum = checksum(ctypes.byref(limits))
    state, out = struct("GuardState")(), struct("Verdict")()

    def ticks(count: int, setpoint_a: float = 0.0, armed: int = 1, reading: int = codes) -> int:
        for _ in range(count):
            seen = {
                "ticks": 1, "sample_good": 1, "finite": 1, "setpoint_a": setpoint_a, "armed_output": armed,
                "redundant_code": reading, "current_code": reading,
            }  # fmt: skip
            given = fill(struct("GuardInput")(), seen)
            step(ctypes.byref(state), ctypes.byref(limits), ctypes.byref(given), ctypes.byref(out))
        return int(out.trip)

    assert ticks(50, armed=0) == 0, "the self-test has a tolerance of its own"
    assert ticks(50, setpoint_a=1e-3, reading=1000) == 0
    assert ticks(10) == 0, "a tenth that is not wholly at rest does not count"
    assert ticks(29) == 0
    assert ticks(1) == (Trip.CROSS_LEAKAGE if trips else 0)
    assert ticks(500) == (Trip.CROSS_LEAKAGE if trips else 0)


@pytest.mark.parametrize(("held", "trips"), [(1000, False), (999, True)])
def test_h52_a_direction_changes_through_a_hold_at_zero(held: int, trips: bool) -> None:
    step = function("guard", "guard_step", None, *[ctypes.c_void_p] * 4)
    checksum = function("guard", "guard_checksum", ctypes.c_uint32, ctypes.c_void_p)
    config, _ = planned()
    limits = fill(struct("GuardLimits")(), {**config["guard"], **OUT_OF_REACH, "hold_ticks": 1000})
    limits.checksum = checksum(ctypes.byref(limits))
    state, out = struct("GuardState")(), struct("Verdict")()
    for setpoint_a in [0.0, 1e-3, 2e-3, 0.0, 1e-3, *[0.0] * held, -1e-6, -1e-3]:
        given = fill(struct("GuardInput")(), {"ticks": 1, "sample_good": 1, "finite": 1, "setpoint_a": setpoint_a})
        step(ctypes.byref(state), ctypes.byref(limits), ctypes.byref(given), ctypes.byref(out))
    assert out.trip == (Trip.REVERSAL if trips else 0)
    assert out.action == (Action.RAMP_DOWN if trips else 0) or out.action == Action.OFF


@pytest.mark.parametrize("lose", [1, 3, 40])
def test_a_ramp_down_takes_its_time_whatever_samples_are_lost(lose: int) -> None:
    """Its slope is per sample period that passes, not per sample that comes."""
    made = rig(session_ticks=SETTLED_TICKS, gap_stop_ticks=1 << 30, gap_pause_ticks=1 << 30)
    made.tick()
    assert made.rows[-1]["action"] == Action.RAMP_DOWN
    begun, start = made.rows[-1]["index"], made.rows[-2]["output_code"]
    while made.rows[-1]["action"] == Action.RAMP_DOWN:
        row = made.tick(lose=lose)
        fallen = (1 + row["index"] - begun) * made.guard["stop_slope_codes"]
        assert row["output_code"] <= max(0.0, start - fallen) + 1.0
    assert made.trips() == [Trip.SESSION_TIME]


@pytest.mark.parametrize("name", ["output_zero_code", "output_code_min", "output_code_max"])
def test_h54_off_is_off_whichever_limit_is_corrupt(name: str) -> None:
    """A row that says OFF sends the code of zero current, though the limits say something else by now."""
    for byte in range(4):
        made = rig()
        table = memory_of(made.controller, "guard")
        table[getattr(struct("GuardLimits"), name).offset + byte] ^= 0xFF
        made.until(lambda row: row["action"] == Action.OFF, 500)
        made.run(20)
        assert made.trips() == [Trip.LIMITS_CORRUPT]
        assert [row["output_code"] for row in made.rows[-20:]] == [0] * 20
        assert not any(row["close_relay"] for row in made.rows[-20:])


@pytest.mark.parametrize("name", ["output_code_max", "output_code_min"])
def test_h54_a_range_of_output_codes_without_zero_is_off_at_once(name: str) -> None:
    """One flipped bit, and the guard's own bound would send the other end of the range."""
    made = rig()
    table = memory_of(made.controller, "guard")
    table[getattr(struct("GuardLimits"), name).offset + 3] ^= 0x80
    row = made.tick()
    assert (row["trip"], row["action"], row["output_code"], row["close_relay"]) == (
        Trip.LIMITS_CORRUPT,
        Action.OFF,
        0,
        0,
    )


def test_h54_a_ramp_down_with_a_corrupt_slope_never_rises() -> None:
    made = rig(session_ticks=SETTLED_TICKS)
    made.run(20)
    assert made.rows[-1]["action"] == Action.RAMP_DOWN
    memory_of(made.controller, "guard")[struct("GuardLimits").stop_slope_codes.offset + 7] ^= 0x80
    before = made.rows[-1]["output_code"]
    assert made.tick()["output_code"] <= before
