"""The auditory alarm signals: described as pulses in time, rendered to WAV, and as beats of a terminal's bell.

The rules are those of IEC 60601-1-8, as far as they could be read in documents that reproduce them: which priority has
which melody, the number of pulses, at least four harmonics between 300 and 4000 Hz. Durations, spacings, rise times and
levels in `RULES` are its tables 3 and 4 from memory; who claims conformity must hold them against the standard first.

Pitches are relative: C is one octave above c. c is E4, so that every fundamental lies above 300 Hz and below 1000 Hz.
"""

import io
import wave
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ionto_rt.alarms import Priority

RATE_HZ = 44_100
C_HZ = 329.63
SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11, "C": 12}
HARMONICS_FROM_HZ, HARMONICS_TO_HZ, HARMONICS_LEAST = 300.0, 4000.0, 4
HARMONIC_WITHIN_DB = 15.0
HARMONIC_DROP_DB = 2.5
"""Each harmonic below the one before: five of them stay within HARMONIC_WITHIN_DB of the fundamental."""
HARMONICS = 5
PEAK = 0.9
"""Of full scale, of the loudest signal."""


@dataclass(frozen=True)
class Rule:
    """What a signal of one priority must keep to. Times in s; (least, most)."""

    pulses: tuple[int, int]
    pulse_s: tuple[float, float]
    spacing_s: tuple[float, float]
    interburst_s: tuple[float, float]
    fundamental_hz: tuple[float, float] = (150.0, 1000.0)
    rise_ratio: tuple[float, float] = (0.1, 0.4)


RULES = {
    Priority.HIGH: Rule((10, 10), (0.075, 0.2), (0.05, 0.125), (2.5, 15.0)),
    Priority.MEDIUM: Rule((3, 3), (0.125, 0.25), (0.125, 0.25), (2.5, 30.0)),
    Priority.LOW: Rule((1, 2), (0.125, 0.25), (0.125, 0.25), (15.0, float("inf"))),
}
"""`spacing_s` is from the end of one pulse to the start of the next within a group."""
GROUP_GAP = (2.0, 1.0)
"""The pause inside a group of five: twice the spacing and a pulse."""
HALVES_S = (0.35, 1.3)
"""Between the two groups of a HIGH burst: (least, most)."""
BETWEEN_HALVES_S = 0.5


@dataclass(frozen=True)
class Pulse:
    """One tone: when it starts (s from the start of the burst), its pitch and its duration."""

    start_s: float
    note: str
    duration_s: float

    @property
    def fundamental_hz(self) -> float:
        return C_HZ * float(2.0 ** (SEMITONES[self.note] / 12.0))

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s


@dataclass(frozen=True)
class Signal:
    """The signal of one priority: its burst, and when the burst comes again.

    melody        as written: a dash is the pause inside a group, a bar the one between two groups
    interburst_s  from the end of a burst to the start of the next
    level_db      below the loudest signal
    """

    priority: Priority
    melody: str
    pulses: tuple[Pulse, ...]
    spacing_s: float
    interburst_s: float
    rise_s: float
    fall_s: float
    level_db: float

    @property
    def burst_s(self) -> float:
        return self.pulses[-1].end_s

    @property
    def period_s(self) -> float:
        return self.burst_s + self.interburst_s

    @property
    def text(self) -> str:
        """The pattern in one line."""
        first = self.pulses[0]
        pitches = "/".join(f"{pulse.fundamental_hz:.0f}" for pulse in {p.note: p for p in self.pulses}.values())
        return (
            f"{self.priority.name:<7}{self.melody:<26}{len(self.pulses)} pulse{'s' if len(self.pulses) > 1 else ''} of"
            f" {first.duration_s * 1e3:.0f} ms at {pitches} Hz, {HARMONICS} harmonics, {self.spacing_s * 1e3:.0f} ms"
            f" apart; burst of {self.burst_s:.2f} s, again after {self.interburst_s:g} s; {self.level_db:+.0f} dB"
        )


def _compose(melody: str, duration_s: float, spacing_s: float) -> tuple[Pulse, ...]:
    """Pulses of a melody as `C d g - C d | C d g - C d`."""
    pulses: list[Pulse] = []
    gap_s, at_s = 0.0, 0.0
    for word in melody.split():
        if word == "-":
            gap_s = GROUP_GAP[0] * spacing_s + GROUP_GAP[1] * duration_s
        elif word == "|":
            gap_s = BETWEEN_HALVES_S
        else:
            at_s += gap_s if pulses else 0.0
            pulses.append(Pulse(round(at_s, 6), word, duration_s))
            at_s += duration_s
            gap_s = spacing_s
    return tuple(pulses)


def _signal(
    priority: Priority, melody: str, duration_s: float, spacing_s: float, interburst_s: float, level_db: float
) -> Signal:
    return Signal(
        priority,
        melody,
        _compose(melody, duration_s, spacing_s),
        spacing_s,
        interburst_s,
        rise_s=0.2 * duration_s,
        fall_s=0.2 * duration_s,
        level_db=level_db,
    )


