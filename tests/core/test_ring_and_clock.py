"""Ring, latency histogram and lateness: what the loop's thread leaves behind for others to read."""

import ctypes
import threading
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ionto_rt.core.clock import LatencyHistogram, bucket_ends
from support import function, struct

pytestmark = pytest.mark.real_time

PUSH = ("ring", "ring_push", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
TAKE = ("ring", "ring_take", ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
CAPACITY = 8


class RowRing:
    """A ring of 64-bit numbers, below its users."""

    def __init__(self, capacity: int) -> None:
        self.ring: Any = struct("Ring")()
        open_ring = function("ring", "ring_open", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64)
        assert open_ring(ctypes.byref(self.ring), 8, capacity) == 0
        self._push, self._take = function(*PUSH), function(*TAKE)

    def push(self, number: int) -> bool:
        return bool(self._push(ctypes.byref(self.ring), ctypes.byref(ctypes.c_uint64(number))))

    def take(self, most: int) -> list[int]:
        rows = (ctypes.c_uint64 * max(1, most))()
        return list(rows[: self._take(ctypes.byref(self.ring), rows, most)])

    def close(self) -> None:
        close = function("ring", "ring_close", None, ctypes.c_void_p)
        close(ctypes.byref(self.ring))
        close(ctypes.byref(self.ring))


class RingMachine(RuleBasedStateMachine):
    """A ring is a queue of bounded length that counts what it refused."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = RowRing(CAPACITY)
        self.model: deque[int] = deque()
        self.pushed = self.dropped = self.highest = 0

    @rule(count=st.integers(1, 2 * CAPACITY))
    def push(self, count: int) -> None:
        for _ in range(count):
            self.pushed += 1
            room = len(self.model) < CAPACITY
            assert self.ring.push(self.pushed) == room
            if room:
                self.model.append(self.pushed)
            else:
                self.dropped += 1
            self.highest = max(self.highest, len(self.model))

    @rule(most=st.integers(0, 2 * CAPACITY))
    def take(self, most: int) -> None:
        wanted = [self.model.popleft() for _ in range(min(most, len(self.model)))]
        assert self.ring.take(most) == wanted

    @precondition(lambda self: self.model)
    @rule()
    def take_one(self) -> None:
        assert self.ring.take(1) == [self.model.popleft()]

    @invariant()
    def counts(self) -> None:
        ring = self.ring.ring
        assert ring.head - ring.tail == len(self.model)
        assert (ring.dropped, ring.high_water) == (self.dropped, self.highest)

    def teardown(self) -> None:
        self.ring.close()


RingMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestRing = RingMachine.TestCase


def test_one_thread_pushes_while_another_takes_and_nothing_is_lost_or_turned_around() -> None:
    """The foreign calls release the interpreter's lock, so both ends do run at once."""
    ring, total, taken = RowRing(64), 30_000, []

    def producer() -> None:
        number = 0
        while number < total:
            number += ring.push(number)

    thread = threading.Thread(target=producer)
    thread.start()
    while len(taken) < total:
        taken += ring.take(50)
    thread.join()
    assert taken == list(range(total))
    ring.close()


def test_a_ring_that_cannot_be_mapped_says_why() -> None:
    open_ring = function("ring", "ring_open", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64)
    ring = struct("Ring")()
    assert open_ring(ctypes.byref(ring), 1 << 20, 1 << 40) < 0
    function("ring", "ring_close", None, ctypes.c_void_p)(ctypes.byref(ring))


@given(st.lists(st.integers(0, 1 << 34), min_size=1, max_size=200), st.floats(0.0, 1.0))
def test_a_percentile_is_that_of_the_sorted_times_to_1_percent(times: list[int], share: float) -> None:
    histogram = LatencyHistogram()
    for time_ns in times:
        histogram.add(time_ns)
    rank = max(1, -int(-share * len(times) // 1))
    exact = sorted(times)[min(rank, len(times)) - 1]
    found = histogram.percentile(share)
    assert found >= min(exact, (1 << 32) - 1)
    assert found <= max(exact * (1 + 2**-7), exact + 1) or exact > 1 << 32


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=50))
def test_the_last_percentile_is_the_longest_time_that_fits(times: list[int]) -> None:
    histogram = LatencyHistogram()
    for time_ns in times:
        histogram.add(time_ns)
    assert histogram.percentile(1.0) == min(max(times), (1 << 32) - 1) if max(times) < 1 << 32 else True
    assert histogram.percentile(1.0) <= max(times)


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert LatencyHistogram().percentile(0.5) == 0


@given(st.lists(st.integers(1, 1 << 30), min_size=1, max_size=50), st.integers(1 << 20, 1 << 28))
def test_a_stall_counts_for_every_time_that_it_kept_from_being_taken(times: list[int], expected: int) -> None:
    histogram, by_hand = LatencyHistogram(), LatencyHistogram()
    for time_ns in times:
        histogram.add(time_ns, expected)
        for missed in range(time_ns, 0, -expected):
            if missed == time_ns or missed >= expected:
                by_hand.add(missed)
    assert np.array_equal(histogram.counts, by_hand.counts)
    assert histogram.total == by_hand.total == histogram.counts.sum()
    assert histogram.highest_ns == max(times)


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=50), st.lists(st.integers(0, (1 << 32) - 1), max_size=50))
def test_folded_histograms_are_that_of_all_times(first: list[int], second: list[int]) -> None:
    histograms = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    for histogram, times in zip(histograms, (first, second, first + second), strict=True):
        for time_ns in times:
            histogram.add(time_ns)
    histograms[0].fold(histograms[1])
    assert np.array_equal(histograms[0].counts, histograms[2].counts)
    assert histograms[0].highest_ns == histograms[2].highest_ns and histograms[0].mean_ns == histograms[2].mean_ns


