"""The loop: every sample ticked once and in order, one answer for what came together, and an end for every silence."""

import contextlib
import ctypes
import errno
import math
import os
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.codes import LOOP_SEQUENCE, DeviceStatus, EndReason, OnTrip, OperatorCommand, Pacing, StopFlag, Trip
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.core.wire import FrameReader, encode_frame, pack_sample, unpack_command
from ionto_rt.heartbeat import answer_of
from support import TOKEN, changed, planned, same_bits, struct

pytestmark = pytest.mark.real_time

READ = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
WRITE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
ERROR_FRAME = bytes([0xFF, 7, 5, 0, 0, 0, 0, 0])


def controller(**guard: float) -> Controller:
    config, plan = planned()
    return Controller(changed(config, guard=guard), plan.segments)


def sample(index: int, **changes: int) -> dict[str, int]:
    """A sample of a device at rest: of all commands the first alone, zero, has come into force."""
    at_rest = dict.fromkeys(
        ("status", "current_code", "redundant_code", "voltage_code", "applied_code", "charge_codes"), 0
    )
    header = {
        "index": index,
        "device_time_us": 1000 * index,
        "applied_index": 0,
        "nonce": index & 0xFFFF,
    }
    return at_rest | header | changes


def frames(indices: Iterable[int], **changes: int) -> bytes:
    return b"".join(encode_frame(pack_sample([sample(index, **changes)])) for index in indices)


def several(indices: Iterable[int], channels: int, **of_one: dict[str, int]) -> bytes:
    """Frames of several channels at rest; `of_one` names a channel as c0, c1 and what its samples say instead."""
    return b"".join(
        encode_frame(pack_sample([sample(index, **of_one.get(f"c{channel}", {})) for channel in range(channels)]))
        for index in indices
    )


class ScriptedPort:
    """A port in this process: each read takes the next item, bytes or a number to return; what is written is kept."""

    def __init__(
        self, script: Iterable[bytes | int], *, at_end: bytes | int = -errno.EIO, write_returns: int = 0
    ) -> None:
        self.script = iter(script)
        self.at_end = at_end
        self.left = b""
        self.written: list[bytes] = []
        self.write_returns = write_returns
        self.port: Any = struct("Port")(version=1, size=ctypes.sizeof(struct("Port")))
        self._callbacks = READ(self._read), WRITE(self._write)
        self.port.read, self.port.write = (ctypes.cast(one, ctypes.c_void_p).value for one in self._callbacks)

    def _read(self, context: int, data: int, capacity: int, timeout_us: int) -> int:
        item = self.left or next(self.script, self.at_end)
        if isinstance(item, int):
            return item
        ctypes.memmove(data, item, min(len(item), capacity))
        self.left = item[capacity:]
        return min(len(item), capacity)

    def _write(self, context: int, data: int, length: int) -> int:
        self.written.append(ctypes.string_at(data, length))
        return self.write_returns or length

    @property
    def capsule(self) -> object:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.port), b"ionto_rt.core.types.Port", None)

    @property
    def answers(self) -> list[int]:
        """Index of each command that was written."""
        return [command[0]["index"] for command in self.commands()]

    def commands(self, channels: int = 1) -> list[list[dict[str, int]]]:
        """Each command that was written, by channel."""
        return [unpack_command(payload, channels) for one in self.written for payload in FrameReader().feed(one)]


def scripted(script: Iterable[bytes | int], *, channels: int = 1, **options: Any) -> tuple[ScriptedPort, Loop]:
    port_options = {name: options.pop(name) for name in ("at_end", "write_returns") if name in options}
    port = ScriptedPort(script, **port_options)
    return port, Loop([controller() for _ in range(channels)], port.capsule, virtual_clock=True, **options)


def test_samples_that_queued_are_ticked_in_order_and_answered_once() -> None:
    port, loop = scripted([frames([0]), frames([1, 2, 3, 4]), frames([5])])
    assert loop.run(6) == "running"
    assert list(loop.drain()["index"]) == [0, 1, 2, 3, 4, 5]
    assert port.answers == [0, 4, 5]
    assert loop.counters["sent"] == 3
    assert unpack_command(FrameReader().feed(port.written[1])[0])[0] == {
        "index": 4,
        "token": TOKEN,
        "nonce": 4,
        "lease_ticks": 80,
        "flags": 0,
        "code": 0,
    }


