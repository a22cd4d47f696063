"""Who may use a device: a second program, a second session, a host that was killed, a stranger on the line."""

import contextlib
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli_support import HEAD, Truth, ended, environment, ionto, sessions, started, treatment, wait_until
from ionto_rt.codes import Trip
from ionto_rt.core.wire import FrameReader, encode_frame
from ionto_rt.device import ARM, DISARM, Device, open_device
from ionto_rt.errors import RefusedError
from ionto_rt.exclusive import FOLDER, locks_folder
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from responses import Response

STEPS = '[[steps]]\ncurrent = "1 mA"\ntime = "3 s"\nramp = "1.25 s"\n'
SAMPLE = 0x85
CHARGE_AT = 34
"""Offset of a sample's charge in its payload, of one channel (docs/wire-protocol.md)."""


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Path]:
    """A virtual device that serves one host after the other; the link to its port."""
    port = folder / "port"
    with started("virtual-device", "--link", port, *options, cwd=folder) as server:
        assert server.stdout is not None
        assert server.stdout.readline()
        yield port


def test_h51_who_is_refused_is_told_the_process(tmp_path: Path, response: Response) -> None:
    """By whatever name the port is opened: through a link, a link to it, or as what it is."""
    with served(tmp_path) as port:
        (tmp_path / "again").symlink_to(port)
        names = [port, tmp_path / "again", port.resolve()]
        with open_device(f"serial:{port}"):
            for name in names:
                done = ionto("run", treatment(tmp_path), "--device", f"serial:{name}", cwd=tmp_path)
                assert f"serial:{name}: the port is in use by another program: process {os.getpid()} (" in done.refusal
                assert done.refusal.endswith("; close it first")
                with pytest.raises(RefusedError, match=f"this one: process {os.getpid()}; close it first"):
                    open_device(f"serial:{name}")
    assert not (tmp_path / "sessions").exists()
    response.no_effect("H51", through="command line")


def test_h51_a_device_has_one_session_at_a_time(tmp_path: Path, response: Response) -> None:
    refused: list[str] = []
    with open_device("sim:") as device:

        def watch(session: Session) -> None:
            if not refused:
                with pytest.raises(RefusedError) as caught:
                    Session(Treatment.parse((HEAD + STEPS).encode()), device, out_dir=tmp_path, speed="max").run()
                refused.append(str(caught.value))

        first = Session(
            Treatment.parse((HEAD + STEPS).encode()), device, out_dir=tmp_path, speed="max", watcher=watch
        )
        assert first.run()["outcome"] == "complete"
        assert refused == ["sim:: a session runs on this device already; wait for its end"]
        again = Session(Treatment.parse((HEAD + STEPS).encode()), device, out_dir=tmp_path, speed="max")
        assert again.run()["outcome"] == "complete"
    response.no_effect("H51", through="API")


