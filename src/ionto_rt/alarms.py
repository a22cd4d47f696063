"""What every trip, end and soft alarm is called, how urgent it is, and what a person does about it.

Priorities follow the table of IEC 60601-1-8 (harm against its onset) as the hazard matrix applies it. A latched alarm
stays until the operator acts, and current returns only from zero by a ramp; the others clear with their cause.
"""

from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from ionto_rt.codes import Action, EndReason, Trip


class Priority(IntEnum):
    """Urgency, least first. INFORMATION is no alarm: it says what happened."""

    INFORMATION = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3


class SoftAlarm(Enum):
    """Conditions under which the session goes on, and RECORD_STOPPED, by which it ends."""

    DERATED = "derated"
    DERATED_LONG = "derated-long"
    CONTACT_LOST = "contact-lost"
    LATE_COMMANDS = "late-commands"
    RING_OVERFLOW = "ring-overflow"
    RECORD_BEHIND = "record-behind"
    RECORD_STOPPED = "record-stopped"
    PAUSE_LEFT = "pause-left"
    HELD_FOR_OTHERS = "held-for-others"


DERATED_LONG_S = 30.0
"""Derating for longer than this raises DERATED_LONG (H04)."""
PAUSE_LEFT_S = 600.0
"""An operator's pause of this long raises PAUSE_LEFT, again after each further one (H46)."""


