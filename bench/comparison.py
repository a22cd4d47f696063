"""The bare regulator beside other regulators, and beside itself with one thing left out, on the same random loops.

    python bench/comparison.py --loops 300 --seed 1

Voltage source with ballast, delay 1 to 4, 16-bit converters, noise and hum, as bench/survey.py draws them. Each loop is
a step of the setpoint, contact area times two, and 100 samples of open lead.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from simple_pid import PID
from survey import SAMPLES, Loop, is_unstable, loop_number, samples_to_band, write_section

from ionto_rt.core.trial import Trial

OPEN_SAMPLES = 100
NOMINAL = {"series_ohm": 1e3, "parallel_ohm": 10e3, "capacitance_f": 100e-9}
METRICS = ("unstable, or 5 % off", "N 50 %", "N 95 %", "overshoot 95 %", "IAE", "area x2 N 95 %", "reconnect peak 95 %")


class Regulator(Protocol):
    def step(self, setpoint_a: float, measured_a: float) -> float: ...


def plant_of(loop: Loop, load: dict[str, float]) -> tuple[float, float, float]:
    """(pole, gain, gain_before) of a load behind the loop's ballast, at its rate."""
    series, parallel = load["series_ohm"] + loop["ballast_ohm"], load["parallel_ohm"]
    pole = math.exp(-loop["tick_s"] * (series + parallel) / (series * parallel * load["capacitance_f"]))
    return pole, (1.0 - (1.0 - pole) * parallel / (series + parallel)) / series, pole / series


