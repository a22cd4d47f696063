"""Verify: one changed byte anywhere in a session's folder is found, and file and place are named."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_support import ionto
from ionto_rt.manifest import MANIFEST, decode, describe_bytes, encode
from ionto_rt.record import (
    EVENTS,
    LOCK,
    RECEIPT,
    RECOVERED_TELEMETRY,
    SESSION,
    TELEMETRY,
    TELEMETRY_CHAIN,
    TREATMENT,
    Record,
    RecordError,
    Telemetry,
    audit_telemetry,
)
from ionto_rt.recover import recover
from ionto_rt.verify import verify
from record_support import make_session, steady_rows
from record_survey import (
    KINDS,
    Flip,
    last_two_batches,
    random_cuts,
    session_of,
    unfound_flips,
    wrong_after_cuts,
    wrong_after_flips,
)

SEED = random.SystemRandom().randrange(1 << 32)
"""Of this run; the messages of what fails have it."""


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of each kind, as it was written."""
    return session_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session_of("complete", tmp_path_factory.mktemp("complete"))


@pytest.fixture
def damaged(complete: Path, tmp_path: Path) -> Path:
    """A copy of a complete session, to be damaged."""
    return Path(shutil.copytree(complete, tmp_path / complete.name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found_and_its_file_and_place_named(kind: str) -> None:
    """The whole of it is `make cuts`."""
    assert unfound_flips(kind, 300, SEED) == []


def test_a_record_cut_anywhere_is_recovered_without_a_wrong_sample_and_says_what_is_missing() -> None:
    every = last_two_batches()
    edges = [cut for cut in every if cut in (every[0], every[-1])] + every[1:10] + every[-20:]
    chosen = random.Random(SEED).sample(every, 60)
    assert wrong_after_cuts(edges + chosen + random_cuts(120, SEED)) == [], f"seed {SEED}"


def test_a_flipped_bit_before_a_recovery_becomes_no_sample() -> None:
    assert wrong_after_flips(150, SEED) == []


def test_what_was_written_verifies(whole: Path) -> None:
    found = verify(whole)
    assert found.ok and found.damage == (), found.problems
    assert found.checked[0].startswith("chain of ")
    assert any(what.endswith("files by their hashes") for what in found.checked)


@pytest.mark.parametrize("name", [TREATMENT, SESSION, EVENTS, TELEMETRY, TELEMETRY_CHAIN, MANIFEST, RECEIPT])
def test_a_file_that_is_missing_is_named(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    assert verify(damaged).problems == [f"{name}: missing"]


def test_a_file_that_was_added_is_named(damaged: Path) -> None:
    (damaged / "notes.txt").write_text("mine")
    assert verify(damaged).problems == ["notes.txt: added: no file of the session"]


def test_a_whole_record_of_another_session_is_none_of_this_one(damaged: Path) -> None:
    assert verify(damaged).ok
    renamed = damaged.rename(damaged.with_name("20260317T142530Z-another-3fa9c1"))
    problem = f"session.json: of the session {damaged.name}, not of {renamed.name}; put its own file back"
    assert verify(renamed).problems == [problem]


def test_a_report_is_no_part_of_the_record(damaged: Path) -> None:
    (damaged / "report.html").write_text("a page")
    assert verify(damaged).ok


def test_the_lock_is_empty(damaged: Path) -> None:
    (damaged / LOCK).write_bytes(b"x")
    assert verify(damaged).problems == [f"{LOCK}: not empty"]


def test_the_command_names_file_line_and_batch(damaged: Path) -> None:
    lines = (damaged / SESSION).read_bytes().split(b"\n")
    byte = sum(len(line) + 1 for line in lines[:40]) + 3
    with Flip(SESSION, byte, 1).done(damaged):
        done = ionto("verify", damaged, cwd=damaged)
    assert done.code == 1 and f"wrong: {SESSION}: line 41: it was changed\n" in done.out
    start = int((damaged / TELEMETRY_CHAIN).read_text().splitlines()[6].split()[0])
    with Flip(TELEMETRY, start + 20_000, 5).done(damaged):
        done = ionto("verify", damaged, cwd=damaged)
    assert done.code == 1 and f"wrong: {TELEMETRY}: batch 7 (rows 600 to 699), bytes {start} to " in done.out
    assert ionto("verify", damaged, cwd=damaged).code == 0


def test_a_byte_of_padding_in_a_batch_is_vouched_for_too(damaged: Path) -> None:
    """Arrow pads its buffers; no column shows these bytes."""
    telemetry = Telemetry(damaged / TELEMETRY)
    run = telemetry._runs[0]
    used = bytearray(run.layout.message.itemsize)
    for name, code in telemetry.columns:
        offset = run.layout.message.fields[name][1]  # type: ignore[index]
        size = run.layout.rows * int(code[2:])
        used[offset : offset + size] = bytes([1]) * size
    used[: run.layout.header_bytes] = bytes([1]) * run.layout.header_bytes
    padding = [at for at, taken in enumerate(used) if not taken]
    assert padding
    for at in (padding[0], padding[-1]):
        with Flip(TELEMETRY, run.offset + at, 0).done(damaged):
            (found,) = verify(damaged).damage
        assert found.file == TELEMETRY and found.start <= run.offset + at < found.end


@given(st.dictionaries(st.text("abc", min_size=1), st.binary(max_size=300), max_size=4), st.data())
def test_a_change_in_the_manifest_is_the_manifest_s(files: dict[str, bytes], data: st.DataObject) -> None:
    text = encode("x", "closed", [describe_bytes(name, content) for name, content in files.items()])
    assert not decode(text).damage and set(decode(text).entries) == set(files)
    at = data.draw(st.integers(0, len(text) - 1))
    wrong = bytearray(text)
    wrong[at] ^= 1 << data.draw(st.integers(0, 7))
    (damage,) = decode(bytes(wrong)).damage
    assert damage.file == MANIFEST and damage.start <= at < damage.end


def test_every_line_of_the_chain_is_on_disk_before_its_batch(tmp_path: Path) -> None:
    folder = make_session(tmp_path, steady_rows(250))
    found = audit_telemetry(folder.path / TELEMETRY)
    assert found is not None
    assert (found.rows, found.lost_lines, found.beyond, found.torn) == (200, 0, 0, 0)
    running = verify(folder.path)
    assert running.problems == ["no receipt: the session is running"] and running.damage == ()
    folder.close()


def test_what_a_recovery_left_out_is_nobody_s_sample_afterwards(tmp_path: Path) -> None:
    folder = session_of("died", tmp_path)
    rows = Telemetry(folder / TELEMETRY).rows()
    start = int((folder / TELEMETRY_CHAIN).read_text().splitlines()[1].split()[0])
    data = bytearray((folder / TELEMETRY).read_bytes())
    data[start + 20_000] ^= 4
    (folder / TELEMETRY).write_bytes(data)
    result = recover(folder)
    left = next(note for note in result.notes if "batch 2 (rows 100 to 199; bytes" in note)
    assert left.endswith("is not as it was written and was left out")
    assert (result.receipt["telemetry_rows"], result.receipt["telemetry_left_out"]) == (len(rows) - 100, 1)
    found = Record.open(folder).telemetry()
    assert found.path.name == RECOVERED_TELEMETRY == result.receipt["telemetry_file"]
    assert list(found["index"]) == [*range(100), *range(200, len(rows))]
    (damage,) = verify(folder).damage
    assert (damage.file, damage.start) == (TELEMETRY, start)


def test_a_crash_between_manifest_and_receipt_is_recovered(damaged: Path) -> None:
    (damaged / RECEIPT).unlink()
    assert recover(damaged).created
    assert verify(damaged).ok


def test_a_record_of_format_2_has_no_manifest_and_verifies_by_its_chain(damaged: Path) -> None:
    session = json.loads((damaged / SESSION).read_text()) | {"format": 2}
    (damaged / SESSION).write_text(json.dumps(session))
    for name in (MANIFEST, TELEMETRY_CHAIN):
        (damaged / name).unlink()
    problems = verify(damaged).problems
    assert problems == [f"{SESSION}: not the file that the session began with"]


def test_a_schema_with_any_bit_changed_is_read_or_refused(damaged: Path) -> None:
    """The Arrow library takes a name that is missing for a null pointer: the process would be gone."""
    end = int((damaged / TELEMETRY_CHAIN).read_text().split()[0])
    places = random.Random(SEED).sample(range(8, end), 500)
    (damaged / TELEMETRY_CHAIN).unlink()
    for byte in places:
        with Flip(TELEMETRY, byte, byte % 8).done(damaged):
            try:
                Telemetry(damaged / TELEMETRY)
            except RecordError as error:
                assert "not a telemetry file" in str(error), (SEED, byte)
