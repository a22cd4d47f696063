"""False alarms of the contact-area test over hours of virtual skin: every tick through the estimator, every block
through the test. `make alarms`, or `python bench/false_alarms.py HOURS`.

The skin: Rs + (Rp || C) at 1 kHz and 1 mA. Rp wanders by 20 % and C by 5 % within minutes (hydration), both flicker by
1 % from tenth to tenth of a second, the electrodes drift by 5 mV/s either way. The converters: 2.44 mV and 0.12 uA, one
step of noise, 20 mV of hum.
"""

import math
import sys
import time
from dataclasses import dataclass

import numpy as np

from ionto_rt.core.contact_area import ContactArea
from ionto_rt.core.impedance import ImpedanceEstimator

TICK_S = 1e-3
BLOCK = 100
LSB_V, LSB_A = 2.44e-3, 0.12e-6
TONE_A = 19e-6
LEVEL_A = 1e-3
LOADS = {"conditioned": (600.0, 12.5e3, 240e-9), "between": (1e3, 10e3, 100e-9), "fresh": (500.0, 100e3, 30e-9)}
CHUNK_BLOCKS = 6000


@dataclass
class Wear:
    """What one stretch of wear showed."""

    hours: float
    alarms: int
    fits: np.ndarray
    ratios: np.ndarray


def wander(rng: np.random.Generator, blocks: int, time_blocks: float, deviation: float, start: float) -> np.ndarray:
    """A slow random walk held near zero, one value per block."""
    keep = math.exp(-1.0 / time_blocks)
    kicks = deviation * math.sqrt(1.0 - keep * keep) * rng.normal(size=blocks)
    kicks[0] += keep * start
    powers = keep ** np.arange(blocks)
    # In pieces, so that the division by the powers stays within a double.
    out, value = np.empty(blocks), 0.0
    for at in range(0, blocks, 500):
        part = kicks[at : at + 500]
        own = powers[: len(part)]
        out[at : at + len(part)] = own * (value * keep + np.cumsum(part / own))
        value = out[at + len(part) - 1]
    return out


def wear(load: tuple[float, float, float], hours: float, seed: int) -> Wear:
    """So many hours of wear without motion, through estimator and test."""
    rng = np.random.default_rng(seed)
    rs, rp, c = load
    level = min(LEVEL_A, 20.0 / (rs + rp))
    own = ImpedanceEstimator(
        tick_s=TICK_S, tone_a=TONE_A, corner_hz=1.0 / (2.0 * math.pi * rp * c), retune_factor=0.0,
        voltage_noise_v=LSB_V / 12**0.5, current_noise_a=LSB_A / 12**0.5, current_between_samples="smooth",
    )  # fmt: skip
    test = ContactArea(site_share=25.0 / 33.0)
    bins = own.state_values["bins"]
    fits, ratios, alarms, last = [], [], 0, 0
    slow, wet, potential = 0.0, 0.0, 0.0
    for _ in range(max(1, round(hours * 36000 / CHUNK_BLOCKS))):
        path_rp = wander(rng, CHUNK_BLOCKS, 600.0, 0.2, slow)
        path_c = wander(rng, CHUNK_BLOCKS, 3000.0, 0.05, wet)
        slow, wet = path_rp[-1], path_c[-1]
        # The direct voltage follows the slow part smoothly; a step in it would be a disturbance, which wear is not.
        knots = np.arange(0, CHUNK_BLOCKS + 1, 50) * BLOCK
        level_v = level * (rs + rp * np.exp(np.append(path_rp[::50], path_rp[-1])))
        own_rp = rp * np.exp(np.interp(np.arange(CHUNK_BLOCKS) * BLOCK, knots, np.append(path_rp[::50], path_rp[-1]))
                             + 0.01 * rng.normal(size=CHUNK_BLOCKS))  # fmt: skip
        own_c = c * np.exp(path_c + 0.01 * rng.normal(size=CHUNK_BLOCKS))
        k = np.arange(CHUNK_BLOCKS * BLOCK)
        turns = (2.0 * math.pi / BLOCK) * np.arange(BLOCK)
        current = np.full((CHUNK_BLOCKS, BLOCK), level)
        voltage = np.interp(k, knots, level_v).reshape(CHUNK_BLOCKS, BLOCK)
        for tone in bins:
            omega = 2.0 * math.pi * tone / (BLOCK * TICK_S)
            z = rs + own_rp / (1.0 + 1j * omega * own_rp * own_c)
            current += TONE_A * np.sin(tone * turns)
            voltage += TONE_A * (z.real[:, None] * np.sin(tone * turns) + z.imag[:, None] * np.cos(tone * turns))
        drift = 5e-3 * TICK_S * np.cumsum(np.repeat(rng.choice([-1.0, 1.0], CHUNK_BLOCKS // 100), 100 * BLOCK))
        voltage = voltage.ravel() + drift + potential + 0.02 * np.sin(2.0 * math.pi * 50.0 * TICK_S * k)
        potential += drift[-1]
        voltage = LSB_V * np.round(voltage / LSB_V + rng.standard_normal(len(k), dtype=np.float32))
        measured = LSB_A * np.round(current.ravel() / LSB_A + rng.standard_normal(len(k), dtype=np.float32))
        rows = own.fits(measured, voltage)
        ratio, alarm = test.run(rows)
        fits.append(rows)
        ratios.append(ratio)
        alarms += int(np.count_nonzero((np.diff(alarm, prepend=last) != 0) & (alarm != 0)))
        last = int(alarm[-1])
    every = np.concatenate(fits)
    return Wear(len(every) / 36000.0, alarms, every, np.concatenate(ratios))


def main() -> None:
    hours = float(sys.argv[1]) if len(sys.argv) > 1 else 102.0
    print("        load   hours  blocks seen  ln(C) in a block  ratio, least and most  alarms")
    total_hours, total = 0.0, 0
    for seed, (name, load) in enumerate(LOADS.items()):
        began = time.monotonic()
        one = wear(load, hours / len(LOADS), seed)
        seen = one.fits[:, 1] > 0.0
        scatter = np.diff(np.log(one.fits[seen, 2])).std() / math.sqrt(2.0)
        known = one.ratios[one.ratios > 0.0]
        print(f"{name:>12} {one.hours:7.1f} {seen.mean():11.1%} {scatter:17.4f} {known.min():13.3f} {known.max():8.3f}"
              f" {one.alarms:7d}   {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        total_hours, total = total_hours + one.hours, total + one.alarms
    # Poisson: three events in T are the 95 % bound where none was seen.
    print(f"{total} alarms in {total_hours:.1f} h: {10.0 * total / total_hours:.2f} in 10 h")
    if total * 10.0 >= total_hours:
        raise SystemExit("more than one false alarm in 10 h")


if __name__ == "__main__":
    main()