@dataclass(frozen=True)
class Alarm:
    """One row: `key` (stable, for the record), `hazard` (id of the hazard matrix, or empty), `priority`, `latched`,
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


_SERVICE = "do not use this device again before it has been checked"

_TRIPS = {
    Trip.OVER_CURRENT: Alarm(
        "over-current",
        "H01",
        Priority.HIGH,
        True,
        Action.OFF,
        "Current above the setpoint",
        f"take the leads off, look at the skin under both pads; {_SERVICE}",
    ),
    Trip.OPEN_LEAD: Alarm(
        "open-lead",
        "H05",
        Priority.MEDIUM,
        True,
        Action.OFF,
        "Lead or pad open",
        "press both pads down, check leads and clips, then start again from a ramp; the dose so far is on record",
    ),
    Trip.INTERMITTENT_LEAD: Alarm(
        "intermittent-lead",
        "H07",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "Contact comes and goes",
        "replace the lead or fix the pad with tape, and keep the limb still; then start again from a ramp",
    ),
    Trip.SHORT: Alarm(
        "short",
        "H08",
        Priority.HIGH,
        True,
        Action.RAMP_DOWN,
        "Electrodes shorted",
        "look for clips that touch and for a bridge of gel or water between the pads; dry the skin between them",
    ),
    Trip.CONTACT_AREA: Alarm(
        "contact-area",
        "H09",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "A pad has lost contact area",
        "press both pads down and look under their edges (which of them it is was not measured), wet or renew them,"
        " then start again",
    ),
    Trip.DENSITY: Alarm(
        "density",
        "H13",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "Current density above the limit",
        "check that the pad is the one of the treatment file and lies flat; use a larger pad or less current",
    ),
    Trip.CHARGE_CAP: Alarm(
        "charge-cap",
        "H15",
        Priority.HIGH,
        True,
        Action.RAMP_DOWN,
        "Charge cap of the session reached",
        "give no more at this site today; read the record to see why the treatment did not end by itself",
    ),
    Trip.SESSION_TIME: Alarm(
        "session-time",
        "H16",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "Longest session time reached",
        "the dose on record is what was given; wet the pads to lower the resistance before another session",
    ),
    Trip.READINGS_DISAGREE: Alarm(
        "readings-disagree",
        "H23",
        Priority.HIGH,
        True,
        Action.RAMP_DOWN,
        "The two current readings disagree",
        f"the measured dose cannot be trusted; {_SERVICE}",
    ),
    Trip.LOST_SAMPLES: Alarm(
        "lost-samples",
        "H24",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "Samples lost",
        "plug the device into a port of its own with a short cable, close other programs, then start again",
    ),
    Trip.STALE_DATA: Alarm(
        "stale-data",
        "H25",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "Samples arrive too late",
        "this host stalls: close other programs or use another host, then start again",
    ),
    Trip.DEADLINES: Alarm(
        "deadlines",
        "H26",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "Deadlines missed",
        "this host is too slow or too busy: close other programs or use another host, then start again",
    ),
    Trip.HOST_SUSPENDED: Alarm(
        "host-suspended",
        "H28",
        Priority.HIGH,
        True,
        Action.OFF,
        "This host stood still for longer than a lease",
        "the device has switched off by itself; keep the host awake and free of other load, then start again",
    ),
    Trip.LEASE_LAPSED: Alarm(
        "lease-lapsed",
        "H29",
        Priority.HIGH,
        True,
        Action.OFF,
        "The device let go: no command reached it in time",
        "check the cable and that the host does not sleep; the device's own count of the charge is on record",
    ),
    # The matrix asks for LOW; here the session ends by it, so it is raised like the other monitor failures.
    Trip.HEARTBEAT: Alarm(
        "heartbeat",
        "H30",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "The session's supervisor went silent",
        "the program hung or was stopped; run recover on the session's folder, then start again",
    ),
    Trip.NOT_FINITE: Alarm(
        "not-finite",
        "H32",
        Priority.HIGH,
        True,
        Action.OFF,
        "A computed value was not a number",
        "this is a defect of the software: keep the session's folder and report it",
    ),
    Trip.DEVICE_CLOCK: Alarm(
        "device-clock",
        "H53",
        Priority.MEDIUM,
        True,
        Action.RAMP_DOWN,
        "The device's clock is wrong",
        f"time and dose cannot be trusted; {_SERVICE}",
    ),
    Trip.LIMITS_CORRUPT: Alarm(
        "limits-corrupt",
        "H54",
        Priority.HIGH,
        True,
        Action.OFF,
        "The guard's limits changed in memory",
        "restart the host and test its memory; keep the session's folder and report it",
    ),
    Trip.DEVICE_CAP: Alarm(
        "device-cap",
        "H55",
        Priority.HIGH,
        True,
        Action.OFF,
        "The device's own cap acted",
        "look at the skin under both pads, and for a lead that comes and goes or is shorted",
    ),
    Trip.OPERATOR_STOP: Alarm(
        "operator-stop",
        "H56",
        Priority.INFORMATION,
        True,
        Action.OFF,
        "Stopped at once by the operator",
        "the dose on record is what was given; look at the skin before another session",
    ),
    Trip.CHARGE_MISMATCH: Alarm(
        "charge-mismatch",
        "H57",
        Priority.HIGH,
        True,
        Action.RAMP_DOWN,
        "Host and device count different charges",
        f"take the larger count as the dose; {_SERVICE}",
    ),
}

_ENDS = {
    EndReason.COMPLETE: Alarm(
        "complete",
        "",
        Priority.INFORMATION,
        False,
        Action.NONE,
        "Treatment complete",
        "remove the pads and look at the skin",
    ),
    EndReason.OPERATOR: Alarm(
        "operator",
        "",
        Priority.INFORMATION,
        False,
        Action.RAMP_DOWN,
        "Ended before the dose was complete",
        "the dose on record is what was given",
    ),
    EndReason.SELF_TEST: Alarm(
        "self-test",
        "H49",
        Priority.LOW,
        True,
        Action.OFF,
        "Self-test failed: readings are not zero with the relay open",
        f"no current has flowed; take the leads off and try once more; if it fails again, {_SERVICE}",
    ),
    EndReason.CONTACT_OPEN: Alarm(
        "contact-open",
        "H05",
        Priority.MEDIUM,
        True,
        Action.OFF,
        "Contact check: no contact",
        "check both leads, wet the pads, press them down, then start again; only probe current has flowed",
    ),
    EndReason.CONTACT_SHORT: Alarm(
        "contact-short",
        "H08",
        Priority.MEDIUM,
        True,
        Action.OFF,
        "Contact check: electrodes shorted",
        "look for clips that touch and for a bridge of gel or water, then start again; only probe current has flowed",
    ),
    EndReason.CONTACT_OUTSIDE: Alarm(
        "contact-outside",
        "H04",
        Priority.MEDIUM,
        True,
        Action.OFF,
        "Contact check: skin resistance too high for this voltage source",
        "wet or abrade the skin under both pads, or use a current source; only probe current has flowed",
    ),
    EndReason.CONTACT_UNCLEAR: Alarm(
        "contact-unclear",
        "H05",
        Priority.MEDIUM,
        True,
        Action.OFF,
        "Contact check: the response is not that of skin under two pads",
        f"check leads and pads and keep still, then start again; if it stays so, {_SERVICE};"
        " only probe current has flowed",
    ),
    EndReason.TRIP: Alarm(
        "trip",
        "",
        Priority.HIGH,
        True,
        Action.OFF,
        "Ended by a trip",
        "the trip's own line says what to do",
    ),
}

_SOFT = {
    SoftAlarm.DERATED: Alarm(
        "derated",
        "H04",
        Priority.LOW,
        False,
        Action.DERATE,
        "Skin resistance is high: current lowered, time extended",
        "wet the pads and press them down; the dose stays as prescribed",
    ),
    SoftAlarm.DERATED_LONG: Alarm(
        "derated-long",
        "H04",
        Priority.MEDIUM,
        False,
        Action.DERATE,
        "Current lowered for more than 30 s",
        "pause, clean and wet the skin, renew the pads; the treatment takes longer until then",
    ),
    SoftAlarm.CONTACT_LOST: Alarm(
        "contact-lost",
        "H06",
        Priority.LOW,
        False,
        Action.DERATE,
        "Contact was lost for a moment: current starts again on a ramp",
        "fix lead and pad with tape, and keep the limb still",
    ),
    SoftAlarm.HELD_FOR_OTHERS: Alarm(
        "held-for-others",
        "",
        Priority.LOW,
        False,
        Action.PAUSE,
        "Another channel has ended short: this one holds its dose",
        "see to the other channel first, then resume this one or stop",
    ),
    SoftAlarm.LATE_COMMANDS: Alarm(
        "late-commands",
        "H26",
        Priority.LOW,
        False,
        Action.NONE,
        "Commands reach the device late",
        "close other programs on this host; the current is held, and late ticks are counted",
    ),
    SoftAlarm.RING_OVERFLOW: Alarm(
        "ring-overflow",
        "H38",
        Priority.MEDIUM,
        False,
        Action.NONE,
        "Telemetry was lost: the ring to the record is full",
        "close other programs; control and dose are not touched, but the record has a gap",
    ),
    SoftAlarm.RECORD_BEHIND: Alarm(
        "record-behind",
        "H38",
        Priority.LOW,
        False,
        Action.NONE,
        "The record is behind",
        "free space on the disk or record to a faster one; no new session starts like this",
    ),
    SoftAlarm.RECORD_STOPPED: Alarm(
        "record-stopped",
        "H38",
        Priority.MEDIUM,
        False,
        Action.RAMP_DOWN,
        "The record could not be written for 30 s: ramped down",
        "free space on the disk or record to a faster one; what the ring could not hold is missing in the record",
    ),
    SoftAlarm.PAUSE_LEFT: Alarm(
        "pause-left",
        "H46",
        Priority.LOW,
        False,
        Action.PAUSE,
        "Paused for ten minutes",
        "resume or stop; after a long pause the skin is as at a new start, and the current ramps up again",
    ),
}


def alarm_for_trip(trip: int) -> Alarm:
    """The row of a latched trip (`Tick.trip`). A number that this version does not know gets a row of its own.

    Raises ValueError for Trip.NONE, which is no trip.
    """
    if trip == Trip.NONE:
        raise ValueError("trip 0 is no trip")
    try:
        return _TRIPS[Trip(trip)]
    except ValueError:
        return Alarm(
            f"trip-{trip}",
            "",
            Priority.HIGH,
            True,
            Action.OFF,
            f"Unknown trip {trip}",
            "the record comes from another version; read it with that one",
        )


def alarm_for_pause(trip: int) -> Alarm:
    """The row of a pause that the guard asks for: H25, H26 clear by themselves, H09 and H24 wait for the operator."""
    alarm = alarm_for_trip(trip)
    advice = alarm.advice.replace(", then start again", "")
    latched = trip in (Trip.LOST_SAMPLES, Trip.CONTACT_AREA)
    when = "when the contact is good again" if trip == Trip.CONTACT_AREA else "when the data is good again"
    return replace(
        alarm,
        key=f"{alarm.key}-pause",
        latched=latched,
        response=Action.PAUSE,
        title=f"Paused: {alarm.title[:1].lower()}{alarm.title[1:]}",
        advice=f"{'resume by hand' if latched else 'goes on by itself'} {when}; {advice}",
    )


def alarm_for_end(reason: int, trip: int = Trip.NONE) -> Alarm:
    """The row of an end (`Tick.end_reason`); for EndReason.TRIP that of `trip`, if given.

    Raises ValueError for EndReason.NONE and for a number that is no reason.
    """
    if reason == EndReason.TRIP and trip != Trip.NONE:
        return alarm_for_trip(trip)
    if reason == EndReason.NONE:
        raise ValueError("end reason 0 is no end")
    return _ENDS[EndReason(reason)]


def alarm_for_soft(soft: SoftAlarm) -> Alarm:
    """The row of a condition under which the session goes on."""
    return _SOFT[soft]
