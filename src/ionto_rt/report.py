"""The report of a session for people: one HTML page that needs nothing else, and the plots as a PNG.

Shown are the receipt, current and setpoint, voltage, impedance and dose over time with phases and events marked, the
alarms with their advice, limits, host fitness and versions. Up to four channels have all their panels; of more, current
and dose of each are drawn small, on axes that are alike. Everything that came from a treatment, a device or an
operator is escaped. Where the record does not verify, page and picture say so at their heads. Matplotlib is an extra
(`pip install ionto-rt[report]`) and is loaded only here.
"""

import html
import io
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt.events import Event
from ionto_rt.record import COULOMB_PER_MAMIN, PHASES, Channel, Record, RecordError, Telemetry, write_atomic
from ionto_rt.verify import verify

# Matplotlib's own types change from version to version.
Axes = Any
Figure = Any

HTML_NAME = "report.html"
PNG_NAME = "report.png"

_BINS = 1400
_BINS_SMALL = 300
_LARGE = 4
"""Channels that are drawn with all their panels; of more, each gets a small one."""
_SMALL_COLUMNS = 4
_LANES = 4
_MARKS = 60
_CLOSE_S = 0.06
_PNG_DPI = 130
# Events that the phases or the receipt show already.
_UNMARKED = frozenset(
    ("record-begun", "armed", "phase", "step", "device-status", "end", "session-ended", "guard-pause-over")
)
_URGENT = frozenset(("trip", "device-lost", "guard-pause", "recovered", "unattended"))
_LABEL_LETTERS = 44
_JOINED_LETTERS = 62
"""Of labels of one moment, joined: less than half an axis, so that they fit on one side of their line."""
_MOMENT_RATIO = 0.01
"""Events closer than this part of the axis are one moment: their lines are too close for labels of their own."""
_EVENT_WORDS = {"black-box": "black box kept"}
_FLOWS_RATIO = 1e-3
"""Current of this part of what the device lets flow is taken as flowing: readings without any stay well below it."""
_USUAL_PERCENT = 99.5
_PEAK_RATIO = 2.0
_PEAK_MARGIN = 1.4
"""A peak of more than `_PEAK_RATIO` times the voltage that `_USUAL_PERCENT` of the treatment stay below is marked,
where the axis ends at `_PEAK_MARGIN` times that voltage."""
_SHOWN_EVENTS = 500
_SHOWN_PROBLEMS = 12
_PHASE_COLOURS = {
    "self test": "#d9d9d9",
    "contact check": "#c6dbef",
    "ramp up": "#fee6b0",
    "treatment": "#d4edd0",
    "pause": "#e4dcf1",
    "ramp down": "#fdd5b1",
    "complete": "#eeeeee",
    "aborted": "#f6c9c9",
    "faulted": "#f0a8a8",
}
_MEASURED, _SETPOINT, _PRESCRIBED, _EVENT, _ALARM = "#1f5fa8", "#d1495b", "#555555", "#444444", "#b00020"
_LABELS = {
    "name": "Channel",
    "outcome": "Outcome",
    "reason": "Reason",
    "dose_prescribed_mamin": "Dose prescribed (mA·min)",
    "dose_delivered_mamin": "Dose delivered (mA·min)",
    "dose_basis": "Dose known from",
    "dose_ledger_mamin": "Dose by the host's ledger (mA·min)",
    "dose_device_mamin": "Dose by the device's count (mA·min)",
    "dose_unseen_mamin": "Dose added for what nobody counted (mA·min)",
    "dose_seen_mamin": "Dose seen in telemetry (mA·min)",
    "delivered_net_c": "Charge, net (C)",
    "delivered_abs_c": "Charge, absolute (C)",
    "duration_s": "Duration (s)",
    "drug_mass_mg_interval": "Drug delivered, interval (mg)",
    "peak_current_ma": "Peak current (mA)",
    "peak_voltage_v": "Peak voltage (V)",
    "mean_error_ratio": "Mean error of the current, of its setpoint",
    "ripple_rms_ratio": "Ripple, rms, of the setpoint",
    "area_watched_ratio": "Share of the treatment in which contact area was watched",
    "load": "Load at the contact check",
    "margins": "Margins of the loop there",
    "ticks": "Ticks",
    "gaps": "Gaps in samples",
    "late": "Late commands",
    "latency_us": "Latency of a tick (µs)",
    "trips": "Trips",
    "record": "Record",
    "session_id": "Session",
    "ended_utc": "Ended (UTC)",
}
_NOT_IN_TABLE = frozenset(("alarms", "alarm_log", "events", "notes", "channels"))
_AT_A_GLANCE = (
    "name",
    "outcome",
    "dose_delivered_mamin",
    "dose_prescribed_mamin",
    "peak_current_ma",
    "peak_voltage_v",
    "trips",
    "reason",
)
"""Of each channel, one line; the rest in tables of four channels."""
# SI as recorded -> what people read.
_READ_UNITS = {
    "A": ("mA", 1e3),
    "C": ("mA·min", 1 / COULOMB_PER_MAMIN),
    "A/m^2": ("mA/cm²", 0.1),
    "A/s": ("mA/s", 1e3),
}
_CHANNEL_SECTIONS = {"limits": "Limits", "plan": "Plan", "calibration": "Calibration, measured"}
_SESSION_SECTIONS = {
    "host": "Host fitness",
    "versions": "Versions",
    "hashes": "Hashes",
    "device": "Device",
}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReportPaths:
    """Where the report was written, and what `verify` found wrong with the record."""

    html: Path
    png: Path
    problems: tuple[str, ...] = ()


