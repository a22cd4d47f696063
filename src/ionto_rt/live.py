"""What a person sees while a session runs: a live view on a terminal, a few lines on stderr elsewhere.

The orchestrator's thread must never wait for a terminal: somebody may hold its output, and two seconds without a
heartbeat ramp the current down. So a thread of its own draws, from the latest copy of the session's progress.
"""

import sys
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from ionto_rt.alarms import Alarm, Priority
from ionto_rt.codes import ALL_CHANNELS, Phase
from ionto_rt.errors import one_line
from ionto_rt.keys import SUSPEND, Keyboard, is_attended

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from ionto_rt.channel_run import ChannelRun
    from ionto_rt.plan import Plan
    from ionto_rt.session import Progress, Session

FRAMES_PER_S = 8
TRIM_A = 1e-4
TRIM_RATIO = 0.05
"""One press of + or - is 0.1 mA, or 5 % of the step's level if that is less."""
SHOWN_ALARMS = 4
NAME_COLUMNS = 13
SAID_S = 4.0
LEAVE_S = 1.0
COULOMB_PER_MAMIN = 0.06

PHASES = {phase: phase.name.lower().replace("_", " ").replace("self test", "self-test") for phase in Phase}
ENDED = (Phase.COMPLETE, Phase.ABORTED, Phase.FAULTED)
PHASE_STYLES = {
    Phase.PAUSE: "yellow",
    Phase.RAMP_DOWN: "yellow",
    Phase.COMPLETE: "green",
    Phase.ABORTED: "yellow",
    Phase.FAULTED: "red",
}
PRIORITY_STYLES = {
    Priority.INFORMATION: "blue",
    Priority.LOW: "cyan",
    Priority.MEDIUM: "yellow",
    Priority.HIGH: "red",
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


def make_view(*, quiet: bool) -> View:
    """The live view if stdout is a terminal that can show one and `quiet` is not asked for; else lines on stderr."""
    if not quiet and sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        if not console.is_dumb_terminal:
            return LiveView(console, Keyboard(0) if is_attended(0) else None)
    return LineView(sys.stderr)


class LineView:
    """One line at the start, at each change of phase and for each alarm. A stream that is gone is no error."""

    attended = False

    def __init__(self, stream: TextIO) -> None:
        self.stream: TextIO | None = stream
        self.phases: dict[int, Phase] = {}
        self.alarms: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, session: "Session") -> None:
        """Nothing yet: a session that is refused has one line, the refusal."""

    def __call__(self, session: "Session") -> None:
        if not self.phases:
            dose_mamin = sum(channel.plan.prescribed_c for channel in session.channels) / COULOMB_PER_MAMIN
            longest_s = max(channel.plan.nominal_duration_s for channel in session.channels)
            self._say(f"{session.plan.title}: {dose_mamin:g} mA·min in {clock(longest_s)}, {session.device.uri}")
        for channel in session.channels:
            shown, of = channel.progress, f"{channel.name}: " if channel.name else ""
            if shown.phase != self.phases.get(channel.number):
                self.phases[channel.number] = shown.phase
                delivered = dose(shown.delivered_c, shown.prescribed_c)
                self._say(f"{clock(shown.elapsed_s)} {of}{PHASES[shown.phase]}, {delivered} mA·min")
        for name, shown in session.alarmed:
            of = f"{name}: " if name else ""
            for alarm in new_alarms(shown, self.alarms.get(name, 0)):
                self._say(f"{clock(shown.elapsed_s)} {of}{alarm.priority.name}: {alarm.line}")
            self.alarms[name] = shown.alarms_raised

    def _say(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            print(f"ionto-rt: {one_line(text)}", file=self.stream, flush=True)
        except (OSError, ValueError):
            self.stream = None


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
    alarms: tuple[tuple[float, Alarm], ...]
    said: str
    name: str = ""
    chosen: bool = True


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
        }.get(key.lower())
        if act is None and len(session.channels) > 1 and key.isdecimal() and int(key) <= len(session.channels):
            act = partial(self._choose, int(key) - 1 if int(key) else None)
        if act is not None and any(channel.progress.phase not in ENDED for channel in session.channels):
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
        session.resume(self._target)
        return self._of(session, "resuming: the current ramps up from zero")

    def _stop(self, session: "Session") -> str:
        session.stop()
        return "stopping: the current ramps down"

    def _off(self, session: "Session") -> str:
        session.stop_now()
        return "off at once"

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
        session.trim(change_a, channel.number)
        self.trims_a[channel.number] = trim_a + change_a
        return self._of(session, f"level {current(wanted_a)}")


