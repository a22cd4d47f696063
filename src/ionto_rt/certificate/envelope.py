"""What is certified, as data: loads, rates, delays, and how far the regulator's model may be off.

A load enters through two numbers: `tick_ratio`, the tick over the time constant that it shows a voltage source, and
`parallel_ratio`, Rp over the whole series resistance Rs' (skin, leads and ballast). The ranges below hold every load of
the envelope, and more; docs/control.md, section 6, shows it.
"""

import math
from dataclasses import dataclass, field

from ionto_rt.codes import FrontEnd
from ionto_rt.core.constant_current import PARALLEL_RATIO_MOST

SAMPLE_RATES_HZ = (500.0, 10_000.0)
DELAYS_TICKS = (1, 2, 3, 4)
"""Delays that the regulator may be told; the true one may be one tick off."""
SERIES_OHM = (100.0, 5000.0)
BALLAST_OHM = (0.0, 200e3)
PARALLEL_OHM = (200.0, 1e6)
CAPACITANCE_F = (1e-9, 2e-6)
PARALLEL_RATIO_MIN = 1e-4
"""Least Rp/Rs'. With more than PARALLEL_RATIO_MOST, and ticks of a few time constants, an error of 1.3 in C changes
exp(-Ts/tau_p) by more than the regulator's margin; with less than this, a load is a short circuit."""
TICK_RATIO_MIN = 1e-4
BANDWIDTH_MIN_HZ = 1000.0
"""Least bandwidth of a current source, true or believed."""
BANDWIDTH_RATIO_MIN = 2.0 * math.pi * BANDWIDTH_MIN_HZ / SAMPLE_RATES_HZ[1]
"""Tick over the time constant of the slowest current source at the highest rate."""

Range = tuple[float, float]
EXACT: Range = (1.0, 1.0)
AREA_DOUBLES: tuple[Range, Range, Range] = ((1.0, 2.0), (2.0, 2.0), (0.5, 0.5))


def _within(factor: float) -> Range:
    return (1.0 / factor, factor)


def _each(factor: float) -> tuple[Range, Range, Range]:
    return (_within(factor), _within(factor), _within(factor))


@dataclass(frozen=True)
class VoltageCase:
    """A voltage source: by which factors the model's Rs', Rp and C may differ from the load's (model over load).

    `parallel_ratio_most` and `tick_ratio_min` limit the model's Rp/Rs' and Ts/tau_p. With `either_side`,
    a load within the limit of Rp/Rs' is certified too when its model is beyond it. `delays` are those that the
    regulator is told and tuned for; its model's differ from them by `found_errors`, where the probe finds another, and
    the true ones from the model's by `delay_errors`. `quick` is the loop while its filter is quick after a surprise.
    """

    name: str
    series: Range
    parallel: Range
    capacitance: Range
    delay_errors: tuple[int, ...] = (0,)
    delays: tuple[int, ...] = DELAYS_TICKS
    parallel_ratio_most: float = PARALLEL_RATIO_MOST
    tick_ratio_min: float = TICK_RATIO_MIN
    either_side: bool = False
    found_errors: tuple[int, ...] = (0,)
    quick: bool = False
    front_end: FrontEnd = field(default=FrontEnd.VOLTAGE_SOURCE, init=False)


@dataclass(frozen=True)
class CurrentCase:
    """A current source: by which factors the model's gain and bandwidth may differ from the source's (source over
    model for the gain, model over source for the bandwidth). Both bandwidths are at least BANDWIDTH_MIN_HZ.
    """

    name: str
    gain: Range
    bandwidth: Range
    delay_errors: tuple[int, ...] = (0,)
    delays: tuple[int, ...] = DELAYS_TICKS
    found_errors: tuple[int, ...] = (0,)
    quick: bool = False
    front_end: FrontEnd = field(default=FrontEnd.CURRENT_SOURCE, init=False)


Case = VoltageCase | CurrentCase

