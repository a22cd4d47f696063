"""The alarm system by itself: what stands, what sounds, what the operator's acts do, and that each is logged once."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ionto_rt.alarm_system import AUDIO_PAUSE_S, REPEAT_WINDOW_S, REPEATS_TO_LOCK, AlarmSystem, Condition, Transition
from ionto_rt.alarms import Alarm, Priority
from ionto_rt.codes import Action


def alarm(key: str, priority: Priority, *, latched: bool = False, hazard: str = "") -> Alarm:
    return Alarm(key, hazard, priority, latched, Action.PAUSE, f"Title of {key}", f"what to do about {key}")


LOCK = alarm("repeated", Priority.MEDIUM, latched=True, hazard="H47")
LOW = alarm("low", Priority.LOW)
MEDIUM = alarm("medium", Priority.MEDIUM, latched=True, hazard="H05")
HIGH = alarm("high", Priority.HIGH, latched=True, hazard="H01")


class Logged:
    """An alarm system and its log."""

    def __init__(self) -> None:
        self.log: list[Transition] = []
        self.system = AlarmSystem(LOCK, self.log.append)

    def kinds(self) -> list[str]:
        return [
            found.kind if found.condition is None else f"{found.condition.alarm.key} {found.kind}" for found in self.log
        ]


@pytest.fixture
def logged() -> Logged:
    return Logged()


def test_a_condition_is_raised_once_and_ends_with_its_cause(logged: Logged) -> None:
    system = logged.system
    for time_s in (1.0, 1.1, 1.2):
        system.raise_alarm(LOW, "", time_s)
    assert system.sounding == Priority.LOW
    for time_s in (2.0, 2.1):
        system.end("low", "", time_s)
    assert logged.kinds() == ["low raised", "low ended"]
    assert system.sounding is None and not system.active
    (row,) = system.rows()
    assert (row["raised_s"], row["ended_s"], row["acknowledged_s"], row["reset_s"]) == (1.0, 2.0, None, None)


def test_information_is_no_alarm(logged: Logged) -> None:
    assert logged.system.raise_alarm(alarm("told", Priority.INFORMATION), "", 0.0) is None
    assert not logged.log and not logged.system.conditions


def test_only_the_highest_sounds_and_the_others_follow_when_it_ends(logged: Logged) -> None:
    system = logged.system
    system.raise_alarm(LOW, "", 0.0)
    system.raise_alarm(HIGH, "", 1.0)
    system.raise_alarm(MEDIUM, "", 2.0)
    assert system.sounding == Priority.HIGH
    system.end("high", "", 3.0)
    assert system.active[0].alarm is HIGH, "latched: the cause alone does not end it"
    system.reset(4.0)
    assert system.sounding == Priority.MEDIUM
    system.end("medium", "", 5.0)
    system.reset(5.0)
    assert system.sounding == Priority.LOW


def test_acknowledging_silences_and_the_condition_stands(logged: Logged) -> None:
    system = logged.system
    system.raise_alarm(MEDIUM, "a", 0.0, stops=True)
    assert [found.alarm for found in system.acknowledge(1.0)] == [MEDIUM]
    assert system.sounding is None and system.shown == Priority.MEDIUM
    assert system.standing("a") and not system.standing("b")
    assert system.acknowledge(2.0) == []
    system.end("medium", "a", 3.0)
    assert system.standing("a"), "acknowledged is not reset"
    assert logged.kinds() == ["medium raised", "medium acknowledged", "medium cause-gone"]


def test_a_reset_needs_the_cause_to_be_gone(logged: Logged) -> None:
    system = logged.system
    system.raise_alarm(MEDIUM, "", 0.0)
    cleared, kept = system.reset(1.0)
    assert (cleared, [found.alarm for found in kept]) == ([], [MEDIUM])
    system.end("medium", "", 2.0)
    cleared, kept = system.reset(3.0)
    assert ([found.alarm for found in cleared], kept) == ([MEDIUM], [])
    assert logged.kinds() == ["medium raised", "medium cause-gone", "medium reset"]


def test_a_cause_that_returns_sounds_again(logged: Logged) -> None:
    system = logged.system
    system.raise_alarm(MEDIUM, "", 0.0)
    system.acknowledge(1.0)
    system.end("medium", "", 2.0)
    system.raise_alarm(MEDIUM, "", 3.0)
    assert system.sounding == Priority.MEDIUM
    assert system.reset(4.0)[0] == []
    assert system.rows()[0]["times"] == 2


def test_a_reset_takes_no_condition_that_clears_by_itself(logged: Logged) -> None:
    logged.system.raise_alarm(LOW, "", 0.0)
    assert logged.system.reset(1.0) == ([], [])
    assert logged.system.active


def test_the_audio_pause_ends_after_ten_minutes_to_the_microsecond(logged: Logged) -> None:
    system = logged.system
    assert not system.pause_audio(0.0), "there is nothing to silence"
    system.raise_alarm(MEDIUM, "", 1.0)
    assert system.pause_audio(2.0) and not system.pause_audio(3.0)
    system.pass_time(2.0 + AUDIO_PAUSE_S - 1e-6)
    assert system.sounding is None and system.audio_left_s(302.0) == 300.0
    assert system.shown == Priority.MEDIUM, "the screen goes on"
    system.pass_time(2.0 + AUDIO_PAUSE_S)
    assert system.sounding == Priority.MEDIUM
    assert logged.kinds() == ["medium raised", "audio-paused", "audio-on"]
    assert logged.log[-1].fields == {"why": "its time is over"}


@pytest.mark.parametrize(
    ("new", "heard"),
    [(alarm("another", Priority.LOW), None), (alarm("another", Priority.MEDIUM), None), (HIGH, Priority.HIGH)],
)
def test_only_a_new_alarm_of_higher_priority_ends_the_audio_pause(
    logged: Logged, new: Alarm, heard: Priority | None
) -> None:
    system = logged.system
    system.raise_alarm(MEDIUM, "", 0.0)
    system.pause_audio(1.0)
    system.raise_alarm(new, "", 2.0)
    assert system.sounding == heard
    assert system.audio_paused == (heard is None)


def test_what_was_silenced_counts_no_more_once_it_has_ended(logged: Logged) -> None:
    system = logged.system
    system.raise_alarm(HIGH, "", 0.0)
    system.raise_alarm(LOW, "", 0.0)
    system.pause_audio(1.0)
    system.end("high", "", 2.0)
    system.reset(2.0)
    system.raise_alarm(MEDIUM, "", 3.0)
    assert system.sounding == Priority.MEDIUM


def test_a_pause_with_nothing_left_to_silence_ends(logged: Logged) -> None:
    system = logged.system
    system.raise_alarm(LOW, "", 0.0)
    system.pause_audio(1.0)
    system.end("low", "", 2.0)
    system.pass_time(2.1)
    system.raise_alarm(LOW, "", 3.0)
    assert system.sounding == Priority.LOW


def stop(system: AlarmSystem, time_s: float, channel: str = "", hit: Alarm = MEDIUM) -> None:
    """It stops by this alarm, the operator removes the cause, resets, and starts again."""
    system.raise_alarm(hit, channel, time_s, stops=True)
    system.end(hit.key, channel, time_s + 1.0)
    system.reset(time_s + 2.0)


def test_the_third_stop_by_one_cause_within_ten_minutes_locks(logged: Logged) -> None:
    system = logged.system
    stop(system, 0.0)
    stop(system, 100.0)
    assert not system.active
    stop(system, REPEAT_WINDOW_S)
    (lock,) = system.active
    assert (lock.alarm, lock.of, lock.present) == (LOCK, frozenset(["H05"]), True)
    cleared, kept = system.reset(REPEAT_WINDOW_S + 10.0)
    assert (cleared, kept) == ([lock], [])


def test_a_third_stop_just_after_ten_minutes_does_not_lock(logged: Logged) -> None:
    for time_s in (0.0, 100.0, REPEAT_WINDOW_S + 1e-3):
        stop(logged.system, time_s)
    assert not logged.system.active


def test_other_causes_and_other_channels_count_by_themselves(logged: Logged) -> None:
    system = logged.system
    for number in range(2):
        stop(system, 10.0 * number)
        stop(system, 10.0 * number + 3.0, channel="left")
        stop(system, 10.0 * number + 6.0, hit=HIGH)
    assert not system.active


def test_two_rows_of_one_cause_at_one_stop_are_one_stop(logged: Logged) -> None:
    """A pause of the guard that becomes a trip."""
    system = logged.system
    worse = alarm("medium-trip", Priority.MEDIUM, latched=True, hazard="H05")
    for time_s in (0.0, 10.0):
        system.raise_alarm(MEDIUM, "", time_s, stops=True)
        system.raise_alarm(worse, "", time_s, stops=True)
        for key in ("medium", "medium-trip"):
            system.end(key, "", time_s + 1.0)
        system.reset(time_s + 2.0)
    assert not system.active


def test_a_lock_goes_only_after_what_repeated(logged: Logged) -> None:
    system = logged.system
    for time_s in (0.0, 10.0):
        stop(system, time_s)
    system.raise_alarm(MEDIUM, "", 20.0, stops=True)
    assert [found.alarm for found in system.reset(21.0)[1]] == [MEDIUM, LOCK]
    system.end("medium", "", 22.0)
    assert [found.alarm for found in system.reset(23.0)[0]] == [MEDIUM]
    assert [found.alarm for found in system.standing("")] == [LOCK]
    assert [found.alarm for found in system.reset(24.0)[0]] == [LOCK]


def test_stops_of_earlier_sessions_count(logged: Logged) -> None:
    logged.system.recall("", "H05", -300.0)
    logged.system.recall("", "H05", -100.0)
    logged.system.raise_alarm(MEDIUM, "", 5.0, stops=True)
    assert logged.system.find("repeated") is not None


def test_what_does_not_stop_never_locks(logged: Logged) -> None:
    for number in range(10):
        logged.system.raise_alarm(LOW, "", float(number))
        logged.system.end("low", "", number + 0.5)
    assert not logged.system.active


def test_the_end_of_the_session_ends_what_is_not_latched(logged: Logged) -> None:
    system = logged.system
    system.raise_alarm(LOW, "", 0.0)
    system.raise_alarm(HIGH, "", 1.0)
    system.finish(9.0)
    low, high = system.rows()
    assert (low["ended_s"], high["ended_s"]) == (9.0, None)


ALARMS = [
    alarm(f"{priority.name.lower()}{'-latched' if latched else ''}-{n}", priority, latched=latched, hazard=f"H{n:02}")
    for priority in (Priority.LOW, Priority.MEDIUM, Priority.HIGH)
    for latched in (False, True)
    for n in range(2)
]
CHANNELS = ("", "left")
PLACES = st.tuples(st.sampled_from(ALARMS), st.sampled_from(CHANNELS))


class Alarms(RuleBasedStateMachine):
    """Beside the system a book is kept of what has to be: causes that are there, what is acknowledged, the pause."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Transition] = []
        self.system = AlarmSystem(LOCK, self.log.append)
        self.now_s = 0.0
        self.wanted: Counter[tuple[str, ...]] = Counter()
        self.standing: dict[tuple[str, str], Alarm] = {}
        self.causes: set[tuple[str, str]] = set()
        self.silenced: set[tuple[str, str]] = set()
        self.paused_until_s: float | None = None
        self.resets_allowed: set[tuple[str, str]] = set()

    def highest(self) -> Priority | None:
        left = [found.priority for place, found in self.standing.items() if place not in self.silenced]
        return max(left, default=None)

    def note(self, kind: str, place: tuple[str, str] | None = None) -> None:
        self.wanted[(kind, *(place or ()))] += 1

    def rearm(self) -> None:
        self.paused_until_s = None
        self.note("audio-on")

    def raised(self, hit: Alarm, place: tuple[str, str]) -> None:
        before = self.highest()
        self.standing[place] = hit
        self.causes.add(place)
        self.silenced.discard(place)
        self.note("raised", place)
        if self.paused_until_s is not None and (before is None or hit.priority > before):
            self.rearm()

    @rule(hit=PLACES, stops=st.booleans())
    def cause(self, hit: tuple[Alarm, str], stops: bool) -> None:
        found, channel = hit
        place = (found.key, channel)
        before = self.lock_times(channel)
        if place not in self.causes:
            self.raised(found, place)
        self.system.raise_alarm(found, channel, self.now_s, stops=stops)
        if self.lock_times(channel) > before:
            self.raised(LOCK, (LOCK.key, channel))

    def lock_times(self, channel: str) -> int:
        """How often the lock was raised; whether it has to be is what the tests above say."""
        return sum(found.times for found in self.system.conditions if (found.alarm, found.channel) == (LOCK, channel))

    @rule(hit=PLACES)
    def reminder(self, hit: tuple[Alarm, str]) -> None:
        found, channel = hit
        self.raised(found, (found.key, channel))
        self.system.raise_alarm(found, channel, self.now_s, again=True)

    @rule(hit=PLACES)
    def cause_goes(self, hit: tuple[Alarm, str]) -> None:
        found, channel = hit
        place = (found.key, channel)
        if place in self.causes:
            self.causes.discard(place)
            self.note("cause-gone" if found.latched else "ended", place)
            if not found.latched:
                del self.standing[place]
        self.system.end(found.key, channel, self.now_s)

    @rule()
    def acknowledge(self) -> None:
        for place in self.standing.keys() - self.silenced:
            self.note("acknowledged", place)
        self.silenced |= self.standing.keys()
        self.system.acknowledge(self.now_s)

    @rule()
    def reset(self) -> None:
        cleared, kept = self.system.reset(self.now_s)
        assert {(found.alarm.key, found.channel) for found in [*cleared, *kept]} == {
            place for place, found in self.standing.items() if found.latched
        }
        for found in cleared:
            place = (found.alarm.key, found.channel)
            assert found.alarm is LOCK or place not in self.causes, "its cause is still there"
            del self.standing[place]
            self.causes.discard(place)
            self.silenced.discard(place)
            self.note("reset", place)
        for found in kept:
            assert found.alarm is LOCK or (found.alarm.key, found.channel) in self.causes

    @rule()
    def pause(self) -> None:
        asked = self.paused_until_s is None and self.highest() is not None
        if asked:
            self.paused_until_s = self.now_s + AUDIO_PAUSE_S
            self.note("audio-paused")
        assert self.system.pause_audio(self.now_s) == asked

    @rule()
    def hear_again(self) -> None:
        if self.paused_until_s is not None:
            self.rearm()
        self.system.end_audio_pause(self.now_s)

    @rule(seconds=st.sampled_from([0.0, 0.1, 30.0, 200.0, 599.9, 600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        if self.paused_until_s is not None and (self.now_s >= self.paused_until_s or not self.standing):
            self.rearm()
        self.system.pass_time(self.now_s)

    @invariant()
    def what_stands_is_what_has_to(self) -> None:
        """In particular nothing latched has cleared without `reset`."""
        assert {(found.alarm.key, found.channel) for found in self.system.active} == self.standing.keys()
        assert [found.alarm.priority for found in self.system.active] == sorted(
            (found.priority for found in self.standing.values()), reverse=True
        )

    @invariant()
    def the_highest_that_nobody_acknowledged_sounds(self) -> None:
        assert self.system.sounding == (None if self.paused_until_s is not None else self.highest())
        assert self.system.shown == max((found.priority for found in self.standing.values()), default=None)

    @invariant()
    def every_transition_is_logged_once(self) -> None:
        found = Counter(
            (entry.kind, *((entry.condition.alarm.key, entry.condition.channel) if entry.condition else ()))
            for entry in self.log
        )
        assert found == self.wanted
        times = [entry.time_s for entry in self.log]
        assert times == sorted(times)

    @invariant()
    def the_list_tells_the_same_as_the_log(self) -> None:
        raised = sum(found.times for found in self.system.conditions)
        reset = sum(found.reset_s is not None for found in self.system.conditions)
        kinds = [entry.kind for entry in self.log]
        assert (raised, reset) == (kinds.count("raised"), kinds.count("reset"))


TestAlarms = Alarms.TestCase
TestAlarms.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_the_list_is_bounded_and_the_log_is_not(logged: Logged) -> None:
    from ionto_rt.alarm_system import HISTORY_MOST

    for number in range(HISTORY_MOST + 3):
        logged.system.raise_alarm(LOW, "", float(number))
        logged.system.end("low", "", number + 0.5)
    assert len(logged.system.conditions) == HISTORY_MOST and logged.system.left_out == 3
    assert logged.kinds().count("low raised") == HISTORY_MOST + 3


def test_the_numbers_are_those_of_the_rules() -> None:
    assert (AUDIO_PAUSE_S, REPEAT_WINDOW_S, REPEATS_TO_LOCK) == (600.0, 600.0, 3)
    assert Condition(LOW, "", 0.0).cause == "low"
