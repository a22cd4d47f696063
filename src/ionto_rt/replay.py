"""Replay: the recorded inputs through the same tick again. Every bit of every result must come out as it was recorded.

Within one version of the core that holds on any processor; across versions the first difference is named: what both
versions have of columns is compared, and what this one's configuration has beyond the record's is zero. Each channel
has a controller of its own: what one channel's trip does to the others is in their recorded inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt import __version__
from ionto_rt.core.controller import TICK_SHA256, Controller, empty_config, empty_segment, empty_ticks
from ionto_rt.record import TELEMETRY, Channel, Record, RecordError, Telemetry

CHUNK_ROWS = 4096
CHUNK_ROWS_OF_CHANNEL = 1024
"""Of each channel in a chunk, where many channels share it: fewer would cost more to sort than to run."""

Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Difference:
    """The first row that came out otherwise.

    row         position in the record, from 0
    channel     of the device, from 0
    tick        its sample index
    term        the first column that differs, in the order of struct Tick; `terms` are all of that row
    recorded, replayed   the two values, as text that tells them apart
    """

    row: int
    channel: int
    tick: int
    term: str
    terms: tuple[str, ...]
    recorded: str
    replayed: str


@dataclass(frozen=True)
class ReplayResult:
    """What was compared: `rows` of telemetry up to the first difference or the end.

    `dropped_bytes` of a cut last batch were left out. `missing` names the first place where the record itself lacks
    rows of the channel that differs (of any channel, if none does); what follows it cannot be replayed, so a difference
    there is the record's, not the core's. `channels` are the names of the channels. `core` is the record's version of
    the core in words, empty if it is this one; then `unknown` are the columns and fields that only one of the two has.
    `lacking` rows of those that the receipt tells of are not there.
    """

    folder: Path
    rows: int
    difference: Difference | None
    dropped_bytes: int
    missing: str | None
    channels: tuple[str, ...]
    core: str = ""
    unknown: tuple[str, ...] = ()
    lacking: int = 0

    @property
    def identical(self) -> bool:
        """True if every row came out bit for bit, and none is missing at the end."""
        return self.difference is None and self.lacking <= 0

    @property
    def text(self) -> str:
        """The result in one line."""
        cut = f"; {self.dropped_bytes} bytes of an unfinished batch left out" if self.dropped_bytes else ""
        if self.core:
            only = f", not compared: {', '.join(self.unknown)}" if self.unknown else ""
            cut += f"; recorded by {self.core}, replayed by {core_text(_THIS)}{only}"
        found = self.difference
        if found is None:
            of = f" of {len(self.channels)} channels" if len(self.channels) > 1 else ""
            if self.lacking > 0:
                return (
                    f"{self.rows} of {self.rows + self.lacking} rows{of}: identical, every bit; the rest is missing, "
                    f"restore {TELEMETRY} from a copy{cut}"
                )
            return f"identical: {self.rows} rows{of}, every bit{cut}"
        more = f" (and {len(found.terms) - 1} more terms)" if len(found.terms) > 1 else ""
        missing = f"; {self.missing}" if self.missing is not None else ""
        where = f"{self.channels[found.channel]}, " if len(self.channels) > 1 else ""
        return (
            f"different at tick {found.tick}, {where}{found.term}: recorded {found.recorded}, "
            f"replayed {found.replayed}{more}{missing}{cut}"
        )


def replay(folder: Path | str) -> ReplayResult:
    """Replay the session in `folder`, running, finished or cut off; memory stays flat however long it is.

    Raises RecordError: not a session's folder, no telemetry, a row of a channel that the session does not have, or a
    configuration or columns that this version of the core does not have.
    """
    record = Record.open(folder)
    telemetry = record.telemetry()
    core = _other_core(record)
    unknown: list[str] = []
    runs = [_ChannelRun(channel, unknown if core else None) for channel in record.channels]
    names = _columns(telemetry, unknown if core else None)
    compared = 0
    found: Difference | None = None
    for recorded in _chunks(telemetry, len(runs)):
        strange = recorded["channel"] >= len(runs)
        if strange.any():
            raise RecordError(
                f"{telemetry.path}: a row of channel {recorded['channel'][strange][0]}, the session has {len(runs)}; "
                "restore the file from a copy"
            )
        differences = [difference for run in runs if (difference := run.compare(recorded, names)) is not None]
        if differences:
            found = min(differences, key=lambda difference: difference.row)
            found = replace(found, row=compared + found.row)
            compared = found.row + 1
            break
        compared += len(recorded)
    missing = [run.missing for run in runs if run.missing is not None and found is None]
    return ReplayResult(
        record.path,
        compared,
        found,
        telemetry.dropped_bytes,
        runs[found.channel].missing if found is not None else next(iter(missing), None),
        tuple(channel.name for channel in record.channels),
        core,
        tuple(dict.fromkeys(unknown)),
        _told_rows(record) - compared if found is None else 0,
    )


def _told_rows(record: Record) -> int:
    """By the receipt; 0 without one that tells."""
    rows = (record.receipt or {}).get("telemetry_rows")
    return rows if isinstance(rows, int) else 0


_THIS = {"version": __version__, "tick_sha256": TICK_SHA256}


def core_text(facts: dict[str, Any]) -> str:
    """A version of the core in words."""
    return f"ionto_rt {facts.get('version')} (tick {str(facts.get('tick_sha256'))[:8]})"


def _other_core(record: Record) -> str:
    """The version of the core that recorded, if it is not this one."""
    facts = record.session.get("core")
    if not isinstance(facts, dict):
        return "an earlier ionto_rt, which does not say which" if record.session["format"] == 2 else ""
    return core_text(facts) if facts.get("tick_sha256") != TICK_SHA256 else ""


def _fitted(given: dict[str, Any], names: dict[str, Any], unknown: list[str], where: str = "") -> dict[str, Any]:
    """`given` with exactly these names, nested alike: what it lacks is zero. `unknown` gets what only one has."""
    unknown += [f"{where}{name}" for name in (*given, *names) if (name in given) != (name in names)]
    fitted = {}
    for name, zero in names.items():
        value = given.get(name, zero)
        nested = isinstance(zero, dict) and isinstance(value, dict)
        fitted[name] = _fitted(value, zero, unknown, f"{where}{name}.") if nested else value
    return fitted


class _ChannelRun:
    """One channel's controller, and what it has found so far."""

    def __init__(self, channel: Channel, unknown: list[str] | None) -> None:
        self.channel = channel
        self.controller = _controller(channel, unknown)
        self.missing: str | None = None
        self._expected: int | None = None

    def compare(self, recorded: Rows, names: tuple[str, ...]) -> Difference | None:
        """Run this channel's rows of a chunk; the first difference, its row counted from the chunk's first."""
        own = np.flatnonzero(recorded["channel"] == self.channel.number)
        given = empty_ticks(len(own))
        for name in names:
            given[name] = recorded[name] if len(own) == len(recorded) else recorded[name][own]
        if self.missing is None:
            self.missing, self._expected = _find_missing(given, self._expected)
            if self.missing is not None and len(self.channel.record.channels) > 1:
                self.missing += f" of {self.channel.name}"
        difference = _compare(given, self.controller.run(given), names)
        if difference is None:
            return None
        return replace(difference, row=int(own[difference.row]))


