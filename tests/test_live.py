"""What a person sees and touches while a session runs: the picture, the lines, the keys."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cli_support import COMMAND, EXAMPLE, environment, sessions, treatment
from ionto_rt.alarms import SoftAlarm, alarm_for_soft, alarm_for_trip
from ionto_rt.codes import Phase, Trip
from ionto_rt.device import open_device
from ionto_rt.keys import SEQUENCE_S, Keyboard, KeyReader, is_attended
from ionto_rt.live import TRIM_A, AlarmLine, Audio, Dial, Frame, LineView, overview, picture
from ionto_rt.record import Record
from ionto_rt.session import Progress, Session
from ionto_rt.treatment import Treatment
from treatments import together

pytestmark = pytest.mark.real_time


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    path = treatment(tmp_path, current="3 mA", ramp="4 s", hold="20 s")
    with open_device("sim:") as device:
        yield Session(Treatment.load(path), device, out_dir=tmp_path / "sessions", speed="max")


def drawn(frame: Frame, width: int, height: int = 50) -> str:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(picture(frame))
    return out.getvalue()


def words(text: str) -> str:
    """What is written, without the box and the ends of lines."""
    return " ".join(text.replace("│", " ").split())


def frame(session: Session, **shown: object) -> Frame:
    progress = replace(Progress(prescribed_c=session.plan.prescribed_c), **shown)  # type: ignore[arg-type]
    return Frame(session.plan, "sim:", True, progress, 3e-3, 0.0, (), "")


def test_the_picture_tells_the_phase_the_readings_the_dose_and_the_keys(session: Session) -> None:
    half = session.plan.prescribed_c / 2
    text = drawn(
        frame(
            session, phase=Phase.TREATMENT, step=0, elapsed_s=65.4, remaining_s=30.0, current_a=-2.987e-3,
            setpoint_a=-3e-3, voltage_v=-9.01, resistance_ohm=3020.0, resistance_sigma_ohm=130.0, delivered_c=half,
            late=7, lost=2,
        ),
        90,
    )  # fmt: skip
    for part in (
        "short", "sim:", "treatment", "1:05 elapsed, 0:30 left", "2.987 mA", "of 3.000 mA, cathode", "9.01 V",
        "3.02 ± 0.13 kΩ", "mA·min, 50 %", "slow ticks 7, lost 2", "pause", "resume", "current", "stop", "off at once",
    ):  # fmt: skip
        assert part in text, part


def test_an_alarm_is_shown_with_time_priority_and_advice(session: Session) -> None:
    alarm = alarm_for_trip(Trip.OPEN_LEAD)
    text = drawn(replace(frame(session, phase=Phase.FAULTED), alarms=(AlarmLine(61.0, alarm, standing=True),)), 200)
    assert "faulted" in text
    assert f"1:01 MEDIUM {alarm.line}" in text
    gone = drawn(replace(frame(session, phase=Phase.FAULTED), alarms=(AlarmLine(61.0, alarm, "over"),)), 200)
    assert f"1:01 MEDIUM {alarm.title} (over)" in gone and alarm.advice not in gone


def test_nothing_is_known_before_the_first_estimate(session: Session) -> None:
    text = drawn(frame(session), 90)
    assert "self-test" in text and "not known yet" in text and "-0.0" not in text


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_the_picture_keeps_to_the_width_of_the_terminal(session: Session, width: int) -> None:
    alarms = tuple(AlarmLine(1.0, alarm_for_trip(trip)) for trip in (Trip.OPEN_LEAD, Trip.HOST_SUSPENDED))
    lines = drawn(replace(frame(session, phase=Phase.RAMP_UP), alarms=alarms), width).splitlines()
    assert max(map(len, lines)) <= width


SMALL = [(40, 10), (20, 5)]
TRIPPED = AlarmLine(61.0, alarm_for_trip(Trip.OPEN_LEAD), "not seen now, x resets", standing=True)
LATE = AlarmLine(2.0, alarm_for_soft(SoftAlarm.LATE_COMMANDS), standing=True)
OVER = AlarmLine(1.0, alarm_for_soft(SoftAlarm.CONTACT_LOST), "over")


@pytest.mark.parametrize(("width", "height"), SMALL)
@pytest.mark.parametrize("alarms", [(TRIPPED,), (TRIPPED, LATE, OVER), (TRIPPED, LATE, LATE, LATE, LATE)])
def test_after_a_trip_a_small_terminal_has_the_alarm_and_the_keys(
    session: Session, width: int, height: int, alarms: tuple[AlarmLine, ...]
) -> None:
    shown = frame(session, phase=Phase.FAULTED, late=7, ending=True)
    text = drawn(replace(shown, alarms=alarms), width, height)
    assert len(text.splitlines()) <= height and max(map(len, text.splitlines())) <= width
    for part in ("faulted", "0.0 µA", "MEDIUM Lead or pad open", "x reset q leave"):
        assert part in words(text), part
    spared = ("press both pads down", "dose", "voltage", "slow ticks")
    assert height > 5 or not any(part in words(text) for part in spared)
    whole = words(drawn(replace(shown, alarms=alarms), width, 90))
    assert "press both pads down" in whole and "slow ticks 7" in whole


@pytest.mark.parametrize(("width", "height"), SMALL)
def test_a_small_terminal_has_the_stop_key_while_a_current_flows(session: Session, width: int, height: int) -> None:
    shown = frame(session, phase=Phase.TREATMENT, current_a=-2.987e-3, setpoint_a=-3e-3, remaining_s=30.0)
    for alarms in ((), (LATE,), (LATE, OVER)):
        text = drawn(replace(shown, alarms=alarms), width, height)
        assert len(text.splitlines()) <= height
        for part in ("treatment", "2.987 mA", " stop"):
            assert part in words(text), part
        assert not alarms or LATE.alarm.title in words(text)
    paused = drawn(replace(frame(session, phase=Phase.PAUSE, paused=True), alarms=(TRIPPED,)), 40, 10)
    assert "x reset r resume s stop q off" in words(paused)
    alone = drawn(replace(shown, keys=False), width, height)
    assert "Ctrl-C ramps down" in words(alone)


@pytest.mark.parametrize(("width", "height"), SMALL)
@pytest.mark.parametrize("channels", [2, 4, 9])
def test_of_several_channels_a_small_terminal_has_the_alarm_and_the_keys(
    session: Session, width: int, height: int, channels: int
) -> None:
    made = replace(frame(session, phase=Phase.FAULTED, ending=True), name="left", alarms=(TRIPPED, LATE))
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(overview([made] * channels))
    text = out.getvalue()
    assert len(text.splitlines()) <= height and max(map(len, text.splitlines())) <= width
    for part in ("1 ", "faulted 0.0 µA", "MEDIUM Lead or pad open", "x reset q leave"):
        assert part in words(text), (part, text)


def test_the_longest_title_leaves_the_keys_and_an_inactivated_signal_is_marked(session: Session) -> None:
    locked = AlarmLine(9.0, alarm_for_soft(SoftAlarm.LOCKED), "not seen now, x resets", standing=True)
    shown = replace(frame(session, phase=Phase.PAUSE, paused=True), alarms=(locked, TRIPPED))
    text = words(drawn(replace(shown, audio=Audio(paused_s=598.0)), 20, 5))
    for part in ("pause 0.0 µA", "AUDIO PAUSED 9:58", "MEDIUM Locked:", "x reset s stop"):
        assert part in text, part


def test_derated_is_said_only_of_a_current_that_flows(session: Session) -> None:
    flows: dict[str, object] = {"current_a": -1e-3, "setpoint_a": -1e-3, "limited": True}
    assert "derated" in drawn(frame(session, phase=Phase.TREATMENT, **flows), 90)
    for phase in (Phase.FAULTED, Phase.ABORTED, Phase.COMPLETE):
        assert "derated" not in drawn(frame(session, phase=phase, **flows), 90)
    assert "derated" not in drawn(frame(session, phase=Phase.PAUSE, limited=True), 90)


def test_no_time_is_left_of_what_was_told_to_stop(session: Session) -> None:
    assert "0:23 left" in drawn(frame(session, phase=Phase.RAMP_DOWN, remaining_s=23.0), 90)
    stopped = frame(session, phase=Phase.RAMP_DOWN, remaining_s=23.0, ending=True)
    assert "left" not in drawn(stopped, 90)
    out = io.StringIO()
    Console(file=out, width=90).print(overview([replace(stopped, name="a"), replace(stopped, name="b")]))
    assert "0:23" not in out.getvalue()


def test_a_stop_is_seen_as_an_end_that_was_not_planned(session: Session) -> None:
    seen = []

    def watch(running: Session) -> None:
        shown = running.progress
        seen.append((shown.phase, shown.ending))
        if shown.phase == Phase.TREATMENT:
            running.stop()

    session.watcher = watch
    assert session.run()["reason"] == "stopped by the operator"
    assert (Phase.RAMP_UP, False) in seen and (Phase.RAMP_DOWN, True) in seen and (Phase.RAMP_DOWN, False) not in seen


def test_an_impedance_is_shown_only_where_it_is_known(session: Session) -> None:
    known: dict[str, object] = {"phase": Phase.TREATMENT, "resistance_ohm": 3000.0, "resistance_sigma_ohm": 1490.0}
    flows: dict[str, object] = {"current_a": -1e-5, "setpoint_a": -1e-5}
    assert "impedance 3.00 ± 1.49 kΩ" in drawn(frame(session, **known, **flows), 90)
    assert "kΩ" not in drawn(frame(session, **known), 90)
    assert "kΩ" not in drawn(frame(session, **(known | {"resistance_sigma_ohm": 1500.0}), **flows), 90)


def test_after_the_end_the_newest_reading_is_shown_and_no_mean(session: Session) -> None:
    with open_device("sim:?fault=open@5") as device:
        tripped = Session(session.treatment, device, out_dir=session.out_dir, speed="max")
        assert tripped.run()["trips"] == ["OPEN_LEAD"]
    assert tripped.progress.phase == Phase.FAULTED and abs(tripped.progress.current_a) < 1e-5


def operator_commands(folder: Path) -> list[tuple[str, float]]:
    events = Record.open(folder).events().events
    return [(event.fields["command"], event.fields["value_a"]) for event in events if event.kind == "operator"]


@pytest.mark.parametrize("width", [80, 120])
def test_of_several_channels_each_has_a_line_with_its_readings_whole(session: Session, width: int) -> None:
    shown: dict[str, object] = {"phase": Phase.CONTACT_CHECK, "current_a": -3.999e-3, "voltage_v": -38.25,
                                "remaining_s": 3599.0, "limited": True}  # fmt: skip
    made = replace(frame(session, **shown), name="left lateral epicondyle")
    made = replace(made, shown=replace(made.shown, prescribed_c=2.4, delivered_c=1.2))
    frames = [made, replace(made, name="right", trim_a=1e-4)]
    out = io.StringIO()
    Console(file=out, width=width).print(overview(frames))
    lines = out.getvalue().splitlines()
    assert {len(line) for line in lines} == {width}
    first, second = lines[1:3]
    for line, number, name in ((first, 1, "left lateral"), (second, 2, "right ")):
        assert line.startswith(f"│ {number} {name}")
        for part in ("contact check", "3.999 mA", "38.25 V", "20.00 of 40.00 mA·min", "59:59"):
            assert part in line
    assert "right derated, right trimmed by +0.10 mA" in words(out.getvalue())
    keys = [line for line in lines if " pause" in line]
    assert len(keys) == 1 and all(key in keys[0] for key in ("1-2", " 0 ", " p ", " r ", " + - ", " s ", " q "))


@pytest.mark.parametrize("width", [44, 60, 70])
def test_on_a_narrow_terminal_each_channel_has_two_lines_and_no_reading_is_cut(session: Session, width: int) -> None:
    shown: dict[str, object] = {"phase": Phase.CONTACT_CHECK, "current_a": -3.999e-3, "voltage_v": -38.25,
                                "remaining_s": 3599.0}  # fmt: skip
    made = replace(frame(session, **shown), name="left lateral epicondyle")
    made = replace(made, shown=replace(made.shown, prescribed_c=2.4, delivered_c=1.2))
    out = io.StringIO()
    Console(file=out, width=width).print(overview([made, replace(made, name="right")]))
    lines = out.getvalue().splitlines()
    assert {len(line) for line in lines} == {width}
    for number, (first, second) in enumerate((lines[1:3], lines[3:5]), 1):
        assert first.startswith(f"│ {number} ") and "contact check" in first and "59:59" in first
        assert "3.999 mA 38.25 V 20.00 of 40.00 mA·min" in second


@pytest.mark.parametrize("width", [44, 60, 80])
def test_the_dose_of_one_channel_is_whole_on_a_narrow_terminal(session: Session, width: int) -> None:
    made = frame(session, phase=Phase.RAMP_DOWN)
    made = replace(made, shown=replace(made.shown, prescribed_c=4.8, delivered_c=4.79))
    assert "79.83 of 80.00 mA·min, 100 %" in drawn(made, width)


def test_keys_of_several_channels_say_whom_they_act_on(tmp_path: Path) -> None:
    path = tmp_path / "several.toml"
    path.write_text(together([treatment(tmp_path, current="1 mA", hold="4 s", ramp="1.25 s").read_text()] * 2))
    said, keys = [], list("2p0+2r-q")

    def watch(running: Session) -> None:
        if running.progress.elapsed_s > 2.5 and keys:
            dial.press(keys.pop(0), running)
            said.append(dial.said)

    dial = Dial()
    with open_device("sim:?channels=2") as device:
        Session(Treatment.load(path), device, out_dir=tmp_path / "s", speed="max", watcher=watch, attended=True).run()
    assert said == [
        "keys act on 1",
        "1: pausing: the current ramps down, r resumes",
        "keys act on all channels",
        "choose a channel by its number first",
        "keys act on 1",
        "1: resuming: the current ramps up from zero",
        "1: level 0.950 mA",
        "off at once",
    ]


def test_the_dial_keeps_the_level_within_the_limits_and_a_press_back_acts_at_once(session: Session) -> None:
    """3 mA on a pad that may have 4 mA: ten presses of 0.1 mA reach the limit, the others do nothing."""
    dial = Dial()
    said: list[str] = []
    pressed = iter("+" * 14 + "-")

    def watch(running: Session) -> None:
        key = next(pressed, None) if running.progress.elapsed_s > 6.0 else None
        if key is not None:
            dial.press(key, running)
            said.append(dial.said)

    session.watcher = watch
    receipt = session.run()
    assert receipt["outcome"] == "complete"
    assert said[9:] == ["level 4.000 mA", *["4.000 mA is the highest level"] * 4, "level 3.900 mA"]
    commands = operator_commands(Path(receipt["record"]))
    assert [name for name, _ in commands] == ["TRIM"] * 11
    assert [value for _, value in commands] == pytest.approx([TRIM_A] * 10 + [-TRIM_A])
    level_a = abs(Record.open(receipt["record"]).telemetry()["level_a"])
    assert level_a.max() == pytest.approx(3.9e-3)


def test_the_dial_never_goes_down_to_nothing(session: Session) -> None:
    dial = Dial()

    def watch(running: Session) -> None:
        if running.progress.phase == Phase.TREATMENT and not dial.trim_a:
            for _ in range(50):
                dial.press("-", running)

    session.watcher = watch
    session.run()
    assert dial.said == "0.100 mA is the lowest level".replace("0.100 mA", "100.0 µA")
    assert dial.trim_a == pytest.approx(-2.9e-3)


def test_a_small_level_is_trimmed_in_small_steps(tmp_path: Path) -> None:
    path = treatment(tmp_path, current="0.2 mA", ramp="1 s", hold="3 s")
    dial = Dial()
    with open_device("sim:") as device:
        session = Session(Treatment.load(path), device, out_dir=tmp_path / "sessions", speed="max")
        session.watcher = lambda running: None if dial.trim_a else dial.press("-", running)
        session.run()
    assert dial.trim_a == pytest.approx(-1e-5)


def test_pause_and_resume_deliver_the_same_dose(tmp_path: Path) -> None:
    path = tmp_path / "dose.toml"
    path.write_text(treatment(tmp_path).read_text().replace('time = "4 s"', 'dose = "0.2 mA*min"'))
    dial = Dial()
    paused_s: list[float] = []

    def watch(running: Session) -> None:
        shown = running.progress
        if shown.phase == Phase.TREATMENT and not paused_s:
            dial.press("p", running)
            paused_s.append(shown.elapsed_s)
        elif shown.phase == Phase.PAUSE and shown.elapsed_s > paused_s[0] + 5.0:
            dial.press("r", running)

    with open_device("sim:") as device:
        session = Session(
            Treatment.load(path), device, out_dir=tmp_path / "sessions", speed="max", watcher=watch, attended=True
        )
        receipt = session.run()
    assert receipt["outcome"] == "complete"
    assert receipt["dose_delivered_mamin"] == pytest.approx(0.2, rel=0.005)
    names = [name for name, _ in operator_commands(Path(receipt["record"]))]
    assert names[0] == "PAUSE" and set(names[1:]) == {"RESUME"}


def test_keys_do_nothing_after_the_end(session: Session) -> None:
    dial = Dial()
    session.progress.phase = Phase.COMPLETE
    dial.press("q", session)
    assert dial.said == ""


def test_lines_tell_start_phases_and_alarms(tmp_path: Path) -> None:
    out = io.StringIO()
    view = LineView(out)
    with open_device("sim:?fault=open@3") as device:
        loaded = Treatment.load(treatment(tmp_path))
        session = Session(loaded, device, out_dir=tmp_path / "sessions", speed="max", watcher=view)
        view.begin(session)
        session.run()
    view.close()
    lines = out.getvalue().splitlines()
    assert all(line.startswith("ionto-rt: ") for line in lines)
    assert lines[0] == "ionto-rt: short: 0.133333 mA·min in 0:07, sim:?fault=open@3"
    phases = [match[1] for line in lines if (match := re.match(r"ionto-rt: \d+:\d\d ([a-z -]+),", line))]
    assert phases == ["self-test", "contact check", "ramp up", "faulted"]
    assert sum("MEDIUM: Lead or pad open [H05]: press both pads down" in line for line in lines) == 1


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """(far end, near end) of a pseudo-terminal."""
    far, near = pty.openpty()
    try:
        yield far, near
    finally:
        os.close(far)
        os.close(near)


def test_the_terminal_s_mode_comes_back() -> None:
    with terminal() as (far, near):
        before = termios.tcgetattr(near)
        with Keyboard(near) as keyboard:
            during = termios.tcgetattr(near)
            assert not during[3] & (termios.ICANON | termios.ECHO) and during[3] & termios.ISIG
            assert not during[0] & termios.IXON
            assert keyboard.read() == ""
            os.write(far, b"p+\x1a\x13")
            select.select([near], [], [], 5.0)
            assert keyboard.read() == "p+\x1a\x13"
        assert termios.tcgetattr(near) == before
        keyboard.restore()
        assert not is_attended(far)


SEQUENCES = {
    "F1": "\x1bOP", "F3": "\x1bOR", "F4": "\x1bOS", "shifted F3": "\x1bO2R", "F1 of the console": "\x1b[[A",
    "up": "\x1b[A", "ctrl-right": "\x1b[1;5C", "F5": "\x1b[15~", "a report": "\x1b[?1;2c", "alt-q": "\x1bq",
    "alt-é": "\x1bé", "alt-up": "\x1b\x1b[A", "a paste": "\x1b[200~rps\x1b[201~",
}  # fmt: skip


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_an_escape_sequence_is_no_key_however_it_is_split(sequence: str) -> None:
    for split in range(len(sequence) + 1):
        reader = KeyReader()
        parts = ["+" + sequence[:split], sequence[split:] + "-"]
        assert [reader.feed(part, at_s) for part, at_s in zip(parts, (1.0, 1.01), strict=True)] == ["+", "-"], split


def test_a_lone_escape_is_no_key_and_holds_no_later_one_back() -> None:
    for begun in ("\x1b", "\x1b[", "\x1b[200~rr"):
        reader = KeyReader()
        assert reader.feed(begun, 1.0) == ""
        assert reader.feed("q", 1.1 + SEQUENCE_S) == "q"


def test_keys_of_a_terminal_that_are_sequences_do_nothing() -> None:
    with terminal() as (far, near), Keyboard(near) as keyboard:
        os.write(far, b"\x1bOR\x1b[Ap")
        select.select([near], [], [], 5.0)
        assert keyboard.read() == "p"


def test_a_terminal_that_is_gone_gives_no_keys() -> None:
    far, near = pty.openpty()
    with Keyboard(near) as keyboard:
        os.close(far)
        assert keyboard.read() == ""
    os.close(near)


class Screen:
    """The command on a terminal of its own, and what it has written there."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self.far, near = pty.openpty()
        self.before = termios.tcgetattr(near)
        termios.tcsetwinsize(near, (30, 100))
        variables = environment(TERM="xterm-256color")
        variables.pop("COLUMNS")
        # A session of its own with this terminal, as a shell's foreground job has.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *COMMAND, *map(str, words)],
            cwd=folder, env=variables, stdin=near, stdout=near, stderr=near,
        )  # fmt: skip
        self.near = near
        self.seen = ""
        self.rings = 0

    def see(self, text: str, timeout_s: float = 20.0) -> None:
        """Wait until `text` is written after what was last waited for."""
        until = time.monotonic() + timeout_s
        while text not in self.seen:
            left = until - time.monotonic()
            assert left > 0 and select.select([self.far], [], [], left)[0], f"no {text!r} in {self.seen[-3000:]!r}"
            told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self.far, 65536).decode("utf-8", "replace"))
            self.rings += told.count("\a")
            self.seen += told
        self.seen = self.seen.partition(text)[2]

    def hear(self, rings: int) -> None:
        """Wait until the bell has rung so often in all."""
        while self.rings < rings:
            self.see("\a")

    def press(self, keys: bytes) -> None:
        os.write(self.far, keys)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.far)
        os.close(self.near)


