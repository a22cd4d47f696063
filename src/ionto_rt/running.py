"""The sessions that run in this process, and what becomes of them when the process forks or ends.

A forked child has a copy of everything but of the threads that keep a session safe, so nothing of it may reach the
device or the record from there: the descriptors are replaced by /dev/null. At the interpreter's end every session ramps
down and is waited for, within a bound.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ionto_rt.codes import StopFlag
from ionto_rt.core.loop import Loop
from ionto_rt.errors import IontoError

OFF_S = 1.0
"""What switching off at once may take at the interpreter's end, when a ramp down has not ended in its time."""


class ElsewhereError(IontoError):
    """A forked child tried to go on with its parent's session."""


class Running:
    """A session that runs. `over` is set when its output is off and its record written."""

    def __init__(self, loop: Loop, descriptors: Callable[[], Sequence[int]], most_s: float) -> None:
        self.loop = loop
        self.descriptors = descriptors
        self.most_s = most_s
        self.over = threading.Event()
        self.elsewhere = False

    def check(self) -> None:
        """ElsewhereError in a forked child: the session goes on in the process that began it."""
        if self.elsewhere:
            raise ElsewhereError("a forked process cannot go on with a session: it goes on in the parent")


_running: set[Running] = set()


@contextmanager
def running(loop: Loop, descriptors: Callable[[], Sequence[int]], most_s: float) -> Iterator[Running]:
    """Enter a session for as long as its loop may run.

    `descriptors` are those of the record; `most_s` is what ramping down and writing the record may take.
    """
    entry = Running(loop, descriptors, most_s)
    _running.add(entry)
    try:
        yield entry
    finally:
        _running.discard(entry)
        entry.over.set()


def program_is_ending() -> bool:
    """True once the main thread has ended: whoever started the session is not there any more."""
    return not threading.main_thread().is_alive()


def _end_all() -> None:
    entries = list(_running)
    for entry in entries:
        entry.loop.stop(StopFlag.RAMP_DOWN)
    for entry in entries:
        if not entry.over.wait(entry.most_s):
            entry.loop.stop(StopFlag.NOW)
    for entry in entries:
        entry.over.wait(OFF_S)


def _leave_to_parent() -> None:
    if not _running:
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for entry in _running:
        entry.elsewhere = True
        entry.loop.abandon()
        for fd in entry.descriptors():
            os.dup2(null, fd, inheritable=False)
    os.close(null)
    _running.clear()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_leave_to_parent)
