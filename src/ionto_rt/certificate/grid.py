"""The envelope tried point by point: Jury's test on every loop of a grid, and the worst of them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ionto_rt.certificate.envelope import (
    BANDWIDTH_RATIO_MIN,
    PARALLEL_RATIO_MIN,
    Case,
    CurrentCase,
    Range,
    VoltageCase,
)
from ionto_rt.certificate.loop import (
    Array,
    Plant,
    Tuning,
    characteristic_polynomial,
    current_source,
    jury_stable,
    spectral_radius,
    voltage_source,
)

TICK_RATIO_MAX = 80.0
POINTS = {"tick_ratio": 60, "parallel_ratio": 40, "mismatch": 7}
"""Points along each axis, equally spaced in logarithms, ends included."""
_GAIN_MAX = 64.0
_PARTS = 10


@dataclass(frozen=True)
class Corner:
    """The loop of a grid that bears the least further gain.

    `gain` is the factor by which its gain may still rise, below 1 if it is unstable; `radius` its spectral radius as it
    stands. `tick_ratio` and `parallel_ratio` are the model's (Ts/tau, Rp/Rs'), `mismatch` model over load, in the order
    of the case's ranges.
    """

    gain: float
    radius: float
    tick_ratio: float
    parallel_ratio: float
    mismatch: tuple[float, ...]


@dataclass(frozen=True)
class GridResult:
    """`tests` loops tried, `unstable` of them unstable."""

    tests: int
    unstable: int
    worst: Corner


def _axis(span: Range, points: int) -> Array:
    return np.geomspace(*span, points) if span[1] > span[0] else np.array([span[0]])


def _parts(case: Case) -> Iterator[Array]:
    """Coordinates of the loops, shape (coordinates, loops): tick ratio, parallel ratio, mismatches."""
    points = POINTS["mismatch"]
    if isinstance(case, CurrentCase):
        ratios = _axis((BANDWIDTH_RATIO_MIN, TICK_RATIO_MAX), POINTS["tick_ratio"])
        # The source's bandwidth is over the minimum too; what the case leaves free ends there.
        span = TICK_RATIO_MAX / BANDWIDTH_RATIO_MIN
        free = max(case.bandwidth[0], 1.0 / span), min(case.bandwidth[1], span)
        grid = np.meshgrid(ratios, [math.nan], _axis(free, 8 * points + 1), _axis(case.gain, points), indexing="ij")
        flat = np.stack([axis.reshape(-1) for axis in grid])
        source = flat[0] / flat[2]
        yield flat[:, (source > BANDWIDTH_RATIO_MIN * (1.0 - 1e-9)) & (source < TICK_RATIO_MAX * (1.0 + 1e-9))]
        return
    top = case.parallel_ratio_most * (case.parallel[1] / case.series[0] if case.either_side else 1.0)
    parallel = _axis((PARALLEL_RATIO_MIN, max(top, case.parallel_ratio_most)), POINTS["parallel_ratio"])
    parallel = np.union1d(parallel, [case.parallel_ratio_most])
    mismatch = [_axis(span, points) for span in (case.series, case.parallel, case.capacitance)]
    for ratios in np.array_split(_axis((case.tick_ratio_min, TICK_RATIO_MAX), POINTS["tick_ratio"]), _PARTS):
        flat = np.stack([axis.reshape(-1) for axis in np.meshgrid(ratios, parallel, *mismatch, indexing="ij")])
        limit = case.parallel_ratio_most * (1.0 + 1e-9)
        yield flat[:, (flat[1] <= limit) | (case.either_side & (flat[1] * flat[2] / flat[3] <= limit))]


def loops(case: Case, at: Array) -> tuple[Plant, Plant]:
    """Load and model at coordinates as `Corner` has them; ticks of 1 s, Rs' of the model 1 ohm."""
    if isinstance(case, CurrentCase):
        ratio, _, bandwidth, gain = at
        hertz = ratio / (2.0 * math.pi)
        return current_source(gain, hertz / bandwidth, 1.0), current_source(1.0, hertz, 1.0)
    ratio, parallel, *mismatch = at
    model = (np.ones_like(ratio), parallel, (1.0 + parallel) / (ratio * parallel))
    series, resistance, capacitance = (value / factor for value, factor in zip(model, mismatch, strict=True))
    return voltage_source(series, resistance, capacitance, 1.0), voltage_source(*model, 1.0)


