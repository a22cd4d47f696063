"""Every trip, end and warning has a row that says how urgent it is and what to do."""

import pytest

from ionto_rt.alarms import (
    Alarm,
    Priority,
    SoftAlarm,
    alarm_for_end,
    alarm_for_pause,
    alarm_for_soft,
    alarm_for_trip,
)
from ionto_rt.codes import Action, EndReason, Trip

ALL: list[Alarm] = [
    *(alarm_for_trip(trip) for trip in Trip if trip != Trip.NONE),
    *(alarm_for_end(reason) for reason in EndReason if reason != EndReason.NONE),
    *(alarm_for_soft(soft) for soft in SoftAlarm),
]


@pytest.mark.parametrize("alarm", ALL, ids=lambda alarm: alarm.key)
def test_each_row_is_one_line_with_a_title_and_advice(alarm: Alarm) -> None:
    assert alarm.line.isprintable()
    assert alarm.title in alarm.line and alarm.advice in alarm.line
    assert len(alarm.title) > 8 and len(alarm.advice) > 20


def test_keys_are_unique() -> None:
    keys = [alarm.key for alarm in ALL]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("trip", [trip for trip in Trip if trip != Trip.NONE])
def test_a_trip_is_latched_stops_the_current_and_carries_its_hazard(trip: Trip) -> None:
    alarm = alarm_for_trip(trip)
    assert alarm.latched
    assert alarm.response in (Action.RAMP_DOWN, Action.OFF)
    assert alarm.hazard == f"H{trip:02d}"


@pytest.mark.parametrize(
    ("trip", "priority", "response"),
    [
        (Trip.OVER_CURRENT, Priority.HIGH, Action.OFF),
        (Trip.OPEN_LEAD, Priority.MEDIUM, Action.OFF),
        (Trip.INTERMITTENT_LEAD, Priority.MEDIUM, Action.RAMP_DOWN),
        (Trip.SHORT, Priority.HIGH, Action.RAMP_DOWN),
        (Trip.CONTACT_AREA, Priority.MEDIUM, Action.RAMP_DOWN),
        (Trip.DENSITY, Priority.MEDIUM, Action.RAMP_DOWN),
        (Trip.CHARGE_CAP, Priority.HIGH, Action.RAMP_DOWN),
        (Trip.SESSION_TIME, Priority.MEDIUM, Action.RAMP_DOWN),
        (Trip.READINGS_DISAGREE, Priority.HIGH, Action.RAMP_DOWN),
        (Trip.LOST_SAMPLES, Priority.MEDIUM, Action.RAMP_DOWN),
        (Trip.LEASE_LAPSED, Priority.HIGH, Action.OFF),
        (Trip.NOT_FINITE, Priority.HIGH, Action.OFF),
    ],
)
def test_priorities_and_safe_states_are_those_of_the_hazard_matrix(
    trip: Trip, priority: Priority, response: Action
) -> None:
    alarm = alarm_for_trip(trip)
    assert (alarm.priority, alarm.response) == (priority, response)


def test_a_pause_of_the_guard_clears_by_itself() -> None:
    alarm = alarm_for_pause(Trip.STALE_DATA)
    assert not alarm.latched
    assert alarm.response == Action.PAUSE
    assert alarm.hazard == "H25"


def test_a_pause_for_contact_area_waits_for_the_operator() -> None:
    alarm = alarm_for_pause(Trip.CONTACT_AREA)
    assert alarm.latched
    assert (alarm.response, alarm.hazard) == (Action.PAUSE, "H09")
    assert "press both pads" in alarm.advice and "start again" not in alarm.advice


@pytest.mark.parametrize("trip", [Trip.UNDER_CURRENT, Trip.HUNTING, Trip.INTERFERENCE])
def test_a_pause_that_has_used_up_its_retries_waits_for_the_operator(trip: Trip) -> None:
    alarm = alarm_for_pause(trip, latched=True)
    assert not alarm_for_pause(trip).latched
    assert (alarm.latched, alarm.response, alarm.hazard) == (True, Action.PAUSE, f"H{trip:02d}")
    assert alarm.title.startswith("Paused, waits for a person: ")
    assert "by itself" not in alarm.advice and "reset and resume by hand" in alarm.advice
    assert alarm.key != alarm_for_pause(trip).key


def test_an_end_by_trip_is_told_by_the_trip() -> None:
    assert alarm_for_end(EndReason.TRIP, Trip.SHORT) == alarm_for_trip(Trip.SHORT)


def test_a_trip_of_a_newer_version_is_high_and_named_by_its_number() -> None:
    alarm = alarm_for_trip(999)
    assert alarm.priority == Priority.HIGH and "999" in alarm.title


def test_no_trip_and_no_end_have_no_row() -> None:
    with pytest.raises(ValueError):
        alarm_for_trip(Trip.NONE)
    with pytest.raises(ValueError):
        alarm_for_end(EndReason.NONE)


LATCHED = (SoftAlarm.LOCKED, SoftAlarm.SPEAKER_FAULT, SoftAlarm.DEVICE_LOST)


@pytest.mark.parametrize("soft", [soft for soft in SoftAlarm if soft not in LATCHED])
def test_soft_alarms_are_low_or_medium_and_clear_with_their_cause(soft: SoftAlarm) -> None:
    alarm = alarm_for_soft(soft)
    assert not alarm.latched
    assert alarm.priority in (Priority.LOW, Priority.MEDIUM)


@pytest.mark.parametrize(
    ("soft", "priority"),
    [
        (SoftAlarm.LOCKED, Priority.MEDIUM),
        (SoftAlarm.SPEAKER_FAULT, Priority.LOW),
        (SoftAlarm.DEVICE_LOST, Priority.HIGH),
    ],
)
def test_what_the_operator_has_to_reset_is_latched(soft: SoftAlarm, priority: Priority) -> None:
    alarm = alarm_for_soft(soft)
    assert alarm.latched and alarm.priority == priority
