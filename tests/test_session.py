"""A session as a state machine: whatever the operator does and whatever breaks, what holds at each visit and the end.

The session runs on `sim:` in a thread of its own and stops at each visit of its orchestrator, until the machine has
said what happens next. So the two take turns, on a virtual clock, and a failing case repeats exactly.
"""

import contextlib
import math
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ionto_rt.codes import Action, EndReason, OperatorCommand, Pacing, Phase, SampleFault
from ionto_rt.core.virtual_device import VirtualDevice
from ionto_rt.device import open_device
from ionto_rt.errors import RefusedError
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.session import TURN_S, Session
from ionto_rt.verify import verify
from treatments import treatment

pytestmark = pytest.mark.real_time

DOSE = '[[steps]]\ncurrent = "400 uA"\ndose = "0.02 mA*min"\nramp = "1 s"'
LEVELS = """
[[steps]]
current = "300 uA"
time = "1 s"
ramp = "0.5 s"
[[steps]]
current = "500 uA"
dose = "0.015 mA*min"
ramp = "0.8 s"
[[steps]]
pause = "1 s"
[[steps]]
current = "400 uA"
time = "1.2 s"
ramp = "0.6 s"
"""
TICK_S = 1e-3
VISITS_MOST = 600
ENDED = {Phase.COMPLETE, Phase.ABORTED, Phase.FAULTED}
ALLOWED = {
    Phase.SELF_TEST: {Phase.CONTACT_CHECK, Phase.PAUSE, *ENDED},
    Phase.CONTACT_CHECK: {Phase.RAMP_UP, Phase.TREATMENT, Phase.PAUSE, Phase.RAMP_DOWN, *ENDED},
    Phase.RAMP_UP: {Phase.TREATMENT, Phase.PAUSE, Phase.RAMP_DOWN, *ENDED},
    Phase.TREATMENT: {Phase.RAMP_UP, Phase.PAUSE, Phase.RAMP_DOWN, *ENDED},
    Phase.PAUSE: {Phase.CONTACT_CHECK, Phase.RAMP_UP, Phase.TREATMENT, Phase.RAMP_DOWN, *ENDED},
    Phase.RAMP_DOWN: {Phase.CONTACT_CHECK, Phase.RAMP_UP, Phase.TREATMENT, Phase.PAUSE, *ENDED},
    **{phase: set() for phase in ENDED},
}


@dataclass(frozen=True)
class Seen:
    """What the orchestrator knows at one visit."""

    phase: Phase
    delivered_c: float
    trips: tuple[str, ...]
    counters: dict[str, int]


