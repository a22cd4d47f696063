"""One treatment session: limits resolved and pushed, the loop run and watched, the record kept, the receipt written.

The orchestrator's thread drains the rings, renews the heartbeat, extends the charge reservation and writes the record;
the loop's thread does none of that. On a virtual clock the two take turns in one thread, so that nothing depends on
the speed of this host.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ionto_rt.accuracy import Accuracy
from ionto_rt.alarms import PAUSE_LEFT_S, Alarm, SoftAlarm, alarm_for_soft
from ionto_rt.calibration_file import calibration_in_force
from ionto_rt.catalogue import Catalogue
from ionto_rt.certificate.loop import Plant, running
from ionto_rt.certificate.margins import margins_at
from ionto_rt.codes import Action, EndReason, OperatorCommand, Pacing, Phase, StopFlag, Trip
from ionto_rt.configuration import FIT, REGULATOR_DELAY_TICKS, RING_S, controller_config, device_limits, ticks_of
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.device import Device, DeviceCounters, new_token
from ionto_rt.errors import RefusedError
from ionto_rt.fitness import examine_for, refuse_unfit
from ionto_rt.host import awake_processors, deadline_profile, describe_host, pin_to_cpu, prepare_thread
from ionto_rt.interpret import Happening, Interpreter
from ionto_rt.journal import Ending, Journal, Reservation
from ionto_rt.plan import Plan, compile_plan, format_plan
from ionto_rt.record import RecordError, SessionFolder
from ionto_rt.safety import Limits, OperatorLimits, resolve_limits
from ionto_rt.treatment import Treatment

COULOMB_PER_MAMIN = 0.06
SERVICE_S = 0.1
"""Real time between two visits of the orchestrator; a tenth of a second is also a batch of the record."""
TURN_S = 0.1
"""Virtual time between two visits on a virtual clock: one batch of the record, so that a crash loses no more."""
RESERVE_S = 1.0
"""Charge reserved ahead in the journal: this long at the session's highest current."""
DRAIN_ROWS = 512
LATE_ALARM_SHARE = 0.01
SHOWN_ALARMS = 8
PAUSES_TO_RESUME = (Trip.LOST_SAMPLES, Trip.CONTACT_AREA)
"""Pauses of the guard that wait for a person."""
CONTACT_REASONS = (
    EndReason.CONTACT_OPEN,
    EndReason.CONTACT_SHORT,
    EndReason.CONTACT_OUTSIDE,
    EndReason.CONTACT_UNCLEAR,
)

Outcome = Literal["complete", "aborted", "faulted"]