@contextmanager
def screen(folder: Path, *words: str | Path) -> Iterator[Screen]:
    made = Screen(folder, *words)
    try:
        yield made
    finally:
        made.close()


def test_keys_act_on_a_session_that_runs_on_a_terminal(tmp_path: Path) -> None:
    with screen(tmp_path, "run", EXAMPLE, "--speed", "max") as seen:
        seen.see("Dexamethasone, 40 mA*min")
        seen.see("ramp up")
        seen.press(b"p")
        seen.see("pausing: the current ramps down, r resumes")
        seen.press(b"\x13")
        seen.see("pause  ")
        seen.press(b"r")
        seen.see("resuming: the current ramps up from zero")
        seen.press(b"-")
        seen.see("level 3.900 mA")
        seen.press(b"s")
        seen.see("aborted: stopped by the operator")
        seen.see("ionto-rt report sessions/")
        assert seen.process.wait(10) == 1
        assert termios.tcgetattr(seen.near) == seen.before
    (folder,) = sessions(tmp_path / "sessions")
    assert [name for name, _ in operator_commands(folder)] == ["PAUSE", "RESUME", "TRIM"]


@pytest.mark.parametrize(
    ("keys", "said", "trips"),
    [(b"q", "Stopped at once by the operator", ["OPERATOR_STOP"]), (b"\x03", "stopped by the operator", [])],
    ids=["q", "Ctrl-C"],
)
def test_off_at_once_and_the_first_ctrl_c(tmp_path: Path, keys: bytes, said: str, trips: list[str]) -> None:
    with screen(tmp_path, "run", EXAMPLE, "--speed", "max") as seen:
        seen.see("ramp up")
        seen.press(keys)
        seen.see(said)
        assert seen.process.wait(10) == 1
        assert termios.tcgetattr(seen.near) == seen.before
    (folder,) = sessions(tmp_path / "sessions")
    receipt = Record.open(folder).receipt
    assert receipt is not None and receipt["trips"] == trips