class Turns:
    """A session in a thread, one visit of its orchestrator for each `go`."""

    def __init__(self, steps: str, out_dir: Path, **device_options: Any) -> None:
        self.device = open_device("sim:", defaults=device_options)
        sim: VirtualDevice = self.device.port.sim.device  # type: ignore[attr-defined]
        self.sim = sim
        self.session = Session(
            treatment(steps), self.device, out_dir=out_dir, speed="max", watcher=self._visited, attended=True
        )
        self.receipt: dict[str, Any] | None = None
        self.failure: BaseException | None = None
        self._visits: queue.Queue[Seen | None] = queue.Queue()
        self._acts: queue.Queue[Callable[[Session], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="session")
        self._thread.start()
        self.seen = self._visits.get(timeout=60.0)

    def _run(self) -> None:
        try:
            self.receipt = self.session.run()
        except BaseException as failure:
            self.failure = failure
        finally:
            self._visits.put(None)

    def _visited(self, session: Session) -> None:
        shown = session.progress
        self._visits.put(Seen(shown.phase, shown.delivered_c, tuple(session.trips), session.loop.counters))
        act = self._acts.get()
        if act is not None:
            act(session)

    def go(self, act: Callable[[Session], object] | None = None) -> None:
        """Do something at this visit, and run to the next one or to the end."""
        self._acts.put(act)
        self.seen = self._visits.get(timeout=60.0)

    @property
    def running(self) -> bool:
        return self.seen is not None

    def go_to(self, time_s: float) -> None:
        """Run on until this time of the session's own."""
        while self.seen is not None and self.seen.counters["ticks"] * TICK_S < time_s - 0.5 * TURN_S:
            self.go()

    def finish(self) -> dict[str, Any]:
        """Let it run to its end; a session that does not end by itself is stopped."""
        for _ in range(VISITS_MOST):
            if not self.running:
                break
            self.go()
        self.go_if_running(Session.stop)
        for _ in range(VISITS_MOST):
            if not self.running:
                break
            self.go()
        assert not self.running, "a stopped session must end"
        self._thread.join()
        self.device.close()
        if self.failure is not None:
            raise self.failure
        assert self.receipt is not None
        return self.receipt

    def go_if_running(self, act: Callable[[Session], object]) -> None:
        if self.running:
            self.go(act)

    def abandon(self) -> None:
        """After a failed check: off, and out."""
        with contextlib.suppress(BaseException):
            self.go_if_running(Session.stop_now)
            self.finish()


SESSIONS = st.fixed_dictionaries(
    {
        "steps": st.sampled_from([DOSE, LEVELS]),
        "front_end": st.sampled_from(["current", "voltage"]),
        "skin": st.sampled_from(["typical", "hairy", "sweating", "wounded"]),
        "seed": st.integers(0, 5),
    }
)


class SessionMachine(RuleBasedStateMachine):
    """Operator and faults in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="session-"))

    @initialize(made=SESSIONS)
    def begin(self, made: dict[str, Any]) -> None:
        self.turns = Turns(out_dir=self.folder, **made)
        self.stuck = self.unplugged = self.bridged = False
        self.last: Seen | None = None
        self.check()

    @precondition(lambda self: not self.running())
    @rule(made=SESSIONS)
    def begin_another(self, made: dict[str, Any]) -> None:
        self.end()
        self.begin(made)

    def act(self, do: Callable[[Session], object] | None = None, visits: int = 1) -> None:
        assert self.turns is not None
        for _ in range(visits):
            if not self.turns.running:
                return
            self.turns.go(do)
            do = None
            self.check()

    def running(self) -> bool:
        return self.turns is not None and self.turns.running

    @property
    def sim(self) -> VirtualDevice:
        assert self.turns is not None
        return self.turns.sim

    @precondition(running)
    @rule(visits=st.sampled_from([1, 5, 15, 30]))
    def wait(self, visits: int) -> None:
        self.act(visits=visits)

    @precondition(running)
    @rule(first=st.sampled_from([Session.pause, Session.resume]), visits=st.integers(0, 4))
    def pause_or_resume(self, first: Callable[[Session], object], visits: int) -> None:
        self.act(first, visits=1 + visits)

    @precondition(running)
    @rule(current_a=st.floats(-6e-4, 6e-4) | st.floats())
    def trim(self, current_a: float) -> None:
        def trim(session: Session) -> None:
            if math.isfinite(current_a):
                session.trim(current_a)
            else:
                with pytest.raises(ValueError, match="must be finite"):
                    session.trim(current_a)

        self.act(trim)

    @precondition(running)
    @rule(now=st.booleans())
    def stop(self, now: bool) -> None:
        self.act(Session.stop_now if now else Session.stop)

    @precondition(running)
    @rule(visits=st.integers(1, 3))
    def open_the_lead(self, visits: int) -> None:
        self.sim.open_lead()
        self.act(visits=visits)

    @precondition(running)
    @rule()
    def put_the_lead_back(self) -> None:
        self.sim.close_lead()
        self.act()

    @precondition(running)
    @rule()
    def bridge_the_leads(self) -> None:
        self.bridged = True
        self.sim.short_leads()
        self.act()

    @precondition(running)
    @rule(visits=st.integers(1, 3))
    def stick_the_converter(self, visits: int) -> None:
        self.stuck = True
        self.sim.stick_output()
        self.act(visits=visits)

    @precondition(running)
    @rule()
    def pull_the_plug(self) -> None:
        self.unplugged = True
        self.sim.unplug()
        self.act()

    @precondition(running)
    @rule(share=st.floats(0.3, 1.0))
    def lift_the_pad(self, share: float) -> None:
        self.sim.lift_pad(share)
        self.act()

    @precondition(running)
    @rule(seconds=st.sampled_from([0.001, 0.002, 0.004, 0.02, 0.2]))
    def lose_samples(self, seconds: float) -> None:
        self.sim.stall(seconds)
        self.act()

    @property
    def most_c(self) -> float:
        """The prescribed charge and one tick at the highest setpoint; a converter that is stuck is given half a second.

        Readings have noise of one code, of which the ledger sums up as many as there are rows.
        """
        assert self.turns is not None
        session = self.turns.session
        noise = 6.0 * 200.0 * session.channels[0].controller.config["calibration"]["current_lsb_a"] * TICK_S
        level = session.limits.current_max_a if self.stuck else 1e-3
        return session.plan.prescribed_c + level * (0.5 if self.stuck else TICK_S) + noise

    def check(self) -> None:
        """What must hold at every visit."""
        assert self.turns is not None
        turns, seen = self.turns, self.turns.seen
        assert turns.sim.current_peak_a <= turns.session.limits.current_cap_a * 1.05
        if seen is None:
            return
        assert seen.delivered_c <= self.most_c
        assert seen.counters["ring_dropped"] == 0
        if self.last is not None:
            assert seen.trips[: len(self.last.trips)] == self.last.trips, "a latched trip never clears"
            assert seen.counters["ticks"] >= self.last.counters["ticks"]
            assert not (self.last.phase in ENDED and seen.phase not in ENDED)
        self.last = seen

    def end(self) -> None:
        """Resume what is paused, let the session end, and read its record."""
        assert self.turns is not None
        try:
            self.turns.go_if_running(Session.resume)
            receipt = self.turns.finish()
            assert self.turns.session.record_path is not None
            self.check_record(receipt, self.turns.session.record_path)
        except BaseException:
            self.turns.abandon()
            raise

    def teardown(self) -> None:
        try:
            if self.turns is not None:
                self.end()
        finally:
            shutil.rmtree(self.folder)

    def check_record(self, receipt: dict[str, Any], folder: Path) -> None:
        """What the record says, row by row."""
        assert self.turns is not None
        turns, session = self.turns, self.turns.session
        rows = Record.open(folder).telemetry()
        assert len(rows) == receipt["ticks"] == receipt["telemetry_rows"]
        check_rows({name: rows[name] for name in rows.names}, session)

        delivered = rows["delivered_c"]
        assert delivered.max() <= self.most_c
        assert receipt["dose_ledger_mamin"] * 0.06 == pytest.approx(float(delivered[-1]), rel=1e-12)
        if receipt["dose_device_mamin"] is not None:
            # Both count the same readings; the last ones only the device.
            assert receipt["dose_device_mamin"] == pytest.approx(receipt["dose_ledger_mamin"], abs=2e-5)
        if receipt["dose_device_mamin"] is not None and not self.bridged:
            truth = session.plan.polarity * turns.sim.charge_c
            assert truth == pytest.approx(receipt["dose_device_mamin"] * 0.06, abs=2e-6 + 2e-3 * abs(truth))
        assert receipt["delivered_abs_c"] >= abs(receipt["delivered_net_c"]) * (1.0 - 1e-12)

        reason = EndReason(int(rows["end_reason"][-1]))
        if receipt["outcome"] == "complete":
            assert reason == EndReason.COMPLETE
            assert not receipt["trips"]
            assert delivered[-1] >= 0.995 * session.plan.prescribed_c
        if receipt["trips"] and reason == EndReason.TRIP:
            assert receipt["outcome"] == "faulted"
        if self.unplugged and not reason:
            assert receipt["trips"][-1] == "DEVICE_LOST"
        # The device's own word: nothing is left on.
        assert turns.sim.current_a == pytest.approx(0.0, abs=1e-9)

        replayed = replay(folder)
        assert replayed.difference is None
        checked = verify(folder)
        assert checked.ok, checked.problems


def check_rows(rows: dict[str, np.ndarray[Any, Any]], session: Session) -> None:
    """What holds from each row to the next."""
    index, trip, action = rows["index"].astype(np.int64), rows["trip"], rows["action"]
    assert (np.diff(index) >= 1).all()
    assert ((np.diff(index) - 1) == rows["lost_ticks"][1:]).all()
    assert not (rows["sample_fault"] != SampleFault.GOOD).any()
    phases = [Phase(int(phase)) for phase in rows["phase"][np.flatnonzero(np.diff(rows["phase"], prepend=-1))]]
    assert phases[0] == Phase.SELF_TEST
    for was, now in pairwise(phases):
        assert now in ALLOWED[was], f"{was.name} -> {now.name}"
    tripped = np.flatnonzero(trip)
    if len(tripped):
        assert len(set(trip[tripped[0] :])) == 1
        assert (action[tripped[0] :] >= Action.RAMP_DOWN).all()
        assert (np.diff(np.abs(rows["output_code"][tripped[0] :])) <= 0).all()
    reasons = rows["end_reason"][np.flatnonzero(rows["end_reason"])]
    assert len(set(reasons)) <= 1
    assert not rows["output_code"][action == Action.OFF].any()
    highest = session.limits.current_max_a + 2.0 * session.channels[0].controller.config["impedance"]["tone_a"]
    assert np.abs(rows["setpoint_a"]).max() <= highest * (1.0 + 1e-12)
    assert (np.diff(rows["stop"]) >= 0).all(), "the stop flag only rises"
    numbers = rows["operator_sequence"][np.flatnonzero(rows["operator_sequence"])]
    assert list(numbers) == list(range(1, len(numbers) + 1)), "each command once, in order"
    paused = rows["phase"] == Phase.PAUSE
    assert not rows["level_a"][paused].any()


SessionMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=14, suppress_health_check=[HealthCheck.too_slow]
)
TestSession = SessionMachine.TestCase


def run(steps: str, out_dir: Path, acts: dict[float, Callable[[Session], object]], **options: Any) -> Turns:
    """A session in which each act happens at its time, in s of the session's own."""
    turns = Turns(steps, out_dir, **options)
    for time_s, act in acts.items():
        turns.go_to(time_s)
        turns.go_if_running(act)
    turns.finish()
    return turns


def rows_of(turns: Turns) -> Any:
    assert turns.session.record_path is not None
    return Record.open(turns.session.record_path).telemetry()


@pytest.mark.parametrize("steps", [DOSE, LEVELS])
def test_left_alone_it_delivers_its_dose_to_the_tick(tmp_path: Path, steps: str) -> None:
    turns = run(steps, tmp_path, {})
    assert turns.receipt is not None
    assert (turns.receipt["outcome"], turns.receipt["trips"]) == ("complete", [])
    delivered, prescribed = turns.receipt["dose_ledger_mamin"], turns.receipt["dose_prescribed_mamin"]
    tick = 0.5e-3 * TICK_S / 0.06
    assert abs(delivered - prescribed) <= (3 if steps == LEVELS else 1) * tick


def test_a_pause_keeps_the_dose_and_a_resume_completes_it(tmp_path: Path) -> None:
    turns = run(DOSE, tmp_path, {2.5: Session.pause, 5.0: Session.resume})
    assert turns.receipt is not None
    rows = rows_of(turns)
    paused = np.flatnonzero(rows["phase"] == Phase.PAUSE)
    assert len(paused) > 2000
    held = rows["delivered_c"][paused[50:]]
    assert np.ptp(held) <= 1e-8
    assert turns.receipt["outcome"] == "complete"
    assert turns.receipt["dose_ledger_mamin"] == pytest.approx(0.02, abs=0.4e-3 * TICK_S / 0.06)


@pytest.mark.parametrize("at_s", [0.6, 0.85, 1.1])
def test_a_pause_in_the_contact_check_trips_nothing(tmp_path: Path, at_s: float) -> None:
    """What the check drove still flows in the samples after it: H01 goes by its bound for as long."""
    turns = run(DOSE, tmp_path, {at_s: Session.pause, at_s + 2.0: Session.resume})
    assert turns.receipt is not None and turns.receipt["trips"] == []
    assert turns.receipt["outcome"] == "complete"


def test_a_stop_ends_short_with_the_reason(tmp_path: Path) -> None:
    turns = run(DOSE, tmp_path, {2.5: Session.stop})
    assert turns.receipt is not None
    assert (turns.receipt["outcome"], turns.receipt["reason"]) == ("aborted", "stopped by the operator")
    assert 0.0 < turns.receipt["dose_ledger_mamin"] < 0.02
    rows = rows_of(turns)
    stopped = int((rows["stop"] > 0).argmax())
    down = np.flatnonzero(rows["level_a"][stopped:] == 0.0)[0]
    assert down <= 401, "1 mA/s or faster"


def test_stop_now_opens_the_relay_in_its_tick(tmp_path: Path) -> None:
    turns = run(DOSE, tmp_path, {2.5: Session.stop_now})
    assert turns.receipt is not None
    assert (turns.receipt["outcome"], turns.receipt["trips"]) == ("faulted", ["OPERATOR_STOP"])
    rows = rows_of(turns)
    stopped = int((rows["stop"] > 0).argmax())
    assert not rows["output_code"][stopped:].any()
    assert not rows["close_relay"][stopped:].any()


def test_a_trim_raises_the_level_and_keeps_the_dose(tmp_path: Path) -> None:
    turns = run(DOSE.replace("400 uA", "340 uA"), tmp_path, {2.6: lambda session: session.trim(5e-5)})
    assert turns.receipt is not None
    assert turns.receipt["outcome"] == "complete"
    assert np.abs(rows_of(turns)["level_a"]).max() == pytest.approx(3.9e-4)
    assert turns.receipt["dose_ledger_mamin"] == pytest.approx(0.02, abs=0.39e-3 * TICK_S / 0.06)


def test_a_lead_that_comes_off_ends_it_and_a_lead_on_the_floor_never_begins(tmp_path: Path) -> None:
    turns = Turns(DOSE, tmp_path)
    turns.go_to(2.5)
    turns.sim.open_lead()
    receipt = turns.finish()
    assert (receipt["outcome"], receipt["trips"]) == ("faulted", ["OPEN_LEAD"])
    assert "lead" in receipt["reason"].lower()

    turns = Turns(DOSE, tmp_path)
    turns.sim.open_lead()
    receipt = turns.finish()
    assert receipt["outcome"] in ("aborted", "faulted")
    assert Phase.RAMP_UP not in rows_of(turns)["phase"]
    assert receipt["dose_ledger_mamin"] == pytest.approx(0.0, abs=1e-6)


def test_a_device_that_is_pulled_out_is_a_fault_with_its_charge_bounded(tmp_path: Path) -> None:
    turns = Turns(DOSE, tmp_path)
    turns.go_to(2.5)
    turns.sim.unplug()
    receipt = turns.finish()
    assert (receipt["outcome"], receipt["trips"]) == ("faulted", ["DEVICE_LOST"])
    truth = abs(turns.sim.charge_c) / 0.06
    assert receipt["dose_ledger_mamin"] < truth <= receipt["dose_delivered_mamin"]
    assert turns.sim.current_a == pytest.approx(0.0, abs=1e-9)


def lost(out_dir: Path, faults: str, act: Callable[[Session], object] | None = None) -> tuple[dict[str, Any], float]:
    """The receipt of a session whose device is lost, and the charge (C) that truly flowed."""
    done: list[object] = []

    def watch(session: Session) -> None:
        if act is not None and not done and session.progress.elapsed_s >= 2.5 - 1e-9:
            done.append(act(session))

    with open_device(f"sim:?{faults}") as device:
        receipt = Session(treatment(DOSE), device, out_dir=out_dir, speed="max", watcher=watch).run()
        return receipt, abs(device.port.sim.device.charge_c)  # type: ignore[attr-defined]


@pytest.mark.parametrize("after_s", [0.002, 0.05, 0.1, 0.2, 0.3, 0.39])
@pytest.mark.parametrize("how", ["guard", "operator"])
def test_a_device_lost_while_it_ramps_down_has_all_that_flowed_on_record(
    tmp_path: Path, how: str, after_s: float
) -> None:
    faults, act = ("fault=supply-low@2.5&", None) if how == "guard" else ("", Session.stop)
    receipt, truth_c = lost(tmp_path, f"{faults}fault=unplug@{2.5 + after_s:.3f}", act)
    assert "DEVICE_LOST" in receipt["trips"] and receipt["dose_device_mamin"] is None
    assert receipt["delivered_abs_c"] >= truth_c and receipt["delivered_net_c"] >= truth_c
    assert receipt["delivered_abs_c"] <= truth_c + 2.0 * 400e-6 * 0.1, "a lease at the trip level, and no more"


@pytest.mark.parametrize("tick", range(-2, 4))
def test_an_off_that_does_not_arrive_is_no_off(tmp_path: Path, tick: int) -> None:
    """The device is pulled out in the ticks around the one that switches off."""
    receipt, truth_c = lost(tmp_path, f"fault=unplug@{2.5 + tick * TICK_S:.3f}", Session.stop_now)
    assert receipt["delivered_abs_c"] >= truth_c and receipt["delivered_net_c"] >= truth_c


def test_samples_lost_with_nobody_there_end_the_session(tmp_path: Path) -> None:
    turns = Turns(DOSE, tmp_path)
    turns.session.attended = False
    turns.go_to(2.5)
    turns.sim.stall(0.004)
    receipt = turns.finish()
    assert receipt["outcome"] == "aborted"
    assert receipt["gaps"] == 4
    assert "nobody was there" in receipt["reason"]


def test_a_watcher_that_fails_ramps_down_and_is_told(tmp_path: Path) -> None:
    def fail(session: Session) -> None:
        raise RuntimeError("no such screen")

    turns = run(DOSE, tmp_path, {2.5: fail})
    assert turns.receipt is not None
    assert turns.receipt["outcome"] == "faulted"
    assert "no such screen" in turns.receipt["reason"]
    rows = rows_of(turns)
    assert rows["end_reason"][-1] == EndReason.OPERATOR
    assert not rows["trip"].any()


def test_operator_commands_are_recorded_with_their_numbers(tmp_path: Path) -> None:
    acts = {1.6: Session.pause, 1.8: Session.resume, 2.0: lambda session: session.trim(-1e-4)}
    rows = rows_of(run(DOSE, tmp_path, acts))
    at = np.flatnonzero(rows["operator_sequence"])
    assert list(rows["operator_sequence"][at]) == [1, 2, 3]
    wanted = [OperatorCommand.PAUSE, OperatorCommand.RESUME, OperatorCommand.TRIM]
    assert list(rows["operator_command"][at]) == wanted


def test_a_pause_behind_any_number_of_trims_pauses_and_trims_without_room_are_told(tmp_path: Path) -> None:
    said: list[str] = []

    def act(session: Session) -> None:
        said.extend(session.trim(1e-9) for _ in range(100))
        session.pause()

    turns = run(DOSE, tmp_path, {2.5: act, 5.0: Session.resume})
    assert turns.receipt is not None and turns.receipt["outcome"] == "complete"
    assert [bool(text) for text in said] == [False] * 64 + [True] * 36
    assert "too many commands wait" in said[-1]
    rows = rows_of(turns)
    first = int(np.flatnonzero(rows["operator_sequence"])[0])
    assert rows["operator_command"][first] == OperatorCommand.PAUSE
    assert rows["phase"][first + 2000] == Phase.PAUSE
    assert turns.session.record_path is not None
    kinds = [event.kind for event in Record.open(turns.session.record_path).events().events]
    assert kinds.count("operator-unheard") == 36


def test_a_resume_of_what_is_not_paused_reaches_nobody(tmp_path: Path) -> None:
    said: list[str] = []
    acts = {at_s: lambda session: said.append(session.resume()) for at_s in (0.2, 1.6, 2.5)}
    turns = run(DOSE, tmp_path, acts)
    assert said == ["not resumed: nothing is paused"] * 3
    assert not rows_of(turns)["operator_sequence"].any()


@pytest.mark.parametrize("at_s", [0.2, 0.8, 1.5, 2.5])
def test_a_pause_and_a_resume_at_once_hold_nothing_up(tmp_path: Path, at_s: float) -> None:
    """In self-test, contact check, ramp up and treatment."""
    said: list[str] = []

    def act(session: Session) -> None:
        for _ in range(20):
            session.pause()
            said.append(session.resume())

    turns = run(DOSE, tmp_path, {at_s: act})
    assert turns.receipt is not None and turns.receipt["outcome"] == "complete"
    assert said == [""] * 20


def test_a_guards_pause_that_nobody_has_been_told_of_is_not_resumed(tmp_path: Path) -> None:
    """It begins between two visits, while the operator's own pause stands."""
    said: list[str] = []

    def lose_samples(session: Session) -> None:
        session.device.port.sim.device.stall(0.004)  # type: ignore[attr-defined]
        session.loop.run(20)
        said.append(session.resume())

    turns = run(DOSE, tmp_path, {2.5: Session.pause, 3.5: lose_samples, 4.0: Session.resume, 6.0: Session.stop})
    assert "paused in this moment" in said[0]
    assert turns.receipt is not None
    assert [row["alarm"] for row in turns.receipt["alarm_log"]] == ["lost-samples-pause"]
    assert not (rows_of(turns)["operator_command"] == OperatorCommand.RESUME).any()


def test_a_session_is_run_once(tmp_path: Path) -> None:
    """What it knows of alarms and trips is of the first run."""
    with open_device("sim:?fault=open@2") as device:
        session = Session(treatment(DOSE), device, out_dir=tmp_path, speed="max")
        assert session.run()["trips"] == ["OPEN_LEAD"]
        with pytest.raises(RefusedError, match="has been run") as refused:
            session.run()
    assert "\n" not in str(refused.value)
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 1


@pytest.mark.parametrize(
    ("pacing", "speed", "says"), [("real", "max", "no lock-step"), ("lock-step", "real", "no clock in real time")]
)
def test_a_pacing_the_device_lacks_is_refused_and_leaves_nothing(
    tmp_path: Path, pacing: str, speed: Any, says: str
) -> None:
    with open_device("sim:", defaults={"pacing": pacing}) as device, pytest.raises(RefusedError, match=says):
        Session(treatment(DOSE), device, out_dir=tmp_path, speed=speed)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_the_host_paces_keeps_the_hosts_time(tmp_path: Path) -> None:
    """Late commands are made up for: the device's count of periods does not run away from the time that passes."""
    steps = '[[steps]]\ncurrent = "1 mA"\ntime = "4 s"\nramp = "1.5 s"'
    with open_device("virtual:?pacing=host") as device:
        session = Session(treatment(steps), device, out_dir=tmp_path)
        receipt = session.run()
    assert session.pacing == Pacing.HOST
    assert receipt["dose_device_mamin"] == pytest.approx(receipt["dose_ledger_mamin"], rel=1e-6)
    assert session.record_path is not None
    rows = Record.open(session.record_path).telemetry()
    ahead_us = rows["device_time_us"].astype(np.int64) - rows["host_time_us"].astype(np.int64)
    assert abs(np.median(ahead_us[-200:]) - np.median(ahead_us[:200])) <= 5e3
    assert (session.record_path / "latency.hlog").read_text().count("Tag=wake_up") == 1
