"""The closed loop of load and predictive regulator: its characteristic polynomial, and whether it is stable.

Everything broadcasts: a load or a model may hold scalars or arrays. Polynomials are arrays of coefficients along the
first axis, highest power of z first. The derivations are in docs/control.md, sections 1 to 3.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ionto_rt.core.constant_current import QUICK_POLE_MOST, configure

Array = npt.NDArray[np.float64]
Number = float | Array
_CHUNK = 1 << 15


class Plant(NamedTuple):
    """A load as the loop meets it: i(k) = pole i(k-1) + gain u(k-d) - gain_before u(k-d-1), d being the delay in ticks.

    `pole` is in [0, 1). `gain` and `gain_before` are in A per volt of a voltage source, in A per A of a current source.
    """

    pole: Number
    gain: Number
    gain_before: Number


class Tuning(NamedTuple):
    """What the regulator's stability depends on besides its model: keys of struct PredictiveConfig."""

    tracking_pole: float
    integral_pole_most: float


@cache
def running(delay_ticks: int) -> Tuning:
    """The tuning of the regulator that runs in the tick, at the delay that it is told."""
    made = configure(
        front_end="voltage",
        tick_s=1e-3,
        full_scale_a=1e-3,
        compliance_v=1.0,
        current_lsb_a=1e-8,
        output_lsb=1e-5,
        output_min=-1.0,
        output_max=1.0,
        delay_ticks=delay_ticks,
    )["regulator"]
    return Tuning(made["tracking_pole"], made["integral_pole_most"])


def quick(tuning: Tuning) -> Tuning:
    """The tuning while the disturbance filter is quick after a surprise."""
    return tuning._replace(integral_pole_most=min(tuning.integral_pole_most, QUICK_POLE_MOST))


def voltage_source(series_ohm: Number, parallel_ohm: Number, capacitance_f: Number, tick_s: Number) -> Plant:
    """Series resistance and parallel RC behind a voltage that is held for a tick (zero-order hold, exact).

    `series_ohm` is the whole of it: skin, leads and ballast. All arguments are above zero.
    """
    ratio, fall = tick_ratio(series_ohm, parallel_ohm, capacitance_f, tick_s)
    share = parallel_ohm / (series_ohm + parallel_ohm)
    pole = np.exp(-ratio)
    return Plant(pole, (1.0 - fall * share) / series_ohm, pole / series_ohm)


def tick_ratio(
    series_ohm: Number, parallel_ohm: Number, capacitance_f: Number, tick_s: Number
) -> tuple[Number, Number]:
    """Ts/tau_p, the tick over the time constant that the load shows a voltage source, and 1 - exp(-Ts/tau_p)."""
    ratio = tick_s * (series_ohm + parallel_ohm) / (series_ohm * parallel_ohm * capacitance_f)
    return ratio, -np.expm1(-ratio)


def current_source(gain: Number, bandwidth_hz: Number, tick_s: Number) -> Plant:
    """A current source of one pole: `gain` is what flows per commanded A, `bandwidth_hz` its -3 dB frequency."""
    ratio = 2.0 * np.pi * bandwidth_hz * tick_s
    return Plant(np.exp(-ratio), -gain * np.expm1(-ratio), 0.0 * ratio)


def _times(left: Array, right: Array) -> Array:
    """Product of two polynomials."""
    shape = np.broadcast_shapes(left.shape[1:], right.shape[1:])
    product = np.zeros((len(left) + len(right) - 1, *shape))
    for index, coefficient in enumerate(left):
        product[index : index + len(right)] += coefficient * right
    return product


def _stack(*coefficients: Number) -> Array:
    return np.stack(np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in coefficients)))


