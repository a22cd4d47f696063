"""What has stopped sessions at the same site a moment ago: the third stop by one cause locks across sessions too (H47).

The journal says which sessions those were, and their events what stopped them. A session whose events cannot be
believed may have been the third: it locks its site alone, until its time is over or the operator resets it. Only of a
session that has not ended, and whose log was cut between two lines, does nothing tell that lines are missing.

How long ago a session ended is the journal's to say, which sees through a clock that is set while the host is up; what
lies ahead of now counts as of now. A clock that is set forward during the session, or while the host is down, is not
noticed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ionto_rt.alarm_system import REPEAT_WINDOW_S, REPEATS_TO_LOCK
from ionto_rt.errors import RefusedError
from ionto_rt.events import RECOVERED, Event
from ionto_rt.journal import Journal, JournalRow, Moment
from ionto_rt.record import EVENTS, RECEIPT, TELEMETRY, Record, RecordError
from ionto_rt.recover import OUTCOME
from ionto_rt.vouched import BEGUN_EVENT

LOCK_RESET = "alarm-reset"
_SLACK_S = 60.0


@dataclass(frozen=True)
class Stop:
    """A session at the site was stopped: by which cause, in whose words, and how long ago (s).

    `unknown`: what stopped it, and how often, cannot be read; `title` says why.
    """

    cause: str
    title: str
    ago_s: float
    unknown: bool = False


@dataclass(frozen=True)
class _Told:
    """A stop, or a reset of causes, in the order of the record: the sessions as they began, the events as written."""

    order: tuple[int, int]
    ago_s: float
    stop: Stop | None
    resets: tuple[str, ...] = ()


def recent_stops(
    out_dir: Path, subject: str, site: str, *, simulated: bool = False, now: datetime | None = None
) -> list[Stop]:
    """Stops of the last REPEAT_WINDOW_S at a subject's site, oldest first, that no operator has reset since.

    A site without a name is one of its own, and simulated patients are apart, like everywhere in the journal. With
    `now`, this host's clock alone counts.
    """
    moment = Moment.now() if now is None else Moment(now, "", 0.0)
    with Journal(out_dir, lambda: moment) as journal:
        rows = journal.at_site(subject, site, simulated=simulated)
    sessions: dict[str, list[JournalRow]] = {}
    for row in rows:
        sessions.setdefault(row.session_id, []).append(row)
    told: list[_Told] = []
    for place, own in enumerate(sessions.values()):
        told += _told(out_dir / own[0].folder, own, place, moment)
    stops = [
        each.stop
        for each in told
        if each.stop is not None and each.ago_s <= REPEAT_WINDOW_S and not any(_clears(each, other) for other in told)
    ]
    return sorted(stops, key=lambda stop: -stop.ago_s)


def _clears(told: _Told, reset: _Told) -> bool:
    """Whether a reset lies behind a stop, in the record's order and in time, and names its cause."""
    assert told.stop is not None
    # A session that began earlier may have gone on beside the one with the reset.
    return told.stop.cause in reset.resets and told.order < reset.order and told.ago_s >= reset.ago_s


def locked_causes(stops: Sequence[Stop]) -> list[str]:
    """Causes that are there as often as locks."""
    times = Counter(stop.cause for stop in stops)
    unknown = {stop.cause for stop in stops if stop.unknown}
    return [cause for cause, count in times.items() if count >= REPEATS_TO_LOCK or cause in unknown]


def refuse_locked(subject: str, site: str, stops: Sequence[Stop]) -> None:
    """RefusedError if a cause has stopped this site as often as locks."""
    for cause in locked_causes(stops):
        own = [stop for stop in stops if stop.cause == cause]
        unknown = own[-1].unknown
        # The lock ends by itself when one less than locks is left in the window.
        left_s = REPEAT_WINDOW_S - own[-1 if unknown else -REPEATS_TO_LOCK].ago_s
        minutes = f"{max(1.0, left_s / 60.0):.0f} min"
        where = f"{subject or 'unnamed subject'}, {site or 'unnamed site'}: locked"
        if unknown:
            raise RefusedError(
                f"{where}, what stopped it last is not known ({own[-1].title})",
                remedy=f"restore it, or look at the skin and run with --reset-lock, or wait {minutes}",
            )
        raise RefusedError(
            f"{where}, stopped {len(own)} times within {REPEAT_WINDOW_S / 60.0:.0f} min by [{cause}] {own[-1].title}",
            remedy=f"look at the skin and remove the cause, then run with --reset-lock, or wait {minutes}",
        )


def _told(folder: Path, own: Sequence[JournalRow], place: int, now: Moment) -> list[_Told]:
    """Stops, and resets of a lock, of one session at the site, whose channels there are `own`."""
    row = own[0]
    passed_s = now.since(row)[0]
    if row.outcome in (None, OUTCOME):
        # The journal's last moment of it is its last reservation: the rows of the record went on.
        passed_s = min(passed_s, _unwritten_s(folder, now, otherwise_s=passed_s))
    if passed_s > REPEAT_WINDOW_S + _SLACK_S:
        return []
    try:
        events = _events_of(folder, row)
    except RecordError as error:
        unknown = Stop(f"record of {row.session_id}", str(error), passed_s, unknown=True)
        return [_Told((place, 0), passed_s, unknown)]
    channels = {each.channel for each in own}
    # By the clock of its own time a session is dated back from its last moment, however the clock was set since.
    last = next(_at(event) for event in reversed(events) if event.kind != RECOVERED)
    found = []
    for event in events:
        causes = event.fields.get("causes")
        resets = tuple(map(str, causes)) if event.kind == LOCK_RESET and isinstance(causes, list) else ()
        number = event.fields.get("channel")
        elsewhere = isinstance(number, int) and number not in channels
        if elsewhere or not (resets or event.fields.get("stops")):
            continue
        ago_s = passed_s + max(0.0, (last - _at(event)).total_seconds())
        stop = None if resets else Stop(str(event.fields.get("cause")), str(event.fields.get("title")), ago_s)
        found.append(_Told((place, event.seq), ago_s, stop, resets))
    return found


def _at(event: Event) -> datetime:
    return datetime.fromisoformat(event.time_utc)


def _unwritten_s(folder: Path, now: Moment, *, otherwise_s: float) -> float:
    """For how long no row was written, by the clock that is set."""
    try:
        return max(0.0, now.utc.timestamp() - (folder / TELEMETRY).stat().st_mtime)
    except OSError:
        return otherwise_s


def _events_of(folder: Path, row: JournalRow) -> list[Event]:
    """The events of a session that the journal knows. RecordError if it is not certain that they are all."""
    if not folder.is_dir():
        raise RecordError(f"{folder}: missing")
    record = Record(folder)
    if row.outcome is not None and not isinstance((record.receipt or {}).get("events_head"), str):
        raise RecordError(f"{folder / RECEIPT}: missing, or does not vouch for {EVENTS}")
    chain = record.events()
    if chain.broken_line is not None:
        raise RecordError(f"{folder / EVENTS}: line {chain.broken_line}: {chain.reason}")
    begun = chain.events[0] if chain.events else None
    if begun is None or begun.kind != BEGUN_EVENT or begun.fields.get("session_id") != row.session_id:
        raise RecordError(f"{folder / EVENTS}: not the log that the session began with")
    return chain.events