def search(case: Case, model_delay_ticks: int, delay_ticks: int, tuning: Tuning) -> GridResult:
    """Try a case at one pair of delays."""

    def polynomial(at: Array, gain: float) -> Array:
        load, model = loops(case, at)
        more = Plant(load.pole, load.gain * gain, load.gain_before * gain)
        return characteristic_polynomial(more, model, delay_ticks, model_delay_ticks, tuning)

    tests = unstable = 0
    worst, least = None, math.inf
    for part in _parts(case):
        stable = jury_stable(polynomial(part, 1.0))
        tests += stable.size
        unstable += int(np.count_nonzero(~stable))
        # Bisection for the least gain at which any of them is unstable; only those that are stay in the race.
        low, high = (1.0, _GAIN_MAX) if stable.all() else (0.0, 1.0)
        left = part if stable.all() else part[:, ~stable]
        high = min(high, least)
        fallen = ~jury_stable(polynomial(left, high))
        if high <= low or not fallen.any():
            continue
        left = left[:, fallen]
        while high - low > 1e-4 * high:
            middle = math.sqrt(low * high) if low > 0.0 else 0.5 * high
            fallen = ~jury_stable(polynomial(left, middle))
            if fallen.any():
                left, high = left[:, fallen], middle
            else:
                low = middle
            if high < 1e-3:
                break
        least, worst = high, left[:, 0]
    assert worst is not None, "every loop is unstable at some gain"
    corner = Corner(
        gain=least,
        radius=float(spectral_radius(polynomial(worst[:, None], 1.0))[0]),
        tick_ratio=float(worst[0]),
        parallel_ratio=float(worst[1]),
        mismatch=tuple(float(value) for value in worst[2:]),
    )
    return GridResult(tests, unstable, corner)


class Delays(NamedTuple):
    """Delays of one loop, in ticks: the one that its regulator is told and tuned for, its model's, and the true one."""

    told: int
    model: int
    true: int


def delays_of(case: Case, delays: Sequence[int]) -> list[Delays]:
    """Those of a case, of the `delays` told; every delay is at least 1."""
    chosen = (ticks for ticks in case.delays if ticks in delays)
    made = (
        Delays(told, told + found, told + found + error)
        for told, found, error in itertools.product(chosen, case.found_errors, case.delay_errors)
    )
    return [one for one in made if one.model >= 1 and one.true >= 1]


def remaining_gain(
    tick_ratio: Array,
    parallel_ratio: Array,
    case: VoltageCase,
    model_delay_ticks: int,
    delay_ticks: int,
    tuning: Tuning,
) -> Array:
    """Least gain factor over the corners of a case's mismatch at which a loop becomes unstable; shape of the inputs.

    Below 1: unstable as it stands. Saturates at 1/64 and 64.
    """
    corners = np.array(list(itertools.product(*({*span} for span in (case.series, case.parallel, case.capacitance)))))
    base = np.broadcast_arrays(tick_ratio[..., None], parallel_ratio[..., None], *corners.T)
    at = np.stack([axis.reshape(-1) for axis in base])
    load, model = loops(case, at)
    low, high = np.full(at.shape[1], 1.0 / _GAIN_MAX), np.full(at.shape[1], _GAIN_MAX)
    for _ in range(14):
        middle = np.sqrt(low * high)
        more = Plant(load.pole, load.gain * middle, load.gain_before * middle)
        stable = jury_stable(characteristic_polynomial(more, model, delay_ticks, model_delay_ticks, tuning))
        low, high = np.where(stable, middle, low), np.where(stable, high, middle)
    least: Array = low.reshape(base[0].shape).min(axis=-1)
    return least
