"""A receipt as people read it."""

import math
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ionto_rt.record import Record, RecordError

_COLORS = {"complete": "green", "aborted": "yellow", "faulted": "red", "recovered": "yellow"}
_WIDTH = 9


def receipt_text(receipt: Mapping[str, Any], width: int | None = None, host: Mapping[str, Any] | None = None) -> str:
    """How it ended, dose, peaks, time, latency, trips with what to do, record, and what to do next; of several channels
    first the whole, then a block of each.

    Sentences are broken at `width` columns, if given; paths and commands never. `host` is what the session's record
    says of the host; its fitness is shown if it is there.
    """
    channels = receipt.get("channels") or []
    blocks = [_block(receipt, _whole_lines(receipt, host, several=len(channels) > 1), width)]
    if len(channels) > 1:
        blocks += [_block(part, _channel_lines(part), width, str(part["name"])) for part in channels]
    blocks.append("\n".join(_shown(_last_lines(receipt), width)))
    return ("\n\n" if len(channels) > 1 else "\n").join(blocks)


def host_of(receipt: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the record of the session says of its host, for `receipt_text`."""
    try:
        host = Record.open(receipt["record"]).session.get("host")
    except RecordError:
        return None
    return host if isinstance(host, Mapping) else None


def _block(receipt: Mapping[str, Any], lines: Iterator[tuple[str, str]], width: int | None, name: str = "") -> str:
    outcome, reason = str(receipt["outcome"]), receipt.get("reason", "")
    before = f"{name}: " if name else ""
    head = _broken(f"{before}{outcome}: {reason}" if reason or not name else f"{before}{outcome}", width, "")
    styled = click.style(outcome, fg=_COLORS.get(outcome), bold=True)
    head = before + styled + head[len(before) + len(outcome) :] if head.startswith(before + outcome) else head
    return "\n".join([head, *([] if name else [""]), *_shown(lines, width)])


def _shown(lines: Iterator[tuple[str, str]], width: int | None) -> Iterator[str]:
    for label, text in lines:
        yield _broken(f"{label:<{_WIDTH}}{text}", width, " " * _WIDTH)


def _broken(text: str, width: int | None, indent: str) -> str:
    kept = text[_WIDTH:].startswith("ionto-rt ") or text.startswith("record ")
    if width is None or kept:
        return text
    return textwrap.fill(text, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _whole_lines(
    receipt: Mapping[str, Any], host: Mapping[str, Any] | None, *, several: bool
) -> Iterator[tuple[str, str]]:
    yield from _dose_lines(receipt)
    yield from _peak_line(receipt)
    if not several:
        yield from _site_lines(receipt)
    yield "time", f"{clock_text(receipt.get('duration_s', 0.0))}, {receipt['ticks']} ticks, {_faults(receipt)}"
    latency = receipt.get("latency_us")
    if latency:
        names = (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"), ("p9999", "p99.99"), ("max", "max"))
        yield "latency", ", ".join(f"{shown} {_time_text(latency[name])}" for name, shown in names if name in latency)
    yield from _deadline_lines(receipt)
    yield from _ring_line(receipt)
    yield from _host_line(host)
    alarms = list(receipt.get("alarms", []))
    yield "trips", ", ".join(map(str, receipt["trips"])) or "none"
    for alarm in dict.fromkeys(alarms):
        yield "alarm" if alarm == alarms[0] else "", alarm
    left = [str(row["title"]) for row in receipt.get("alarm_log", []) if row["latched"] and row["ended_s"] is None]
    if left:
        yield "", f"not reset by the operator: {'; '.join(left)}"


def _channel_lines(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _dose_lines(part)
    yield from _peak_line(part)
    yield from _site_lines(part)
    if part.get("trips"):
        yield "trips", ", ".join(map(str, part["trips"]))


def _last_lines(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "record", receipt["record"]
    folder = shlex.quote(receipt["record"])
    yield "next", f"ionto-rt report {folder}"
    yield "", f"ionto-rt replay {folder}"


def _dose_lines(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    delivered, prescribed = receipt["dose_delivered_mamin"], receipt["dose_prescribed_mamin"]
    share = f"  ({100.0 * delivered / prescribed:.1f} %)" if prescribed else ""
    yield "dose", f"{dose_text(delivered)} of {dose_text(prescribed)} mA·min{share}"
    yield (
        "",
        f"counted by the host {_count(receipt.get('dose_ledger_mamin'))}, by the device "
        + _count(receipt.get("dose_device_mamin")),
    )
    if receipt.get("dose_unseen_mamin"):
        yield (
            "",
            f"of it {dose_text(receipt['dose_unseen_mamin'])} mA·min is a bound: nobody counted after the last sample",
        )
    mass = receipt.get("drug_mass_mg_interval")
    if mass:
        low, high = (f"{float(f'{value:.2g}'):g}" for value in mass)
        yield "drug", f"{low} to {high} mg expected"


def _peak_line(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "peak", f"{receipt['peak_current_ma']:.4g} mA, {receipt['peak_voltage_v']:.3g} V"


def _site_lines(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How well the current was held, and what is known of the load: of one channel."""
    if receipt.get("ripple_rms_ratio") is not None:
        mean, ripple = 100.0 * receipt["mean_error_ratio"], 100.0 * receipt["ripple_rms_ratio"]
        yield "held", f"mean current {mean:+.3f} % off its setpoint, ripple {ripple:.2f} % rms, tones included"
    watched = receipt.get("area_watched_ratio")
    if watched is not None:
        more = "" if watched > 0.5 else ": more samples a second see more of it"
        yield "area", f"contact area was watched for {100.0 * watched:.0f} % of the treatment{more}"
    yield from _load_lines(receipt)


def _deadline_lines(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Answers that came after the next sample was due, by what took longest of each, and periods without any."""
    loop = receipt.get("loop") or {}
    missed, skipped = loop.get("deadlines_missed"), loop.get("skipped_periods")
    if missed:
        phases = [f"{name} {count}" for name, count in (loop.get("missed_by_phase") or {}).items() if count]
        yield "deadline", f"{missed} missed" + (f" ({', '.join(phases)})" if phases else "")
    if skipped:
        periods = _counted(skipped, "sample period")
        yield "" if missed else "deadline", f"{periods} skipped, because the host woke too late"


def _ring_line(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How far behind the loop the record was, if that was far."""
    loop = receipt.get("loop") or {}
    most, rows = loop.get("ring_high_water"), loop.get("ring_rows")
    if isinstance(most, int) and isinstance(rows, int) and 2 * most > rows > 0:
        share = 100.0 * most / rows
        yield "ring", f"{most} of {rows} rows ({share:.0f} %) waited for the record at the worst: a faster disk helps"


def _host_line(host: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The verdict of `doctor`, and what is worst."""
    fitness = (host or {}).get("fitness")
    if not isinstance(fitness, Mapping) or not fitness.get("verdict"):
        return
    lines = [str(line) for key in ("unfit", "poor") for line in fitness.get(key) or []]
    accepted = ", accepted by the operator" if fitness.get("accepted") else ""
    more = f"; {len(lines) - 1} more, see `ionto-rt doctor`" if len(lines) > 1 else ""
    worst = f": {lines[0]}{more}" if lines else ""
    yield "host", f"{fitness['verdict']} for real time{accepted}{worst}"


def _load_lines(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    load, margins = receipt.get("load"), receipt.get("margins")
    if load:
        parts = [_known("R", load, "resistance", "ohm")]
        if load["series_ohm"] > 0.0 or load["parallel_ohm"] > 0.0:
            parts += [
                _known("Rs", load, "series", "ohm"),
                _known("Rp", load, "parallel", "ohm"),
                _known("C", load, "capacitance", "f"),
            ]
        yield "load", ", ".join(parts) + " at the contact check"
    if margins:
        yield (
            "",
            f"loop stable to {margins['gain']:.2g} times the gain, {margins['phase_deg']:.0f}° of phase, "
            f"{margins['delay_ticks']:.2g} ticks of delay; Ms {margins['sensitivity']:.2f}",
        )


def _known(name: str, load: Mapping[str, Any], key: str, unit: str) -> str:
    value, sigma = load[f"{key}_{unit}"], load[f"{key}_sigma_{unit}"]
    if not sigma < 0.5 * value:
        return f"{name} not seen"
    scale, shown = (1e-9, "nF") if unit == "f" else (1e3, "kΩ") if value >= 1e3 else (1.0, "Ω")
    # As many decimals as the first digit of the uncertainty has.
    places = max(0, -math.floor(math.log10(sigma / scale))) if sigma > 0.0 else 3
    return f"{name} {value / scale:.{places}f} ± {sigma / scale:.{places}f} {shown}"


def dose_text(dose_mamin: float) -> str:
    """A dose in mA*min with three decimals, more below 0.1."""
    return f"{dose_mamin:.3f}" if abs(dose_mamin) >= 0.1 else f"{dose_mamin:.3g}"


def clock_text(time_s: float) -> str:
    """Minutes and seconds, as 10:31."""
    minutes, seconds = divmod(max(0, round(time_s)), 60)
    return f"{minutes}:{seconds:02}"


def _count(dose_mamin: float | None) -> str:
    return f"{dose_mamin:.5f}" if dose_mamin is not None else "not told"


def _faults(receipt: Mapping[str, Any]) -> str:
    return f"{_counted(receipt['gaps'], 'sample')} lost, {_counted(receipt['late'], 'command')} late"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _time_text(time_us: float) -> str:
    if time_us < 999.5:
        return f"{time_us:.3g} µs"
    return f"{time_us / 1e3:.3g} ms" if time_us < 999.5e3 else f"{time_us / 1e6:.3g} s"
