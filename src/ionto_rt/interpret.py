"""Rows in which something changed -> events that people read, with their alarms."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ionto_rt.alarms import Alarm, SoftAlarm, alarm_for_end, alarm_for_pause, alarm_for_soft, alarm_for_trip
from ionto_rt.codes import (
    LOOP_SEQUENCE,
    Action,
    Advice,
    Contact,
    DeviceStatus,
    EndReason,
    Event,
    OperatorCommand,
    Phase,
    ProbeVerdict,
    SampleFault,
    Trip,
)


@dataclass(frozen=True)
class Happening:
    """One event: `kind` and `fields` go to the log, `alarm` to the screen; `safety` ones reach the disk at once."""

    tick: int
    kind: str
    fields: dict[str, Any]
    safety: bool = False
    alarm: Alarm | None = None


def alarm_fields(alarm: Alarm) -> dict[str, Any]:
    """What an event says of its alarm."""
    return {
        "alarm": alarm.key,
        "hazard": alarm.hazard,
        "priority": alarm.priority.name,
        "title": alarm.title,
        "advice": alarm.advice,
    }


class DeviceClock:
    """The device's clock in s, from the 32 bits of microseconds of its samples, which come round after 71 minutes.

    Rows may come in any order, as long as they lie within half of that of each other.
    """

    def __init__(self) -> None:
        self._newest_us: int | None = None

    def at(self, row: np.void) -> float:
        """Of a row; of one whose sample was refused, the newest known."""
        told_us = int(row["device_time_us"])
        if self._newest_us is None:
            self._newest_us = told_us
        if row["sample_fault"]:
            return self._newest_us * 1e-6
        change_us = (told_us - self._newest_us + (1 << 31)) % (1 << 32) - (1 << 31)
        found_us = self._newest_us + change_us
        self._newest_us = max(self._newest_us, found_us)
        return found_us * 1e-6


_LOAD = (
    "resistance_ohm",
    "resistance_sigma_ohm",
    "series_ohm",
    "series_sigma_ohm",
    "parallel_ohm",
    "parallel_sigma_ohm",
    "capacitance_f",
    "capacitance_sigma_f",
)
_ADVICE = {Advice.WET_PADS: SoftAlarm.PADS_DRY, Advice.MAINS: SoftAlarm.MAINS, Advice.AREA: SoftAlarm.AREA_CAPPED}
_CAPS = (DeviceStatus.OVER_CURRENT, DeviceStatus.CHARGE_CAP, DeviceStatus.TIME_CAP)


class Interpreter:
    """Remembers the row before, to say what changed."""

    def __init__(self) -> None:
        self.phase: int | None = None
        self.action = 0
        self.trip = 0
        self.pause = 0
        self.pause_latched = False
        self.limited = 0
        self.contact = 0
        self.status = 0
        self.segment = -1
        self.probe_verdict = 0
        self.advice = 0
        self.end_reason = 0

    def read(self, row: np.void) -> list[Happening]:
        """What happened in one row of telemetry."""
        found: list[Happening] = []
        tick = int(row["index"])

        def say(kind: str, fields: dict[str, Any], *, safety: bool = False, alarm: Alarm | None = None) -> None:
            if alarm is not None:
                fields = fields | alarm_fields(alarm)
            found.append(Happening(tick, kind, fields, safety, alarm))

        events = int(row["events"])
        if events & Event.GAP:
            say("samples-lost", {"lost": int(row["lost_ticks"])})
        if events & Event.BAD_SAMPLE:
            say("sample-refused", {"fault": SampleFault(int(row["sample_fault"])).name})
        if int(row["trip"]) != self.trip:
            self.trip = int(row["trip"])
            self.action = int(row["action"])
            alarm = alarm_for_trip(self.trip)
            if self.trip == Trip.DEVICE_CAP:
                acted = ", ".join(
                    str(flag.name).lower().replace("_", " ") for flag in _CAPS if flag & int(row["status"])
                )
                alarm = replace(alarm, title=f"{alarm.title}: {acted}")
            named = {"code": self.trip, "name": Trip(self.trip).name, "hazard": alarm.hazard}
            say("trip", named | {"action": Action(self.action).name} | _readings(row), safety=True, alarm=alarm)
        elif int(row["action"]) != self.action and int(row["trip"]):
            self.action = int(row["action"])
            say("action", {"action": Action(self.action).name} | _readings(row), safety=True)
        if self.pause and int(row["pause"]) and int(row["operator_command"]) == OperatorCommand.RESUME:
            # A resume ends every pause: this one began in the same tick.
            self.pause, self.pause_latched = 0, False
            say("guard-pause-over", {})
        if (int(row["pause"]), bool(row["pause_latched"])) != (self.pause, self.pause_latched):
            self.pause, self.pause_latched = int(row["pause"]), bool(row["pause_latched"])
            if self.pause:
                # After a trip has latched nothing goes on by itself any more.
                told = None if self.trip else alarm_for_pause(self.pause, latched=self.pause_latched)
                named = {"code": self.pause, "name": Trip(self.pause).name, "latched": self.pause_latched}
                say("guard-pause", named, safety=True, alarm=told)
            else:
                say("guard-pause-over", {})
        if int(row["operator_sequence"]) & LOOP_SEQUENCE:
            say("held-for-others", _readings(row), safety=True, alarm=alarm_for_soft(SoftAlarm.HELD_FOR_OTHERS))
        elif int(row["operator_sequence"]):
            command = OperatorCommand(int(row["operator_command"])).name
            sequence = int(row["operator_sequence"])
            say("operator", {"command": command, "sequence": sequence, "value_a": float(row["operator_value_a"])})
        if int(row["contact"]) != self.contact:
            if int(row["contact"]) == Contact.LOST:
                say("contact-lost", _readings(row), alarm=alarm_for_soft(SoftAlarm.CONTACT_LOST))
            elif self.contact == Contact.LOST:
                say("contact-back", _readings(row))
            self.contact = int(row["contact"])
        if int(row["limited"]) != self.limited:
            self.limited = int(row["limited"])
            if not self.limited:
                say("derating-over", _readings(row))
            elif self.contact == Contact.LOST:
                say("derated", _readings(row))
            else:
                say("derated", _readings(row), alarm=alarm_for_soft(SoftAlarm.DERATED))
        if int(row["advice"]) != self.advice:
            before, self.advice = self.advice, int(row["advice"])
            for bit, soft in _ADVICE.items():
                if bit & self.advice & ~before:
                    say(soft.value, _readings(row), alarm=alarm_for_soft(soft))
                elif bit & before & ~self.advice:
                    say(f"{soft.value}-over", _readings(row))
        if int(row["status"]) != self.status:
            self.status = int(row["status"])
            say("device-status", {"status": [flag.name for flag in DeviceStatus if flag & self.status]})
        if int(row["probe_verdict"]) != self.probe_verdict:
            self.probe_verdict = int(row["probe_verdict"])
            if self.probe_verdict == ProbeVerdict.GOOD:
                say("load-identified", {name: float(row[name]) for name in _LOAD} | _model(row))
        if int(row["segment"]) != self.segment and row["step"] >= 0:
            say("step", {"step": int(row["step"]), "segment": int(row["segment"])})
        self.segment = int(row["segment"])
        if int(row["phase"]) != self.phase:
            phase = Phase(int(row["phase"]))
            self.phase = int(phase)
            ended = phase in (Phase.FAULTED, Phase.ABORTED, Phase.COMPLETE)
            say("phase", {"phase": phase.name, "delivered_c": float(row["delivered_c"])}, safety=ended)
        # By the state and not by its event: the row in which it began may have found the ring of events full.
        if int(row["end_reason"]) != self.end_reason:
            reason = self.end_reason = int(row["end_reason"])
            quiet = reason in (EndReason.COMPLETE, EndReason.TRIP)
            fields = {"reason": EndReason(reason).name, "delivered_c": float(row["delivered_c"])}
            say("end", fields, safety=True, alarm=None if quiet else alarm_for_end(reason, self.trip))
        return found


def _model(row: np.void) -> dict[str, Any]:
    return {name: row[name].item() for name in ("model_pole", "model_gain", "model_gain_before", "model_delay_ticks")}


def _readings(row: np.void) -> dict[str, Any]:
    return {name: float(row[name]) for name in ("setpoint_a", "current_a", "redundant_a", "voltage_v")}
