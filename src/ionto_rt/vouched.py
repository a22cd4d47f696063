"""Whether the files of a session's folder are that session's own, as it began with them.

`session.json` says what a count is worth in coulombs and who was treated. A changed byte of it is a wrong dose, or a
dose of somebody else, so whoever takes numbers from it asks here first. The first event vouches for it, which is
written once and never again; without that event, the manifest.
"""

import hashlib
from collections.abc import Callable

from ionto_rt.files import MOST_FILE_BYTES, read_regular
from ionto_rt.manifest import MANIFEST, Manifest, decode
from ionto_rt.record import EVENTS, SESSION, TELEMETRY, Record, RecordError

BEGUN_EVENT = "record-begun"


def session_problem(record: Record) -> str | None:
    """Why `session.json` must not be believed, in one line; None if it is the file that the session began with."""
    path = record.path / SESSION
    try:
        found = hashlib.sha256(read_regular(path, MOST_FILE_BYTES)).hexdigest()
    except OSError as error:
        return f"{SESSION}: cannot be read ({error.strerror})"
    known = _of_first_event(record) or _of_manifest(record)
    if known is None:
        return f"{SESSION}: neither {EVENTS} nor {MANIFEST} vouches for it any more"
    return None if found == known else f"{SESSION}: not the file that the session began with"


def stranger(record: Record) -> str | None:
    """Which file is another session's than the one that the folder is named after, in one line; None if none is."""
    here = record.path.resolve().name
    for name, ask in _NAMED.items():
        try:
            session_id = ask(record)
        except (RecordError, OSError):
            continue
        if isinstance(session_id, str) and session_id and session_id != here:
            return f"{name}: of the session {session_id}, not of {here}; put its own file back"
    return None


def _first(record: Record, key: str) -> object:
    events = record.events().events
    return events[0].fields.get(key) if events and events[0].kind == BEGUN_EVENT else None


def _manifest(record: Record) -> Manifest:
    return decode(read_regular(record.path / MANIFEST, MOST_FILE_BYTES))


def _of_first_event(record: Record) -> str | None:
    try:
        known = _first(record, "session_sha256")
    except RecordError:
        return None
    return known if isinstance(known, str) else None


def _of_manifest(record: Record) -> str | None:
    try:
        entry = _manifest(record).entries.get(SESSION)
    except OSError:
        return None
    return entry.sha256 if entry is not None else None


_NAMED: dict[str, Callable[[Record], object]] = {
    SESSION: lambda record: record.session.get("session_id"),
    EVENTS: lambda record: _first(record, "session_id"),
    MANIFEST: lambda record: _manifest(record).session_id,
    TELEMETRY: lambda record: record.telemetry().metadata.get("session_id") if record.has_telemetry else None,
}
"""Where a session's id stands."""
