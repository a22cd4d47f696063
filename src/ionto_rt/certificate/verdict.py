"""The certificate: every case of the envelope tried and proven, with what it rests on."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import ionto_rt
from ionto_rt.certificate import envelope
from ionto_rt.certificate.cells import UNMODELLED, exclude
from ionto_rt.certificate.enclosures import problems
from ionto_rt.certificate.envelope import CASES, DELAYS_TICKS, Case, VoltageCase
from ionto_rt.certificate.grid import POINTS, GridResult, delays_of, search
from ionto_rt.certificate.loop import Plant, Tuning, quick, running
from ionto_rt.certificate.margins import Margins, gain_limit, largest_sensitivity, margins_at
from ionto_rt.core.constant_current import PARALLEL_RATIO_MOST

FORMAT = 1
"""Version of the JSON form."""
_SLOW_POLES = 24


@dataclass(frozen=True)
class PairResult:
    """One case at one pair of delays. `proven` is None where the grid has already shown unstable loops."""

    model_delay_ticks: int
    delay_ticks: int
    grid: GridResult
    proven: float | None
    cells: int
    seconds: float
    told_delay_ticks: int
    """What the regulator is tuned for."""

    @property
    def certified(self) -> bool:
        return self.grid.unstable == 0 and self.proven == 1.0


@dataclass(frozen=True)
class CaseResult:
    """One case at all its delays."""

    case: Case
    pairs: tuple[PairResult, ...]

    @property
    def certified(self) -> bool:
        return all(pair.certified for pair in self.pairs)

    @property
    def worst(self) -> PairResult:
        """The pair that bears the least further gain."""
        return min(self.pairs, key=lambda pair: pair.grid.worst.gain)


@dataclass(frozen=True)
class DelayResult:
    """What holds at one delay, for a model that is exact.

    `fast` are the margins of all loads with poles up to integral_pole_most, `slow` the least of each margin (and the
    largest sensitivity) over slower ones; `gain_limit` is rho_max in closed form, for the fast; `small_gain` the
    largest |G/Gm - 1| that is stable at any frequency, however the gain varies in time.
    """

    delay_ticks: int
    tuning: Tuning
    fast: Margins
    slow: Margins
    gain_limit: float
    small_gain: float


@dataclass(frozen=True)
class Certificate:
    """`certified` is the verdict: no loop of any grid unstable, and every cell between them proven."""

    delays: tuple[DelayResult, ...]
    cases: tuple[CaseResult, ...]
    seconds: float

    @property
    def certified(self) -> bool:
        return bool(self.cases) and all(case.certified for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: numbers, texts, lists and objects; None where a number does not apply or is unbounded."""
        return {
            "format": FORMAT,
            "version": ionto_rt.__version__,
            "certified": self.certified,
            "envelope": {
                "sample_rates_hz": envelope.SAMPLE_RATES_HZ,
                "delays_ticks": [result.delay_ticks for result in self.delays],
                "series_ohm": envelope.SERIES_OHM,
                "ballast_ohm": envelope.BALLAST_OHM,
                "parallel_ohm": envelope.PARALLEL_OHM,
                "capacitance_f": envelope.CAPACITANCE_F,
                "parallel_ratio": (envelope.PARALLEL_RATIO_MIN, PARALLEL_RATIO_MOST),
                "tick_ratio_min": envelope.TICK_RATIO_MIN,
                "bandwidth_min_hz": envelope.BANDWIDTH_MIN_HZ,
            },
            "grid_points": POINTS,
            "unmodelled": UNMODELLED,
            "delays": [_plain(_named(result)) for result in self.delays],
            "cases": [
                {
                    **_plain(dataclasses.asdict(result.case)),
                    "front_end": result.case.front_end.name.lower().replace("_", "-"),
                    "certified": result.certified,
                    "pairs": [
                        {**_plain(dataclasses.asdict(pair)), "certified": pair.certified} for pair in result.pairs
                    ],
                }
                for result in self.cases
            ],
            "seconds": round(self.seconds, 3),
        }


def _named(result: DelayResult) -> dict[str, Any]:
    """A delay's result by names, those of its parts too, which `asdict` would drop."""
    return {
        name: value._asdict() if isinstance(value, (Margins, Tuning)) else value for name, value in vars(result).items()
    }


def _plain(value: Any) -> Any:
    """None for numbers that JSON has no form for."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def at_delay(delay_ticks: int, tuning: Tuning | None = None) -> DelayResult:
    """Margins and closed forms at one delay."""
    tuning = tuning or running(delay_ticks)
    fast = margins_at(Plant(0.0, 1.0, 0.0), delay_ticks, tuning)
    poles = 1.0 - (1.0 - tuning.integral_pole_most) * np.geomspace(1e-3, 1.0, _SLOW_POLES)
    slow = [margins_at(Plant(pole, 1.0, 0.0), delay_ticks, tuning) for pole in poles]
    return DelayResult(
        delay_ticks=delay_ticks,
        tuning=tuning,
        fast=fast,
        slow=Margins(
            gain=min(margins.gain for margins in slow),
            phase_deg=min(margins.phase_deg for margins in slow),
            delay_ticks=min(margins.delay_ticks for margins in slow),
            sensitivity=max(margins.sensitivity for margins in slow),
        ),
        gain_limit=gain_limit(delay_ticks, tuning.tracking_pole),
        small_gain=1.0 / max(1.0, largest_sensitivity(delay_ticks, tuning)),
    )


def try_case(case: Case, delays: Sequence[int], tuning: Callable[[int], Tuning] = running) -> CaseResult:
    """Grid and proof of one case at those of `delays` that it has; `tuning` is the regulator's, by its delay."""
    pairs = []
    for told, model_delay, delay in delays_of(case, delays):
        begun = time.perf_counter()
        tuned = quick(tuning(told)) if case.quick else tuning(told)
        grid = search(case, model_delay, delay, tuned)
        proven, cells = None, 0
        if grid.unstable == 0:
            parts = [exclude(part) for part in problems(case, model_delay, delay, tuned)]
            proven, cells = min(part.proven for part in parts), sum(part.cells for part in parts)
        seconds = round(time.perf_counter() - begun, 3)
        pairs.append(PairResult(model_delay, delay, grid, proven, cells, seconds, told))
    return CaseResult(case, tuple(pairs))


def certify(
    delays: Sequence[int] = DELAYS_TICKS,
    cases: Sequence[Case] = CASES,
    tuning: Callable[[int], Tuning] = running,
    tell: Callable[[CaseResult], None] = lambda result: None,
) -> Certificate:
    """Try the envelope at `delays` (ticks); `tell` is called with each case as it is done.

    `tuning` is the regulator's, by the delay that it is told; both poles in (0, 1). Up to a minute for all delays.
    """
    begun = time.perf_counter()
    results = []
    for case in cases:
        result = try_case(case, delays, tuning)
        if result.pairs:
            results.append(result)
            tell(result)
    at_delays = tuple(at_delay(ticks, tuning(ticks)) for ticks in delays)
    return Certificate(at_delays, tuple(results), time.perf_counter() - begun)


def mismatch_names(case: Case) -> tuple[str, ...]:
    """What a corner's mismatches belong to."""
    return ("Rs'", "Rp", "C") if isinstance(case, VoltageCase) else ("bandwidth", "gain")