@given(st.lists(st.integers(1, 400), max_size=60))
def test_where_the_bytes_are_cut_makes_no_difference(sizes: list[int]) -> None:
    stream = frames(range(40))
    chunks, at = [], 0
    for size in sizes:
        chunks.append(stream[at : at + size])
        at += size
    _, whole = scripted([stream])
    _, cut = scripted([one for one in (*chunks, stream[at:]) if one])
    assert whole.run(40) == cut.run(40) == "running"
    assert same_bits(whole.drain(), cut.drain()) == ""


def test_a_bounded_run_leaves_the_rest_for_the_next_one() -> None:
    port, loop = scripted([frames(range(10))])
    assert loop.run(4) == "running"
    assert list(loop.drain()["index"]) == [0, 1, 2, 3]
    assert loop.run(4) == "running"
    assert loop.run(10) == "lost"
    assert list(loop.drain()["index"]) == [4, 5, 6, 7, 8, 9]
    assert port.answers == [3, 7, 9]


def test_damaged_frames_lost_samples_and_error_frames_are_counted_apart() -> None:
    damaged = bytearray(frames([3]))
    damaged[5] ^= 0x40
    _, loop = scripted([frames([0, 1, 2]) + bytes(damaged) + frames([4]), encode_frame(ERROR_FRAME), frames([4, 5])])
    loop.run(6)
    rows = loop.drain()
    assert list(rows["index"]) == [0, 1, 2, 4, 4, 5]
    assert list(rows["lost_ticks"]) == [0, 0, 0, 1, 0, 0]
    assert list(rows["sample_fault"]) == [0, 0, 0, 0, 3, 0]
    counters = loop.counters
    assert (counters["bad_frames"], counters["lost"], counters["bad_samples"]) == (1, 1, 1)
    assert (counters["device_errors"], counters["last_device_error"]) == (1, 7)


def test_a_port_that_fails_ends_the_loop_with_its_reason() -> None:
    _, loop = scripted([frames([0]), -errno.ENODEV])
    assert loop.run() == "lost"
    assert loop.status == "lost"
    assert loop.error == os.strerror(errno.ENODEV)
    assert loop.run(5) == "lost", "and it stays ended"
    assert loop.counters["ticks"] == 1


def test_a_port_that_takes_no_command_ends_the_loop() -> None:
    _, loop = scripted([frames([0]), frames([1])], write_returns=-errno.EPIPE)
    assert loop.run() == "lost"
    assert loop.error == os.strerror(errno.EPIPE)


def test_a_command_that_found_no_room_in_time_is_left_to_the_lease() -> None:
    _, loop = scripted([frames([0]), frames([1])], write_returns=-errno.ETIMEDOUT)
    assert loop.run(2) == "running"


@pytest.mark.parametrize("said", [0, b"\x55" * 100, b"\0" * 100, encode_frame(ERROR_FRAME)])
def test_a_device_that_sends_no_samples_is_silent_whatever_else_it_sends(said: bytes | int) -> None:
    _, loop = scripted([frames([0])], at_end=said, silence_s=0.03)
    before = time.monotonic()
    assert loop.run() == "silent"
    assert time.monotonic() - before >= 0.03
    assert loop.counters["ticks"] == 1


def test_the_stop_flag_only_rises() -> None:
    _, loop = scripted([frames([k]) for k in range(6)])
    for level in (StopFlag.NONE, StopFlag.RAMP_DOWN, StopFlag.NONE, StopFlag.NOW, StopFlag.RAMP_DOWN, StopFlag.NONE):
        loop.stop(level)
        loop.run(1)
    assert list(loop.drain()["stop"]) == [0, 1, 1, 2, 2, 2]


def test_a_full_ring_is_counted_and_the_loop_goes_on() -> None:
    port, loop = scripted([frames([k]) for k in range(20)], ring_rows=4)
    assert loop.run(20) == "running"
    assert port.answers == list(range(20))
    assert (loop.counters["ticks"], loop.counters["ring_dropped"], loop.counters["ring_high_water"]) == (20, 16, 4)
    assert list(loop.drain()["index"]) == [0, 1, 2, 3]
    assert len(loop.drain()) == 0


