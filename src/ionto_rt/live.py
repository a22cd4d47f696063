"""What a person sees while a session runs: a live view on a terminal, a few lines on stderr elsewhere.

The orchestrator's thread must never wait for a terminal: somebody may hold its output, and two seconds without a
heartbeat ramp the current down. So a thread of its own draws and rings the bell, from the latest copy of the session's
progress, and another one writes the lines. A screen that does not follow is an alarm (H30), and the session goes on.
"""

import queue
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from ionto_rt.alarms import SCREEN_S, Alarm, Priority
from ionto_rt.codes import ALL_CHANNELS, Phase
from ionto_rt.errors import one_line
from ionto_rt.keys import SUSPEND, Keyboard, is_attended
from ionto_rt.sound import INDICATORS, Bell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text

    from ionto_rt.alarm_system import Condition
    from ionto_rt.channel_run import ChannelRun
    from ionto_rt.plan import Plan
    from ionto_rt.session import Progress, Session

FRAMES_PER_S = 8
TRIM_A = 1e-4
TRIM_RATIO = 0.05
"""One press of + or - is 0.1 mA, or 5 % of the step's level if that is less."""
SHOWN_ALARMS = 4
HUNG_VISITS = 10
"""Visits without a picture until the screen is called hung, beside SCREEN_S: a stall of all of Python is no fault of
its."""
LINES_MOST = 1000
"""Lines that may wait for a stream that takes none."""
NAME_COLUMNS = 13
WIDE_COLUMNS = 74
"""Within the frame; what a line of one channel needs with the longest phase and the largest readings."""
TOLD_IN_FULL = 2
"""Alarms, the most urgent first, whose advice is shown too: with more the keys leave a small screen."""
SAID_S = 4.0
LEAVE_S = 1.0
GONE = -1
"""In place of a row's form: it is left out."""
COULOMB_PER_MAMIN = 0.06
NOTHING_A = 5e-6
"""Less than this, unless it is asked for, is no current: zero as it is read."""
KNOWN_RATIO = 0.5
"""An impedance is shown while its sigma is less than this of it."""

PHASES = {phase: phase.name.lower().replace("_", " ").replace("self test", "self-test") for phase in Phase}
BEFORE = (Phase.SELF_TEST, Phase.CONTACT_CHECK, Phase.RAMP_UP)
ENDED = (Phase.COMPLETE, Phase.ABORTED, Phase.FAULTED)
PHASE_STYLES = {
    Phase.PAUSE: "yellow",
    Phase.RAMP_DOWN: "yellow",
    Phase.COMPLETE: "green",
    Phase.ABORTED: "yellow",
    Phase.FAULTED: "red",
}


class View(Protocol):
    """Shows a session; called with it at each visit of the orchestrator, in its thread.

    `attended` says that somebody can press keys.
    """

    attended: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, session: "Session") -> None:
        """The session is about to run."""

    def __call__(self, session: "Session") -> None: ...


def make_view(*, quiet: bool, bell: bool = True) -> View:
    """The live view if stdout is a terminal that can show one and `quiet` is not asked for; else lines on stderr.

    `bell` allows the terminal's bell.
    """
    if not quiet and sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        if not console.is_dumb_terminal:
            return LiveView(console, Keyboard(0) if is_attended(0) else None, bell=bell)
    return LineView(sys.stderr, bell=bell)


