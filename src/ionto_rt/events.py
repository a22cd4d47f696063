"""`events.jsonl`: what happened in a session, one canonical JSON object per line, each line chained to the one before.

A line holds `seq` (from 0), `time_utc` (ISO 8601, microseconds), `tick` (sample index, or null before the first
sample), `kind`, `fields`, `prev`, the SHA-256 of the previous line's bytes without its newline (64 zeros on the first
line), and `sum`, the first 16 digits of the SHA-256 of the line without it. So one changed byte anywhere is found and
located, in the last line too; that lines are missing at the end, `events_head` of the receipt tells.

A process that is killed may leave half a line at the end. Nothing of it is ever removed: `recover` continues the file
after a newline, chained to the half line's bytes, with an event that says so.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ionto_rt.errors import IontoError, one_line
from ionto_rt.files import DISK, MOST_FILE_BYTES, Files, read_regular

GENESIS = "0" * 64
RECOVERED = "recovered"
KEYS = frozenset(("fields", "kind", "prev", "seq", "tick", "time_utc"))
"""And `sum`, which records of format 2 do not have."""
_SUM_DIGITS = 16


class EventError(IontoError):
    """An event log cannot be written or read; the message is one line with what, where and the remedy."""

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy scalars and arrays become Python's, paths text, non-finite floats null."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def canonical(value: Any) -> bytes:
    """One JSON text for one value: keys sorted, no blanks, ASCII only, shortest floats that read back exactly."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def utc_text(moment: datetime | None = None) -> str:
    """`moment` (now if None) in UTC as `2026-03-17T14:25:30.123456Z`."""
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Event:
    """One line of the log."""

    seq: int
    time_utc: str
    tick: int | None
    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class EventChain:
    """What a log file holds.

    `events` are the events before the first broken line (all of them if `broken_line` is None). `broken_line` counts
    from 1. `head` is the SHA-256 of the last line's bytes, whole or torn; it continues the chain. `torn_tail` are the
    bytes of a half-written last line, `torn_lines` the numbers of half lines that a recovery has since chained in.
    """

    events: list[Event] = field(default_factory=list)
    head: str = GENESIS
    broken_line: int | None = None
    reason: str = ""
    torn_tail: bytes = b""
    torn_lines: list[int] = field(default_factory=list)
    ends_with_newline: bool = True

    @property
    def intact(self) -> bool:
        """True if every line is chained to the next (a half-written last line is not a break)."""
        return self.broken_line is None


def _sum(item: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(item)).hexdigest()[:_SUM_DIGITS]


def _parse(line: bytes) -> tuple[Event, str] | None:
    """The event and its `prev`, or None if the line is not exactly what `EventLog.write` would have written."""
    try:
        item = json.loads(line)
        if not isinstance(item, dict) or item.keys() | {"sum"} != KEYS | {"sum"} or canonical(item) != line:
            return None
        if item.pop("sum", None) not in (None, _sum(item)):
            return None
    except (ValueError, RecursionError):
        return None
    seq, tick, fields, prev = item["seq"], item["tick"], item["fields"], item["prev"]
    texts = (item["time_utc"], item["kind"], prev)
    if type(seq) is not int or not (tick is None or type(tick) is int) or not isinstance(fields, dict):
        return None
    if not all(isinstance(text, str) for text in texts):
        return None
    return Event(seq, item["time_utc"], tick, item["kind"], fields), prev


def read_events(path: Path, head: str | None = None) -> EventChain:
    """Read and check a log; `head` is the receipt's hash of its last line, without which that line's text is unproven.

    Never raises for a damaged file: the result says which line is the first broken one and why. A missing file raises
    `EventError`.
    """
    try:
        data = read_regular(path, MOST_FILE_BYTES)
    except OSError as error:
        raise EventError(f"{path}: no event log to read ({error.strerror}); give a session's folder") from None
    return check_events(data, head)