def test_operator_commands_are_numbered_and_consumed_one_a_tick() -> None:
    _, loop = scripted([frames(range(6))])
    assert loop.operator(OperatorCommand.PAUSE) == 1
    assert loop.operator(OperatorCommand.TRIM, -1e-4) == 2
    assert loop.operator(OperatorCommand.RESUME) == 3
    loop.run(6)
    rows = loop.drain()
    assert list(rows["operator_sequence"]) == [1, 2, 3, 0, 0, 0]
    assert list(rows["operator_command"]) == [1, 3, 2, 0, 0, 0]
    assert list(rows["operator_value_a"]) == [0.0, -1e-4, 0.0, 0.0, 0.0, 0.0]


def test_a_full_operator_queue_says_so() -> None:
    _, loop = scripted([frames(range(70))])
    assert [loop.operator(OperatorCommand.TRIM, 0.0) for _ in range(66)] == [*range(1, 65), 0, 0]
    loop.run(70)
    assert list(loop.drain()["operator_sequence"][:66]) == [*range(1, 65), 0, 0]


def test_an_operators_word_in_the_tick_of_a_refused_sample_counts() -> None:
    _, loop = scripted([frames([0, 1]), frames([2], current_code=1 << 20) + frames(range(3, 9))])
    loop.run(2)
    loop.operator(OperatorCommand.STOP)
    loop.run(7)
    rows = loop.drain()
    assert list(rows["sample_fault"]) == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert list(rows["end_reason"][2:]) == [0, 2, 2, 2, 2, 2, 2]


def test_the_events_ring_has_the_rows_in_which_something_changed() -> None:
    _, loop = scripted([frames(range(300)), frames([299]), frames(range(305, 400))])
    loop.operator(OperatorCommand.TRIM, 1e-5)
    loop.run(396)
    rows = loop.drain()
    assert list(np.flatnonzero(rows["events"])) == [0, 300, 301], "an operator's command, a repeated sample, a gap"
    assert same_bits(loop.drain_events(), rows[rows["events"] != 0]) == ""


REPEATED = 3000
"""Repeated samples, each an event: more than the ring of events has room for."""


def overflowing(monkeypatch: pytest.MonkeyPatch, *after: int) -> tuple[ScriptedPort, Loop]:
    """A loop whose device repeats a sample until the ring of events is full, and then has failed its self-test."""
    monkeypatch.setattr("ionto_rt.core.loop.EVENTS_S", 1.0)
    script = [frames([0]), *[frames([0])] * REPEATED, frames([1], status=DeviceStatus.SELF_TEST_FAILED)]
    still = controller(gap_pause_ticks=1 << 30, gap_stop_ticks=1 << 30, heartbeat_ticks=1 << 30)
    port = ScriptedPort([*script, *(frames([k], status=DeviceStatus.SELF_TEST_FAILED) for k in after)])
    return port, Loop(still, port.capsule, virtual_clock=True, ring_rows=10_000)


def test_a_trip_whose_event_found_no_room_is_in_the_next_row_that_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    _port, loop = overflowing(monkeypatch, 2, 3)
    loop.run(REPEATED + 2)
    told = loop.drain_events()
    assert len(told) < REPEATED and not told["trip"].any()
    assert loop.counters["events_dropped"] == REPEATED + 1 - len(told)
    loop.run(2)
    (row,) = loop.drain_events()
    assert (row["index"], row["trip"], row["events"]) == (2, Trip.DEVICE_SELF_TEST, 0), "its state, in order and once"
    assert loop.counters["events_dropped"] == REPEATED + 1 - len(told)


def test_a_trip_whose_event_found_no_room_is_told_when_the_loop_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _port, loop = overflowing(monkeypatch)
    assert loop.run() == "lost"
    told = loop.drain_events()
    assert [int(trip) for trip in told["trip"][-2:]] == [0, Trip.DEVICE_SELF_TEST]
    assert told["index"][-1] == 1
    assert len(loop.drain_events()) == 0


@pytest.mark.parametrize("rate_hz", [500, 1000, 4000])
def test_two_seconds_and_a_half_of_events_have_room(rate_hz: int) -> None:
    config, plan = planned()
    quick = changed(config, calibration={"tick_s": 1.0 / rate_hz}, guard=dict.fromkeys(
        ("gap_pause_ticks", "gap_stop_ticks", "heartbeat_ticks"), 1 << 30))  # fmt: skip
    rows = round(2.5 * rate_hz)
    port = ScriptedPort([frames([0]), *[frames([0])] * rows])
    loop = Loop(Controller(quick, plan.segments), port.capsule, virtual_clock=True)
    loop.run(rows + 1)
    assert loop.counters["events_dropped"] == 0 and len(loop.drain_events()) == rows


