"""Replay: what was recorded comes out again bit for bit, on any processor; what was changed is found and named."""

import hashlib
import json
import random
import runpy
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ionto_rt
from cli_support import ROOT, ionto, treatment
from ionto_rt.core.controller import TICK_SHA256, empty_ticks
from ionto_rt.device import open_device
from ionto_rt.record import RECEIPT, SESSION, TELEMETRY, Record, RecordError, Telemetry, TelemetryWriter
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from record_support import finished_channels, make_channels, ticked
from replay_survey import by_others, faulted
from test_source import TICK

SEED = random.SystemRandom().randrange(1 << 32)
FORMER = ROOT / "tests" / "former-session.tar.xz"

INPUTS = {
    "index", "device_time_us", "applied_index", "host_late_us", "heartbeat", "host_time_us", "device_charge_codes",
    "current_code", "redundant_code", "voltage_code", "applied_code", "nonce", "status", "stop", "operator_command",
    "operator_sequence", "operator_value_a", "sentinel_code", "channel",
}  # fmt: skip
"""Columns that the tick reads, or that say whose it is; all others it must give again."""
RESULTS = [name for name in empty_ticks(0).dtype.names or () if name not in INPUTS]


def run(folder: Path, uri: str = "sim:", **step: str) -> Path:
    """The folder of a session that has run on `sim:`."""
    with open_device(uri) as device:
        session = Session(Treatment.load(treatment(folder, **step)), device, out_dir=folder / "sessions", speed="max")
        return Path(session.run()["record"])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("recorded"))


def changed(session: Path, folder: Path, rows: np.ndarray[Any, Any]) -> Path:
    """A copy of the session with other rows of telemetry."""
    copy = folder / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(session, copy)
    (copy / TELEMETRY).unlink()
    channels = len(Record.open(copy).channels)
    with TelemetryWriter(copy / TELEMETRY, rows.dtype, {}, 1000.0, channels=channels) as writer:
        writer.append(rows)
    return copy


@pytest.mark.parametrize("options", ["", "?fault=open@3", "?fault=short@3", "?fault=stuck@3", "?front-end=voltage"])
def test_a_session_replays_bit_for_bit(tmp_path: Path, options: str) -> None:
    session = run(tmp_path, f"sim:{options}")
    result = replay(session)
    assert result.identical, result.text
    assert result.rows == len(Record.open(session).telemetry()) > 3000
    assert result.text == f"identical: {result.rows} rows, every bit"


def test_the_library_s_paths_for_other_processors_change_nothing(recorded: Path) -> None:
    names = ",".join(f"-{feature}{old}" for feature in ("AVX2", "FMA") for old in ("", "_Usable"))
    done = ionto("replay", recorded, cwd=recorded, GLIBC_TUNABLES=f"glibc.cpu.hwcaps={names}")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("identical: ")


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_changed_bit_of_a_result_is_found_and_named(recorded: Path, tmp_path: Path, data: st.DataObject) -> None:
    rows = Record.open(recorded).telemetry().rows()
    row = data.draw(st.integers(0, len(rows) - 1))
    term = data.draw(st.sampled_from(RESULTS))
    column = rows[term]
    bit = data.draw(st.integers(0, 8 * column.itemsize - 1))
    raw = bytearray(column[row].tobytes())
    raw[bit // 8] ^= 1 << bit % 8
    rows[term][row] = np.frombuffer(bytes(raw), column.dtype)[0]
    difference = replay(changed(recorded, tmp_path, rows)).difference
    assert difference is not None
    assert (difference.row, difference.channel) == (row, 0)
    assert (difference.tick, difference.terms) == (int(rows["index"][row]), (term,))
    assert difference.recorded != difference.replayed


def test_a_changed_sample_is_found_at_its_tick_by_the_terms_that_come_of_it(recorded: Path, tmp_path: Path) -> None:
    rows = Record.open(recorded).telemetry().rows()
    rows["current_code"][2345] += 1
    copy = changed(recorded, tmp_path, rows)
    done = ionto("replay", copy, cwd=tmp_path)
    assert done.code == 1
    assert f"different at tick {rows['index'][2345]}, current_a: recorded -" in done.out
    assert "more terms)" in done.out


def test_both_values_are_told_apart_even_when_they_print_the_same(recorded: Path, tmp_path: Path) -> None:
    rows = Record.open(recorded).telemetry().rows()
    rows["derivative"].view(np.int64)[10] = 0x7FF8_0000_0000_0001
    first = replay(changed(recorded, tmp_path, rows)).difference
    assert first is not None
    assert (first.term, first.recorded, first.replayed) == ("derivative", "nan", "0.0")


def test_another_gain_is_not_the_same_controller(recorded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recorded, copy)
    session = json.loads((copy / SESSION).read_text())
    session["channels"][0]["controller"]["predictive"]["tracking_pole"] *= 1.0 + 2**-50
    (copy / SESSION).write_text(json.dumps(session))
    assert not replay(copy).identical


@pytest.mark.parametrize("cut", [1, 9, 1000, 60_000])
def test_a_record_cut_off_replays_to_its_last_whole_batch(recorded: Path, tmp_path: Path, cut: int) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recorded, copy)
    (copy / RECEIPT).unlink()
    data = (copy / TELEMETRY).read_bytes()
    (copy / TELEMETRY).write_bytes(data[:-cut])
    result = replay(copy)
    assert result.identical
    whole = Telemetry(copy / TELEMETRY)
    assert (result.rows, result.dropped_bytes) == (len(whole), whole.dropped_bytes)
    assert len(Telemetry(recorded / TELEMETRY)) - 300 < result.rows


