"""What `latency` has measured, as text for a terminal and as a picture."""

import math
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ionto_rt.core.clock import LatencyHistogram, bucket_ends
from ionto_rt.latency import FLOOR, ROUND_TRIP, WAKE_UP, LatencyResult, Series, percentiles_us

_TITLES = {
    WAKE_UP: "wake-up jitter",
    ROUND_TRIP: "round trip",
    FLOOR: "floor: bare exchange",
    "answer": "sample read to command written",
    "age": "sample due to command written",
    "wake_up": "wake-up, later than planned",
}
_HEADS = ("p50", "p90", "p99", "p99.9", "p99.99", "worst")
_MOST_ROWS = 22
_NARROWEST = 50
_DPI = 130
_DASHES = (0, (4, 2))
_COLOURS = {ROUND_TRIP: "#1b6ca8", FLOOR: "#7a7a7a", WAKE_UP: "#c8742b"}


def text_of(result: LatencyResult, columns: int) -> str:
    """The whole report, in lines of at most `columns` characters where there are 50 or more."""
    host = result.host
    lines = [
        f"device    {result.device} ({result.uri}), {result.rate_hz:g} a second, {result.duration_s:.1f} s, in turns",
        f"host      {host['priority']}, cpu {host['affinity'].removeprefix('cpu ')}, "
        f"timer slack {host['timer_slack']}, memory {host['memory']}, processors {host['processors']}",
        "",
        *text_of_series(result.series, columns, result.over_floor),
    ]
    if result.ended != "done":
        early = {"stopped": "stopped before its time", "silent": "the device answered no more", "lost": result.error}
        lines += ["", f"ended early: {early[result.ended]}"]
    return "\n".join(lines)


def text_of_series(series: Sequence[Series], columns: int, ratio: dict[str, float] | None = None) -> list[str]:
    """Percentiles, worst cases and bars of these series; `ratio` is the round trip over its floor."""
    counted = [one for one in series if one.raw.total]
    if not counted:
        return ["nothing was counted"]
    lines = [*_table(counted, ratio or {})]
    worst = [line for one in counted for line in _worst(one)]
    lines += ["", *worst] if worst else []
    if any(one.use for one in counted):
        lines.append("")
        lines += [_use(one) for one in counted if one.use]
    few = min(one.raw.total for one in counted)
    if few < 10_000:
        lines += ["", f"p99.99 rests on the worst alone: it takes 10,000 times, and the shortest series has {few:,}"]
    for one in counted:
        lines += ["", *_bars(one, max(columns, _NARROWEST))]
    return lines


def _table(series: Sequence[Series], ratio: dict[str, float]) -> Iterator[str]:
    rows: list[tuple[str, list[str]]] = [("µs", [*_HEADS, "times"])]
    for one in series:
        rows.append((_title(one), [*map(_number, percentiles_us(one.raw).values()), f"{one.raw.total:,}"]))
        if one.corrected is not None:
            told = [*map(_number, percentiles_us(one.corrected).values()), f"{one.corrected.total:,}"]
            rows.append(("  corrected", told))
    if ratio:
        rows.append(("round trip over floor", [*(f"{value:.2f}" for value in ratio.values()), ""]))
    widths = [max(len(row[k]) for _, row in rows) for k in range(len(_HEADS) + 1)]
    first = max(len(title) for title, _ in rows)
    for title, row in rows:
        cells = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{title:{first}}  {cells}".rstrip()


def _title(one: Series) -> str:
    return _TITLES.get(one.name, one.name)


def _number(us: float) -> str:
    return f"{us:,.0f}" if us >= 1000.0 else f"{us:.1f}" if us >= 10.0 else f"{us:.2f}"


def _time(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:.3g} s"
    return f"{us / 1e3:.3g} ms" if us >= 1e3 else f"{us:.3g} µs"


def _worst(one: Series) -> list[str]:
    title = _title(one).removeprefix("floor: ")
    if one.worst is None:
        return []
    phases = {name: ns for name, ns in one.worst.items() if name not in ("ns", "cycle", "at_ns")}
    line = (
        f"worst {title}: {_time(one.worst['ns'] / 1e3)}, number {one.worst['cycle']:,}, "
        f"{one.worst['at_ns'] / 1e9:.3f} s after the start"
    )
    lines = [line]
    if phases:
        slow = max(phases, key=phases.__getitem__)
        told = ", ".join(f"{name} {_time(ns / 1e3)}" for name, ns in phases.items())
        lines.append(f"  in {slow}: {told}")
    odd = {"skipped": one.skipped, **(one.counters or {})}
    seen = [f"{_ODD[name]} {count:,}" for name, count in odd.items() if count]
    return lines + ([f"  {', '.join(seen)}"] if seen else [])


_ODD = {
    "skipped": "periods skipped",
    "timeouts": "no answer in 100 ms",
    "stale": "answers too late",
    "foreign": "frames of another kind",
    "bad_frames": "undecodable frames",
}


def _use(one: Series) -> str:
    use = one.use or {}
    return (
        f"{_title(one)}: page faults {use['minor_faults']:,} minor, {use['major_faults']:,} major; context switches "
        f"{use['voluntary_switches']:,} by itself, {use['involuntary_switches']:,} forced"
    )


