"""The black box: what went over the port, both ways, from 2 s before a trip until the output was off."""

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import ionto, treatment
from ionto_rt.black_box import (
    BLACK_BOX,
    COMMAND,
    COMMANDS,
    RECEIVED,
    SAMPLE,
    SAMPLES,
    SENT,
    BlackBox,
    Message,
    black_boxes,
    encode,
    file_name,
)
from ionto_rt.codes import OnTrip, Pacing, Trip
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import BLACK_BOX_S, Loop
from ionto_rt.device import daq_capsule, open_device
from ionto_rt.record import EVENTS, Record
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from support import TICK_S, endless, hello, planned, struct
from treatments import together

pytestmark = pytest.mark.real_time

WINDOW = round(BLACK_BOX_S / TICK_S)


def run(folder: Path, uri: str, text: str = "", speed: Any = "max") -> Path:
    path = treatment(folder, current="1 mA", hold="3 s", ramp="1.25 s")
    if text:
        path.write_text(text)
    with open_device(uri) as device:
        return Path(Session(Treatment.load(path), device, out_dir=folder / "sessions", speed=speed).run()["record"])


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lead that opened after 3.5 s, on the virtual clock."""
    return run(tmp_path_factory.mktemp("opened"), "sim:?fault=open@3.5")


def said(box: BlackBox, what: str) -> list[Message]:
    return [message for message in box.messages() if message.what == what]


def assert_is_the_record_s(box: BlackBox, session: Path, channel: int = 0) -> None:
    """Its samples and commands are telemetry's, each one from 2 s before the trip until the relay was open."""
    rows = Record.open(session).telemetry().rows()
    rows = rows[rows["channel"] == channel]
    by_index = {int(row["index"]): row for row in rows}
    trip = int(rows["index"][np.flatnonzero(rows["trip"])[0]])
    samples, commands = said(box, "sample"), said(box, "command")
    indices = [message.channels[channel]["index"] for message in samples]
    assert indices[0] <= trip - WINDOW and indices[-1] > trip
    assert set(range(trip - WINDOW, trip + 1)) - set(indices) <= {
        index for index in range(trip - WINDOW, trip + 1) if index not in by_index
    }
    for message in samples:
        found = message.channels[channel]
        row = by_index[found["index"]]
        names = ("current_code", "redundant_code", "voltage_code", "applied_code", "status", "nonce")
        assert all(found[name] == row[name] for name in names)
    answers = [message.channels[channel] for message in commands if message.channels[channel]["index"] in by_index]
    assert all(found["code"] == by_index[found["index"]]["output_code"] for found in answers)
    assert max(found["index"] for found in answers) >= trip
    last_command, last_sample = commands[-1].channels[channel], samples[-1].channels[channel]
    assert (last_command["flags"] & 1, last_sample["status"] & 1) == (0, 0)


def test_a_trip_leaves_two_seconds_of_frames_both_ways(opened: Path) -> None:
    (box,) = black_boxes(opened)
    assert box.facts["trips"] == ["OPEN_LEAD"] and box.facts["left_out"] == 0
    assert_is_the_record_s(box, opened)
    trip = box.facts["trip_tick"]
    assert box.entries[0].tick == trip - WINDOW
    assert {entry.kind for entry in box.entries} == {RECEIVED, SENT}
    assert all(entry.host_s is None for entry in box.entries), "nothing is timed on a virtual clock"
    assert all(entry.outcome == len(entry.data) for entry in box.entries)
    assert len(box.entries) == box.facts["entries"]


def test_the_event_vouches_for_its_file(opened: Path) -> None:
    (event,) = [event for event in Record.open(opened).events().events if event.kind == BLACK_BOX]
    assert event.fields["file"] == file_name(1) and event.fields["trips"] == ["OPEN_LEAD"]
    assert event.fields["bytes"] == (opened / file_name(1)).stat().st_size
    assert verify(opened).ok


def test_a_session_without_a_trip_has_none(tmp_path: Path) -> None:
    session = run(tmp_path, "sim:")
    assert black_boxes(session) == []
    done = ionto("blackbox", session, cwd=tmp_path)
    assert (done.code, done.out) == (1, "no black box: nothing tripped\n")


