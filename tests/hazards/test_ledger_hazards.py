"""The caps of a site and a day, and who may use a device: real programs that are killed, race, and lie."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli_support import HEAD, Done, Truth, environment, ionto, sessions, truth_when_off
from ionto_rt.device import open_device
from ionto_rt.journal import Journal, JournalRow
from ionto_rt.record import Record
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from responses import Response


def prescription(folder: Path, name: str, *, dose: str, day: str = "", site: str = "left knee", more: str = "") -> Path:
    """A treatment at 4 mA of a subject who has a name; `day` tightens the cap of the day."""
    path = folder / f"{name}.toml"
    head = HEAD.replace('title = "short"', f'title = "{name}"\nsubject = "S-07"')
    limits = f'[limits]\nday_dose = "{day}"\n' if day else ""
    text = head.replace("[electrodes.active]", f'site = "{site}"\n[electrodes.active]', 1)
    path.write_text(f'{text}{limits}[[steps]]\ncurrent = "4 mA"\ndose = "{dose}"\nramp = "5 s"\n{more}')
    return path


def run(folder: Path, path: Path, *words: str, uri: str = "sim:") -> Done:
    return ionto("run", path, "--device", uri, "--speed", "max", "--json", *words, cwd=folder)


def entries(folder: Path) -> list[JournalRow]:
    with Journal(folder / "sessions") as journal:
        return journal.sessions()


def received_mamin(folder: Path, site: str = "left knee") -> float:
    with Journal(folder / "sessions") as journal:
        return journal.received_today("S-07", site, simulated=True) / 0.06


def test_h15_a_site_s_day_is_full(tmp_path: Path, response: Response) -> None:
    """Refused before anything is armed, in one line that says what was received; another site is another matter."""
    first = prescription(tmp_path, "first", dose="3 mA*min", day="5 mA*min")
    assert run(tmp_path, first).code == 0
    truth = tmp_path / "truth.csv"
    line = run(tmp_path, first, uri=f"sim:?truth={truth}").refusal
    assert "S-07, left knee: 3.0" in line and " mA*min today and 3.00 mA*min prescribed exceed a day's 5 mA·min" in line
    assert "(treatment: line 14)" in line and line.endswith("wait, or take another site")
    flowed = np.abs(Truth(truth)["current_peak_a"]) if truth.stat().st_size else np.zeros(0)
    response.nothing_flowed("H15", float(flowed.max(initial=0.0)), through="command line")
    assert len(sessions(tmp_path / "sessions")) == 1
    assert run(tmp_path, prescription(tmp_path, "other", dose="3 mA*min", day="5 mA*min", site="right knee")).code == 0
    assert run(tmp_path, prescription(tmp_path, "rest", dose="1.9 mA*min", day="5 mA*min")).code == 0
    assert 4.9 < received_mamin(tmp_path) < 5.0


def test_h15_the_operator_tightens_a_day(tmp_path: Path, response: Response) -> None:
    path = prescription(tmp_path, "one", dose="2 mA*min")
    assert run(tmp_path, path, "--day-dose-limit", "3 mA*min").code == 0
    assert "exceed a day's 3 mA·min (operator)" in run(tmp_path, path, "--day-dose-limit", "3 mA*min").refusal
    assert "may only tighten" in run(tmp_path, prescription(tmp_path, "two", dose="1 mA*min", day="81 mA*min")).refusal
    response.no_effect("H15", through="command line")


@pytest.mark.parametrize("moment", ["reserved", "armed", "treatment"])
def test_h15_a_killed_session_counts_until_it_is_recovered(tmp_path: Path, response: Response, moment: str) -> None:
    """Killed between reservation and arming, just armed, and in mid-treatment: what it prescribed stays taken. When it
    has been recovered, it counts with the device's own count.
    """
    path = prescription(tmp_path, "one", dose="3 mA*min", day="5 mA*min")
    program = f"""\
import os, signal
from pathlib import Path
from ionto_rt.device import Device, open_device
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def watch(session):
    if "{moment}" == "armed" or session.progress.phase.name == "TREATMENT":
        die()

if "{moment}" == "reserved":
    Device.push_limits = die
with open_device("virtual:?truth=truth.csv&state=sessions/virtual-device-state.json") as device:
    Session(Treatment.load("{path}"), device, out_dir=Path("sessions"), speed="max", watcher=watch).run()
"""
    (tmp_path / "sessions").mkdir()
    died = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    (row,) = entries(tmp_path)
    assert row.outcome is None and received_mamin(tmp_path) >= 3.0
    line = run(tmp_path, path, uri="virtual:").refusal
    assert f"{row.session_id} has not ended: wait for it, or recover it" in line
    (session,) = sessions(tmp_path / "sessions")
    done = ionto("recover", session, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (row,) = entries(tmp_path)
    truth = truth_when_off(tmp_path / "truth.csv") if moment != "reserved" else None
    true_c = 0.0 if truth is None else float(truth["absolute_charge_c"][-1])
    assert row.outcome == "recovered" and row.delivered_abs_c >= 0.98 * true_c
    if moment == "treatment":
        assert row.measured and row.delivered_abs_c <= 1.05 * true_c
    assert row.delivered_abs_c <= 0.5, "the reservation and no more"
    response.no_effect("H15", through="signal")


def test_h15_of_two_programs_that_race_for_a_site_one_runs(tmp_path: Path, response: Response) -> None:
    """Again and again: each has read the journal before either has written, and never do both begin."""
    Journal(tmp_path / "sessions").close()
    program = """\
import sys
from pathlib import Path
from ionto_rt.device import open_device
from ionto_rt.errors import IontoError
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