def test_the_end_of_a_bucket_lies_in_it() -> None:
    for bucket, end in enumerate(bucket_ends().tolist()):
        histogram = LatencyHistogram()
        histogram.add(end)
        assert histogram.counts[bucket] == 1


class Lateness:
    def __init__(self) -> None:
        self.state: Any = struct("Lateness")()
        self._step = function(
            "clock", "lateness_us", ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        )

    def __call__(self, device_us: int, host_us: int) -> int:
        return int(self._step(ctypes.byref(self.state), device_us % 2**32, host_us))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_lateness_is_the_delay_beyond_the_best_one_seen(start: int, delays: list[int]) -> None:
    """But for the drift that crystals are allowed, 200 ppm: 1 us each 5 ms. Samples that queued come at one moment."""
    lateness = Lateness()
    host_us, best = 50_000_000, 1 << 62
    for k, delay in enumerate(delays):
        host_us = max(host_us, 50_000_000 + 1000 * k + delay)
        age = host_us - 50_000_000 - 1000 * k
        best = min(best, age)
        late = lateness(start + 1000 * k, host_us)
        assert age - best - (host_us - 50_000_000) // 5000 - 1 <= late <= age - best


@pytest.mark.parametrize("ppm", [-150, 150])
def test_a_clock_within_its_drift_is_never_late(ppm: int) -> None:
    lateness = Lateness()
    late = [lateness(1000 * k, 10_000_000 + 1000 * k + 1000 * k * ppm // 1_000_000) for k in range(60_000)]
    assert max(late) <= 2


def test_a_suspended_host_finds_its_sample_as_old_as_it_is() -> None:
    lateness = Lateness()
    assert [lateness(1000 * k, 1000 + 1000 * k) for k in range(100)] == [0] * 100
    assert lateness(100_000, 101_000 + 5_000_000_000) == 2**32 - 1
    assert lateness(101_000, 102_000 + 70_000) <= 70_000
