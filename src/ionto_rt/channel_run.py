"""What belongs to one channel of a session while it runs: limits, plan, the sums of its rows, what happened to it."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt.accuracy import Accuracy
from ionto_rt.alarms import DERATED_LONG_S, PAUSE_LEFT_S, Alarm
from ionto_rt.calibration_file import CalibrationInForce
from ionto_rt.certificate.loop import Plant, running
from ionto_rt.certificate.margins import margins_at
from ionto_rt.codes import AreaAlarm, DeviceStatus, EndReason, OperatorCommand, Phase
from ionto_rt.configuration import REGULATOR_DELAY_TICKS
from ionto_rt.core.controller import Controller
from ionto_rt.device import DeviceCounters
from ionto_rt.interpret import Happening, Interpreter
from ionto_rt.plan import Plan, compile_plan, format_plan
from ionto_rt.record import COULOMB_PER_MAMIN
from ionto_rt.safety import Limits
from ionto_rt.treatment import ChannelTreatment

Rows = npt.NDArray[np.void]

SEEN_S = 0.2
"""What a condition may be older than it is known to be, as it is looked at once in a tenth of a second. Reminders come
earlier by it, so that they are never late."""
QUIET_S = 1.0
"""What samples have to be whole for until those that were lost count as over."""
FRESH_S = 0.5
"""Means of rows are shown while they are not older than this; then the newest sample alone."""
SHOWN_ALARMS = 8
CONTACT_REASONS = (
    EndReason.CONTACT_OPEN,
    EndReason.CONTACT_SHORT,
    EndReason.CONTACT_OUTSIDE,
    EndReason.CONTACT_UNCLEAR,
)
_HOLDS = {OperatorCommand.PAUSE.name: True, OperatorCommand.RESUME.name: False}
BIDDEN = (EndReason.COMPLETE.name, EndReason.OPERATOR.name)
"""Ends that are no channel's own doing."""


@dataclass
class Progress:
    """What the screen shows. Currents in A as signed by the device, charge in C in the treatment's direction.

    `alarms` are the latest ones, `alarms_raised` counts all. `ending`: it was told to stop, or a trip stops it, so that
    `remaining_s` will not be delivered.
    """

    phase: Phase = Phase.SELF_TEST
    elapsed_s: float = 0.0
    remaining_s: float = 0.0
    current_a: float = 0.0
    setpoint_a: float = 0.0
    voltage_v: float = 0.0
    resistance_ohm: float = 0.0
    resistance_sigma_ohm: float = 0.0
    delivered_c: float = 0.0
    prescribed_c: float = 0.0
    step: int = -1
    limited: bool = False
    paused: bool = False
    late: int = 0
    lost: int = 0
    alarms: list[Alarm] = field(default_factory=list)
    alarms_raised: int = 0
    messages: list[str] = field(default_factory=list)
    ending: bool = False

    def show(self, alarm: Alarm) -> None:
        """One more alarm."""
        self.alarms.append(alarm)
        self.alarms_raised += 1
        del self.alarms[:-SHOWN_ALARMS]


class Totals:
    """What the rows of one channel add up to. The recorder's thread adds; others read what a row has left whole.

    last         the newest row added, None before the first
    missing      rows that the ring had no room for: samples that were ticked and are in no row
    """

    def __init__(self) -> None:
        self.last: np.void | None = None
        self.rows = 0
        self.missing = 0
        self.treated = 0
        self.area_watched = 0
        self.peak_current_a = 0.0
        self.peak_voltage_v = 0.0
        self.mean_current_a = 0.0
        self.mean_voltage_v = 0.0
        self.accuracy = Accuracy()
        self._index: int | None = None

    def add(self, rows: Rows) -> list[tuple[int, int]]:
        """Rows of the channel in their order, at least one; where rows are missing: (tick after the gap, how many)."""
        gaps = self._gaps(rows[rows["sample_fault"] == 0])
        self.rows += len(rows)
        self.peak_current_a = max(self.peak_current_a, float(np.abs(rows["current_a"]).max()))
        self.peak_voltage_v = max(self.peak_voltage_v, float(np.abs(rows["voltage_v"]).max()))
        self.mean_current_a = float(rows["current_a"].mean())
        self.mean_voltage_v = float(rows["voltage_v"].mean())
        self.accuracy.add(rows)
        treated = rows["phase"] == Phase.TREATMENT
        self.treated += int(treated.sum())
        self.area_watched += int((treated & (rows["area_ratio"] > 0.0)).sum())
        self.last = rows[-1]
        return gaps

    def _gaps(self, good: Rows) -> list[tuple[int, int]]:
        if not len(good):
            return []
        index = good["index"].astype(np.int64)
        before = np.empty_like(index)
        before[1:] = index[:-1]
        before[0] = index[0] - 1 - int(good["lost_ticks"][0]) if self._index is None else self._index
        self._index = int(index[-1])
        short = index - before - 1 - good["lost_ticks"]
        gaps = [(int(index[at]), int(short[at])) for at in np.flatnonzero(short > 0)]
        self.missing += sum(count for _, count in gaps)
        return gaps


