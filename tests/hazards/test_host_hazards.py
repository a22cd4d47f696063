"""A host that dies, sleeps, stalls or hangs; and a connection that is cut."""

import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from cli_support import (
    LEASE_S,
    Done,
    Truth,
    ended,
    ionto,
    running,
    sessions,
    started,
    treatment,
    truth_when_off,
    wait_until,
)
from injection import NOTHING_A, Injected, device_time_s, session
from ionto_rt.codes import Trip
from ionto_rt.configuration import UNFIT
from ionto_rt.record import COULOMB_PER_MAMIN, Record
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.verify import verify
from responses import Response
from support import TICK_S, Rig, changed, endless, planned

pytestmark = pytest.mark.real_time

MOMENTS = (0.3, 0.9, 2.5, 4.5, 6.3)
"""In self-test, contact check, ramp up, treatment and ramp down of the short session."""


def still_on_s(truth: Truth) -> tuple[float, float]:
    """When the last command was accepted, and the end of the first period in which nothing flowed any more."""
    on = np.flatnonzero(np.abs(truth["current_peak_a"]) > NOTHING_A)
    last_s = truth.last_command_s
    off_s = float(truth["device_time_s"][on[-1] + 1]) if len(on) else last_s
    return last_s, max(last_s, off_s)


@pytest.mark.parametrize("at_s", MOMENTS)
def test_h21_unplugged(tmp_path: Path, response: Response, at_s: float) -> None:
    done = session(tmp_path, f"unplug@{at_s}")
    response("H21", at_s, done.off(after_s=at_s))
    told_of_the_loss(done)


def test_h21_unplugged_in_real_time(tmp_path: Path, response: Response) -> None:
    done = session(tmp_path, "unplug@4.5", speed="real")
    response("H21", 4.5, done.off(after_s=4.5), real_time=True)
    told_of_the_loss(done)


def told_of_the_loss(done: Injected) -> None:
    """The screen says so, and the dose on record is no less than what flowed."""
    assert (done.receipt["outcome"], done.receipt["trips"]) == ("faulted", ["DEVICE_LOST"])
    assert "the device is gone" in done.receipt["reason"]
    assert len(done.events("device-lost")) == 1
    assert done.receipt["dose_delivered_mamin"] >= -float(done.truth["charge_c"][-1]) / COULOMB_PER_MAMIN


def settled() -> Rig:
    """At its level, on a fit host."""
    config, _ = planned()
    made = Rig(changed(config, programme={"polarity": 1.0}), endless(2e-3))
    made.run(200)
    assert not made.trips()
    return made


@pytest.mark.parametrize("beyond_us", [1, 1000, 4999])
def test_h25_stale_data(response: Response, beyond_us: int) -> None:
    """From the moment at which a sample that was not ticked became stale."""
    made = settled()
    limit_us = made.guard["late_pause_us"]
    made.tick(host_late_us=limit_us)
    assert made.rows[-1]["pause"] == 0
    made.tick(host_late_us=limit_us + beyond_us)
    assert made.rows[-1]["pause"] == Trip.STALE_DATA
    taken_s = (made.index + 1) * TICK_S
    response("H25", taken_s + limit_us * 1e-6, taken_s + (limit_us + beyond_us) * 1e-6, through="samples")


def test_h25_stale_data_in_real_time(tmp_path: Path, response: Response) -> None:
    """The host is stopped for a moment that the lease bridges: what queued meanwhile is too old."""
    path = treatment(tmp_path, hold="20 s")
    truth = tmp_path / "truth.csv"
    with started("run", path, "--device", f"virtual:?truth={truth}", "--json", cwd=tmp_path) as process:
        wait_for_phase(process, "treatment")
        process.send_signal(signal.SIGSTOP)
        # Nothing tells how long a stopped process has been stopped.
        threading.Event().wait(0.042)
        process.send_signal(signal.SIGCONT)
        ended(process)
    (folder,) = sessions(tmp_path / "sessions")
    rows = Record.open(folder).telemetry()
    assert not (rows["trip"] > Trip.DEADLINES).any(), "the lease bridged it"
    first = int(np.flatnonzero(rows["pause"] == Trip.STALE_DATA)[0])
    taken_s, late_s = float(device_time_s(rows)[first]), float(rows["host_late_us"][first]) * 1e-6
    response("H25", taken_s + UNFIT.late_pause_us * 1e-6, taken_s + late_s, through="signal", real_time=True)


@pytest.mark.parametrize("apart", [1, 9])
def test_h26_deadlines_missed(response: Response, apart: int) -> None:
    """From the first late tick to the third of a hundred."""
    made = settled()
    began_s = (made.index + 1) * TICK_S
    for k in range(2 * apart + 1):
        made.tick(host_late_us=made.guard["overrun_us"] + 1 if k % apart == 0 else 0)
    assert made.rows[-1]["pause"] == Trip.DEADLINES and made.rows[-2]["pause"] == 0
    response("H26", began_s, (made.index + 1) * TICK_S, through="samples")


