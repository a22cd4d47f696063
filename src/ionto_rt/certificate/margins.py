"""How far a loop is from instability: gain, phase and delay margins, and the gain limit in closed form.

All hold for a model that is exact: then the loop is known by its complementary sensitivity T alone, which depends on
the model's pole and the delay. docs/control.md, sections 4 and 5, has the derivations.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ionto_rt.certificate.loop import Array, Number, Plant, Tuning, regulator_polynomials, running

Complex = npt.NDArray[np.complex128]
_FREQUENCIES = 1024
_BISECTIONS = 48


class Margins(NamedTuple):
    """Margins of one loop; infinity where nothing of that kind makes it unstable."""

    gain: float
    """Factor by which the loop's gain may rise (the true impedance fall)."""
    phase_deg: float
    delay_ticks: float
    sensitivity: float
    """Ms, the largest amplification of a disturbance at any frequency: 1/Ms is the distance of L from -1."""


def complementary_sensitivity(
    model: Plant,
    delay_ticks: int,
    omega: Number,
    tuning: Tuning | None = None,
) -> Complex:
    """T at `omega` (radians per tick, 0 to pi), for a model that is exact; broadcasts."""
    tuning = tuning or running(delay_ticks)
    beta = np.minimum(model.pole, tuning.integral_pole_most)
    _, gain = regulator_polynomials(model, delay_ticks, tuning)
    back = np.exp(-1j * np.asarray(omega))
    answer: Complex = (
        back**delay_ticks * (gain[0] + gain[1] * back) / ((1.0 - beta * back) * (1.0 - tuning.tracking_pole * back))
    )
    return answer


def _crossings(value: Callable[[Array], Array], omega: Array) -> Array:
    """Where a function of frequency changes its sign: brackets on the grid `omega`, halved to the last bit."""
    signs = np.signbit(value(omega))
    at = np.flatnonzero(signs[1:] != signs[:-1])
    low, high = omega[at], omega[at + 1]
    sign = signs[at]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        same = np.signbit(value(middle)) == sign
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return 0.5 * (low + high)


def margins_at(
    model: Plant,
    delay_ticks: int,
    tuning: Tuning | None = None,
) -> Margins:
    """Margins of the loop of one load (scalars) and its exact model, from L = T/(1 - T). Takes some milliseconds."""

    def loop(omega: Array) -> Complex:
        closed = complementary_sensitivity(model, delay_ticks, omega, tuning)
        return closed / (1.0 - closed)

    # Below 1e-6 the integral action rules and |L| is above 1 by orders of magnitude.
    omega = np.concatenate([np.geomspace(1e-6, 0.02, 128), np.linspace(0.02, math.pi, _FREQUENCIES)[1:]])
    real_axis = np.append(_crossings(lambda w: loop(w).imag, omega), math.pi)
    on_axis = loop(real_axis).real
    gains = -1.0 / on_axis[(on_axis < 0.0) & (on_axis > -1.0)]
    unity = _crossings(lambda w: np.abs(loop(w)) - 1.0, omega)
    lead = np.mod(np.angle(loop(unity)) + math.pi, 2.0 * math.pi)
    distance = np.abs(1.0 + loop(omega))
    nearest = int(distance.argmin())
    near = omega[max(nearest - 1, 0) : nearest + 2]
    fine = np.linspace(near[0], near[-1], _FREQUENCIES)
    return Margins(
        gain=float(gains.min(initial=math.inf)),
        phase_deg=float(np.degrees(np.minimum(lead, 2.0 * math.pi - lead)).min(initial=math.inf)),
        delay_ticks=float((lead / unity).min(initial=math.inf)),
        sensitivity=float(1.0 / np.abs(1.0 + loop(fine)).min()),
    )


def gain_limit(delay_ticks: int, tracking_pole: float) -> float:
    """Largest factor rho by which the loop's gain may rise, for poles of the model up to integral_pole_most; exact.

    The loop has the poles of z^d - t z^(d-1) + (rho - 1)(1 - t), stable if and only if 0 < rho < rho_max
    (S. A. Kuruklis, J. Math. Anal. Appl. 188 (1994) 719). `tracking_pole` is in [0, 1).
    """
    if delay_ticks == 1:
        return 2.0 / (1.0 - tracking_pole)
    if tracking_pole == 0.0:
        return 2.0
    low, high = 0.0, math.pi / delay_ticks
    for _ in range(200):
        phi = 0.5 * (low + high)
        # sin((d-1) phi)/sin(d phi) rises from (d-1)/d without bound; at the end sought it is 1/t.
        if tracking_pole * math.sin((delay_ticks - 1) * phi) < math.sin(delay_ticks * phi):
            low = phi
        else:
            high = phi
    reach = math.sqrt(1.0 + tracking_pole**2 - 2.0 * tracking_pole * math.cos(phi))
    return 1.0 + reach / (1.0 - tracking_pole)


def largest_sensitivity(
    delay_ticks: int,
    tuning: Tuning | None = None,
) -> float:
    """Mt, the largest |T| over all frequencies and poles of the model, on a grid of 400 poles and 1000 frequencies.

    It is 1 for poles up to integral_pole_most, whatever the delay, and largest in the limit of slow loads, which is
    tried too.
    """
    tuning = tuning or running(delay_ticks)
    poles = 1.0 - (1.0 - tuning.integral_pole_most) * np.append(0.0, np.geomspace(1e-4, 1.0, 400))
    model = Plant(poles[:, None], 1.0 + 0.0 * poles[:, None], 0.0 * poles[:, None])
    omega = np.geomspace(1e-3, math.pi, 1000)
    return float(np.abs(complementary_sensitivity(model, delay_ticks, omega, tuning)).max())
