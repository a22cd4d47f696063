"""The readings of a known load under a staircase of commands -> skew between the readings, and the output stage.

Between two boundaries, T apart, the command u is constant. Behind the stage's pole the output is
y(t) = u + (y0 - u) exp(-t/tau), and the voltage x over the load's capacitor follows x' = b y - r x:

    current source   i = y,                  b = 1/C,             r = 1/(Rp C)
    voltage source   i = (y - x)/(Rb + Rs),  b = 1/((Rb + Rs) C), r = 1/(Rp C) + b

    x(t) = x0 exp(-r t) + (b u/r)(1 - exp(-r t)) + b (y0 - u)(exp(-t/tau) - exp(-r t))/(r - 1/tau)

The current is read at the boundary, the voltage v = Rs i + x at `skew_s` behind it, under the next command. Each step
is exact, so a held current that charges the capacitor shows the skew, and so does a step that has begun. Least squares
finds what fits both readings best, with the stated parts and what was read at rest as prior knowledge: as far as the
current is held, a skew s and an error of s/C in Rs look alike, and the uncertainty of the stated Rs is part of the
skew's. That the stage has one pole is taken for granted.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ionto_rt.dummy_load import DummyLoad

Array = npt.NDArray[np.float64]

NAMES = (
    "skew_s", "ln_tau", "gain", "offset", "ln_rs", "ln_rp", "ln_c", "x0", "current_offset", "voltage_offset", "ln_rb",
)  # fmt: skip
STAGE_S = 1.0 / (2.0 * math.pi * 2000.0)
STAGE_SPREAD = 1.0
"""What is assumed of the output stage: 2 kHz, within a factor of e."""
GAIN_SPREAD = 0.1
BALLAST_SPREAD = 0.01
SKEW = NAMES.index("skew_s")
STEPS = 30


@dataclass(frozen=True)
class Staircase:
    """Readings at successive boundaries, arrays of one shape (n,), and what is known of them beforehand.

    applied is the output (A or V, as the codes say) in force up to each boundary; current_a and voltage_v are the
    readings less their stated offsets; the offsets are pairs of value and deviation, as read with the relay open.
    """

    tick_s: float
    ballast_ohm: float
    applied: Array
    current_a: Array
    voltage_v: Array
    current_noise_a: float
    voltage_noise_v: float
    current_offset_a: tuple[float, float]
    voltage_offset_v: tuple[float, float]


@dataclass(frozen=True)
class StaircaseFit:
    """What fits best; each `sigma` one standard deviation. `misfit` is chi squared per reading, 1 if all is well."""

    skew_s: float
    skew_sigma_s: float
    output_time_s: float
    output_time_sigma_s: float
    output_gain: float
    output_gain_sigma: float
    series_ohm: float
    series_sigma_ohm: float
    parallel_ohm: float
    parallel_sigma_ohm: float
    capacitance_f: float
    capacitance_sigma_f: float
    misfit: float


def expected(values: Array, given: Staircase, resistor: bool) -> tuple[Array, Array]:
    """The current and voltage readings that parameters in the order of NAMES lead to, both of shape (n,)."""
    skew, ln_tau, gain, offset, ln_rs, ln_rp, ln_c, x0, current_offset, voltage_offset, ln_rb = map(float, values)
    tau, rs = math.exp(ln_tau), math.exp(ln_rs)
    rp, c = (0.0, 1.0) if resistor else (math.exp(ln_rp), math.exp(ln_c))
    voltage_source = given.ballast_ohm > 0.0
    total = (math.exp(ln_rb) if voltage_source else 0.0) + rs
    b = 0.0 if resistor else 1.0 / (total * c) if voltage_source else 1.0 / c
    r = 1.0 if resistor else 1.0 / (rp * c) + (b if voltage_source else 0.0)
    apart = r - 1.0 / tau
    if abs(apart) < 1e-6 * r:
        apart = 1e-6 * r

    def weights(t: float) -> tuple[float, float, float, float]:
        """p, a, k, d: y(t) = u + (y - u) p;  x(t) = x a + u k + (y - u) d."""
        p, a = math.exp(-t / tau), math.exp(-r * t)
        return p, a, b / r * (1.0 - a), b * (p - a) / apart

    u = gain * given.applied + offset
    p, a, k, d = weights(given.tick_s)
    n = len(u)
    y, x = np.empty(n), np.empty(n)
    y_now, x_now = float(u[0]), x0
    for at, aim in enumerate(u.tolist()):
        x_now = x_now * a + aim * k + (y_now - aim) * d
        y_now = aim + (y_now - aim) * p
        y[at], x[at] = y_now, x_now
    following = np.append(u[1:], u[-1])
    p, a, k, d = weights(skew)
    y_read = following + (y - following) * p
    x_read = x * a + following * k + (y - following) * d
    current = (y - x) / total if voltage_source else y
    late = (y_read - x_read) / total if voltage_source else y_read
    return current + current_offset, rs * late + x_read + voltage_offset


def fit_staircase(given: Staircase, load: DummyLoad, tolerance: float) -> StaircaseFit:
    """Fit the staircase's readings on the stated load, whose parts are known to `tolerance` (a share, one deviation).

    ValueError if the readings are fewer than the unknowns.
    """
    if len(given.applied) < 100:
        raise ValueError(f"{len(given.applied)} readings are too few")
    size = float(np.abs(given.applied).max())
    prior: dict[str, tuple[float, float]] = {
        "skew_s": (0.0, given.tick_s),
        "ln_tau": (math.log(STAGE_S), STAGE_SPREAD),
        "gain": (1.0, GAIN_SPREAD),
        "offset": (0.0, 0.1 * size),
        "ln_rs": (math.log(load.series_ohm), tolerance),
        "ln_rp": (math.log(load.parallel_ohm or 1.0), tolerance),
        "ln_c": (math.log(load.capacitance_f or 1.0), tolerance),
        "x0": (float(given.voltage_v[0]), float(np.abs(given.voltage_v).max()) + given.voltage_noise_v),
        "current_offset": given.current_offset_a,
        "voltage_offset": given.voltage_offset_v,
        "ln_rb": (math.log(given.ballast_ohm or 1.0), BALLAST_SPREAD),
    }
    # What is not there stays where it is.
    fixed = {"ln_rp", "ln_c", "x0"} if load.resistor else set[str]()
    if given.ballast_ohm == 0.0:
        fixed.add("ln_rb")
    free = [at for at, name in enumerate(NAMES) if name not in fixed]
    means = np.array([prior[name][0] for name in NAMES])
    if load.resistor:
        means[NAMES.index("x0")] = 0.0
    deviations = np.array([prior[name][1] for name in NAMES])
    # The last voltage reading is under a command that is not among these.
    last = -1

    def residuals(values: Array) -> Array:
        current, voltage = expected(values, given, load.resistor)
        return np.concatenate(
            [
                (given.current_a - current)[:last] / given.current_noise_a,
                (given.voltage_v - voltage)[:last] / given.voltage_noise_v,
                ((means - values) / deviations)[free],
            ]
        )

    # Levenberg and Marquardt, in units of the deviations, so that amperes and ohms do not meet in one matrix.
    scale = deviations[free]
    values = means.copy()
    left = residuals(values)
    damping = 1e-3
    normal = np.eye(len(free))
    for _ in range(STEPS):
        slope = np.empty((len(left), len(free)))
        for column, at in enumerate(free):
            moved = values.copy()
            moved[at] += 1e-4 * deviations[at]
            slope[:, column] = (left - residuals(moved)) / 1e-4
        normal = slope.T @ slope
        downhill = slope.T @ left
        improved = False
        for _ in range(STEPS):
            change = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), downhill)
            tried = values.copy()
            tried[free] += scale * change
            tried[SKEW] = float(np.clip(tried[SKEW], 0.0, 0.5 * given.tick_s))
            after = residuals(tried)
            if float(after @ after) <= float(left @ left):
                improved = True
                break
            damping *= 10.0
        if not improved:
            break
        moved_by = float(np.abs((tried - values)[free] / scale).max())
        values, left = tried, after
        damping *= 0.1
        if moved_by < 1e-6:
            break
    readings = len(left) - len(free)
    misfit = float(left[:readings] @ left[:readings]) / (readings - len(free))
    sigma = deviations[free] * np.sqrt(np.diag(np.linalg.inv(normal)) * max(1.0, misfit))
    of = {NAMES[at]: float(sigma[column]) for column, at in enumerate(free)}
    found = dict(zip(NAMES, values.tolist(), strict=True))

    def part(name: str) -> tuple[float, float]:
        """Value and deviation of what is fitted by its logarithm; 0 where it is not there."""
        return (math.exp(found[name]), math.exp(found[name]) * of[name]) if name in of else (0.0, 0.0)

    return StaircaseFit(
        found["skew_s"],
        of["skew_s"],
        *part("ln_tau"),
        found["gain"] - 1.0,
        of["gain"],
        *part("ln_rs"),
        *part("ln_rp"),
        *part("ln_c"),
        misfit,
    )
