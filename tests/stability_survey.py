"""The certificate's prediction beside simulated loops of the compiled regulator.

    python tests/stability_survey.py 100000 [SEED]

probes random loads with the tuning that runs, then parts load and model by up to a factor of nine, and a quarter of
them by a tick of delay; another quarter is told a wrong delay before the probe. It says where prediction and simulation
contradict each other. Near |z| = 1 a loop of some hundred ticks cannot tell: that band is counted, and left out.
"""

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ionto_rt.certificate.loop import (
    Plant,
    characteristic_polynomial,
    jury_stable,
    running,
    spectral_radius,
)
from ionto_rt.core.trial import Trial

BAND = (0.995, 1.005)
"""Spectral radii at which the simulated time is too short for a verdict."""
TICKS = 900
WINDOW = 120
DELAY_ERRORS = ((0, 0), (0, 0), (0, 0), (0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""Told minus true, and model minus found, in ticks; each as often as another."""
UNSETTLED = 0.05
"""Of the setpoint: an error of this size that does not shrink is an unstable loop."""


@dataclass(frozen=True)
class Survey:
    """`loops` compared; how many of them were predicted unstable, were in the band, and contradicted the prediction."""

    loops: int
    unstable: int
    undecided: int
    contradictions: list[dict[str, Any]]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


@dataclass(frozen=True)
class Simulated:
    """One loop, and the error at its end, negative while it shrinks."""

    told_ticks: int
    delay: int
    plant: Plant
    model_delay: int
    model: Plant
    error: float

    def polynomial(self) -> np.ndarray:
        """By the tuning of the delay that the regulator was told."""
        tuning = running(self.told_ticks)
        return characteristic_polynomial(self.plant, self.model, self.delay, self.model_delay, tuning)


def simulate(rng: np.random.Generator) -> Simulated | None:
    """One random loop; None if the probe refuses it."""
    voltage = rng.random() < 0.9
    series, parallel = _log_uniform(rng, 100.0, 5e3), _log_uniform(rng, 200.0, 1e6)
    ballast = max(0.0, parallel / _log_uniform(rng, 0.5, 18.0) - series) if voltage else 0.0
    setpoint_a = min(1e-3, 8.0 / (series + parallel + ballast))
    delay = int(rng.integers(1, 5))
    told_error, model_error = rng.choice(DELAY_ERRORS)
    told_ticks = max(1, delay + int(told_error))
    trial = Trial(
        front_end="voltage" if voltage else "current",
        series_ohm=series,
        parallel_ohm=parallel,
        capacitance_f=_log_uniform(rng, 1e-9, 2e-6),
        tick_s=1.0 / _log_uniform(rng, 500.0, 10e3),
        delay_ticks=delay,
        told_ticks=told_ticks,
        output_bits=48,
        setpoint_a=setpoint_a,
        full_scale_a=2.0 * setpoint_a,
        ballast_ohm=ballast,
        noise_lsb=0.3,
        hum_lsb=0.0,
        bandwidth_hz=_log_uniform(rng, 1e3, 5e3),
        seed=int(rng.integers(1, 2**31)),
        # The linear loop alone: no contact logic, jumps, trim limit, codes, schedule or quick filter.
        options={
            "contact_floor_a": 1e9,
            "jump_ratio": 0.0,
            "trim_ratio": 0.0,
            "output_lsb": 0.0,
            "schedule_ticks": 0,
            "surprise_ratio": 0.0,
        },
    )
    if trial.probe()[0] != "good":
        return None
    reach = np.log(9.0 if rng.random() < 0.7 else 1.3)
    factors = np.exp(rng.uniform(-reach, reach, 3))
    trial.load(series=factors[0], parallel=factors[1], capacitance=factors[2])
    found = trial.regulator["model"]
    if model_error:
        found["delay_ticks"] = max(1, found["delay_ticks"] + int(model_error))
        trial.assume(found)
    measured = trial.run(np.full(TICKS, setpoint_a))[2]
    error = np.abs(measured - setpoint_a) / setpoint_a
    end, before = error[-WINDOW:].max(), error[-3 * WINDOW : -2 * WINDOW].max()
    model = Plant(found["pole"], found["gain"], found["gain_before"])
    error = float(end if end > 0.5 * before else -end)
    return Simulated(told_ticks, delay, Plant(*trial.plant), found["delay_ticks"], model, error)


def survey(loops: int, seed: int) -> Survey:
    """Compare prediction and simulation on random loops."""
    rng = np.random.default_rng(seed)
    compared = unstable = undecided = 0
    contradictions = []
    for _ in range(loops):
        loop = simulate(rng)
        if loop is None:
            continue
        compared += 1
        predicted = bool(jury_stable(loop.polynomial()))
        unstable += not predicted
        if predicted == (loop.error < UNSETTLED):
            continue
        radius = float(spectral_radius(loop.polynomial()))
        if BAND[0] < radius < BAND[1]:
            undecided += 1
        else:
            contradictions.append({"radius": radius, **asdict(loop)})
    return Survey(compared, unstable, undecided, contradictions)


if __name__ == "__main__":
    found = survey(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print(f"{found.loops} loops, {found.unstable} predicted unstable, {found.undecided} too near to |z| = 1 to tell")
    print(f"{len(found.contradictions)} contradictions")
    for loop in found.contradictions[:20]:
        print(loop)
    sys.exit(bool(found.contradictions))
