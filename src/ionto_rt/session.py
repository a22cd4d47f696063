"""One treatment session: limits resolved and pushed, the loop run and watched, the record kept, the receipt written.

Three threads: the loop's ticks; the recorder's alone touches the disk while current flows; the orchestrator's, which is
the caller's, renews the heartbeat, interprets events, shows and watches, and waits for neither disk nor device. On a
virtual clock the three take turns in one thread, so that nothing depends on the speed of this host.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ionto_rt import __version__, black_box
from ionto_rt.admission import Admission
from ionto_rt.alarm_system import AlarmSystem, Condition, Transition
from ionto_rt.alarms import SPEAKER_CHECK_S, STOPPING, Alarm, SoftAlarm, alarm_for_soft
from ionto_rt.calibration_file import calibration_in_force
from ionto_rt.catalogue import Catalogue
from ionto_rt.channel_run import SEEN_S, ChannelRun, Progress
from ionto_rt.codes import (
    ALL_CHANNELS,
    Action,
    DeviceStatus,
    OnTrip,
    OperatorCommand,
    Pacing,
    Phase,
    StopFlag,
    Trip,
)
from ionto_rt.configuration import FIT, controller_config, device_limits, ticks_of
from ionto_rt.core.controller import TICK_SHA256
from ionto_rt.core.loop import Loop
from ionto_rt.device import DeviceCounters, SessionDevice, new_token
from ionto_rt.errors import RefusedError
from ionto_rt.exclusive import one_session
from ionto_rt.files import DISK, Files
from ionto_rt.fitness import examine_for, refuse_unfit
from ionto_rt.hdr_log import write_log
from ionto_rt.heartbeat import answer_of
from ionto_rt.host import awake_processors, deadline_profile, describe_host, pin_to_cpu, prepare_thread
from ionto_rt.interpret import DeviceClock, Happening, alarm_fields
from ionto_rt.journal import Ending, Journal
from ionto_rt.outcome import Causes, outcome_of, together
from ionto_rt.plan import Plan
from ionto_rt.record import LATENCY, SLOWEST_RAMP_A_PER_S, STALL_MOST_S, RecordError, SessionFolder
from ionto_rt.recorder import PASS_S, Recorder, ring_rows
from ionto_rt.repeats import LOCK_RESET
from ionto_rt.running import program_is_ending, running
from ionto_rt.safety import Limits, OperatorLimits, resolve_channels
from ionto_rt.treatment import Treatment

SERVICE_S = 0.1
"""Real time between two visits of the orchestrator."""
TURN_S = PASS_S
"""Virtual time between two visits on a virtual clock: one batch of the record, so that a crash loses no more."""
BEHIND_VISITS = 10
"""Visits without a sign of the recorder until it is called behind. Visits and not seconds: a stall of all of Python is
none of the disk's."""
EXIT_S = 10.0
"""What closing device and record may take at the interpreter's end."""
LATE_ALARM_SHARE = 0.01
QUIET_S = 10.0
"""Late commands and lost telemetry are over when none has come for this long."""
AWAIT_RESET_MOST_S = 600.0
"""What a session waits for at its end, at most: the operator who resets what is latched."""

ENDED_PHASES = tuple(phase.name for phase in (Phase.COMPLETE, Phase.ABORTED, Phase.FAULTED))
__all__ = ["Progress", "Session", "Watcher"]

Watcher = Callable[["Session"], None]


@dataclass(frozen=True)
class _Moment:
    """A moment of the session: the sample's index, the session's time by ticks (s), the device's own clock (s)."""

    tick: int | None = None
    time_s: float = 0.0
    device_time_s: float | None = None


def pacing_for(device: SessionDevice, speed: Literal["real", "max"]) -> Pacing:
    """Who paces a session on this device. RefusedError if it cannot be had at that speed."""
    offered = device.hello.pacing
    if speed == "max":
        if not offered & Pacing.LOCK_STEP:
            remedy = "run with --speed real, or on virtual:"
            raise RefusedError("this device has no lock-step", key="--speed", value=speed, remedy=remedy)
        return Pacing.LOCK_STEP
    for pacing in (Pacing.DEVICE, Pacing.HOST):
        if offered & pacing:
            return pacing
    remedy = "run with --speed max, or use another device"
    raise RefusedError("this device has no clock in real time", key=device.uri, remedy=remedy)


