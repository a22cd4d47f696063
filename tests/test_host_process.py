"""The process around a session: what else Python does in it, and how it forks and ends. The device's truth file tells
what flowed.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import LEASE_S, Truth, host_program, sessions, treatment, truth_when_off, wait_until
from ionto_rt.device import open_device
from ionto_rt.record import Record
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify

pytestmark = pytest.mark.real_time

PRELUDE = """\
import os, signal, sys, threading, time
from pathlib import Path
from ionto_rt.device import open_device
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

def begin(watch=None, uri="virtual:?truth=truth.csv"):
    with open_device(uri, defaults={"state": "state.json"}) as device:
        return Session(Treatment.load("short.toml"), device, out_dir=Path("sessions"), watcher=watch).run()

def at(elapsed_s, act):
    "A watcher that acts once, at this time of the session's own."
    def watch(session):
        nonlocal act
        if act is not None and session.progress.elapsed_s >= elapsed_s:
            act, do = None, act
            do(session)
    return watch
"""


def host(folder: Path, text: str, *, hold: str = "30 s") -> "subprocess.Popen[str]":
    """A program that runs a session of 1 mA, started in `folder`."""
    return host_program(folder, PRELUDE + text, hold=hold)


def fall_s(truth: Truth) -> float:
    """How long the current took from its last sample at the level to nothing."""
    current_a = np.abs(truth["current_a"])
    level = np.flatnonzero(current_a > 0.9 * current_a.max())[-1]
    gone = level + np.flatnonzero(current_a[level:] < 2e-6)[0]
    return float(truth["device_time_s"][gone] - truth["device_time_s"][level])


def receipt_of(folder: Path) -> dict[str, Any]:
    (session,) = sessions(folder / "sessions")
    receipt = Record.open(session).receipt
    assert receipt is not None
    assert verify(session).ok, verify(session).problems
    return receipt


def in_process(folder: Path, watcher: Any, *, hold: str = "30 s", speed: Any = "real") -> dict[str, Any]:
    path = treatment(folder, current="1 mA", hold=hold, ramp="1.25 s")
    uri = f"virtual:?truth={folder}/truth.csv"
    with open_device(uri) as device:
        session = Session(Treatment.load(str(path)), device, out_dir=folder / "sessions", speed=speed, watcher=watcher)
        return session.run()


HEAVY = "import decimal, email.mime.text, http.server, matplotlib.pyplot, sqlite3, unittest.mock, xml.dom.minidom"
OTHERS = {"STALE_DATA", "DEADLINES", "HOST_SUSPENDED", "LEASE_LAPSED"}
"""What other load on a shared host does to the loop's thread, which needs no Python."""


def test_busy_threads_forced_collections_a_heavy_import_and_a_second_without_python_trip_nothing(
    tmp_path: Path,
) -> None:
    text = f"""
import ctypes, gc
over = threading.Event()

def busy():
    while not over.is_set():
        sum(range(1000))

def collect():
    garbage = [[i] for i in range(200_000)]
    while not over.is_set():
        gc.collect()

def load():
    {HEAVY}

def hold():
    "All of Python stands still, as in an extension that does not let go of the interpreter."
    ctypes.PyDLL(None).usleep(1_000_000)

def disturb(session):
    for act in (busy, busy, busy, busy, collect, load, hold):
        threading.Thread(target=act, daemon=True).start()

receipt = begin(at(1.0, disturb))
over.set()
assert "matplotlib" in sys.modules
print(receipt["outcome"], receipt["loop"]["ring_dropped"], receipt["telemetry_rows"] == receipt["ticks"])
"""
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with host(folder, text, hold="5 s") as process:
            out, err = process.communicate(timeout=60)
        receipt = receipt_of(folder)
        assert set(receipt["trips"]) <= OTHERS
        assert out.endswith(" 0 True\n"), (out, err)
        (session,) = sessions(folder / "sessions")
        paused = any(event.kind == "guard-pause" for event in Record.open(session).events().events)
        if not paused and not receipt["trips"]:
            assert receipt["outcome"] == "complete"
            return
    pytest.skip("other load on this host kept samples from the loop at each attempt")


@pytest.mark.parametrize("speed", ["real", "max"])
def test_an_exception_that_ends_the_program_ramps_down_and_is_raised_again(tmp_path: Path, speed: str) -> None:
    def leave(session: Session) -> None:
        if session.progress.elapsed_s > 2.5:
            raise SystemExit(7)

    with pytest.raises(SystemExit) as left:
        in_process(tmp_path, leave, speed=speed)
    assert left.value.code == 7
    receipt = receipt_of(tmp_path)
    assert (receipt["outcome"], receipt["trips"]) == ("aborted", [])
    assert "SystemExit" in receipt["reason"] and "ramped down" in receipt["reason"]
    assert 0.5 < fall_s(truth_when_off(tmp_path / "truth.csv")) < 1.5