SIGNALS = {
    Priority.HIGH: _signal(Priority.HIGH, "C d g - C d | C d g - C d", 0.15, 0.1, 4.0, 0.0),
    Priority.MEDIUM: _signal(Priority.MEDIUM, "C d g", 0.2, 0.2, 8.0, -3.0),
    Priority.LOW: _signal(Priority.LOW, "e c", 0.2, 0.2, 20.0, -6.0),
}
"""The melodies are those of drug delivery; LOW has the common one."""


def render(signal: Signal) -> npt.NDArray[np.int16]:
    """One burst and the silence after it, 16 bit at RATE_HZ: played in a loop it is the signal."""
    found = np.zeros(round(signal.period_s * RATE_HZ))
    for pulse in signal.pulses:
        start = round(pulse.start_s * RATE_HZ)
        tone = _tone(pulse, signal)
        found[start : start + len(tone)] = tone
    loudest = np.abs(found).max()
    scaled = found / loudest * PEAK * 10.0 ** (signal.level_db / 20.0) * 32767.0
    return np.asarray(np.rint(scaled), dtype=np.int16)


def _tone(pulse: Pulse, signal: Signal) -> npt.NDArray[np.float64]:
    time_s = np.arange(round(pulse.duration_s * RATE_HZ)) / RATE_HZ
    tone = np.zeros_like(time_s)
    for number in range(1, HARMONICS + 1):
        level = 10.0 ** (-HARMONIC_DROP_DB * (number - 1) / 20.0)
        tone += level * np.sin(2.0 * np.pi * number * pulse.fundamental_hz * time_s)
    # Raised cosines: a step would click, and a click has no pitch.
    rise = np.clip(time_s / signal.rise_s, 0.0, 1.0)
    fall = np.clip((pulse.duration_s - time_s) / signal.fall_s, 0.0, 1.0)
    shape: npt.NDArray[np.float64] = 0.25 * (1.0 - np.cos(np.pi * rise)) * (1.0 - np.cos(np.pi * fall))
    return tone * shape


def write_wav(path: Path, signal: Signal) -> None:
    """The signal as a WAV file of one channel."""
    # Made in memory: a wave file that could not be opened tells of it again when it is collected.
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(render(signal).astype("<i2").tobytes())
    path.write_bytes(made.getvalue())


class Bell:
    """When a terminal's bell rings, which has neither pitch nor length: once for each pulse.

    `due` is asked with the one priority that may sound; another one begins its burst at once.
    """

    def __init__(self) -> None:
        self._priority: Priority | None = None
        self._began_s = 0.0
        self._rung = 0

    def due(self, sounding: Priority | None, now_s: float) -> bool:
        """True if a pulse starts at or before `now_s` (s, any clock that does not go back) and has not been rung."""
        if sounding != self._priority:
            self._priority, self._began_s, self._rung = sounding, now_s, 0
        if sounding is None:
            return False
        signal = SIGNALS[sounding]
        while now_s - self._began_s >= signal.period_s:
            self._began_s += signal.period_s
            self._rung = 0
        late = [pulse for pulse in signal.pulses[self._rung :] if pulse.start_s <= now_s - self._began_s]
        # What was slept through is not made up for: bells without a pause between are no pattern.
        self._rung += len(late)
        return bool(late)

    def wait_s(self, now_s: float) -> float:
        """Until the next pulse of what sounds; infinite if nothing does."""
        if self._priority is None:
            return float("inf")
        signal = SIGNALS[self._priority]
        starts = [pulse.start_s for pulse in signal.pulses[self._rung :]] or [signal.period_s]
        return max(0.0, starts[0] - (now_s - self._began_s))


def spacings_s(signal: Signal) -> list[float]:
    """From the end of each pulse to the start of the next."""
    return [after.start_s - before.end_s for before, after in pairwise(signal.pulses)]


@dataclass(frozen=True)
class Indicator:
    """The light of a priority: flashes of a colour, or steady."""

    colour: str
    flash_hz: float = 0.0
    on_ratio: float = 1.0

    def on(self, time_s: float) -> bool:
        """Whether it is lit at a time (s, any clock)."""
        return not self.flash_hz or (time_s * self.flash_hz) % 1.0 < self.on_ratio


INDICATORS = {
    Priority.HIGH: Indicator("red", 2.0, 0.5),
    Priority.MEDIUM: Indicator("yellow", 0.5, 0.5),
    Priority.LOW: Indicator("cyan"),
    Priority.INFORMATION: Indicator("blue"),
}
"""Red 1.4 to 2.8 Hz lit for 20 to 80 %, yellow 0.4 to 0.8 Hz lit for 20 to 60 %, cyan steady (IEC 60601-1-8)."""