def test_a_device_that_is_unplugged_leaves_its_last_two_seconds(tmp_path: Path) -> None:
    session = run(tmp_path, "sim:?fault=unplug@3.5")
    (box,) = black_boxes(session)
    assert box.facts["trips"][-1] == "DEVICE_LOST"
    samples = said(box, "sample")
    last = int(Record.open(session).telemetry()["index"][-1])
    assert samples[-1].channels[0]["index"] == last
    assert samples[-1].channels[0]["index"] - samples[0].channels[0]["index"] >= WINDOW - 1
    assert verify(session).ok


def test_each_channel_s_trip_has_its_own(tmp_path: Path) -> None:
    text = treatment(tmp_path, current="1 mA", hold="5 s", ramp="1.25 s").read_text()
    session = run(tmp_path, "sim:?channels=3&fault=1:open@3&fault=2:open@4.5", together([text] * 3, "continue"))
    first, second = black_boxes(session)
    assert (first.facts["trips"], second.facts["trips"]) == (["OPEN_LEAD"], ["OPEN_LEAD"])
    assert_is_the_record_s(first, session, 1)
    assert_is_the_record_s(second, session, 2)


@pytest.mark.parametrize("pacing", ["real", "host"])
def test_in_real_time_each_read_and_write_has_the_host_s_time(tmp_path: Path, pacing: str) -> None:
    """Again, twice at most, if this host stalled before the lead opened."""
    for attempt in range(3):
        place = tmp_path / str(attempt)
        place.mkdir()
        session = run(place, f"virtual:?pacing={pacing}&fault=open@3.5", speed="real")
        boxes = black_boxes(session)
        if boxes and boxes[0].facts["trips"] == ["OPEN_LEAD"]:
            break
    (box,) = boxes
    assert_is_the_record_s(box, session)
    times = [entry.host_s for entry in box.entries]
    assert None not in times and times == sorted(times)  # type: ignore[type-var]
    trip_s = next(entry.host_s for entry in box.entries if entry.tick == box.facts["trip_tick"])
    assert trip_s is not None and times[0] is not None and trip_s - times[0] > 0.9 * BLACK_BOX_S


WRONG = 10
"""Longer, and it would be another channel's current through an open relay: H42, which ends both."""


class Card:
    """A device that is called, of two channels: of channel 0 WRONG samples from `wrong_from` on read too much."""

    def __init__(self, wrong_from: int) -> None:
        self.wrong_from = wrong_from
        self.index = 0
        daq = struct("Daq")
        self.receive = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int64
        )(self._receive)
        self.send = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(lambda context, commands: 0)
        self.daq: Any = daq(version=1, size=ctypes.sizeof(daq), channels=2, pacing=Pacing.DEVICE)
        self.daq.receive = ctypes.cast(self.receive, ctypes.c_void_p)
        self.daq.send = ctypes.cast(self.send, ctypes.c_void_p)
        self.capsule = daq_capsule(ctypes.addressof(self.daq), self)

    def _receive(self, context: int, samples: int, most: int, timeout_us: int) -> int:
        both = (struct("Sample") * 2).from_address(samples)
        for channel, sample in enumerate(both):
            sample.index, sample.device_time_us = self.index, (self.index * 1000) & 0xFFFFFFFF
            sample.applied_index = max(0, self.index - 2)
            wrong = channel == 0 and 0 <= self.index - self.wrong_from < WRONG
            sample.current_code = sample.redundant_code = 30_000 if wrong else 0
        self.index += 1
        return 1


def on_card(card: Card) -> Loop:
    config, _ = planned(device=hello(channels=2))
    controllers = [Controller(config, endless(0.0)) for _ in range(2)]
    return Loop(controllers, card.capsule, virtual_clock=True, ring_rows=1 << 16, on_trip=int(OnTrip.CONTINUE))