def test_a_pause_waits_behind_nothing_and_is_never_lost() -> None:
    _, loop = scripted([several(range(80), 2)], channels=2)
    assert all(loop.operator(OperatorCommand.TRIM, 0.0) for _ in range(64))
    assert loop.operator(OperatorCommand.TRIM, 0.0) == 0
    paused = loop.operator(OperatorCommand.PAUSE, 0.0, 1)
    ended = loop.operator(OperatorCommand.STOP, 0.0, 0)
    assert paused and ended
    loop.run(80)
    rows = loop.drain()
    first = rows[:2]
    assert list(first["operator_command"]) == [OperatorCommand.STOP, OperatorCommand.PAUSE]
    assert list(first["operator_sequence"]) == [ended, paused]
    trims = rows[rows["operator_command"] == OperatorCommand.TRIM]
    assert list(trims["operator_sequence"][::2]) == list(range(1, 65)), "nothing that was queued is lost for it"


PRESSED = {"p": OperatorCommand.PAUSE, "r": OperatorCommand.RESUME, "t": OperatorCommand.TRIM}


@given(st.lists(st.sampled_from("prt"), max_size=40), st.sampled_from([0, 1, 255]))
def test_whoever_pressed_pause_last_is_paused(pressed: list[str], channel: int) -> None:
    """All of it within one sample period."""
    _, loop = scripted([several(range(60), 2)], channels=2)
    for key in pressed:
        assert loop.operator(PRESSED[key], 0.0, channel)
    loop.run(60)
    rows = loop.drain()
    wanted = [key for key in pressed if key != "t"]
    for number in (0, 1):
        own = rows[rows["channel"] == number]["operator_command"]
        acts = [int(one) for one in own if one in (OperatorCommand.PAUSE, OperatorCommand.RESUME)]
        if channel not in (number, 255) or not wanted:
            assert acts == []
        else:
            assert acts[-1] == PRESSED[wanted[-1]]


@pytest.mark.parametrize("command", [-1, 0, 5, 99])
def test_there_is_no_such_word(command: int) -> None:
    _, loop = scripted([frames(range(3))])
    with pytest.raises(ValueError, match=f"command {command}: must be 1 to 4"):
        loop.operator(command)
    loop.run(3)
    assert not loop.drain()["operator_sequence"].any()


@pytest.mark.parametrize("value_a", [math.nan, math.inf, -math.inf])
def test_a_word_whose_value_is_no_number_is_refused(value_a: float) -> None:
    _, loop = scripted([frames(range(3))])
    with pytest.raises(ValueError, match="must be finite"):
        loop.operator(OperatorCommand.TRIM, value_a)
    loop.run(3)
    assert not loop.drain()["operator_sequence"].any()


def test_the_heartbeat_is_what_the_orchestrator_last_said_and_each_answer_brings_a_challenge() -> None:
    _, loop = scripted([frames([k]) for k in range(6)])
    said, challenges = [], [loop.challenge]
    for beats in (0, 1, 2, 0):
        for _ in range(beats):
            loop.beat()
            said.append(answer_of(challenges[-1]))
        loop.run(1)
        challenges.append(loop.challenge)
    loop.answer(answer_of(loop.challenge))
    said.append(answer_of(challenges[-1]))
    loop.run(1)
    rows = loop.drain()
    # Two beats on one challenge are one.
    assert list(rows["heartbeat"]) == [0, said[0], said[1], said[1], said[3]]
    assert list(rows["challenge"][:4]) == challenges[1:]
    assert [before != after for before, after in pairwise(challenges)] == [False, True, True, False]
    assert not rows["trip"].any()


def test_h31_a_wrong_answer_switches_every_channel_off_and_a_good_one_is_good_for_all() -> None:
    _, loop = scripted([several([k], 3) for k in range(10)], channels=3)
    for _ in range(4):
        loop.beat()
        loop.run(1)
    rows = loop.drain()
    assert not rows["trip"].any()
    assert all(len(set(rows["challenge"][k : k + 3])) == 1 for k in range(0, 12, 3))
    loop.answer(loop.challenge)
    loop.run(1)
    assert list(loop.drain()["trip"]) == [Trip.WATCHDOG] * 3


