"""Sessions of several channels: what one channel's end means for the others, and what is on record of each."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_support import HEAD, LEASE_S, Truth, ionto, sessions, started, wait_until
from ionto_rt.alarms import SoftAlarm, alarm_for_soft
from ionto_rt.codes import LOOP_SEQUENCE, EndReason, OperatorCommand, Phase, StopFlag
from ionto_rt.device import open_device
from ionto_rt.journal import Journal
from ionto_rt.live import LineView
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from test_recorder import Disk
from treatments import together

pytestmark = pytest.mark.real_time

POLICIES = ["stop", "pause", "continue"]
MAMIN_C = 0.06


def one(dose: str = "0.05 mA*min", current: str = "1 mA", ramp: str = "1.25 s") -> str:
    return f'{HEAD}[[steps]]\ncurrent = "{current}"\ndose = "{dose}"\nramp = "{ramp}"\n'


def of(*singles: str, on_channel_trip: str = "") -> Treatment:
    return Treatment.parse(together(singles, on_channel_trip).encode(), "several.toml")


class Ran:
    """A session that has ended, on `sim:`, and all that it left behind."""

    def __init__(
        self,
        folder: Path,
        treatment: Treatment,
        *,
        uri: str = "sim:?channels=2",
        watch: Callable[[Session], object] | None = None,
        attended: bool = False,
    ) -> None:
        with open_device(uri) as device:
            self.session = Session(treatment, device, out_dir=folder, speed="max", watcher=watch, attended=attended)
            self.receipt = self.session.run()
        assert self.session.record_path is not None
        self.path = self.session.record_path
        self.parts: list[dict[str, Any]] = self.receipt["channels"]
        self.check()

    @property
    def outcomes(self) -> list[str]:
        return [part["outcome"] for part in self.parts]

    def events(self, kind: str) -> list[Any]:
        return [event for event in Record.open(self.path).events().events if event.kind == kind]

    def rows(self, channel: int) -> Any:
        rows = Record.open(self.path).telemetry()
        own = rows["channel"] == channel
        return {
            name: rows[name][own]
            for name in (
                "index",
                "phase",
                "stop",
                "trip",
                "end_reason",
                "operator_command",
                "operator_sequence",
                "delivered_c",
                "level_a",
                "output_code",
            )
        }

    def check(self) -> None:
        """What holds of every record of several channels."""
        assert verify(self.path).ok, verify(self.path).problems
        assert replay(self.path).identical, replay(self.path).text
        for key in ("dose_delivered_mamin", "dose_ledger_mamin", "delivered_net_c", "delivered_abs_c"):
            assert self.receipt[key] == pytest.approx(sum(part[key] for part in self.parts))
        assert self.receipt["peak_current_ma"] == max(part["peak_current_ma"] for part in self.parts)
        with Journal(self.path.parent) as journal:
            rows = journal.get(self.path.name)
        assert [row.channel for row in rows] == list(range(len(self.parts)))
        for row, part in zip(rows, self.parts, strict=True):
            assert (row.outcome, row.delivered_net_c) == (part["outcome"], part["delivered_net_c"])
            assert row.delivered_abs_c == part["delivered_abs_c"]
        for event in Record.open(self.path).events().events:
            of_one = {"phase", "end", "trip", "held-for-others", "step", "load-identified", "device-status", "operator"}
            assert event.kind not in of_one or event.fields["channel"] in range(len(self.parts)), event


def resuming(session: Session) -> None:
    """Somebody who resets and resumes whatever waits."""
    session.reset()
    for channel in session.channels:
        if channel.progress.paused:
            session.resume(channel.number)


FAULTS = {"open": ("faulted", "Lead or pad open"), "short": ("faulted", "Electrodes shorted"),
          "check": ("aborted", "Contact check: no contact")}  # fmt: skip


def faulty(kind: str, channels: int = 2) -> str:
    return f"sim:?channels={channels}&fault=1:" + {"open": "open@3", "short": "short@3", "check": "open@0"}[kind]


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("channels", [2, 3])
def test_stop_ramps_the_others_down_and_says_with_whom(tmp_path: Path, kind: str, channels: int) -> None:
    ran = Ran(tmp_path, of(*[one()] * channels, on_channel_trip="stop"), uri=faulty(kind, channels), attended=True)
    outcome, said = FAULTS[kind]
    assert ran.receipt["outcome"] == outcome
    assert ran.receipt["reason"].startswith(f"1: {said}"), "the channel that determined it"
    for part in (ran.parts[0], *ran.parts[2:]):
        assert (part["outcome"], part["reason"], part["trips"]) == ("aborted", "ended with 1", [])
    rows, fallen = ran.rows(0), ran.rows(1)
    fell = int(fallen["index"][np.flatnonzero(fallen["end_reason"])[0]])
    assert (rows["stop"][rows["index"] > fell] == StopFlag.RAMP_DOWN).all()
    assert rows["end_reason"][-1] == EndReason.OPERATOR
    assert (np.diff(np.abs(rows["level_a"][rows["index"] > fell])) <= 0.0).all(), "a ramp, not a step"
    assert not any("operator" in alarm for alarm in ran.receipt["alarms"])


@pytest.mark.parametrize("kind", FAULTS)
def test_pause_holds_the_dose_of_the_others_until_somebody_resumes(tmp_path: Path, kind: str) -> None:
    ran = Ran(tmp_path, of(one(), one(), on_channel_trip="pause"), uri=faulty(kind), watch=resuming, attended=True)
    outcome, said = FAULTS[kind]
    assert ran.outcomes == ["complete", outcome]
    assert ran.receipt["reason"].startswith(f"1: {said}")
    assert ran.parts[0]["dose_ledger_mamin"] == pytest.approx(0.05, abs=1e-3 * 1e-3 / MAMIN_C)
    (held,) = ran.events("held-for-others")
    assert held.fields["channel"] == 0
    rows = ran.rows(0)
    told = int(np.flatnonzero(rows["operator_sequence"] & LOOP_SEQUENCE)[0])
    assert rows["operator_command"][told] == OperatorCommand.PAUSE
    paused = rows["delivered_c"][rows["phase"] == Phase.PAUSE]
    assert len(paused) and np.ptp(paused[10:]) < 1e-7


@pytest.mark.parametrize("kind", FAULTS)
def test_pause_with_nobody_there_ends_the_others_and_says_why(tmp_path: Path, kind: str) -> None:
    ran = Ran(tmp_path, of(one(), one(), on_channel_trip="pause"), uri=faulty(kind))
    outcome, said = FAULTS[kind]
    assert ran.outcomes == ["aborted", outcome]
    assert ran.receipt["reason"].startswith(f"1: {said}")
    assert ran.parts[0]["reason"].startswith("Another channel has ended short")
    assert ran.parts[0]["reason"].endswith("nobody was there to resume")
    assert [event.fields["channel"] for event in ran.events("unattended")] == [0]


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("channels", [2, 3])
def test_continue_lets_the_others_complete(tmp_path: Path, kind: str, channels: int) -> None:
    ran = Ran(tmp_path, of(*[one()] * channels, on_channel_trip="continue"), uri=faulty(kind, channels))
    outcome, said = FAULTS[kind]
    assert ran.outcomes == ["complete", outcome, "complete"][:channels]
    assert ran.receipt["outcome"] == outcome and ran.receipt["reason"].startswith(f"1: {said}")
    for part in (ran.parts[0], *ran.parts[2:]):
        assert part["dose_ledger_mamin"] == pytest.approx(0.05, abs=1e-3 * 1e-3 / MAMIN_C)
    assert not ran.events("held-for-others") and not ran.events("unattended")


def test_all_complete_and_the_whole_says_so_without_a_name(tmp_path: Path) -> None:
    ran = Ran(tmp_path, of(one(), one("0.03 mA*min", "0.6 mA"), one("0.04 mA*min")), uri="sim:?channels=3")
    assert (ran.receipt["outcome"], ran.receipt["reason"]) == ("complete", "the prescribed doses were delivered")
    assert ran.receipt["dose_ledger_mamin"] == pytest.approx(0.12, abs=1e-4)


@pytest.mark.parametrize("act", [Session.stop, Session.stop_now])
def test_what_ends_all_channels_alike_is_no_channel_s_reason(tmp_path: Path, act: Callable[[Session], None]) -> None:
    def watch(session: Session) -> None:
        if session.progress.elapsed_s > 2.5:
            act(session)

    ran = Ran(tmp_path, of(one(), one()), watch=watch)
    assert ran.receipt["reason"] == ran.parts[0]["reason"] == ran.parts[1]["reason"]


def test_a_channel_that_has_its_dose_is_not_held_for_one_that_trips_later(tmp_path: Path) -> None:
    both = of(one("0.03 mA*min"), one("0.1 mA*min"), on_channel_trip="pause")
    ran = Ran(tmp_path, both, uri="sim:?channels=2&fault=1:open@6")
    assert ran.outcomes == ["complete", "faulted"]
    assert not ran.events("held-for-others") and not ran.events("unattended")
    assert not any("holds its dose" in alarm for alarm in ran.receipt["alarms"])


def test_channels_that_trip_in_the_same_tick_ask_nothing_of_each_other(tmp_path: Path) -> None:
    ran = Ran(tmp_path, of(one(), one(), on_channel_trip="pause"), uri="sim:?channels=2&fault=0:open@3,1:open@3")
    assert ran.outcomes == ["faulted", "faulted"]
    assert ran.parts[0]["trips"] == ran.parts[1]["trips"] == ["OPEN_LEAD"]
    assert not ran.events("held-for-others")


def test_the_operator_ends_one_channel_and_the_others_go_on(tmp_path: Path) -> None:
    def watch(session: Session) -> None:
        if session.progress.elapsed_s > 2.5 and not session.channels[0].asked_to_end:
            session.end(0)

    ran = Ran(tmp_path, of(one(), one()), watch=watch)
    assert ran.outcomes == ["aborted", "complete"]
    assert ran.receipt["reason"] == "0: stopped by the operator"


def test_a_channel_that_the_operator_ended_did_not_end_with_one_that_fell_later(tmp_path: Path) -> None:
    def watch(session: Session) -> None:
        if session.progress.elapsed_s > 2.5 and not session.channels[0].asked_to_end:
            session.end(0)

    ran = Ran(tmp_path, of(one(), one()), uri="sim:?channels=2&fault=1:open@5", watch=watch)
    assert ran.parts[0]["reason"] == "stopped by the operator"
    assert ran.parts[1]["outcome"] == "faulted"


@pytest.mark.parametrize("policy", POLICIES)
def test_an_area_that_shrinks_with_nobody_there_ends_that_channel_as_the_treatment_says(
    tmp_path: Path, policy: str
) -> None:
    """A pause of the guard, that waits for a person, on one channel."""
    long = one("0.6 mA*min", "2 mA", "2.6 s")
    ran = Ran(
        tmp_path,
        of(long, long, on_channel_trip=policy),
        uri="sim:?channels=2&rate=4000&skin=hairy&fault=1:area=0.5@8",
    )
    assert [event.fields["name"] for event in ran.events("guard-pause")] == ["CONTACT_AREA"]
    assert ran.parts[1]["outcome"] == "aborted"
    assert ran.parts[1]["reason"].endswith("nobody was there to resume")
    assert ran.receipt["reason"] == f"1: {ran.parts[1]['reason']}"
    others = ("complete", "the prescribed dose was delivered") if policy == "continue" else ("aborted", "ended with 1")
    assert (ran.parts[0]["outcome"], ran.parts[0]["reason"]) == others


def test_a_resume_of_all_reaches_those_alone_that_are_paused(tmp_path: Path) -> None:
    acts = {2.5: lambda session: session.pause(1), 4.0: lambda session: said.append(session.resume())}
    said: list[str] = []

    def watch(session: Session) -> None:
        while acts and session.progress.elapsed_s >= min(acts):
            acts.pop(min(acts))(session)

    ran = Ran(tmp_path, of(one("0.08 mA*min"), one("0.08 mA*min")), watch=watch, attended=True)
    assert ran.outcomes == ["complete", "complete"] and said == [""]
    commands = [[int(c) for c in ran.rows(channel)["operator_command"] if c] for channel in (0, 1)]
    assert commands == [[], [OperatorCommand.PAUSE, OperatorCommand.RESUME]]


@pytest.mark.parametrize("attended", [False, True])
def test_samples_lost_pause_every_channel(tmp_path: Path, attended: bool) -> None:
    ran = Ran(
        tmp_path, of(one(), one()), uri="sim:?channels=2&fault=stall@2.5+0.004", watch=resuming, attended=attended
    )
    assert len(ran.events("guard-pause")) == 2
    if attended:
        assert ran.outcomes == ["complete", "complete"]
    else:
        assert ran.outcomes == ["aborted", "aborted"]
        assert ran.receipt["reason"].endswith("nobody was there to resume")
        assert "Samples" in ran.receipt["reason"] or "samples" in ran.receipt["reason"]


def test_an_alarm_of_the_whole_session_bears_no_channel_s_name(tmp_path: Path) -> None:
    def watch(session: Session) -> None:
        if session.progress.elapsed_s > 2.5:
            raise RuntimeError("no such screen")

    ran = Ran(tmp_path, of(one(), one()), watch=watch)
    assert ran.receipt["outcome"] == "faulted"
    assert ran.receipt["reason"].startswith("the host failed (RuntimeError: no such screen)")


def test_channels_that_the_treatment_leaves_out_stay_at_zero_with_their_relays_open(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    ran = Ran(tmp_path / "sessions", of(one(), one()), uri=f"sim:?channels=4&truth={truth}")
    assert ran.outcomes == ["complete", "complete"]
    seen = Truth(truth)
    for channel in range(4):
        own = seen["channel"] == channel
        assert own.any()
        driven = channel < 2
        assert seen["relay_closed"][own].any() == driven
        assert bool(np.abs(seen["current_peak_a"][own]).max() > 0.0) == driven
        if driven:
            assert -seen["charge_c"][own][-1] / MAMIN_C == pytest.approx(0.05, rel=1e-3)


OF_THE_DEVICE = {"channel", "nonce"}
OF_THE_TOKEN = {"heartbeat", "challenge"}


def differing(ours: Any, theirs: Any, channel: int) -> list[str]:
    """Columns in which the channel's rows in two records differ in a bit, as far as both go."""
    own, other = ours["channel"] == channel, theirs["channel"] == channel
    both = min(int(own.sum()), int(other.sum()))
    assert both > 1000
    names = [name for name in ours.names if name not in OF_THE_DEVICE | OF_THE_TOKEN]
    return [name for name in names if ours[name][own][:both].tobytes() != theirs[name][other][:both].tobytes()]


