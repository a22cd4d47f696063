"""A Monte-Carlo survey of the bare regulator over the envelope of loads, rates, delays and ranges it is made for.

    python bench/survey.py --loops 100000 --seed 1

draws that many loops for each front-end, probes and regulates each, prints the tables and says which bars were kept.
Loop number k of a scenario is drawn from (seed, scenario, front-end, k) alone: one bad loop can be run again by itself.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ionto_rt.core.constant_current import PARALLEL_RATIO_MOST, PROBE_MOST_A, PROBE_RATIO
from ionto_rt.core.trial import Trial

COMPLIANCE_V = 80.0
RANGES_A = (40e-6, 400e-6, 4e-3, 40e-3)
SETPOINT_LEAST = 1.0 / 20.0
"""Of full scale: below it one code of noise is a large part of the 1 % band."""
VOLTAGE_SHARE = 0.4
"""Of the compliance voltage that the setpoint needs at most."""
BALLAST_SHARE = 0.1
"""Ballast of a voltage source: so much of compliance voltage over full scale."""
BAND = 0.01
SAMPLES = 600
RAMP_S = 0.5
RAMP_SAMPLES = 50
"""Times (R + ballast)/Rs': a ramp on a voltage source has at least so many samples."""
LOAD_STEPS: dict[str, dict[str, float]] = {
    "area x2": {"series": 0.5, "parallel": 0.5, "capacitance": 2.0},
    "area x0.5": {"series": 2.0, "parallel": 2.0, "capacitance": 0.5},
    "Rp x2": {"parallel": 2.0},
    "Rp x0.5": {"parallel": 0.5},
}
FRONT_ENDS = ("voltage", "current")

Loop = dict[str, Any]
Values = dict[str, float]


def draw(rng: np.random.Generator, front_end: str) -> Loop:
    """Arguments of a Trial: any loop of the envelope."""
    while True:
        series, parallel = 10 ** rng.uniform(2.0, np.log10(5e3)), 10 ** rng.uniform(np.log10(200.0), 6.0)
        capacitance, rate = 10 ** rng.uniform(-9.0, np.log10(2e-6)), 10 ** rng.uniform(np.log10(500.0), 4.0)
        delay, setpoint = int(rng.integers(1, 5)), 10 ** rng.uniform(-6.0, np.log10(30e-3))
        full_scale = next(each for each in RANGES_A if setpoint <= each)
        ballast = BALLAST_SHARE * COMPLIANCE_V / full_scale if front_end == "voltage" else 0.0
        if setpoint < SETPOINT_LEAST * full_scale:
            continue
        if setpoint * (series + parallel + ballast) > VOLTAGE_SHARE * COMPLIANCE_V:
            continue
        if front_end == "voltage" and parallel > PARALLEL_RATIO_MOST * (series + ballast):
            continue
        break
    loop: Loop = {
        "front_end": front_end,
        "series_ohm": series,
        "parallel_ohm": parallel,
        "capacitance_f": capacitance,
        "tick_s": 1.0 / rate,
        "delay_ticks": delay,
        "setpoint_a": setpoint,
        "full_scale_a": full_scale,
        "compliance_v": COMPLIANCE_V,
        "ballast_ohm": ballast,
        "noise_lsb": rng.uniform(0.5, 2.0),
        "hum_lsb": rng.uniform(0.0, 4.0),
        "seed": int(rng.integers(1, 2**31)),
    }
    if front_end == "current":
        loop["gain_error"] = rng.uniform(-0.05, 0.05)
        loop["offset_ratio"] = rng.uniform(-0.01, 0.01)
        loop["bandwidth_hz"] = 10 ** rng.uniform(3.0, np.log10(5e3))
    return loop


def samples_to_band(current_a: NDArray[np.float64], setpoint_a: float) -> int:
    """First index from which the current stays within 1 % of the setpoint; the length if it is outside to the end."""
    outside = np.flatnonzero(np.abs(current_a - setpoint_a) > BAND * abs(setpoint_a))
    return int(outside[-1]) + 1 if len(outside) else 0