def test_after_a_trip_the_view_stays_and_the_bell_rings_until_the_operator_has_reset(tmp_path: Path) -> None:
    with screen(tmp_path, "run", EXAMPLE, "--speed", "max", "--device", "virtual:?fault=open@15") as seen:
        seen.see("MEDIUM Lead or pad open")
        seen.hear(3)
        seen.press(b"r")
        seen.see("not resumed, reset first: Lead or pad open")
        seen.press(b"m")
        seen.see("audio paused for ten minutes")
        seen.see("AUDIO PAUSED 9:5")
        seen.press(b"a")
        seen.see("acknowledged, silent: Lead or pad open")
        seen.see("(acknowledged, not seen now, x resets)")
        assert seen.process.poll() is None
        seen.press(b"x")
        seen.see("faulted: Lead or pad open")
        assert seen.process.wait(10) == 1
    (folder,) = sessions(tmp_path / "sessions")
    record = Record.open(folder)
    kinds = [event.kind for event in record.events().events if "transition" in event.fields]
    of_trip = ["trip", "alarm-cause-gone", "audio-paused", "alarm-acknowledged", "alarm-reset", "audio-on"]
    assert [kind for kind in kinds if kind in of_trip] == of_trip
    assert record.receipt is not None
    row = record.receipt["alarm_log"][-1]
    assert row["alarm"] == "open-lead" and row["raised_s"] < row["acknowledged_s"] < row["reset_s"] == row["ended_s"]


def test_without_a_bell_the_view_says_so_and_q_leaves(tmp_path: Path) -> None:
    with screen(tmp_path, "run", EXAMPLE, "--speed", "max", "--no-bell", "--device", "virtual:?fault=open@15") as seen:
        seen.see("BELL OFF")
        seen.see("MEDIUM Lead or pad open")
        seen.see("not seen now, x resets")
        seen.press(b"q")
        seen.see("faulted: Lead or pad open")
        assert seen.process.wait(10) == 1
        assert not seen.rings
    (folder,) = sessions(tmp_path / "sessions")
    receipt = Record.open(folder).receipt
    assert receipt is not None and receipt["alarm_log"][-1]["ended_s"] is None, "nobody has reset it"


def test_a_terminal_that_goes_away_ramps_down(tmp_path: Path) -> None:
    with screen(tmp_path, "run", EXAMPLE, "--speed", "max") as seen:
        seen.see("ramp up")
        seen.process.send_signal(signal.SIGHUP)
        seen.see("aborted: the terminal was closed")
        assert seen.process.wait(10) == 1