def wait_for_phase(process: "subprocess.Popen[str]", phase: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if f" {phase}, " in line:
            return
    raise AssertionError(f"it ended before {phase}")


@pytest.mark.parametrize(("speed", "phase"), [("max", "ramp up"), ("max", "treatment"), ("real", "treatment")])
def test_h28_host_suspended(tmp_path: Path, response: Response, speed: str, phase: str) -> None:
    """A stopped process: the lease runs out. From the last command that the device took."""
    real = speed == "real"
    path = treatment(tmp_path, current="1 mA", hold="20 s" if real else "600 s", ramp="1.25 s")
    uri, truth = f"virtual:?truth={tmp_path / 'truth.csv'}", tmp_path / "truth.csv"
    with started("run", path, "--device", uri, "--speed", speed, "--json", cwd=tmp_path) as process:
        wait_for_phase(process, phase)
        (folder,) = sessions(tmp_path / "sessions")
        device_id = int(Record.open(folder).session["device"]["pid"])
        process.send_signal(signal.SIGSTOP)
        if real:
            stopped_s = float(Truth(truth)["device_time_s"][-1])
            wait_until(lambda: Truth(truth)["device_time_s"][-1] > stopped_s + 2.0, "2 s of the device's clock")
            still = Truth(truth)
            assert still["lapsed"][-1] == 1
        else:
            still = truth_when_off(truth)
        response("H28", *still_on_s(still), through="signal", real_time=real)
        process.send_signal(signal.SIGCONT)
        done = ended(process)
    wait_until(lambda: not running(device_id), "the virtual device to end")
    assert done.code == 1
    receipt = whole(done, folder)
    assert receipt["outcome"] == "faulted"
    if real:
        assert receipt["trips"][0] in ("HOST_SUSPENDED", "LEASE_LAPSED")
        assert "[H28]" in receipt["reason"] or "[H29]" in receipt["reason"]
    after = Truth(truth)
    assert after.current_after(float(still["device_time_s"][-1])) == 0.0, "it does not go on by itself"
    assert receipt["dose_delivered_mamin"] >= -float(after["charge_c"][-1]) / COULOMB_PER_MAMIN - 1e-6


def whole(done: Done, folder: Path) -> dict[str, object]:
    """The receipt on the screen is the one in the record, and the record is whole and can be replayed."""
    assert done.receipt == Record.open(folder).receipt
    assert replay(folder).identical
    assert verify(folder).ok, verify(folder).problems
    return done.receipt


@pytest.mark.parametrize(
    ("speed", "phase"),
    [("max", "self-test"), ("max", "contact check"), ("max", "ramp up"), ("max", "treatment"), ("real", "treatment")],
)
def test_h29_killed(tmp_path: Path, response: Response, speed: str, phase: str) -> None:
    """kill -9: what the record says afterwards is tests/test_faults_end_to_end.py's."""
    real = speed == "real"
    path = treatment(tmp_path, current="1 mA", hold="20 s" if real else "600 s", ramp="1.25 s")
    truth = tmp_path / "truth.csv"
    with started("run", path, "--device", f"virtual:?truth={truth}", "--speed", speed, cwd=tmp_path) as process:
        wait_for_phase(process, phase)
        process.kill()
        process.wait()
        last_s, off_s = still_on_s(truth_when_off(truth))
        assert off_s > last_s or phase == "self-test", "late-commands: the lease had lapsed before"
        response("H29", last_s, off_s, through="signal", real_time=real)
    (folder,) = sessions(tmp_path / "sessions")
    recovered = ionto("recover", folder, "--json", cwd=tmp_path)
    flowed = -float(Truth(truth)["charge_c"][-1]) / COULOMB_PER_MAMIN
    assert recovered.receipt["dose_delivered_mamin"] >= flowed - 1e-6
    assert LEASE_S == 0.1


@pytest.mark.parametrize("at_s", [2.5, 4.5])
def test_h30_supervisor_hangs(tmp_path: Path, response: Response, at_s: float) -> None:
    """The orchestrator does not come back from a visit, while the loop ticks on."""
    done = session(tmp_path, hold="8 s", uri="sim:", acts={at_s: lambda running: running.loop.run(3000)})
    response("H30", last_beat_s(done), done.first("trip"), through="API")
    assert done.receipt["trips"] == ["HEARTBEAT"]


def test_h30_supervisor_hangs_in_real_time(tmp_path: Path, response: Response) -> None:
    """A watcher that does not return until the device has switched off."""

    def hang(running: Session) -> None:
        wait_until(lambda: running.loop.status != "running", "the guard to end it")

    done = session(tmp_path, hold="12 s", acts={4.5: hang}, speed="real")
    assert done.receipt["trips"] == ["HEARTBEAT"]
    response("H30", last_beat_s(done), done.first("trip"), through="API", real_time=True)


def last_beat_s(done: Injected) -> float:
    """Device time of the last row with a new heartbeat before the trip."""
    rows = done.rows
    tripped = int(np.flatnonzero(rows["trip"])[0])
    beats = np.flatnonzero(np.diff(rows["heartbeat"][: tripped + 1].astype(np.int64))) + 1
    return float(device_time_s(rows)[beats[-1]])