def is_unstable(current_a: NDArray[np.float64], setpoint_a: float) -> bool:
    """Ever beyond fifty times the setpoint, or still 5 % off it in the last third."""
    error = np.abs(current_a - setpoint_a)
    return bool(error.max() > 50.0 * abs(setpoint_a) or error[-len(error) // 3 :].max() > 0.05 * abs(setpoint_a))


def probed(loop: Loop, **changes: Any) -> tuple[Trial, str, float]:
    """A trial past its probe, the verdict, and the probe's largest current over what it may be."""
    trial = Trial(**{**loop, **changes})
    verdict, _, peak = trial.probe()
    return trial, verdict, peak / min(PROBE_MOST_A, PROBE_RATIO * loop["setpoint_a"])


def follow_step(trial: Trial, loop: Loop) -> Values:
    setpoint, delay = loop["setpoint_a"], loop["delay_ticks"]
    current, peak, _, _ = trial.run(np.full(SAMPLES, setpoint))
    return {
        "step N": samples_to_band(current, setpoint) - delay,
        "step overshoot %": 100.0 * (current.max() / setpoint - 1.0),
        "step peak between samples": peak.max() / setpoint,
        "unstable": is_unstable(current, setpoint),
    }


def step_and_load(loop: Loop, k: int, **changes: Any) -> Values:
    """A step of the setpoint, then one of the load: the four kinds in turn."""
    trial, verdict, probe_peak = probed(loop, **changes)
    found: Values = {"refused": verdict != "good", "probe peak": probe_peak}
    if verdict != "good":
        return found
    found |= follow_step(trial, loop)
    setpoint = loop["setpoint_a"]
    name = list(LOAD_STEPS)[k % len(LOAD_STEPS)]
    trial.load(**LOAD_STEPS[name])
    current, _, _, _ = trial.run(np.full(SAMPLES, setpoint))
    found[f"{name} N"] = samples_to_band(current, setpoint) - loop["delay_ticks"]
    found[f"{name} peak"] = float(np.abs(current).max()) / setpoint
    found["unstable"] = max(found["unstable"], is_unstable(current, setpoint))
    return found


def ramp(loop: Loop, k: int, **changes: Any) -> Values:
    setpoint = loop["setpoint_a"]
    series = loop["series_ohm"] + loop["ballast_ohm"]
    short = int(RAMP_S / loop["tick_s"])
    long = short
    if loop["front_end"] == "voltage":
        long = max(short, int(RAMP_SAMPLES * (series + loop["parallel_ohm"]) / series))
    found: Values = {}
    for name, row, samples in (("ramp overshoot %", 0, short), ("ramp overshoot between samples %", 1, long)):
        trial, verdict, _ = probed(loop, **changes)
        if verdict != "good":
            return {"refused": 1.0}
        result = trial.run(np.minimum(1.0, np.arange(samples + SAMPLES // 2) / samples) * setpoint)
        found[name] = 100.0 * (result[row].max() / setpoint - 1.0)
    return {"refused": 0.0, **found}


def reconnect(loop: Loop, k: int, *, short: bool = False, **changes: Any) -> Values:
    """The lead comes off for 1 to 500 samples; on a voltage source the shorter opens are those up to d + 2."""
    rng = np.random.default_rng(loop["seed"])
    setpoint, delay = loop["setpoint_a"], loop["delay_ticks"]
    trial, verdict, _ = probed(loop, **changes)
    if verdict != "good":
        return {"refused": 1.0}
    trial.run(np.full(SAMPLES // 2, setpoint))
    if short:
        samples = int(rng.integers(1, delay + 3))
    else:
        least = delay + 3 if loop["front_end"] == "voltage" else 1
        samples = int(10 ** rng.uniform(np.log10(least), np.log10(500.0)))
    trial.open()
    trial.run(np.full(samples, setpoint))
    trial.close()
    current, peak, _, _ = trial.run(np.full(3 * SAMPLES, setpoint))
    name = "short open" if short else "reconnect"
    return {
        "refused": 0.0,
        f"{name} peak": peak.max() / setpoint,
        f"{name} samples to band": samples_to_band(current, setpoint),
        "unstable": is_unstable(current, setpoint),
    }


def compliance(loop: Loop, k: int, **changes: Any) -> Values:
    """The load rises until the setpoint would need 1.5 times the compliance voltage, and falls back."""
    setpoint = loop["setpoint_a"]
    trial, verdict, _ = probed(loop, **changes)
    if verdict != "good":
        return {"refused": 1.0}
    trial.run(np.full(SAMPLES // 2, setpoint))
    factor = 1.5 * COMPLIANCE_V / (setpoint * (loop["series_ohm"] + loop["parallel_ohm"]))
    trial.load(series=factor, parallel=factor)
    trial.run(np.full(SAMPLES, setpoint))
    trial.load(series=1.0 / factor, parallel=1.0 / factor)
    current, peak, _, _ = trial.run(np.full(SAMPLES, setpoint))
    return {
        "refused": 0.0,
        "release peak": peak.max() / setpoint,
        "release N": samples_to_band(current, setpoint) - loop["delay_ticks"],
        "unstable": is_unstable(current, setpoint),
    }


def told_wrong(loop: Loop, k: int, **changes: Any) -> Values:
    """The device states a delay that is one too long or too short."""
    told = loop["delay_ticks"] + (1 if k % 2 else -1)
    trial, verdict, _ = probed(loop, told_ticks=told or 2, **changes)
    if verdict != "good":
        return {"refused": 1.0}
    off = trial.identified["model"]["delay_ticks"] != loop["delay_ticks"]
    found = follow_step(trial, loop)
    return {"refused": 0.0, "delay not found": off, "unstable": found["unstable"],
            **{f"delay told wrong, {name}": found[name] for name in ("step N", "step overshoot %")}}  # fmt: skip


def electrode_potential(loop: Loop, k: int, **changes: Any) -> Values:
    rng = np.random.default_rng(loop["seed"])
    trial, verdict, _ = probed(loop, emf_v=rng.uniform(-1.5, 1.5), **changes)
    if verdict != "good":
        return {"refused": 1.0}
    found = follow_step(trial, loop)
    return {"refused": 0.0, "unstable": found["unstable"],
            **{f"potential, {name}": found[name] for name in ("step N", "step overshoot %")}}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    run: Callable[..., Values]
    share: float = 0.1
    """Of the loops asked for."""
    front_ends: tuple[str, ...] = FRONT_ENDS


SCENARIOS: dict[str, Scenario] = {
    "step and load step": Scenario(step_and_load, 1.0),
    "ramp": Scenario(ramp),
    "reconnect": Scenario(reconnect),
    "short open": Scenario(partial(reconnect, short=True), front_ends=("voltage",)),
    "compliance": Scenario(compliance, front_ends=("current",)),
    "delay told wrong": Scenario(told_wrong),
    "electrode potential": Scenario(electrode_potential, front_ends=("voltage",)),
}


def loop_number(seed: int, scenario: str, front_end: str, k: int) -> Loop:
    """The loop that the survey of `seed` runs as number k."""
    place = (list(SCENARIOS).index(scenario), FRONT_ENDS.index(front_end))
    return draw(np.random.default_rng([seed, *place, k]), front_end)


@dataclass
class Result:
    """Values of every loop of one scenario on one front-end; NaN where a loop has none."""

    scenario: str
    front_end: str
    seed: int
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def percentile(self, name: str, share: float) -> float:
        return float(np.nanpercentile(self.values[name], share))

    def worst(self, name: str) -> int:
        """Number of the loop with the largest value."""
        return int(np.nanargmax(self.values[name]))


def run_slice(scenario: str, front_end: str, seed: int, numbers: range) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for place, k in enumerate(numbers):
        for name, value in SCENARIOS[scenario].run(loop_number(seed, scenario, front_end, k), k).items():
            found.setdefault(name, np.full(len(numbers), np.nan))[place] = value
    return found


def joined(parts: list[dict[str, NDArray[np.float64]]], lengths: list[int]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: np.concatenate(
            [part.get(name, np.full(length, np.nan)) for part, length in zip(parts, lengths, strict=True)]
        )
        for name in names
    }


def survey(loops: int, seed: int, processes: int = 1) -> list[Result]:
    """`loops` of the envelope for each front-end (a share of it in the lesser scenarios)."""
    results = []
    with ProcessPoolExecutor(processes) as pool:
        pending = []
        for scenario, each in SCENARIOS.items():
            count = max(1, round(loops * each.share))
            edges = np.linspace(0, count, min(count, 8 * processes) + 1).astype(int)
            slices = [range(low, high) for low, high in pairwise(edges.tolist())]
            for front_end in each.front_ends:
                if processes == 1:
                    values = run_slice(scenario, front_end, seed, range(count))
                    results.append(Result(scenario, front_end, seed, values))
                else:
                    futures = [pool.submit(run_slice, scenario, front_end, seed, numbers) for numbers in slices]
                    pending.append((scenario, front_end, slices, futures))
        for scenario, front_end, slices, futures in pending:
            parts = [future.result() for future in futures]
            results.append(Result(scenario, front_end, seed, joined(parts, [len(numbers) for numbers in slices])))
    return results


SHARES = (50, 95, 99, 99.7, 100)


def rows(results: list[Result]) -> Iterator[tuple[str, str, int, list[float]]]:
    """What, front-end, loops, percentiles of SHARES; of what is only yes or no, the count alone."""
    for result in results:
        for name, values in result.values.items():
            known = values[~np.isnan(values)]
            if name in ("refused", "unstable", "delay not found"):
                yield f"{result.scenario}: {name}", result.front_end, len(known), [float(known.sum())]
            else:
                yield name, result.front_end, len(known), [float(np.percentile(known, share)) for share in SHARES]


def table(results: list[Result]) -> list[str]:
    """Markdown."""
    lines = ["| what | front-end | loops | 50 % | 95 % | 99 % | 99.7 % | most |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for name, front_end, loops, values in rows(results):
        cells = [f"{value:.4g}" for value in values]
        cells = ["", "", "", "", *cells] if len(cells) == 1 else cells
        lines.append(f"| {name} | {front_end} | {loops:,} | {' | '.join(cells)} |")
    return lines


@dataclass(frozen=True)
class Bar:
    what: str
    measured: float
    most: float

    @property
    def kept(self) -> bool:
        return self.measured <= self.most


LOAD_STEP_BARS = {
    "area x2": (7, 20, 24),
    "area x0.5": (12, 35, 50),
    "Rp x2": (10, 42, 63),
    "Rp x0.5": (6, 34, 61),
}
"""Samples to recover, 50, 95 and 99 %, of the best regulator known for a ballasted voltage source."""


def bars(results: list[Result]) -> list[Bar]:
    """What must be kept, and what was measured."""
    found = []
    for result in results:
        end, known = result.front_end, result.values
        if "unstable" in known:
            found.append(Bar(f"{result.scenario}, {end}: unstable", float(np.nansum(known["unstable"])), 0.0))
        limits: list[tuple[str, float, float]] = []
        if result.scenario == "step and load step":
            limits = [("probe peak", 100, 1.0), ("step N", 50, 5), ("step N", 99, 10),
                      ("step overshoot %", 95, 1.0), ("step overshoot %", 99.7, 2.0)]  # fmt: skip
            limits += [
                (f"{name} N", share, most)
                for name, bounds in LOAD_STEP_BARS.items()
                for share, most in zip((50, 95, 99), bounds, strict=True)
            ]
        elif result.scenario == "ramp":
            limits = [("ramp overshoot %", 100, 0.7), ("ramp overshoot between samples %", 100, 2.0)]
        elif result.scenario == "reconnect":
            limits = [("reconnect peak", 100, 1.05)]
        elif result.scenario == "compliance":
            limits = [("release peak", 100, 1.05)]
        found += [
            Bar(f"{name}, {end}, {'most' if share == 100 else f'{share:g} %'}", result.percentile(name, share), most)
            for name, share, most in limits
        ]
    return found


def report(results: list[Result]) -> list[str]:
    lines = [*table(results), "", "| bar | measured | at most | |", "|---|--:|--:|---|"]
    lines += [f"| {b.what} | {b.measured:.4g} | {b.most:g} | {'kept' if b.kept else 'MISSED'} |" for b in bars(results)]
    return lines


def write_section(page: Path, name: str, lines: list[str]) -> None:
    """Put the lines between the page's marks `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=100_000, help="for each front-end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", type=Path, help="a page that has the section `survey`")
    given = parser.parse_args()
    began = time.perf_counter()
    results = survey(given.loops, given.seed, given.processes)
    lines = [f"{given.loops:,} loops for each front-end, seed {given.seed}.", "", *report(results)]
    print("\n".join(lines), f"\n\n{time.perf_counter() - began:.0f} s")
    if given.write:
        write_section(given.write, "survey", lines)
    missed = [bar for bar in bars(results) if not bar.kept]
    if missed:
        print("\nworst loops:")
        for result in results:
            for name in result.values:
                if any(bar.what.startswith(f"{name}, {result.front_end}") for bar in missed) or (
                    name == "unstable" and np.nansum(result.values[name])
                ):
                    k = result.worst(name)
                    print(name, result.values[name][k], loop_number(given.seed, result.scenario, result.front_end, k))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