@dataclass
class Progress:
    """What the screen shows. Currents in A as signed by the device, charge in C in the treatment's direction.

    `alarms` are the latest ones, `alarms_raised` counts all.
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


Watcher = Callable[["Session"], None]


class Session:
    """One session of `treatment` on an open `device`; `run` carries it out and returns the receipt.

    `speed` "max" needs a device that offers lock-step. `watcher` is called at each visit of the orchestrator, in its
    thread; from there, or from a signal handler, `pause`, `resume`, `trim`, `stop` and `stop_now` may be called.
    `attended` says that somebody is there to resume: without, a pause that latches ends the session. In real time a
    host that is unfit is refused on hardware, unless `accept_unfit`; `cpu` is the processor the loop then stays on.
    RefusedError from the constructor or from `run` means that no current has flowed and nothing was left behind.
    `record_path` is the session's folder from arming on; while it is None, no current has flowed.
    """

    def __init__(
        self,
        treatment: Treatment,
        device: Device,
        *,
        out_dir: Path,
        speed: Literal["real", "max"] = "real",
        catalogue: Catalogue | None = None,
        operator: OperatorLimits | None = None,
        watcher: Watcher | None = None,
        attended: bool = False,
        accept_unfit: bool = False,
        cpu: int | None = None,
    ) -> None:
        hello = device.hello
        self.pacing = Pacing.LOCK_STEP if speed == "max" else Pacing.DEVICE
        if not hello.pacing & self.pacing:
            if speed == "max":
                remedy = "run with --speed real, or on virtual:"
                raise RefusedError("this device has no lock-step", key="--speed", value=speed, remedy=remedy)
            raise RefusedError(
                "this device does not pace itself", key=device.uri, remedy="run with --speed max, or use another device"
            )
        if hello.channels != 1:
            remedy = "use a device with one channel"
            raise RefusedError(
                f"the device has {hello.channels} channels, this version drives one", key=device.uri, remedy=remedy
            )
        self.treatment = treatment
        self.device = device
        self.out_dir = out_dir
        self.virtual_clock = speed == "max"
        self.watcher = watcher
        self.attended = attended
        self.cpu = cpu
        self.fitness = examine_for(device, cpu=cpu)
        self.accepted = accept_unfit and self.fitness.verdict == "unfit"
        if not (self.virtual_clock or accept_unfit):
            refuse_unfit(self.fitness, device)
        self.catalogue = catalogue or Catalogue.load()
        self.limits: Limits = resolve_limits(treatment, self.catalogue, hello.capabilities, operator)
        self.plan: Plan = compile_plan(treatment, self.limits, hello.tick_s)
        self.progress = Progress(prescribed_c=self.plan.prescribed_c, remaining_s=self.plan.nominal_duration_s)
        self.trips: list[str] = []
        self.record_path: Path | None = None
        self._interpreter = Interpreter()
        self._last: np.void | None = None
        self._accuracy = Accuracy()
        self._load: dict[str, Any] = {}
        self._treated = 0
        self._area_watched = 0
        self._peak_current_a = 0.0
        self._peak_voltage_v = 0.0
        self._rows = 0
        self._reserved_c = 0.0
        self._paused_at_s: float | None = None
        self._soft: set[SoftAlarm] = set()
        self._stop_sent = False
        self._cause: Alarm | None = None
        self._interrupts = 0
        self._failure: Exception | None = None

    def pause(self) -> None:
        """Ramp down and hold the dose until `resume`."""
        self.loop.operator(OperatorCommand.PAUSE)

    def resume(self) -> None:
        """Ramp up again from zero."""
        self.loop.operator(OperatorCommand.RESUME)

    def trim(self, current_a: float) -> None:
        """Add to the level of the steps (A, of the magnitude), within the limits."""
        self.loop.operator(OperatorCommand.TRIM, current_a)

    def stop(self) -> None:
        """Ramp down and end."""
        self.loop.stop(StopFlag.RAMP_DOWN)

    def stop_now(self) -> None:
        """Output off at once."""
        self.loop.stop(StopFlag.NOW)

    def run(self) -> dict[str, Any]:
        """Carry out the session; the receipt. RefusedError if it could not begin."""
        hello = self.device.hello
        token = new_token()
        host = self._prepare_host()
        profile = FIT if self.virtual_clock else deadline_profile(host)
        host["deadlines"] = profile.name
        assert self.limits.current_range is not None
        known = calibration_in_force(self.out_dir, hello, self.limits.current_range.index)
        skew_s = known.skew_s if known is not None else 0.0
        config = controller_config(hello, self.limits, self.plan, profile, token, skew_s=skew_s)
        calibration = config["calibration"]
        self._code_c: float = calibration["current_lsb_a"] * calibration["tick_s"] / 65536.0
        self.controller = Controller(config, self.plan.segments)
        self.loop = Loop(
            self.controller,
            self.device.port.loop_port(),
            virtual_clock=self.virtual_clock,
            ring_rows=1 << max(10, (ticks_of(RING_S, hello.tick_s) - 1).bit_length()),
            silence_s=2.0 if self.virtual_clock else 0.5,
        )
        host["memory"] = "not asked (virtual clock)" if self.virtual_clock else self.loop.lock_memory()
        session: dict[str, Any] = {
            "subject": self.treatment.subject or "",
            "channels": [
                {
                    "name": "",
                    "drug": self.limits.drug_key,
                    "site": self.treatment.site or "",
                    "polarity": self.plan.polarity,
                    "prescribed_c": self.plan.prescribed_c,
                    "max_current_a": self.limits.current_cap_a,
                    "controller": self.controller.config,
                    "segments": self.controller.segments,
                    "limits": self.limits.as_rows(),
                    "plan": format_plan(self.plan),
                    "calibration": known.as_record() if known is not None else None,
                }
            ],
            "rate_hz": 1.0 / hello.tick_s,
            "device": {
                "uri": self.device.uri,
                "name": hello.name,
                "firmware": hello.firmware_version,
                "pacing": self.pacing.name,
                "front_end": hello.front_end.name,
                "sentinel": hello.sentinel_lsb_v > 0.0,
                "pid": self.device.process.pid if self.device.process is not None else None,
            },
            "catalogue_sha256": self.limits.catalogue_sha256,
            "treatment_sha256": self.treatment.sha256,
            "host": describe_host() | host,
        }
        with Journal(self.out_dir) as journal:
            folder = SessionFolder.create(
                self.out_dir, Path(self.treatment.path).stem, treatment_source=self.treatment.source, session=session
            )
            try:
                self._reserved_c = self.limits.current_cap_a * RESERVE_S
                journal.begin(
                    folder.session_id,
                    folder.path,
                    self.treatment.subject or "",
                    [Reservation(self.treatment.site or "", self.plan.prescribed_c, self._reserved_c)],
                )
                self.device.push_limits(**device_limits(hello, self.limits, token))
                self.device.arm(self.pacing, token)
            except BaseException:
                journal.withdraw(folder.session_id)
                folder.discard()
                raise
            with awake_processors(self.virtual_clock) as awake:
                folder.events.write("host", None, processors_awake=awake)
                return self._carry_out(folder, journal, token)

    def _prepare_host(self) -> dict[str, Any]:
        """Ask the host for what the loop would like to have; what came of it."""
        host: dict[str, Any] = {
            "serial": getattr(self.device.port, "low_latency", "in process"),
            "fitness": self.fitness.as_record(accepted=self.accepted),
        }
        if self.virtual_clock:
            host["affinity"] = pin_to_cpu(self.device.cpu)
        else:
            host |= self.fitness.thread
        return host

    def _carry_out(self, folder: SessionFolder, journal: Journal, token: int) -> dict[str, Any]:
        self.record_path = folder.path
        telemetry = folder.open_telemetry(self.loop.drain(1).dtype, 1.0 / self.device.hello.tick_s)
        folder.events.write(
            "armed", None, safety=True, device=self.device.hello.name, token=token, pacing=self.pacing.name
        )
        self._folder, self._journal, self._telemetry = folder, journal, telemetry
        if self.virtual_clock:
            turn = ticks_of(TURN_S, self.device.hello.tick_s)
            while self.loop.status == "running":
                self._guarded(lambda: self.loop.run(turn))
                self._guarded(self._visit)
        else:
            done = threading.Event()
            thread = threading.Thread(target=self._loop_thread, args=(done,), name="ionto-rt loop")
            thread.start()
            while not done.is_set():
                self._guarded(lambda: done.wait(SERVICE_S))
                self._guarded(self._visit)
            thread.join()
        self._guarded(self._visit)
        counters = self.device.disarm(token)
        return self._end(folder, journal, counters)

    def _guarded(self, act: Callable[[], object]) -> None:
        """Nothing that fails here may leave current on: the first failure ramps down, and the session goes on to its
        end. A second Ctrl-C switches off at once.
        """
        try:
            act()
        except KeyboardInterrupt:
            self._interrupts += 1
            self.loop.stop(StopFlag.RAMP_DOWN if self._interrupts == 1 else StopFlag.NOW)
        except Exception as failure:
            self.loop.stop(StopFlag.RAMP_DOWN)
            self.loop.beat()
            self._failure = self._failure or failure

    def _loop_thread(self, done: threading.Event) -> None:
        try:
            prepare_thread(self.cpu)
            self.loop.run()
        finally:
            done.set()

    def _visit(self) -> None:
        """One round of the orchestrator."""
        self.loop.beat()
        for row in self.loop.drain_events():
            for happening in self._interpreter.read(row):
                self._note(happening)
        self._drain()
        self._reserve()
        self._watch_conditions()
        if self.watcher is not None:
            self.watcher(self)

    def _drain(self) -> None:
        """Rows to the record and to the screen; a round that is not full is the last, or it would chase the loop."""
        filled = DRAIN_ROWS
        while filled == DRAIN_ROWS:
            rows = self.loop.drain(DRAIN_ROWS)
            filled = len(rows)
            if filled:
                self._keep(rows)
                self._take(rows)

    def _keep(self, rows: np.ndarray[Any, np.dtype[np.void]]) -> None:
        try:
            self._telemetry.append(rows)
            if not self.virtual_clock:
                self._telemetry.flush()
        except RecordError as error:
            self._raise_soft(SoftAlarm.RECORD_BEHIND, problem=str(error))

    def _take(self, rows: np.ndarray[Any, np.dtype[np.void]]) -> None:
        last = rows[-1]
        self._rows += len(rows)
        self._peak_current_a = max(self._peak_current_a, float(np.abs(rows["current_a"]).max()))
        self._peak_voltage_v = max(self._peak_voltage_v, float(np.abs(rows["voltage_v"]).max()))
        self._accuracy.add(rows)
        treated = rows["phase"] == Phase.TREATMENT
        self._treated += int(treated.sum())
        self._area_watched += int((treated & (rows["area_ratio"] > 0.0)).sum())
        self._last = last
        shown = self.progress
        shown.phase = Phase(int(last["phase"]))
        shown.elapsed_s = (int(last["index"]) + 1) * self.device.hello.tick_s
        shown.current_a = float(rows["current_a"].mean())
        shown.setpoint_a = float(last["level_a"])
        shown.voltage_v = float(rows["voltage_v"].mean())
        shown.resistance_ohm = float(last["resistance_ohm"])
        shown.resistance_sigma_ohm = float(last["resistance_sigma_ohm"])
        shown.delivered_c = float(last["delivered_c"])
        shown.remaining_s = self._remaining_s(shown.delivered_c, shown.elapsed_s)
        shown.step = int(last["step"])
        shown.limited = bool(last["limited"])
        shown.paused = shown.phase == Phase.PAUSE

    def _remaining_s(self, delivered_c: float, elapsed_s: float) -> float:
        """Where the nominal plan has this much delivered, and what it takes from there."""
        for step in self.plan.steps:
            if delivered_c < step.charge_total_c and step.charge_c > 0.0:
                left = (step.charge_total_c - delivered_c) / step.charge_c
                return max(0.0, self.plan.nominal_duration_s - step.start_s - step.duration_s * (1.0 - min(1.0, left)))
        return max(0.0, self.plan.nominal_duration_s - elapsed_s)

    def _reserve(self) -> None:
        """Keep the journal's reservation ahead of the charge, before the current gets there."""
        if self._last is None or self._last["end_reason"]:
            return
        absolute_c = self._coulombs(int(self._last["absolute_codes"]))
        highest_a = self.limits.current_cap_a
        # On a virtual clock no charge flows between two visits but a turn's; in real time Python may stall.
        least_s = 2.0 * TURN_S if self.virtual_clock else 0.6 * RESERVE_S
        if self._reserved_c - absolute_c < least_s * highest_a:
            self._reserved_c = absolute_c + RESERVE_S * highest_a
            self._journal.extend(self._folder.session_id, [(absolute_c, self._reserved_c)])

    def _coulombs(self, codes: int) -> float:
        return codes * self._code_c

    def _note(self, happening: Happening) -> None:
        self._folder.events.write(happening.kind, happening.tick, safety=happening.safety, **happening.fields)
        if happening.kind == "trip":
            self.trips.append(happening.fields["name"])
        if happening.kind == "load-identified":
            self._load = happening.fields
        if happening.kind in ("trip", "end"):
            self._cause = self._cause or happening.alarm
        if happening.alarm is not None:
            self._show(happening.alarm)
        self.progress.messages.append(happening.kind)
        del self.progress.messages[:-8]
        latched = happening.kind == "guard-pause" and happening.fields["code"] in PAUSES_TO_RESUME
        if latched and not self.attended and not self._stop_sent:
            self._stop_sent = True
            self._folder.events.write(
                "unattended", happening.tick, safety=True, advice="nobody is there to resume: ending"
            )
            self.stop()

    def _raise_soft(self, soft: SoftAlarm, **fields: Any) -> None:
        if soft in self._soft:
            return
        self._soft.add(soft)
        alarm = alarm_for_soft(soft)
        tick = int(self._last["index"]) if self._last is not None else None
        self._folder.events.write(
            "alarm",
            tick,
            alarm=alarm.key,
            priority=alarm.priority.name,
            title=alarm.title,
            advice=alarm.advice,
            **fields,
        )
        self._show(alarm)

    def _show(self, alarm: Alarm) -> None:
        self.progress.alarms.append(alarm)
        self.progress.alarms_raised += 1
        del self.progress.alarms[:-SHOWN_ALARMS]

    def _watch_conditions(self) -> None:
        counters = self.loop.counters
        self.progress.late, self.progress.lost = counters["late"], counters["lost"]
        if counters["ring_dropped"]:
            self._raise_soft(SoftAlarm.RING_OVERFLOW, dropped=counters["ring_dropped"])
        ended = self._last is not None and bool(self._last["end_reason"])
        if not ended and counters["late"] > max(10, LATE_ALARM_SHARE * counters["ticks"]):
            self._raise_soft(SoftAlarm.LATE_COMMANDS, late=counters["late"])
        if (self.progress.phase == Phase.PAUSE and self.progress.step < 0) or self.progress.paused:
            self._paused_at_s = self.progress.elapsed_s if self._paused_at_s is None else self._paused_at_s
            if self.progress.elapsed_s - self._paused_at_s > PAUSE_LEFT_S:
                self._raise_soft(SoftAlarm.PAUSE_LEFT)
        else:
            self._paused_at_s = None

    def _end(self, folder: SessionFolder, journal: Journal, counters: DeviceCounters | None) -> dict[str, Any]:
        last = self._last
        status = self.loop.status
        tick_s = self.device.hello.tick_s
        net_c = float(last["delivered_c"]) if last is not None else 0.0
        absolute_c = self._coulombs(int(last["absolute_codes"])) if last is not None else 0.0
        unseen_c = 0.0
        device_net_c = None
        if counters is not None:
            device_net_c = self.plan.polarity * self._coulombs(counters.net_codes)
            net_c = max(net_c, device_net_c)
            absolute_c = max(absolute_c, self._coulombs(counters.absolute_codes))
        elif last is not None:
            # Nobody counted what flowed after the last sample: the lease, at the guard's trip level.
            config = self.controller.config
            level_a = abs(float(last["setpoint_a"]))
            trip_a = max(config["guard"]["over_ratio"] * level_a, level_a + config["guard"]["over_margin_a"])
            unseen_c = trip_a * (config["lease_ticks"] + 2) * tick_s if last["close_relay"] else 0.0
            net_c += unseen_c
            absolute_c += unseen_c
        reason = EndReason(int(last["end_reason"])) if last is not None else EndReason.NONE
        outcome: Outcome
        if status in ("lost", "silent"):
            outcome, text = "faulted", self._device_gone(folder, status)
        elif reason == EndReason.COMPLETE:
            outcome, text = "complete", "the prescribed dose was delivered"
            if net_c < self.plan.prescribed_c * 0.995:
                outcome, text = "aborted", "the programme ended short of the prescribed dose"
        elif reason in (EndReason.TRIP, EndReason.SELF_TEST):
            outcome = "faulted"
            text = self._cause.line if self._cause is not None else "a trip latched"
        else:
            outcome = "aborted"
            unattended = self.progress.alarms[-1:] if self._stop_sent else []
            contact = reason in CONTACT_REASONS
            text = self._cause.line if contact and self._cause is not None else "stopped by the operator"
            if unattended:
                text = f"{unattended[0].line}; nobody was there to resume"
        if self._failure is not None:
            outcome, text = "faulted", f"the host failed ({type(self._failure).__name__}: {self._failure}); ramped down"
        device_late = counters.late if counters is not None else None
        receipt: dict[str, Any] = {
            "outcome": outcome,
            "reason": text,
            "dose_prescribed_mamin": self.plan.prescribed_c / COULOMB_PER_MAMIN,
            "dose_delivered_mamin": net_c / COULOMB_PER_MAMIN,
            "dose_ledger_mamin": (float(last["delivered_c"]) if last is not None else 0.0) / COULOMB_PER_MAMIN,
            "dose_device_mamin": device_net_c / COULOMB_PER_MAMIN if device_net_c is not None else None,
            "dose_unseen_mamin": unseen_c / COULOMB_PER_MAMIN,
            "delivered_net_c": net_c,
            "delivered_abs_c": absolute_c,
            "peak_current_ma": self._peak_current_a * 1e3,
            "peak_voltage_v": self._peak_voltage_v,
            "duration_s": self._rows * tick_s,
            "ticks": self.loop.counters["ticks"],
            "gaps": self.loop.counters["lost"],
            "late": device_late if device_late is not None else self.loop.counters["late"],
            "latency_us": self.loop.latency_us,
            "area_watched_ratio": self._area_watched / self._treated if self._treated else None,
            "load": self._load or None,
            "margins": self._margins(),
            "mean_error_ratio": self._accuracy.mean_error_ratio,
            "ripple_rms_ratio": self._accuracy.ripple_rms_ratio,
            "trips": self.trips,
            "alarms": [alarm.line for alarm in self.progress.alarms],
            "loop": self.loop.counters,
            "device": vars(counters) if counters is not None else None,
        }
        if self.plan.drug_mass_kg is not None:
            share = min(1.0, net_c / self.plan.prescribed_c) if self.plan.prescribed_c else 0.0
            receipt["drug_mass_mg_interval"] = [mass * share * 1e6 for mass in self.plan.drug_mass_kg]
        folder.events.write(
            "session-ended", int(last["index"]) if last is not None else None, safety=True, outcome=outcome, reason=text
        )
        written = folder.finish(receipt)
        journal.finish(folder.session_id, [Ending(outcome, net_c, absolute_c)])
        return written

    def _margins(self) -> dict[str, float] | None:
        """Of the loop at the load that the contact check identified."""
        if not self._load:
            return None
        plant = Plant(*(self._load[name] for name in ("model_pole", "model_gain", "model_gain_before")))
        # The model's delay is the one found, the tuning is of the one told.
        return margins_at(plant, self._load["model_delay_ticks"], running(REGULATOR_DELAY_TICKS))._asdict()

    def _device_gone(self, folder: SessionFolder, status: str) -> str:
        text = f"the device is gone ({self.loop.error})" if status == "lost" else "the device sends nothing any more"
        tick = int(self._last["index"]) if self._last is not None else None
        self.trips.append("DEVICE_LOST")
        advice = "its lease has switched the output off; check cable and power before another session"
        folder.events.write(
            "device-lost", tick, safety=True, title=text, advice=advice, priority="HIGH", action=Action.OFF.name
        )
        return f"{text}: {advice}"