def test_on_a_virtual_clock_no_host_time_enters_the_tick() -> None:
    _, loop = scripted([frames(range(3))])
    loop.run(3)
    rows = loop.drain()
    assert not rows["host_time_us"].any()
    assert not rows["host_late_us"].any()


def ended_rows(loop: Loop) -> np.ndarray[Any, Any]:
    assert loop.run() == "ended"
    return loop.drain(100_000)


def test_it_ends_when_the_programme_has_ended_and_the_record_shows_it() -> None:
    port, loop = scripted([frames([k]) for k in range(1000)])
    loop.stop(StopFlag.RAMP_DOWN)
    rows = ended_rows(loop)
    assert (rows["end_reason"] != 0).sum() == 51
    assert port.answers == list(rows["index"])


def on_socket(talk: Callable[[socket.socket], object], **options: Any) -> tuple[Loop, threading.Thread, socket.socket]:
    """A loop on one end of a socket pair, and a thread with the device's part on the other."""
    ours, theirs = socket.socketpair()

    def device() -> None:
        with theirs, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            talk(theirs)

    thread = threading.Thread(target=device)
    thread.start()
    return Loop(controller(), ours.fileno(), **{"virtual_clock": False, **options}), thread, ours


def test_over_a_file_descriptor_each_sample_is_answered_and_a_hang_up_is_a_loss() -> None:
    seen: list[int] = []

    def device(port: socket.socket) -> None:
        reader = FrameReader()
        for index in range(200):
            port.sendall(frames([index]))
            seen.extend(unpack_command(payload)[0]["index"] for payload in reader.feed(port.recv(4096)))

    loop, thread, ours = on_socket(device)
    assert loop.run() == "lost"
    thread.join()
    ours.close()
    rows = loop.drain()
    assert list(rows["index"]) == seen == list(range(200))
    assert (np.diff(rows["host_time_us"].astype(np.int64)) >= 0).all()
    assert loop.latency_us["p50"] > 0.0
    assert loop.latency_us["p50"] <= loop.latency_us["p99"] <= loop.latency_us["max"]


def test_a_descriptor_that_says_nothing_is_silent_and_one_that_is_none_is_lost() -> None:
    hold = threading.Event()
    loop, thread, ours = on_socket(lambda port: hold.wait(), silence_s=0.05)
    assert loop.run() == "silent"
    hold.set()
    thread.join()
    closed = ours.fileno()
    ours.close()
    assert Loop(controller(), closed, virtual_clock=False).run() == "lost"


def test_another_thread_drains_beats_and_stops_while_the_loop_runs() -> None:
    """No row is lost on the way from the loop's thread to the one that keeps the record."""
    stopped = threading.Event()

    def device(port: socket.socket) -> None:
        reader, answered, index = FrameReader(), 0, 0
        while True:
            burst = 1 + index % 3
            port.sendall(frames(range(index, index + burst)))
            index += burst
            while answered < index:
                data = port.recv(4096)
                if not data:
                    return
                for payload in reader.feed(data):
                    answered = unpack_command(payload)[0]["index"] + 1
            if index > 300:
                stopped.wait()

    loop, device_thread, ours = on_socket(device, virtual_clock=True)
    runner = threading.Thread(target=loop.run)
    runner.start()
    found = [loop.drain(64)]
    while sum(map(len, found)) < 300:
        loop.beat()
        found.append(loop.drain(64))
    loop.stop(StopFlag.RAMP_DOWN)
    stopped.set()
    runner.join()
    ours.shutdown(socket.SHUT_RDWR)
    device_thread.join()
    ours.close()
    found.append(loop.drain(10_000))
    rows = np.concatenate(found)
    assert loop.status == "ended"
    assert list(rows["index"]) == list(range(len(rows)))
    assert len(rows) == loop.counters["ticks"]
    assert loop.counters["ring_dropped"] == 0
    assert rows["stop"][-1] == StopFlag.RAMP_DOWN
    assert rows["heartbeat"][-1] > 0


@pytest.mark.parametrize("rows", [0, 1])
def test_a_ring_has_room_for_two_rows_at_least(rows: int) -> None:
    with pytest.raises(ValueError, match=f"ring_rows = {rows}: must be at least 2"):
        Loop(controller(), 0, virtual_clock=True, ring_rows=rows)