class ChannelRun:
    """One channel of a running session.

    number    of the device, from 0
    name      as the treatment has it; empty if it has one channel
    totals    filled by the recorder's thread
    progress  what the screen shows of it
    cause     the alarm that ended it
    fell      tick at which it tripped or ended short by itself; None: it did not
    left      the alarm of a pause that it was ended for, because nobody was there to resume
    load      what the contact check identified
    last      the newest row known, of the record's or the loop's
    held      somebody has asked for a pause, the operator or the loop, and nobody for a resume after it
    received_c  what its site has received today before it (C), where that is capped
    """

    def __init__(
        self,
        treatment: ChannelTreatment,
        limits: Limits,
        tick_s: float,
    ) -> None:
        self.number = treatment.index
        self.name = treatment.name
        self.treatment = treatment
        self.tick_s = tick_s
        self.limits = limits
        self.plan: Plan = compile_plan(treatment, limits, tick_s)
        self.progress = Progress(prescribed_c=self.plan.prescribed_c, remaining_s=self.plan.nominal_duration_s)
        self.totals = Totals()
        self.trips: list[str] = []
        self.load: dict[str, Any] = {}
        self.cause: Alarm | None = None
        self.fell: int | None = None
        self.left: Alarm | None = None
        self.asked_to_end = False
        self.held = False
        self.received_c: float | None = None
        self.last: np.void | None = None
        self.known: CalibrationInForce | None = None
        self.controller: Controller
        self.interpreter = Interpreter()
        self._paused_at_s: float | None = None
        self._derated_at_s: float | None = None
        self._bad_at_s = float("-inf")

    def configure(self, config: dict[str, Any], known: CalibrationInForce | None) -> Controller:
        """The controller that carries the plan out; `known` is the calibration that `config` goes by."""
        calibration = config["calibration"]
        self.code_c: float = calibration["current_lsb_a"] * calibration["tick_s"] / 65536.0
        self.known = known
        self.controller = Controller(config, self.plan.segments)
        return self.controller

    def facts(self) -> dict[str, Any]:
        """What the record keeps of it from before the first current on."""
        return {
            "name": self.name,
            "drug": self.limits.drug_key,
            "site": self.treatment.site or "",
            "polarity": self.plan.polarity,
            "prescribed_c": self.plan.prescribed_c,
            "max_current_a": self.limits.current_cap_a,
            "controller": self.controller.config,
            "segments": self.controller.segments,
            "limits": self.limits.as_rows(),
            "plan": format_plan(self.plan),
            "calibration": self.known.as_record() if self.known is not None else None,
        }

    def coulombs(self, codes: int) -> float:
        """Charge of a count in 1/65536 code."""
        return codes * self.code_c

    @property
    def absolute_c(self) -> float:
        """Absolute charge (C) up to the newest row that the recorder has had."""
        return self.coulombs(int(self.totals.last["absolute_codes"])) if self.totals.last is not None else 0.0

    @property
    def tick(self) -> int | None:
        """Sample index of the newest row known."""
        return int(self.last["index"]) if self.last is not None else None

    @property
    def ended(self) -> bool:
        """True once the programme has an end."""
        return self.last is not None and bool(self.last["end_reason"])

    def read(self, row: np.void) -> list[Happening]:
        """What happened in a row in which something changed; trips, load and cause are kept."""
        found = self.interpreter.read(row)
        for happening in found:
            if happening.kind == "trip":
                self.trips.append(happening.fields["name"])
            if happening.kind == "load-identified":
                self.load = happening.fields
            if happening.kind in ("trip", "end"):
                self.cause = self.cause or happening.alarm
                if self.fell is None and (happening.kind == "trip" or happening.fields["reason"] not in BIDDEN):
                    self.fell = happening.tick
            if happening.alarm is not None:
                self.progress.show(happening.alarm)
            self.progress.messages.append(happening.kind)
        del self.progress.messages[:-8]
        return found

    @staticmethod
    def waits_for_a_person(happening: Happening) -> bool:
        """True for a pause that somebody must resume: of the guard, or because another channel has tripped."""
        if happening.kind == "held-for-others":
            return True
        return happening.kind == "guard-pause" and bool(happening.fields["latched"])

    def follow(self, happening: Happening, time_s: float) -> None:
        """What later decides what is paused and which causes are gone: when samples were lost last, and so on."""
        if happening.kind == "held-for-others":
            self.held = True
        elif happening.kind == "operator" and happening.fields["command"] in _HOLDS:
            self.held = _HOLDS[happening.fields["command"]]
        elif happening.kind in ("samples-lost", "sample-refused"):
            self._bad_at_s = time_s
        elif happening.kind == "derated" and happening.alarm is not None:
            self._derated_at_s = time_s
        elif happening.kind == "derating-over":
            self._derated_at_s = None

    def is_paused(self, row: np.void | None) -> bool:
        """There is something to resume, by what was asked for or by the newest row."""
        return self.held or (row is not None and (bool(row["pause"]) or int(row["phase"]) == Phase.PAUSE))

    def knows(self, row: np.void | None) -> bool:
        """The guard's pause in the newest row has been told."""
        if row is None or not row["pause"]:
            return True
        told = self.interpreter
        return (told.pause, told.pause_latched) == (int(row["pause"]), bool(row["pause_latched"]))

    def derated_long(self, time_s: float) -> bool:
        """The current has been lowered for longer than DERATED_LONG_S (H04)."""
        return self._derated_at_s is not None and time_s - self._derated_at_s > DERATED_LONG_S

    def is_quiet(self, row: np.void, time_s: float) -> bool:
        """No current is asked for, samples have come whole for a second, and the contact area is not judged smaller."""
        asked = bool(row["close_relay"]) and float(row["setpoint_a"]) != 0.0
        return not asked and time_s - self._bad_at_s >= QUIET_S and int(row["area_alarm"]) != AreaAlarm.SMALLER

    def look(self, newest: np.void | None) -> None:
        """Bring the screen up to date: by the recorder's rows, or by the loop's newest one if that is ahead of them."""
        row = self.totals.last
        if newest is not None and (row is None or int(newest["index"]) > int(row["index"])):
            row = newest
        if row is None or (self.last is not None and int(row["index"]) < int(self.last["index"])):
            return
        self.last = row
        recorded = self.totals.last
        fresh = recorded is not None and (int(row["index"]) - int(recorded["index"])) * self.tick_s < FRESH_S
        shown = self.progress
        shown.phase = Phase(int(row["phase"]))
        # No row comes after the end: a mean of the last ones would go on showing a current when none flows.
        fresh = fresh and not row["end_reason"]
        shown.elapsed_s = (int(row["index"]) + 1) * self.tick_s
        shown.current_a = self.totals.mean_current_a if fresh else float(row["current_a"])
        shown.setpoint_a = float(row["level_a"])
        shown.voltage_v = self.totals.mean_voltage_v if fresh else float(row["voltage_v"])
        shown.resistance_ohm = float(row["resistance_ohm"])
        shown.resistance_sigma_ohm = float(row["resistance_sigma_ohm"])
        shown.delivered_c = float(row["delivered_c"])
        shown.remaining_s = self._remaining_s(shown.delivered_c, shown.elapsed_s)
        shown.step = int(row["step"])
        shown.limited = bool(row["limited"])
        shown.paused = shown.phase == Phase.PAUSE
        told = self.asked_to_end or self.left is not None
        shown.ending = told or any(bool(row[name]) for name in ("stop", "trip", "end_reason"))

    def _remaining_s(self, delivered_c: float, elapsed_s: float) -> float:
        """Where the nominal plan has this much delivered, and what it takes from there."""
        for step in self.plan.steps:
            if delivered_c < step.charge_total_c and step.charge_c > 0.0:
                left = (step.charge_total_c - delivered_c) / step.charge_c
                return max(0.0, self.plan.nominal_duration_s - step.start_s - step.duration_s * (1.0 - min(1.0, left)))
        return max(0.0, self.plan.nominal_duration_s - elapsed_s)

    def pause_is_left(self) -> bool:
        """True when it has been paused for longer than anybody means to, and again after as long (H46)."""
        shown = self.progress
        if not shown.paused:
            self._paused_at_s = None
            return False
        self._paused_at_s = shown.elapsed_s if self._paused_at_s is None else self._paused_at_s
        if shown.elapsed_s - self._paused_at_s <= PAUSE_LEFT_S - SEEN_S:
            return False
        self._paused_at_s = shown.elapsed_s
        return True

    def delivered(self, counters: DeviceCounters | None) -> "Delivered":
        """What it has delivered in the end, never below the device's count, of its samples or when it was disarmed."""
        last = self.last
        ledger_c = float(last["delivered_c"]) if last is not None else 0.0
        absolute_c = self.coulombs(int(last["absolute_codes"])) if last is not None else 0.0
        sampled_c = self.coulombs(int(last["device_charge_codes"])) if last is not None else 0.0
        absolute_c, most_c = max(absolute_c, abs(sampled_c)), max(ledger_c, self.plan.polarity * sampled_c)
        if counters is not None:
            net_codes, absolute_codes = counters.channel_charges[self.number]
            device_c = self.plan.polarity * self.coulombs(net_codes)
            absolute_c = max(absolute_c, self.coulombs(absolute_codes))
            return Delivered(max(most_c, device_c), absolute_c, ledger_c, device_c, 0.0)
        unseen_c = self._uncounted_c()
        return Delivered(most_c + unseen_c, absolute_c + unseen_c, ledger_c, None, unseen_c)

    def _uncounted_c(self) -> float:
        """The most that flowed after the last sample, which nobody counted: for the lease, at the guard's trip level.

        That of the current which was asked for or read last: while the guard ramps down nothing is asked for. The relay
        is closed as long as the device says so, since the command to open it may not have arrived.
        """
        last = self.last
        if last is None or not (last["close_relay"] or int(last["status"]) & DeviceStatus.RELAY_CLOSED):
            return 0.0
        rows = [row for row in (last, self.totals.last) if row is not None]
        found_a = [abs(float(row[name])) for row in rows for name in ("setpoint_a", "current_a", "redundant_a")]
        level_a = max((value for value in found_a if math.isfinite(value)), default=0.0)
        config = self.controller.config
        trip_a = max(config["guard"]["over_ratio"] * level_a, level_a + config["guard"]["over_margin_a"])
        return float(trip_a * (config["lease_ticks"] + 2) * self.tick_s)

    @property
    def end_reason(self) -> EndReason:
        """As the newest row has it."""
        return EndReason(int(self.last["end_reason"])) if self.last is not None else EndReason.NONE

    def margins(self) -> dict[str, float] | None:
        """Of the loop at the load that the contact check identified."""
        if not self.load:
            return None
        plant = Plant(*(self.load[name] for name in ("model_pole", "model_gain", "model_gain_before")))
        # The model's delay is the one found, the tuning is of the one told.
        return margins_at(plant, self.load["model_delay_ticks"], running(REGULATOR_DELAY_TICKS))._asdict()

    def receipt(self, delivered: "Delivered") -> dict[str, Any]:
        """Its part of the receipt but for outcome and reason."""
        totals, plan = self.totals, self.plan
        facts: dict[str, Any] = {
            "dose_prescribed_mamin": plan.prescribed_c / COULOMB_PER_MAMIN,
            "dose_delivered_mamin": delivered.net_c / COULOMB_PER_MAMIN,
            "dose_ledger_mamin": delivered.ledger_c / COULOMB_PER_MAMIN,
            "dose_device_mamin": None if delivered.device_c is None else delivered.device_c / COULOMB_PER_MAMIN,
            "dose_unseen_mamin": delivered.unseen_c / COULOMB_PER_MAMIN,
            "delivered_net_c": delivered.net_c,
            "delivered_abs_c": delivered.absolute_c,
            "peak_current_ma": totals.peak_current_a * 1e3,
            "peak_voltage_v": totals.peak_voltage_v,
            "area_watched_ratio": totals.area_watched / totals.treated if totals.treated else None,
            "load": self.load or None,
            "margins": self.margins(),
            "mean_error_ratio": totals.accuracy.mean_error_ratio,
            "ripple_rms_ratio": totals.accuracy.ripple_rms_ratio,
            "trips": self.trips,
        }
        if plan.drug_mass_kg is not None:
            share = min(1.0, delivered.net_c / plan.prescribed_c) if plan.prescribed_c else 0.0
            facts["drug_mass_mg_interval"] = [mass * share * 1e6 for mass in plan.drug_mass_kg]
        return facts


@dataclass(frozen=True)
class Delivered:
    """Charge of a channel at its end (C, net in the treatment's direction): on record, and as each has counted it.

    `device_c` is None if the device did not tell; then `unseen_c` is what nobody counted, and part of the rest.
    """

    net_c: float
    absolute_c: float
    ledger_c: float
    device_c: float | None
    unseen_c: float