def test_an_exit_from_a_signal_handler_ramps_down_and_the_program_ends_with_it(tmp_path: Path) -> None:
    with host(
        tmp_path,
        """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
begin(at(2.5, lambda _: print("now")))
""",
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.terminate()
        assert process.wait(20) == 3
    receipt = receipt_of(tmp_path)
    assert receipt["outcome"] == "aborted" and "SystemExit" in receipt["reason"]
    assert 0.5 < fall_s(truth_when_off(tmp_path / "truth.csv")) < 1.5


def test_a_signal_without_a_handler_kills_the_program_and_the_lease_lapses(tmp_path: Path) -> None:
    with host(tmp_path, 'begin(at(2.5, lambda _: print("now")))') as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
    truth = truth_when_off(tmp_path / "truth.csv")
    on = np.flatnonzero(np.abs(truth["current_peak_a"]) > 2e-6)
    assert float(truth["device_time_s"][on[-1]]) - truth.last_command_s <= LEASE_S


@pytest.mark.parametrize("daemon", [False, True])
def test_a_session_whose_program_ends_ramps_down_and_finishes_its_record(tmp_path: Path, daemon: bool) -> None:
    with host(
        tmp_path,
        f"""
flows = threading.Event()
threading.Thread(target=begin, args=(at(2.5, lambda _: flows.set()),), daemon={daemon}).start()
flows.wait()
print("leaving")
""",
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "leaving\n"
        began_s = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - began_s < 8.0
    receipt = receipt_of(tmp_path)
    assert (receipt["outcome"], receipt["trips"]) == ("aborted", [])
    assert "the program ended" in receipt["reason"]
    assert 0.5 < fall_s(truth_when_off(tmp_path / "truth.csv")) < 1.5


def test_a_session_that_does_not_end_is_left_at_exit_after_a_bound(tmp_path: Path) -> None:
    """A watcher that hangs: the guard ramps down by the heartbeat, and the interpreter ends all the same."""
    with host(
        tmp_path,
        """
import ionto_rt.session
ionto_rt.session.EXIT_S = 0.5
flows = threading.Event()

def hang(session):
    flows.set()
    threading.Event().wait()

threading.Thread(target=begin, args=(at(2.5, hang),), daemon=True).start()
flows.wait()
print("leaving")
""",
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "leaving\n"
        assert process.wait(20) == 0
    truth = truth_when_off(tmp_path / "truth.csv")
    flowed_s = float(truth["device_time_s"][np.flatnonzero(np.abs(truth["current_a"]) > 2e-6)[-1]])
    assert flowed_s < 8.0


CHILD = """
def fork(session):
    there, told = os.pipe()
    child = os.fork()
    if child:
        os.read(there, 1)
        print("parent", session.device.port.fd, child, session.device.process.pid)
        return
    os.write(told, b"1")
    time.sleep({sleep_s})
    {act}

begin(at(2.5, fork))
print("complete")
"""


def descriptors(process_id: int) -> list[str]:
    links = []
    for entry in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except OSError:
            continue
    return links


def test_a_forked_child_has_no_port_and_no_record_and_the_parent_goes_on(tmp_path: Path) -> None:
    act = """
    try:
        os.write(session.device.port.fd, bytes(64))
        session.device.disarm(1)
        session._recorder.folder.events.write("forged", 1)
    finally:
        os._exit(0)
"""
    with host(tmp_path, CHILD.format(sleep_s=1.0, act=act.strip()), hold="6 s") as process:
        assert process.stdout is not None
        _, _, child, _ = process.stdout.readline().split()
        open_in_child = descriptors(int(child))
        assert not [link for link in open_in_child if link.startswith(("/dev/pts", "/dev/tty"))]
        assert not [link for link in open_in_child if "telemetry" in link or "events" in link or link.endswith("lock")]
        out, err = process.communicate(timeout=40)
        assert out == "complete\n", (out, err)
    receipt = receipt_of(tmp_path)
    assert (receipt["outcome"], receipt["trips"]) == ("complete", [])
    (session,) = sessions(tmp_path / "sessions")
    assert "forged" not in {event.kind for event in Record.open(session).events().events}


def test_a_child_that_outlives_the_program_does_not_keep_the_device_on(tmp_path: Path) -> None:
    with host(tmp_path, CHILD.format(sleep_s=0.0, act="time.sleep(30); os._exit(0)")) as process:
        assert process.stdout is not None
        _, _, child, device = process.stdout.readline().split()
        process.kill()
        process.wait()
        truth = truth_when_off(tmp_path / "truth.csv")
        wait_until(lambda: not Path(f"/proc/{device}/fd").exists() or not descriptors(int(device)), "the device to end")
        assert Path(f"/proc/{child}").exists()
        (session,) = sessions(tmp_path / "sessions")
        assert not Record.open(session).running
        os.kill(int(child), signal.SIGKILL)
    on = np.flatnonzero(np.abs(truth["current_peak_a"]) > 2e-6)
    assert float(truth["device_time_s"][on[-1]]) - truth.last_command_s <= LEASE_S


def test_a_child_that_returns_into_the_session_is_told_where_it_goes_on(tmp_path: Path) -> None:
    text = CHILD.format(sleep_s=0.0, act="pass").replace(
        "begin(at(2.5, fork))",
        """
from ionto_rt.running import ElsewhereError
try:
    begin(at(2.5, fork))
except ElsewhereError as error:
    print(error)
    sys.stdout.flush()
    os._exit(0)
""",
    )
    with host(tmp_path, text, hold="4 s") as process:
        out, err = process.communicate(timeout=40)
    lines = out.splitlines()
    # Parent and child write in either order.
    assert any("it goes on in the parent" in line for line in lines[:-1]) and lines[-1] == "complete", (out, err)
    assert receipt_of(tmp_path)["outcome"] == "complete"
