"""Which alarms stand, which one sounds, and what the operator did about them, by the rules of IEC 60601-1-8.

A condition is raised by a happening of the session and stands until its cause is gone; a latched one until the operator
resets it as well, which needs the cause to be gone. Acknowledging silences a condition and does not end it. Of those
that are not acknowledged the one of highest priority sounds, the others follow when it ends. The audio pause silences
all for AUDIO_PAUSE_S; it ends earlier by a new alarm of a higher priority than those it silenced. The same cause for
the third time within REPEAT_WINDOW_S locks (H47): an alarm of its own, reset after the one that repeated.

Nothing here reads a clock: every time is given, in seconds of the device's clock. Each transition is handed to `log`
exactly once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ionto_rt.alarms import Alarm, Priority
from ionto_rt.hazards import threshold

AUDIO_PAUSE_S = 600.0
REPEAT_WINDOW_S = threshold("H47", "window_s")
REPEATS_TO_LOCK = round(threshold("H47", "repeats_count"))
HISTORY_MOST = 500
"""Conditions that are kept; later ones are raised, sound and are logged as all others, and only counted here."""

Kind = Literal["raised", "cause-gone", "ended", "acknowledged", "reset", "audio-paused", "audio-on"]


@dataclass(eq=False)
class Condition:
    """One alarm from raise to end. Times in s; `channel` is empty for one of the whole session.

    present         its cause is there
    times           how often the cause came while it stood
    stopped         it stopped the current
    of              for a lock: the causes that repeated
    """

    alarm: Alarm
    channel: str
    raised_s: float
    present: bool = True
    times: int = 1
    acknowledged_s: float | None = None
    gone_s: float | None = None
    reset_s: float | None = None
    ended_s: float | None = None
    stopped: bool = False
    of: frozenset[str] = frozenset()

    @property
    def active(self) -> bool:
        """It stands: the cause is there, or it is latched and not reset."""
        return self.ended_s is None

    @property
    def heard(self) -> bool:
        """It asks for a signal: it stands, and nobody has acknowledged it."""
        return self.active and self.acknowledged_s is None

    @property
    def cause(self) -> str:
        """What counts as the same cause: the hazard."""
        return self.alarm.hazard or self.alarm.key


@dataclass(frozen=True)
class Transition:
    """What changed; `condition` is None for those of the audio pause."""

    kind: Kind
    time_s: float
    condition: Condition | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class AlarmSystem:
    """The alarms of one session. `lock` is the alarm of a cause that repeats (H47)."""

    def __init__(self, lock: Alarm, log: Callable[[Transition], None]) -> None:
        self.conditions: list[Condition] = []
        self.left_out = 0
        self._lock = lock
        self._log = log
        self._active: list[Condition] = []
        self._stops: dict[tuple[str, str], list[float]] = {}
        self._audio_until_s: float | None = None

    @property
    def active(self) -> list[Condition]:
        """What stands: the highest priority first, and of alike ones the oldest."""
        return sorted(self._active, key=lambda found: (-found.alarm.priority, found.raised_s))

    @property
    def shown(self) -> Priority | None:
        """The priority that the indicator shows. No pause and no acknowledgement hides it."""
        return max((found.alarm.priority for found in self._active), default=None)

    @property
    def sounding(self) -> Priority | None:
        """The one signal that sounds."""
        return None if self.audio_paused else self._waiting()

    @property
    def audio_paused(self) -> bool:
        return self._audio_until_s is not None

    def audio_left_s(self, time_s: float) -> float:
        """Until the audio pause ends by itself; 0 without one."""
        return 0.0 if self._audio_until_s is None else max(0.0, self._audio_until_s - time_s)

    def standing(self, channel: str) -> list[Condition]:
        """What keeps a channel from resuming: its latched stops and its lock, and those of the whole session."""
        latched = [found for found in self.active if found.alarm.latched and (found.stopped or found.of)]
        return [found for found in latched if found.channel in ("", channel)]

    def find(self, key: str, channel: str = "") -> Condition | None:
        """The condition of that key that stands."""
        return next((found for found in self._active if (found.alarm.key, found.channel) == (key, channel)), None)

    def recall(self, channel: str, cause: str, time_s: float) -> None:
        """A stop by `cause` in an earlier session at the same site counts (H47); `time_s` lies before this one."""
        self._stops.setdefault((channel, cause), []).append(time_s)

    def raise_alarm(
        self,
        alarm: Alarm,
        channel: str,
        time_s: float,
        *,
        stops: bool = False,
        again: bool = False,
        **fields: Any,
    ) -> Condition | None:
        """The cause of `alarm` is there. Once raised, it is not raised again before it has gone, unless `again` (a
        reminder). `stops` says that it stopped the current. `fields` go into the log.

        None for Priority.INFORMATION, which is no alarm.
        """
        if alarm.priority == Priority.INFORMATION:
            return None
        found = self.find(alarm.key, channel)
        if found is not None and found.present and not again:
            return found
        before = self._waiting()
        if found is None:
            # Another row of the same cause belongs to the same stop: no start lay between.
            found = Condition(alarm, channel, time_s, stopped=stops)
            same = (other for other in self._active if (other.channel, other.cause) == (channel, found.cause))
            new_stop = stops and not any(other.stopped for other in same)
            self._active.append(found)
            if len(self.conditions) < HISTORY_MOST:
                self.conditions.append(found)
            else:
                self.left_out += 1
        else:
            new_stop = False
            found.present, found.acknowledged_s, found.gone_s = True, None, None
            found.times += 1
        counted = {"stops": True, "cause": found.cause} if new_stop else {}
        self._log(Transition("raised", time_s, found, fields | counted))
        if self.audio_paused and (before is None or alarm.priority > before):
            self._rearm(time_s, "a new alarm of higher priority")
        if new_stop:
            self._count(found, time_s)
        return found

    def _count(self, found: Condition, time_s: float) -> None:
        stops = self._stops.setdefault((found.channel, found.cause), [])
        stops.append(time_s)
        stops[:] = [at for at in stops if time_s - at <= REPEAT_WINDOW_S]
        if len(stops) < REPEATS_TO_LOCK:
            return
        stops.clear()
        lock = self.raise_alarm(self._lock, found.channel, time_s, again=True, repeated=found.alarm.key)
        assert lock is not None
        lock.of |= {found.cause}

    def end(self, key: str, channel: str, time_s: float) -> None:
        """The cause is gone: the condition ends, or waits for the operator's reset if it is latched."""
        found = self.find(key, channel)
        if found is None or not found.present:
            return
        found.present, found.gone_s = False, time_s
        if not found.alarm.latched:
            self._close(found, time_s)
        self._log(Transition("cause-gone" if found.active else "ended", time_s, found))

    def acknowledge(self, time_s: float) -> list[Condition]:
        """The operator has heard what sounds or waits to: it is silent, and stands as before."""
        heard = [found for found in self.active if found.heard]
        for found in heard:
            found.acknowledged_s = time_s
            self._log(Transition("acknowledged", time_s, found))
        return heard

    def reset(self, time_s: float) -> tuple[list[Condition], list[Condition]]:
        """The operator clears what is latched and has lost its cause: (what was cleared, latched ones that stand).

        A lock goes after what has locked: while that stood when the reset began, the lock stays, and needs another.
        """
        latched = [found for found in self.active if found.alarm.latched]
        standing = {(found.channel, found.cause) for found in self._active if found.stopped}
        kept = [found for found in latched if self._holds(found, standing)]
        cleared = [found for found in latched if found not in kept]
        for found in cleared:
            found.reset_s = time_s
            self._close(found, time_s)
            self._log(Transition("reset", time_s, found, {"causes": sorted(found.of)} if found.of else {}))
        return cleared, kept

    @staticmethod
    def _holds(found: Condition, standing: set[tuple[str, str]]) -> bool:
        return any((found.channel, cause) in standing for cause in found.of) if found.of else found.present

    def pause_audio(self, time_s: float) -> bool:
        """The operator silences all signals for AUDIO_PAUSE_S; False if none sounds."""
        if self.sounding is None:
            return False
        self._audio_until_s = time_s + AUDIO_PAUSE_S
        self._log(Transition("audio-paused", time_s, None, {"until_s": self._audio_until_s}))
        return True

    def end_audio_pause(self, time_s: float) -> None:
        """The operator wants to hear the signals again; nothing happens without a pause."""
        if self.audio_paused:
            self._rearm(time_s, "the operator")

    def pass_time(self, time_s: float) -> None:
        """It is `time_s` now: an audio pause that is over ends, and so does one that has nothing left to silence."""
        if self._audio_until_s is None:
            return
        if time_s >= self._audio_until_s:
            self._rearm(time_s, "its time is over")
        elif not self._active:
            self._rearm(time_s, "no alarm stands")

    def finish(self, time_s: float) -> None:
        """The session is over: what is not latched has lost its cause, what is latched stays as it is on record."""
        for found in self.active:
            if not found.alarm.latched:
                self.end(found.alarm.key, found.channel, time_s)
        self.pass_time(time_s)

    def rows(self) -> list[dict[str, Any]]:
        """The conditions in their order, for the receipt. Times in s of the device's clock; None: not yet."""
        return [
            {
                "alarm": found.alarm.key,
                "hazard": found.alarm.hazard,
                "priority": found.alarm.priority.name,
                "latched": found.alarm.latched,
                "channel": found.channel,
                "title": found.alarm.title,
                "times": found.times,
                **{name: _rounded(getattr(found, name)) for name in _TIMES},
            }
            for found in self.conditions
        ]

    def _waiting(self) -> Priority | None:
        return max((found.alarm.priority for found in self._active if found.heard), default=None)

    def _close(self, found: Condition, time_s: float) -> None:
        found.ended_s = time_s
        self._active.remove(found)

    def _rearm(self, time_s: float, why: str) -> None:
        self._audio_until_s = None
        self._log(Transition("audio-on", time_s, None, {"why": why}))


_TIMES = ("raised_s", "gone_s", "ended_s", "acknowledged_s", "reset_s")


def _rounded(time_s: float | None) -> float | None:
    """To microseconds, as the device tells it."""
    return None if time_s is None else round(time_s, 6)
