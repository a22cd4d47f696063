"""Four independent stops (docs/design.md): each of them alone ends the current in its time, by the device's truth.

In a build for this test each can be taken away, by a mask in its environment; what is released holds no such switch.
The same fault without any of the four is the control: the current goes on.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from cli_support import Truth, running, sessions, treatment, wait_until
from ionto_rt import core

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "stops"
REBUILT = ("guard", "virtual_device")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
SWITCHES = (b"IONTO_RT_STOPS_OFF", b"IONTO_RT_TEST_STOPS", b"stops_taken_away")
DEVICE, GUARD, HEARTBEAT, PLAUSIBILITY = 1, 2, 4, 8
ALL = DEVICE | GUARD | HEARTBEAT | PLAUSIBILITY
FAULT_S = 4.0
RAMP_S = 2.1
"""A ramp down of 2 mA at 1 mA/s, and what two tenths of rows belong to."""

HOST = '''
import os, signal, sys
from pathlib import Path
from ionto_rt.device import open_device
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

path, out, uri, what = sys.argv[1:]

class Mute:
    """The loop, whose heartbeat nobody answers any more, or wrongly."""
    def __init__(self, loop):
        self.loop = loop
    def __getattr__(self, name):
        return getattr(self.loop, name)
    def answer(self, value):
        if what == "wrong":
            self.loop.answer(value ^ 1)

def watch(session):
    if session.loop.counters["ticks"] < 4000 or isinstance(session.loop, Mute):
        return
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("silent", "wrong"):
        session.loop = Mute(session.loop)

with open_device(uri) as device:
    Session(Treatment.load(path), device, out_dir=Path(out), speed="max", watcher=watch).run()
'''

pytestmark = pytest.mark.slow


def fingerprint() -> str:
    """Of what the test build is made from."""
    sources = [ROOT / "setup.py", *sorted((ROOT / "src/ionto_rt/core").glob("*.pxd"))]
    sources += [ROOT / "ext" / f"{name}.pyx" for name in REBUILT]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


@pytest.fixture(scope="module")
def test_build() -> Path:
    """The folder of a package whose guard and virtual device have the switches; the rest of it is the ordinary one."""
    stamp = PLACE / "stamp"
    fresh = stamp.exists() and stamp.read_text() == fingerprint()
    ours = {f"{name}{SUFFIX}" for name in REBUILT}
    kept = ours if fresh else set()
    shutil.copytree(
        ROOT / "src", PLACE / "src", dirs_exist_ok=True,
        ignore=lambda _, names: [name for name in names if name in kept or name == "__pycache__"],
    )  # fmt: skip
    if not fresh:
        for name in ours:
            (PLACE / "src/ionto_rt/core" / name).unlink(missing_ok=True)
        shutil.rmtree(PLACE / "ext", ignore_errors=True)
        (PLACE / "ext").mkdir()
        for name in REBUILT:
            shutil.copy(ROOT / "ext" / f"{name}.pyx", PLACE / "ext")
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, PLACE)
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=PLACE, capture_output=True, text=True,
            env=os.environ | {"IONTO_RT_TEST_STOPS": "1", "IONTO_RT_OPTIMIZE": "-O0"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        stamp.write_text(fingerprint())
    return PLACE / "src"


def run(folder: Path, package: Path, *, taken_away: int, fault: str = "", what: str = "") -> Truth:
    """The truth of a session of 2 mA on a package, without some of the stops."""
    path = treatment(folder, current="2 mA", hold="8 s", ramp="2.5 s")
    truth = folder / "truth.csv"
    uri = f"virtual:?truth={truth}" + (f"&fault={fault}" if fault else "")
    environment = os.environ | {"PYTHONPATH": str(package), "IONTO_RT_STOPS_OFF": str(taken_away)}
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(path), str(folder / "sessions"), uri, what], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert (what == "killed") == (done.returncode < 0), done.stderr
    assert done.returncode <= 0, done.stderr
    if what == "killed":
        # The device outlives its host by its lease.
        (session,) = sessions(folder / "sessions")
        process_id = json.loads((session / "session.json").read_text())["device"]["pid"]
        wait_until(lambda: not running(process_id), "the device to end")
    return Truth(truth)


def current_from(truth: Truth, time_s: float) -> float:
    """Largest magnitude that truly flows from this device time on, up to 0.5 s later."""
    time = truth["device_time_s"]
    within = (time > time_s) & (time <= time_s + 0.5)
    return float(np.abs(truth["current_a"][within]).max(initial=0.0))


CASES = [
    # The device outlives its host by a lease of 80 ms and the relay's 10 ms, whatever else there is.
    pytest.param(DEVICE, "", "killed", 0.1, id="device-lease"),
    pytest.param(DEVICE, "dac=-100@4", "", 0.01, id="device-cap"),
    pytest.param(GUARD, "hot@4", "", RAMP_S, id="guard-status"),
    pytest.param(GUARD, "stall@4+0.05", "", RAMP_S + 0.05, id="guard-gap"),
    pytest.param(HEARTBEAT, "", "silent", 2.2 + RAMP_S, id="heartbeat-silent"),
    pytest.param(HEARTBEAT, "", "wrong", 0.2, id="heartbeat-wrong"),
    pytest.param(PLAUSIBILITY, "dac=-80@4", "", 0.02, id="plausibility-over-current"),
    pytest.param(PLAUSIBILITY, "adc-gain=0.9@4", "", 0.2 + RAMP_S, id="plausibility-readings"),
]


@pytest.mark.parametrize(("alone", "fault", "what", "within_s"), CASES)
def test_each_stop_alone_ends_the_current_in_its_time(
    tmp_path: Path, test_build: Path, alone: int, fault: str, what: str, within_s: float
) -> None:
    for name, taken_away in (("alone", ALL & ~alone), ("none", ALL)):
        folder = tmp_path / name
        folder.mkdir()
        truth = run(folder, test_build, taken_away=taken_away, fault=fault, what=what)
        assert np.abs(truth["current_a"][truth["device_time_s"] < FAULT_S][-1]) > 1e-3
        if what == "killed":
            last_s = truth.last_command_s
            flows = np.abs(truth["current_a"][truth["device_time_s"] > last_s + within_s])
            assert len(flows) == 0 or (flows.max() > 0.0) == (name == "none")
            assert (truth["current_a"][-1] == 0.0) == (name == "alone")
            continue
        flowing = current_from(truth, FAULT_S + within_s)
        assert (flowing == 0.0) == (name == "alone"), f"{name}: {flowing} A"


def test_what_is_released_has_no_such_switch(tmp_path: Path, test_build: Path) -> None:
    released = sorted(Path(core.__path__[0]).glob(f"*{SUFFIX}"))
    assert len(released) > 20
    for path in released:
        assert not [word for word in SWITCHES if word in path.read_bytes()], path.name
    rebuilt = [path for path in (test_build / "ionto_rt/core").glob(f"*{SUFFIX}") if SWITCHES[0] in path.read_bytes()]
    assert {path.name for path in rebuilt} == {f"{name}{SUFFIX}" for name in REBUILT}, "the search can find it"
    truth = run(tmp_path, ROOT / "src", taken_away=ALL, fault="dac=-80@4")
    assert current_from(truth, FAULT_S + 0.02) == 0.0, "and its environment says nothing"
