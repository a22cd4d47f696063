"""What breaks while the real command runs, and what it must refuse: what it says, and what truly flowed."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import (
    EXAMPLE,
    HEAD,
    LEASE_S,
    Done,
    Truth,
    ended,
    ionto,
    running,
    sessions,
    started,
    treatment,
    wait_until,
)
from ionto_rt.core.wire import encode_frame
from ionto_rt.device import HELLO
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.verify import verify

pytestmark = pytest.mark.real_time

NOTHING_A = 1e-6
"""A current that is none: some codes of the largest range are more."""
COULOMB_PER_MAMIN = 0.06


def device(*options: str) -> str:
    return "virtual:?" + "&".join(["truth=truth.csv", *options])


def only_session(folder: Path) -> Path:
    (session,) = sessions(folder / "sessions")
    return session


def events(session: Path, kind: str) -> list[dict[str, Any]]:
    return [event.fields | {"tick": event.tick} for event in Record.open(session).events().events if event.kind == kind]


def seconds_on_after_last_command(truth: Truth) -> float:
    """How long after the last accepted command current still flowed."""
    on = np.flatnonzero(np.abs(truth["current_peak_a"]) > NOTHING_A)
    return float(truth["device_time_s"][on[-1]]) - truth.last_command_s if len(on) else 0.0


def true_dose_mamin(truth: Truth) -> float:
    """In the direction of these treatments, whose active electrode is the cathode: the probe flows both ways."""
    return -float(truth["charge_c"][-1]) / COULOMB_PER_MAMIN


def wait_for_device(session: Path) -> None:
    """The virtual device has run its lease out, and its files are complete."""
    process_id = int(Record.open(session).session["device"]["pid"])
    wait_until(lambda: not running(process_id), "the virtual device to end")


def says_the_same(done: Done, folder: Path) -> dict[str, Any]:
    """The receipt on the screen is the one in the record, and the record is whole and can be replayed."""
    session = only_session(folder)
    receipt = done.receipt
    assert receipt == Record.open(session).receipt
    assert replay(session).identical
    assert verify(session).ok, verify(session).problems
    return receipt


def test_a_pad_that_comes_off_latches_off_and_says_why(tmp_path: Path) -> None:
    done = ionto(
        "run", treatment(tmp_path), "--device", device("fault=open@3"), "--speed", "max", "--json", cwd=tmp_path
    )
    assert done.code == 1
    receipt = says_the_same(done, tmp_path)
    assert receipt["outcome"] == "faulted"
    assert receipt["trips"] == ["OPEN_LEAD"]
    assert "[H05]" in receipt["reason"] and "press both pads down" in receipt["reason"]
    assert receipt["reason"] in done.err
    (trip,) = events(only_session(tmp_path), "trip")
    assert (trip["hazard"], trip["action"]) == ("H05", "OFF")
    assert 3000 <= trip["tick"] <= 3020
    truth = Truth(tmp_path / "truth.csv")
    assert truth.current_after(3.03) == 0.0
    assert truth["relay_closed"][-1] == 0


def test_a_shorted_lead_ramps_down_and_says_why(tmp_path: Path) -> None:
    uri = device("fault=short@4")
    done = ionto("run", treatment(tmp_path), "--device", uri, "--speed", "max", "--json", cwd=tmp_path)
    assert done.code == 1
    receipt = says_the_same(done, tmp_path)
    assert receipt["outcome"] == "faulted"
    assert receipt["trips"] == ["SHORT"]
    assert "[H08]" in receipt["reason"]
    (trip,) = events(only_session(tmp_path), "trip")
    assert (trip["hazard"], trip["action"]) == ("H08", "RAMP_DOWN")
    # The short takes the current from the skin, which discharges; what the device drives falls at 1 mA/s or faster,
    # and not at once.
    assert Truth(tmp_path / "truth.csv").current_after(4.5) < NOTHING_A
    driven_a = np.abs(Record.open(only_session(tmp_path)).telemetry()["current_a"])
    assert driven_a[trip["tick"] + 500] > 1e-3
    assert driven_a[trip["tick"] + 2050 :].max(initial=0.0) < 10 * NOTHING_A


@pytest.mark.parametrize(
    ("speed", "moment", "after_s"),
    [
        ("max", "self-test", 0.0),
        ("max", "contact check", 0.0),
        ("max", "ramp up", 0.02),
        ("max", "treatment", 0.0),
        ("max", "treatment", 0.1),
        ("real", "contact check", 0.3),
        ("real", "ramp up", 0.7),
        ("real", "treatment", 0.35),
    ],
)
def test_a_killed_host_leaves_no_current_and_a_record_that_can_be_recovered(
    tmp_path: Path, speed: str, moment: str, after_s: float
) -> None:
    path = treatment(tmp_path, current="1 mA", hold="300 s" if speed == "max" else "20 s", ramp="1.25 s")
    with started("run", path, "--device", device(), "--speed", speed, "--json", cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if moment in line:
                break
        # The moment is between two events, so there is nothing to wait for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        assert process.poll() is None
        process.kill()
        process.wait()
    session = only_session(tmp_path)
    recovered = ionto("recover", session, "--json", cwd=tmp_path)
    assert recovered.code == 0, recovered.err
    truth = Truth(tmp_path / "truth.csv")
    assert seconds_on_after_last_command(truth) <= LEASE_S
    assert truth["current_a"][-1] == 0.0 and truth["relay_closed"][-1] == 0

    receipt = recovered.receipt
    assert receipt == Record.open(session).receipt
    assert receipt["outcome"] == "recovered" and receipt["dose_basis"] == "device count"
    assert receipt["dose_delivered_mamin"] >= true_dose_mamin(truth) - 1e-6
    # One batch may be unwritten, and one more on its way from the device.
    ticks = round(truth.last_command_s * 1e3)
    assert ticks - 250 <= len(Record.open(session).telemetry()) <= ticks + 1
    assert replay(session).identical

    again = ionto("recover", session, "--json", cwd=tmp_path)
    assert (again.code, again.receipt) == (0, receipt)
    listed = ionto("sessions", "--json", cwd=tmp_path)
    assert '"outcome": "recovered"' in listed.out


def test_without_its_device_a_recovered_dose_is_a_bound_that_says_so(tmp_path: Path) -> None:
    path = treatment(tmp_path, current="1 mA", hold="300 s", ramp="1.25 s")
    with started("run", path, "--device", device(), "--speed", "max", "--json", cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "treatment" in line:
                break
        process.kill()
        process.wait()
    session = only_session(tmp_path)
    wait_for_device(session)
    (tmp_path / "sessions" / "virtual-device-state.json").unlink()
    done = ionto("recover", session, cwd=tmp_path)
    assert done.code == 0
    assert "bound, not measured" in done.out and "has left no state" in done.out
    receipt = Record.open(session).receipt
    assert receipt is not None
    assert receipt["dose_delivered_mamin"] > true_dose_mamin(Truth(tmp_path / "truth.csv"))


def stopped_run(folder: Path, *signals: signal.Signals, speed: str) -> Done:
    """The command, sent these signals one after the other once the treatment is at its level."""
    path = treatment(folder, current="1 mA", hold="600 s", ramp="1.25 s")
    with started("run", path, "--device", device(), "--speed", speed, "--json", cwd=folder) as process:
        assert process.stderr is not None
        heard = iter(process.stderr)
        for moment, number in zip(("treatment", "ramp down"), signals, strict=False):
            for line in heard:
                if moment in line:
                    break
            process.send_signal(number)
        return ended(process)


@pytest.mark.parametrize(
    ("number", "speed"),
    [(signal.SIGINT, "real"), (signal.SIGINT, "max"), (signal.SIGTERM, "max"), (signal.SIGHUP, "max")],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_first_interrupt_ramps_down(tmp_path: Path, number: signal.Signals, speed: str) -> None:
    done = stopped_run(tmp_path, number, speed=speed)
    assert done.code == 1
    receipt = says_the_same(done, tmp_path)
    reason = "the terminal was closed" if number == signal.SIGHUP else "stopped by the operator"
    assert (receipt["outcome"], receipt["reason"]) == ("aborted", reason)
    assert receipt["trips"] == []
    (begun,) = (event["tick"] for event in events(only_session(tmp_path), "phase") if event["phase"] == "RAMP_DOWN")
    truth = Truth(tmp_path / "truth.csv")
    time_s, current_a = truth["device_time_s"], np.abs(truth["current_a"])
    assert current_a[np.searchsorted(time_s, begun * 1e-3 + 0.5)] > 0.3e-3
    assert truth.current_after(begun * 1e-3 + 1.05) < NOTHING_A


def test_the_second_interrupt_switches_off_at_once(tmp_path: Path) -> None:
    done = stopped_run(tmp_path, signal.SIGINT, signal.SIGINT, speed="real")
    assert done.code == 1
    receipt = says_the_same(done, tmp_path)
    assert receipt["trips"] == ["OPERATOR_STOP"]
    (trip,) = events(only_session(tmp_path), "trip")
    assert trip["action"] == "OFF"
    truth = Truth(tmp_path / "truth.csv")
    assert truth.current_after(trip["tick"] * 1e-3 + 0.02) == 0.0
    assert np.abs(truth["current_a"])[trip["tick"]] > 0.3e-3


# What bad input gets: one line, exit 2, nothing left behind, no current.


def refused(folder: Path, *words: str | Path) -> str:
    """The line that refuses `run`; checks that nothing flowed and nothing was left."""
    before = {path for path in folder.rglob("*") if path.name != "truth.csv"}
    done = ionto("run", *words, cwd=folder)
    left = {path for path in folder.rglob("*") if path.name != "truth.csv"}
    assert left == before
    if (folder / "truth.csv").exists():
        assert not np.any(Truth(folder / "truth.csv")["current_peak_a"])
    return done.refusal


EDITS: dict[str, tuple[str, str, str]] = {
    "unknown key": ('ramp = "30 s"', 'rampp = "30 s"', "steps[0].rampp"),
    "missing unit": ('"4 mA"', '"4"', "has no unit"),
    "wrong unit": ('"4 mA"', '"4 V"', "voltage"),
    "number for text": ('current = "4 mA"', "current = 4", "must be text with a unit"),
    "nan": ('"4 mA"', '"nan mA"', "nan mA"),
    "wrong polarity": ('polarity = "cathode"', 'polarity = "anode"', "cathode"),
    "current over limit": ('"4 mA"', '"40 mA"', "40 mA"),
    "density over limit": ('"8 cm^2"', '"0.8 cm^2"', "0.8 cm^2"),
    "density over limit on a pad that there is": ('"8 cm^2"', '"6 cm^2"', "mA/cm²"),
    "dose over cap": ('"40 mA*min"', '"400 mA*min"', "400 mA*min"),
    "ramp too steep": ('"30 s"', '"1 s"', "steeper"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_treatment_that_must_not_run_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    old, new, said = EDITS[case]
    text = EXAMPLE.read_text()
    assert old in text
    edited = "\n".join(line if line.startswith("#") else line.replace(old, new) for line in text.splitlines())
    path = tmp_path / "edited.toml"
    path.write_text(edited)
    line = refused(tmp_path, path, "--device", device(), "--speed", "max")
    assert said in line
    number = next(
        n for n, (one, other) in enumerate(zip(text.splitlines(), edited.splitlines(), strict=True), 1) if one != other
    )
    # A smaller pad is found out at the current that is too much for it.
    named = [number] if "that there is" not in case else range(1, len(text.splitlines()) + 1)
    assert any(line.startswith(f"{path}:{n}: ") for n in named), line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"this is no TOML\n", "junk.toml:1"),
        (b"", "is empty"),
        (bytes(range(256)) * 40, "junk.toml"),
        (b"a = " + b"[" * 100_000, "junk.toml"),
        (b"a = " + b"{b=" * 5000, "junk.toml"),
        (b"format = 2\n", "format"),
    ],
    ids=["not TOML", "empty", "binary", "nested lists", "nested tables", "another format"],
)
def test_a_file_that_is_no_treatment_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "junk.toml"
    path.write_bytes(content)
    line = refused(tmp_path, path, "--device", device(), "--speed", "max")
    assert said in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("serial:/dev/ionto-none", "no such port"),
        ("serial:/dev/null", "cannot be opened"),
        ("nonsense", "not a device URI"),
        ("virtual:?skin=leather", "leather"),
        ("virtual:?colour=red", "colour"),
        ("virtual:?fault=rain@3", "rain@3"),
        ("virtual:?compliance=nan", "compliance"),
        ("virtual:?truth=/ionto-none/t.csv", "/ionto-none/t.csv"),
        ("usb:1", "no such kind of device"),
    ],
)
def test_a_device_that_is_none_is_refused_in_one_line(tmp_path: Path, uri: str, said: str) -> None:
    assert said in refused(tmp_path, EXAMPLE, "--device", uri)


def test_a_speed_that_the_device_does_not_offer_is_refused(tmp_path: Path) -> None:
    line = refused(tmp_path, EXAMPLE, "--device", device("pacing=real"), "--speed", "max")
    assert "lock-step" in line and "--speed real" in line


def test_a_limit_of_the_operator_is_kept(tmp_path: Path) -> None:
    line = refused(tmp_path, EXAMPLE, "--device", device(), "--speed", "max", "--current-limit", "3 mA")
    assert "3 mA (operator)" in line


def test_a_dose_smaller_than_its_ramps_is_refused_with_the_device_open(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(f'{HEAD}[[steps]]\ncurrent = "2 mA"\ndose = "0.5 mA*min"\nramp = "30 s"\n')
    assert "its ramps deliver" in refused(tmp_path, path, "--device", device(), "--speed", "max")


class Pty(threading.Thread):
    """A port with something else than the DAQ behind it: what it says to each hello request, or unasked."""

    def __init__(self, answer: bytes, *, unasked: bool = False) -> None:
        super().__init__(daemon=True)
        self.far, self.near = os.openpty()
        import tty

        tty.setraw(self.near)
        self.path = os.ttyname(self.near)
        self.answer = answer
        self.unasked = unasked
        self.asked = threading.Event()
        self.left = threading.Event()

    def run(self) -> None:
        os.set_blocking(self.far, False)
        while not self.left.wait(0.005):
            try:
                heard = os.read(self.far, 4096)
            except BlockingIOError:
                heard = b""
            if heard:
                self.asked.set()
            if heard or (self.unasked and self.asked.is_set()):
                try:
                    os.write(self.far, self.answer)
                except BlockingIOError:
                    continue


@contextmanager
def pty(answer: bytes, *, unasked: bool = False) -> Iterator[Pty]:
    port = Pty(answer, unasked=unasked)
    port.start()
    try:
        yield port
    finally:
        port.left.set()
        port.join()
        os.close(port.far)
        os.close(port.near)


def hello(**changes: int) -> bytes:
    """The frame of a hello that is in order but for `changes`."""
    import struct

    values = {
        "version": 1, "channels": 1, "pacing": 5, "front_end": 0, "lease": 100, "period_ns": 1_000_000,
        "compliance_mv": 60_000,
    } | changes  # fmt: skip
    head = struct.pack(
        "<BBBBBBHIIIIii16s16sIqqIB7x",
        HELLO, values["version"], values["channels"], values["pacing"], values["front_end"], 1, values["lease"], 1,
        values["period_ns"], values["compliance_mv"], 2_000_000, 0, 32_000, b"stranger", b"S-1", 0, 0, 0, 0, 0,
    )  # fmt: skip
    one_range = struct.pack("<IIiIiIhhI", 5_000_000, 160_000_000, 0, 160_000_000, 0, 160_000_000, -32_000, 32_000, 0)
    return encode_frame(head + one_range)


def test_noise_on_the_port_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(7).integers(0, 256, 512, np.uint8).tobytes()
    with pty(noise, unasked=True) as port:
        line = refused(tmp_path, EXAMPLE, "--device", f"serial:{port.path}")
    assert "no valid frame" in line


def test_another_protocol_version_is_refused(tmp_path: Path) -> None:
    with pty(hello(version=2)) as port:
        line = refused(tmp_path, EXAMPLE, "--device", f"serial:{port.path}")
    assert "protocol version 2" in line


def test_a_device_that_cannot_reach_the_current_is_refused(tmp_path: Path) -> None:
    with pty(hello(compliance_mv=1_500)) as port:
        line = refused(tmp_path, EXAMPLE, "--device", f"serial:{port.path}")
    assert "compliance voltage" in line and "1.5 V" in line
    assert line.startswith(f"{EXAMPLE}:")


def test_a_silent_port_is_refused(tmp_path: Path) -> None:
    with pty(b"") as port:
        assert "nothing answered" in refused(tmp_path, EXAMPLE, "--device", f"serial:{port.path}")


def test_a_device_that_goes_silent_at_the_limits_leaves_no_session(tmp_path: Path) -> None:
    with pty(hello()) as port:
        done = ionto("run", EXAMPLE, "--device", f"serial:{port.path}", "--accept-unfit", cwd=tmp_path)
    # An unfit host has a line of its own before it.
    assert done.code == 2 and "no answer to the limits" in done.err.splitlines()[-1]
    assert not (tmp_path / "sessions").exists()


def test_an_interrupt_before_the_device_is_armed_is_no_session(tmp_path: Path) -> None:
    with pty(b"") as port, started("run", EXAMPLE, "--device", f"serial:{port.path}", cwd=tmp_path) as process:
        assert port.asked.wait(20)
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert "no current has flowed" in done.refusal
    assert not (tmp_path / "sessions").exists()
