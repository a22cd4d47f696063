"""What every trip, end and soft alarm is called, how urgent it is, and what a person does about it.

The rows are those of the hazard table (`ionto_rt.hazards`). Priorities follow the table of IEC 60601-1-8 (harm against
its onset). A latched alarm stays until the operator acts, and current returns only from zero by a ramp; the others
clear with their cause.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from functools import cache

from ionto_rt.codes import Action, EndReason, Trip
from ionto_rt.hazards import HazardAlarm, hazard_table, threshold


class Priority(IntEnum):
    """Urgency, least first. INFORMATION is no alarm: it says what happened."""

    INFORMATION = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3


class SoftAlarm(Enum):
    """Conditions that are no row of the tick: the session goes on under them, but for those in STOPPING."""

    DERATED = "derated"
    DERATED_LONG = "derated-long"
    CONTACT_LOST = "contact-lost"
    LATE_COMMANDS = "late-commands"
    RING_OVERFLOW = "ring-overflow"
    RECORD_BEHIND = "record-behind"
    RECORD_STOPPED = "record-stopped"
    PAUSE_LEFT = "pause-left"
    HELD_FOR_OTHERS = "held-for-others"
    LOCKED = "locked"
    SPEAKER_FAULT = "speaker-fault"
    SCREEN_HUNG = "screen-hung"
    DEVICE_LOST = "device-lost"
    SUPPLY_WARNING = "supply-warning"
    PADS_DRY = "pads-dry"
    MAINS = "mains"
    AREA_CAPPED = "area-capped"


STOPPING = (SoftAlarm.RECORD_STOPPED, SoftAlarm.DEVICE_LOST)
"""Those by which a session ends."""


DERATED_LONG_S = threshold("H04", "derated_long_s")
"""Derating for longer than this raises DERATED_LONG."""
PAUSE_LEFT_S = threshold("H46", "pause_left_s")
"""An operator's pause of this long raises PAUSE_LEFT, again after each further one."""
SPEAKER_CHECK_S = threshold("H50", "check_s")
"""A speaker that stays broken is raised again after each of these."""
SCREEN_S = threshold("H30", "screen_s")
"""A screen that was not drawn for this long is raised."""


@dataclass(frozen=True)
class Alarm:
    """One row: `key` (stable, for the record), `hazard` (id of the hazard table, or empty), `priority`, `latched`,
    `response` (the safe state it leads to), `title` and `advice` for the screen."""

    key: str
    hazard: str
    priority: Priority
    latched: bool
    response: Action
    title: str
    advice: str

    @property
    def line(self) -> str:
        """Title and advice in one line, with the hazard's id."""
        hazard = f" [{self.hazard}]" if self.hazard else ""
        return f"{self.title}{hazard}: {self.advice}"


_PRIORITIES = {
    "none": Priority.INFORMATION,
    "low": Priority.LOW,
    "medium": Priority.MEDIUM,
    "high": Priority.HIGH,
}
_RESPONSES = {"S0": Action.OFF, "S1": Action.RAMP_DOWN, "S2": Action.PAUSE, "S3": Action.DERATE}


def _alarm(given: HazardAlarm, hazard: str) -> Alarm:
    return Alarm(
        given.key,
        hazard,
        _PRIORITIES[given.priority],
        given.latched,
        _RESPONSES.get(given.response, Action.NONE),
        given.title,
        given.advice,
    )


@cache
def _rows() -> Mapping[tuple[str, str], Alarm]:
    """By source (trip, pause, end, soft) and member of its enum."""
    table = hazard_table()
    rows = {(given.source, given.name): _alarm(given, "") for given in table.others}
    for row in table.hazards.values():
        rows |= {(given.source, given.name): _alarm(given, row.id) for given in row.alarms}
    return rows


def alarm_for_trip(trip: int) -> Alarm:
    """The row of a latched trip (`Tick.trip`). A number that this version does not know gets a row of its own.

    Raises ValueError for Trip.NONE, which is no trip.
    """
    if trip == Trip.NONE:
        raise ValueError("trip 0 is no trip")
    try:
        return _rows()["trip", Trip(trip).name]
    except ValueError:
        return _unknown(trip)


def alarm_for_pause(trip: int, *, latched: bool = False) -> Alarm:
    """The row of a pause that the guard asks for (`Tick.pause`): a latched one waits for the operator, the others end
    with their cause. `latched` (`Tick.pause_latched`): one of the latter has come so often that it waits too. A number
    that this version does not know gets a row of its own."""
    try:
        alarm = _rows()["pause", Trip(trip).name]
    except (KeyError, ValueError):
        return _unknown(trip)
    return _again_and_again(trip) if latched and not alarm.latched else alarm


def _again_and_again(trip: int) -> Alarm:
    """Of a pause that has used up its retries: the latched row of its cause."""
    alarm = alarm_for_trip(trip)
    title = f"Paused, waits for a person: {alarm.title[0].lower()}{alarm.title[1:]}"
    advice = f"{alarm.advice}; reset and resume by hand when that is seen to"
    return replace(alarm, response=Action.PAUSE, title=title, advice=advice)


def _unknown(trip: int) -> Alarm:
    advice = "the record comes from another version; read it with that one"
    return Alarm(f"trip-{trip}", "", Priority.HIGH, True, Action.OFF, f"Unknown trip {trip}", advice)


def alarm_for_end(reason: int, trip: int = Trip.NONE) -> Alarm:
    """The row of an end (`Tick.end_reason`); for EndReason.TRIP that of `trip`, if given.

    Raises ValueError for EndReason.NONE and for a number that is no reason.
    """
    if reason == EndReason.TRIP and trip != Trip.NONE:
        return alarm_for_trip(trip)
    if reason == EndReason.NONE:
        raise ValueError("end reason 0 is no end")
    return _rows()["end", EndReason(reason).name]


def alarm_for_soft(soft: SoftAlarm) -> Alarm:
    """The row of a condition under which the session goes on."""
    return _rows()["soft", soft.name]
