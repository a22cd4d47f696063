"""A receipt as people read it."""

import math
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

_COLORS = {"complete": "green", "aborted": "yellow", "faulted": "red", "recovered": "yellow"}
_WIDTH = 9


def receipt_text(receipt: Mapping[str, Any], width: int | None = None) -> str:
    """A few lines: how it ended, dose, peaks, time, latency, trips with what to do, record, and what to do next.

    Sentences are broken at `width` columns, if given; paths and commands never.
    """
    outcome = str(receipt["outcome"])
    head = _broken(f"{outcome}: {receipt.get('reason', '')}", width, "")
    head = click.style(outcome, fg=_COLORS.get(outcome), bold=True) + head[len(outcome) :]
    lines = [_broken(f"{label:<{_WIDTH}}{text}", width, " " * _WIDTH) for label, text in _lines(receipt)]
    return "\n".join([head, "", *lines])


def _broken(text: str, width: int | None, indent: str) -> str:
    kept = text[_WIDTH:].startswith("ionto-rt ") or text.startswith("record ")
    if width is None or kept:
        return text
    return textwrap.fill(text, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _lines(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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
    yield "peak", f"{receipt['peak_current_ma']:.4g} mA, {receipt['peak_voltage_v']:.3g} V"
    if receipt.get("ripple_rms_ratio") is not None:
        mean, ripple = 100.0 * receipt["mean_error_ratio"], 100.0 * receipt["ripple_rms_ratio"]
        yield "held", f"mean current {mean:+.3f} % off its setpoint, ripple {ripple:.2f} % rms, tones included"
    watched = receipt.get("area_watched_ratio")
    if watched is not None:
        more = "" if watched > 0.5 else ": more samples a second see more of it"
        yield "area", f"contact area was watched for {100.0 * watched:.0f} % of the treatment{more}"
    yield from _load_lines(receipt)
    yield "time", f"{clock_text(receipt.get('duration_s', 0.0))}, {receipt['ticks']} ticks, {_faults(receipt)}"
    latency = receipt.get("latency_us")
    if latency:
        names = (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"), ("max", "max"))
        yield "latency", ", ".join(f"{shown} {_time_text(latency[name])}" for name, shown in names)
    yield from _ring_lines(receipt.get("loop") or {})
    alarms = list(receipt.get("alarms", []))
    yield "trips", ", ".join(map(str, receipt["trips"])) or "none"
    for alarm in dict.fromkeys(alarms):
        yield "alarm" if alarm == alarms[0] else "", alarm
    yield "record", receipt["record"]
    folder = shlex.quote(receipt["record"])
    yield "next", f"ionto-rt report {folder}"
    yield "", f"ionto-rt replay {folder}"


def _ring_lines(loop: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How far the record was behind, if that was more than half of what the ring to it holds."""
    high, rows, dropped = (loop.get(f"ring_{name}", 0) for name in ("high_water", "rows", "dropped"))
    if dropped:
        yield "ring", f"{dropped} rows found no room and are missing in the record; dose and control are not touched"
    elif 2 * high > rows:
        yield "ring", f"the record was behind: {high} of {rows} rows waited for the disk, none was lost"


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
    return f"{receipt['gaps']} lost, {receipt['late']} late"


def _time_text(time_us: float) -> str:
    return f"{time_us:.3g} µs" if time_us < 999.5 else f"{time_us / 1000.0:.3g} ms"