class Circuit:
    """Ballast and Rs + (Rp || C) on a voltage source, integrated exactly; converters, noise and hum as in Trial."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.rng = loop, np.random.default_rng(loop["seed"])
        self.load = {name: loop[name] for name in NOMINAL}
        self.inner_v, self.is_open, self.k = 0.0, False, 0
        self.queue = [0.0] * loop["delay_ticks"]
        self.current_lsb, self.voltage_lsb = loop["full_scale_a"] / 32768.0, loop["compliance_v"] / 32768.0

    def run(self, regulator: Regulator, setpoint_a: float, samples: int) -> NDArray[np.float64]:
        """Currents at the samples and largest magnitudes in the periods before them, shape (2, samples)."""
        series, parallel = self.load["series_ohm"] + self.loop["ballast_ohm"], self.load["parallel_ohm"]
        tau = parallel * self.load["capacitance_f"] * (1.0 if self.is_open else series / (series + parallel))
        decay, share = math.exp(-self.loop["tick_s"] / tau), parallel / (series + parallel)
        result = np.empty((2, samples))
        noise = self.rng.normal(0.0, self.loop["noise_lsb"], samples)
        most = self.loop["compliance_v"]
        for n in range(samples):
            u = self.queue.pop(0)
            first = 0.0 if self.is_open else (u - self.inner_v) / series
            self.inner_v = decay * self.inner_v + (0.0 if self.is_open else (1.0 - decay) * share * u)
            current = 0.0 if self.is_open else (u - self.inner_v) / series
            result[:, n] = current, max(abs(first), abs(current))
            self.k += 1
            hum = self.loop["hum_lsb"] * math.cos(math.tau * 50.0 * self.k * self.loop["tick_s"])
            codes = round(current / self.current_lsb + hum + noise[n]) if abs(current) < 1.0 else 40960
            output = regulator.step(setpoint_a, self.current_lsb * max(-40960, min(40960, codes)))
            self.queue.append(self.voltage_lsb * round(max(-most, min(most, output)) / self.voltage_lsb))
        return result


class SimplePid:
    """simple-pid as it comes (Kp 1, no I, no D), in volts per milliampere."""

    def __init__(self, loop: Loop) -> None:
        self.pid = PID(sample_time=None)
        self.tick_s = loop["tick_s"]

    def step(self, setpoint_a: float, measured_a: float) -> float:
        self.pid.setpoint = 1e3 * setpoint_a
        return float(self.pid(1e3 * measured_a, dt=self.tick_s) or 0.0)


class FixedPi:
    """PI whose zero cancels the pole of a model; its loop gain is at most 0.4/d at any frequency, integral aside."""

    def __init__(self, loop: Loop, load: dict[str, float]) -> None:
        self.pole, gain, before = plant_of(loop, load)
        self.gain = 0.4 / loop["delay_ticks"] / (gain + before)
        self.most = loop["compliance_v"]
        self.error = self.output = 0.0

    def step(self, setpoint_a: float, measured_a: float) -> float:
        error = setpoint_a - measured_a
        self.output += self.gain * (error - self.pole * self.error)
        self.output = max(-self.most, min(self.most, self.output))
        self.error = error
        return self.output


class Scheduled:
    """Integral action scheduled by the resistance V/I that is seen."""

    def __init__(self, loop: Loop, ki: float) -> None:
        self.ki, self.most = ki, loop["compliance_v"]
        self.floor_a = 25.0 * loop["full_scale_a"] / 32768.0
        self.resistance = sum(NOMINAL[name] for name in ("series_ohm", "parallel_ohm")) + loop["ballast_ohm"]
        self.output = 0.0

    def step(self, setpoint_a: float, measured_a: float) -> float:
        if abs(measured_a) > self.floor_a:
            self.resistance += 0.05 * (abs(self.output / measured_a) - self.resistance)
        self.output += self.ki * self.resistance * (setpoint_a - measured_a)
        self.output = max(-self.most, min(self.most, self.output))
        return self.output


class LinearQuadratic:
    """python-control's dlqr on the true plant, its delay and an integral of the error; the whole state is known."""

    def __init__(self, loop: Loop) -> None:
        import control

        pole, gain, before = plant_of(loop, loop)
        d, self.most = loop["delay_ticks"], loop["compliance_v"]
        self.rest = (1.0 - pole) / (gain - before)
        # In units of the rest output: y, u[1..d], integral of the error.
        n = d + 2
        a, b = np.zeros((n, n)), np.zeros((n, 1))
        # y(k+1) = pole y + gain u(k+1-d) - before u(k-d), and u(k) itself is the input.
        a[0, 0] = pole
        a[0, d] = -before * self.rest
        if d == 1:
            b[0, 0] = gain * self.rest
        else:
            a[0, d - 1] = gain * self.rest
        b[1, 0] = 1.0
        for j in range(2, d + 1):
            a[j, j - 1] = 1.0
        a[-1, -1], a[-1, 0] = 1.0, -1.0
        weights = np.zeros((n, n))
        weights[0, 0], weights[-1, -1] = 1.0, 0.05
        self.feedback = control.dlqr(a, b, weights, np.array([[1e-4]]))[0][0]
        self.given, self.integral = [0.0] * d, 0.0

    def step(self, setpoint_a: float, measured_a: float) -> float:
        given = (each / self.rest - setpoint_a for each in self.given)
        state = np.array([measured_a - setpoint_a, *given, self.integral])
        output = self.rest * (setpoint_a - float(self.feedback @ state))
        output = max(-self.most, min(self.most, output))
        self.integral += setpoint_a - measured_a
        self.given = [output, *self.given[:-1]]
        return output


class Ours:
    """The bare regulator; `options` and `model` leave something out."""

    def __init__(self, loop: Loop, model: Callable[[Loop, Trial], dict[str, Any]] | None, **options: Any) -> None:
        self.trial = Trial(**loop, options=options)
        self.good = self.trial.probe()[0] == "good"
        if self.good and model:
            self.trial.assume(model(loop, self.trial))


def nominal_model(loop: Loop, trial: Trial) -> dict[str, Any]:
    pole, gain, before = plant_of(loop, NOMINAL)
    return {"pole": pole, "gain": gain, "gain_before": before, "delay_ticks": loop["delay_ticks"]}


def without_delay(loop: Loop, trial: Trial) -> dict[str, Any]:
    return {**trial.identified["model"], "delay_ticks": 1}