@settings(max_examples=5)
@given(
    seed=st.integers(0, 1000),
    skin=st.sampled_from(["typical", "hairy", "sweating", "wounded"]),
    level=st.sampled_from(["0.5 mA", "1 mA"]),
    fault=st.sampled_from(["", "open@3", "short@3"]),
)
def test_what_one_channel_does_is_in_no_bit_of_the_others_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, skin: str, level: str, fault: str
) -> None:
    """The first channel runs as it would alone; the second, whose readings are by the first one's calibration, as it
    does beside any other.
    """
    folder = tmp_path_factory.mktemp("alone")
    single, other = one("0.03 mA*min", level), one("0.04 mA*min", "0.8 mA")
    options = f"seed={seed}&skin={skin}"

    def records(name: str, *singles: str, fault: str = "") -> Any:
        more = f"&fault={fault}" if fault else ""
        treatment = (
            of(*singles, on_channel_trip="continue")
            if len(singles) > 1
            else Treatment.parse(singles[0].encode(), "one.toml")
        )
        with open_device(f"sim:?channels={len(singles)}&{options}{more}") as device:
            session = Session(treatment, device, out_dir=folder / name, speed="max")
            session.run()
        assert session.record_path is not None
        return Record.open(session.record_path).telemetry()

    both = records("both", single, single)
    assert differing(records("alone", single), both, 0) == []
    assert differing(records("second", single, other, fault=f"1:{fault}" if fault else ""), both, 0) == []
    assert differing(records("first", other, single, fault=f"0:{fault}" if fault else ""), both, 1) == []


