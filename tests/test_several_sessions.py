"""Several sessions in one process, each on a device of its own: none knows of the others."""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import LEASE_S, host_program, sessions, treatment, truth_when_off
from ionto_rt.device import open_device
from ionto_rt.journal import Journal
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify

pytestmark = pytest.mark.real_time

BOTH = """\
import os, sys, threading, time
from pathlib import Path
from ionto_rt.device import open_device
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

receipts, flowing = {}, {name: threading.Event() for name in "ab"}
act = lambda session: None

def begin(name):
    def watch(session):
        if session.progress.elapsed_s > 2.5 and not flowing[name].is_set():
            flowing[name].set()
            if name == "a":
                act(session)
    with open_device(f"virtual:?truth={name}.csv&state={name}.json&serial={name}") as device:
        made = Session(Treatment.load("short.toml"), device, out_dir=Path("sessions"), watcher=watch)
        receipts[name] = made.run()

threads = [threading.Thread(target=begin, args=(name,)) for name in "ab"]
"""

START = """\
for thread in threads:
    thread.start()
for event in flowing.values():
    assert event.wait(20.0)
"""


def host(folder: Path, text: str, *, hold: str) -> "subprocess.Popen[str]":
    """A program with the threads of two sessions of 1 mA, not started yet, run in `folder`."""
    return host_program(folder, BOTH + text, hold=hold)


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The receipts in the folder, whose records are whole and can be replayed, in the order in which they began."""
    receipts = []
    for session in sessions(folder / "sessions"):
        assert verify(session).ok, verify(session).problems
        assert replay(session).identical
        receipt = Record.open(session).receipt
        assert receipt is not None
        receipts.append(receipt)
    return receipts


@pytest.mark.parametrize("uris", [("virtual:", "virtual:"), ("virtual:?channels=2", "virtual:?pacing=host")])
def test_two_devices_run_at_once_into_one_journal(tmp_path: Path, uris: tuple[str, str]) -> None:
    path = treatment(tmp_path, current="1 mA", hold="4 s", ramp="1.25 s")

    def run(uri: str) -> dict[str, Any]:
        with open_device(uri) as device:
            return Session(Treatment.load(str(path)), device, out_dir=tmp_path / "sessions").run()

    with ThreadPoolExecutor(2) as threads:
        receipts = list(threads.map(run, uris))
    assert [receipt["outcome"] for receipt in receipts] == ["complete"] * 2, [one["reason"] for one in receipts]
    assert sorted(one["session_id"] for one in records_of(tmp_path)) == sorted(one["session_id"] for one in receipts)
    with Journal(tmp_path / "sessions") as journal:
        for receipt in receipts:
            (row,) = journal.get(receipt["session_id"])
            assert (row.outcome, row.delivered_net_c) == ("complete", receipt["delivered_net_c"])


@pytest.mark.parametrize("fault", ["unplug@2.5", "open@2.5"])
def test_the_fault_of_one_leaves_the_other_alone(tmp_path: Path, fault: str) -> None:
    path = treatment(tmp_path, current="1 mA", hold="4 s", ramp="1.25 s")

    def run(uri: str) -> dict[str, Any]:
        with open_device(uri) as device:
            return Session(Treatment.load(str(path)), device, out_dir=tmp_path / "sessions").run()

    with ThreadPoolExecutor(2) as threads:
        faulted, whole = threads.map(run, [f"virtual:?fault={fault}", "virtual:"])
    assert faulted["outcome"] == "faulted"
    assert (whole["outcome"], whole["trips"]) == ("complete", []), whole["reason"]


def test_a_device_process_that_is_killed_ends_its_own_session_alone(tmp_path: Path) -> None:
    act = "act = lambda session: os.kill(session.device.process.pid, 9)\n"
    text = act + "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
    text += 'print(receipts["a"]["outcome"], receipts["a"]["trips"], receipts["b"]["outcome"])\n'
    with host(tmp_path, text, hold="4 s") as process:
        out, err = process.communicate(timeout=60)
    assert out == "faulted ['DEVICE_LOST'] complete\n", (out, err)
    records_of(tmp_path)


def test_at_the_program_s_end_both_ramp_down_and_finish_their_records(tmp_path: Path) -> None:
    text = (
        "[thread.start() for thread in threads]\n[event.wait(20.0) for event in flowing.values()]\nprint('leaving')\n"
    )
    with host(tmp_path, text, hold="30 s") as process:
        assert process.stdout is not None and process.stdout.readline() == "leaving\n"
        assert process.wait(20) == 0
    receipts = records_of(tmp_path)
    assert len(receipts) == 2
    for receipt in receipts:
        assert (receipt["outcome"], receipt["trips"]) == ("aborted", [])
        assert "the program ended" in receipt["reason"]
    for name in "ab":
        truth = truth_when_off(tmp_path / f"{name}.csv")
        current_a = np.abs(truth["current_a"])
        level = np.flatnonzero(current_a > 0.9 * current_a.max())[-1]
        gone = level + np.flatnonzero(current_a[level:] < 2e-6)[0]
        assert 0.5 < float(truth["device_time_s"][gone] - truth["device_time_s"][level]) < 1.5


def test_a_forked_child_has_neither_port_nor_record_of_either_and_both_go_on(tmp_path: Path) -> None:
    text = f"""{START}
child = os.fork()
if not child:
    fds = [f"/proc/self/fd/{{fd}}" for fd in os.listdir("/proc/self/fd")]
    print(*(os.readlink(fd) for fd in fds if os.path.lexists(fd)))
    os._exit(0)
os.waitpid(child, 0)
[thread.join() for thread in threads]
print(receipts["a"]["outcome"], receipts["b"]["outcome"])
"""
    with host(tmp_path, text, hold="5 s") as process:
        out, err = process.communicate(timeout=60)
    of_child, of_both = out.splitlines()
    for link in of_child.split():
        assert not link.startswith(("/dev/pts", "/dev/tty"))
        assert "telemetry" not in link and "events" not in link and not link.endswith("lock")
    assert of_both == "complete complete", (out, err)
    records_of(tmp_path)


def test_when_the_program_is_killed_both_leases_lapse(tmp_path: Path) -> None:
    text = START + "print('now')\n[thread.join() for thread in threads]\n"
    with host(tmp_path, text, hold="30 s") as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for name in "ab":
        truth = truth_when_off(tmp_path / f"{name}.csv")
        on = np.flatnonzero(np.abs(truth["current_peak_a"]) > 2e-6)
        assert float(truth["device_time_s"][on[-1]]) - truth.last_command_s <= LEASE_S
    assert len(sessions(tmp_path / "sessions")) == 2
    assert not any(Record.open(session).running for session in sessions(tmp_path / "sessions"))
