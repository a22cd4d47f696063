"""The pseudo-random excitation beside its Cramer-Rao bound, on the loads, readings and disturbances of estimator.py.

`make accuracy`, or `python bench/prbs.py RUNS`. Each run: 5 kHz, a sequence of 19 uA either way, one window of 20 pairs
of periods (1.04 s). The bound knows load and noise, and as nuisances 127 unknown values of the current, the levels and
slopes of both readings, and cosine and sine of 50 and of 60 Hz in the voltage.
"""

import math
import sys
import time
from typing import Any

import numpy as np
from estimator import LOADS, LSB_A, LSB_V, NAMES, SIGMAS, TONE_A, T

from ionto_rt import PrbsEstimator

PERIOD = 127
SETTLE = 2 * PERIOD
FIT_TICKS = 317


def estimator() -> PrbsEstimator:
    return PrbsEstimator(
        tick_s=T, amplitude_a=TONE_A, voltage_noise_v=LSB_V / 12**0.5, current_noise_a=LSB_A / 12**0.5
    )


def excitation(ticks: int) -> np.ndarray:
    """So many ticks of the sequence, A."""
    own, made = estimator(), np.empty(2 * PERIOD)
    for k in range(2 * PERIOD):
        made[k] = own.excitation()
        own.step(0.0, 0.0)
    return np.resize(made, ticks)


def response(logs: np.ndarray) -> np.ndarray:
    """Voltage of a current that repeats with the opposite sign, one period of each: matrix (127, 127), ohm."""
    rs, rp, c = np.exp(logs)
    decay = math.exp(-T / (rp * c))
    before = np.eye(PERIOD, k=-1)
    before[0, -1] = -1.0
    return rs * np.eye(PERIOD) + rp * (1.0 - decay) * np.linalg.inv(np.eye(PERIOD) - decay * before)


def bound(load: tuple[float, ...], noise: float) -> np.ndarray:
    """Least relative deviation of Rs, Rp, C from one window: Fisher information of all its readings."""
    n = estimator().window_ticks
    sigma_v, sigma_a = (lsb * math.sqrt(1.0 / 12.0 + noise**2) for lsb in (LSB_V, LSB_A))
    k = np.arange(n)
    sign = 1.0 - 2.0 * (k // PERIOD % 2)
    shape = excitation(PERIOD)
    logs = np.log(load)
    slopes = [(response(logs + step) - response(logs - step)) @ shape / 2e-5 for step in 1e-5 * np.eye(3)]
    trend = np.column_stack([np.ones(n), (k - k.mean()) / n])
    hum = [wave(2.0 * math.pi * hz * T * k) for hz in (50.0, 60.0) for wave in (np.cos, np.sin)]

    def repeated(periods: np.ndarray) -> np.ndarray:
        return sign[:, None] * np.asarray(periods[k % PERIOD])

    none = np.zeros
    voltage = np.hstack([
        repeated(np.column_stack(slopes)), TONE_A * repeated(response(logs)), trend, np.column_stack(hum), none((n, 2))
    ])  # fmt: skip
    current = np.hstack([none((n, 3)), TONE_A * repeated(np.eye(PERIOD)), none((n, 6)), trend])
    information = voltage.T @ voltage / sigma_v**2 + current.T @ (current * (1.0 / sigma_a**2))
    scale = np.sqrt(np.diag(information))
    return np.sqrt(np.diag(np.linalg.inv(information / np.outer(scale, scale)))[:3]) / scale[:3]


def readings(load: tuple[float, ...], ticks: int, noise: float, rng: np.random.Generator) -> Any:
    """Current and voltage, from steady state; hum, drift, electrode potential and converters as in estimator.py."""
    rs, rp, _ = load
    level = min(1e-3, 20.0 / (rs + rp)) * rng.uniform(0.95, 1.05)
    shape = excitation(PERIOD)
    k = np.arange(ticks)
    sign = 1.0 - 2.0 * (k // PERIOD % 2)
    current = level + sign * shape[k % PERIOD]
    voltage = level * (rs + rp) + sign * (response(np.log(load)) @ shape)[k % PERIOD]
    voltage = voltage + 0.02 * np.sin(2.0 * math.pi * 50.0 * T * k + rng.uniform(0.0, 6.28)) + 5e-3 * T * k
    voltage += rng.normal()
    return (
        LSB_A * np.round(current / LSB_A + noise * rng.normal(size=ticks)),
        LSB_V * np.round(voltage / LSB_V + noise * rng.normal(size=ticks)),
    )


def row(numbers: np.ndarray, form: str) -> str:
    return " ".join(format(number, form) for number in numbers)


def accuracy(runs: int, noise: float) -> None:
    print(f"\n{runs} windows of 1.04 s, converter noise {noise:g} steps; Rs, Rp, C in turn")
    print(f"{'load':>22} {'bound, %':>20} {'std, %':>20} {'std / bound':>15} {'bias, %':>20} {'sigma / std':>15}  seen")
    for load in LOADS:
        rng = np.random.default_rng(4)
        values, sigmas = [], []
        for _ in range(runs):
            own = estimator()
            found = own.run(*readings(load, SETTLE + own.window_ticks + FIT_TICKS, noise, rng))
            if found["parallel_ohm"] > 0.0:
                values.append([found[name] for name in NAMES])
                sigmas.append([found[name] for name in SIGMAS])
        least = bound(load, noise)
        relative, sigma = np.array(values) / load, np.array(sigmas) / load
        std, bias = relative.std(axis=0), relative.mean(axis=0) - 1.0
        label = f"{load[0]:g} {load[1]:g} {1e9 * load[2]:g}n"
        print(f"{label:>22} {row(100 * least, '.3f'):>20} {row(100 * std, '.3f'):>20} {row(std / least, '.2f'):>15}"
              f" {row(100 * bias, '+.3f'):>20} {row(sigma.mean(axis=0) / std, '.2f'):>15} {len(values) / runs:5.0%}")  # fmt: skip


def cost() -> None:
    rng = np.random.default_rng(5)
    own = estimator()
    current, voltage = readings(LOADS[0], SETTLE + 10 * own.window_ticks, 1.0, rng)
    spent, single = [], []
    for _ in range(20):
        own = estimator()
        began = time.perf_counter_ns()
        own.run(current, voltage)
        spent.append((time.perf_counter_ns() - began) / len(current))
    own = estimator()
    start = SETTLE + own.window_ticks
    own.run(current[:start], voltage[:start])
    for k in range(start, start + FIT_TICKS):
        began = time.perf_counter_ns()
        own.run(current[k : k + 1], voltage[k : k + 1])
        single.append(time.perf_counter_ns() - began)
    print(f"\n{min(spent):.1f} ns a tick, fits included; a tick of a fit, call from Python included: median"
          f" {np.median(single) / 1e3:.1f} us, worst of {FIT_TICKS} {max(single) / 1e3:.1f} us")  # fmt: skip


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    for noise in (1.0, 0.5):
        accuracy(runs, noise)
    cost()


if __name__ == "__main__":
    main()
