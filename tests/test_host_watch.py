"""What decides whether a test in real time is judged: a host that stood still, by the watch itself or by a record."""

import json
import sys
import time
from pathlib import Path

import pytest

from host_watch import LATE, STALL_S, HostWatch, recorded_late


def test_a_stall_of_this_process_is_seen() -> None:
    """Of the interpreter, which no other thread gets meanwhile."""
    interval_s = sys.getswitchinterval()
    with HostWatch({}) as watch:
        try:
            sys.setswitchinterval(60.0)
            until_s = time.monotonic() + 3.0 * STALL_S
            while time.monotonic() < until_s:
                pass
        finally:
            sys.setswitchinterval(interval_s)
    assert watch.was_late


@pytest.mark.parametrize("name", sorted(LATE))
@pytest.mark.parametrize("key", ["name", "alarm"])
def test_a_record_tells_of_a_late_host(tmp_path: Path, key: str, name: str) -> None:
    folder = tmp_path / "sessions" / "one"
    folder.mkdir(parents=True)
    log = folder / "events.jsonl"
    log.write_text(json.dumps({"kind": "trip", "fields": {key: "OPEN_LEAD"}}) + '\nnot json\n[]\n{"fields": 3}\n')
    assert not recorded_late(tmp_path)
    with log.open("a") as file:
        file.write(json.dumps({"kind": "trip", "fields": {key: name}}) + "\n")
    assert recorded_late(tmp_path)
    with HostWatch({"tmp_path": tmp_path}) as watch:
        pass
    assert watch.was_late