class LineView:
    """One line at the start, at each change of phase and for each alarm, written by a thread of its own.

    A stream that is gone is no error, and one that takes nothing costs no more than its lines. On a terminal its bell
    rings for the alarm that sounds, unless `bell` forbids it.
    """

    attended = False

    def __init__(self, stream: TextIO, *, bell: bool = True) -> None:
        self.stream = stream
        self.phases: dict[int, Phase] = {}
        self.alarms: dict[str, int] = {}
        self._rings = bell and stream.isatty()
        self._sounding: Priority | None = None
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MOST)
        self._thread = threading.Thread(target=self._write, name="ionto-rt lines", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left, as far as the stream takes it at once."""
        if self._thread.is_alive():
            self._put(None)
            self._thread.join(LEAVE_S)

    def begin(self, session: "Session") -> None:
        """Nothing yet: a session that is refused has one line, the refusal."""

    def __call__(self, session: "Session") -> None:
        if not self.phases:
            self._thread.start()
            dose_mamin = sum(channel.plan.prescribed_c for channel in session.channels) / COULOMB_PER_MAMIN
            longest_s = max(channel.plan.nominal_duration_s for channel in session.channels)
            self._put(f"{session.plan.title}: {dose_mamin:g} mA·min in {clock(longest_s)}, {session.device.uri}")
        for channel in session.channels:
            shown, of = channel.progress, f"{channel.name}: " if channel.name else ""
            if shown.phase != self.phases.get(channel.number):
                self.phases[channel.number] = shown.phase
                delivered = dose(shown.delivered_c, shown.prescribed_c)
                self._put(f"{clock(shown.elapsed_s)} {of}{PHASES[shown.phase]}, {delivered} mA·min")
        for name, shown in session.alarmed:
            of = f"{name}: " if name else ""
            for alarm in new_alarms(shown, self.alarms.get(name, 0)):
                self._put(f"{clock(shown.elapsed_s)} {of}{alarm.priority.name}: {alarm.line}")
            self.alarms[name] = shown.alarms_raised
        self._sounding = session.alarms.sounding

    def _put(self, text: str | None) -> None:
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            # Nobody has read for a thousand lines; the events of the record have them all.
            return

    def _write(self) -> None:
        bell = Bell()
        try:
            while True:
                now_s = time.monotonic()
                if self._rings and bell.due(self._sounding, now_s):
                    print("\a", end="", file=self.stream, flush=True)
                # The bell's pulses need no more than a tenth of a second, and nothing else is waited for on a clock.
                wait_s = min(0.1, max(0.01, bell.wait_s(now_s))) if self._rings else None
                try:
                    text = self._lines.get(timeout=wait_s)
                except queue.Empty:
                    continue
                if text is None:
                    return
                print(f"ionto-rt: {one_line(text)}", file=self.stream, flush=True)
        except (OSError, ValueError):
            return


def new_alarms(shown: "Progress", seen: int) -> list[Alarm]:
    """The alarms raised after the first `seen` ones, as far as they are kept."""
    return shown.alarms[len(shown.alarms) - min(len(shown.alarms), shown.alarms_raised - seen) :]


def clock(time_s: float) -> str:
    """Minutes and seconds, rounded down."""
    minutes, seconds = divmod(max(0, int(time_s)), 60)
    return f"{minutes}:{seconds:02}"


def dose(charge_c: float, of_c: float) -> str:
    """A charge in mA*min, with the decimals that suit a prescription of `of_c`."""
    value = charge_c / COULOMB_PER_MAMIN
    return f"{value:z.2f}" if of_c >= COULOMB_PER_MAMIN else f"{value:z.4f}"


def current(current_a: float) -> str:
    """A current in mA, in µA below 0.2 mA."""
    return f"{current_a * 1e3:.3f} mA" if abs(current_a) >= 2e-4 else f"{current_a * 1e6:z.1f} µA"


@dataclass(frozen=True)
class AlarmLine:
    """One alarm as it is listed: when it came, and what has become of it. `standing` ones have the indicator."""

    elapsed_s: float
    alarm: Alarm
    state: str = ""
    standing: bool = False


@dataclass(frozen=True)
class Audio:
    """What has been done to the signals: time left of the audio pause (s), and whether the bell may ring at all."""

    paused_s: float = 0.0
    bell: bool = True
    sounding: Priority | None = None


@dataclass(frozen=True)
class Frame:
    """All that the picture of one channel needs, copied, so that the drawing thread shares nothing with the
    orchestrator's. `chosen` says that keys act on this channel.
    """

    plan: "Plan"
    uri: str
    keys: bool
    shown: "Progress"
    step_level_a: float
    trim_a: float
    alarms: tuple[AlarmLine, ...]
    said: str
    name: str = ""
    chosen: bool = True
    audio: Audio = Audio()


@dataclass
class Dial:
    """The therapist's hand: what a key asks of the session.

    `trims_a` is the sum of what was asked of each channel; it is kept to where the level stays within the limits, so
    that a key pressed too often at the end of the scale need not be taken back. `channel` is the one that keys act on,
    chosen by its number from 1; None: all.
    """

    trims_a: dict[int, float] = field(default_factory=dict)
    channel: int | None = None
    said: str = ""
    said_at: float = field(default=float("-inf"))

    @property
    def trim_a(self) -> float:
        """What was asked of the first channel."""
        return self.trims_a.get(0, 0.0)

    def press(self, key: str, session: "Session") -> None:
        """Do what `key` means; keys without a meaning are ignored."""
        act = {
            "p": self._pause,
            SUSPEND: self._pause,
            "r": self._resume,
            "s": self._stop,
            "q": self._off,
            "+": self._raise,
            "=": self._raise,
            "-": self._lower,
            "_": self._lower,
            "a": self._acknowledge,
            "m": self._silence,
            "x": self._reset,
        }.get(key.lower())
        if act is None and len(session.channels) > 1 and key.isdecimal() and int(key) <= len(session.channels):
            act = partial(self._choose, int(key) - 1 if int(key) else None)
        going = any(channel.progress.phase not in ENDED for channel in session.channels)
        if act is not None and (going or session.alarms.active):
            self.said, self.said_at = act(session), time.monotonic()

    def _of(self, session: "Session", text: str) -> str:
        """What was done, with the name of the channel that it was done to, if there are others."""
        return f"{session.channels[self.channel].name}: {text}" if self.channel is not None else text

    @property
    def _target(self) -> int:
        return ALL_CHANNELS if self.channel is None else self.channel

    def _choose(self, channel: int | None, session: "Session") -> str:
        self.channel = channel
        return "keys act on all channels" if channel is None else f"keys act on {session.channels[channel].name}"

    def _pause(self, session: "Session") -> str:
        session.pause(self._target)
        return self._of(session, "pausing: the current ramps down, r resumes")

    def _resume(self, session: "Session") -> str:
        refused = session.resume(self._target)
        return refused or self._of(session, "resuming: the current ramps up from zero")

    def _stop(self, session: "Session") -> str:
        session.stop()
        return "stopping: the current ramps down"

    def _off(self, session: "Session") -> str:
        session.stop_now()
        return "off at once"

    def _acknowledge(self, session: "Session") -> str:
        heard = session.acknowledge()
        return f"acknowledged, silent: {_count(heard)}" if heard else "no alarm sounds"

    def _silence(self, session: "Session") -> str:
        if session.alarms.audio_paused:
            session.end_audio_pause()
            return "alarms sound again"
        if not session.pause_audio():
            return "no alarm sounds"
        return "audio paused for ten minutes, m ends it; a more urgent alarm sounds all the same"

    def _reset(self, session: "Session") -> str:
        cleared, kept = session.reset()
        if kept:
            done = f"reset {_count(cleared)}, " if cleared else ""
            return f"{done}not reset, its cause is there: {kept[0].alarm.title}"
        return f"reset: {_count(cleared)}" if cleared else "no alarm waits for a reset"

    def _raise(self, session: "Session") -> str:
        return self._trim(session, 1.0)

    def _lower(self, session: "Session") -> str:
        return self._trim(session, -1.0)

    def _trim(self, session: "Session", direction: float) -> str:
        if self.channel is None and len(session.channels) > 1:
            return "choose a channel by its number first"
        channel = session.channels[self.channel or 0]
        trim_a = self.trims_a.get(channel.number, 0.0)
        level_a = step_level_a(channel)
        by_a = min(TRIM_A, TRIM_RATIO * level_a)
        highest_a = channel.limits.current_max_a
        wanted_a = min(highest_a, max(by_a, level_a + trim_a + direction * by_a))
        change_a = wanted_a - level_a - trim_a
        if change_a * direction <= 1e-9:
            return self._of(session, f"{current(wanted_a)} is the {'highest' if direction > 0.0 else 'lowest'} level")
        refused = session.trim(change_a, channel.number)
        if refused:
            return self._of(session, refused)
        self.trims_a[channel.number] = trim_a + change_a
        return self._of(session, f"level {current(wanted_a)}")


def _count(found: list["Condition"]) -> str:
    return found[0].alarm.title if len(found) == 1 else f"{len(found)} alarms"


def step_level_a(channel: "ChannelRun") -> float:
    """The level of the step that runs, or of the next one that delivers (A, without the operator's trim)."""
    steps = channel.plan.steps[max(0, channel.progress.step) :]
    return next((step.level_a for step in steps if step.level_a > 0.0), channel.plan.max_level_a)


class LiveView:
    """The picture on a terminal, redrawn eight times a second; with a keyboard, its keys go to the session.

    The bell of the terminal rings for the alarm that sounds, unless `bell` forbids it.
    """

    def __init__(self, console: "Console", keyboard: Keyboard | None, *, bell: bool = True) -> None:
        self.console = console
        self.keyboard = keyboard
        self.bell = bell
        self.attended = keyboard is not None
        self.dial = Dial()
        self._alarms: deque[tuple[float, Alarm]] = deque(maxlen=SHOWN_ALARMS)
        self._seen: dict[str, int] = {}
        self._frames: list[Frame] = []
        self._drawn = 0
        self._seen_drawn = (0, 0, 0.0)
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.keyboard is not None:
            self._stack.enter_context(self.keyboard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        try:
            if self._thread is not None:
                self._thread.join(LEAVE_S)
        finally:
            self._stack.close()

    def begin(self, session: "Session") -> None:
        self._copy(session)
        self._thread = threading.Thread(target=self._draw, name="ionto-rt view", daemon=True)
        self._thread.start()

    def __call__(self, session: "Session") -> None:
        if self.keyboard is not None:
            for key in self.keyboard.read():
                self.dial.press(key, session)
        for name, shown in session.alarmed:
            for alarm in new_alarms(shown, self._seen.get(name, 0)):
                titled = replace(alarm, title=f"{name}: {alarm.title}") if name else alarm
                self._alarms.append((shown.elapsed_s, titled))
            self._seen[name] = shown.alarms_raised
        session.screen_answers(self._answers())
        self._copy(session)

    def _answers(self) -> bool:
        """Whether the picture follows: False after SCREEN_S and HUNG_VISITS without a new one."""
        now_s = time.monotonic()
        drawn, visits, at_s = self._seen_drawn
        if self._drawn != drawn or not at_s:
            self._seen_drawn = (self._drawn, 0, now_s)
            return True
        self._seen_drawn = (drawn, visits + 1, at_s)
        return visits + 1 < HUNG_VISITS or now_s - at_s <= SCREEN_S

    def _listed(self, session: "Session") -> tuple[AlarmLine, ...]:
        """What stands, the most urgent first, and then what came last, up to SHOWN_ALARMS."""
        lines: list[AlarmLine] = []
        for found in session.alarms.active:
            title = f"{found.channel}: {found.alarm.title}" if found.channel else found.alarm.title
            state = "acknowledged" if found.acknowledged_s is not None else ""
            if found.alarm.latched and not found.present:
                state = f"{state}, not seen now, x resets".removeprefix(", ")
            lines.append(AlarmLine(found.raised_s, replace(found.alarm, title=title), state, standing=True))
        known = {line.alarm.title for line in lines}
        over = [AlarmLine(at_s, alarm, "over") for at_s, alarm in reversed(self._alarms) if alarm.title not in known]
        return tuple([*lines, *over][: max(SHOWN_ALARMS, len(lines))])

    def _copy(self, session: "Session") -> None:
        listed = self._listed(session)
        audio = Audio(session.audio_left_s, self.bell, session.alarms.sounding)
        said = self.dial.said if time.monotonic() - self.dial.said_at < SAID_S else ""
        self._frames = [
            Frame(
                channel.plan,
                session.device.uri,
                self.attended,
                replace(channel.progress, alarms=[], messages=[]),
                step_level_a(channel),
                self.dial.trims_a.get(channel.number, 0.0),
                listed,
                said,
                channel.name,
                self.dial.channel in (None, channel.number),
                audio,
            )
            for channel in session.channels
        ]

    def _draw(self) -> None:
        from rich.live import Live

        bell = Bell()
        next_s = time.monotonic()
        try:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                while not self._left.wait(max(0.0, min(next_s - time.monotonic(), bell.wait_s(time.monotonic())))):
                    now_s, frames = time.monotonic(), self._frames
                    if self.bell and frames and bell.due(frames[0].audio.sounding, now_s):
                        self.console.bell()
                    if now_s < next_s:
                        continue
                    next_s = now_s + 1.0 / FRAMES_PER_S
                    if frames:
                        drawn = picture(frames[0], now_s) if len(frames) == 1 else overview(frames, now_s)
                        live.update(drawn, refresh=True)
                    self._drawn += 1
        except (OSError, ValueError):
            # The terminal is gone; the session goes on, and its receipt is on disk.
            return


def picture(frame: Frame, time_s: float = 0.0) -> "RenderableType":
    """The live view of one moment; `time_s` (any clock) is that of the flashing indicators."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    plan, shown = frame.plan, frame.shown
    sign = plan.polarity
    pole = "anode" if plan.polarity > 0 else "cathode"
    read, asked = current(sign * shown.current_a), current(sign * shown.setpoint_a)
    delivered, prescribed = (dose(value, shown.prescribed_c) for value in (shown.delivered_c, shown.prescribed_c))
    share = shown.delivered_c / shown.prescribed_c if shown.prescribed_c else 0.0
    given = f"{delivered} of {prescribed} mA·min, {100.0 * share:.0f} %"

    def facts(label: str, value: "str | Text", more: str) -> Table:
        made = Table.grid(padding=(0, 2))
        made.add_column(style="dim", min_width=len("current"))
        made.add_column(justify="right", min_width=len("3.999 mA"))
        made.add_column()
        made.add_row(label, value, more)
        return made

    top = Table.grid(expand=True)
    top.add_column()
    top.add_column(justify="right")
    phase = _phase(frame)
    long = phase.copy()
    if shown.step >= 0 and len(plan.steps) > 1:
        long.append(f"   step {shown.step + 1} of {len(plan.steps)}", style="default")
    if _derated(shown):
        long.append("   derated", style="cyan")
    left = _left(shown)
    top.add_row(long, f"{clock(shown.elapsed_s)} elapsed" + (f", {left} left" if left else ""))
    short = Text.assemble(phase, f"  {left} left" if left else f"  {clock(shown.elapsed_s)}")

    trim = f", trimmed by {frame.trim_a * 1e3:+.2f} mA" if abs(frame.trim_a) > 1e-7 else ""
    bold = Text(read, style="bold")
    bar = Table.grid(expand=True, padding=(0, 2))
    bar.add_column(style="dim", min_width=len("current"))
    bar.add_column(ratio=1)
    bar.add_column(justify="right")
    bar.add_row("dose", ProgressBar(total=1.0, completed=min(1.0, max(0.0, share))), given)
    counters = f"slow ticks {shown.late}, lost {shown.lost}"
    rows = [
        _Row("top", [top, short]),
        _Row(
            "current",
            [facts("current", bold, f"of {asked}, {pole}{trim}"), _labelled("current", bold, f" of {asked}")],
        ),
        _Row("voltage", [facts("voltage", f"{sign * shown.voltage_v:z.2f} V", f"impedance {_impedance(shown)}")]),
        _Row("dose", [bar, _labelled("dose", Text(given))]),
        _Row("counters", [Text(counters, style="yellow" if shown.late or shown.lost else "dim")]),
    ]
    terse = Text.assemble(phase, " ", bold)
    longer = Text.assemble(terse, f"  {left} left" if left else "")
    bare = [_Row("top", [longer, terse]), _Row("dose", [_labelled("dose", Text(given))])]
    return _Screen([frame], rows, bare, time_s)


def _labelled(label: str, value: "Text", more: str = "") -> "Text":
    from rich.text import Text

    return Text.assemble((f"{label} ", "dim"), value, more)


def _phase(frame: Frame) -> "Text":
    from rich.text import Text

    phase = frame.shown.phase
    return Text(PHASES[phase], style=f"bold {PHASE_STYLES.get(phase, 'default')}")


def _flows(shown: "Progress") -> bool:
    """A current is asked for, or measured, and the session has not ended."""
    return shown.phase not in ENDED and (shown.setpoint_a != 0.0 or abs(shown.current_a) >= NOTHING_A)


def _derated(shown: "Progress") -> bool:
    return shown.limited and _flows(shown)


def _left(shown: "Progress") -> str:
    """The time left; empty where it will not be: after the end, and on the way to one that was not planned."""
    return "" if shown.ending or shown.phase in ENDED else clock(shown.remaining_s)


def _impedance(shown: "Progress") -> str:
    if not (_flows(shown) and shown.resistance_sigma_ohm < KNOWN_RATIO * shown.resistance_ohm):
        return "not known yet" if shown.phase in BEFORE else "not known now"
    return f"{shown.resistance_ohm / 1e3:.2f} ± {shown.resistance_sigma_ohm / 1e3:.2f} kΩ"


@dataclass
class _Row:
    """A part of the picture, in its forms from the fullest to the shortest."""

    name: str
    forms: "list[RenderableType]"


class _Screen:
    """The picture: in the box of the treatment, with all that there is to say. Where the height does not suffice, what
    can be spared is left out in a fixed order. What stays to the last: phase and current, the title of the most urgent
    alarm, that a signal is inactivated, and the keys that are needed. `bare` is what stands above these without a box.
    """

    def __init__(self, frames: list[Frame], rows: list[_Row], bare: list[_Row], time_s: float) -> None:
        self.frames = frames
        self.rows = rows
        self.bare = bare
        self.time_s = time_s

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich.segment import SegmentLines

        height = options.size.height
        boxed = options.update(width=max(1, options.max_width - 4), height=None)
        parts = _fit(console, boxed, [*self.rows, *self._below()], self._spared(), height - 2)
        if sum(map(len, parts.values())) <= height - 2:
            yield self._box(SegmentLines([line for part in parts.values() for line in part], new_lines=True))
            return
        parts = _fit(
            console,
            options.update(height=None),
            [*self.bare, *self._below_bare()],
            [
                ("dose", GONE),
                ("others", 1),
                ("top", 1),
                ("said", GONE),
                ("others", GONE),
                ("keys", 1),
                ("alarm 0", 1),
            ],
            height,
        )
        # Too little even for these: lines go, of the channels those behind the first one, and each row keeps its first.
        for name in ("top", "alarm 0") if len(self.frames) > 1 else ("alarm 0", "top"):
            over = sum(map(len, parts.values())) - height
            if name in parts and over > 0:
                del parts[name][max(1, len(parts[name]) - over) :]
        yield SegmentLines([line for part in parts.values() for line in part][:height], new_lines=True)

    def _box(self, rows: "RenderableType") -> "RenderableType":
        from rich import box
        from rich.panel import Panel
        from rich.text import Text

        frame = self.frames[0]
        return Panel(
            rows,
            title=Text(frame.plan.title),
            subtitle=Text(frame.uri, style="dim"),
            box=box.ROUNDED,
            title_align="left",
            subtitle_align="right",
        )

    def _spared(self) -> list[tuple[str, int]]:
        """What is left out, first to last: the name of a row and the form that it gets."""
        alarms = self.frames[0].alarms
        numbers = range(len(alarms) - 1, -1, -1)
        over = [(f"alarm {number}", GONE) for number in numbers if not alarms[number].standing]
        return [
            *([] if self.frames[0].said else [("said", GONE)]),
            ("counters", GONE),
            *over,
            *((f"alarm {number}", 1) for number in numbers[:-1]),
            ("voltage", GONE),
            ("dose", 1),
            ("top", 1),
            ("current", 1),
            ("keys", 1),
            ("alarm 0", 1),
            ("dose", GONE),
            ("said", GONE),
        ]

    def _below(self) -> list[_Row]:
        from rich.console import Group
        from rich.text import Text

        frame = self.frames[0]
        rows = self._marks()
        for number, listed in enumerate(frame.alarms):
            # Advice of what is over would be false now.
            full = listed.standing and number < TOLD_IN_FULL
            title = self._alarm(listed)
            rows.append(_Row(f"alarm {number}", [self._alarm(listed, full=True) if full else title, title]))
        rows.append(_Row("said", [Text(frame.said or " ", style="bold")]))
        if frame.keys:
            long: RenderableType = Group(key_line(len(self.frames)), alarm_key_line())
        else:
            long = Text("Ctrl-C ramps down, a second one switches off", style="dim")
        return [*rows, _Row("keys", [long, self._needed_keys()])]

    def _below_bare(self) -> list[_Row]:
        from rich.console import Group
        from rich.text import Text

        frame = self.frames[0]
        rows = self._marks()
        standing = [listed for listed in frame.alarms if listed.standing]
        others = standing[1:]
        if standing:
            most = standing[0]
            more = f" +{len(others)}" if others else ""
            rows.append(_Row("alarm 0", [self._alarm(most), self._alarm(most, bare=True).append(more, style="bold")]))
        if others:
            titles = Group(*(self._alarm(listed) for listed in others))
            rows.append(_Row("others", [titles, Text(f"{len(others)} more", style="bold")]))
        if frame.said:
            rows.append(_Row("said", [Text(frame.said, style="bold")]))
        return [*rows, _Row("keys", [self._needed_keys(), self._needed_keys(least=True)])]

    def _marks(self) -> list[_Row]:
        """An inactivated signal is always marked, whatever stands (IEC 60601-1-8)."""
        from rich.text import Text

        audio = self.frames[0].audio
        marks = [f" AUDIO PAUSED {clock(audio.paused_s)} "] if audio.paused_s > 0.0 else []
        marks += [] if audio.bell else [" BELL OFF "]
        made = Text(" ").join(Text(mark, style="bold reverse") for mark in marks)
        return [_Row("marks", [made])] if marks else []

    def _alarm(self, listed: AlarmLine, *, full: bool = False, bare: bool = False) -> "Text":
        """An alarm with its advice if it is told in `full`; `bare`: its priority and title alone."""
        from rich.text import Text

        light = INDICATORS[listed.alarm.priority]
        lit = listed.standing and light.on(self.time_s)
        line = Text(overflow="fold")
        if not bare:
            line.append(f"{clock(listed.elapsed_s)} ", style="bold")
        label = f"bold black on {light.colour}" if lit else f"bold {light.colour}"
        line.append(listed.alarm.priority.name, style=label)
        line.append(f" {listed.alarm.line if full else listed.alarm.title}")
        if listed.state and not bare:
            line.append(f" ({listed.state})", style="bold")
        return line

    def _needed_keys(self, *, least: bool = False) -> "RenderableType":
        """The keys without which nothing goes on; `least`: one that ends it, and the reset."""
        from rich.text import Text

        frame = self.frames[0]
        over = all(each.shown.phase in ENDED for each in self.frames)
        if not frame.keys:
            return Text("Ctrl-C leaves" if over else "Ctrl-C ramps down", style="dim")
        latched = any(listed.standing and listed.alarm.latched for listed in frame.alarms)
        keys = [("x", "reset")] if latched else []
        if over:
            return _keys([*keys, ("q", "leave")], "  ", tight=True)
        if not least:
            keys += [("r", "resume")] if any(each.shown.paused for each in self.frames) else []
            keys += [("s", "stop"), ("q", "off")]
        else:
            keys += [("s", "stop")]
        return _keys(keys, "  ", tight=True)


def _fit(
    console: "Console", options: "ConsoleOptions", rows: list[_Row], spared: list[tuple[str, int]], height: int
) -> "dict[str, list[list[Segment]]]":
    """The lines of each row: in shorter forms, as `spared` has them, until `height` holds all; then what there is room
    for again comes back, the last spared first.
    """
    forms = {row.name: row.forms for row in rows}
    parts = {row.name: console.render_lines(row.forms[0], options) for row in rows}
    before: list[tuple[str, list[list[Segment]], list[list[Segment]]]] = []
    for name, form in spared:
        if sum(map(len, parts.values())) <= height:
            break
        if name not in parts or form >= len(forms[name]):
            continue
        shorter = console.render_lines(forms[name][form], options) if form != GONE else []
        if len(shorter) < len(parts[name]):
            before.append((name, parts[name], shorter))
            parts[name] = shorter
    for name, longer, shorter in reversed(before):
        # A line that was only broken in two says no more than its shorter form.
        worth = not shorter or name.startswith("alarm")
        if worth and parts[name] is shorter and sum(map(len, parts.values())) - len(shorter) + len(longer) <= height:
            parts[name] = longer
    return parts


def overview(frames: list[Frame], time_s: float = 0.0) -> "RenderableType":
    """The live view of several channels: a line each, two where the terminal is narrow; readings always stay whole."""
    from rich.text import Text

    told: list[str] = []
    for frame in frames:
        if _derated(frame.shown):
            told.append(f"{frame.name} derated")
        if abs(frame.trim_a) > 1e-7:
            told.append(f"{frame.name} trimmed by {frame.trim_a * 1e3:+.2f} mA")
    first = frames[0].shown
    counters = f"{clock(first.elapsed_s)} elapsed, slow ticks {first.late}, lost {first.lost}"
    counters = ", ".join([counters, *told])
    rows = [
        _Row("top", [_Fitting(frames), _least(frames)]),
        _Row("counters", [Text(counters, style="yellow" if first.late or first.lost else "dim")]),
    ]
    return _Screen(frames, rows, [_Row("top", [_least(frames)])], time_s)


def _least(frames: list[Frame]) -> "Table":
    """Of each channel its number, phase and current, and of its name what the line holds."""
    from rich.table import Table

    lines = Table.grid(expand=True, padding=(0, 1))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(no_wrap=True, ratio=1)
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True, justify="right", min_width=len("100.0 µA"))
    for number, frame in enumerate(frames, 1):
        name, phase, current_text, *_ = _cells(frame)
        lines.add_row(str(number), name, phase, current_text)
    return lines


class _Fitting:
    """The channels' lines, as many for each as the width asks for."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        yield (_wide if options.max_width >= WIDE_COLUMNS else _narrow)(self.frames)


def _wide(frames: list[Frame]) -> "Table":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    lines = Table.grid(expand=True, padding=(0, 1))
    # Where the terminal is narrow, readings stay whole and names are cut.
    lines.add_column(justify="right", style="dim", no_wrap=True, min_width=1)
    lines.add_column(no_wrap=True, max_width=NAME_COLUMNS)
    lines.add_column(no_wrap=True)
    lines.add_column(justify="right", no_wrap=True, min_width=len("-3.999 mA"))
    lines.add_column(justify="right", no_wrap=True, min_width=len("99.99 V"))
    lines.add_column(ratio=1)
    lines.add_column(justify="right", no_wrap=True, min_width=len("99.99 of 99.99 mA·min"))
    lines.add_column(justify="right", no_wrap=True, min_width=len("99:99"))
    for number, frame in enumerate(frames, 1):
        name, phase, current_text, voltage, share, given, left = _cells(frame)
        bar = ProgressBar(total=1.0, completed=min(1.0, max(0.0, share)))
        lines.add_row(str(number), name, phase, current_text, voltage, bar, given, left)
    return lines


def _narrow(frames: list[Frame]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(expand=True)
    for number, frame in enumerate(frames, 1):
        name, phase, current_text, voltage, _, given, left = _cells(frame)
        top = Table.grid(expand=True, padding=(0, 1))
        top.add_column(style="dim", no_wrap=True)
        top.add_column(no_wrap=True, ratio=1)
        top.add_column(no_wrap=True)
        top.add_column(no_wrap=True, justify="right")
        top.add_row(str(number), name, phase, left)
        lines.add_row(top)
        # Of these numbers none may be cut: where they do not fit into a line they break between two of them.
        lines.add_row(Text(f"  {current_text} {voltage} {given}"))
    return lines


def _cells(frame: Frame) -> "tuple[Text, Text, str, str, float, str, str]":
    """What there is to say of one channel: name, phase, current, voltage, share of the dose, dose, time left."""
    from rich.text import Text

    shown, sign = frame.shown, frame.plan.polarity
    share = shown.delivered_c / shown.prescribed_c if shown.prescribed_c else 0.0
    delivered, prescribed = (dose(value, shown.prescribed_c) for value in (shown.delivered_c, shown.prescribed_c))
    return (
        Text(frame.name, style="bold" if frame.chosen else "dim"),
        Text(PHASES[shown.phase], style=PHASE_STYLES.get(shown.phase, "default")),
        current(sign * shown.current_a),
        f"{sign * shown.voltage_v:z.2f} V",
        share,
        f"{delivered} of {prescribed} mA·min",
        _left(shown),
    )


def key_line(channels: int = 1) -> "RenderableType":
    """The keys and what they do; of several channels in as many words as a line of 80 columns holds."""
    keys = [("p", "pause"), ("r", "resume"), ("+ -", "current"), ("s", "stop"), ("q", "off at once")]
    if channels > 1:
        numbers = f"1-{min(channels, 9)}"
        keys = [(numbers, "channel"), ("0", "all"), *keys[:2], ("+ -", "trim"), ("s", "stop"), ("q", "off")]
    return _keys(keys, "  " if channels > 1 else "   ")


def alarm_key_line() -> "RenderableType":
    """The keys for alarms: silencing, and clearing what is latched, are acts of their own."""
    return _keys([("a", "acknowledge"), ("m", "silence 10 min"), ("x", "reset alarm")], "  ")


def _keys(keys: list[tuple[str, str]], between: str, *, tight: bool = False) -> "RenderableType":
    from rich.text import Text

    line = Text()
    for number, (key, what) in enumerate(keys):
        line.append(between if number else "")
        line.append(key if tight else f" {key} ", style="reverse")
        line.append(f" {what}")
    return line