def test_a_device_that_is_called_leaves_samples_and_commands(tmp_path: Path) -> None:
    card = Card(3000)
    loop = on_card(card)
    for _ in range(8):
        loop.beat()
        loop.run(500)
    assert loop.black_box is not None and not loop.black_box["full"]
    taken = loop.take_black_box()
    assert loop.black_box is None
    path = tmp_path / file_name(1)
    path.write_bytes(encode(taken, session_id="x", trips=[], channels=2, period_ns=1_000_000, sentinel=False))
    box = BlackBox(path)
    assert {entry.kind for entry in box.entries} == {SAMPLES, COMMANDS}
    samples = said(box, "sample")
    trip = box.facts["trip_tick"]
    assert Trip(int(loop.newest()[0]["trip"])) in (Trip.OVER_CURRENT, Trip.OUTPUT_MISMATCH, Trip.LEASE_LAPSED)
    assert [message.channels[1]["index"] for message in samples] == list(range(trip - WINDOW, 4000))
    wrong = range(3000, 3000 + WRONG)
    assert all((m.channels[0]["current_code"] == 30_000) == (m.channels[0]["index"] in wrong) for m in samples)
    assert len(said(box, "command")) in (len(samples), len(samples) + 1)


def test_what_lies_before_a_trip_waits_for_as_long_as_nobody_takes_it() -> None:
    """The rings fill up behind the trip, and what finds no room is counted; then they go round again."""
    loop = on_card(Card(3000))
    while loop.counters["ticks"] < 40_000:
        loop.beat()
        loop.drain()
        loop.run(500)
    assert loop.black_box is not None and loop.black_box["full"]
    trip = loop.black_box["trip_tick"]
    taken = loop.take_black_box()
    assert taken["left_out"] > 0
    entries = np.frombuffer(taken["records"][: 8 * 2], "<u8")
    assert entries[1] == trip - WINDOW
    assert taken["entries"] + taken["left_out"] == pytest.approx(2 * (40_000 - trip + WINDOW), abs=2)
    assert taken["entries"] >= 4 * 2 * WINDOW - 2, "2 s before, and 6 s after"
    while loop.counters["ticks"] < 50_000:
        loop.beat()
        loop.drain()
        loop.run(500)
    later = loop.take_black_box()
    assert later["trip_tick"] is None and later["left_out"] == 0
    assert np.frombuffer(later["records"][:16], "<u8")[1] == 50_000 - WINDOW


def test_its_structs_are_the_core_s() -> None:
    for name, dtype in (("Sample", SAMPLE), ("Command", COMMAND)):
        assert dtype.itemsize == ctypes.sizeof(struct(name))
        assert list(dtype.names or ()) == [field for field, _ in struct(name)._fields_]
        assert [dtype.fields[field][1] for field in dtype.names or ()] == [  # type: ignore[index]
            getattr(struct(name), field).offset for field in dtype.names or ()
        ]


def test_the_command_shows_the_frames_around_the_trip(opened: Path) -> None:
    done = ionto("blackbox", opened, cwd=opened)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("blackbox-1.bin: OPEN_LEAD at tick ")
    assert len(lines) == 1 + 2 * 41 and lines[1].split()[:3] == ["-20", "->", "command"]
    whole = ionto("blackbox", "--json", opened, cwd=opened)
    (box,) = black_boxes(opened)
    assert len(whole.out.splitlines()) == len(list(box.messages()))


def test_a_black_box_that_is_gone_is_named(opened: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(opened, tmp_path / "copy"))
    (copy / file_name(1)).unlink()
    done = ionto("blackbox", copy, cwd=tmp_path)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert f"{file_name(1)}: the black box of OPEN_LEAD is missing" in done.err
    (copy / EVENTS).write_text("")
    done = ionto("blackbox", copy, cwd=tmp_path)
    assert (done.code, done.out) == (1, "") and "the receipt names OPEN_LEAD" in done.err


def test_of_a_folder_that_is_no_session_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert "not a session's folder" in ionto("blackbox", tmp_path, cwd=tmp_path).refusal
    assert "not a session's folder" in ionto("blackbox", tmp_path / "none", cwd=tmp_path).refusal