@pytest.mark.parametrize("change", [{"version": 2}, {"size": 8}])
def test_a_port_of_another_version_is_refused(change: dict[str, int]) -> None:
    port = ScriptedPort([])
    for name, value in change.items():
        setattr(port.port, name, value)
    with pytest.raises(ValueError, match="port version"):
        Loop(controller(), port.capsule, virtual_clock=True)


def test_a_replay_of_what_the_loop_recorded_gives_the_same_bits() -> None:
    _, loop = scripted([frames(range(0, 500)), frames(range(498, 700))])
    loop.operator(OperatorCommand.TRIM, 1e-4)
    loop.run(600)
    rows = loop.drain()
    assert same_bits(controller().run(rows), rows) == ""


def test_every_channel_is_ticked_on_its_own_sample_and_answered_in_one_frame() -> None:
    port, loop = scripted([several(range(40), 3, c1={"voltage_code": 9}, c2={"current_code": 3})], channels=3)
    assert loop.run(40) == "running"
    rows = loop.drain()
    assert list(rows["channel"]) == [0, 1, 2] * 40
    assert list(rows["index"]) == [index for index in range(40) for _ in range(3)]
    for channel, codes in enumerate(((0, 0), (9, 0), (0, 3))):
        own = rows[rows["channel"] == channel]
        assert {tuple(pair) for pair in own[["voltage_code", "current_code"]].tolist()} == {codes}
        assert same_bits(controller().run(own), own) == "", "each replays alone"
    (answer,) = port.commands(3)
    assert [command["index"] for command in answer] == [39, 39, 39]
    assert loop.counters["ticks"] == 40
    assert same_bits(loop.newest(), rows[-3:]) == ""


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 7))
def test_an_operators_word_reaches_the_channel_it_is_for(to: list[int], cut: int) -> None:
    _, loop = scripted([several(range(40), 3)], channels=3)
    for channel in to:
        loop.operator(OperatorCommand.TRIM, 1e-5, channel)
    loop.operator(OperatorCommand.TRIM, 2e-5)
    loop.run(40)
    rows = loop.drain()
    for channel in range(3):
        own = rows[rows["channel"] == channel]
        expected = [number + 1 for number, other in enumerate(to) if other == channel] + [len(to) + 1]
        assert [int(sequence) for sequence in own["operator_sequence"] if sequence] == expected


def test_there_is_no_word_to_a_channel_that_there_is_not() -> None:
    _, loop = scripted([], channels=2)
    with pytest.raises(ValueError, match="channel 2: must be 0 to 1"):
        loop.operator(OperatorCommand.STOP, 0.0, 2)


TRIP_AT = 200


def tripped(on_trip: OnTrip, stop: int = 0) -> np.ndarray[Any, Any]:
    """Rows of three channels; at TRIP_AT the middle one reads 2 mA too much on its redundant shunt."""
    wrong = {"redundant_code": 9000}
    script = several(range(TRIP_AT), 3), several(range(TRIP_AT, TRIP_AT + 900), 3, c1=wrong)
    _, loop = scripted([*script], channels=3, on_trip=on_trip)
    loop.stop(stop)
    loop.run(TRIP_AT + 900)
    return loop.drain(10_000)


@pytest.mark.parametrize("on_trip", OnTrip)
def test_one_channels_trip_leaves_the_others_in_the_state_that_the_treatment_says(on_trip: OnTrip) -> None:
    rows = tripped(on_trip)
    middle = rows[rows["channel"] == 1]
    assert middle["trip"][-1] == Trip.OVER_CURRENT
    fell = int(middle["index"][np.flatnonzero(middle["trip"])[0]])
    for channel in (0, 2):
        own = rows[rows["channel"] == channel]
        assert not own["trip"].any()
        told = own[own["index"] == fell + 1][0]
        assert not own["stop"][own["index"] <= fell].any() and not own["operator_command"][own["index"] <= fell].any()
        if on_trip == OnTrip.STOP:
            assert (own["stop"][own["index"] > fell] == StopFlag.RAMP_DOWN).all()
            assert own["end_reason"][-1] == EndReason.OPERATOR
        elif on_trip == OnTrip.PAUSE:
            assert (told["operator_command"], own["operator_command"].sum()) == (OperatorCommand.PAUSE, 1)
            assert told["operator_sequence"] > LOOP_SEQUENCE
        else:
            assert not own["stop"].any() and not own["operator_command"].any()
        assert same_bits(controller().run(own), own) == "", "what it was told is among its inputs"
    assert not middle["stop"].any() and not middle["operator_command"].any()


