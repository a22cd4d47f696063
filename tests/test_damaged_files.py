"""Single changed bytes that a reader once died of, or did not notice."""

import struct
from pathlib import Path

import numpy as np
import pytest

from ionto_rt.core.wire import pack_command, unpack_command
from ionto_rt.journal import JOURNAL, Journal, JournalError, Reservation
from ionto_rt.record import RecordError, Telemetry, TelemetryWriter

SUBJECT = "S-0777"


def test_any_changed_byte_of_a_telemetry_s_schema_is_read_or_refused(tmp_path: Path) -> None:
    """Of one byte in twenty, nanoarrow's reader died with the process."""
    rows = np.zeros(8, np.dtype([("index", "<u4"), ("channel", "u1"), ("current_a", "<f8")]))
    path = tmp_path / "telemetry.arrows"
    with TelemetryWriter(path, rows.dtype, {"format": "2"}, 40.0) as writer:
        writer.append(rows)
    whole = path.read_bytes()
    schema_bytes = 8 + struct.unpack_from("<I", whole, 4)[0]
    other = tmp_path / "other.arrows"
    refused = 0
    for at in range(schema_bytes):
        for value in {0, 1, whole[at] ^ 1, whole[at] ^ 0x80, 0xFF} - {whole[at]}:
            other.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                found = Telemetry(other)
                assert len(found.rows()) == len(found)
            except RecordError as error:
                assert str(error).isprintable()
                refused += 1
    assert refused > schema_bytes


def test_a_journal_whose_index_has_lost_a_row_is_refused_and_forgets_no_charge(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("one", tmp_path / "one", SUBJECT, [Reservation("left", 1.0, 0.5)])
        charged_c = journal.charge_today(SUBJECT, "left")
    assert charged_c > 0.0
    whole = (tmp_path / JOURNAL).read_bytes()
    places = [at for at in range(len(whole)) if whole.startswith(SUBJECT.encode(), at)]
    assert len(places) >= 2, "once in the table, once in its index"
    for at in places:
        (tmp_path / JOURNAL).write_bytes(whole[:at] + b"T" + whole[at + 1 :])
        with pytest.raises(JournalError, match=r"damaged.*rebuild"):
            Journal(tmp_path)


def test_a_journal_whose_texts_are_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("one", tmp_path / "one", SUBJECT, [Reservation("left", 1.0, 0.5)])
    whole = (tmp_path / JOURNAL).read_bytes()
    for word in (SUBJECT.encode(), b"CREATE TABLE"):
        (tmp_path / JOURNAL).write_bytes(whole.replace(word, b"\xac" + word[1:]))
        with pytest.raises(JournalError) as caught, Journal(tmp_path) as journal:
            journal.sessions()
        assert str(caught.value).isprintable()


def test_a_command_that_is_cut_anywhere_is_none() -> None:
    """The flags of an empty one were read behind its end."""
    command = dict.fromkeys(("index", "token", "nonce", "lease_ticks", "flags", "code"), 1)
    for channels in (1, 2, 32):
        payload = pack_command([command] * channels)
        assert len(unpack_command(payload, channels)) == channels
        for length in range(len(payload)):
            with pytest.raises(ValueError, match="COMMAND"):
                unpack_command(payload[:length], channels)
