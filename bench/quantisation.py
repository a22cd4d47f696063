"""What the converters' rounding alone does to the two tones, on a fixed level and on one that creeps.

`make accuracy`, or `python bench/quantisation.py LEVELS`. No noise, no hum, no drift; ten blocks of 0.1 s at each of
LEVELS levels within 0.45 uA; loads and converters of estimator.py.
"""

import math
import sys

import numpy as np
from estimator import BLOCK, LOADS, LSB_A, LSB_V, NAMES, TONE_A, T, estimator, model

CREEP_A_PER_S = 1e-6


def errors(load: tuple[float, ...], levels: int, creep_a_per_s: float) -> np.ndarray:
    """Relative errors of Rs, Rp, C at each level, shape (levels, 3)."""
    rs, rp, c = load
    decay = math.exp(-T / (rp * c))
    found = []
    for offset in np.linspace(0.0, 3.7 * LSB_A, levels):
        own = estimator(load)
        bins = own.state_values["bins"]
        k = np.arange(own.state_values["settle_left"] + 10 * BLOCK)
        slow = min(1e-3, 20.0 / (rs + rp)) + offset + creep_a_per_s * T * k
        current = slow.copy()
        # A ramp of the current is followed decay/(1 - decay) samples late.
        voltage = (rs + rp) * slow - rp * creep_a_per_s * T * decay / (1.0 - decay)
        for tone in bins:
            wave = np.exp(2j * math.pi * tone * k / BLOCK)
            current += TONE_A * wave.imag
            voltage += TONE_A * (model(np.log(load), tone / BLOCK) * wave).imag
        estimate = own.run(LSB_A * np.round(current / LSB_A), LSB_V * np.round(voltage / LSB_V))
        found.append([estimate[name] for name in NAMES])
    return np.array(found) / load - 1.0


def main() -> None:
    levels = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"\nrounding alone, {levels} levels; errors of Rs, Rp, C in %")
    print(f"{'load':>22} {'uA/s':>5} {'root mean square':>20} {'largest':>20} {'mean':>22}")
    for load in LOADS[:3]:
        for creep in (0.0, CREEP_A_PER_S):
            off = 100.0 * errors(load, levels, creep)
            size, worst, bias = np.sqrt((off**2).mean(axis=0)), np.abs(off).max(axis=0), off.mean(axis=0)
            columns = ((size, ".3f"), (worst, ".3f"), (bias, "+.3f"))
            parts = [" ".join(format(value, form) for value in values) for values, form in columns]
            label = f"{load[0]:g} {load[1]:g} {1e9 * load[2]:g}n"
            print(f"{label:>22} {1e6 * creep:5.1f} {parts[0]:>20} {parts[1]:>20} {parts[2]:>22}")


if __name__ == "__main__":
    main()
