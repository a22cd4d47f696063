"""Recovery: the dose on record is never below the device's count, and nothing the dead host wrote is changed."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_support import ionto, sessions, treatment
from ionto_rt.events import RECOVERED
from ionto_rt.journal import JOURNAL, Journal, Reservation
from ionto_rt.manifest import MANIFEST
from ionto_rt.record import (
    EVENTS,
    RECEIPT,
    RECOVERED_TELEMETRY,
    SESSION,
    TELEMETRY,
    Record,
    RecordError,
    SessionFolder,
    Telemetry,
)
from ionto_rt.recover import AT_END, BOUND, MEASURED, DeviceCount, recover
from ionto_rt.verify import verify
from record_support import (
    CONTROLLER,
    CURRENT_LSB_A,
    TICK_S,
    Channels,
    finished_channels,
    make_channels,
    make_session,
    receipt_of,
    same_rows,
    steady_rows,
    ticked,
)

UNIT_C = CURRENT_LSB_A * TICK_S / 65536
UNSEEN_C = 4e-3 * (0.1 + 2.0 + 0.1) + 4e-3**2 / (2 * 1e-3)
TOKEN = CONTROLLER["token"]
IDLE_CODES = 100 << 16
"""What a converter's noise may take off a count once the output is off."""


def dead_session(out_dir: Path, rows: np.ndarray[Any, Any], reserved_c: float | None = None) -> Path:
    """A session whose host has died: no receipt, no lock, the rows that filled no batch lost."""
    if reserved_c is not None:
        with Journal(out_dir) as journal:
            folder = make_session(out_dir, rows)
            journal.begin(folder.session_id, folder.path, "S-07", [Reservation("left knee", 2.4, 0.004)])
            journal.extend(folder.session_id, [(0.0, reserved_c)])
    else:
        folder = make_session(out_dir, rows)
    folder.events.write("trip", len(rows), safety=True, name="OPEN_LEAD", title="Lead open", advice="press the pad on")
    return killed(folder)


def killed(folder: SessionFolder) -> Path:
    """The folder as a killed host leaves it."""
    # A killed host does not write the rows that wait for a full batch.
    (folder.path / "copy").write_bytes((folder.path / TELEMETRY).read_bytes())
    folder.close()
    (folder.path / "copy").replace(folder.path / TELEMETRY)
    return folder.path


def test_the_device_count_is_the_dose_on_record_exactly(tmp_path: Path) -> None:
    rows = steady_rows(1000)
    folder = dead_session(tmp_path, rows, reserved_c=0.008)
    count = int(rows["device_charge_codes"][-1]) - 7 * 30000 * 65536
    result = recover(folder, DeviceCount(TOKEN, ((count, None),)))
    receipt = result.receipt
    assert result.created and result.measured and receipt["outcome"] == "recovered"
    assert receipt["dose_basis"] == MEASURED
    assert receipt["delivered_net_c"] == receipt["delivered_abs_c"] == -count * UNIT_C
    assert receipt["dose_delivered_mamin"] == -count * UNIT_C / 0.06
    assert receipt["dose_prescribed_mamin"] == 40.0
    assert (receipt["ticks"], receipt["gaps"], receipt["late"], receipt["last_phase"]) == (1000, 0, 0, "treatment")
    assert receipt["peak_current_ma"] == 4.0
    assert receipt["trips"] == ["OPEN_LEAD"] and receipt["alarms"] == ["Lead open: press the pad on"]
    assert json.loads((folder / RECEIPT).read_text()) == receipt
    with Journal(tmp_path) as journal:
        assert journal.open_sessions() == []
        assert journal.charge_today("S-07", "left knee") == -count * UNIT_C


def test_without_the_device_the_dose_is_a_bound_and_says_so(tmp_path: Path) -> None:
    rows = steady_rows(1000)
    seen = 1000 * 30000 * 65536 * UNIT_C
    for reserved, base in ((0.001, seen), (0.9, 0.9)):
        out = tmp_path / str(reserved)
        result = recover(dead_session(out, rows, reserved_c=reserved))
        assert not result.measured and result.receipt["dose_basis"] == BOUND
        assert result.receipt["delivered_abs_c"] == pytest.approx(base + UNSEEN_C, rel=1e-12)
        assert result.receipt["dose_seen_mamin"] == pytest.approx(seen / 0.06, rel=1e-12)
        with Journal(out) as journal:
            assert journal.charge_today("S-07", "left knee") == result.receipt["delivered_abs_c"]
            assert not journal.sessions()[0].measured


