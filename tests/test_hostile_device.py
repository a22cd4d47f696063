"""A device that lies, floods, stalls or becomes another one: refused in one line before any current, or ended safely.

Both in bounded time and memory.
"""

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_support import Truth, ionto, sessions, treatment
from ionto_rt.cli.recovery import ask_device
from ionto_rt.codes import FrontEnd, Pacing
from ionto_rt.core.virtual_device import FAULT_VALUES
from ionto_rt.core.wire import FrameReader, encode_frame
from ionto_rt.device import COUNTERS, DISARMED, HELLO, Device, SimBytes, open_device, parse_hello
from ionto_rt.errors import RefusedError
from ionto_rt.record import Record
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

CLAIMS = range(1, int(FAULT_VALUES["absurd"][2]) + 1)
REFUSED_S = 5.0
"""Whatever a device does instead of answering, it has been refused by then."""
MEMORY_BYTES = 2_000_000


def refused(folder: Path, uri: str) -> str:
    """The line by which `run` refuses a device; nothing has flowed, and nothing is left."""
    truth = folder / "truth.csv"
    done = ionto("run", treatment(folder), "--device", f"{uri}&truth={truth}", "--speed", "max", cwd=folder)
    assert not sessions(folder / "sessions")
    assert not Truth(truth)["current_peak_a"].any()
    return done.refusal


@pytest.mark.parametrize("claim", [1, 3, 10, 16, 20])
def test_an_absurd_hello_is_refused_in_one_line_before_any_current(tmp_path: Path, claim: int) -> None:
    assert "its hello claims" in refused(tmp_path, f"virtual:?fault=absurd={claim}@0") or claim == 3


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_absurd_claim_is_refused(tmp_path: Path, claim: int) -> None:
    with pytest.raises(RefusedError) as said, open_device(f"sim:?fault=absurd={claim}@0") as device:
        Session(Treatment.load(treatment(tmp_path)), device, out_dir=tmp_path / "sessions", speed="max")
    assert "\n" not in str(said.value)


def honest_hello(channels: int = 1) -> bytes:
    """The payload that a virtual device of its own accord sends."""
    port = SimBytes({"channels": channels})
    port.write(encode_frame(bytes([1, 1])))
    (payload,) = FrameReader().feed(port.read(4096, 0.0))
    port.close()
    return payload


HONEST = {channels: honest_hello(channels) for channels in (1, 3)}


