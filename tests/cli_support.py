"""What the tests of the command line share: the real command as a process, short treatments, the truth file."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ionto_rt

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "dexamethasone-40.toml"
COMMAND = [sys.executable, "-m", "ionto_rt"]
LEASE_S = 0.1
"""Longest lease that a command may hold."""

HEAD = """\
format = 1
title = "short"
drug = "dexamethasone-phosphate"
[electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "cathode"
[electrodes.return]
type = "return-pad"
area = "25 cm^2"
"""


def treatment(folder: Path, *, current: str = "2 mA", hold: str = "4 s", ramp: str = "2.5 s") -> Path:
    """A treatment of some seconds: `hold` is from the start of the ramp in to the start of the ramp out."""
    path = folder / "short.toml"
    path.write_text(f'{HEAD}[[steps]]\ncurrent = "{current}"\ntime = "{hold}"\nramp = "{ramp}"\n')
    return path


def environment(**variables: str) -> dict[str, str]:
    """The tests' own, in which a process started anywhere finds the package that the tests have found."""
    home = str(Path(ionto_rt.__file__).parent.parent)
    paths = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "100", **variables}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def receipt(self) -> dict[str, Any]:
        """The one JSON object that is all of stdout."""
        assert self.out.count("\n") == 1, self.out
        return dict(json.loads(self.out))

    @property
    def refusal(self) -> str:
        """The one line on stderr of a command that was refused."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert not self.out
        assert self.err.startswith("ionto-rt: ") and self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        return self.err[len("ionto-rt: ") : -1]


def ionto(*words: str | Path, cwd: Path, timeout_s: float = 60.0, **variables: str) -> Done:
    """Run the command to its end."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(*words: str | Path, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """The command, running; killed at the end if it still does."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


def host_program(folder: Path, program: str, *, hold: str) -> "subprocess.Popen[str]":
    """A Python program of a host's own, started in `folder` beside a treatment of 1 mA."""
    treatment(folder, current="1 mA", hold=hold, ramp="1.25 s")
    (folder / "host.py").write_text(program)
    return subprocess.Popen(
        [sys.executable, "host.py"],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", timeout_s: float = 30.0) -> Done:
    """Wait for the end of a started command."""
    out, err = process.communicate(timeout=timeout_s)
    return Done(process.returncode, out, err)


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Poll the outside world for something that gives no event."""
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)


def sessions(folder: Path) -> list[Path]:
    """Folders of sessions in DIR; what was not finished when its host died is none."""
    return sorted(path.parent for path in folder.glob("*/session.json") if not path.parent.name.startswith("."))


class Truth:
    """What the virtual device knows to have flowed, as a column for each name of the file's head."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        self.names = lines[0].split(",")
        whole = [line.split(",") for line in lines[1:] if line.count(",") == len(self.names) - 1]
        self.table = np.array([[float(cell or "nan") for cell in line] for line in whole]).reshape(-1, len(self.names))

    def __getitem__(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.table[:, self.names.index(name)]

    def __len__(self) -> int:
        return len(self.table)

    def of_channels(self) -> list["Truth"]:
        """The rows of each channel of the device, from 0."""
        if "channel" not in self.names:
            return [self]
        parts = []
        for number in range(int(self["channel"].max(initial=-1)) + 1):
            part = copy.copy(self)
            part.table = self.table[self["channel"] == number]
            parts.append(part)
        return parts

    @property
    def commanded(self) -> bool:
        """Whether any command was accepted."""
        return bool(np.any(self["lease_ticks_left"]))

    @property
    def last_command_s(self) -> float:
        """Device time at which the last command was accepted: there the lease was renewed for the last time."""
        left = self["lease_ticks_left"]
        renewed = np.flatnonzero(left[1:] >= np.maximum(left[:-1], 1)) + 1
        return float(self["device_time_s"][renewed[-1]])

    def current_after(self, time_s: float) -> float:
        """The largest current (A, magnitude) later than this device time, to the end, where the relay must be open."""
        assert self["relay_closed"][-1] == 0 and self["current_a"][-1] == 0.0
        late = np.abs(self["current_a"][self["device_time_s"] > time_s])
        return float(late.max(initial=0.0))


def truth_when_off(path: Path) -> Truth:
    """The truth of a device once that has written all of it: no current, relay open."""

    def is_off() -> bool:
        seen = Truth(path)
        return len(seen) > 0 and seen["relay_closed"][-1] == 0 and seen["current_a"][-1] == 0.0

    wait_until(is_off, "the device to switch off")
    return Truth(path)


def running(process_id: int) -> bool:
    """True while a process lives, a zombie not counted."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
