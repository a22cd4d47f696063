"""The event log: chained, synced, and honest about what is broken."""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.events import GENESIS, RECOVERED, EventError, EventLog, check_events, read_events

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


def write_log(path: Path, kinds: list[str]) -> EventLog:
    with EventLog(path) as log:
        for tick, kind in enumerate(kinds):
            log.write(kind, tick, value=tick / 3, text='µA "quoted"\nline')
    return log


def test_an_event_reads_back_as_it_was_written(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl") as log:
        voltage = np.float64(0.1)
        log.write("trip", 1234, safety=True, cause="open lead", voltage_v=voltage, count=np.int32(3), path=tmp_path)
        log.write("session-begun", None)
    chain = read_events(tmp_path / "e.jsonl", head=log.head)
    assert chain.intact
    first, second = chain.events
    assert (first.seq, first.tick, first.kind) == (0, 1234, "trip")
    assert first.fields == {"cause": "open lead", "voltage_v": 0.1, "count": 3, "path": str(tmp_path)}
    assert (second.seq, second.tick) == (1, None)
    assert json.loads((tmp_path / "e.jsonl").read_text().splitlines()[0])["prev"] == GENESIS


def test_a_value_that_is_not_finite_does_not_keep_a_safety_event_out_of_the_log(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl") as log:
        log.write("trip", 7, safety=True, measured_a=math.nan, terms=[1.0, math.inf])
    assert read_events(tmp_path / "e.jsonl").events[0].fields == {"measured_a": None, "terms": [1.0, None]}


def test_one_changed_byte_anywhere_is_located_to_its_line(tmp_path: Path) -> None:
    log = write_log(tmp_path / "e.jsonl", ["session-begun", "phase", "trip", "stop", "session_ended"])
    data = (tmp_path / "e.jsonl").read_bytes()
    assert check_events(data, log.head).intact
    for position in range(len(data)):
        for flip in (0x01, 0x80):
            changed = bytearray(data)
            changed[position] ^= flip
            chain = check_events(bytes(changed), log.head)
            line = data[:position].count(b"\n") + 1
            assert chain.broken_line == line, (position, flip, chain)
            assert len(chain.events) == line - 1
    assert check_events(data[:-1], log.head).intact


def test_a_missing_line_is_found(tmp_path: Path) -> None:
    log = write_log(tmp_path / "e.jsonl", ["a", "b", "c", "d"])
    lines = (tmp_path / "e.jsonl").read_bytes().splitlines(keepends=True)
    for absent in range(4):
        chain = check_events(b"".join(line for number, line in enumerate(lines) if number != absent), log.head)
        assert not chain.intact


def test_a_log_cut_at_any_byte_gives_the_whole_events_before_the_cut(tmp_path: Path) -> None:
    write_log(tmp_path / "e.jsonl", ["session-begun", "phase", "trip"])
    data = (tmp_path / "e.jsonl").read_bytes()
    ends = [position for position, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        chain = check_events(data[:cut])
        assert chain.intact
        assert len(chain.events) == sum(1 for end in ends if end <= cut)
        whole = max((end + 1 for end in ends if end < cut), default=0)
        assert chain.torn_tail == (b"" if cut in ends else data[whole:cut])


def test_a_recovered_log_keeps_the_half_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_log(path, ["session-begun", "phase", "trip"])
    data = path.read_bytes()
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(data)):
        path.write_bytes(data[:cut])
        with EventLog(path) as log:
            log.write(RECOVERED, 99, safety=True, torn_bytes=cut - start)
            log.write("note", None)
        chain = read_events(path, log.head)
        assert chain.intact
        kinds = ["session-begun", "phase"] + (["trip"] if cut == len(data) - 1 else []) + [RECOVERED, "note"]
        assert [event.kind for event in chain.events] == kinds
        assert [event.seq for event in chain.events] == list(range(len(kinds)))
        assert path.read_bytes().startswith(data[:cut])


def test_a_broken_log_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_log(path, ["a", "b", "c"])
    path.write_bytes(path.read_bytes().replace(b'"kind":"b"', b'"kind":"x"'))
    with pytest.raises(EventError, match="line 2"):
        EventLog(path)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.text(min_size=1, max_size=5).filter(lambda name: name not in ("self", "kind", "tick", "safety")),
            st.recursive(
                SCALARS,
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=5,
            ),
            max_size=4,
        ),
        max_size=5,
    )
)
def test_any_fields_read_back_exactly(contents: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.jsonl"
        with EventLog(path) as log:
            for fields in contents:
                log.write("note", None, **fields)
        assert [event.fields for event in read_events(path, log.head).events] == contents


def test_events_written_before_a_kill_are_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from ionto_rt.events import EventLog\n"
        f"log = EventLog(Path({str(path)!r}))\n"
        "for tick in range(50): log.write('phase', tick)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    chain = read_events(path)
    assert chain.intact and [event.tick for event in chain.events] == list(range(50))