def test_a_device_armed_since_for_another_session_is_not_believed(tmp_path: Path) -> None:
    result = recover(dead_session(tmp_path, steady_rows(500), 0.004), DeviceCount(TOKEN + 1, ((0, None),)))
    assert not result.measured and any("token" in note for note in result.notes)
    assert result.receipt["delivered_abs_c"] > 500 * 30000 * 65536 * UNIT_C


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 700),
    st.integers(-(2**50), 2**50),
    st.none() | st.integers(0, 2**51),
    st.none() | st.floats(0, 3),
)
def test_the_dose_on_record_is_never_below_the_device_count(
    rows: int, extra: int, absolute: int | None, reserved: float | None
) -> None:
    with tempfile.TemporaryDirectory() as out:
        folder = dead_session(Path(out), steady_rows(rows), reserved)
        counted = Record.open(folder).channels[0].counted()
        count = counted.device_net_codes + extra
        receipt = recover(folder, DeviceCount(TOKEN, ((count, absolute),))).receipt
        older = extra > IDLE_CODES and (absolute is None or absolute + IDLE_CODES < counted.absolute_codes)
        if not older:
            assert receipt["delivered_net_c"] == -count * UNIT_C
            assert receipt["delivered_abs_c"] >= abs(count) * UNIT_C
            assert receipt["delivered_abs_c"] >= (absolute or 0) * UNIT_C
        else:
            assert not receipt["dose_measured"]
            assert receipt["delivered_net_c"] >= -counted.device_net_codes * UNIT_C + UNSEEN_C * (1 - 1e-9)
        assert receipt["delivered_abs_c"] >= counted.absolute_codes * UNIT_C
        assert verify(folder).problems == []


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_device_that_has_forgotten_part_of_its_count_measures_nothing(tmp_path: Path, kept: float) -> None:
    """As one that saves its count now and then, after a power cut to host and device at once."""
    rows = steady_rows(1000)
    folder = dead_session(tmp_path, rows, reserved_c=0.9)
    older = round(int(rows["device_charge_codes"][-1]) * kept)
    receipt = recover(folder, DeviceCount(TOKEN, ((older, abs(older)),))).receipt
    assert not receipt["dose_measured"] and any("older" in note for note in receipt["notes"])
    assert receipt["delivered_net_c"] == pytest.approx(0.9 + UNSEEN_C, rel=1e-12)


def test_the_noise_of_an_idle_converter_is_no_older_count(tmp_path: Path) -> None:
    rows = steady_rows(1000)
    counted = int(rows["device_charge_codes"][-1])
    for back, measured in ((IDLE_CODES, True), (IDLE_CODES + 1, False)):
        folder = dead_session(tmp_path / str(back), rows, reserved_c=0.9)
        assert recover(folder, DeviceCount(TOKEN, ((counted + back, None),))).measured is measured


def test_a_contact_check_that_went_on_after_the_last_row_is_no_older_count(tmp_path: Path) -> None:
    """Its currents have both signs: the net count goes back, the sum of magnitudes does not."""
    rows = steady_rows(1000)
    folder = dead_session(tmp_path, rows, reserved_c=0.9)
    counted, back = int(rows["device_charge_codes"][-1]), 100 * IDLE_CODES
    result = recover(folder, DeviceCount(TOKEN, ((counted + back, abs(counted) + back),)))
    assert result.measured
    assert result.receipt["delivered_net_c"] == -(counted + back) * UNIT_C
    assert result.receipt["delivered_abs_c"] == (abs(counted) + back) * UNIT_C


TRUE_C = 1000 * 30000 * 65536 * UNIT_C


def changed_session(folder: Path, old: bytes, new: bytes) -> None:
    text = (folder / SESSION).read_bytes()
    assert len(old) == len(new) and text.count(old) >= 1
    (folder / SESSION).write_bytes(text.replace(old, new, 1))