def test_what_one_channel_asks_lowers_no_stop() -> None:
    rows = tripped(OnTrip.STOP, StopFlag.NOW)
    assert (rows["stop"] == StopFlag.NOW).all()


def test_the_loop_ends_when_every_channel_has_ended() -> None:
    _, loop = scripted([several([k], 2) for k in range(2000)], channels=2)
    loop.operator(OperatorCommand.STOP, 0.0, 0)
    loop.run(500)
    assert loop.status == "running", "the other goes on"
    loop.operator(OperatorCommand.STOP, 0.0, 1)
    assert loop.run() == "ended"
    last = loop.drain(10_000)[-2:]
    assert list(last["end_reason"]) == [EndReason.OPERATOR] * 2


def test_channels_without_a_programme_stay_at_zero_with_their_relays_open() -> None:
    port, loop = scripted([several([k], 4) for k in range(700)], channels=2, device_channels=4)
    loop.run(700)
    commands = port.commands(4)
    assert len(commands) == 700
    assert {(one["code"], one["flags"]) for command in commands for one in command[2:]} == {(0, 0)}
    assert [one["flags"] for one in commands[-1]][:2] == [1, 1], "and the others' are closed"


def test_samples_of_another_number_of_channels_are_not_the_devices() -> None:
    _, loop = scripted([several([0], 2) + several([1], 3) + several([2], 2)], channels=2)
    assert loop.run(2) == "running"
    assert list(loop.drain()["index"]) == [0, 0, 2, 2]
    assert loop.counters["foreign"] == 1


def answering(answers: int, delay_s: Callable[[int], float] = lambda _: 0.0) -> Callable[[socket.socket], None]:
    """A device that the host paces: a sample at once, and one for each command."""

    def device(port: socket.socket) -> None:
        reader = FrameReader()
        port.sendall(frames([0]))
        for index in range(1, answers):
            while not reader.feed(data := port.recv(4096)):
                if not data:
                    return
            time.sleep(delay_s(index))
            port.sendall(frames([index], device_time_us=1000 * index))

    return device


def test_a_device_that_only_answers_is_paced_by_the_host() -> None:
    loop, thread, ours = on_socket(answering(300), pacing=Pacing.HOST)
    began = time.monotonic()
    assert loop.run(300) == "running"
    took = time.monotonic() - began
    ours.close()
    thread.join()
    skipped = loop.counters["skipped_periods"]
    assert list(loop.drain()["index"]) == list(range(300))
    assert took >= (299 + skipped) * 1e-3 - 2e-3, "one period each, and none earlier"
    assert loop.histograms["wake_up"].total == 299
    assert loop.counters["sent"] == 299


def test_instants_that_have_passed_are_skipped_by_whole_periods() -> None:
    loop, thread, ours = on_socket(answering(60, lambda index: 0.0155 if index == 30 else 0.0), pacing=Pacing.HOST)
    loop.run(60)
    ours.close()
    thread.join()
    assert loop.counters["skipped_periods"] >= 14
    assert loop.counters["deadlines_missed"] >= 1
    assert loop.counters["missed_by_phase"]["wait"] >= 1
    assert loop.worst["wait"] >= 15e6 and loop.worst["index"] in (30, 31)


DAQ_RECEIVE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int64)
DAQ_SEND = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)


class CalledDevice:
    """A struct Daq whose functions are here: each receive hands over the next list of sample periods."""

    def __init__(self, script: Iterable[list[list[dict[str, int]]] | int], channels: int = 1) -> None:
        self.script, self.channels = iter(script), channels
        self.sent: list[list[int]] = []
        self.daq: Any = struct("Daq")(version=1, size=ctypes.sizeof(struct("Daq")), channels=channels)
        self._callbacks = DAQ_RECEIVE(self._receive), DAQ_SEND(self._send)
        self.daq.receive, self.daq.send = (ctypes.cast(one, ctypes.c_void_p).value for one in self._callbacks)

    def _receive(self, context: int, samples: int, most: int, timeout_us: int) -> int:
        periods = next(self.script, -errno.ENODEV)
        if isinstance(periods, int):
            return periods
        assert len(periods) <= most
        into = (struct("Sample") * (len(periods) * self.channels)).from_address(samples)
        for at, one in enumerate(channel for period in periods for channel in period):
            for name, value in one.items():
                setattr(into[at], name, value)
        return len(periods)

    def _send(self, context: int, commands: int) -> int:
        found = (struct("Command") * self.channels).from_address(commands)
        self.sent.append([one.index for one in found])
        return 0

    @property
    def capsule(self) -> object:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.daq), b"ionto_rt.core.types.Daq", None)


