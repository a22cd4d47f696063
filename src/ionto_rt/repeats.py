"""What has stopped sessions at the same site a moment ago: the third stop by one cause locks across sessions too (H47).

The events of the sessions in the folder tell; the times between sessions are those of this host's clock, as nothing
else spans them. An event that lies ahead of now, because the clock was set back, counts as one of now.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ionto_rt.alarm_system import REPEAT_WINDOW_S, REPEATS_TO_LOCK
from ionto_rt.errors import RefusedError
from ionto_rt.events import Event, check_events
from ionto_rt.record import EVENTS, Record, RecordError, session_folders

LOCK_RESET = "alarm-reset"
_SLACK_S = 60.0
_STOPPED = (b'"stops":true', LOCK_RESET.encode())


@dataclass(frozen=True)
class Stop:
    """A session at the site was stopped: by which cause, in whose words, and how long ago (s)."""

    cause: str
    title: str
    ago_s: float


def recent_stops(
    out_dir: Path, subject: str, site: str, *, simulated: bool = False, now: datetime | None = None
) -> list[Stop]:
    """Stops of the last REPEAT_WINDOW_S at a subject's site, oldest first, that no operator has reset since.

    A site without a name is one of its own, and simulated patients are apart, like everywhere in the journal.
    """
    moment = now or datetime.now(UTC)
    found: list[tuple[datetime, Event]] = []
    for folder in session_folders(out_dir):
        found += _events_of(folder, subject, site, simulated, moment)
    stops: list[Stop] = []
    for at, event in sorted(found, key=lambda item: item[0]):
        if event.kind == LOCK_RESET:
            reset = event.fields.get("causes") or ()
            stops = [stop for stop in stops if stop.cause not in reset]
            continue
        ago_s = max(0.0, (moment - at).total_seconds())
        if ago_s <= REPEAT_WINDOW_S:
            stops.append(Stop(str(event.fields.get("cause")), str(event.fields.get("title")), ago_s))
    return stops


def locked_causes(stops: Sequence[Stop]) -> list[str]:
    """Causes that are there as often as locks."""
    return [cause for cause, times in Counter(stop.cause for stop in stops).items() if times >= REPEATS_TO_LOCK]


def refuse_locked(subject: str, site: str, stops: Sequence[Stop]) -> None:
    """RefusedError if a cause has stopped this site as often as locks."""
    for cause in locked_causes(stops):
        own = [stop for stop in stops if stop.cause == cause]
        # The lock ends by itself when one less than locks is left in the window.
        left_s = REPEAT_WINDOW_S - own[-REPEATS_TO_LOCK].ago_s
        minutes = f"{max(1.0, left_s / 60.0):.0f} min"
        raise RefusedError(
            f"{subject or 'unnamed subject'}, {site or 'unnamed site'}: locked, stopped {len(own)} times within"
            f" {REPEAT_WINDOW_S / 60.0:.0f} min by [{cause}] {own[-1].title}",
            remedy=f"look at the skin and remove the cause, then run with --reset-lock, or wait {minutes}",
        )


def _events_of(folder: Path, subject: str, site: str, simulated: bool, now: datetime) -> list[tuple[datetime, Event]]:
    """Stops, and resets of a lock, of one session at the site."""
    path = folder / EVENTS
    try:
        age_s = now.timestamp() - path.stat().st_mtime
        if age_s > REPEAT_WINDOW_S + _SLACK_S:
            return []
        data = path.read_bytes()
        if not any(word in data for word in _STOPPED):
            return []
        record = Record.open(folder)
        sites = [channel.site for channel in record.channels]
        if (record.session.get("subject", ""), record.simulated) != (subject, simulated) or site not in sites:
            return []
    except (OSError, RecordError):
        return []
    found = []
    for event in check_events(data).events:
        reset = event.kind == LOCK_RESET and event.fields.get("causes")
        number = event.fields.get("channel")
        elsewhere = isinstance(number, int) and number < len(sites) and sites[number] != site
        if (reset or event.fields.get("stops")) and not elsewhere:
            found.append((datetime.fromisoformat(event.time_utc), event))
    return found
