"""Whether the host kept up while a test in real time ran: such a test judges delays, and a host that stands still fails
it whatever the code does.
"""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from ionto_rt.configuration import FIT

STALL_S = FIT.late_pause_us * 1e-6
"""A thread that wakes so much late was not alone: a fit host's data would have been too old."""
PACE_S = 0.002
LATE = {"LOST_SAMPLES", "STALE_DATA", "DEADLINES", "late-commands"}
"""Trips and alarms by which a record says that its host was late."""


class HostWatch:
    """Watches while it is entered; `was_late` then says what it saw, or what the records in the test's tmp_path say.

    fixtures: those of the test, by name; looked at when it is over.
    """

    def __init__(self, fixtures: Mapping[str, object]) -> None:
        self.was_late = False
        self._fixtures = fixtures
        self._longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "HostWatch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        folder = self._fixtures.get("tmp_path")
        self.was_late = self._longest_s >= STALL_S or (isinstance(folder, Path) and recorded_late(folder))

    def _watch(self) -> None:
        due_s = time.monotonic() + PACE_S
        while not self._over.wait(max(0.0, due_s - time.monotonic())):
            self._longest_s = max(self._longest_s, time.monotonic() - due_s)
            due_s = time.monotonic() + PACE_S


def recorded_late(folder: Path) -> bool:
    """Whether any record below says that its host was late; what tests damaged says nothing."""
    for log in folder.rglob("events.jsonl"):
        for line in log.read_bytes().splitlines():
            try:
                fields = json.loads(line)["fields"]
                late = not LATE.isdisjoint({fields.get("name"), fields.get("alarm")})
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if late:
                return True
    return False