def test_half_of_a_finished_record_is_not_identical(recorded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recorded, copy)
    data = (copy / TELEMETRY).read_bytes()
    (copy / TELEMETRY).write_bytes(data[: len(data) // 2])
    result = replay(copy)
    assert not result.identical and result.difference is None
    assert result.text.startswith(f"{result.rows} of {len(Telemetry(recorded / TELEMETRY))} rows: identical, every bit")


def test_rows_that_the_record_lacks_are_told_from_a_difference_of_the_core(recorded: Path, tmp_path: Path) -> None:
    rows = Record.open(recorded).telemetry().rows()
    result = replay(changed(recorded, tmp_path, np.delete(rows, slice(2000, 2050))))
    assert not result.identical
    assert result.difference is not None and result.difference.row == 2000
    assert "the record lacks rows before tick 2050" in result.text


@pytest.fixture(scope="module")
def of_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_channels(tmp_path_factory.mktemp("channels"), ticked(3))


@pytest.mark.parametrize("channels", [2, 32])
def test_every_channel_replays_bit_for_bit_through_its_own_controller(tmp_path: Path, channels: int) -> None:
    known = ticked(channels)
    result = replay(finished_channels(tmp_path, known))
    assert result.text == f"identical: {len(known.rows)} rows of {channels} channels, every bit"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_first_difference_names_its_channel(of_channels: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Of two changed results the earlier one is told, whichever channel it is in."""
    rows = ticked(3).rows.copy()
    places = sorted(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=2, unique=True)))
    for place in places:
        rows["net_codes"][place] ^= 1
    result = replay(changed(of_channels, tmp_path, rows))
    assert result.difference is not None
    assert (result.difference.row, result.difference.channel) == (places[0], places[0] % 3)
    assert result.rows == places[0] + 1
    tick = int(rows["index"][places[0]])
    assert result.text.startswith(f"different at tick {tick}, site {places[0] % 3}, net_codes: recorded ")


def test_a_change_in_one_channel_is_no_difference_of_the_others(of_channels: Path, tmp_path: Path) -> None:
    """Their controllers know nothing of each other: what one's trip means for the others is among their inputs."""
    rows = ticked(3).rows.copy()
    rows["current_code"][2::3] += 1
    result = replay(changed(of_channels, tmp_path, rows))
    assert result.difference is not None and result.difference.channel == 2
    rows = ticked(3).rows.copy()
    at = 3 * 2500 + 1
    rows["stop"][at] = 2
    result = replay(changed(of_channels, tmp_path, rows))
    assert result.difference is not None
    assert (result.difference.row, result.difference.channel, result.difference.terms[0]) == (at, 1, "setpoint_a")


def test_rows_that_one_channel_lacks_are_named_with_it(of_channels: Path, tmp_path: Path) -> None:
    rows = ticked(3).rows
    lacking = np.flatnonzero((rows["channel"] == 2) & (rows["index"] >= 2000) & (rows["index"] < 2050))
    result = replay(changed(of_channels, tmp_path, np.delete(rows, lacking)))
    assert result.difference is not None and result.difference.channel == 2
    assert "; the record lacks rows before tick 2050 of site 2" in result.text


def test_a_row_of_a_channel_that_the_session_has_not_is_refused(of_channels: Path, tmp_path: Path) -> None:
    rows = ticked(3).rows.copy()
    rows["channel"][100] = 7
    with pytest.raises(RecordError, match="a row of channel 7, the session has 3"):
        replay(changed(of_channels, tmp_path, rows))


def test_the_memory_of_a_replay_does_not_grow_with_the_record(tmp_path: Path) -> None:
    peaks = []
    for ticks in (10_000, 40_000):
        folder = make_channels(tmp_path / str(ticks), ticked(2, ticks))
        folder.close()
        tracemalloc.start()
        assert replay(folder.path).rows == 2 * ticks
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_a_record_of_another_version_is_refused_by_name(recorded: Path, tmp_path: Path) -> None:
    rows = Record.open(recorded).telemetry().rows()
    fields = [name for name in rows.dtype.names or () if name != "feed_forward"]
    with pytest.raises(RecordError, match="column feed_forward is missing or of another type"):
        replay(changed(recorded, tmp_path, rows[fields].astype([(name, rows.dtype[name]) for name in fields])))
    copy = tmp_path / "copy"
    shutil.copytree(recorded, copy)
    session = json.loads((copy / SESSION).read_text())
    del session["channels"][0]["controller"]["regulator"]["ki"]
    (copy / SESSION).write_text(json.dumps(session))
    with pytest.raises(RecordError, match="not a configuration of this version"):
        replay(copy)


def test_a_record_names_the_version_of_the_core_that_ticked_it(recorded: Path) -> None:
    """The build knows the sources that decide a tick's bits."""
    names = runpy.run_path(str(ROOT / "setup.py"), run_name="settings")["TICK"]
    assert {*names} == {"types", "elementary", *TICK}
    sources = [path for name in names for path in (f"ext/{name}.pyx", f"src/ionto_rt/core/{name}.pxd")]
    text = b"".join((ROOT / path).read_bytes() for path in sources if (ROOT / path).is_file())
    assert hashlib.sha256(text).hexdigest()[:16] == TICK_SHA256
    assert Record.open(recorded).session["core"] == {"version": ionto_rt.__version__, "tick_sha256": TICK_SHA256}


def of_another_version(session: Path, folder: Path, **more: Any) -> Path:
    """A copy that says another core had ticked it, without the column `feed_forward`, with a field that is no more."""
    rows = Record.open(session).telemetry().rows()
    fields = [name for name in rows.dtype.names or () if name != "feed_forward"]
    copy = changed(session, folder, rows[fields].astype([(name, rows.dtype[name]) for name in fields]))
    facts = json.loads((copy / SESSION).read_text())
    facts["core"] = {"version": "0.1.0", "tick_sha256": "0123456789abcdef"}
    facts["channels"][0]["controller"]["guard"]["given_up"] = 1
    facts["channels"][0]["controller"]["predictive"] |= more
    (copy / SESSION).write_text(json.dumps(facts))
    return copy


def test_across_versions_what_both_have_is_compared_and_the_rest_is_named(recorded: Path, tmp_path: Path) -> None:
    result = replay(of_another_version(recorded, tmp_path))
    assert result.identical and set(result.unknown) == {"feed_forward", "guard.given_up"}
    assert "; recorded by ionto_rt 0.1.0 (tick 01234567), replayed by ionto_rt " in result.text
    assert result.text.endswith("not compared: guard.given_up, feed_forward")


def test_across_versions_the_first_tick_and_term_that_differ_are_named(recorded: Path, tmp_path: Path) -> None:
    pole = Record.open(recorded).session["channels"][0]["controller"]["predictive"]["tracking_pole"]
    result = replay(of_another_version(recorded, tmp_path, tracking_pole=pole * 1.01))
    assert result.difference is not None and result.difference.term in RESULTS
    assert result.text.startswith(f"different at tick {result.difference.tick}, {result.difference.term}: recorded ")


def test_a_session_of_the_former_version_is_replayed_and_what_differs_is_named(tmp_path: Path) -> None:
    """Recorded by a guard of fewer rows, in format 2, which did not name its core. This one has more limits."""
    shutil.unpack_archive(FORMER, tmp_path, filter="data")
    (session,) = (path.parent for path in tmp_path.glob("*/session.json"))
    result = replay(session)
    assert result.core == "an earlier ionto_rt, which does not say which" and result.core in result.text
    assert {"guard.patient_stop_ticks", "challenge"} <= set(result.unknown)
    assert result.difference is not None
    assert result.text.startswith(f"different at tick {result.difference.tick}, {result.difference.term}: recorded ")
    assert verify(session).ok, verify(session).problems


def test_faulted_sessions_replay_bit_for_bit_on_the_library_s_other_paths(tmp_path: Path) -> None:
    """The whole of it, with other builds of the core, is `make replays`."""
    assert by_others(faulted(tmp_path, 12, SEED), []) == [], f"seed {SEED}"


def test_what_is_no_session_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "not a session's folder" in ionto("replay", tmp_path, cwd=tmp_path).refusal
