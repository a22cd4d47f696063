"""The record: what was appended is what is read, at once, after a cut, and by other people's tools."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.record import (
    RECEIPT,
    TELEMETRY,
    Record,
    RecordError,
    SessionFolder,
    Telemetry,
    TelemetryWriter,
    is_running,
    list_sessions,
    slug,
)
from record_support import (
    TICK,
    TREATMENT,
    channel_facts,
    finished_channels,
    make_session,
    random_rows,
    receipt_of,
    same_rows,
    session_facts,
    steady_rows,
    ticked,
)

SMALL = np.dtype([("index", "<u4"), ("current_a", "<f8"), ("status", "<u2")])


def small_rows(count: int, first: int = 0) -> np.ndarray[Any, np.dtype[Any]]:
    rows = np.zeros(count, SMALL)
    rows["index"] = np.arange(first, first + count)
    rows["current_a"] = np.sqrt(rows["index"])
    rows["status"] = rows["index"] % 7
    return rows


END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def same_small(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    return len(left) == len(right) and all(np.array_equal(left[name], right[name]) for name in SMALL.names or ())


def write(path: Path, rows: np.ndarray[Any, Any], rate_hz: float, sizes: list[int] | None = None) -> TelemetryWriter:
    start = 0
    with TelemetryWriter(path, rows.dtype, {"session_id": "x"}, rate_hz) as writer:
        for size in sizes or [len(rows)]:
            writer.append(rows[start : start + size])
            start += size
        writer.append(rows[start:])
    return writer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=12), st.sampled_from([10.0, 250.0, 1000.0, 10_000.0]), st.integers(0, 99))
def test_any_sequence_of_appends_reads_back_as_their_concatenation(sizes: list[int], rate_hz: float, seed: int) -> None:
    rows = random_rows(sum(sizes), seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.arrows"
        writer = write(path, rows, rate_hz, sizes)
        found = Telemetry(path)
        assert found.complete and found.dropped_bytes == 0 and len(found) == len(rows) == writer.rows
        assert same_rows(found.rows(), rows)
        assert all(found[name].tobytes() == rows[name].tobytes() for name in TICK.names or ())
        assert same_rows(np.concatenate([np.empty(0, found.dtype), *found.batches()]), rows)
        last = found.last()
        assert (last is None) == (len(rows) == 0)
        if last is not None:
            assert all(last[name].tobytes() == rows[-1][name].tobytes() for name in TICK.names or ())
        assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_batch_is_a_tenth_of_a_second_and_reaches_the_file_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    writer = TelemetryWriter(path, TICK, {}, 1000.0)
    rows = random_rows(250)
    seen = []
    for row in range(250):
        writer.append(rows[row : row + 1])
        seen.append(len(Telemetry(path)))
    assert seen == [0] * 99 + [100] * 100 + [200] * 51
    writer.flush()
    assert len(Telemetry(path)) == 250
    writer.append(rows[:100])
    writer.close()
    assert same_rows(Telemetry(path).rows(), np.concatenate([rows, rows[:100]]))


def test_the_rows_of_several_channels_are_told_apart(tmp_path: Path) -> None:
    rows = {channel: random_rows(200, channel) for channel in (0, 1)}
    for channel, own in rows.items():
        own["channel"] = channel
    with TelemetryWriter(tmp_path / "t.arrows", TICK, {}, 1000.0, channels=2) as writer:
        for start in range(0, 200, 40):
            for own in rows.values():
                writer.append(own[start : start + 40])
    found = Telemetry(tmp_path / "t.arrows").rows()
    for channel, own in rows.items():
        assert same_rows(found[found["channel"] == channel], own)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 32), st.lists(st.integers(0, 300), max_size=8), st.booleans(), st.integers(0, 99))
def test_one_channel_s_rows_are_those_of_its_number(channels: int, sizes: list[int], flush: bool, seed: int) -> None:
    """However the rows were appended, and where the order of the channels breaks off too."""
    rows = random_rows(sum(sizes), seed)
    rows["channel"] = np.arange(len(rows)) % channels
    rows["channel"][len(rows) // 2 :] = np.roll(rows["channel"][len(rows) // 2 :], seed)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "t.arrows", 0
        with TelemetryWriter(path, TICK, {}, 100.0, channels=channels) as writer:
            for size in sizes:
                writer.append(rows[start : start + size])
                start += size
                if flush:
                    writer.flush()
        found = Telemetry(path)
        for channel in (*range(min(channels, 3)), channels - 1, channels):
            own = rows[rows["channel"] == channel]
            view, last = found.of_channel(channel), found.last(channel)
            assert len(view) == len(own)
            assert all(view[name].tobytes() == own[name].tobytes() for name in ("index", "voltage_v", "channel"))
            assert (last is None) == (len(own) == 0)
            assert last is None or last["current_a"].tobytes() == own["current_a"][-1].tobytes()
        if len(rows):
            some = np.concatenate(list(found.batches(("channel", "index"))))
            assert some.dtype.names == ("channel", "index")
            assert np.array_equal(some["index"], rows["index"]) and np.array_equal(some["channel"], rows["channel"])


def test_a_batch_holds_the_ticks_of_all_channels(tmp_path: Path) -> None:
    dtype = np.dtype([*SMALL.descr, ("channel", "u1")])
    rows = np.zeros(30, dtype)
    rows["channel"] = np.arange(30) % 3
    with TelemetryWriter(tmp_path / "t.arrows", dtype, {}, 10.0, channels=3) as writer:
        writer.append(rows)
    assert Telemetry(tmp_path / "t.arrows").names == ("index", "current_a", "status", "channel")
    assert np.array_equal(Telemetry(tmp_path / "t.arrows")["channel"], rows["channel"])


def test_a_record_cut_at_any_byte_of_its_last_batches_reads_as_a_prefix_never_a_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    rows = random_rows(37)
    ends = {}
    writer = TelemetryWriter(path, TICK, {}, 100.0)
    for first in range(0, 40, 10):
        writer.append(rows[first : first + 10])
        writer.flush()
        ends[min(first + 10, 37)] = path.stat().st_size - len(END)
    writer.close()
    data = path.read_bytes()
    with path.open("r+b") as file:
        for cut in range(len(data), ends[10] - 1, -1):
            file.truncate(cut)
            found = Telemetry(path)
            expected = max(count for count, end in ends.items() if end <= cut)
            assert same_rows(found.rows(), rows[:expected])
            assert found.complete == (cut == len(data))
            assert found.dropped_bytes == (0 if found.complete else cut - ends[expected])


def test_a_writer_stopped_between_any_two_bytes_leaves_a_stream_that_every_reader_takes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    polars = pytest.importorskip("polars")
    before, after = tmp_path / "before.arrows", tmp_path / "after.arrows"
    rows = small_rows(20)
    write(before, rows[:10], 100.0)
    write(after, rows, 100.0)
    old, new = before.read_bytes(), after.read_bytes()
    begun = old + new[len(old) :]
    for written in range(len(old), len(new) + 1):
        before.write_bytes(begun[:written])
        found = Telemetry(before)
        assert same_small(found.rows(), rows[:10]) and found.complete
        assert found.dropped_bytes == written - len(old)
    assert pyarrow.ipc.open_stream(before).read_all().num_rows == 10
    assert polars.read_ipc_stream(before).height == 10
    before.write_bytes(old[:-4] + new[len(old) - 4 :])
    assert same_small(Telemetry(before).rows(), rows)


def test_zeros_or_noise_after_the_last_whole_batch_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    rows = small_rows(40)
    write(path, rows, 100.0)
    whole = path.read_bytes().removesuffix(END)
    noise = np.random.default_rng(3).integers(0, 256, 5000, np.uint8).tobytes()
    for tail in (bytes(4096), noise, b"\xff\xff\xff\xff" + noise, b"\xff\xff\xff\xff\x40\x00\x00\x00" + noise):
        path.write_bytes(whole + tail)
        found = Telemetry(path)
        assert same_small(found.rows(), rows)
        assert found.dropped_bytes == len(tail) and not found.complete


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff\xff", bytes(100)])
def test_a_file_cut_within_its_schema_is_an_empty_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.arrows").write_bytes(content)
    found = Telemetry(tmp_path / "t.arrows")
    assert len(found) == 0 and found.last() is None and found.dropped_bytes == len(content)


def test_other_readers_see_the_same_rows_and_units(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    polars = pytest.importorskip("polars")
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "t.arrows"
    rows = steady_rows(600)
    write(path, rows, 1000.0, [333, 17])
    table = pyarrow.ipc.open_stream(path).read_all()
    table.validate(full=True)
    frame = polars.read_ipc_stream(path)
    for name in TICK.names or ():
        assert table[name].to_numpy().tobytes() == rows[name].tobytes()
        assert frame[name].to_numpy().tobytes() == rows[name].tobytes()
    assert table.schema.metadata == {b"session_id": b"x"}
    assert table.schema.field("current_code").metadata == {b"unit": b"code"}
    assert str(table.schema.field("channel").type) == "uint8"
    (found,) = duckdb.from_arrow(pyarrow.ipc.open_stream(path)).aggregate("sum(current_code)").fetchall()
    assert found == (int(rows["current_code"].astype(np.int64).sum()),)


def test_a_writer_killed_at_any_moment_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path\n"
        "from test_record import SMALL, small_rows\n"
        "from ionto_rt.record import TelemetryWriter\n"
        f"writer = TelemetryWriter(Path({str(path)!r}), SMALL, {{}}, 1000.0)\n"
        "first = 0\n"
        "while True:\n"
        "    writer.append(small_rows(130, first)); first += 130\n"
        "    if first == 13_000: print(flush=True)\n"
    )
    here = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=here) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    found = Telemetry(path)
    assert found.complete and len(found) >= 12_900
    assert same_small(found.rows(), small_rows(len(found)))


def test_memory_of_a_writer_does_not_grow(tmp_path: Path) -> None:
    rows = random_rows(250)
    with TelemetryWriter(tmp_path / "t.arrows", TICK, {}, 1000.0) as writer:
        for _ in range(40):
            writer.append(rows)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(400):
            writer.append(rows)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 4096


def test_a_full_disk_is_told_and_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    code = (
        "import resource, signal, sys; sys.path.insert(0, 'tests'); from pathlib import Path\n"
        "from test_record import SMALL, small_rows\n"
        "from ionto_rt.record import TelemetryWriter, RecordError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"writer = TelemetryWriter(Path({str(path)!r}), SMALL, {{}}, 1000.0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        "    for first in range(0, 10_000, 100): writer.append(small_rows(100, first))\n"
        "except RecordError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )
    assert "t.arrows: telemetry not written" in done.stdout
    found = Telemetry(path)
    assert found.complete and found.dropped_bytes == 0 and len(found) >= 300
    assert same_small(found.rows(), small_rows(len(found)))


def test_rows_of_another_type_are_refused(tmp_path: Path) -> None:
    with (
        TelemetryWriter(tmp_path / "t.arrows", SMALL, {}, 1000.0) as writer,
        pytest.raises(RecordError, match="another type"),
    ):
        writer.append(np.zeros(3, TICK))
    with pytest.raises(RecordError, match=r"column a has type >f8"):
        TelemetryWriter(tmp_path / "u.arrows", np.dtype([("a", ">f8")]), {}, 1000.0)
    with pytest.raises(RecordError, match="cannot be created"):
        TelemetryWriter(tmp_path / "t.arrows", SMALL, {}, 1000.0)


def test_a_session_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    rows = steady_rows(3000)
    folder = make_session(tmp_path, rows, limits={"current": 0.1 + 0.2}, seed=2**63)
    receipt = folder.finish(receipt_of(rows, odd=float("nan")))
    record = Record.open(folder.path)
    assert record.treatment_source == TREATMENT
    assert record.session["limits"] == {"current": 0.1 + 0.2} and record.session["seed"] == 2**63
    assert record.session["channels"][0]["controller"]["calibration"]["current_lsb_a"] == 4e-3 / 30000
    assert record.receipt == receipt == json.loads((folder.path / RECEIPT).read_text())
    assert receipt["odd"] is None and receipt["record"] == str(folder.path)
    assert receipt["telemetry_sha256"] == hashlib.sha256((folder.path / TELEMETRY).read_bytes()).hexdigest()
    assert [event.kind for event in record.events().events] == ["record-begun", "session-begun"]
    assert record.events().intact
    telemetry = record.telemetry()
    assert same_rows(telemetry.rows(), rows) and telemetry.metadata["session_id"] == folder.session_id


def test_each_channel_tells_its_own(tmp_path: Path) -> None:
    channels = ticked(4)
    record = Record.open(finished_channels(tmp_path, channels))
    assert [channel.name for channel in record.channels] == ["site 0", "site 1", "site 2", "site 3"]
    assert record.tick_s == 1e-3
    for channel in record.channels:
        last = channels.of(channel.number)[-1]
        counted = channel.counted()
        assert counted.net_c == pytest.approx(float(last["delivered_c"]), rel=1e-12)
        assert (counted.absolute_codes, counted.tick) == (int(last["absolute_codes"]), int(last["index"]))
        assert channel.prescribed_c == channels.facts[channel.number]["prescribed_c"]
        assert channel.receipt is not None and channel.receipt["name"] == channel.name
        assert channel.unseen_c == pytest.approx(channel.max_current_a * 2.2 + channel.max_current_a**2 / 2e-3)
    (row,) = list_sessions(tmp_path)
    assert (row.channels, row.site) == (4, "place 0, place 1, place 2")
    assert row.dose_prescribed_mamin == pytest.approx(sum(facts["prescribed_c"] for facts in channels.facts) / 0.06)


@pytest.mark.parametrize(
    ("written", "said"),
    [(1, r"an earlier version \(format 1, this one reads 3\)"), (4, "another version"), (None, "another version")],
)
def test_a_record_of_another_format_is_refused_in_one_line(tmp_path: Path, written: int | None, said: str) -> None:
    folder = make_session(tmp_path)
    folder.close()
    facts = json.loads((folder.path / "session.json").read_text())
    (folder.path / "session.json").write_text(json.dumps(facts | {"format": written}))
    with pytest.raises(RecordError, match=said) as caught:
        _ = Record.open(folder.path).channels
    assert "\n" not in str(caught.value)
    assert [row.outcome for row in list_sessions(tmp_path)] == ["unreadable"]


def test_a_number_that_a_channel_lacks_is_named(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    folder.close()
    facts = json.loads((folder.path / "session.json").read_text())
    del facts["channels"][0]["controller"]["calibration"]["tick_s"]
    (folder.path / "session.json").write_text(json.dumps(facts))
    with pytest.raises(RecordError, match=r"channels\[0\]\.controller\.calibration\.tick_s is missing"):
        _ = Record.open(folder.path).tick_s


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False) | st.integers()))
def test_numbers_in_a_session_are_kept_exactly(numbers: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as out:
        folder = SessionFolder.create(
            Path(out), "x", treatment_source=b"", session=session_facts(numbers=numbers, single=np.float64(0.1))
        )
        folder.close()
        found = Record.open(folder.path).session
        assert found["numbers"] == numbers and found["single"] == 0.1
        assert {key: type(value) for key, value in found["numbers"].items()} == {
            key: type(value) for key, value in numbers.items()
        }


def test_a_refused_session_leaves_nothing_behind(tmp_path: Path) -> None:
    siteless = {key: value for key, value in channel_facts().items() if key != "site"}
    for session, message in (
        ({"channels": [channel_facts()]}, "subject is missing"),
        ({"subject": ""}, "channels is missing"),
        (session_facts(channels=[]), "0 channels; a record holds 1 to 32"),
        (session_facts(channels=[channel_facts()] * 33), "33 channels"),
        (session_facts(channels=[channel_facts(), siteless]), r"channels\[1\]\.site is missing or not a str"),
        (session_facts(channels=[channel_facts(prescribed_c="2")]), r"channels\[0\]\.prescribed_c is missing or not"),
        (session_facts(channels=["left"]), r"channels\[0\]\.name is missing"),
        (session_facts(limits={"current_a": float("nan")}), r"limits\.current_a is nan"),
    ):
        with pytest.raises(RecordError, match=message):
            SessionFolder.create(tmp_path, "x", treatment_source=b"", session=session)
    with pytest.raises(RecordError, match="free disk space"):
        SessionFolder.create(tmp_path, "x", treatment_source=b"", session=session_facts(), needs_bytes=10**18)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="give another --out"):
        SessionFolder.create(tmp_path / "file", "x", treatment_source=b"", session=session_facts())


def test_a_disk_that_fills_up_at_the_end_leaves_a_receipt_that_says_so(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; sys.path.insert(0, 'tests'); from pathlib import Path\n"
        "from record_support import make_session, receipt_of, steady_rows\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"rows = steady_rows(399); folder = make_session(Path({str(tmp_path)!r}), rows)\n"
        "size = (folder.path / 'telemetry.arrows').stat().st_size + 1000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "print(folder.finish(receipt_of(rows))['record'])\n"
    )
    here = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=True)
    record = Record.open(done.stdout.strip())
    assert record.receipt is not None and record.receipt["telemetry_rows"] == len(record.telemetry()) == 300
    assert "telemetry not written" in record.receipt["notes"][0]
    assert record.telemetry().complete and not record.running


def test_what_a_killed_process_left_half_made_is_removed(tmp_path: Path) -> None:
    for name, age_s in (("old", 3600), ("fresh", 0)):
        (tmp_path / f".new-{name}").mkdir()
        os.utime(tmp_path / f".new-{name}", (time.time() - age_s,) * 2)
    make_session(tmp_path).close()
    assert [path.name for path in tmp_path.glob(".new-*")] == [".new-fresh"]
    assert len(list_sessions(tmp_path)) == 1


def test_a_session_is_running_while_its_process_lives(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path\n"
        "from record_support import make_session\n"
        f"folder = make_session(Path({str(tmp_path)!r})); print(folder.path, flush=True); sys.stdin.read()\n"
    )
    here = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert is_running(path)
        assert [row.outcome for row in list_sessions(tmp_path)] == ["running"]
        process.kill()
    assert not is_running(path)
    assert [row.outcome for row in list_sessions(tmp_path)] == ["unrecovered"]


def test_the_list_of_sessions_needs_only_the_folders(tmp_path: Path) -> None:
    rows = steady_rows(3000)
    first = make_session(tmp_path, rows)
    first.finish(receipt_of(rows, trips=[{"name": "open lead"}]))
    second = make_session(tmp_path, rows)
    second.close()
    (tmp_path / "stray").mkdir()
    third = make_session(tmp_path, rows)
    third.close()
    (third.path / "session.json").write_text("{")
    found = {row.folder: row for row in list_sessions(tmp_path)}
    assert set(found) == {first.path, second.path, third.path}
    assert (found[first.path].outcome, found[first.path].trips, found[first.path].site) == ("complete", 1, "left knee")
    assert (found[second.path].outcome, found[second.path].dose_prescribed_mamin) == ("unrecovered", 40.0)
    assert found[third.path].outcome == "unreadable"
    assert list_sessions(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Dexamethasone 40", "dexamethasone-40"), ("../../etc", "etc"), ("Ärztin µ", "arztin"), ("", "session")],
)
def test_a_folder_name_is_plain(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_a_folder_that_is_no_session_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"not a session's folder"):
        Record.open(tmp_path)