CASES: tuple[Case, ...] = (
    VoltageCase("Rs', Rp, C each within 1.3", *_each(1.3), either_side=True),
    VoltageCase("the same, told another delay", *_each(1.3), either_side=True, found_errors=(-1, 1, 2)),
    VoltageCase("the same, quick after a surprise", *_each(1.3), either_side=True, quick=True),
    VoltageCase("delay one off, 1.3, to 50 ticks", *_each(1.3), delay_errors=(-1, 1), tick_ratio_min=1 / 50),
    VoltageCase("delay one off, 1.2", *_each(1.2), delay_errors=(-1, 1)),
    VoltageCase("Z between 1/1.5 and 1.2", (1 / 1.5, 1.2), (1 / 1.5, 1.2), (1 / 1.2, 1.5), either_side=True),
    VoltageCase("each within 1.5", *_each(1.5)),
    VoltageCase("Z between 1/2 and 1", (0.5, 1.0), (0.5, 1.0), (1.0, 2.0), either_side=True),
    VoltageCase("contact area halves", (0.5, 1.0), (0.5, 0.5), (2.0, 2.0)),
    VoltageCase("contact area doubles", *AREA_DOUBLES, delays=(1, 2)),
    VoltageCase("area doubles, Rp <= 14 Rs'", *AREA_DOUBLES, delays=(3,), parallel_ratio_most=14.0),
    VoltageCase(
        "area doubles, 11 Rs', to 20 ticks",
        *AREA_DOUBLES,
        delays=(4,),
        parallel_ratio_most=11.0,
        tick_ratio_min=1 / 20,
    ),
    VoltageCase("Rp doubles", EXACT, (0.5, 0.5), EXACT),
    VoltageCase("Rp halves", EXACT, (2.0, 2.0), EXACT),
    CurrentCase("gain within 1.3, any bandwidth", _within(1.3), (1e-3, 1e3)),
    CurrentCase("gain and bandwidth within 1.3", _within(1.3), _within(1.3), delay_errors=(-1, 0, 1)),
)
"""The load changes (area, Rp) are what happens before any adaptation, with a model that was exact. In the area cases
the skin's share of Rs' scales and ballast and leads do not, hence the range for Rs'."""


def certified_region(
    front_end: FrontEnd,
    sample_rate_hz: float,
    delay_ticks: int,
    *,
    series_ohm: float = 0.0,
    parallel_ohm: float = 0.0,
    capacitance_f: float = 0.0,
    bandwidth_hz: float = 0.0,
) -> str | None:
    """Whether an identified load belongs to the certified region: None if so, else one line with what, value, limit
    and remedy.

    On a voltage source the load is `series_ohm` (with ballast and leads), `parallel_ohm` and `capacitance_f`; on a
    current source, `bandwidth_hz` of its output stage. NaN is refused.
    """
    low, high = SAMPLE_RATES_HZ
    if not low <= sample_rate_hz <= high:
        return f"sample rate {sample_rate_hz:g} Hz is outside {low:g} to {high:g} Hz; choose a rate within"
    if delay_ticks not in DELAYS_TICKS:
        return (
            f"loop delay of {delay_ticks} ticks is outside {DELAYS_TICKS[0]} to {DELAYS_TICKS[-1]} ticks; "
            "choose a device that answers sooner"
        )
    if front_end == FrontEnd.CURRENT_SOURCE:
        if not bandwidth_hz * 2.0 * math.pi / sample_rate_hz >= BANDWIDTH_RATIO_MIN:
            least_hz = BANDWIDTH_RATIO_MIN * sample_rate_hz / (2.0 * math.pi)
            return (
                f"bandwidth of the current source {bandwidth_hz:.4g} Hz is under {least_hz:.4g} Hz at this rate; "
                "use a faster output stage or a lower sample rate"
            )
        return None
    if not (series_ohm > 0.0 and parallel_ohm > 0.0 and capacitance_f > 0.0):
        return (
            f"load Rs' {series_ohm:g} ohm, Rp {parallel_ohm:g} ohm, C {capacitance_f:g} F was not identified; "
            "check the contact and repeat"
        )
    ratio = parallel_ohm / series_ohm
    if not ratio <= PARALLEL_RATIO_MOST:
        missing_ohm = parallel_ohm / PARALLEL_RATIO_MOST - series_ohm
        return (
            f"Rp is {ratio:.3g} times the series resistance, the limit is {PARALLEL_RATIO_MOST:g}; "
            f"add {missing_ohm:.3g} ohm of ballast, let the skin hydrate, or use a current source"
        )
    if not ratio >= PARALLEL_RATIO_MIN:
        return (
            f"Rp is {ratio:.3g} times the series resistance, the least is {PARALLEL_RATIO_MIN:g}; "
            "check for a short circuit, or use less ballast"
        )
    tick_ratio = (1.0 + ratio) / (sample_rate_hz * parallel_ohm * capacitance_f)
    if not tick_ratio >= TICK_RATIO_MIN:
        return (
            f"time constant of the load is {1.0 / tick_ratio:.3g} ticks, the limit is {1.0 / TICK_RATIO_MIN:g}; "
            "use a lower sample rate"
        )
    return None