@given(
    channels=st.sampled_from([1, 3]),
    changes=st.lists(st.tuples(st.integers(1, 300), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    length=st.integers(1, 400),
)
def test_whatever_a_hello_says_it_is_refused_or_within_what_can_be(
    channels: int, changes: list[tuple[int, bytes]], length: int
) -> None:
    payload = bytearray(HONEST[channels])
    for at, said in changes:
        payload[at : at + len(said)] = said
    try:
        hello = parse_hello(bytes(payload[: max(length, 2)]))
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return
    assert 1 <= hello.channels <= 32 and 1 <= len(hello.ranges) <= 29
    assert 50e-6 <= hello.tick_s <= 0.1
    assert 0.0 < hello.lease_max_ticks * hello.tick_s <= 0.1 + 1e-9
    assert hello.front_end in FrontEnd
    assert hello.compliance_v > 0.0 and 1 <= hello.code_limit <= 1 << 30
    for one in hello.ranges:
        assert 0.0 < one.full_scale_a <= 0.1
        assert one.full_scale_a <= one.current_lsb_a * hello.code_limit
        assert one.output_code_min <= 0 < one.output_code_max


def test_a_device_that_reads_back_other_limits_is_not_armed(tmp_path: Path) -> None:
    assert "read back other limits" in refused(tmp_path, "virtual:?fault=lie-limits@0")


class Tampered(SimBytes):
    """A virtual device in this process, whose bytes pass through `tamper` on their way to the host."""

    def __init__(self, tamper: Callable[[bytes], bytes], **arguments: Any) -> None:
        super().__init__(arguments)
        self.tamper = tamper

    def read(self, most: int, timeout_s: float) -> bytes:
        return self.tamper(super().read(most, timeout_s))


FLOODS = {
    "counters": encode_frame(bytes([COUNTERS]) + bytes(43)),
    "samples": encode_frame(bytes([0x85, 1]) + bytes(40)),
    "unknown frames": encode_frame(bytes([0xC0]) + bytes(1000)),
    "zeros": bytes(64),
    "noise": bytes(range(1, 256)),
    "errors": encode_frame(struct.pack("<BBBBI", 0xFF, 1, 0x7F, 0, 0)),
    "truncated hellos": encode_frame(bytes([HELLO, 1]) + bytes(20)),
}


@pytest.mark.parametrize("what", FLOODS)
@pytest.mark.parametrize("from_the", ["hello", "limits", "arming"])
def test_a_flood_in_the_place_of_an_answer_is_refused_in_bounded_time_and_memory(what: str, from_the: str) -> None:
    """Megabytes a second of anything, for as long as somebody listens."""
    flood = FLOODS[what] * (1 + 65536 // len(FLOODS[what]))
    flooding = from_the == "hello"

    def tamper(data: bytes) -> bytes:
        return flood[: 1 << 16] if flooding else data

    port = Tampered(tamper)
    device = Device("sim:", port)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError) as said:
            device.greet()
            flooding = from_the == "limits"
            device.push_limits(
                range_index=2, lease_max_ticks=80, token=7, session_ticks=1000, current_cap_code=1000,
                output_code_min=-100, output_code_max=100, charge_cap_codes=1 << 40,
            )  # fmt: skip
            flooding = True
            device.arm(Pacing.LOCK_STEP, 7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        port.close()
    assert "\n" not in str(said.value)
    assert time.monotonic() - began < REFUSED_S
    assert peak < MEMORY_BYTES
    assert port.sim.device.charge_c == 0.0


def run(folder: Path, *faults: str, **options: Any) -> tuple[dict[str, Any], Truth]:
    """A session in lock-step under a fault script: receipt and truth."""
    truth = folder / "truth.csv"
    uri = "sim:?" + "&".join([f"truth={truth}", *(f"fault={fault}" for fault in faults)])
    with open_device(uri) as device:
        made = treatment(folder, current="1 mA", hold="4 s", ramp="1.25 s")
        receipt = Session(Treatment.load(made), device, out_dir=folder / "sessions", speed="max", **options).run()
    return receipt, Truth(truth)


@pytest.mark.parametrize("fault", ["flood=40@2", "repeat@2", "replayed@2"])
def test_frames_that_nobody_asked_for_and_repeated_or_old_ones_change_nothing(tmp_path: Path, fault: str) -> None:
    (tmp_path / "honest").mkdir()
    honest, _ = run(tmp_path / "honest")
    receipt, truth = run(tmp_path, fault)
    assert (receipt["outcome"], receipt["trips"]) == ("complete", [])
    assert receipt["dose_delivered_mamin"] == pytest.approx(honest["dose_delivered_mamin"], rel=1e-3)
    true_mamin = abs(truth["charge_c"][-1]) / 0.06
    assert receipt["dose_delivered_mamin"] == pytest.approx(true_mamin, rel=5e-3)


@pytest.mark.parametrize("stall_s", [0.02, 0.09, 3.0])
def test_a_device_that_stalls_is_ramped_down_or_has_let_go_by_itself(tmp_path: Path, stall_s: float) -> None:
    receipt, truth = run(tmp_path, f"stall@3+{stall_s}")
    assert receipt["trips"][0] in ("LOST_SAMPLES", "LEASE_LAPSED")
    assert truth.current_after(3.0 + (1.2 if stall_s < 0.08 else 0.1)) == 0.0


def test_a_count_of_another_session_is_none(tmp_path: Path) -> None:
    """What answers the disarming is not what was armed."""
    disarmed = []
    reader = FrameReader()

    def tamper(data: bytes) -> bytes:
        payloads = [bytearray(payload) for payload in reader.feed(data)]
        for payload in payloads:
            if payload[0] == DISARMED:
                disarmed.append(payload)
                payload[4] ^= 1
        return b"".join(encode_frame(bytes(payload)) for payload in payloads)

    device = Device("sim:", Tampered(tamper))
    device.greet()
    with device:
        made = treatment(tmp_path, current="1 mA", hold="2 s", ramp="1.25 s")
        receipt = Session(Treatment.load(made), device, out_dir=tmp_path / "sessions", speed="max").run()
    assert disarmed
    assert receipt["device"] is None
    assert receipt["dose_device_mamin"] is None


def test_the_count_of_another_device_is_not_taken_at_recovery(tmp_path: Path) -> None:
    """It has the session's token, and another name."""
    run(tmp_path)
    (session,) = sessions(tmp_path / "sessions")
    record = Record.open(session)
    count, notes = ask_device(record, "sim:?serial=OTHER")
    assert count is None
    assert len(notes) == 1 and "not the session's device" in notes[0]


def test_a_device_that_turns_into_another_one_in_mid_session_drives_no_more_than_it_was_told(tmp_path: Path) -> None:
    """Nothing in a running session goes by the name; what its frames say is held to the session's token."""
    receipt, truth = run(tmp_path, "identity@2")
    assert receipt["outcome"] == "complete"
    assert np.abs(truth["current_peak_a"]).max() < 1.1e-3