HOLD = """\
import sys
from ionto_rt.device import open_device
with open_device(sys.argv[1]) as device:
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_h51_the_lock_of_a_killed_program_is_free(tmp_path: Path, response: Response) -> None:
    """Ten times: killed while it holds the port; the file that it leaves says who it was, and holds nobody."""
    with served(tmp_path, "--keep") as port:
        for _ in range(10):
            with subprocess.Popen(
                [sys.executable, "-c", HOLD, f"serial:{port}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(),
                text=True,
            ) as holder:
                assert holder.stdout is not None and holder.stdout.readline() == "open\n"
                with pytest.raises(RefusedError, match=f"process {holder.pid}"):
                    open_device(f"serial:{port}")
                holder.send_signal(signal.SIGKILL)
                holder.wait()
            left = [path.read_text().strip() for path in locks_folder().glob("port-*.lock")]
            assert str(holder.pid) in left
            open_device(f"serial:{port}").close()
    response.no_effect("H51", through="signal")


def test_h51_a_forked_child_does_not_hold_its_parent_s_lock(tmp_path: Path, response: Response) -> None:
    with served(tmp_path, "--keep") as port:
        fork = multiprocessing.get_context("fork")
        begun, go_on = fork.Event(), fork.Event()

        def wait() -> None:
            begun.set()
            go_on.wait()

        device = open_device(f"serial:{port}")
        assert isinstance(device, Device)
        child = fork.Process(target=wait)
        child.start()
        try:
            assert begun.wait(20)
            held = {str(path.readlink()) for path in Path(f"/proc/{child.pid}/fd").iterdir()}
            assert not any("ionto-rt" in name and name.endswith(".lock") for name in held)
        finally:
            go_on.set()
            child.join()
            device.close()
    response.no_effect("H51", through="API")


def test_h51_a_device_is_the_same_on_whatever_port(tmp_path: Path, response: Response) -> None:
    """While a session runs, under model and serial number; a virtual device has one port, and no second lock."""
    with open_device("sim:") as one, open_device("sim:") as two:
        for device in (one, two):
            assert isinstance(device, Device)
            device.hello = replace(device.hello, model="daq", serial=f"{os.getpid()}")
        one.uri, two.uri = "acme:1", "acme:2"  # type: ignore[misc]
        refused: list[str] = []

        def watch(session: Session) -> None:
            if not refused:
                with pytest.raises(RefusedError) as caught:
                    Session(Treatment.parse((HEAD + STEPS).encode()), two, out_dir=tmp_path, speed="max").run()
                refused.append(str(caught.value))

        session = Session(Treatment.parse((HEAD + STEPS).encode()), one, out_dir=tmp_path, speed="max", watcher=watch)
        assert session.run()["outcome"] == "complete"
        (line,) = refused
        assert line.startswith(f"acme:2: daq {os.getpid()} (each device needs a serial number of its own) is in use by")
        assert Session(Treatment.parse((HEAD + STEPS).encode()), two, out_dir=tmp_path, speed="max").run()
    response.no_effect("H51", through="API")


@pytest.mark.parametrize("gone", ["file", "folder", "another user's"])
def test_h51_a_lock_outlives_its_file_and_holds_for_every_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, response: Response, gone: str
) -> None:
    """Somebody cleans up /run/lock, or runs a second program as somebody else."""
    monkeypatch.setattr("ionto_rt.exclusive.PLACES", (str(tmp_path),))
    with served(tmp_path, "--keep") as port:
        with open_device(f"serial:{port}"):
            if gone == "another user's":
                (tmp_path / "others").mkdir()
                monkeypatch.setattr("ionto_rt.exclusive.PLACES", (str(tmp_path / "others"),))
            else:
                shutil.rmtree(locks_folder()) if gone == "folder" else next(locks_folder().glob("port-*")).unlink()
            for _ in range(2):
                with pytest.raises(RefusedError, match="the port is in use by another program; close it first"):
                    open_device(f"serial:{port}")
            words = [sys.executable, "-c", HOLD, f"serial:{port}"]
            other = subprocess.run(words, env=environment(), input="", capture_output=True, text=True)
            assert other.returncode and "is in use by another program" in other.stderr
        open_device(f"serial:{port}").close()
    response.no_effect("H51", through="file")


def test_h51_locks_are_kept_in_a_folder_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, response: Response
) -> None:
    monkeypatch.setattr("ionto_rt.exclusive.PLACES", (str(tmp_path),))
    (tmp_path / f"ionto-rt-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with served(tmp_path) as port, pytest.raises(RefusedError, match="is not this user's own folder"):
        open_device(f"serial:{port}")
    monkeypatch.setenv(FOLDER, str(tmp_path / "shared" / "locks"))
    assert locks_folder() == tmp_path / "shared" / "locks" and locks_folder().is_dir()
    response.no_effect("H51", through="file")


def test_h51_a_stranger_s_frames_do_not_end_a_session(tmp_path: Path, response: Response) -> None:
    """Who writes to the line without asking lacks the token: the device refuses to be disarmed or armed by it."""
    path = treatment(tmp_path, current="1 mA", hold="6 s", ramp="1.25 s")
    with served(tmp_path) as port:
        words = ("run", path, "--device", f"serial:{port}", "--speed", "max", "--json")
        with started(*words, cwd=tmp_path) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "ramp up" in line:
                    break
            stranger = os.open(port.resolve(), os.O_WRONLY | os.O_NOCTTY)
            for token in range(20):
                for kind in (DISARM, ARM):
                    os.write(stranger, encode_frame(bytes([kind, 0, 0, 0]) + token.to_bytes(4, "little")))
            os.close(stranger)
            done = ended(process)
    assert (done.code, done.receipt["outcome"], done.receipt["trips"]) == (0, "complete", [])
    response.no_effect("H51", through="wire")


class Liar:
    """A line between host and device on which each sample's charge is another from `from_index` on."""

    def __init__(self, device_port: str, by_codes: int, from_index: int) -> None:
        self.by_codes = by_codes
        self.from_index = from_index
        self.host_side, host = os.openpty()
        tty.setraw(host)
        self.path = os.ttyname(host)
        self._keep = host
        self.device_side = os.open(device_port, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.device_side)
        self.samples = FrameReader()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([self.host_side, self.device_side], [], [])
                if self.host_side in ready:
                    os.write(self.device_side, os.read(self.host_side, 65536))
                if self.device_side in ready:
                    for payload in self.samples.feed(os.read(self.device_side, 65536)):
                        os.write(self.host_side, encode_frame(self.lied(payload)))

    def lied(self, payload: bytes) -> bytes:
        if payload[0] != SAMPLE or int.from_bytes(payload[2:6], "little") < self.from_index:
            return payload
        said = int.from_bytes(payload[CHARGE_AT : CHARGE_AT + 8], "little", signed=True) + self.by_codes
        return payload[:CHARGE_AT] + said.to_bytes(8, "little", signed=True) + payload[CHARGE_AT + 8 :]

    def close(self) -> None:
        for fd in (self.host_side, self._keep, self.device_side):
            os.close(fd)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("beyond", [0, 65536], ids=["at the limit", "beyond it"])