def test_a_device_that_is_called_gives_the_bits_of_one_that_is_spoken_to() -> None:
    periods = [[sample(index), sample(index, voltage_code=4)] for index in range(60)]
    device = CalledDevice([periods[:1], periods[1:1], periods[1:41], periods[41:]], channels=2)
    called = Loop([controller(), controller()], device.capsule, virtual_clock=True)
    assert called.run() == "lost"
    assert device.sent == [[0, 0], [40, 40], [59, 59]]
    _, spoken = scripted([several(range(60), 2, c1={"voltage_code": 4})], channels=2)
    spoken.run(60)
    assert same_bits(called.drain(), spoken.drain()) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": 2}, "of version 2"), ({"size": 8}, "version"), ({"channels": 2}, "2 channels, the loop 1"),
     ({"send": None}, "version")],
)  # fmt: skip
def test_a_called_device_of_another_shape_is_refused(change: dict[str, int | None], words: str) -> None:
    device = CalledDevice([])
    for name, value in change.items():
        setattr(device.daq, name, value)
    with pytest.raises(ValueError, match=words):
        Loop(controller(), device.capsule, virtual_clock=True)


def test_more_samples_than_were_asked_for_end_the_loop() -> None:
    loop = Loop(controller(), CalledDevice([1 << 20]).capsule, virtual_clock=True)
    assert loop.run() == "lost"
    assert loop.error == os.strerror(errno.EINVAL)


def test_a_terminal_that_hangs_up_is_a_loss_and_one_that_says_nothing_is_silent() -> None:
    device, host = os.openpty()
    tty.setraw(host)
    silent = Loop(controller(), host, virtual_clock=False, silence_s=0.15)
    assert silent.run() == "silent"
    lost = Loop(controller(), host, virtual_clock=False)
    os.write(device, frames([0, 1]))
    assert lost.run(2) == "running"
    os.close(device)
    assert lost.run() == "lost"
    assert list(lost.drain()["index"]) == [0, 1]
    os.close(host)


def test_between_two_runs_no_descriptor_of_the_loop_holds_the_port_open() -> None:
    device, host = os.openpty()
    tty.setraw(host)
    loop = Loop(controller(), host, virtual_clock=True)
    os.write(device, frames([0]))
    assert loop.run(1) == "running"
    os.close(host)
    assert os.read(device, 100), "the command"
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.read(device, 100)
    os.close(device)


def test_in_real_time_each_sample_has_its_age_and_each_answer_its_phases() -> None:
    def device(port: socket.socket) -> None:
        reader, answered = FrameReader(), 0
        for index in range(0, 300, 3):
            port.sendall(frames(range(index, index + 3)))
            while answered < index + 3:
                for payload in reader.feed(port.recv(4096)):
                    answered = unpack_command(payload)[0]["index"] + 1

    loop, thread, ours = on_socket(device)
    assert loop.run(300) == "running"
    ours.close()
    thread.join()
    assert loop.histograms["age"].total == 300, "one for each sample"
    assert loop.histograms["answer"].total == loop.counters["sent"] <= 300
    worst = loop.worst
    assert worst.keys() == {"index", "wait", "decode", "tick", "encode", "write"}
    assert all(worst[name] > 0 for name in ("decode", "tick", "encode", "write"))
    assert sum(loop.counters["missed_by_phase"].values()) == loop.counters["deadlines_missed"]
    assert loop.counters["processor_s"] > 0.0


def test_in_a_forked_child_the_loops_port_leads_nowhere() -> None:
    device, host = os.openpty()
    tty.setraw(host)
    loop = Loop(controller(), host, virtual_clock=True)
    child = os.fork()
    if child == 0:
        loop.abandon()
        os.write(host, b"from the child")
        os._exit(0 if loop.run(1) == "lost" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.write(device, frames([0]))
    assert loop.run(1) == "running", "the parent's goes on"
    assert FrameReader().feed(os.read(device, 100)), "and nothing of the child is in between"
    os.close(host)
    os.close(device)