def regulator_polynomials(
    model: Plant,
    delay_ticks: int,
    tuning: Tuning | None = None,
) -> tuple[Array, Array]:
    """The regulator between samples y and w = (gain - gain_before z^-1) u, in powers of z^-1: own(z) w = -gain(z) y.

    `own` has the length delay_ticks + 1, `gain` 2. What the reference model adds does not belong to stability.
    """
    pole = np.asarray(model.pole, dtype=np.float64)
    tracking_pole, integral_pole_most = tuning or running(delay_ticks)
    beta = np.minimum(pole, integral_pole_most)
    steps = np.arange(delay_ticks - 1).reshape(-1, *([1] * pole.ndim))
    powers = pole**steps
    pull = tracking_pole - pole
    carry = 1.0 - pull * powers.sum(axis=0)
    filtered = _stack(np.ones_like(pole), -beta)
    own = np.zeros((delay_ticks + 1, *pole.shape))
    own[:-1] = _times(np.concatenate([np.ones((1, *pole.shape)), -pull * powers]), filtered)[:delay_ticks]
    own[-1] = (pull * powers[-1] * beta if delay_ticks > 1 else 0.0) - carry * (1.0 - beta)
    if delay_ticks == 1:
        own[-1] += -beta
    gain = carry * (1.0 - beta) * _stack(np.ones_like(pole), -pole) - pull * pole ** (delay_ticks - 1) * filtered
    return own, gain


def characteristic_polynomial(
    load: Plant,
    model: Plant,
    delay_ticks: int,
    model_delay_ticks: int,
    tuning: Tuning | None = None,
) -> Array:
    """Characteristic polynomial of the loop of `load` and the regulator that believes `model`.

    The regulator divides by (gain - gain_before z^-1) of its model; these factors are kept, so that no mode is hidden.
    Shape (n + 1, ...) with n = max(delays) + 2; the leading coefficient is model.gain, above zero.
    """
    spread = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (*load, *model)))
    load, model = Plant(*spread[:3]), Plant(*spread[3:])
    own, gain = regulator_polynomials(model, model_delay_ticks, tuning)
    shared = _times(_stack(1.0, -np.asarray(load.pole)), _stack(model.gain, -np.asarray(model.gain_before)))
    free = _times(shared, own)
    fed = _times(_stack(load.gain, -np.asarray(load.gain_before)), gain)
    size = max(delay_ticks, model_delay_ticks) + 3
    polynomial = np.zeros((size, *np.broadcast_shapes(free.shape[1:], fed.shape[1:])))
    polynomial[: len(free)] += free
    polynomial[delay_ticks : delay_ticks + len(fed)] += fed
    return polynomial


def jury_stable(polynomial: Array) -> npt.NDArray[np.bool_]:
    """Whether all roots are inside the unit circle (Jury 1964, in the form of Schur and Cohn); shape (...).

    NaN counts as unstable.
    """
    flat = polynomial.reshape(len(polynomial), -1)
    stable = np.ones(flat.shape[1], dtype=np.bool_)
    for start in range(0, flat.shape[1], _CHUNK):
        part = flat[:, start : start + _CHUNK] / flat[:1, start : start + _CHUNK]
        while len(part) > 1:
            last = part[-1]
            stable[start : start + _CHUNK] &= np.abs(last) < 1.0
            with np.errstate(all="ignore"):
                part = (part[:-1] - last * part[:0:-1]) / (1.0 - last * last)
    return stable.reshape(polynomial.shape[1:])


def spectral_radius(polynomial: Array) -> Array:
    """Largest modulus of the roots, by the eigenvalues of the companion matrices; shape (...)."""
    order = len(polynomial) - 1
    flat = polynomial.reshape(order + 1, -1)
    companion = np.zeros((flat.shape[1], order, order))
    companion[:, 0, :] = -(flat[1:] / flat[0]).T
    companion[:, np.arange(1, order), np.arange(order - 1)] = 1.0
    radius: Array = np.abs(np.linalg.eigvals(companion)).max(axis=1)
    return radius.reshape(polynomial.shape[1:])


def predict_stable(
    load: Plant,
    model: Plant,
    delay_ticks: int,
    model_delay_ticks: int,
    tuning: Tuning | None = None,
) -> npt.NDArray[np.bool_]:
    """Whether the loops of loads and models, element by element, are stable."""
    return jury_stable(characteristic_polynomial(load, model, delay_ticks, model_delay_ticks, tuning))