def _controller(channel: Channel, unknown: list[str] | None) -> Controller:
    """The channel's; `unknown` takes what another version's configuration has or lacks, and none of it is refused."""
    config, segments = channel.facts.get("controller"), channel.facts.get("segments")
    if not isinstance(config, dict) or not isinstance(segments, list):
        raise RecordError(f"{channel.where}: controller or segments are missing; restore the file from a copy")
    try:
        if unknown is not None:
            config = _fitted(config, empty_config(), unknown)
            segments = [_fitted(segment, empty_segment(), unknown, "segment.") for segment in segments]
        return Controller(config, segments)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RecordError(
            f"{channel.where}: not a configuration of this version of the core ({error}); "
            "replay with the version of the record"
        ) from None


def _columns(telemetry: Telemetry, unknown: list[str] | None) -> tuple[str, ...]:
    """The columns of the tick; all of them must be in the record, if that is not another version's (`unknown`)."""
    wanted = empty_ticks(0).dtype
    names: tuple[str, ...] = wanted.names or ()
    known = dict(telemetry.columns)
    if unknown is not None and telemetry.columns:
        common = tuple(name for name in names if known.get(name) == wanted[name].str)
        unknown += [name for name in dict.fromkeys((*known, *names)) if name not in common]
        return common
    for name in names:
        if telemetry.columns and known.get(name) != wanted[name].str:
            raise RecordError(
                f"{telemetry.path}: column {name} is missing or of another type; replay with the version of the record"
            )
    return names


def _chunks(telemetry: Telemetry, channels: int) -> Iterator[npt.NDArray[Any]]:
    """Rows of all channels, some thousand at a time."""
    waiting: list[npt.NDArray[Any]] = []
    count = 0
    for batch in telemetry.batches():
        waiting.append(batch)
        count += len(batch)
        if count >= max(CHUNK_ROWS, CHUNK_ROWS_OF_CHANNEL * channels):
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


def _compare(recorded: Rows, replayed: Rows, names: tuple[str, ...]) -> Difference | None:
    """The first difference of two arrays of struct Tick in these columns; both have zeros between their fields."""
    if len(names) < len(recorded.dtype.names or ()):
        # What the record does not have is not compared.
        for name in set(recorded.dtype.names or ()) - set(names):
            recorded[name] = replayed[name]
    left, right = _bytes(recorded), _bytes(replayed)
    if np.array_equal(left, right):
        return None
    row = int(np.flatnonzero((left != right).any(axis=1))[0])
    terms = tuple(name for name in names if recorded[name][row].tobytes() != replayed[name][row].tobytes())
    term = terms[0]
    values = recorded[term][row], replayed[term][row]
    texts = [repr(value.item()) for value in values]
    if texts[0] == texts[1]:
        texts = [f"{text} ({value.tobytes().hex()})" for text, value in zip(texts, values, strict=True)]
    channel, tick = int(recorded["channel"][row]), int(recorded["index"][row])
    return Difference(row, channel, tick, term, terms, texts[0], texts[1])


def _bytes(rows: Rows) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