def recovered_safely(folder: Path) -> None:
    """By a device that has the whole count: nothing understates it, whatever `session.json` makes of it."""
    receipt = recover(folder, DeviceCount(TOKEN, ((-1000 * 30000 * 65536, None),))).receipt
    assert receipt["delivered_abs_c"] >= TRUE_C and receipt["delivered_net_c"] >= TRUE_C
    assert not receipt["dose_measured"] and any(SESSION in note for note in receipt["notes"])
    with Journal(folder.parent) as journal:
        assert journal.open_sessions() == []
        assert journal.charge_today("S-07", "left knee") == receipt["delivered_abs_c"]
    assert not recover(folder).created


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"e-07", b"e-17"),  # coulombs per code
        (b'"polarity": -1.0', b'"polarity": -0.0'),
        (b'"polarity": -1.0', b'"polarity": -1e9'),
        (b'"token": 3', b'"token": 4'),
        (b'"prescribed_c": 2.4', b'"prescribed_c": 0.4'),
        (b'"max_current_a": 0.004', b'"max_current_a": 0.000'),
        (b"left knee", b"left tree"),
        (b"{", b"("),
    ],
)
def test_a_changed_session_json_takes_no_dose_off_the_record(tmp_path: Path, old: bytes, new: bytes) -> None:
    folder = dead_session(tmp_path, steady_rows(1000), reserved_c=0.008)
    changed_session(folder, old, new)
    recovered_safely(folder)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_byte_of_session_json_is_changed_the_dose_is_never_below_the_truth(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as out:
        folder = dead_session(Path(out), steady_rows(1000), reserved_c=0.008)
        text = bytearray((folder / SESSION).read_bytes())
        text[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
        (folder / SESSION).write_bytes(text)
        recovered_safely(folder)


def test_a_changed_session_json_that_no_journal_knows_is_refused_by_name(tmp_path: Path) -> None:
    folder = dead_session(tmp_path, steady_rows(1000))
    changed_session(folder, b"e-07", b"e-17")
    with pytest.raises(RecordError, match=r"session\.json: not the file that the session began with.*restore"):
        recover(folder)


@pytest.mark.parametrize("lost", [EVENTS, MANIFEST])
def test_either_the_events_or_the_manifest_vouch_for_session_json(tmp_path: Path, lost: str) -> None:
    for number, change in enumerate((False, True)):
        folder = dead_session(tmp_path / str(number), steady_rows(1000), reserved_c=0.008)
        (folder / lost).unlink()
        if change:
            changed_session(folder, b"e-07", b"e-17")
        result = recover(folder, DeviceCount(TOKEN, ((-1000 * 30000 * 65536, None),)))
        assert result.measured is not change


def test_a_session_is_recovered_from_within_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dead_session(tmp_path, steady_rows(500), 0.004)
    monkeypatch.chdir(folder)
    receipt = recover(Path()).receipt
    assert (receipt["session_id"], receipt["record"]) == (folder.name, str(folder))
    with Journal(tmp_path) as journal:
        assert [row.outcome for row in journal.get(folder.name)] == ["recovered"]
    assert verify(folder).ok


CUT_TICKS = 3210
"""In mid-treatment, and no whole batch of 100 ms: 3200 ticks are on disk, after the trip of channel 1."""


def dead_channels(out_dir: Path, channels: Channels, reserved_c: float = 0.001) -> Path:
    """A session of several channels whose host died in mid-treatment."""
    with Journal(out_dir) as journal:
        folder = make_channels(out_dir, channels, channels.rows[: CUT_TICKS * channels.count])
        entries = [Reservation(facts["site"], facts["prescribed_c"], reserved_c) for facts in channels.facts]
        journal.begin(folder.session_id, folder.path, "S-07", entries)
    folder.events.write("trip", 3008, safety=True, name="OPEN_LEAD", channel=1, title="Lead open", advice="press on")
    return killed(folder)


def seen(channels: Channels, channel: int) -> np.void:
    """The last row of a channel that `dead_channels` has on disk."""
    return channels.of(channel)[CUT_TICKS // 100 * 100 - 1]  # type: ignore[no-any-return]


def test_each_channel_s_dose_is_its_own_count_and_the_session_s_their_sum(tmp_path: Path) -> None:
    known = ticked(3)
    folder = dead_channels(tmp_path, known)
    counts = tuple((int(seen(known, channel)["device_charge_codes"]) - 10**7 * channel, None) for channel in range(3))
    result = recover(folder, DeviceCount(known.facts[0]["controller"]["token"], counts))
    receipt = result.receipt
    assert result.measured and receipt["dose_basis"] == MEASURED and receipt["telemetry_rows"] == 3 * 3200
    parts = receipt["channels"]
    assert [part["name"] for part in parts] == ["site 0", "site 1", "site 2"]
    for channel, part in enumerate(parts):
        assert part["delivered_net_c"] == -counts[channel][0] * known.unit_c(channel)
        assert part["dose_prescribed_mamin"] == known.facts[channel]["prescribed_c"] / 0.06
        assert part["peak_current_ma"] == np.abs(known.of(channel)[:3200]["current_a"]).max() * 1e3
    for key in ("delivered_net_c", "delivered_abs_c", "dose_delivered_mamin", "dose_prescribed_mamin"):
        assert receipt[key] == sum(part[key] for part in parts)
    assert receipt["peak_voltage_v"] == max(part["peak_voltage_v"] for part in parts)
    assert (receipt["ticks"], receipt["last_tick"], receipt["gaps"]) == (3200, 3199, 0)
    assert [part["last_phase"] for part in parts] == ["treatment", "faulted", "treatment"]
    assert receipt["last_phase"] == "treatment, faulted"
    assert [part["trips"] for part in parts] == [[], ["OPEN_LEAD"], []] and receipt["trips"] == ["OPEN_LEAD"]
    assert receipt["latency_us"].keys() == {"p50", "p99", "p999", "p9999", "max"}
    assert verify(folder).problems == []
    with Journal(tmp_path) as journal:
        assert journal.open_sessions() == []
        assert journal.charge_today("S-07", "place 1") == parts[1]["delivered_abs_c"]


def test_a_channel_that_the_device_does_not_tell_of_is_bounded_and_so_is_the_whole(tmp_path: Path) -> None:
    known = ticked(3)
    folder = dead_channels(tmp_path, known, reserved_c=0.5)
    count = int(seen(known, 0)["device_charge_codes"])
    result = recover(folder, DeviceCount(known.facts[0]["controller"]["token"], ((count, None),)))
    first, second, third = result.receipt["channels"]
    # The second one's lead was open: it had ended before its host died.
    assert [part["dose_basis"] for part in (first, second, third)] == [MEASURED, AT_END, BOUND]
    assert not result.measured and result.receipt["dose_basis"] == BOUND
    unseen_c = Record.open(folder).channels[2].unseen_c
    assert third["delivered_abs_c"] == pytest.approx(0.5 + unseen_c, rel=1e-12)
    for channel, part in ((1, second), (2, third)):
        assert part["dose_seen_mamin"] == pytest.approx(float(seen(known, channel)["delivered_c"]) / 0.06, rel=1e-12)
    assert verify(folder).ok
    with Journal(tmp_path) as journal:
        assert [row.measured for row in journal.get(folder.name)] == [True, True, False]
        assert recover(folder).created is False


def test_a_finished_record_of_channels_verifies_and_any_changed_part_is_named(tmp_path: Path) -> None:
    folder = finished_channels(tmp_path, ticked(3))
    done = verify(folder)
    assert done.ok and "sums over channels" in done.checked
    receipt = json.loads((folder / RECEIPT).read_text())
    for change, said in (
        ({"delivered_abs_c": receipt["delivered_abs_c"] + 1e-3}, "delivered_abs_c is"),
        ({"channels": receipt["channels"][:2]}, r"channels\[2\] is missing"),
        (
            {"channels": [*receipt["channels"][:2], receipt["channels"][2] | {"dose_delivered_mamin": 0.01}]},
            "site 2: 0.0100 mA\\*min, telemetry has 0.0233",
        ),
        (
            {"channels": [receipt["channels"][0] | {"delivered_abs_c": 0.0}, *receipt["channels"][1:]]},
            "site 0: 0.0000 mA\\*min on record, the device counted 0.0267",
        ),
    ):
        (folder / RECEIPT).write_text(json.dumps(receipt | change))
        assert any(re.search(said, problem) for problem in verify(folder).problems), (said, verify(folder).problems)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.data())
def test_a_row_that_one_channel_lacks_is_named_by_tick_and_channel(channels: int, data: st.DataObject) -> None:
    known = ticked(channels, 5000)
    row = data.draw(st.integers(0, 500 * channels - 1))
    rows = np.delete(known.rows[: 500 * channels], row)
    with tempfile.TemporaryDirectory() as out:
        problems = verify(finished_channels(Path(out), known, rows)).problems
        order = [problem for problem in problems if "has no row of channel" in problem]
        if channels == 1:
            assert order == []
        else:
            assert len(order) == 1
            assert f"tick {row // channels} has no row of channel {row % channels}" in order[0]


def test_recovering_twice_changes_nothing(tmp_path: Path) -> None:
    folder = dead_session(tmp_path, steady_rows(500), 0.004)
    first = recover(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = recover(folder, DeviceCount(TOKEN, ((-1, None),)))
    assert again.receipt == first.receipt and not again.created
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert verify(folder).ok


def test_a_recovery_that_was_itself_cut_off_is_taken_up(tmp_path: Path) -> None:
    folder = dead_session(tmp_path, steady_rows(500), 0.004)
    with Journal(tmp_path) as journal:
        recover(folder)
        (folder / RECEIPT).unlink()
        kinds = [event.kind for event in Record.open(folder).events().events]
        recover(folder)
        assert [event.kind for event in Record.open(folder).events().events] == kinds
        assert kinds.count(RECOVERED) == 1
        assert journal.open_sessions() == []


@pytest.mark.parametrize("fault", ["", "&fault=open@4"])
def test_a_session_that_had_ended_has_its_dose_in_its_last_row(tmp_path: Path, fault: str) -> None:
    """Its receipt is lost alone, and neither journal nor device can be asked any more."""
    path = treatment(tmp_path, current="1 mA", hold="5 s", ramp="1.25 s")
    ended = ionto("run", path, "--device", f"sim:?seed=3{fault}", "--speed", "max", "--json", cwd=tmp_path).receipt
    (folder,) = sessions(tmp_path / "sessions")
    alone = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, alone)
    (alone / RECEIPT).unlink()
    assert not verify(alone).ok
    result = recover(alone)
    assert result.measured and result.receipt["dose_basis"] == AT_END
    most_c = IDLE_CODES * Record.open(alone).channels[0].coulombs_per_code + 1e-9
    for key, unit_c in (("dose_delivered_mamin", 0.06), ("delivered_net_c", 1.0), ("delivered_abs_c", 1.0)):
        assert 0.0 <= (result.receipt[key] - ended[key]) * unit_c <= most_c
    assert any(note.startswith(f"the session had ended ({ended['outcome']}: ") for note in result.notes)


def test_what_there_is_to_recover_of_a_changed_record_is_told(tmp_path: Path) -> None:
    folder = dead_session(tmp_path, steady_rows(500), 0.004)
    recover(folder)
    assert ionto("recover", folder, cwd=tmp_path).code == 0
    receipt = json.loads((folder / RECEIPT).read_text())
    (folder / RECEIPT).write_text(json.dumps(receipt | {"dose_delivered_mamin": 39.0}))
    done = ionto("recover", folder, cwd=tmp_path)
    assert done.code == 1
    assert "ionto-rt verify" in done.out.splitlines()[-1]


def test_a_receipt_written_but_not_in_the_journal_is_entered(tmp_path: Path) -> None:
    folder = dead_session(tmp_path, steady_rows(500), 0.004)
    shutil.move(tmp_path / JOURNAL, tmp_path / "kept")
    for end in ("-wal", "-shm"):
        assert not (tmp_path / (JOURNAL + end)).exists()
    charge = recover(folder).receipt["delivered_abs_c"]
    shutil.move(tmp_path / "kept", tmp_path / JOURNAL)
    assert not recover(folder).created
    with Journal(tmp_path) as journal:
        assert journal.open_sessions() == [] and journal.charge_today("S-07", "left knee") == charge


def test_a_session_cut_anywhere_recovers_whole_batches_and_keeps_its_bytes(tmp_path: Path) -> None:
    rows = steady_rows(300)
    source = dead_session(tmp_path / "source", rows)
    data = (source / TELEMETRY).read_bytes()
    events = (source / EVENTS).read_bytes()
    half = len(data) // 3
    for number, cut in enumerate([*range(len(data) - half, len(data), 2999), len(data) - 8, len(data) - 1, 100, 0]):
        out = tmp_path / str(number)
        shutil.copytree(source, out / source.name)
        folder = out / source.name
        (folder / TELEMETRY).write_bytes(data[:cut])
        (folder / EVENTS).write_bytes(events[: len(events) - number])
        result = recover(folder)
        assert (folder / TELEMETRY).read_bytes() == data[:cut]
        assert (folder / EVENTS).read_bytes().startswith(events[: len(events) - number])
        readable = Telemetry(folder / result.receipt["telemetry_file"])
        assert len(readable) % 100 == 0
        assert len(readable) == 0 or same_rows(readable.rows(), rows[: len(readable)])
        assert readable.complete == (cut > 8000)
        assert len(readable) == result.receipt["telemetry_rows"]
        chain = Record.open(folder).events()
        assert chain.intact and chain.events[-1].kind == RECOVERED
        assert verify(folder).ok


def test_a_cut_record_has_a_copy_that_others_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    polars = pytest.importorskip("polars")
    rows = steady_rows(300)
    folder = dead_session(tmp_path, rows)
    data = (folder / TELEMETRY).read_bytes()
    (folder / TELEMETRY).write_bytes(data[:-20])
    assert recover(folder).receipt["telemetry_file"] == RECOVERED_TELEMETRY
    assert polars.read_ipc_stream(folder / RECOVERED_TELEMETRY).height == 200
    table = pyarrow.ipc.open_stream(folder / RECOVERED_TELEMETRY).read_all()
    assert table["net_codes"].to_pylist() == rows["net_codes"][:200].tolist()


def test_a_session_without_any_row_is_recovered(tmp_path: Path) -> None:
    folder = dead_session(tmp_path, steady_rows(0), 0.004)
    (folder / TELEMETRY).unlink()
    receipt = recover(folder).receipt
    assert receipt["delivered_abs_c"] == pytest.approx(0.004 + UNSEEN_C) and receipt["ticks"] == 0


def test_a_running_session_is_not_recovered(tmp_path: Path) -> None:
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
        folder = Path(process.stdout.readline().strip())
        with pytest.raises(RecordError, match="still running") as caught:
            recover(folder)
        assert caught.value.exit_code == 2
        process.kill()
    assert recover(folder).created


def test_a_changed_event_log_is_told_and_left_alone(tmp_path: Path) -> None:
    folder = dead_session(tmp_path, steady_rows(200))
    changed = (folder / EVENTS).read_bytes().replace(b'"kind":"session-begun"', b'"kind":"session_begin"')
    (folder / EVENTS).write_bytes(changed)
    result = recover(folder)
    assert result.receipt["events_broken_line"] == 2
    assert (folder / EVENTS).read_bytes() == changed
    assert not verify(folder).ok


def test_a_finished_record_verifies_and_any_changed_part_is_named(tmp_path: Path) -> None:
    rows = steady_rows(250)
    session = make_session(tmp_path, rows)
    session.finish(receipt_of(rows))
    folder = session.path
    assert verify(folder).ok
    for name in (TELEMETRY, EVENTS, "treatment.toml", "session.json"):
        good = (folder / name).read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        (folder / name).write_bytes(bad)
        assert any(name in problem for problem in verify(folder).problems)
        (folder / name).write_bytes(good)
    receipt = json.loads((folder / RECEIPT).read_text())
    for key, value in (("dose_delivered_mamin", 39.0), ("telemetry_rows", 249), ("events_head", "0" * 64)):
        (folder / RECEIPT).write_text(json.dumps(receipt | {key: value}))
        assert not verify(folder).ok