def step_level_a(channel: "ChannelRun") -> float:
    """The level of the step that runs, or of the next one that delivers (A, without the operator's trim)."""
    steps = channel.plan.steps[max(0, channel.progress.step) :]
    return next((step.level_a for step in steps if step.level_a > 0.0), channel.plan.max_level_a)


class LiveView:
    """The picture on a terminal, redrawn eight times a second; with a keyboard, its keys go to the session."""

    def __init__(self, console: "Console", keyboard: Keyboard | None) -> None:
        self.console = console
        self.keyboard = keyboard
        self.attended = keyboard is not None
        self.dial = Dial()
        self._alarms: deque[tuple[float, Alarm]] = deque(maxlen=SHOWN_ALARMS)
        self._seen: dict[str, int] = {}
        self._frames: list[Frame] = []
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
        self._copy(session)

    def _copy(self, session: "Session") -> None:
        said = self.dial.said if time.monotonic() - self.dial.said_at < SAID_S else ""
        self._frames = [
            Frame(
                channel.plan,
                session.device.uri,
                self.attended,
                replace(channel.progress, alarms=[], messages=[]),
                step_level_a(channel),
                self.dial.trims_a.get(channel.number, 0.0),
                tuple(self._alarms),
                said,
                channel.name,
                self.dial.channel in (None, channel.number),
            )
            for channel in session.channels
        ]

    def _draw(self) -> None:
        from rich.live import Live

        try:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                while not self._left.wait(1.0 / FRAMES_PER_S):
                    frames = self._frames
                    if frames:
                        live.update(picture(frames[0]) if len(frames) == 1 else overview(frames), refresh=True)
        except (OSError, ValueError):
            # The terminal is gone; the session goes on, and its receipt is on disk.
            return