def report(folder: Path, out_dir: Path | None = None) -> ReportPaths:
    """Write `report.html` and `report.png` into a session's folder, or into `out_dir` alone, and return their paths.

    Works on a running or unrecovered session too, with what there is. Raises `RecordError` if the folder is not a
    session's, or matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise RecordError("report: matplotlib is not installed; pip install 'ionto-rt[report]'") from None
    record = Record.open(folder)
    problems = tuple(verify(folder).changes)
    chain = record.events()
    telemetry = record.telemetry() if record.has_telemetry else None
    png = io.BytesIO()
    settings: Any = {"svg.fonttype": "path", "svg.hashsalt": folder.name, "font.size": 9.0, "axes.unicode_minus": True}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A name may hold characters that the plot's font lacks; the page itself shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = _figure(record, telemetry, chain.events, problems)
        figure.savefig(png, format="png", dpi=_PNG_DPI)
        drawings = {"Course": _svg(figure)}
        trip = next((event for event in chain.events if event.kind == "trip" and event.tick is not None), None)
        if trip is not None and telemetry is not None and len(telemetry):
            drawings["Around the first trip"] = _svg(_close_up(record, telemetry, chain.events, trip))
    page = _page(record, telemetry, chain.events, drawings, problems)
    place = folder if out_dir is None else out_dir
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(place / HTML_NAME, place / PNG_NAME, problems)
    write_atomic(paths.html, page.encode())
    write_atomic(paths.png, png.getvalue())
    return paths


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return text.getvalue()[text.getvalue().index("<svg") :]


def _bins(count: int, most: int = _BINS) -> npt.NDArray[np.intp]:
    return np.linspace(0, count, min(most, count), endpoint=False).astype(np.intp)


def _envelope(values: Array, bins: int = _BINS) -> tuple[Array, Array, Array]:
    """Least, mean and greatest value per bin; NaN only where a bin holds nothing else."""
    starts = _bins(len(values), bins)
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    mean = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return np.fmin.reduceat(values, starts), mean, np.fmax.reduceat(values, starts)


def _corners(values: Array, bins: int = _BINS) -> tuple[npt.NDArray[np.intp], Array]:
    """First and last value of each bin, with their places: what a curve of steps and ramps needs."""
    starts = _bins(len(values), bins)
    ends = np.append(starts[1:], len(values)) - 1
    places = np.column_stack((starts, ends)).reshape(-1)
    return places, values[places]


def _figure(record: Record, telemetry: Telemetry | None, events: Sequence[Event], problems: Sequence[str]) -> Figure:
    from matplotlib import figure as figures

    count = len(record.channels)
    rows = -(-count // _SMALL_COLUMNS)
    height = 10.6 if count == 1 else 0.8 + 6.8 * count if count <= _LARGE else 1.2 + 2.3 * rows
    figure: Figure = figures.Figure(figsize=(11, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.03, hspace=0.02)
    _title(figure, record, problems)
    if telemetry is None or not len(telemetry):
        figure.text(0.5, 0.5, "no telemetry", ha="center")
        return figure
    if count > _LARGE:
        phases = _draw_small(figure, rows, record, telemetry, events)
    else:
        groups = [figure] if count == 1 else list(figure.subfigures(count, 1))
        phases = {}
        for channel, group in zip(record.channels, groups, strict=True):
            if count > 1:
                _group_title(group, channel)
            phases |= _draw_group(group, channel, telemetry, _events_of(events, channel))
    _legend_below(figure, phases, curves=count > _LARGE)
    return figure


def _events_of(events: Sequence[Event], channel: Channel) -> list[Event]:
    """A channel's events, and those of the whole session."""
    return [event for event in events if event.fields.get("channel", channel.number) == channel.number]


def _group_title(group: Figure, channel: Channel) -> None:
    group.suptitle(_channel_line(channel), x=0.01, ha="left", fontsize=10.5, fontweight="bold", parse_math=False)


def _channel_line(channel: Channel) -> str:
    """Name, outcome and dose of a channel."""
    receipt = channel.receipt or {}
    parts = [_one_line(channel.name, 40)]
    if receipt.get("outcome"):
        parts.append(str(receipt["outcome"]))
    return "  ·  ".join([*parts, *_doses(receipt)])


def _doses(receipt: Mapping[str, Any]) -> list[str]:
    """Dose delivered and prescribed, in one part of a title; none where there is none."""
    dose, prescribed = receipt.get("dose_delivered_mamin"), receipt.get("dose_prescribed_mamin")
    if not isinstance(dose, (int, float)):
        return []
    shown = f"{dose:.2f}" if abs(dose) >= 1 else f"{dose:.3g}"
    return [f"{shown} of {_number(prescribed, 4)} mA·min"]