for line in sys.stdin:
    with open_device("sim:") as device:
        session = Session(Treatment.load(line.strip()), device, out_dir=Path("sessions"), speed="max")
        keep = session._admission.keep_within_day
        def both(journal):
            keep(journal)
            print("read", flush=True)
            sys.stdin.readline()
        session._admission.keep_within_day = both
        try:
            print(session.run()["outcome"], flush=True)
        except IontoError as error:
            print(error, flush=True)
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-u", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            env=environment(),
            text=True,
        )
        for _ in range(2)
    ]

    def say(racer: "subprocess.Popen[str]", text: str) -> None:
        assert racer.stdin is not None
        racer.stdin.write(f"{text}\n")
        racer.stdin.flush()

    def hear(racer: "subprocess.Popen[str]") -> str:
        assert racer.stdout is not None
        return racer.stdout.readline().strip()

    for turn in range(10):
        path = prescription(tmp_path, "one", dose="0.5 mA*min", day="0.9 mA*min", site=f"site {turn}")
        for racer in racers:
            say(racer, str(path))
        assert [hear(racer) for racer in racers] == ["read", "read"]
        for racer in racers:
            say(racer, "go")
        answers = [hear(racer) for racer in racers]
        assert answers.count("complete") == 1, answers
        (refused,) = (answer for answer in answers if answer != "complete")
        assert "exceed a day's 0.9 mA·min" in refused
        assert received_mamin(tmp_path, f"site {turn}") < 0.9
    for racer in racers:
        racer.communicate()
    response.no_effect("H15", through="command line")


SEVERAL = """\
format = 1
title = "two pads"
subject = "S-07"
"""
PAD = """\
[[channels]]
name = "{name}"
site = "left knee"
drug = "dexamethasone-phosphate"
[channels.electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "cathode"
[channels.electrodes.return]
type = "return-pad"
area = "25 cm^2"
[channels.limits]
day_dose = "{day}"
[[channels.steps]]
current = "2 mA"
dose = "{dose}"
ramp = "5 s"
"""


def test_h15_channels_at_one_site_share_its_day(tmp_path: Path, response: Response) -> None:
    def pair(dose: str) -> Path:
        path = tmp_path / "pair.toml"
        path.write_text(SEVERAL + "".join(PAD.format(name=name, dose=dose, day="3 mA*min") for name in "ab"))
        return path

    line = run(tmp_path, pair("1.6 mA*min")).refusal
    assert "0.00 mA*min today and 3.20 mA*min prescribed exceed a day's 3 mA·min" in line
    assert run(tmp_path, pair("1 mA*min")).code == 0
    assert "2.0" in run(tmp_path, pair("0.6 mA*min")).refusal
    assert run(tmp_path, pair("0.4 mA*min")).code == 0
    assert 2.8 < received_mamin(tmp_path) < 3.0
    response.no_effect("H15", through="command line")


def test_h15_guard_and_device_stop_at_what_the_day_leaves(tmp_path: Path, response: Response) -> None:
    """In a pause, noise about zero is no dose, and charge all the same: where the day is full the guard ramps down."""
    day = prescription(tmp_path, "one", dose="0.02 mA*min", day="0.03 mA*min").read_text()
    small = day.replace('"4 mA"', '"0.5 mA"').replace('"5 s"', '"0.7 s"')
    cap_c = 0.03 * 0.06 * 1.07
    caps = []

    def pause_early(session: Session) -> None:
        if session.progress.elapsed_s > 2.2 and not session.progress.paused:
            session.pause()

    for dose, uri, watch in (("0.02 mA*min", "sim:", None), ("0.008 mA*min", "sim:?noise=120", pause_early)):
        source = small.replace('"0.02 mA*min"', f'"{dose}"')
        with open_device(uri) as device:
            session = Session(
                Treatment.parse(source.encode()),
                device,
                out_dir=tmp_path / "sessions",
                speed="max",
                watcher=watch,
                attended=True,
            )
            receipt = session.run()
        caps.append(session.channels[0].controller.config["guard"]["charge_cap_codes"] * session.channels[0].code_c)
    with Journal(tmp_path / "sessions") as journal:
        first, second = journal.sessions()
    assert caps[0] == pytest.approx(cap_c, rel=1e-3)
    assert caps[1] == pytest.approx(cap_c - first.delivered_abs_c, rel=1e-3)
    assert receipt["trips"] == ["CHARGE_CAP"] and receipt["outcome"] == "faulted"
    rows = Record.open(receipt["record"]).telemetry()
    passed = int(np.flatnonzero(rows["absolute_codes"] * session.channels[0].code_c > caps[1])[0])
    tripped = int(np.flatnonzero(rows["trip"])[0])
    assert tripped == passed, "at the cap nothing, beyond it at once"
    response("H15", (passed + 1) * 1e-3, (tripped + 1) * 1e-3)
    assert first.delivered_abs_c + second.delivered_abs_c <= cap_c * 1.01


def test_h15_a_site_has_its_rest(tmp_path: Path, response: Response) -> None:
    text = prescription(tmp_path, "one", dose="0.5 mA*min").read_text()
    path = tmp_path / "lidocaine.toml"
    path.write_text(
        text.replace("dexamethasone-phosphate", "lidocaine")
        .replace('polarity = "cathode"', 'polarity = "anode"')
        .replace('"4 mA"', '"1.5 mA"')
    )
    assert run(tmp_path, path).code == 0
    assert "min since the last current, 30 min are the least; wait" in run(tmp_path, path).refusal
    response.no_effect("H15", through="command line")
