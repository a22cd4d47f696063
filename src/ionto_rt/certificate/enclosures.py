"""F = ln(-L) of the loops in the envelope, enclosed over cells: what `cells.exclude` asks for.

L is the loop's transfer function. Symbols as in docs/control.md, section 7: x = Ts/tau_p, s = 1/(e^x - 1),
e = 1 - z^-1, w = s e, r = Rs'/(Rs' + Rp), Q = Rs' G = (r + w)/(1 + w).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.polynomial.polynomial as poly
import numpy.typing as npt

from ionto_rt.certificate.cells import Enclosure, Problem
from ionto_rt.certificate.discs import Array, Complex, Disc, interval
from ionto_rt.certificate.envelope import (
    BANDWIDTH_RATIO_MIN,
    PARALLEL_RATIO_MIN,
    Case,
    CurrentCase,
    Range,
    VoltageCase,
)
from ionto_rt.certificate.loop import Tuning

OMEGA_MIN = 1e-5
"""Radians per tick. Below it |L| > 1 is shown in closed form (`least_gain`)."""
TICK_RATIO_CAP = 80.0
"""Above it a load is a resistance to the loop."""
_CAP_SLACK = 1e-3
"""More than |ln(Q/r)| of load and model above the cap: (2 s/r + 2 s) each, with x above the following and r > 0.01."""
_CAP_RATIO_LEAST = 14.0
_EXPONENT_MAX = 700.0


def problems(case: Case, model_delay_ticks: int, delay_ticks: int, tuning: Tuning) -> list[Problem]:
    """The sets of loops that make up a case at one pair of delays; together they are connected."""
    delays = _Delays(delay_ticks, model_delay_ticks)
    if isinstance(case, CurrentCase):
        return [_checked(_CurrentSource(case, delays, tuning))]
    edge = -math.log(tuning.integral_pole_most)
    least = case.tick_ratio_min
    slow = [_checked(_SlowLoads(case, (least, edge), delays, tuning))] if least < edge else []
    fast = _checked(_FastLoads(case, (max(edge, least), TICK_RATIO_CAP), delays, tuning))
    return [*slow, fast, _checked(_Resistances(case, delays, tuning))]


def _checked(loops: "_Loops") -> Problem:
    if not loops.least_gain() > OMEGA_MIN:
        raise ValueError(f"|L| > 1 is not shown below {OMEGA_MIN:g} radians per tick; lower OMEGA_MIN")
    return loops


class _Delays(NamedTuple):
    true: int
    model: int


class _Frequency(NamedTuple):
    """Frequencies of cells, radians per tick, and how far the cells reach from them."""

    omega: Array
    reach: Array

    @classmethod
    def of(cls, centre: Array, half: Array) -> "_Frequency":
        omega = np.exp(centre[0])
        return cls(omega, omega * np.expm1(half[0]))

    @property
    def lag(self) -> Complex:
        """e, which changes with omega by at most 1."""
        return np.asarray(-np.expm1(-1j * self.omega), dtype=np.complex128)

    def lag_slope(self) -> Disc:
        """d ln e / d ln omega = (omega/2)(cot(omega/2) - j); up to pi its own slope is below 1."""
        half = 0.5 * self.omega
        return Disc(half / np.tan(half) - 1j * half, self.reach)

    def held(self, ticks: int) -> tuple[Complex, Disc]:
        """ln z^-ticks, and its derivative to ln omega."""
        value = np.asarray(-1j * ticks * self.omega, dtype=np.complex128)
        return value, Disc(value, ticks * self.reach)

    def times_omega(self, value: Disc) -> Disc:
        return value.times(Disc(self.omega, self.reach))

    def polynomial(self, coefficients: Array, radii: Array) -> tuple[Disc, Disc]:
        """Sum of c_k z^-k and its derivative to omega; each c_k is known up to its radius. Shapes (powers, cells)."""
        powers = np.arange(len(coefficients))[:, None]
        terms = coefficients * np.exp(-1j * powers * self.omega)
        radius = radii + (np.abs(coefficients) + radii) * powers * self.reach
        value = Disc(terms.sum(axis=0), radius.sum(axis=0))
        return value, Disc((-1j * powers * terms).sum(axis=0), (powers * radius).sum(axis=0))


class _Lag(NamedTuple):
    """w of a load whose x is known up to a factor: `exact` at the centre, `value` and `slope` = x (1 + s) enclosed."""

    exact: Complex
    value: Disc
    slope: Disc

    @classmethod
    def of(cls, ratio: Array, reach: Array, frequency: _Frequency) -> "_Lag":
        """`ratio` is x, `reach` a bound on |ln| of what it may be off."""
        low, high = ratio * np.exp(-reach), ratio * np.exp(reach)
        most, least = (1.0 / np.expm1(np.minimum(x, _EXPONENT_MAX)) for x in (low, high))
        lag = frequency.lag
        value = interval(least, most).times(Disc(lag, frequency.reach))
        exact = lag / np.expm1(np.minimum(ratio, _EXPONENT_MAX))
        return cls(exact, value, interval(low * (1.0 + most), high * (1.0 + least)))

    def inverse(self) -> Disc:
        """1/(1 + w)."""
        return Disc(1.0 + self.value.centre, self.value.radius).inverse()


class _Admittance(NamedTuple):
    """Q of a load. The real part of w is not below zero, so neither r + w nor 1 + w vanishes."""

    exact_share: Array
    share: Disc
    lag: _Lag

    def numerator(self) -> Complex:
        return self.exact_share + self.lag.exact

    def logarithm(self) -> Complex:
        answer: Complex = np.log(self.numerator() / (1.0 + self.lag.exact))
        return answer

    def zero(self) -> Disc:
        """1/(r + w)."""
        return self.share.plus(self.lag.value).inverse()

    def to_lag(self) -> Disc:
        """d ln Q / d ln w = w (1 - r)/((r + w)(1 + w))."""
        return self.lag.value.times(self.zero()).times(self.lag.inverse()).times(_complement(self.share))

    def to_parallel(self) -> Disc:
        """d ln Q / d ln(Rp/Rs') at the same w: -r (1 - r)/(r + w)."""
        r, radius = self.share
        product = Disc(r * (1.0 - r), radius * np.abs(1.0 - 2.0 * r) + radius**2)
        return self.zero().times(product).negative()

    def to_ratio(self) -> Disc:
        """d ln Q / d ln x."""
        return self.to_lag().times(self.lag.slope).negative()


class _Pair(NamedTuple):
    """A load and its model, where the load is the model over the mismatch."""

    load: _Admittance
    model: _Admittance

    @classmethod
    def of(cls, centre: Array, half: Array, frequency: _Frequency) -> "_Pair":
        """With o = Rp/Rs' and r: o = o_m mu_s/mu_p and x = x_m mu_c mu_s (1 - r_m)/(1 - r)."""
        _, model_ratio, model_parallel, series, parallel, capacitance = centre
        parallel_ratio = model_parallel + series - parallel
        model_share = _share(model_parallel, half[2])
        share = _share(parallel_ratio, half[2] + half[3] + half[4])
        exact_model, exact = (1.0 / (1.0 + np.exp(value)) for value in (model_parallel, parallel_ratio))
        ratio = np.exp(model_ratio + capacitance + series) * (1.0 - exact_model) / (1.0 - exact)
        apart = model_share.minus(share)
        reach = (
            half[1]
            + half[2] * (np.abs(apart.centre) + apart.radius)
            + half[3] * (1.0 - share.centre + share.radius)
            + half[4] * (share.centre + share.radius)
            + half[5]
        )
        return cls(
            _Admittance(exact, share, _Lag.of(ratio, reach, frequency)),
            _Admittance(exact_model, model_share, _Lag.of(np.exp(model_ratio), half[1], frequency)),
        )

    def to_model_parallel(self) -> Disc:
        """d ln(Q/Qm) / d ln o_m."""
        moved = self.load.to_ratio().times(self.model.share.minus(self.load.share))
        return moved.plus(self.load.to_parallel()).minus(self.model.to_parallel())

    def to_mismatch(self) -> list[Disc]:
        """Derivatives of ln(mu_s Q) to ln mu_s, ln mu_p and ln mu_c."""
        to_ratio, to_parallel = self.load.to_ratio(), self.load.to_parallel()
        series = to_ratio.times(_complement(self.load.share)).plus(to_parallel)
        return [
            Disc(1.0 + series.centre, series.radius),
            to_ratio.times(self.load.share).minus(to_parallel),
            to_ratio,
        ]


def _complement(value: Disc) -> Disc:
    return Disc(1.0 - value.centre, value.radius)


def _one(like: Array) -> Disc:
    return Disc(np.ones_like(like), np.zeros_like(like))


def _share(log_parallel: Array, reach: Array) -> Disc:
    """r over an interval of ln(Rp/Rs')."""
    return interval(1.0 / (1.0 + np.exp(log_parallel + reach)), 1.0 / (1.0 + np.exp(log_parallel - reach)))


class _Loops:
    """What the sets have in common. The first coordinate is ln omega; `spans` are the ranges of the others, not yet
    logarithms."""

    def __init__(self, spans: Sequence[Range], delays: _Delays, tuning: Tuning):
        self.low, self.high = np.log(np.array([(OMEGA_MIN, math.pi), *spans])).T
        self.delays = delays
        self.rest = 1.0 - tuning.tracking_pole

    def least_gain(self) -> float:
        """A lower bound of |L| omega for all omega up to OMEGA_MIN."""
        raise NotImplementedError

    def outside(self, centre: Array, half: Array) -> npt.NDArray[np.bool_]:
        return np.zeros(centre.shape[1], dtype=np.bool_)

    def enclose(self, centre: Array, half: Array) -> Enclosure:
        raise NotImplementedError

    def _filter(self, frequency: _Frequency) -> tuple[Complex, Disc]:
        """ln(-z^-d Lm z^dm) and its derivative to ln omega, for poles of the model up to integral_pole_most.

        With t the tracking pole, there Lm = z^-dm (1 - t)/(e V) with V = 1 + (1 - t)(z^-1 + ... + z^-(dm-1)): the
        model's pole is not in it.
        """
        terms = np.full((self.delays.model, 1), self.rest)
        terms[0] = 1.0
        value, slope = frequency.polynomial(terms, np.zeros_like(terms))
        held, held_slope = frequency.held(self.delays.true)
        logarithm = held + 1j * math.pi + math.log(self.rest) - np.log(frequency.lag) - np.log(value.centre)
        own = frequency.times_omega(slope.times(value.inverse()))
        return logarithm, held_slope.minus(frequency.lag_slope()).minus(own)

    def _filter_least(self) -> float:
        """A lower bound of |Lm| omega, poles of the model up to integral_pole_most."""
        return self.rest / (1.0 + self.rest * (self.delays.model - 1))


class _Resistances(_Loops):
    """Loads and models above the cap. Coordinates: ln omega, ln of the model's Rs' + Rp over the load's."""

    def __init__(self, case: VoltageCase, delays: _Delays, tuning: Tuning):
        least = case.capacitance[0] * case.series[0] * min(1.0, case.parallel[0] / case.series[1])
        if TICK_RATIO_CAP * least < _CAP_RATIO_LEAST:
            raise ValueError(f"{case.name}: the mismatch is too large for TICK_RATIO_CAP")
        low, high = min(case.series[0], case.parallel[0]), max(case.series[1], case.parallel[1])
        super().__init__([(low, high)], delays, tuning)
        self.lowest = low

    def least_gain(self) -> float:
        return self._filter_least() * self.lowest * math.exp(-_CAP_SLACK)

    def enclose(self, centre: Array, half: Array) -> Enclosure:
        logarithm, slope = self._filter(_Frequency.of(centre, half))
        enclosure = _enclosure(logarithm + centre[1], [slope, _one(centre[1])])
        return enclosure._replace(slack=_CAP_SLACK)


class _CurrentSource(_Loops):
    """Coordinates: ln omega, ln x of the model, ln of bandwidths (model over source), ln of gains (source over model).

    Every pole of the model is below exp(-BANDWIDTH_RATIO_MIN), hence below integral_pole_most.
    """

    def __init__(self, case: CurrentCase, delays: _Delays, tuning: Tuning):
        ratios = (BANDWIDTH_RATIO_MIN, _EXPONENT_MAX)
        span = _EXPONENT_MAX / BANDWIDTH_RATIO_MIN
        bandwidth = (max(case.bandwidth[0], 1.0 / span), min(case.bandwidth[1], span))
        self.gain = case.gain
        super().__init__([ratios, bandwidth, case.gain], delays, tuning)

    def least_gain(self) -> float:
        # |1 + w| <= 1 + 2 s.
        return self._filter_least() * self.gain[0] / (1.0 + 2.0 / math.expm1(BANDWIDTH_RATIO_MIN))

    def outside(self, centre: Array, half: Array) -> npt.NDArray[np.bool_]:
        source = centre[1] - centre[2]
        reach = half[1] + half[2]
        low, high = self.low[1], self.high[1]
        answer: npt.NDArray[np.bool_] = (source + reach < low) | (source - reach > high)
        return answer

    def enclose(self, centre: Array, half: Array) -> Enclosure:
        frequency = _Frequency.of(centre, half)
        logarithm, slope = self._filter(frequency)
        source = _Lag.of(np.exp(centre[1] - centre[2]), half[1] + half[2], frequency)
        model = _Lag.of(np.exp(centre[1]), half[1], frequency)
        value = logarithm + centre[3] + np.log((1.0 + model.exact) / (1.0 + source.exact))
        # -d ln(1/(1 + w)) / d ln w
        to_source, to_model = (lag.value.times(lag.inverse()) for lag in (source, model))
        by_source = to_source.times(source.slope)
        return _enclosure(
            value,
            [
                to_model.minus(to_source).times(frequency.lag_slope()).plus(slope),
                by_source.minus(to_model.times(model.slope)),
                by_source.negative(),
                _one(centre[3]),
            ],
        )


class _VoltageSource(_Loops):
    """Coordinates: ln omega; of the model ln x and ln(Rp/Rs'); ln of model over load of Rs', Rp and C."""

    def __init__(self, case: VoltageCase, ratios: Range, delays: _Delays, tuning: Tuning):
        self.case = case
        most = case.parallel[1] / case.series[0] if case.either_side else 1.0
        self.limit = math.log(case.parallel_ratio_most)
        top = case.parallel_ratio_most * max(1.0, most)
        super().__init__(
            [ratios, (PARALLEL_RATIO_MIN, top), case.series, case.parallel, case.capacitance], delays, tuning
        )

    def outside(self, centre: Array, half: Array) -> npt.NDArray[np.bool_]:
        model = centre[2] - half[2]
        load = centre[2] + centre[3] - centre[4] - half[2] - half[3] - half[4]
        answer: npt.NDArray[np.bool_] = (model > self.limit) & (load > self.limit)
        return answer

    def _transfer_least(self) -> float:
        """A lower bound of mu_s |Q|: |Q| is nowhere below r."""
        most = self.case.parallel_ratio_most * max(1.0, self.case.series[1] / self.case.parallel[0])
        return self.case.series[0] / (1.0 + most)


class _FastLoads(_VoltageSource):
    """Poles of the model up to integral_pole_most."""

    def least_gain(self) -> float:
        return self._transfer_least() * self._filter_least()

    def enclose(self, centre: Array, half: Array) -> Enclosure:
        frequency = _Frequency.of(centre, half)
        load, model = pair = _Pair.of(centre, half, frequency)
        logarithm, slope = self._filter(frequency)
        return _enclosure(
            logarithm + centre[3] + load.logarithm() - model.logarithm(),
            [
                load.to_lag().minus(model.to_lag()).times(frequency.lag_slope()).plus(slope),
                load.to_ratio().minus(model.to_ratio()),
                pair.to_model_parallel(),
                *pair.to_mismatch(),
            ],
        )


class _SlowLoads(_VoltageSource):
    """Poles a of the model above integral_pole_most, where the filter of the disturbance stays at integral_pole_most.

    L = z^-d mu_s Q X / ((1 - a)(r_m + w_m) e V), with polynomials V and X in z^-1, coefficients polynomials in a.
    """

    def __init__(self, case: VoltageCase, ratios: Range, delays: _Delays, tuning: Tuning):
        self.slowest = 1.0 - tuning.integral_pole_most
        self.own, self.gain = regulator_in_pole(delays.model, tuning)
        super().__init__(case, ratios, delays, tuning)

    def least_gain(self) -> float:
        # X(1) = (1 - beta)(1 - t), since T(1) = 1; the rest by the triangle inequality, with a <= 1.
        gain = self.slowest * self.rest - OMEGA_MIN * np.abs(self.gain[1]).sum()
        own = sum(np.abs(coefficient).sum() for coefficient in self.own)
        return float(self._transfer_least() * gain / ((self.slowest + OMEGA_MIN) * own))

    def enclose(self, centre: Array, half: Array) -> Enclosure:
        frequency = _Frequency.of(centre, half)
        load, model = pair = _Pair.of(centre, half, frequency)
        ratio = np.exp(centre[1])
        ratio_reach = ratio * np.expm1(half[1])
        pole = np.exp(-ratio)
        pole_reach = np.exp(-ratio * np.exp(-half[1])) * ratio_reach
        own = _OverPole.of(self.own, pole, pole_reach, frequency)
        gain = _OverPole.of(self.gain, pole, pole_reach, frequency)
        held, held_slope = frequency.held(self.delays.true)
        value = (
            held
            + 1j * math.pi
            + centre[3]
            + load.logarithm()
            + np.log(gain.value.centre / own.value.centre)
            - np.log(frequency.lag)
            - np.log(-np.expm1(-ratio) * model.numerator())
        )
        model_to_lag = model.lag.value.times(model.zero())
        # d a / d ln x = -a x.
        pole_slope = Disc(-pole * ratio, pole * ratio_reach + pole_reach * (ratio + ratio_reach))
        # d ln((1 - a)(r + w)) / d ln x, with a/(1 - a) = s.
        in_model = _complement(model_to_lag).times(model.lag.slope).minus(Disc(ratio, ratio_reach))
        without_own = [
            load.to_lag()
            .minus(model_to_lag)
            .minus(_one(ratio))
            .times(frequency.lag_slope())
            .plus(held_slope)
            .plus(frequency.times_omega(gain.to_omega)),
            load.to_ratio().plus(gain.to_pole.times(pole_slope)).minus(in_model),
            pair.to_model_parallel(),
            *pair.to_mismatch(),
        ]
        # V may vanish on the unit circle: with a small integral_pole_most the regulator alone need not be stable.
        reach = np.zeros_like(ratio)
        for slope, side in zip(without_own, half, strict=True):
            reach += (np.abs(slope.centre.real) + slope.radius) * side
        least = np.exp((value + np.log(own.value.centre)).real - reach) / own.value.most()
        in_omega, in_ratio, *others = without_own
        gradient = [
            in_omega.minus(frequency.times_omega(own.to_omega)),
            in_ratio.minus(own.to_pole.times(pole_slope)),
            *others,
        ]
        return _enclosure(value, gradient)._replace(least=least)


class _OverPole(NamedTuple):
    """A polynomial in z^-1 and the pole, over cells: its value, and its logarithm's derivatives to omega and a."""

    value: Disc
    to_omega: Disc
    to_pole: Disc

    @classmethod
    def of(cls, table: Sequence[Array], pole: Array, reach: Array, frequency: _Frequency) -> "_OverPole":
        coefficients, slopes, radii, slope_radii = (np.empty((len(table), len(pole))) for _ in range(4))
        for power, in_pole in enumerate(table):
            first, second, third = (poly.polyder(in_pole, order) for order in (1, 2, 3))
            coefficients[power] = poly.polyval(pole, in_pole)
            slopes[power] = poly.polyval(pole, first)
            # Taylor, with a <= 1 in the remainder.
            radii[power] = np.abs(slopes[power]) * reach + 0.5 * np.abs(second).sum() * reach**2
            curved = np.abs(poly.polyval(pole, second))
            slope_radii[power] = curved * reach + 0.5 * np.abs(third).sum() * reach**2
        value, in_omega = frequency.polynomial(coefficients, radii)
        to_pole, _ = frequency.polynomial(slopes, slope_radii)
        inverse = value.inverse()
        return cls(value, in_omega.times(inverse), to_pole.times(inverse))


def regulator_in_pole(delay_ticks: int, tuning: Tuning) -> tuple[list[Array], list[Array]]:
    """V and X above integral_pole_most: per power of z^-1 the coefficients in the model's pole, lowest power first.

    As `loop.regulator_polynomials` has them for one pole: own = (1 - z^-1) V, gain = X.
    """
    tracking_pole, integral_pole_most = tuning
    pull = np.array([tracking_pole, -1.0])
    powers = [poly.polymul(pull, np.eye(1, index + 1, index)[0]) for index in range(delay_ticks)]
    carry = np.array([1.0])
    for term in powers[:-1]:
        carry = poly.polysub(carry, term)
    terms = [np.array([1.0]), *(-term for term in powers[:-1]), np.array([0.0])]
    own = [
        poly.polysub(now, integral_pole_most * before)
        for before, now in zip([np.array([0.0]), *terms], terms, strict=False)
    ]
    own[delay_ticks] = poly.polysub(own[delay_ticks], (1.0 - integral_pole_most) * carry)
    divided = [own[0]]
    for coefficient in own[1:delay_ticks]:
        divided.append(poly.polyadd(divided[-1], coefficient))
    gain = [
        poly.polysub((1.0 - integral_pole_most) * carry, powers[-1]),
        poly.polyadd(poly.polymul(-(1.0 - integral_pole_most) * carry, [0.0, 1.0]), integral_pole_most * powers[-1]),
    ]
    return divided, gain


def _enclosure(value: Complex, gradient: Sequence[Disc]) -> Enclosure:
    centres = np.stack([np.broadcast_to(part.centre, value.shape) for part in gradient]).astype(np.complex128)
    return Enclosure(value, centres, np.stack([np.broadcast_to(part.radius, value.shape) for part in gradient]))