def _bars(one: Series, columns: int) -> Iterator[str]:
    """Rows a fraction of an octave wide; of linear bars one in ten thousand could not be seen."""
    histogram = one.judged
    edges, counts = _rows(histogram)
    labels = [f"{_time(low)} to {_time(high)}" for low, high in pairwise(edges)]
    told = [f"{count:,}" if count else "" for count in counts]
    width, right = max(map(len, labels)), max(map(len, told))
    room = columns - width - right - 4
    most = math.log10(1.0 + max(counts))
    what = ", corrected" if one.corrected is not None else ""
    yield f"{_title(one)}{what}; bars are logarithmic"
    for label, count, text in zip(labels, counts, told, strict=True):
        bar = "█" * max(1, round(room * math.log10(1.0 + count) / most)) if count else ""
        yield f"{label:>{width}} ▏{bar} {text}".rstrip()


def _rows(histogram: LatencyHistogram) -> tuple[list[float], list[int]]:
    """Edges in µs and counts between them: steps of a quarter, a half, one or two octaves, the finest that fit."""
    counts = histogram.counts
    ends = bucket_ends()
    used = np.flatnonzero(counts)
    low, high = max(1.0, float(ends[used[0]])), max(2.0, float(ends[used[-1]]))
    for octave in (0.25, 0.5, 1.0, 2.0):
        first, last = math.floor(math.log2(low) / octave), math.floor(math.log2(high) / octave) + 1
        if last - first <= _MOST_ROWS:
            break
    edges = [2.0 ** (octave * k) for k in range(first, last + 1)]
    places = np.clip(np.searchsorted(np.array(edges), ends[used].astype(float), side="left") - 1, 0, len(edges) - 2)
    sums = np.zeros(len(edges) - 1, dtype=np.int64)
    np.add.at(sums, places, counts[used].astype(np.int64))
    return [edge / 1e3 for edge in edges], sums.tolist()


def draw(result: LatencyResult, path: str | os.PathLike[str]) -> None:
    """Write the percentiles as a PNG, over 1/(1 - p). ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    furthest, values, dashed = 100.0, [], False
    for name in (ROUND_TRIP, FLOOR, WAKE_UP):
        one = result[name]
        if not one.raw.total:
            continue
        thick = 2.0 if name == ROUND_TRIP else 1.6
        across, up = _curve(one.judged)
        axes.plot(across, up, color=_COLOURS[name], linewidth=thick, label=_TITLES[name])
        axes.plot(across[-1:], up[-1:], "o", color=_COLOURS[name], markersize=4)
        furthest = max(furthest, float(across[-1]))
        values += [float(up[0]), float(up[-1])]
        if one.corrected is not None and one.corrected.total != one.raw.total:
            across, up = _curve(one.raw)
            axes.plot(across, up, color=_COLOURS[name], linewidth=1.0, linestyle=_DASHES)
            dashed = True
    nines = [k for k in range(1, 9) if 10.0**k <= furthest * 1.5]
    ticks = [1.0, 2.0, *(10.0**k for k in nines)]
    names = {1.0: "0", 2.0: "50 %", 10.0: "90 %"}
    names |= {10.0**k: f"{100.0 - 10.0 ** (2 - k):.{k - 2}f} %" for k in nines[1:]}
    axes.set(xscale="log", yscale="log", xlim=(1.0, furthest * 1.6))
    if values:
        axes.set_ylim(max(min(values), 0.1) * 0.7, max(values) * 1.8)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(float(round(value)), "")))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _time(value)))
    axes.set(xlabel="share of the times that is not longer, on an axis of 1/(1 - p)", ylabel="time")
    axes.grid(True, which="major", color="#d9d9d9", linewidth=0.8)
    axes.grid(True, which="minor", axis="y", color="#efefef", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    period_us = 1e6 / result.rate_hz
    if values and period_us <= max(values) * 1.8:
        axes.axhline(period_us, color="black", linewidth=0.9, linestyle=":")
        axes.annotate(
            "one period", (1.0, period_us), xytext=(4, 3), textcoords="offset points", fontsize=8, color="#333333"
        )
    if values:
        if dashed:
            axes.plot([], [], color="#333333", linewidth=1.0, linestyle=_DASHES, label="not corrected")
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    axes.set_title(
        f"{result.device}, {result.rate_hz:g} a second, {result.duration_s:.0f} s; {result.host['priority']}",
        fontsize=10,
        loc="left",
    )
    figure.savefig(path, dpi=_DPI)


def _curve(histogram: LatencyHistogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1/(1 - p) and the time in µs that a share p does not exceed, to the last time but one."""
    counts = histogram.counts
    used = np.flatnonzero(counts)
    beyond = histogram.total - np.cumsum(counts[used].astype(np.int64))
    at_us = np.minimum(bucket_ends()[used].astype(float), float(histogram.highest_ns)) / 1e3
    across = histogram.total / np.maximum(beyond, 1.0)
    # From a bucket's share on the next one's time counts: a staircase.
    steps_x = np.repeat(np.concatenate([[1.0], across]), 2)[1:-1]
    steps_y = np.repeat(at_us, 2)
    steps_x[-1] = float(histogram.total)
    return steps_x, np.maximum(steps_y, 1e-3)