def _draw_group(figure: Figure, channel: Channel, telemetry: Telemetry, events: Sequence[Event]) -> dict[str, str]:
    """All panels of one channel; the phases that occur, with their colours."""
    # Of four labels over each other, each needs its height: a group of several is lower than a page.
    events_ratio = 0.62 if len(channel.record.channels) == 1 else 0.85
    lane, strip, current, voltage, impedance, dose = figure.subplots(
        6, 1, sharex=True, height_ratios=(events_ratio, 0.26, 2.3, 1.6, 1.6, 2.0)
    )
    columns = _columns(channel, telemetry, _BINS if len(channel.record.channels) == 1 else _BINS // 2)
    if columns is None:
        current.text(0.5, 0.5, "no rows of this channel", transform=current.transAxes, ha="center")
        return {}
    panels = (current, voltage, impedance, dose)
    phases = _draw_phases(strip, panels, columns)
    _draw_current(current, columns, channel.polarity)
    flows = columns.flows(_FLOWS_RATIO * channel.max_current_a)
    _draw_voltage(voltage, columns, channel.polarity, flows)
    _draw_impedance(impedance, columns, flows)
    _draw_dose(dose, columns, channel)
    _draw_events(lane, panels, events, columns)
    _finish_axes(figure, panels)
    dose.set_xlim(0, columns.end * 1.008)
    dose.set_xlabel(columns.label)
    return phases


def _draw_small(
    figure: Figure, rows: int, record: Record, telemetry: Telemetry, events: Sequence[Event]
) -> dict[str, str]:
    """Current and dose of each channel on axes that are alike; the phases that occur, with their colours."""
    cells = figure.subplots(2 * rows, _SMALL_COLUMNS, sharex=True, squeeze=False, height_ratios=(1.5, 1.0) * rows)
    phases: dict[str, str] = {}
    tops = [0.0, 0.0]
    end, label = 0.0, ""
    for place in range(rows * _SMALL_COLUMNS):
        row, column = divmod(place, _SMALL_COLUMNS)
        current, dose = cells[2 * row][column], cells[2 * row + 1][column]
        if place >= len(record.channels):
            current.set_visible(False)
            dose.set_visible(False)
            continue
        channel = record.channels[place]
        outcome = str((channel.receipt or {}).get("outcome", ""))
        title = "  ·  ".join(filter(None, (_one_line(channel.name, 24), outcome)))
        colour = _ALARM if outcome in ("aborted", "faulted") else "#000000"
        current.set_title(title, fontsize=8, loc="left", color=colour, parse_math=False, pad=2)
        columns = _columns(channel, telemetry, _BINS_SMALL)
        if columns is None:
            continue
        phases |= _draw_phases(None, (current, dose), columns)
        least, mean, greatest = _envelope(columns["current_a"] * channel.polarity * 1e3, columns.bins)
        time = columns.middle()
        current.fill_between(time, least, greatest, color=_MEASURED, alpha=0.30, linewidth=0)
        current.plot(time, mean, color=_MEASURED, lw=0.9)
        places, level = _corners(columns["level_a"] * channel.polarity * 1e3, columns.bins)
        current.plot(columns.time[places], level, color=_SETPOINT, lw=0.8, ls="--")
        places, delivered = _corners(columns["delivered_c"] / COULOMB_PER_MAMIN, columns.bins)
        prescribed = channel.prescribed_c / COULOMB_PER_MAMIN
        dose.plot(columns.time[places], delivered, color=_MEASURED, lw=1.1)
        dose.axhline(prescribed, color=_PRESCRIBED, lw=0.8, ls="--")
        for event in _events_of(events, channel):
            if event.kind in _URGENT and event.tick is not None:
                for axes in (current, dose):
                    axes.axvline(columns.at(event.tick), color=_ALARM, lw=0.8)
        tops = [max(tops[0], float(np.nanmax(greatest, initial=0.0))), max(tops[1], prescribed)]
        end, label = max(end, columns.end), columns.label
    _finish_small(figure, cells, tops, end, label)
    return phases


def _finish_small(figure: Figure, cells: Any, tops: Sequence[float], end: float, label: str) -> None:
    for number, line in enumerate(cells):
        top = tops[number % 2] * 1.12 or 1.0
        for column, axes in enumerate(line):
            axes.set_ylim(-0.06 * top, top)
            axes.set_xlim(0, end * 1.008 or 1.0)
            axes.tick_params(labelsize=7, labelleft=column == 0)
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(("mA", "mA·min")[number % 2], fontsize=7.5)
    figure.align_ylabels(cells[:, 0])
    for column in cells.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel(label, fontsize=7.5)


def _finish_axes(figure: Figure, panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    figure.align_ylabels(panels)


def _close_up(record: Record, telemetry: Telemetry, events: Sequence[Event], trip: Event) -> Figure:
    """Every sample from 60 ms before a trip to 60 ms after it."""
    from matplotlib import figure as figures

    assert trip.tick is not None
    channel = _channel_of(record, trip)
    reach = round(_CLOSE_S / record.tick_s)
    columns = _columns(channel, telemetry, _BINS, (trip.tick - reach, trip.tick + reach))
    figure: Figure = figures.Figure(figsize=(11, 6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.03, hspace=0.02)
    lane, current, voltage = figure.subplots(3, 1, sharex=True, height_ratios=(0.62, 2, 1.6))
    if columns is None:
        current.text(0.5, 0.5, "no rows of this channel", transform=current.transAxes, ha="center")
        return figure
    panels = (current, voltage)
    for name, label, colour, line in (
        ("current_a", "measured", _MEASURED, "-"),
        ("redundant_a", "second reading", "#3a7d44", "-"),
        ("setpoint_a", "setpoint", _SETPOINT, "--"),
    ):
        values = columns[name] * channel.polarity * 1e3
        current.plot(columns.time, values, color=colour, lw=1.1, ls=line, label=label, drawstyle="steps-post")
    current.set_ylabel("Current (mA)")
    volts = columns["voltage_v"] * channel.polarity
    voltage.plot(columns.time, volts, color=_MEASURED, lw=1.1, drawstyle="steps-post")
    voltage.set_ylabel("Voltage (V)")
    _legend(current)
    _draw_events(lane, panels, _events_of(events, channel), columns)
    _finish_axes(figure, panels)
    voltage.set_xlim(columns.start, columns.end)
    of = f" of {_one_line(channel.name, 40)}" if len(record.channels) > 1 else ""
    voltage.set_xlabel(f"Time since the trip{of} at {_clock(record, trip.tick)} (ms)", parse_math=False)
    return figure


def _channel_of(record: Record, event: Event) -> Channel:
    """The channel that an event belongs to; the first for what is the session's."""
    number = event.fields.get("channel")
    known = isinstance(number, int) and 0 <= number < len(record.channels)
    return record.channels[number if known else 0]  # type: ignore[index]


def _columns(
    channel: Channel, telemetry: Telemetry, bins: int, window: tuple[int, int] | None = None
) -> "_Columns | None":
    """A channel's columns; None without a row of it (in `window`, first and last index)."""
    columns = _Columns(channel, telemetry, bins, window)
    return columns if len(columns.time) else None


class _Columns:
    """Columns of one channel, with a time axis in minutes, or in seconds for a short session.

    With `window` (first and last index), only these ticks, and time in milliseconds from their middle. `bins` is into
    how many parts the curves are thinned out.
    """

    def __init__(
        self, channel: Channel, telemetry: Telemetry, bins: int, window: tuple[int, int] | None = None
    ) -> None:
        self._telemetry = telemetry.of_channel(channel.number)
        self.bins = bins
        index = self._telemetry["index"].astype(np.int64)
        tick_s = channel.tick_s
        self.origin = 0
        self.scale_s = 60.0 if len(index) and index[-1] * tick_s >= 120 else 1.0
        self._chosen: npt.NDArray[np.bool_] | None = None
        if window is not None:
            self._chosen = (index >= window[0]) & (index <= window[1])
            self.origin = (window[0] + window[1]) // 2
            self.scale_s = 1e-3
        self.tick_s = tick_s
        self.time: Array = self.at(self["index"])
        self.start = 0.0 if window is None else float(self.at(window[0]))
        self.end = float(self.at(window[1])) if window else float(self.time[-1:].sum()) or tick_s

    @property
    def label(self) -> str:
        return "Time since arming (min)" if self.scale_s == 60 else "Time since arming (s)"

    def at(self, tick: Any) -> Any:
        """A tick's place on the time axis."""
        return (tick - self.origin) * self.tick_s / self.scale_s

    def __getitem__(self, name: str) -> Array:
        """One column as floats, NaN for what is not finite."""
        column = self._telemetry[name]
        values: Array = (column if self._chosen is None else column[self._chosen]).astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        return values

    def flows(self, least_a: float) -> npt.NDArray[np.bool_]:
        """Where the measured current, of either sign, is not below `least_a`."""
        flows: npt.NDArray[np.bool_] = np.abs(self["current_a"]) >= least_a
        return flows

    def middle(self) -> Array:
        """Time of each bin's middle."""
        starts = _bins(len(self.time), self.bins)
        ends = np.append(starts[1:], len(self.time)) - 1
        middle: Array = (self.time[starts] + self.time[ends]) / 2
        return middle


def _unverified(problems: Sequence[str]) -> str:
    """That the record is not as it was written, and where first."""
    more = f"; {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"the record does not verify: {problems[0]}{more}"


def _heading(record: Record) -> str:
    """The treatment's title; where its file does not say, the file's name or the session's."""
    try:
        title = tomllib.loads(record.treatment_source.decode()).get("title")
    except (ValueError, RecursionError, RecordError):
        title = None
    named = title if isinstance(title, str) else ""
    return named.strip() or str(record.session.get("name", "")).strip() or record.path.name


def _title(figure: Figure, record: Record, problems: Sequence[str]) -> None:
    receipt = record.receipt or {}
    outcome = str(receipt.get("outcome") or ("running" if record.running else "no receipt"))
    parts = [_one_line(_heading(record), 60), outcome]
    lines = ["  ·  ".join([*parts, *_doses(receipt)])]
    if problems:
        lines.append(_one_line(_unverified(problems), 110))
    colour = _ALARM if problems else "#000000"
    figure.suptitle("\n".join(lines), fontsize=12, fontweight="bold", color=colour, parse_math=False)


def _draw_phases(strip: Axes | None, panels: Sequence[Axes], columns: _Columns) -> dict[str, str]:
    """Phases behind the panels, and named in the strip if there is one; those that occur, with their colours."""
    phase = columns["phase"].astype(np.int64)
    edges = np.concatenate(([0], np.flatnonzero(np.diff(phase)) + 1, [len(phase)]))
    seen: dict[str, str] = {}
    for first, after in pairwise(edges):
        number = int(phase[first])
        name = PHASES[number] if 0 <= number < len(PHASES) else f"phase {number}"
        colour = _PHASE_COLOURS.get(name, "#ffffff")
        start, end = columns.time[first], columns.time[min(after, len(phase) - 1)]
        seen[name] = colour
        for axes in panels:
            axes.axvspan(start, end, color=colour, alpha=0.35, linewidth=0)
        if strip is None:
            continue
        strip.axvspan(start, end, color=colour, linewidth=0)
        if (end - start) / columns.end > 0.012 * len(name):
            strip.text((start + end) / 2, 0.5, name, ha="center", va="center", fontsize=8, clip_on=True)
    if strip is not None:
        strip.set_ylim(0, 1)
        strip.set_yticks([])
        strip.set_ylabel("Phase", rotation=0, ha="right", va="center")
        strip.tick_params(bottom=False)
        strip.spines[:].set_visible(False)
    return seen


def _legend_below(figure: Figure, phases: Mapping[str, str], *, curves: bool) -> None:
    """The phases, and the curves where the panels have no room for a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [
        Line2D([], [], color=_MEASURED, label="measured"),
        Line2D([], [], color=_SETPOINT, ls="--", label="setpoint"),
        Line2D([], [], color=_PRESCRIBED, ls="--", label="prescribed"),
    ]
    handles = [Patch(color=colour, label=name) for name, colour in phases.items()] + lines * curves
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) or 1,
        frameon=False,
        fontsize=8,
        handlelength=1.2,
    )


def _draw_current(axes: Axes, columns: _Columns, polarity: float) -> None:
    electrode = "anode +" if polarity > 0 else "cathode \N{MINUS SIGN}"
    _draw_band(axes, columns, "current_a", polarity * 1e3, f"Current (mA)\nactive: {electrode}", "measured")
    setpoint = columns["level_a"] * polarity * 1e3
    prescribed = columns["prescribed_a"] * polarity * 1e3
    if not np.allclose(setpoint, prescribed, atol=1e-6, equal_nan=True):
        places, corners = _corners(prescribed, columns.bins)
        axes.plot(columns.time[places], corners, color=_PRESCRIBED, lw=1.0, ls=":", label="prescribed")
    places, corners = _corners(setpoint, columns.bins)
    axes.plot(columns.time[places], corners, color=_SETPOINT, lw=1.1, ls="--", label="setpoint")
    _legend(axes)


def _draw_band(axes: Axes, columns: _Columns, name: str, factor: float, label: str, curve: str) -> None:
    least, mean, greatest = _envelope(columns[name] * factor, columns.bins)
    time = columns.middle()
    axes.fill_between(
        time, least, greatest, color=_MEASURED, alpha=0.30, linewidth=0, label=f"{curve}, least to greatest"
    )
    axes.plot(time, mean, color=_MEASURED, lw=1.3, label=f"{curve}, mean")
    axes.set_ylabel(label)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0), high + 0.16 * (high - low))


def _draw_voltage(axes: Axes, columns: _Columns, polarity: float, flows: npt.NDArray[np.bool_]) -> None:
    """An axis for the voltage while current flows; a peak far beyond it is marked at its place, with its value."""
    _draw_band(axes, columns, "voltage_v", polarity, "Voltage (V)", "measured")
    volts = columns["voltage_v"] * polarity
    place = "upper right"
    peaks = _peaks(volts, flows)
    if peaks:
        edge = _PEAK_MARGIN * _usual(volts, flows)
        least, greatest = float(np.nanmin(volts)), float(np.nanmax(volts))
        axes.set_ylim(max(-edge, min(least, 0.0) - 0.05 * edge), min(edge, max(greatest, 0.0) + 0.05 * edge))
    for sign, at in peaks:
        late = columns.time[at] > (columns.start + columns.end) / 2
        if late and sign > 0:
            place = "upper left"
        axes.annotate(
            f"peak {volts[at]:.3g} V".replace("-", "\N{MINUS SIGN}"),
            xy=(columns.time[at], 1.0 if sign > 0 else 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(-24 if late else 24, -9 * sign),
            textcoords="offset points",
            ha="right" if late else "left",
            va="center",
            fontsize=8,
            color=_ALARM,
            arrowprops={"arrowstyle": "-|>", "color": _ALARM, "lw": 1.0},
            bbox={"facecolor": "#ffffff", "alpha": 0.85, "edgecolor": "none", "pad": 1.0},
            zorder=6,
        )
    _legend(axes, place)


def _usual(volts: Array, flows: npt.NDArray[np.bool_]) -> float:
    """What the voltage, of either sign, stays below for nearly all of the time in which current flows; 0 if none."""
    known = np.abs(volts[flows & np.isfinite(volts)])
    return float(np.percentile(known, _USUAL_PERCENT)) if len(known) else 0.0


def _peaks(volts: Array, flows: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Sign and place of the greatest voltage in each direction, where that lies far beyond the usual."""
    usual = _usual(volts, flows)
    if usual <= 0:
        return []
    known = np.where(np.isfinite(volts), volts, 0.0)
    greatest = [(sign, int(np.argmax(sign * known))) for sign in (1, -1)]
    return [(sign, at) for sign, at in greatest if sign * known[at] > _PEAK_RATIO * usual]


def _draw_impedance(axes: Axes, columns: _Columns, flows: npt.NDArray[np.bool_]) -> None:
    """Estimates while current flows: without any none is made, and what the columns hold is an old one."""
    time = columns.middle()
    axes.set_ylabel("Impedance (kΩ)")
    drawn: list[Array] = []
    for name, label, colour in (
        ("resistance_ohm", "total, V/I at the working point", _MEASURED),
        ("series_ohm", "series Rs", "#3a7d44"),
        ("parallel_ohm", "parallel Rp", "#c77d1a"),
    ):
        values = columns[name] / 1e3
        values[~flows | (values <= 0)] = np.nan
        if name != "resistance_ohm":
            values[columns[name.replace("_ohm", "_sigma_ohm")] / 1e3 > 0.5 * values] = np.nan
        if not np.isfinite(values).any():
            continue
        least, mean, greatest = _envelope(values, columns.bins)
        axes.fill_between(time, least, greatest, color=colour, alpha=0.25, linewidth=0)
        axes.plot(time, mean, color=colour, lw=1.3, label=label)
        drawn.append(mean[np.isfinite(mean)])
    if not drawn:
        axes.text(0.5, 0.5, "not estimated", transform=axes.transAxes, ha="center", va="center", color="#777777")
        return
    values = np.concatenate(drawn)
    if values.max() > 20 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.28)
    else:
        axes.set_ylim(0, values.max() * 1.3)
    if len(drawn) > 1:
        axes.plot([], [], " ", label="Rs, Rp: small signals at the tones, where known to 50 %; not parts of V/I")
    _legend(axes)


def _draw_dose(axes: Axes, columns: _Columns, channel: Channel) -> None:
    delivered = columns["delivered_c"] / COULOMB_PER_MAMIN
    places, corners = _corners(delivered, columns.bins)
    axes.plot(columns.time[places], corners, color=_MEASURED, lw=1.6, label="delivered")
    prescribed = channel.prescribed_c / COULOMB_PER_MAMIN
    axes.axhline(prescribed, color=_PRESCRIBED, lw=1.1, ls="--", label=f"prescribed {_number(prescribed)} mA·min")
    axes.set_ylabel("Dose (mA·min)")
    known = corners[np.isfinite(corners)]
    top = max(prescribed, float(known.max(initial=0.0)))
    axes.set_ylim(float(known.min(initial=0.0)), top * 1.16 or 1.0)
    _legend(axes, "upper left")


def _legend(axes: Axes, place: str = "upper right") -> None:
    axes.legend(
        loc=place,
        ncols=4,
        fontsize=8,
        frameon=True,
        framealpha=0.85,
        edgecolor="none",
        borderaxespad=0.2,
        handlelength=1.8,
    )


@dataclass(frozen=True)
class _Mark:
    """An event on the plots: its time on the axis, its label, and whether it stopped the session."""

    at: float
    text: str
    urgent: bool

    @property
    def colour(self) -> str:
        return _ALARM if self.urgent else _EVENT

    def span(self, start: float, end: float) -> tuple[float, float]:
        """What its label covers of an axis; near the right end it stands to the left of its line."""
        width = (end - start) * 0.0068 * (len(self.text) + 2)
        return (self.at - width, self.at) if self.at + width > end else (self.at, self.at + width)


def _combined(marks: Sequence[_Mark], start: float, end: float) -> list[_Mark]:
    """The labels of each moment in as few as hold them, urgent ones apart and first; each text once.

    What a mark says of an alarm that began in the same moment ("... : over") goes without saying.
    """
    groups: list[list[_Mark]] = []
    for mark in sorted(marks, key=lambda mark: mark.at):
        if not groups or mark.at - groups[-1][0].at > _MOMENT_RATIO * (end - start):
            groups.append([])
        groups[-1].append(mark)
    found: list[_Mark] = []
    for times in groups:
        group = [mark for mark in marks if mark in times]
        at = next((mark.at for mark in times if mark.urgent), times[0].at)
        texts = {mark.text for mark in group}
        said: set[str] = set()
        for urgent in (True, False):
            joined = ""
            for text in (mark.text for mark in group if mark.urgent == urgent):
                if text in said or text.rpartition(": ")[0] in texts:
                    continue
                said.add(text)
                if joined and len(joined) + len(text) + 3 > _JOINED_LETTERS:
                    found.append(_Mark(at, joined, urgent))
                    joined = ""
                joined = f"{joined} · {text}" if joined else text
            if joined:
                found.append(_Mark(at, joined, urgent))
    return found


def _place(marks: Sequence[_Mark], start: float, end: float) -> dict[_Mark, int]:
    """A row for each label, such that none covers another or another's line; those that find none are left out.

    Labels that stand left of their lines are placed from the left, then the others from the right: so the next one
    goes above those that are placed, and its line passes beside them.
    """
    spans = {mark: mark.span(start, end) for mark in marks}
    to_left = [mark for mark in marks if spans[mark][0] < mark.at]
    to_right = [mark for mark in marks if spans[mark][0] >= mark.at]
    rows: dict[_Mark, int] = {}
    for mark in sorted(to_left, key=lambda mark: mark.at) + sorted(to_right, key=lambda mark: -mark.at):
        span = spans[mark]
        for row in range(_LANES):
            if all(
                (taken != row or span[1] <= spans[other][0] or span[0] >= spans[other][1])
                and (taken >= row or not spans[other][0] < mark.at < spans[other][1])
                and (taken <= row or not span[0] < other.at < span[1])
                for other, taken in rows.items()
            ):
                rows[mark] = row
                break
    return rows


def _draw_events(lane: Axes, panels: Sequence[Axes], events: Sequence[Event], columns: _Columns) -> None:
    """Lines through the panels, and labels above them; a triangle where a label finds no room."""
    titles = _alarm_titles(events)
    marks = [
        _Mark(columns.at(event.tick), _event_label(event, titles), event.kind in _URGENT)
        for event in events
        if event.tick is not None and event.kind not in _UNMARKED
    ]
    marks = [mark for mark in dict.fromkeys(marks) if columns.start <= mark.at <= columns.end]
    marks = sorted(marks, key=lambda mark: not mark.urgent)[:_MARKS]
    if not marks:
        lane.text(columns.start, 0.5, " none", va="center", fontsize=7.5, color="#777777")
    for mark in marks:
        for axes in panels:
            axes.axvline(
                mark.at, color=mark.colour, lw=1.0 if mark.urgent else 0.7, ls="-" if mark.urgent else ":", alpha=0.8
            )
    labels = _combined(marks, columns.start, columns.end)
    rows = _place(labels, columns.start, columns.end)
    if any(label.urgent and label not in rows for label in labels):
        rows = _place([label for label in labels if label.urgent], columns.start, columns.end)
    for label in labels:
        row = rows.get(label)
        if row is None:
            lane.plot([label.at], [0.15], marker="v", ms=4, color=label.colour)
            continue
        to_left = label.span(columns.start, columns.end)[0] < label.at
        lane.plot([label.at, label.at], [0, row + 0.5], color=label.colour, lw=0.7)
        lane.text(
            label.at,
            row + 0.5,
            f"{label.text} " if to_left else f" {label.text}",
            ha="right" if to_left else "left",
            va="center",
            fontsize=7.5,
            color=label.colour,
            parse_math=False,
            clip_on=True,
        )
    lane.set_ylim(0, _LANES)
    lane.set_yticks([])
    lane.set_ylabel("Events", rotation=0, ha="right", va="center")
    lane.tick_params(bottom=False)
    lane.spines[:].set_visible(False)


def _alarm_titles(events: Sequence[Event]) -> dict[str, str]:
    """What the alarms of a session are called, by their keys."""
    return {
        str(event.fields["alarm"]): str(event.fields["title"])
        for event in events
        if event.fields.get("alarm") and event.fields.get("title")
    }


def _event_label(event: Event, titles: Mapping[str, str] | None = None) -> str:
    """What happened, in a few words. `titles` are those of alarms, for events that have only an alarm's key."""
    fields = event.fields
    if event.kind in _EVENT_WORDS:
        return _EVENT_WORDS[event.kind]
    if fields.get("title"):
        return _short(fields["title"])
    if event.kind == "operator" and isinstance(fields.get("command"), str):
        value = fields.get("value_a")
        size = f" {value * 1e3:+.3g} mA" if isinstance(value, float) and value else ""
        return _one_line(fields["command"].lower() + size, _LABEL_LETTERS)
    kind = event.kind.replace("-", " ")
    if fields.get("alarm"):
        named = str(fields["alarm"])
        happened = kind.removeprefix("alarm ").replace("ended", "over")
        return _short((titles or {}).get(named) or named.replace("-", " "), "" if kind == "alarm" else f": {happened}")
    for key in ("name", "action", "reason", "lost") if event.kind != "derated" else ():
        if fields.get(key):
            return _one_line(f"{kind}: {str(fields[key]).lower().replace('_', ' ')}", _LABEL_LETTERS)
    return _one_line(kind, _LABEL_LETTERS)


def _short(title: Any, after: str = "") -> str:
    """An alarm's title up to its colon, as a label, and what is to follow it."""
    return _one_line(_one_line(title, 1000).partition(": ")[0], _LABEL_LETTERS - len(after)) + after


def _one_line(value: Any, most: int) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _number(value: Any, digits: int = 6) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def _text(value: Any) -> str:
    """A value for a table cell, escaped."""
    if value is None:
        return "&ndash;"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return html.escape(", ".join(f"{key} {_plain(item)}" for key, item in value.items())) or "none"
    if isinstance(value, (list, tuple)):
        return html.escape("; ".join(_plain(item) for item in value)) or "none"
    return html.escape(_number(value))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return _number(value)


def _rows(items: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> str:
    names = {key: (labels or {}).get(str(key), str(key).replace("_", " ")) for key in items}
    cells = (f"<tr><th>{html.escape(names[key])}</th><td>{_text(value)}</td></tr>" for key, value in items.items())
    return f"<table>{''.join(cells)}</table>"


def _table(value: Any) -> str:
    """A section of the session: rows of like mappings become a grid, other mappings a list of pairs."""
    if isinstance(value, Mapping) and value and all(isinstance(item, Mapping) for item in value.values()):
        return _grid([{"": key, **item} for key, item in value.items()])
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return _grid([_readable(item) for item in value])
    if isinstance(value, Mapping):
        return _rows(value)
    return f"<pre>{_text(value)}</pre>"


def _readable(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of quantities in SI, as its `unit` says, in the unit that people read."""
    unit, factor = _READ_UNITS.get(str(row.get("unit")), (row.get("unit"), 1.0))
    if factor == 1.0:
        return row
    return {
        key: unit if key == "unit" else item * factor if isinstance(item, float) else item for key, item in row.items()
    }


def _grid(items: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for item in items for name in item))
    head = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(item[name]) if name in item else ''}</td>" for name in names) + "</tr>"
        for item in items
    )
    return f"<table class=grid><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class _Alarm:
    """One alarm of the page, with how often it came and when first."""

    title: str
    advice: str
    tone: str
    tick: int | None
    times: int


def _alarms(record: Record, events: Sequence[Event]) -> list[_Alarm]:
    """Events that carry advice, and trips; like ones together, in the order in which they came first."""
    several = len(record.channels) > 1
    found: dict[tuple[str, str], _Alarm] = {}
    for event in events:
        fields = event.fields
        if event.kind not in ("trip", "alarm") and not fields.get("advice"):
            continue
        key = (str(fields.get("title") or _event_label(event)), str(fields.get("advice") or ""))
        if fields.get("hazard"):
            key = (f"{key[0]} [{fields['hazard']}]", key[1])
        if several and "channel" in fields:
            key = (f"{_channel_of(record, event).name}: {key[0]}", key[1])
        known = found.get(key)
        mild = event.kind != "trip" and fields.get("priority") in ("LOW", "INFORMATION")
        found[key] = _Alarm(
            *key,
            tone="note" if mild else "alarm",
            tick=known.tick if known else event.tick,
            times=known.times + 1 if known else 1,
        )
    return list(found.values())


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1a1a1a; margin: 2rem auto;
  max-width: 68rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
.meta { color: #555; margin: 0 0 1rem; }
.outcome { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; font-weight: 600;
  font-size: .95rem; vertical-align: middle; margin-left: .5rem; }
.good { background: #2e7d32; } .fair { background: #b26a00; } .bad { background: #b00020; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #eee;
  overflow-wrap: anywhere; }
th { font-weight: 600; color: #444; }
.grid td, .grid th { font-size: .9rem; }
.alarm { border-left: .3rem solid #b00020; background: #fdf1f2; padding: .5rem .9rem; margin: .5rem 0; }
.note { border-left: .3rem solid #b26a00; background: #fff7ea; padding: .5rem .9rem; margin: .5rem 0; }
svg { width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
footer { color: #777; font-size: .85rem; margin-top: 2.5rem; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2 { break-after: avoid; }
  svg, table, .alarm { break-inside: avoid; } .outcome, .alarm, .note { print-color-adjust: exact; } }
"""


def _page(
    record: Record,
    telemetry: Telemetry | None,
    events: Sequence[Event],
    drawings: Mapping[str, str],
    problems: Sequence[str],
) -> str:
    session, receipt = record.session, record.receipt
    outcome = str(receipt.get("outcome", "")) if receipt else ("running" if record.running else "no receipt")
    tone = {"complete": "good", "completed": "good", "aborted": "bad", "faulted": "bad"}.get(outcome, "fair")
    tone = "fair" if problems and tone == "good" else tone
    unverified = "<span class='outcome bad'>does not verify</span>" if problems else ""
    heading, named = _heading(record), str(session.get("name", ""))
    name = html.escape(heading)
    meta = [str(session.get("created_utc", "")).replace("T", " ").split(".")[0] + " UTC"]
    sites = ", ".join(dict.fromkeys(channel.site for channel in record.channels if channel.site))
    told = {"subject": session.get("subject"), "site": sites, "file": named if named != heading else ""}
    meta += [f"{key} {value}" for key, value in told.items() if value]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{name}<span class='outcome {tone}'>{html.escape(outcome)}</span>{unverified}</h1>",
        f"<p class=meta>{html.escape('  ·  '.join(meta))}</p>",
    ]
    if problems:
        listed = "<br>".join(_text(problem) for problem in problems[:_SHOWN_PROBLEMS])
        more = f"<br>{len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        what = f"The record does not verify: it is not as it was written.</b><br>{listed}{more}"
        parts.append(f"<div class=alarm><b>{what}</div>")
    if telemetry is None and (receipt or {}).get("telemetry_rows"):
        parts.append("<div class=note>There is no telemetry: what the receipt says is not shown by any row.</div>")
    for alarm in _alarms(record, events):
        at = "" if alarm.tick is None else f" at {_clock(record, alarm.tick)}"
        again = f", {alarm.times} times" if alarm.times > 1 else ""
        advice = f"<br>{_text(alarm.advice)}" if alarm.advice else ""
        parts.append(f"<div class={alarm.tone}><b>{_text(alarm.title)}</b>{at}{again}{advice}</div>")
    for note in (receipt or {}).get("notes") or []:
        parts.append(f"<div class=note>{_text(note)}</div>")
    if receipt is None:
        parts.append("<div class=note>This session has no receipt: it is running, or its host died. See recover.</div>")
    else:
        shown = {key: receipt[key] for key in _LABELS if key in receipt}
        shown |= {key: value for key, value in receipt.items() if key not in shown and key not in _NOT_IN_TABLE}
        parts.append(f"<h2>Receipt</h2>{_rows(shown, _LABELS)}")
        if len(record.channels) > 1:
            parts.append(f"<h2>Channels</h2>{_channel_tables(record)}")
    parts.append(_alarm_table((receipt or {}).get("alarm_log") or []))
    parts += [f"<h2>{title}</h2>{drawing}" for title, drawing in drawings.items()]
    if telemetry is not None and telemetry.dropped_bytes:
        parts.append(f"<div class=note>{telemetry.dropped_bytes} bytes of an unfinished batch are not shown.</div>")
    grid = [
        {
            "time": _clock(record, event.tick),
            **({"channel": _of_event(record, event)} if len(record.channels) > 1 else {}),
            "event": event.kind,
            "details": _details(event),
            "UTC": event.time_utc,
        }
        for event in events[:_SHOWN_EVENTS]
    ]
    parts.append(f"<h2>Events</h2>{_grid(grid) if grid else '<p>none</p>'}")
    if len(events) > _SHOWN_EVENTS:
        parts.append(f"<p>{len(events) - _SHOWN_EVENTS} more in events.jsonl.</p>")
    for key, title in _CHANNEL_SECTIONS.items():
        parts += [f"<h2>{html.escape(heading)}</h2>{_table(value)}" for heading, value in _by_value(record, key, title)]
    for key, title in _SESSION_SECTIONS.items():
        value = {name: item for name, item in session.items() if name.endswith("_sha256")} if key == "hashes" else None
        value = value or session.get(key)
        if value:
            parts.append(f"<h2>{title}</h2>{_table(value)}")
    source = record.treatment_source.decode("utf-8", "replace")
    parts.append(f"<h2>Treatment as run</h2><pre>{html.escape(source)}</pre>")
    parts.append(
        f"<footer>Session {html.escape(record.path.name)}. Written by ionto_rt, which is not a medical device.</footer>"
    )
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _alarm_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What stood from when to when, and what the operator did about it. Times are those of the session."""
    if not rows:
        return ""
    several = any(row.get("channel") for row in rows)
    grid = [
        {
            "alarm": f"{row.get('title', '')} [{row['hazard']}]" if row.get("hazard") else row.get("title", ""),
            "priority": str(row.get("priority", "")).lower(),
            **({"channel": row.get("channel", "")} if several else {}),
            "raised": _seconds(row.get("raised_s")),
            "times": row.get("times", 1),
            "not seen from": _seconds(row.get("gone_s")),
            "acknowledged": _seconds(row.get("acknowledged_s")),
            "reset": _seconds(row.get("reset_s")) if row.get("latched") else "clears by itself",
            "ended": _seconds(row.get("ended_s")) or "stood at the end",
        }
        for row in rows
    ]
    return f"<h2>Alarms</h2>{_grid(grid)}"


def _seconds(seconds: Any) -> str:
    """A time of the session as minutes and seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return ""
    return f"{int(seconds // 60)}:{seconds % 60:06.3f}"


def _of_event(record: Record, event: Event) -> str:
    return _channel_of(record, event).name if "channel" in event.fields else ""


def _channel_tables(record: Record) -> str:
    """One line of each channel, then all that the receipt says of it, four channels side by side."""
    parts = [{"name": channel.name, **(channel.receipt or {})} for channel in record.channels]
    lines = [{_LABELS[key]: part[key] for key in _AT_A_GLANCE if key in part} for part in parts]
    tables = [_grid(lines)]
    keys = dict.fromkeys(key for part in parts for key in part if key not in _AT_A_GLANCE)
    for first in range(0, len(parts) if keys else 0, _LARGE):
        side = {name: part for name, part in zip(_names(record), parts, strict=True)}
        side = dict(list(side.items())[first : first + _LARGE])
        tables.append(
            _grid(
                [
                    {"": _LABELS.get(key, key.replace("_", " "))} | {name: part.get(key) for name, part in side.items()}
                    for key in keys
                ]
            )
        )
    return "<br>".join(tables)


def _names(record: Record) -> list[str]:
    """The channels' names, with the number of the device's channel where two are alike."""
    names = [channel.name for channel in record.channels]
    return [
        name if names.count(name) == 1 else f"{name} (device channel {number})" for number, name in enumerate(names)
    ]


def _by_value(record: Record, key: str, title: str) -> list[tuple[str, Any]]:
    """A section of the channels' facts, once for all channels in which it is the same."""
    groups: list[tuple[list[str], Any]] = []
    for channel in record.channels:
        value = channel.facts.get(key)
        if not value:
            continue
        known = next((names for names, other in groups if other == value), None)
        if known is None:
            groups.append(([channel.name], value))
        else:
            known.append(channel.name)
    if len(groups) == 1 and len(groups[0][0]) == len(record.channels):
        return [(title, groups[0][1])]
    return [(f"{title}: {', '.join(names)}", value) for names, value in groups]


def _details(event: Event) -> dict[str, str]:
    """An event's fields in the units that people read; its advice stands with the alarms."""
    told: dict[str, str] = {}
    for key, value in event.fields.items():
        name, _, unit = key.rpartition("_")
        known = {"a": "A", "c": "C", "v": "V"}.get(unit)
        if key in ("advice", "title", "alarm", "channel", "transition", "stops", "cause"):
            continue
        if known is not None and name and isinstance(value, float):
            shown, factor = _READ_UNITS.get(known, (known, 1.0))
            told[name.replace("_", " ")] = f"{value * factor:.5g} {shown}"
        else:
            told[key.replace("_", " ")] = _plain(value)
    return told


def _clock(record: Record, tick: Any) -> str:
    """A tick as minutes and seconds since arming."""
    return _seconds(tick * record.tick_s) if isinstance(tick, int) else ""
