"""The skin model beside published measurements, and beside the numbers of its own fit, as tables.

docs/simulator.md carries them and names the sources; `python tests/simulator_tables.py` writes them there. A row with a
band is held by tests/core/test_anchors.py, or known to miss it, and then the page says why; one without a band is there
to compare.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ionto_rt.core.skin import Skin

ONSETS = (1.0, 0.3, 5.0)
"""Factors on the time constants with which skin opens. The first is the model's own."""
FAR_CM2 = 1e6
"""Area of a return pad that takes no voltage."""
CATHODE, ANODE = -1.0, 1.0

Model = Callable[[float], float]


@dataclass(frozen=True)
class Anchor:
    """One published number and what the model says."""

    key: str
    what: str
    published: str
    model: Model
    """Of the factor on the onset."""
    digits: int = 2
    low: float = -math.inf
    high: float = math.inf
    known_miss: bool = False

    @property
    def banded(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    @property
    def kept(self) -> bool:
        return self.holds(evaluated(self, 1.0))

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def band(self) -> str:
        if not self.banded:
            return ""
        if self.high == math.inf:
            return f"≥ {self.low:.{self.digits}f}"
        if self.low == -math.inf:
            return f"≤ {self.high:.{self.digits}f}"
        return f"{self.low:.{self.digits}f} to {self.high:.{self.digits}f}"


@cache
def evaluated(anchor: Anchor, onset: float) -> float:
    """What the model says, computed once."""
    return anchor.model(onset)


def around(value: float, share: float) -> dict[str, Any]:
    """Band of +-share about a number."""
    return {"low": value * (1.0 - share), "high": value * (1.0 + share)}


def membrane(name: str = "typical", *, electroporation: bool = False) -> Skin:
    """1 cm2 of skin without polarity, lead, body and electrodes, as in a cell; the other pad takes nothing."""
    skin = Skin(name, active_area_cm2=1.0, return_area_cm2=FAR_CM2, electroporation=electroporation)
    skin.polarity_factors = (1.0, 1.0)
    skin.series_ohm_cm2 = 0.0
    skin.body_ohm = 1e-3
    skin.polarisation_v = 0.0
    return skin


def clinic(name: str = "typical", onset: float = 1.0) -> Skin:
    """8 cm2 and 25 cm2, 600 ohm of lead, body and pads, electrodes of 1 V."""
    skin = Skin(name, active_area_cm2=8.0, return_area_cm2=25.0)
    skin.body_ohm = 600.0 - 400.0 / 8.0 - 400.0 / 25.0
    skin.polarisation_v = 1.0
    skin.scale_onset(onset)
    return skin


def plateau(current_a: float, sign: float, seconds: float) -> Model:
    """Voltage over 7 cm2 after so many seconds of constant current, V."""

    def model(onset: float) -> float:
        skin = Skin(active_area_cm2=7.0)
        skin.scale_onset(onset)
        skin.force_current(sign * current_a, 1e-3, round(seconds * 1000))
        return abs(skin.active_v)

    return model


@cache
def _treated(onset: float) -> tuple[tuple[float, float], ...]:
    """(minutes of rest, resistance of skin without polarity in ohm cm2) after 0.5 mA/cm2 for 20 min."""
    skin = Skin(active_area_cm2=8.0, return_area_cm2=8.0)
    skin.polarity_factors = (1.0, 1.0)
    skin.scale_onset(onset)
    skin.force_current(-4e-3, 2e-3, 600_000, 2)
    rest, minutes = [(0.0, skin.active_ohm_cm2)], 0
    for more in (1, 9, 20, 30):
        skin.force_current(0.0, 10e-3, more * 6000, 1)
        minutes += more
        rest.append((float(minutes), skin.active_ohm_cm2))
    return tuple(rest)


def recovery(minutes: float, hertz: float = 0.0) -> Model:
    """Magnitude of the skin's impedance after a rest, over that at the end of the current."""

    def model(onset: float) -> float:
        def magnitude(ohm_cm2: float) -> float:
            return 1.0 / math.hypot(1.0 / ohm_cm2, 2.0 * math.pi * hertz * 30e-9)

        found = dict(_treated(onset))
        return magnitude(found[minutes]) / magnitude(found[0.0])

    return model


def held(volts: float, seconds: float, name: str = "typical") -> Model:
    """Resistance of a membrane at rest after a constant voltage, kohm cm2."""

    def model(onset: float) -> float:
        skin = membrane(name)
        skin.scale_onset(onset)
        period_s = 1e-2 if seconds > 600.0 else 1e-3
        skin.force_voltage(volts, 0.0, period_s, round(seconds / period_s), 2)
        return 1e-3 * skin.active_ohm_cm2

    return model


def range_of_resistance(onset: float) -> float:
    """Resistance at 0.2 V over that at 60 V, each after a minute."""
    found = []
    for volts in (0.2, 60.0):
        skin = membrane(electroporation=True)
        skin.scale_onset(onset)
        skin.force_voltage(volts, 0.0, 1e-3, 60_000, 4)
        found.append(skin.active_chord_ohm_cm2)
    return found[0] / found[1]


def pulsed(volts: float, dose_vs: float, rest_s: float) -> Model:
    """Resistance after one pulse over the same without electroporation, after a rest."""

    def model(onset: float) -> float:
        found = []
        for electroporation in (True, False):
            skin = membrane(electroporation=electroporation)
            skin.scale_onset(onset)
            skin.force_voltage(volts, 0.0, 1e-4, round(1e4 * dose_vs / volts), 4)
            if rest_s:
                skin.force_voltage(0.0, 0.0, 1e-3, round(1000 * rest_s), 4)
            found.append(skin.active_ohm_cm2)
        return found[0] / found[1]

    return model


def conditioned(area_cm2: float) -> Model:
    """Change of skin resistance by 50 uA for 30 s, percent."""

    def model(onset: float) -> float:
        skin = Skin(active_area_cm2=area_cm2, return_area_cm2=area_cm2)
        skin.scale_onset(onset)
        before = skin.active_ohm_cm2
        skin.force_current(-50e-6, 1e-3, 30_000)
        return 100.0 * (skin.active_ohm_cm2 / before - 1.0)

    return model


def palms(hydration: float) -> Model:
    """Factor by which the current of 8.5 V rises from 2 s to 10 min, pads of 100 cm2."""

    def model(onset: float) -> float:
        skin = Skin(active_area_cm2=100.0, return_area_cm2=100.0, hydration=hydration)
        skin.scale_onset(onset)
        skin.force_voltage(8.5, 0.0, 1e-3, 2000)
        before = skin.current_a(8.5, 0.0)
        skin.force_voltage(8.5, 0.0, 1e-3, 598_000, 4)
        return skin.current_a(8.5, 0.0) / before

    return model


@cache
def _subjects(onset: float) -> tuple[float, ...]:
    """Skin resistance of 1000 subjects after 0.1 mA/cm2 for 120 s, kohm cm2, in order."""
    found = []
    for seed in range(1, 1001):
        skin = Skin(seed=seed, active_area_cm2=1.0, return_area_cm2=100.0)
        skin.scale_onset(onset)
        skin.force_current(-0.1e-3 * skin.contact_fraction, 4e-3, 30_000, 2)
        found.append(abs(skin.active_v) / 0.1e-3 * 1e-3)
    return tuple(sorted(found))


def subjects(percentile: float) -> Model:
    """Percentile of the subjects' resistance, kohm cm2."""

    def model(onset: float) -> float:
        found = _subjects(onset)
        return found[round(percentile / 100.0 * (len(found) - 1))]

    return model


def spread(onset: float) -> float:
    """95th percentile of the subjects' resistance over the 5th."""
    return subjects(95.0)(onset) / subjects(5.0)(onset)


def fall_with_frequency(low_hz: float, high_hz: float) -> Model:
    """Magnitude of the impedance of 8 cm2 with the ladder, conditioned by 1 mA for a minute, at one frequency over
    that at another."""

    def model(onset: float) -> float:
        skin = Skin(active_area_cm2=8.0, return_area_cm2=FAR_CM2, cpe_exponent=0.85)
        skin.scale_onset(onset)
        skin.force_current(-1e-3, 1e-3, 60_000)
        rest_f, branches = skin.ladder

        def magnitude(hertz: float) -> float:
            s = 2j * math.pi * hertz
            skin_s = 1.0 / skin.active_ohm_cm2 + s * rest_f + sum(s * c / (1.0 + s * r * c) for r, c in branches)
            return abs(1.0 / skin_s / 8.0 + skin.series_ohm)

        return magnitude(low_hz) / magnitude(high_hz)

    return model


def hysteresis(onset: float) -> float:
    """Current at 2 V on the way down over that on the way up, in a triangle of 4 V and 60 s."""
    skin = membrane()
    skin.scale_onset(onset)
    found = {}
    for k in range(60_000):
        volts = 4.0 * (1.0 - abs(k / 30_000 - 1.0))
        skin.force_voltage(volts, 0.0, 1e-3, 1, 2)
        if k in (15_000, 45_000):
            found[k] = skin.active_v / skin.active_chord_ohm_cm2
    return found[45_000] / found[15_000]


@cache
def _ramped(name: str, seconds: float, onset: float) -> tuple[float, float]:
    """(highest, last) voltage of 4 mA through the clinic's pads, ramp and 10 min."""
    skin = clinic(name, onset)
    highest = 0.0
    steps = max(1, round(1000 * seconds))
    for k in range(steps):
        highest = max(highest, abs(skin.force_current(-4e-3 * (k + 1) / steps, 1e-3)))
    for _ in range(1000):
        highest = max(highest, abs(skin.force_current(-4e-3, 1e-3)))
    return highest, abs(skin.force_current(-4e-3, 1e-3, 600_000, 4))


def ramp_peak(name: str, seconds: float) -> Model:
    return lambda onset: _ramped(name, seconds, onset)[0]


def ramp_end(name: str) -> Model:
    return lambda onset: _ramped(name, 30.0, onset)[1]


def halved(seconds: float) -> Model:
    """Voltage over the cathode's skin so long after half its contact is lost, at 4 mA."""

    def model(onset: float) -> float:
        skin = clinic("typical", onset)
        skin.force_current(-4e-3, 1e-3, 600_000, 4)
        if seconds < 0.0:
            return abs(skin.active_v)
        skin.contact_fraction = 0.5
        skin.force_current(-4e-3, 1e-3, round(1000 * seconds))
        return abs(skin.active_v)

    return model


def resumed(seconds: float) -> Model:
    """Voltage over the cathode's skin when 4 mA come back at once after a pause."""

    def model(onset: float) -> float:
        skin = clinic("typical", onset)
        skin.force_current(-4e-3, 1e-3, 600_000, 4)
        skin.force_current(0.0, 1e-2, round(100 * seconds), 1)
        highest = 0.0
        for _ in range(100):
            skin.force_current(-4e-3, 1e-3)
            highest = max(highest, abs(skin.active_v))
        return highest

    return model


def perfusion(current_a: float, area_cm2: float, seconds: float) -> Model:
    """Voltage over the skin in a pulse of a perfusion study, without polarity."""

    def model(onset: float) -> float:
        skin = Skin(active_area_cm2=area_cm2)
        skin.polarity_factors = (1.0, 1.0)
        skin.scale_onset(onset)
        skin.force_current(current_a, 1e-4, round(seconds * 1e4))
        return abs(skin.active_v)

    return model


ANCHORS = (
    Anchor("A1", "7 cm², 0.35 mA for 5 s, cathode, V", "1.8 V", plateau(0.35e-3, CATHODE, 5.0), **around(1.8, 0.2)),
    Anchor("A1", "7 cm², 0.35 mA for 5 s, anode, V", "2.8 V", plateau(0.35e-3, ANODE, 5.0), **around(2.8, 0.2),
           known_miss=True),
    Anchor("A1", "7 cm², 0.5 mA for 5 s, cathode, V", "1.8 V", plateau(0.5e-3, CATHODE, 5.0), **around(1.8, 0.2)),
    Anchor("A1", "7 cm², 0.5 mA for 5 s, anode, V", "2.8 V", plateau(0.5e-3, ANODE, 5.0), **around(2.8, 0.2)),
    Anchor("A1", "7 cm², 1 mA for 5 s, cathode, V", "1.8 V", plateau(1e-3, CATHODE, 5.0), **around(1.8, 0.2)),
    Anchor("A1", "7 cm², 1 mA for 5 s, anode, V", "2.8 V", plateau(1e-3, ANODE, 5.0), **around(2.8, 0.2)),
    Anchor("A1", "7 cm², 2 mA for 5 s, cathode, V", "1.8 V", plateau(2e-3, CATHODE, 5.0), **around(1.8, 0.2),
           known_miss=True),
    Anchor("A1", "7 cm², 2 mA for 5 s, anode, V", "2.8 V", plateau(2e-3, ANODE, 5.0), **around(2.8, 0.2)),
    Anchor("A2", "skin resistance 30 min after 20 min of 0.5 mA/cm², over that at the end", "about 3",
           recovery(30.0), **around(3.0, 0.15)),
    Anchor("A2", "the same at 100 Hz", "about 3", recovery(30.0, 100.0), **around(3.0, 0.15)),
    Anchor("A2", "the same at 1 kHz", "about 3", recovery(30.0, 1000.0), **around(3.0, 0.15), known_miss=True),
    Anchor("A3", "membrane after 4 V for 1 min, kΩ·cm²", "2.3 to 8.0", held(4.0, 60.0), low=2.3, high=8.0),
    Anchor("A4", "least resistance, after 30 V for 10 min, kΩ·cm²", "held at 0.8", held(30.0, 600.0), high=0.8),
    Anchor("A5", "resistance at 0.2 V over that at 60 V", "up to 1000", range_of_resistance, digits=0,
           low=100.0, high=1000.0),
    Anchor("A6", "resistance after 0.4 V·s at 30 V, share", "0.2", pulsed(30.0, 0.4, 0.0), low=0.18, high=0.25),
    Anchor("A6", "the same after 5 s of rest", "recovers in seconds", pulsed(30.0, 0.4, 5.0), low=0.85),
    Anchor("A6", "resistance 60 s after 400 V·s at 100 V, share", "0.35 at most dose", pulsed(100.0, 400.0, 60.0),
           low=0.35, high=0.6),
    Anchor("A10", "50 µA for 30 s on 1 cm², change in %", "-10 to -30", conditioned(1.0), digits=0,
           low=-30.0, high=-10.0, known_miss=True),
    Anchor("A10", "the same on 2 cm²", "-10 to -30", conditioned(2.0), digits=0, low=-30.0, high=-10.0,
           known_miss=True),
    Anchor("A10", "the same on 3 cm²", "-10 to -30", conditioned(3.0), digits=0, low=-30.0, high=-10.0),
    Anchor("A11", "palms, 8.5 V: current after 10 min over that at the start", "2.25", palms(0.0)),
    Anchor("A11", "the same with hydration", "2.25", palms(5.0)),
    Anchor("A12", "resistance of subjects, 95th percentile over 5th", "3 to 4", spread, low=3.0, high=4.0),
    Anchor("A13", "impedance at 1 Hz over that at 200 Hz", "falls", fall_with_frequency(1.0, 200.0), low=1.0),
    Anchor("A13", "impedance at 200 Hz over that at 5 kHz", "falls", fall_with_frequency(200.0, 5000.0), low=1.0),
    Anchor("A18, A19", "current at 2 V on the way down over that on the way up, 4 V in 60 s", "hysteresis", hysteresis,
           low=1.05),
)  # fmt: skip

FIT_TOLERANCE = 0.03


def fitted(what: str, fit: float, model: Model, digits: int = 2) -> Anchor:
    """A number that was computed when the model was fitted, held to FIT_TOLERANCE."""
    return Anchor("", what, f"{fit:g}", model, digits, **around(fit, FIT_TOLERANCE))


REGRESSION = (
    fitted("7 cm², 0.5 mA for 30 s, cathode, V", 1.57, plateau(0.5e-3, CATHODE, 30.0)),
    fitted("7 cm², 0.5 mA for 30 s, anode, V", 2.13, plateau(0.5e-3, ANODE, 30.0)),
    fitted("7 cm², 1 mA for 30 s, cathode, V", 1.86, plateau(1e-3, CATHODE, 30.0)),
    fitted("7 cm², 1 mA for 30 s, anode, V", 2.53, plateau(1e-3, ANODE, 30.0)),
    fitted("7 cm², 2 mA for 30 s, cathode, V", 2.20, plateau(2e-3, CATHODE, 30.0)),
    fitted("7 cm², 2 mA for 30 s, anode, V", 3.01, plateau(2e-3, ANODE, 30.0)),
    fitted("membrane after 4 V for 1 min, kΩ·cm²", 2.7, held(4.0, 60.0)),
    fitted("membrane after 1 V for 1 h, kΩ·cm²", 83, held(1.0, 3600.0), digits=1),
    fitted("membrane after 2 V for 1 h, kΩ·cm²", 24, held(2.0, 3600.0), digits=1),
    fitted("recovery after 1 min", 1.04, recovery(1.0)),
    fitted("recovery after 10 min", 1.44, recovery(10.0)),
    fitted("recovery after 30 min", 2.87, recovery(30.0)),
    fitted("recovery after 60 min", 6.6, recovery(60.0)),
    *(fitted(f"fresh skin, ramp of {ramp:g} s: highest V", volts, ramp_peak("typical", ramp))
      for ramp, volts in ((2, 10.4), (5, 9.8), (10, 9.5), (30, 9.0), (60, 8.8))),
    fitted("fresh skin, V in the end", 8.5, ramp_end("typical")),
    *(fitted(f"dry skin, ramp of {ramp:g} s: highest V", volts, ramp_peak("dry", ramp))
      for ramp, volts in ((2, 10.9), (5, 10.2), (10, 9.7), (30, 9.3), (60, 9.1))),
    Anchor("", "fresh skin, no ramp: highest V", "14.4", ramp_peak("typical", 0.0)),
    Anchor("", "dry skin, no ramp: highest V", "38.4", ramp_peak("dry", 0.0)),
    fitted("dry skin, V in the end", 8.9, ramp_end("dry")),
    fitted("cathode's skin at 4 mA, V", 2.52, halved(-1.0)),
    fitted("the same 5 ms after half its contact is lost", 4.59, halved(5e-3)),
    fitted("the same 60 s after", 3.00, halved(60.0)),
    *(fitted(f"cathode's skin at 4 mA after a pause of {text}, V", volts, resumed(seconds))
      for text, seconds, volts in (("30 s", 30.0, 2.56), ("5 min", 300.0, 2.93), ("30 min", 1800.0, 4.92))),
    fitted("7 µA on 0.7 cm², at the start, V", 0.79, perfusion(7e-6, 0.7, 30e-3)),
    fitted("the same after 20 s", 0.78, perfusion(7e-6, 0.7, 20.0)),
    fitted("100 µA on 1 cm², at the start, V", 3.08, perfusion(100e-6, 1.0, 10e-3)),
    fitted("the same after 20 s", 2.03, perfusion(100e-6, 1.0, 20.0)),
    fitted("subjects, 5th percentile, kΩ·cm²", 8.7, subjects(5.0), digits=1),
    fitted("subjects, median, kΩ·cm²", 16.2, subjects(50.0), digits=1),
    fitted("subjects, 95th percentile, kΩ·cm²", 28.5, subjects(95.0), digits=1),
)  # fmt: skip
"""What the equations gave when they were fitted, in another program."""


def value_text(anchor: Anchor, onset: float) -> str:
    return f"{evaluated(anchor, onset):.{anchor.digits}f}"


def verdict(anchor: Anchor) -> str:
    """Whether the model's own value lies in the band; empty without a band."""
    return ("kept" if anchor.kept else "missed") if anchor.banded else ""


def anchors_table() -> list[str]:
    """The anchors as lines of Markdown."""
    lines = [
        "| | measured | published | band | model | onset x 0.3 | onset x 5 | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for anchor in ANCHORS:
        values = [value_text(anchor, onset) for onset in ONSETS]
        words = [anchor.key, anchor.what, anchor.published, anchor.band, *values, verdict(anchor)]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def regression_table() -> list[str]:
    """What the fit said, and what this implementation says, as lines of Markdown."""
    lines = ["| scenario | fit | model | onset x 0.3 | onset x 5 | |", "|---|---|---|---|---|---|"]
    for anchor in REGRESSION:
        values = [value_text(anchor, onset) for onset in ONSETS]
        lines.append(f"| {' | '.join([anchor.what, anchor.published, *values, verdict(anchor)])} |")
    return lines
