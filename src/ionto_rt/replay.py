"""Replay: the recorded inputs through the same tick again. Every bit of every result must come out as it was recorded.

Within one version of the core that holds on any processor; across versions the first difference is named.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt.core.controller import Controller, empty_ticks
from ionto_rt.record import SESSION, Record, RecordError, Telemetry

CHUNK_ROWS = 4096

Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Difference:
    """The first row that came out otherwise.

    row         position in the record, from 0
    tick        its sample index
    term        the first column that differs, in the order of struct Tick; `terms` are all of that row
    recorded, replayed   the two values, as text that tells them apart
    """

    row: int
    tick: int
    term: str
    terms: tuple[str, ...]
    recorded: str
    replayed: str


@dataclass(frozen=True)
class ReplayResult:
    """What was compared: `rows` of telemetry up to the first difference or the end.

    `dropped_bytes` of a cut last batch were left out. `missing` names the first place where the record itself lacks
    rows; what follows it cannot be replayed, so a difference there is the record's, not the core's.
    """

    folder: Path
    rows: int
    difference: Difference | None
    dropped_bytes: int
    missing: str | None

    @property
    def identical(self) -> bool:
        """True if every row came out bit for bit."""
        return self.difference is None

    @property
    def text(self) -> str:
        """The result in one line."""
        cut = f"; {self.dropped_bytes} bytes of an unfinished batch left out" if self.dropped_bytes else ""
        found = self.difference
        if found is None:
            return f"identical: {self.rows} rows, every bit{cut}"
        more = f" (and {len(found.terms) - 1} more terms)" if len(found.terms) > 1 else ""
        missing = f"; {self.missing}" if self.missing is not None else ""
        return (
            f"different at tick {found.tick}, {found.term}: recorded {found.recorded}, replayed {found.replayed}{more}"
            f"{missing}{cut}"
        )


def replay(folder: Path | str) -> ReplayResult:
    """Replay the session in `folder`, running, finished or cut off; memory stays flat however long it is.

    Raises RecordError: not a session's folder, no telemetry, more than one channel, or a configuration or columns that
    this version of the core does not have.
    """
    record = Record.open(folder)
    telemetry = record.telemetry()
    controller = _controller(record)
    names = _columns(telemetry)
    missing: str | None = None
    compared = 0
    expected: int | None = None
    for recorded in _chunks(telemetry):
        given = empty_ticks(len(recorded))
        for name in names:
            given[name] = recorded[name]
        if missing is None:
            missing, expected = _find_missing(given, expected)
        replayed = controller.run(given)
        difference = _compare(given, replayed, compared)
        if difference is not None:
            reached = difference.row + 1
            return ReplayResult(record.path, reached, difference, telemetry.dropped_bytes, missing)
        compared += len(recorded)
    return ReplayResult(record.path, compared, None, telemetry.dropped_bytes, missing)


def _controller(record: Record) -> Controller:
    session = record.session
    config, segments = session.get("controller"), session.get("segments")
    where = record.path / SESSION
    if not isinstance(config, dict) or not isinstance(segments, list):
        raise RecordError(f"{where}: controller or segments are missing; restore the file from a copy")
    try:
        return Controller(config, segments)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RecordError(
            f"{where}: not a configuration of this version of the core ({error}); replay with the version of the record"
        ) from None


def _columns(telemetry: Telemetry) -> tuple[str, ...]:
    """The columns of the tick; all of them must be in the record."""
    wanted = empty_ticks(0).dtype
    names: tuple[str, ...] = wanted.names or ()
    known = dict(telemetry.columns)
    for name in names:
        if telemetry.columns and known.get(name) != wanted[name].str:
            raise RecordError(
                f"{telemetry.path}: column {name} is missing or of another type; replay with the version of the record"
            )
    return names


def _chunks(telemetry: Telemetry) -> Iterator[npt.NDArray[Any]]:
    """Rows of the one channel, some thousand at a time."""
    waiting: list[npt.NDArray[Any]] = []
    count = 0
    for batch in telemetry.batches():
        if "channel" in telemetry and batch["channel"].any():
            raise RecordError(f"{telemetry.path}: more than one channel, which this version does not replay")
        waiting.append(batch)
        count += len(batch)
        if count >= CHUNK_ROWS:
            yield np.concatenate(waiting)
            waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _find_missing(rows: Rows, expected: int | None) -> tuple[str | None, int | None]:
    """Where the record itself lacks rows: a good sample whose index is not explained by the samples lost before it."""
    good = rows[rows["sample_fault"] == 0]
    if not len(good):
        return None, expected
    index = good["index"].astype(np.int64)
    before = index - good["lost_ticks"]
    after = np.empty_like(index)
    after[1:] = index[:-1] + 1
    after[0] = before[0] if expected is None else expected
    gaps = np.flatnonzero(before != after)
    text = f"the record lacks rows before tick {index[gaps[0]]}" if len(gaps) else None
    return text, int(index[-1]) + 1


def _compare(recorded: Rows, replayed: Rows, first_row: int) -> Difference | None:
    """The first difference of two arrays of struct Tick; both have zeros between their fields."""
    left, right = _bytes(recorded), _bytes(replayed)
    if np.array_equal(left, right):
        return None
    row = int(np.flatnonzero((left != right).any(axis=1))[0])
    assert recorded.dtype.names is not None
    terms = tuple(
        name for name in recorded.dtype.names if recorded[name][row].tobytes() != replayed[name][row].tobytes()
    )
    term = terms[0]
    values = recorded[term][row], replayed[term][row]
    texts = [repr(value.item()) for value in values]
    if texts[0] == texts[1]:
        texts = [f"{text} ({value.tobytes().hex()})" for text, value in zip(texts, values, strict=True)]
    return Difference(first_row + row, int(recorded["index"][row]), term, terms, texts[0], texts[1])


def _bytes(rows: Rows) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