def picture(frame: Frame) -> "RenderableType":
    """The live view of one moment."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    plan, shown = frame.plan, frame.shown
    sign = plan.polarity
    pole = "anode" if plan.polarity > 0 else "cathode"

    top = Table.grid(expand=True)
    top.add_column()
    top.add_column(justify="right")
    phase = Text(PHASES[shown.phase], style=f"bold {PHASE_STYLES.get(shown.phase, 'default')}")
    if shown.step >= 0 and len(plan.steps) > 1:
        phase.append(f"   step {shown.step + 1} of {len(plan.steps)}", style="default")
    if shown.limited:
        phase.append("   derated", style="cyan")
    top.add_row(phase, f"{clock(shown.elapsed_s)} elapsed, {clock(shown.remaining_s)} left")

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(justify="right")
    facts.add_column()
    trim = f", trimmed by {frame.trim_a * 1e3:+.2f} mA" if abs(frame.trim_a) > 1e-7 else ""
    facts.add_row(
        "current",
        Text(current(sign * shown.current_a), style="bold"),
        f"of {current(sign * shown.setpoint_a)}, {pole}{trim}",
    )
    resistance = (
        f"{shown.resistance_ohm / 1e3:.2f} ± {shown.resistance_sigma_ohm / 1e3:.2f} kΩ"
        if shown.resistance_ohm
        else "not known yet"
    )
    facts.add_row("voltage", f"{sign * shown.voltage_v:z.2f} V", f"impedance {resistance}")

    bar = Table.grid(expand=True, padding=(0, 2))
    bar.add_column(style="dim")
    bar.add_column(ratio=1)
    bar.add_column(justify="right")
    share = shown.delivered_c / shown.prescribed_c if shown.prescribed_c else 0.0
    delivered, prescribed = (dose(value, shown.prescribed_c) for value in (shown.delivered_c, shown.prescribed_c))
    bar.add_row(
        "dose   ",
        ProgressBar(total=1.0, completed=min(1.0, max(0.0, share))),
        f"{delivered} of {prescribed} mA·min, {100.0 * share:.0f} %",
    )

    rows = Table.grid(expand=True)
    rows.add_row(top)
    rows.add_row(facts)
    rows.add_row(bar)
    counters = Text(
        f"late {shown.late}, lost {shown.lost}", style="dim" if not (shown.late or shown.lost) else "yellow"
    )
    rows.add_row(counters)
    return _framed(frame, rows)


def _framed(frame: Frame, rows: "Table", channels: int = 1) -> "RenderableType":
    """Rows, with the alarms and the keys below them, in the box of the treatment."""
    from rich import box
    from rich.panel import Panel
    from rich.text import Text

    for elapsed_s, alarm in frame.alarms:
        line = Text(overflow="fold")
        line.append(f"{clock(elapsed_s)} {alarm.priority.name} ", style=f"bold {PRIORITY_STYLES[alarm.priority]}")
        line.append(alarm.line)
        rows.add_row(line)
    if frame.keys:
        rows.add_row(Text(frame.said or " ", style="bold"))
        rows.add_row(key_line(channels))
    else:
        rows.add_row(Text("Ctrl-C ramps down, a second one switches off", style="dim"))
    return Panel(
        rows,
        title=Text(frame.plan.title),
        subtitle=Text(frame.uri, style="dim"),
        box=box.ROUNDED,
        title_align="left",
        subtitle_align="right",
    )


def overview(frames: list[Frame]) -> "RenderableType":
    """The live view of several channels: a line each."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    told: list[str] = []
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
        shown, sign = frame.shown, frame.plan.polarity
        share = shown.delivered_c / shown.prescribed_c if shown.prescribed_c else 0.0
        phase = Text(PHASES[shown.phase], style=PHASE_STYLES.get(shown.phase, "default"))
        if shown.limited:
            told.append(f"{frame.name} derated")
        delivered, prescribed = (dose(value, shown.prescribed_c) for value in (shown.delivered_c, shown.prescribed_c))
        lines.add_row(
            str(number),
            Text(frame.name, style="bold" if frame.chosen else "dim"),
            phase,
            current(sign * shown.current_a),
            f"{sign * shown.voltage_v:z.2f} V",
            ProgressBar(total=1.0, completed=min(1.0, max(0.0, share))),
            f"{delivered} of {prescribed} mA·min",
            clock(shown.remaining_s),
        )
        if abs(frame.trim_a) > 1e-7:
            told.append(f"{frame.name} trimmed by {frame.trim_a * 1e3:+.2f} mA")
    rows = Table.grid(expand=True)
    rows.add_row(lines)
    first = frames[0].shown
    counters = f"{clock(first.elapsed_s)} elapsed, late {first.late}, lost {first.lost}"
    counters = ", ".join([counters, *told])
    rows.add_row(Text(counters, style="yellow" if first.late or first.lost else "dim"))
    return _framed(frames[0], rows, len(frames))


def key_line(channels: int = 1) -> "RenderableType":
    """The keys and what they do; of several channels in as many words as a line of 80 columns holds."""
    from rich.text import Text

    keys = [("p", "pause"), ("r", "resume"), ("+ -", "current"), ("s", "stop"), ("q", "off at once")]
    if channels > 1:
        numbers = f"1-{min(channels, 9)}"
        keys = [(numbers, "channel"), ("0", "all"), *keys[:2], ("+ -", "trim"), ("s", "stop"), ("q", "off")]
    line = Text()
    for number, (key, what) in enumerate(keys):
        line.append(("  " if channels > 1 else "   ") if number else "")
        line.append(f" {key} ", style="reverse")
        line.append(f" {what}")
    return line