PEERS: dict[str, Callable[[Loop], Regulator]] = {
    "python-control: dlqr on the true plant": LinearQuadratic,
    "PI that cancels the pole of the true load": lambda loop: FixedPi(loop, loop),
    "the same, on 1 kohm, 10 kohm, 100 nF": lambda loop: FixedPi(loop, NOMINAL),
    "integral scheduled by V/I, ki 0.1": lambda loop: Scheduled(loop, 0.1),
    "integral scheduled by V/I, ki 0.3": lambda loop: Scheduled(loop, 0.3),
    "simple-pid as it comes": SimplePid,
}
OWN: dict[str, tuple[Callable[[Loop, Trial], dict[str, Any]] | None, dict[str, Any]]] = {
    "this regulator": (None, {}),
    "  without the jump rule": (None, {"jump_ratio": 0.0}),
    "  without the schedule": (None, {"schedule_ticks": 0}),
    "  blind to its output's codes": (None, {"output_lsb": 0.0}),
    "  without probe, on 1 kohm, 10 kohm, 100 nF": (nominal_model, {}),
    "  without the predictor": (without_delay, {}),
}


def measures(
    loop: Loop, step: NDArray[np.float64], area: NDArray[np.float64], back: NDArray[np.float64]
) -> list[float]:
    """Unstable or 5 % off, N, overshoot in %, IAE, N after area x2, reconnect peak.

    IAE is over that of a deadbeat regulator that knows all: nothing can flow for `delay` samples.
    """
    setpoint, delay = loop["setpoint_a"], loop["delay_ticks"]
    return [
        float(is_unstable(step[0], setpoint) or is_unstable(area[0], setpoint)),
        samples_to_band(step[0], setpoint) - delay,
        100.0 * (step[0].max() / setpoint - 1.0),
        float(np.abs(step[0][:300] - setpoint).sum()) / (delay * setpoint),
        samples_to_band(area[0], setpoint) - delay,
        back[1].max() / setpoint,
    ]


def run_peer(make: Callable[[Loop], Regulator], loop: Loop) -> list[float]:
    circuit, regulator, setpoint = Circuit(loop), make(loop), loop["setpoint_a"]
    step = circuit.run(regulator, setpoint, SAMPLES)
    load = circuit.load
    circuit.load = {name: load[name] * (2.0 if name == "capacitance_f" else 0.5) for name in load}
    area = circuit.run(regulator, setpoint, SAMPLES)
    circuit.is_open = True
    circuit.run(regulator, setpoint, OPEN_SAMPLES)
    circuit.is_open = False
    return measures(loop, step, area, circuit.run(regulator, setpoint, SAMPLES))


def run_own(name: str, loop: Loop) -> list[float]:
    model, options = OWN[name]
    ours, setpoints = Ours(loop, model, **options), np.full(SAMPLES, loop["setpoint_a"])
    if not ours.good:
        return [math.nan] * 6
    trial = ours.trial
    step = trial.run(setpoints)
    trial.load(series=0.5, parallel=0.5, capacitance=2.0)
    area = trial.run(setpoints)
    trial.open()
    trial.run(setpoints[:OPEN_SAMPLES])
    trial.close()
    return measures(loop, step, area, trial.run(setpoints))


def compare(loops: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Measures of every loop, shape (loops, 6), by regulator."""
    drawn = [loop_number(seed, "step and load step", "voltage", k) for k in range(loops)]
    found = {name: np.array([run_own(name, loop) for loop in drawn]) for name in OWN}
    return found | {name: np.array([run_peer(make, loop) for loop in drawn]) for name, make in PEERS.items()}


def table(found: dict[str, NDArray[np.float64]]) -> list[str]:
    lines = [f"| regulator | {' | '.join(METRICS)} |", f"|---|{'--:|' * len(METRICS)}"]
    for name, values in found.items():
        p = lambda column, share, values=values: float(np.nanpercentile(values[:, column], share))  # noqa: E731
        cells = [np.nansum(values[:, 0]), p(1, 50), p(1, 95), p(2, 95), p(3, 50), p(4, 95), p(5, 95)]
        lines.append(f"| {name.replace('  ', '- ')} | {' | '.join(f'{cell:.3g}' for cell in cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a page that has the section `comparison`")
    given = parser.parse_args()
    lines = [f"{given.loops} loops, seed {given.seed}.", "", *table(compare(given.loops, given.seed))]
    print("\n".join(lines))
    if given.write:
        write_section(given.write, "comparison", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