def check_events(data: bytes, head: str | None = None) -> EventChain:
    """`read_events` on the bytes of a log."""
    lines = data.split(b"\n")
    newline_at_end = lines[-1] == b""
    if newline_at_end:
        lines.pop()
    digests = [hashlib.sha256(line).hexdigest() for line in lines]
    parsed = [_parse(line) for line in lines]

    events: list[Event] = []
    torn_lines: list[int] = []
    torn_tail = b""
    broken: int | None = None
    reason = ""
    for number, item in enumerate(parsed):
        last = number == len(lines) - 1
        if item is None:
            following = None if last else parsed[number + 1]
            if following is not None and following[0].kind == RECOVERED and following[1] == digests[number]:
                torn_lines.append(number + 1)
                continue
            if last and not newline_at_end:
                torn_tail = lines[number]
                continue
            broken, reason = number + 1, "it is not an event as the log writes them"
            break
        event, prev = item
        if prev != (digests[number - 1] if number else GENESIS):
            broken, reason = _blame(number, parsed, digests, head)
            break
        if event.seq != len(events):
            broken, reason = number + 1, f"its seq is {event.seq}, expected {len(events)}"
            break
        events.append(event)
    found_head = digests[-1] if digests else GENESIS
    if broken is None and head is not None and found_head != head:
        broken, reason = max(len(lines), 1), "it is not the line that the receipt was written for"
    if broken is not None:
        events = events[: max(0, broken - 1 - sum(1 for line in torn_lines if line < broken))]
    return EventChain(events, found_head, broken, reason, torn_tail, torn_lines, newline_at_end)


def _blame(
    number: int, parsed: list[tuple[Event, str] | None], digests: list[str], head: str | None
) -> tuple[int, str]:
    """Line `number` (from 0) does not chain to the one before: which of the two was changed?

    If the line after it also disagrees with it, it is the line itself; else it still is what its successor
    (or the receipt) vouches for, and the one before was changed.
    """
    successor = parsed[number + 1] if number + 1 < len(parsed) else None
    vouched = successor[1] if successor is not None else head
    if number == 0 or (vouched is not None and vouched != digests[number]):
        return number + 1, "it was changed: neither its prev nor its own hash fits the chain"
    return number, "it was changed: its hash is not the one that the next line holds"


class EventLog:
    """Writer of one session's log. Use from one thread; close it, or use it as a context manager. `files` is the file
    system.

    An existing log is continued; it must be intact up to a half-written last line, or `EventError` is raised.
    """

    def __init__(self, path: Path, files: Files = DISK) -> None:
        self.path = path
        self.files = files
        chain = read_events(path) if path.exists() else EventChain()
        if not chain.intact:
            raise EventError(
                f"{path}: line {chain.broken_line}: {chain.reason}; a broken log is not continued, keep it as evidence"
            )
        self.count = len(chain.events)
        self.head = chain.head
        try:
            self._fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise EventError(f"{path}: cannot be opened ({error.strerror}); check the folder's permissions") from None
        self._before = b"" if chain.ends_with_newline else b"\n"

    @property
    def descriptor(self) -> int:
        """Of the file; -1 once closed."""
        return self._fd

    def write(
        self, kind: str, tick: int | None, safety: bool = False, *, at: datetime | None = None, **fields: Any
    ) -> Event:
        """Append one event; with `safety` (trip, stop, fault, session begun and ended) wait until it is on disk.

        `tick` is the sample index, None before the first sample; `at` when it happened, now if None. `fields` may hold
        anything that `plain` takes.
        Raises `EventError` if the disk refuses; the log then holds at most half a line more.
        """
        event = Event(self.count, utc_text(at), None if tick is None else int(tick), kind, plain(fields))
        item = {
            "fields": event.fields,
            "kind": kind,
            "prev": self.head,
            "seq": event.seq,
            "tick": event.tick,
            "time_utc": event.time_utc,
        }
        line = canonical(item | {"sum": _sum(item)})
        data = self._before + line + b"\n"
        start = self.files.size(self._fd)
        try:
            done = 0
            while done < len(data):
                done += self.files.write(self._fd, data[done:])
            if safety:
                self.files.sync(self._fd)
        except OSError as error:
            self.files.truncate(self._fd, start)
            raise EventError(f"{self.path}: event {kind} not written ({error.strerror}); free disk space") from None
        self._before = b""
        self.head = hashlib.sha256(line).hexdigest()
        self.count += 1
        return event

    def sync(self) -> None:
        """Wait until every event written so far is on disk."""
        self.files.sync(self._fd)

    def close(self) -> None:
        """Sync and close; closing twice does nothing."""
        if self._fd >= 0:
            try:
                self.files.sync(self._fd)
            finally:
                self.files.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