class Session:
    """One session of `treatment` on an open `device`; `run` carries it out and returns the receipt.

    Each channel of the treatment runs on that channel of the device; channels that the treatment leaves out stay at
    zero, relay open. `speed` "max" needs a device that offers lock-step; in real time a device that paces itself does,
    and one that only answers is paced by the host. `watcher` is called at each visit of the orchestrator, in its
    thread; from there, or from a signal handler, `pause`, `resume`, `trim`, `stop` and `stop_now` may be called. The
    acts on alarms (`acknowledge`, `reset`, `pause_audio`, `end_audio_pause`) are for the watcher alone.
    `attended` says that somebody is there to resume: without, a pause that latches ends the session.
    `await_reset`: at the end, with the output off, wait until the operator has reset what is latched, or leaves by
    `stop`; for AWAIT_RESET_MOST_S at most. `reset_lock` is the operator's act by which a site that is locked (H47) may
    be treated again.
    `files` is the file system of the record. In real time a host that is unfit is refused on hardware, unless
    `accept_unfit`; `cpu` is the processor the loop then stays on.

    Whatever happens in the orchestrator's thread ramps down. An exception of the watcher ends in the receipt; what is
    meant to end the program (SystemExit and the like) is raised again when the record is written. The end of the main
    thread, while the session runs in another one, ramps down too. In a forked child the session is dead.

    RefusedError from the constructor or from `run` means that no current has flowed and nothing was left behind.
    `record_path` is the session's folder from arming on; while it is None, no current has flowed.
    """

    def __init__(
        self,
        treatment: Treatment,
        device: SessionDevice,
        *,
        out_dir: Path,
        speed: Literal["real", "max"] = "real",
        catalogue: Catalogue | None = None,
        operator: OperatorLimits | None = None,
        watcher: Watcher | None = None,
        attended: bool = False,
        files: Files = DISK,
        accept_unfit: bool = False,
        cpu: int | None = None,
        await_reset: bool = False,
        reset_lock: bool = False,
    ) -> None:
        hello = device.hello
        self.pacing = pacing_for(device, speed)
        self.treatment = treatment
        self.device = device
        self.out_dir = out_dir
        self.virtual_clock = speed == "max"
        self.watcher = watcher
        self.attended = attended
        self.files = files
        self.catalogue = catalogue or Catalogue.load()
        limits = resolve_channels(treatment, self.catalogue, hello.capabilities, operator)
        self.channels = [
            ChannelRun(channel, limit, hello.tick_s) for channel, limit in zip(treatment.channels, limits, strict=True)
        ]
        self._admission = Admission(self.channels, treatment.subject or "", hardware=device.hardware)
        self.cpu = cpu
        self.fitness = examine_for(device, cpu=cpu)
        self.accepted = accept_unfit and self.fitness.verdict == "unfit"
        if not (self.virtual_clock or accept_unfit):
            refuse_unfit(self.fitness, device)
        self.trips: list[str] = []
        self.whole = self.progress if len(self.channels) == 1 else Progress()
        """Has the alarms that are no single channel's; of one channel, all of them."""
        self.record_path: Path | None = None
        self.alarms = AlarmSystem(alarm_for_soft(SoftAlarm.LOCKED), self._log_alarm)
        self._await_reset = await_reset
        self._reset_lock = reset_lock
        self._device_clock = DeviceClock()
        self._now = _Moment()
        self._over_s: float | None = None
        self._grown: dict[SoftAlarm, tuple[int, float]] = {}
        self._speaker_told_s = 0.0
        self._causes = Causes()
        self._interrupts = 0
        self._passes_seen = 0
        self._visits_behind = self._visits_well = 0
        self._boxed: set[int] = set()
        self._boxes = 0
        self._events_dropped = 0
        self._unheard: list[tuple[OperatorCommand, int]] = []
        self._begun = False

    @property
    def limits(self) -> Limits:
        """Of the first channel."""
        return self.channels[0].limits

    @property
    def plan(self) -> Plan:
        """Of the first channel."""
        return self.channels[0].plan

    @property
    def progress(self) -> Progress:
        """Of the first channel."""
        return self.channels[0].progress

    def pause(self, channel: int = ALL_CHANNELS) -> None:
        """Ramp down and hold the dose until `resume`; one channel, or all."""
        self.loop.operator(OperatorCommand.PAUSE, 0.0, channel)
        for found in self._asked(channel):
            found.held = True

    def resume(self, channel: int = ALL_CHANNELS) -> str:
        """Ramp up again from zero; one channel, or all. Empty if the loop was asked for it, else why not.

        Refused while a latched alarm stands that has stopped the channel, or a lock: they need a `reset` first. Of all
        channels, those that may resume do; one that is not paused is left alone.
        """
        rows = {int(row["channel"]): row for row in self.loop.newest()}
        asked = self._asked(channel)
        paused = [found for found in asked if found.is_paused(rows.get(found.number))]
        refused = {found.number: self._keeps_paused(found, rows.get(found.number)) for found in asked}
        free = [found for found in paused if not refused[found.number]]
        said = [text for text in refused.values() if text]
        if not said and len(free) == len(asked):
            said = [self._ask(OperatorCommand.RESUME, 0.0, channel, free)]
        elif paused:
            said += [self._ask(OperatorCommand.RESUME, 0.0, found.number, [found]) for found in free]
        else:
            said.append("not resumed: nothing is paused")
        return next((text for text in said if text), "")

    def _keeps_paused(self, channel: ChannelRun, row: np.void | None) -> str:
        """Why a channel may not be resumed; empty if it may."""
        standing = self.alarms.standing(channel.name)
        if standing:
            of = f"{standing[0].channel}: " if standing[0].channel else ""
            return f"{of}not resumed, reset first: {standing[0].alarm.title}"
        if not channel.knows(row):
            # Its alarm comes with the next visit: nobody resumes what he has not been told of.
            of = f"{channel.name}: " if channel.name else ""
            return f"{of}not resumed, it was paused in this moment: look at the cause first"
        return ""

    def _asked(self, channel: int) -> list[ChannelRun]:
        return [found for found in self.channels if channel in (ALL_CHANNELS, found.number)]

    def _ask(self, command: OperatorCommand, value_a: float, channel: int, of: list[ChannelRun]) -> str:
        """Hand a command to the loop; empty, or why that could not be: then nothing of it happens."""
        if self.loop.operator(command, value_a, channel):
            if command == OperatorCommand.RESUME:
                for found in of:
                    found.held = False
            return ""
        self._unheard.append((command, channel))
        return f"{command.name.lower()} not done: too many commands wait; again in a moment"

    def acknowledge(self) -> list[Condition]:
        """The operator has heard the alarms: those that stand are silent, and stand as before."""
        return self.alarms.acknowledge(self._moment().time_s)

    def reset(self) -> tuple[list[Condition], list[Condition]]:
        """Clear what is latched and has lost its cause: (what was cleared, latched ones that stand).

        No current comes of it: that takes a `resume`, and a ramp from zero.
        """
        self._moment()
        self._look()
        self._end_causes()
        return self.alarms.reset(self._now.time_s)

    def pause_audio(self) -> bool:
        """Silence all alarms for ten minutes, or until one of higher priority comes; False if none sounds."""
        return self.alarms.pause_audio(self._moment().time_s)

    @property
    def audio_left_s(self) -> float:
        """Until the audio pause ends by itself; 0 without one."""
        return self.alarms.audio_left_s(self._now.time_s)

    def end_audio_pause(self) -> None:
        """Let the alarms sound again."""
        self.alarms.end_audio_pause(self._moment().time_s)

    def screen_answers(self, answers: bool) -> None:
        """The watcher's screen was drawn in time, or was not (H30); the session goes on either way."""
        self._hold(SoftAlarm.SCREEN_HUNG, not answers)

    def trim(self, current_a: float, channel: int = ALL_CHANNELS) -> str:
        """Add to the level of the steps (A, of the magnitude), within the limits; of one channel, or of all. Empty if
        the loop was asked for it, else why not. ValueError if `current_a` is not finite.
        """
        return self._ask(OperatorCommand.TRIM, current_a, channel, self._asked(channel))

    def end(self, channel: int) -> None:
        """Ramp one channel down and end it; the others go on."""
        self.channels[channel].asked_to_end = True
        self.loop.operator(OperatorCommand.STOP, 0.0, channel)

    def stop(self) -> None:
        """Ramp all channels down and end."""
        self._causes.asked_to_stop = True
        self.loop.stop(StopFlag.RAMP_DOWN)

    def hang_up(self) -> None:
        """The terminal was closed: ramp all channels down and end; that is the reason, unless a stop came before."""
        self._causes.hung_up = self._causes.hung_up or not self._causes.asked_to_stop
        self.stop()

    def stop_now(self) -> None:
        """Output of all channels off at once."""
        self._causes.asked_to_stop = True
        self.loop.stop(StopFlag.NOW)

    def run(self) -> dict[str, Any]:
        """Carry out the session, once; the receipt. RefusedError if it could not begin."""
        if self._begun:
            # Alarms, trips and sums are those of one session: a second receipt would speak for the first.
            raise RefusedError(
                "this session has been run", key="Session.run", value="again", remedy="make a new Session for each run"
            )
        self._begun = True
        with one_session(self.device):
            return self._run()

    def _run(self) -> dict[str, Any]:
        hello = self.device.hello
        token = new_token()
        host = self._prepare_host()
        with Journal(self.out_dir) as journal:
            self._admission.keep_within_day(journal)
        profile = FIT if self.virtual_clock else deadline_profile(host)
        host["deadlines"] = profile.name
        for channel in self.channels:
            assert channel.limits.current_range is not None
            known = calibration_in_force(self.out_dir, hello, channel.limits.current_range.index)
            if known is not None and self.device.hardware:
                known.refuse_expired()
            skew_s = known.skew_s if known is not None else 0.0
            config = controller_config(
                hello, channel.limits, channel.plan, profile, token, skew_s=skew_s, pacing=self.pacing
            )
            channel.configure(config, known)
        self.loop = Loop(
            [channel.controller for channel in self.channels],
            self.device.port.loop_port(),
            virtual_clock=self.virtual_clock,
            ring_rows=ring_rows(1.0 / hello.tick_s, len(self.channels)),
            silence_s=2.0 if self.virtual_clock else 0.5,
            pacing=self.pacing,
            on_trip=self.treatment.on_channel_trip,
            device_channels=hello.channels,
        )
        host["memory"] = "not asked (virtual clock)" if self.virtual_clock else self.loop.lock_memory()
        journal = Journal(self.out_dir)
        try:
            unlocked = self._admission.recall_stops(self.out_dir, self.alarms, reset_lock=self._reset_lock)
            folder = self._folder(host)
            try:
                self._admission.begin(journal, folder)
                telemetry = folder.open_telemetry(
                    self.loop.drain(1).dtype, 1.0 / hello.tick_s, channels=len(self.channels)
                )
                self.device.push_limits(**device_limits(hello, [channel.limits for channel in self.channels], token))
                self.device.arm(self.pacing, token)
            except BaseException:
                self._take_back(journal, folder)
                raise
        except BaseException:
            journal.close()
            raise
        self.record_path = folder.path
        self._recorder = Recorder(
            folder,
            telemetry,
            journal,
            self.loop,
            self.channels,
            now_s=self._now_s,
            durable=not self.virtual_clock,
        )
        ramp_s = max(channel.limits.current_cap_a for channel in self.channels) / SLOWEST_RAMP_A_PER_S
        with running(self.loop, lambda: folder.descriptors, ramp_s + EXIT_S) as self._entry:
            try:
                with awake_processors(self.virtual_clock) as awake:
                    self._recorder.post("host", None, processors_awake=awake)
                    for number, causes in unlocked.items():
                        locked = {"alarm": SoftAlarm.LOCKED.value, "causes": causes}
                        self._recorder.post(LOCK_RESET, None, safety=True, **locked, **self._of(self.channels[number]))
                    self._recorder.post(
                        "armed", None, safety=True, device=hello.name, token=token, pacing=self.pacing.name
                    )
                    written = self._carry_out(folder, journal, token)
            except BaseException:
                if not self._entry.elsewhere and self._recorder.give_up():
                    with contextlib.suppress(RecordError, OSError):
                        folder.close()
                    journal.close()
                raise
            journal.close()
        if self._causes.raised is not None:
            raise self._causes.raised
        return written

    def _folder(self, host: dict[str, Any]) -> SessionFolder:
        """The session's folder, with what is known before the first current."""
        hello = self.device.hello
        session: dict[str, Any] = {
            "subject": self.treatment.subject or "",
            "rate_hz": 1.0 / hello.tick_s,
            "core": {"version": __version__, "tick_sha256": TICK_SHA256},
            "device": {
                "uri": self.device.uri,
                "name": hello.name,
                "firmware": hello.firmware_version,
                "pacing": self.pacing.name,
                "front_end": hello.front_end.name,
                "sentinel": hello.sentinel_lsb_v > 0.0,
                "hardware": self.device.hardware,
                "pid": self.device.process.pid if self.device.process is not None else None,
            },
            "catalogue_sha256": self.limits.catalogue_sha256,
            "treatment_sha256": self.treatment.sha256,
            "host": describe_host() | host,
            "on_channel_trip": self.treatment.on_channel_trip.name.lower(),
            "channels": [channel.facts() for channel in self.channels],
        }
        return SessionFolder.create(
            self.out_dir,
            Path(self.treatment.path).stem,
            treatment_source=self.treatment.source,
            session=session,
            files=self.files,
        )

    @staticmethod
    def _take_back(journal: Journal, folder: SessionFolder) -> None:
        """Leave nothing behind of a session that could not begin; what a disk that refuses keeps, `recover` settles."""
        try:
            journal.withdraw(folder.session_id)
        except RecordError:
            with contextlib.suppress(RecordError, OSError):
                folder.close()
        else:
            folder.discard()

    def _now_s(self) -> float:
        """The clock by which the record may be late: on a virtual clock nothing is late but by ticks."""
        return self.loop.counters["ticks"] * self.device.hello.tick_s if self.virtual_clock else time.monotonic()

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
        self._armed_utc = datetime.now(UTC)
        if self.virtual_clock:
            turn = ticks_of(TURN_S, self.device.hello.tick_s)
            self._supervise(lambda: self.loop.run(turn), lambda: self.loop.status != "running")
        else:
            self._run_in_threads()
        self._over_s = time.monotonic()
        counters = self.device.disarm(token)
        self._visit_safely()
        self._keep_black_box(ended=True)
        self._look_for_device()
        if self._await_reset and self._causes.failure is None:
            self._await_operator()
        self._close_recorder(folder)
        self._look()
        receipt, endings = self._receipt(counters)
        self._write_latency(folder, receipt)
        written = folder.finish(receipt)
        journal.finish(folder.session_id, endings)
        return written

    def _await_operator(self) -> None:
        """The output is off; what is latched stands, and sounds, until the operator resets it or leaves."""
        until_s = time.monotonic() + AWAIT_RESET_MOST_S
        nothing = threading.Event()
        while any(found.alarm.latched for found in self.alarms.active) and time.monotonic() < until_s:
            if self._causes.asked_to_stop or self._causes.raised is not None or self._causes.leaving:
                return
            nothing.wait(SERVICE_S)
            self._visit_safely()

    def _write_latency(self, folder: SessionFolder, receipt: dict[str, Any]) -> None:
        """The loop's histograms, for the tools of HdrHistogram. Nothing is timed on a virtual clock."""
        histograms = self.loop.histograms
        if not histograms:
            return
        try:
            write_log(folder.path / LATENCY, histograms, self._armed_utc, receipt["duration_s"])
        except OSError as error:
            receipt.setdefault("notes", []).append(f"{LATENCY}: not written ({error.strerror})")

    def _run_in_threads(self) -> None:
        over = threading.Event()
        thread = threading.Thread(target=self._loop_thread, args=(over,), name="ionto-rt loop", daemon=False)
        try:
            thread.start()
            self._recorder.start()
            self._supervise(lambda: over.wait(SERVICE_S), over.is_set)
        except BaseException:
            if not self._entry.elsewhere:
                self.loop.stop(StopFlag.NOW)
                thread.join()
            raise
        thread.join()

    def _loop_thread(self, over: threading.Event) -> None:
        try:
            prepare_thread(self.cpu)
            self.loop.run()
        finally:
            over.set()

    def _supervise(self, step: Callable[[], object], over: Callable[[], bool]) -> None:
        """Steps and visits until it is over. Nothing that is raised here may leave current on."""
        while not over():
            try:
                while not over():
                    self._entry.check()
                    step()
                    self._visit()
            except BaseException as error:
                self._entry.check()
                try:
                    self._interrupted(error)
                except BaseException as another:
                    self._interrupted(another)

    def _interrupted(self, error: BaseException) -> None:
        """The first failure ramps down, and the session goes on to its end. A second Ctrl-C switches off at once."""
        if isinstance(error, KeyboardInterrupt):
            self._interrupts += 1
            self._causes.asked_to_stop = True
            self.loop.stop(StopFlag.RAMP_DOWN if self._interrupts == 1 else StopFlag.NOW)
            return
        self.loop.stop(StopFlag.RAMP_DOWN)
        self.loop.beat()
        if isinstance(error, Exception):
            self._causes.failure = self._causes.failure or error
        else:
            self._causes.raised = self._causes.raised or error

    def _visit_safely(self) -> None:
        """A visit after the loop's end: what fails is told, and what is meant to end the program does it later."""
        try:
            self._visit()
        except BaseException as error:
            self._entry.check()
            self._interrupted(error)

    def _visit(self) -> None:
        """One round of the orchestrator."""
        self._entry.check()
        challenge = self.loop.challenge
        for row in self.loop.drain_events():
            channel = self.channels[int(row["channel"])]
            self._now = self._moment_of(row)
            for happening in channel.read(row):
                self._note(channel, happening)
        self._tell_dropped_events()
        self._tell_unheard()
        self._keep_black_box()
        if self.virtual_clock:
            self._recorder.work()
        self._moment()
        self._look()
        self._watch_conditions()
        self._watch_record()
        self._end_causes()
        self.alarms.pass_time(self._now.time_s)
        if program_is_ending() and not self._causes.leaving:
            self._causes.leaving = True
            self._recorder.post("program-ending", self.channels[0].tick, safety=True)
            self.stop()
        if self.watcher is not None:
            self.watcher(self)
        # Behind all of it: the answer says that the whole round was made.
        self.loop.answer(answer_of(challenge))

    def _tell_dropped_events(self) -> None:
        """Rows that found the ring of events full are counted alone; the channel's next one says what came of them."""
        dropped = self.loop.counters["events_dropped"]
        if dropped != self._events_dropped:
            self._recorder.post("events-dropped", self._now.tick, safety=True, dropped=dropped - self._events_dropped)
            self._events_dropped = dropped

    def _tell_unheard(self) -> None:
        """What an operator has asked for and the loop's queue had no room for."""
        unheard, self._unheard = self._unheard, []
        for command, number in unheard:
            asked = self._asked(number)
            of = self._of(asked[0]) if len(asked) == 1 else {}
            self._recorder.post("operator-unheard", self._now.tick, safety=True, command=command.name, **of)
            for channel in asked:
                channel.progress.messages.append("operator-unheard")

    def _keep_black_box(self, *, ended: bool = False) -> None:
        """What went over the port before a trip and until the output was off goes into the record, once it is off."""
        pinned = self.loop.black_box
        gone = ended and self.loop.status in ("lost", "silent")
        if pinned is None and not gone:
            return
        tripped = [row for row in self.loop.newest() if row["trip"]]
        new = [row for row in tripped if int(row["channel"]) not in self._boxed]
        off = bool(new) and not any(row["close_relay"] or row["status"] & DeviceStatus.RELAY_CLOSED for row in tripped)
        if not (off or ended or (pinned is not None and pinned["full"])):
            return
        self._boxed |= {int(row["channel"]) for row in new}
        self._boxes += 1
        trips = [Trip(int(row["trip"])).name for row in new] + (["DEVICE_LOST"] if gone else [])
        taken = self.loop.take_black_box()
        hello = self.device.hello
        data = black_box.encode(
            taken,
            session_id=self._recorder.folder.session_id,
            trips=trips,
            channels=hello.channels,
            period_ns=round(hello.tick_s * 1e9),
            sentinel=hello.sentinel_lsb_v > 0.0,
        )
        name = black_box.file_name(self._boxes)
        facts = {key: taken[key] for key in ("entries", "left_out")}
        self._recorder.keep(black_box.BLACK_BOX, self.channels[0].tick, name, data, trips=trips, **facts)

    def _look(self) -> None:
        rows = {int(row["channel"]): row for row in self.loop.newest()}
        counters = self.loop.counters
        for channel in self.channels:
            channel.look(rows.get(channel.number))
            channel.progress.late, channel.progress.lost = counters["late"], counters["lost"]
        self.whole.elapsed_s = self.progress.elapsed_s

    def _of(self, channel: ChannelRun) -> dict[str, Any]:
        """What an event says of the channel that it belongs to."""
        return {"channel": channel.number} if len(self.channels) > 1 else {}

    def _moment_of(self, row: np.void) -> "_Moment":
        tick = int(row["index"])
        return _Moment(tick, (tick + 1) * self.device.hello.tick_s, self._device_clock.at(row))

    def _moment(self) -> "_Moment":
        """The newest that is known of the device's time. Once the loop is over the host's clock carries it on."""
        rows = self.loop.newest()
        if len(rows):
            newest = self._moment_of(rows[0])
            over_s = time.monotonic() - self._over_s if self._over_s is not None else 0.0
            self._now = replace(newest, time_s=newest.time_s + over_s)
        return self._now

    def _log_alarm(self, transition: Transition) -> None:
        """Each transition of an alarm becomes one event; a raise that has a happening is that happening's event."""
        found, fields = transition.condition, dict(transition.fields)
        happening: Happening | None = fields.pop("happening", None)
        stamp = {"transition": transition.kind, "device_time_s": self._now.device_time_s}
        if found is None:
            self._recorder.post(transition.kind, self._now.tick, safety=True, **fields, **stamp)
            return
        channel = next((channel for channel in self.channels if channel.name == found.channel), None)
        if channel is not None:
            stamp |= self._of(channel)
        if happening is not None:
            self._recorder.post(
                happening.kind, happening.tick, safety=happening.safety, **happening.fields, **fields, **stamp
            )
            return
        if transition.kind != "raised":
            named = {"alarm": found.alarm.key, "priority": found.alarm.priority.name}
            self._recorder.post(f"alarm-{transition.kind}", self._now.tick, safety=True, **named, **fields, **stamp)
            return
        self._recorder.post("alarm", self._now.tick, safety=True, **alarm_fields(found.alarm), **fields, **stamp)
        (self.whole if channel is None else channel.progress).show(found.alarm)
        if found.alarm.key == SoftAlarm.LOCKED.value and channel is not None:
            self._lock(channel, found.alarm)

    def _lock(self, channel: ChannelRun, alarm: Alarm) -> None:
        """No current flows any more until the operator has reset the lock and resumes."""
        if channel.ended or channel.trips:
            return
        self.pause(channel.number)
        if not self.attended:
            self._leave(channel, alarm, self._now.tick)

    def _note(self, channel: ChannelRun, happening: Happening) -> None:
        told = False
        if happening.alarm is not None:
            stops = happening.kind in ("trip", "guard-pause", "end")
            raised = self.alarms.raise_alarm(
                happening.alarm, channel.name, self._now.time_s, stops=stops, again=True, happening=happening
            )
            told = raised is not None
        if not told:
            self._recorder.post(
                happening.kind,
                happening.tick,
                safety=happening.safety,
                **happening.fields,
                **({"device_time_s": self._now.device_time_s} if happening.alarm is not None else {}),
                **self._of(channel),
            )
        channel.follow(happening, self._now.time_s)
        self._end_by(channel, happening)
        if happening.kind == "trip":
            self.trips.append(happening.fields["name"])
        if channel.waits_for_a_person(happening) and not self.attended and channel.left is None:
            self._leave(channel, happening.alarm, happening.tick)

    def _end_by(self, channel: ChannelRun, happening: Happening) -> None:
        """What a happening ends."""
        resumed = happening.kind == "operator" and happening.fields["command"] == OperatorCommand.RESUME.name
        over = happening.kind == "phase" and happening.fields["phase"] in ENDED_PHASES
        if happening.kind == "contact-back" or over:
            self._end_soft(SoftAlarm.CONTACT_LOST, channel.name)
        if happening.kind == "derating-over" or over:
            self._end_soft(SoftAlarm.DERATED, channel.name)
            self._end_soft(SoftAlarm.DERATED_LONG, channel.name)
        for soft in (SoftAlarm.PADS_DRY, SoftAlarm.MAINS, SoftAlarm.AREA_CAPPED):
            if happening.kind == f"{soft.value}-over" or over:
                self._end_soft(soft, channel.name)
        if resumed or over:
            self._end_soft(SoftAlarm.HELD_FOR_OTHERS, channel.name)
        latched = happening.kind == "guard-pause" and happening.fields["latched"]
        if latched or happening.kind == "guard-pause-over":
            for found in self.alarms.active:
                own = found.channel == channel.name and found.stopped and found.alarm.response == Action.PAUSE
                # Beside a pause that waits for a person none says that it goes on by itself.
                if own and not (latched and found.alarm.latched):
                    self.alarms.end(found.alarm.key, found.channel, self._now.time_s)

    def _leave(self, channel: ChannelRun, alarm: Alarm | None, tick: int | None) -> None:
        """Nobody is there to resume the channel: it ends, and takes the others with it as the treatment says."""
        channel.left = alarm
        advice = "nobody is there to resume: ending"
        self._recorder.post("unattended", tick, safety=True, advice=advice, **self._of(channel))
        if self.treatment.on_channel_trip == OnTrip.CONTINUE:
            self.loop.operator(OperatorCommand.STOP, 0.0, channel.number)
        else:
            self.loop.stop(StopFlag.RAMP_DOWN)

    def _raise_soft(self, soft: SoftAlarm, channel: str = "", *, again: bool = False, **fields: Any) -> None:
        """An alarm of the whole session, or of one channel; raised once while its cause is there, unless `again`."""
        alarm = alarm_for_soft(soft)
        self.alarms.raise_alarm(alarm, channel, self._now.time_s, stops=soft in STOPPING, again=again, **fields)

    def _end_soft(self, soft: SoftAlarm, channel: str = "") -> None:
        self.alarms.end(alarm_for_soft(soft).key, channel, self._now.time_s)

    def _hold(self, soft: SoftAlarm, there: bool, **fields: Any) -> None:
        """The cause of an alarm of the whole session is there, or is not."""
        if there:
            self._raise_soft(soft, **fields)
        else:
            self._end_soft(soft)

    def _end_causes(self) -> None:
        """Causes that no happening ends: a latched one is gone when no current flows and nothing bad is seen."""
        rows = {int(row["channel"]): row for row in self.loop.newest()}
        over = self.loop.status != "running"
        for channel in self.channels:
            row = rows.get(channel.number)
            gone = over or (row is not None and channel.is_quiet(row, self._now.time_s))
            for found in self.alarms.active:
                if found.channel == channel.name and found.stopped and found.present and gone:
                    self.alarms.end(found.alarm.key, found.channel, self._now.time_s)

    @property
    def alarmed(self) -> list[tuple[str, Progress]]:
        """What has alarms: each channel with its name, and, of several, the session as a whole under an empty one."""
        channels = [(channel.name, channel.progress) for channel in self.channels]
        return channels if len(channels) == 1 else [*channels, ("", self.whole)]

    def _watch_conditions(self) -> None:
        counters = self.loop.counters
        dropped, events, late = counters["ring_dropped"], counters["events_dropped"], counters["late"]
        grows = self._grows(SoftAlarm.RING_OVERFLOW, dropped + events)
        self._hold(SoftAlarm.RING_OVERFLOW, grows, dropped=dropped, events_dropped=events)
        many = late > max(10, LATE_ALARM_SHARE * counters["ticks"])
        if not (many and all(channel.ended for channel in self.channels)):
            self._hold(SoftAlarm.LATE_COMMANDS, self._grows(SoftAlarm.LATE_COMMANDS, late) and many, late=late)
        for channel in self.channels:
            if channel.pause_is_left():
                self._raise_soft(SoftAlarm.PAUSE_LEFT, channel.name, again=True)
            elif not channel.progress.paused:
                self._end_soft(SoftAlarm.PAUSE_LEFT, channel.name)
            if channel.derated_long(self._now.time_s):
                self._raise_soft(SoftAlarm.DERATED_LONG, channel.name)
        row = self.channels[0].last
        if row is not None and self._over_s is None:
            self._hold(SoftAlarm.SUPPLY_WARNING, bool(int(row["status"]) & DeviceStatus.SUPPLY_WARNING))
        self._watch_speaker()

    def _grows(self, soft: SoftAlarm, count: int) -> bool:
        """Whether a count has grown within the last QUIET_S."""
        before, at_s = self._grown.get(soft, (0, float("-inf")))
        if count != before:
            at_s = self._now.time_s
            self._grown[soft] = (count, at_s)
        return self._now.time_s - at_s <= QUIET_S

    def _watch_speaker(self) -> None:
        """H50. Who cannot hear has to look: nothing starts where nobody does."""
        row = self.channels[0].last
        if row is None or self._over_s is not None:
            return
        if not int(row["status"]) & DeviceStatus.SPEAKER_FAULT:
            self._end_soft(SoftAlarm.SPEAKER_FAULT)
            return
        again = self._now.time_s - self._speaker_told_s >= SPEAKER_CHECK_S - SEEN_S
        if again or self.alarms.find(alarm_for_soft(SoftAlarm.SPEAKER_FAULT).key) is None:
            self._speaker_told_s = self._now.time_s
            self._raise_soft(SoftAlarm.SPEAKER_FAULT, again=again)
        begun = any(channel.progress.phase not in (Phase.SELF_TEST, Phase.CONTACT_CHECK) for channel in self.channels)
        if not self.attended and not begun and self._causes.not_begun is None:
            self._causes.not_begun = alarm_for_soft(SoftAlarm.SPEAKER_FAULT)
            self.loop.stop(StopFlag.RAMP_DOWN)

    def _watch_record(self) -> None:
        recorder = self._recorder
        if recorder.failure is not None:
            raise recorder.failure
        self._visits_behind = self._visits_behind + 1 if recorder.passes == self._passes_seen else 0
        self._passes_seen = recorder.passes
        behind = bool(recorder.problem) or self._visits_behind >= BEHIND_VISITS
        self._visits_well = 0 if behind or self._visits_behind else self._visits_well + 1
        if behind:
            self._raise_soft(SoftAlarm.RECORD_BEHIND, problem=recorder.problem or "the disk does not answer")
        elif self._visits_well >= BEHIND_VISITS:
            self._end_soft(SoftAlarm.RECORD_BEHIND)
        if (
            self.loop.status == "running"
            and self._now_s() - recorder.written_at_s > STALL_MOST_S - 2.0 * SERVICE_S
            and not self._causes.unrecorded
        ):
            # The reservation in the journal covers no more than STALL_MOST_S; the next visit may come late by one.
            self._causes.unrecorded = True
            self._raise_soft(SoftAlarm.RECORD_STOPPED, problem=recorder.problem)
            self.stop()

    def _close_recorder(self, folder: SessionFolder) -> None:
        """Wait until all is written, while the screen goes on; the output is off."""
        recorder = self._recorder
        recorder.end()
        if self.virtual_clock:
            recorder.work()
            recorder.done.set()
        until_s = time.monotonic() + STALL_MOST_S
        while not recorder.done.wait(SERVICE_S) and time.monotonic() < until_s:
            self._visit_safely()
        if not recorder.give_up():
            raise RecordError(f"{folder.path}: the disk did not take the record for {STALL_MOST_S:.0f} s; check it")

    def _receipt(self, counters: DeviceCounters | None) -> tuple[dict[str, Any], list[Ending]]:
        """What there is to say in the end, and how each channel ended; the last events are written with it."""
        found = self.loop.counters
        self.alarms.finish(self._moment().time_s)
        charges = [channel.delivered(counters) for channel in self.channels]
        self._look_for_device()
        ends = [
            outcome_of(channel, charge, self._causes, self.channels, self.treatment.on_channel_trip)
            for channel, charge in zip(self.channels, charges, strict=True)
        ]
        parts: list[dict[str, Any]] = [
            {"outcome": outcome, "reason": text, **channel.receipt(charge)}
            for channel, charge, (outcome, text) in zip(self.channels, charges, ends, strict=True)
        ]
        receipt: dict[str, Any] = {
            **together(parts, self.channels),
            "duration_s": self.channels[0].totals.rows * self.device.hello.tick_s,
            "ticks": found["ticks"],
            "gaps": found["lost"],
            "late": counters.late if counters is not None else found["late"],
            "latency_us": None if self.virtual_clock else self.loop.latency_us,
            "worst_answer_ns": None if self.virtual_clock else self.loop.worst,
            "trips": self.trips,
            "alarms": [
                f"{name}: {alarm.line}" if name else alarm.line
                for name, progress in self.alarmed
                for alarm in progress.alarms
            ],
            "alarm_log": self.alarms.rows(),
            "loop": found,
            "device": vars(counters) if counters is not None else None,
        }
        if len(self.channels) > 1:
            receipt["channels"] = [
                {"name": channel.name, **part} for channel, part in zip(self.channels, parts, strict=True)
            ]
        self._recorder.post(
            "session-ended", self.channels[0].tick, safety=True, outcome=receipt["outcome"], reason=receipt["reason"]
        )
        if not self._recorder.work():
            receipt["notes"] = [self._recorder.problem]
        endings = [
            Ending(outcome, charge.net_c, charge.absolute_c, measured=charge.device_c is not None)
            for charge, (outcome, _) in zip(charges, ends, strict=True)
        ]
        return receipt, endings

    def _look_for_device(self) -> None:
        """Raise the alarm of a device that is gone, once; a host that has failed itself says no more of it."""
        if self._causes.failure is None and self._causes.gone is None and self.loop.status in ("lost", "silent"):
            self._causes.gone = self._device_gone(self.loop.status)

    def _device_gone(self, status: str) -> str:
        text = f"the device is gone ({self.loop.error})" if status == "lost" else "the device sends nothing any more"
        self.trips.append("DEVICE_LOST")
        alarm = replace(alarm_for_soft(SoftAlarm.DEVICE_LOST), title=text)
        fields = {"action": alarm.response.name} | alarm_fields(alarm)
        happening = Happening(self._now.tick or 0, "device-lost", fields, True, alarm)
        self.alarms.raise_alarm(alarm, "", self._now.time_s, stops=True, happening=happening)
        self.whole.show(alarm)
        return f"{text}: {alarm.advice}"
