"""The loop: every sample ticked once and in order, one answer for what came together, and an end for every silence."""

import contextlib
import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.codes import OperatorCommand, StopFlag
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.core.wire import FrameReader, encode_frame, pack_sample, unpack_command
from support import TOKEN, changed, planned, same_bits, struct

READ = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
WRITE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
ERROR_FRAME = bytes([0xFF, 7, 5, 0, 0, 0, 0, 0])


def controller(**guard: float) -> Controller:
    config, plan = planned()
    return Controller(changed(config, guard=guard), plan.segments)


def sample(index: int, **changes: int) -> dict[str, int]:
    """A sample of a device at rest."""
    at_rest = dict.fromkeys(
        ("status", "current_code", "redundant_code", "voltage_code", "applied_code", "charge_codes"), 0
    )
    header = {
        "index": index,
        "device_time_us": 1000 * index,
        "applied_index": max(0, index - 2),
        "nonce": index & 0xFFFF,
    }
    return at_rest | header | changes


def frames(indices: Iterable[int], **changes: int) -> bytes:
    return b"".join(encode_frame(pack_sample([sample(index, **changes)])) for index in indices)


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
        return [unpack_command(payload)[0]["index"] for one in self.written for payload in FrameReader().feed(one)]


def scripted(script: Iterable[bytes | int], **options: Any) -> tuple[ScriptedPort, Loop]:
    port_options = {name: options.pop(name) for name in ("at_end", "write_returns") if name in options}
    port = ScriptedPort(script, **port_options)
    return port, Loop(controller(), port.capsule, virtual_clock=True, **options)


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


def test_the_heartbeat_is_what_the_orchestrator_last_said() -> None:
    _, loop = scripted([frames([k]) for k in range(4)])
    for beats in (0, 1, 2, 0):
        for _ in range(beats):
            loop.beat()
        loop.run(1)
    assert list(loop.drain()["heartbeat"]) == [0, 1, 3, 3]


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


@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
def test_a_ring_has_a_power_of_two_rows(rows: int) -> None:
    with pytest.raises(ValueError, match=f"ring_rows = {rows}: must be a power of two"):
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
