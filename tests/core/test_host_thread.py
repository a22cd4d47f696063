"""The loop's thread: what it asks the kernel for, what came of it, and what it used up."""

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ionto_rt.core.host_thread import prepare, usage
from support import as_dict, function, struct

pytestmark = pytest.mark.real_time


def in_a_thread(act: Callable[[], Any]) -> Any:
    """What `act` returns in a thread of its own, which takes what it was given with it when it ends."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    assert found, "the thread failed"
    return found[0]


def test_what_a_thread_was_given_is_what_the_kernel_says() -> None:
    def act() -> tuple[dict[str, str], int, int, set[int]]:
        outcome = prepare(41, min(os.sched_getaffinity(0)))
        return outcome, os.sched_getscheduler(0), os.sched_getparam(0).sched_priority, os.sched_getaffinity(0)

    before = os.sched_getscheduler(0), os.sched_getaffinity(0)
    outcome, policy, priority, cpus = in_a_thread(act)
    assert outcome.keys() == {"priority", "affinity", "timer_slack", "stack"}
    assert outcome["affinity"] == f"cpu {min(before[1])}" and cpus == {min(before[1])}
    if policy == os.SCHED_FIFO:
        assert (outcome["priority"], priority) == ("SCHED_FIFO 41", 41)
    else:
        assert outcome["priority"].startswith("ordinary (")
    assert int(outcome["timer_slack"].removesuffix(" ns")) <= 1
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == before


def test_what_is_not_granted_is_said_and_raises_nothing() -> None:
    outcome = in_a_thread(lambda: prepare(priority=100, cpu=1 << 20, slack_ns=0, stack_bytes=0))
    assert outcome["priority"] == "ordinary (Invalid argument)"
    assert outcome["affinity"].startswith("not pinned (")
    assert outcome["stack"] == "0 KiB touched"
    assert in_a_thread(lambda: prepare(None))["priority"] == "ordinary (as asked)"
    assert in_a_thread(lambda: prepare(cpu=-1))["affinity"].startswith("not pinned (")


def test_a_stack_is_touched_as_far_as_it_goes_and_no_further() -> None:
    outcomes = in_a_thread(lambda: [prepare(stack_bytes=1 << 18), prepare(stack_bytes=1 << 40)])
    assert outcomes[0]["stack"] == "256 KiB touched"
    assert 256 < int(outcomes[1]["stack"].split()[0]) < 1 << 20


def test_a_touched_stack_faults_no_more() -> None:
    def act() -> list[int]:
        faults = []
        for _ in range(2):
            before = usage()["minor_faults"]
            prepare(stack_bytes=1 << 20)
            faults.append(usage()["minor_faults"] - before)
        return faults

    first, second = in_a_thread(act)
    assert first > 128 and second < 16


def test_faults_and_time_are_those_of_the_thread_that_asks() -> None:
    def act() -> tuple[Any, Any]:
        before = usage()
        with mmap.mmap(-1, 64 * mmap.PAGESIZE) as memory:
            for page in range(64):
                memory[page * mmap.PAGESIZE] = 1
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return before, usage()

    ours = usage()
    before, after = in_a_thread(act)
    assert after["minor_faults"] - before["minor_faults"] >= 1
    assert 0.02 <= after["processor_s"] - before["processor_s"] < 0.1
    assert usage()["processor_s"] - ours["processor_s"] < 0.02


def test_waiting_is_a_voluntary_switch() -> None:
    def act() -> int:
        before = usage()["voluntary_switches"]
        threading.Event().wait(0.002)
        return int(usage()["voluntary_switches"] - before)

    assert in_a_thread(act) >= 1


@pytest.mark.parametrize("name", ["minor_faults", "major_faults", "voluntary_switches", "involuntary_switches"])
def test_the_loop_reads_the_same_below_python(name: str) -> None:
    seen: Any = struct("ThreadUsage")()
    before = usage()
    function("host_thread", "thread_usage", None, ctypes.c_void_p)(ctypes.byref(seen))
    after = usage()
    assert before[name] <= as_dict(seen)[name] <= after[name]  # type: ignore[literal-required]
    assert before["processor_s"] <= seen.processor_ns * 1e-9 <= after["processor_s"]