def test_an_alarm_of_the_whole_session_is_no_channel_s(tmp_path: Path) -> None:
    """Here of a record that cannot be written; on the screen, in the events and in the receipt."""
    out, full = io.StringIO(), Disk()
    lines = LineView(out)

    def watch(session: Session) -> None:
        full.full = 2.5 < session.progress.elapsed_s < 3.0
        lines(session)

    with open_device("sim:?channels=2") as device:
        session = Session(of(one(), one()), device, out_dir=tmp_path, speed="max", watcher=watch, files=full)
        receipt = session.run()
    lines.close()
    assert receipt["outcome"] == "complete"
    (alarm,) = receipt["alarms"][-1:]
    assert alarm == alarm_for_soft(SoftAlarm.RECORD_BEHIND).line
    assert sum("0: " in line and alarm in line for line in out.getvalue().splitlines()) == 0
    assert sum(alarm in line for line in out.getvalue().splitlines()) == 1


@pytest.mark.parametrize("after", ["ramp up", "treatment"])
def test_a_killed_host_leaves_each_channel_with_no_less_on_record_than_flowed(tmp_path: Path, after: str) -> None:
    path = tmp_path / "several.toml"
    path.write_text(together([one("0.6 mA*min"), one("0.3 mA*min", "0.5 mA")]))
    uri = "virtual:?channels=2&truth=truth.csv"
    with started("run", path, "--device", uri, "--json", cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f"1: {after}" in line:
                break
        process.kill()
        process.wait()
    (session,) = sessions(tmp_path / "sessions")
    # Recovery asks the device that the session had; it must be done with its own file first.
    recovered = ionto("recover", session, "--json", cwd=tmp_path)
    assert recovered.code == 0, recovered.err
    receipt = recovered.receipt
    assert (receipt["outcome"], receipt["dose_basis"]) == ("recovered", "device count")
    wait_until(lambda: Truth(tmp_path / "truth.csv")["relay_closed"][-2:].sum() == 0.0, "the device to switch off")
    truth = Truth(tmp_path / "truth.csv")
    for channel, part in enumerate(receipt["channels"]):
        own = truth["channel"] == channel
        flowed_mamin = -float(truth["charge_c"][own][-1]) / MAMIN_C
        assert part["dose_delivered_mamin"] >= flowed_mamin - 1e-5
        assert part["dose_delivered_mamin"] == pytest.approx(flowed_mamin, abs=1e-5 + 2e-3 * flowed_mamin)
        on = np.flatnonzero(np.abs(truth["current_peak_a"][own]) > 1e-6)
        assert float(truth["device_time_s"][own][on[-1]]) - last_command_s(truth, own) <= LEASE_S
    assert receipt["dose_delivered_mamin"] == pytest.approx(sum(p["dose_delivered_mamin"] for p in receipt["channels"]))
    assert replay(session).identical
    with Journal(session.parent) as journal:
        assert [row.outcome for row in journal.get(session.name)] == ["recovered"] * 2


def last_command_s(truth: Truth, own: Any) -> float:
    """Device time at which the last command was accepted."""
    left = truth["lease_ticks_left"][own]
    renewed = np.flatnonzero(left[1:] >= np.maximum(left[:-1], 1)) + 1
    return float(truth["device_time_s"][own][renewed[-1]])


def test_in_real_time_one_channel_trips_and_the_other_completes(tmp_path: Path) -> None:
    treatment = of(one("0.04 mA*min"), one("0.04 mA*min"), on_channel_trip="continue")
    with open_device("virtual:?channels=2&fault=1:open@2.8") as device:
        session = Session(treatment, device, out_dir=tmp_path)
        receipt = session.run()
    assert [part["outcome"] for part in receipt["channels"]] == ["complete", "faulted"], receipt["channels"]
    assert receipt["reason"].startswith("1: Lead or pad open")
    assert receipt["dose_device_mamin"] == pytest.approx(receipt["dose_ledger_mamin"], abs=2e-5)
    assert session.record_path is not None
    assert verify(session.record_path).ok and replay(session.record_path).identical