def test_h57_a_device_that_lies_in_its_count(
    tmp_path: Path, response: Response, sign: int, beyond: int
) -> None:
    """On the wire: host and device count the same codes, so the lie alone is what they are apart by."""
    from_index = 2600
    with open_device("sim:") as plain:
        made = Session(Treatment.parse((HEAD + STEPS).encode()), plain, out_dir=tmp_path / "none", speed="max")
        limit = mismatch_codes(made)
    with served(tmp_path) as port:
        line = Liar(str(port.resolve()), sign * (limit + beyond), from_index)
        try:
            with open_device(f"serial:{line.path}") as device:
                session = Session(
                    Treatment.parse((HEAD + STEPS).encode()), device, out_dir=tmp_path / "out", speed="max"
                )
                receipt = session.run()
        finally:
            line.close()
    assert session.channels[0].controller.config["guard"]["charge_mismatch_codes"] == limit
    rows = Record.open(receipt["record"]).telemetry()
    folder = Path(receipt["record"])
    assert replay(folder).identical
    if not beyond:
        assert receipt["outcome"] == "complete" and receipt["trips"] == []
        response.no_effect("H57", through="wire")
        return
    assert receipt["trips"] == ["CHARGE_MISMATCH"]
    tripped = int(np.flatnonzero(rows["trip"] == Trip.CHARGE_MISMATCH)[0])
    assert int(rows["index"][tripped]) == from_index, "exactly once, at the first sample that is beyond"
    response("H57", (from_index + 1) * 1e-3, (int(rows["index"][tripped]) + 1) * 1e-3, through="wire")
    code_c = session.channels[0].code_c
    assert receipt["delivered_abs_c"] >= abs(int(rows["net_codes"][-1])) * code_c
    assert receipt["delivered_abs_c"] >= abs(int(rows["device_charge_codes"][-1])) * code_c
    assert verify(folder).problems == []


def mismatch_codes(session: Session) -> int:
    """What host and device may be apart by: a tenth of a second of full scale (hazard table)."""
    from ionto_rt.hazards import threshold

    limits = session.channels[0].limits
    assert limits.current_range is not None
    chosen = session.device.hello.ranges[limits.current_range.index]
    per_second = chosen.full_scale_a / chosen.current_lsb_a * 65536.0 / session.device.hello.tick_s
    return round(threshold("H57", "mismatch_full_scale_s") * per_second)


def test_h51_the_port_is_free_when_the_session_has_ended(tmp_path: Path, response: Response) -> None:
    with served(tmp_path, "--keep", "--truth", str(tmp_path / "truth.csv")) as port:
        for _ in range(3):
            done = ionto(
                "run", treatment(tmp_path), "--device", f"serial:{port}", "--speed", "max", "--json", cwd=tmp_path
            )
            assert done.receipt["outcome"] == "complete", done.err
        wait_until(lambda: Truth(tmp_path / "truth.csv")["relay_closed"][-1] == 0, "the device to switch off")
    assert len(sessions(tmp_path / "sessions")) == 3
    response.no_effect("H51", through="command line")
