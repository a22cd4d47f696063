"""The three signals keep to the table: pulses, spacing, spectrum, level; the bell rings in their rhythm."""

import re
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cli_support import ionto
from ionto_rt.alarms import Priority
from ionto_rt.sound import (
    GROUP_GAP,
    HALVES_S,
    HARMONIC_WITHIN_DB,
    HARMONICS_FROM_HZ,
    HARMONICS_LEAST,
    HARMONICS_TO_HZ,
    INDICATORS,
    PEAK,
    RATE_HZ,
    RULES,
    SIGNALS,
    Bell,
    Signal,
    spacings_s,
    write_wav,
)

EVERY = pytest.mark.parametrize("signal", SIGNALS.values(), ids=lambda signal: signal.priority.name)
MELODIES = {Priority.HIGH: "CdgCdCdgCd", Priority.MEDIUM: "Cdg", Priority.LOW: "ec"}


def played(path: Path, signal: Signal) -> npt.NDArray[np.float64]:
    """What the file holds, in full scale."""
    write_wav(path, signal)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 32767.0


def heard(sound: npt.NDArray[np.float64], threshold: float = 1e-3) -> list[tuple[float, float]]:
    """(start, end) of each pulse as the file has them (s), by its envelope over 2 ms."""
    width = RATE_HZ // 500
    loud = np.convolve(np.abs(sound) > threshold * np.abs(sound).max(), np.ones(width), "same") > 0
    edges = np.flatnonzero(np.diff(loud.astype(int), prepend=0, append=0))
    return [(start / RATE_HZ, end / RATE_HZ) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def lines_hz(tone: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """(frequency, level in dB below the strongest) of the peaks of a pulse's spectrum."""
    shown = np.abs(np.fft.rfft(tone * np.hanning(len(tone)), 1 << 17))
    bins_hz = np.fft.rfftfreq(1 << 17, 1.0 / RATE_HZ)
    peaks = np.flatnonzero((shown[1:-1] > shown[:-2]) & (shown[1:-1] > shown[2:])) + 1
    found = [(float(bins_hz[k]), float(20.0 * np.log10(shown[k] / shown.max()))) for k in peaks]
    return [(hz, level) for hz, level in found if level > -20.0]


def inside(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9


@EVERY
def test_each_signal_has_the_pulses_of_its_priority_in_its_melody(signal: Signal, tmp_path: Path) -> None:
    rule = RULES[signal.priority]
    found = heard(played(tmp_path / "it.wav", signal))
    assert len(found) == len(signal.pulses) and inside(len(found), rule.pulses)
    assert "".join(pulse.note for pulse in signal.pulses) == MELODIES[signal.priority]
    for (start_s, end_s), pulse in zip(found, signal.pulses, strict=True):
        assert start_s == pytest.approx(pulse.start_s, abs=0.006)
        assert end_s == pytest.approx(pulse.end_s, abs=0.006)
        assert inside(pulse.duration_s, rule.pulse_s)
        assert inside(signal.rise_s / pulse.duration_s, rule.rise_ratio)


@EVERY
def test_pulses_and_bursts_are_spaced_as_the_table_says(signal: Signal, tmp_path: Path) -> None:
    rule = RULES[signal.priority]
    spacings, gap = spacings_s(signal), signal.spacing_s
    assert inside(gap, rule.spacing_s)
    inner = GROUP_GAP[0] * gap + GROUP_GAP[1] * signal.pulses[0].duration_s
    if signal.priority == Priority.HIGH:
        halves = spacings.pop(4)
        assert inside(halves, HALVES_S)
        assert spacings == pytest.approx([gap, gap, inner, gap] * 2)
    else:
        assert spacings == pytest.approx([gap] * len(spacings))
    assert signal.fall_s <= gap - signal.rise_s, "a pulse has faded before the next one rises"
    assert inside(signal.interburst_s, rule.interburst_s)
    sound = played(tmp_path / "it.wav", signal)
    silent_s = len(sound) / RATE_HZ - heard(sound)[-1][1]
    assert silent_s == pytest.approx(signal.interburst_s, abs=0.006), "played in a loop the interval is right"


@EVERY
def test_each_pulse_has_four_harmonics_that_carry(signal: Signal, tmp_path: Path) -> None:
    sound = played(tmp_path / "it.wav", signal)
    rule = RULES[signal.priority]
    for pulse in signal.pulses:
        tone = sound[round(pulse.start_s * RATE_HZ) : round(pulse.end_s * RATE_HZ)]
        found = lines_hz(tone)
        band = [(hz, level) for hz, level in found if HARMONICS_FROM_HZ <= hz <= HARMONICS_TO_HZ]
        strong = [hz for hz, level in band if level >= -HARMONIC_WITHIN_DB]
        assert len(strong) >= HARMONICS_LEAST, (pulse, found)
        fundamental = min(strong)
        assert fundamental == pytest.approx(pulse.fundamental_hz, abs=3.0)
        assert inside(pulse.fundamental_hz, rule.fundamental_hz) and pulse.fundamental_hz >= HARMONICS_FROM_HZ
        for hz in strong:
            assert hz / fundamental == pytest.approx(round(hz / fundamental), abs=0.02), "a harmonic, no other sound"


@EVERY
def test_no_pulse_steps_or_clips(signal: Signal, tmp_path: Path) -> None:
    sound = played(tmp_path / "it.wav", signal)
    assert np.abs(sound).max() <= PEAK
    for pulse in signal.pulses:
        tone = sound[round(pulse.start_s * RATE_HZ) : round(pulse.end_s * RATE_HZ)]
        assert abs(tone[0]) < 1e-3 and abs(tone[-1]) < 5e-3
    peaks = [np.abs(sound[round(p.start_s * RATE_HZ) : round(p.end_s * RATE_HZ)]).max() for p in signal.pulses]
    assert 20.0 * np.log10(max(peaks) / min(peaks)) < 3.0


def test_a_higher_priority_is_louder(tmp_path: Path) -> None:
    loud = [np.abs(played(tmp_path / "it.wav", SIGNALS[priority])).max() for priority in sorted(SIGNALS)]
    assert loud == sorted(loud) and len(set(loud)) == 3
    assert loud[-1] == pytest.approx(PEAK, abs=1e-3)


def rung(signal: Signal, step_s: float, until_s: float) -> list[float]:
    bell, steps = Bell(), round(until_s / step_s)
    return [k * step_s for k in range(steps) if bell.due(signal.priority, k * step_s)]


@EVERY
def test_the_bell_rings_once_a_pulse_and_again_in_each_burst(signal: Signal) -> None:
    found = rung(signal, 1e-3, 2.0 * signal.period_s)
    wanted = [pulse.start_s + burst * signal.period_s for burst in (0, 1) for pulse in signal.pulses]
    assert found == pytest.approx(wanted, abs=2e-3)


def test_another_priority_begins_at_once_and_silence_is_silent() -> None:
    bell = Bell()
    assert bell.due(Priority.LOW, 10.0) and not bell.due(Priority.LOW, 10.1)
    assert bell.due(Priority.HIGH, 10.15), "a higher one does not wait for the burst that sounds"
    assert not bell.due(None, 10.3) and bell.wait_s(10.3) == float("inf")
    assert bell.due(Priority.LOW, 10.4)
    assert bell.wait_s(10.4) == pytest.approx(SIGNALS[Priority.LOW].pulses[1].start_s)


def test_pulses_that_were_slept_through_ring_once() -> None:
    bell = Bell()
    assert bell.due(Priority.HIGH, 0.0)
    assert bell.due(Priority.HIGH, 1.0) and not bell.due(Priority.HIGH, 1.01)


@pytest.mark.parametrize(
    ("priority", "colour", "flash_hz", "on_ratio"),
    [(Priority.HIGH, "red", (1.4, 2.8), (0.2, 0.8)), (Priority.MEDIUM, "yellow", (0.4, 0.8), (0.2, 0.6))],
)
def test_indicators_flash_within_the_table_also_as_drawn_eight_times_a_second(
    priority: Priority, colour: str, flash_hz: tuple[float, float], on_ratio: tuple[float, float]
) -> None:
    light = INDICATORS[priority]
    assert light.colour == colour
    drawn = np.array([light.on(k / 8.0) for k in range(8 * 60)])
    assert inside(np.count_nonzero(np.diff(drawn.astype(int)) > 0) / 60.0, flash_hz)
    assert inside(float(drawn.mean()), on_ratio)


def test_low_is_cyan_and_does_not_flash() -> None:
    assert INDICATORS[Priority.LOW].colour == "cyan"
    assert all(INDICATORS[Priority.LOW].on(k / 8.0) for k in range(100))


def test_the_command_writes_the_files_and_describes_them(tmp_path: Path) -> None:
    done = ionto("sounds", "--out", "heard", cwd=tmp_path)
    assert done.code == 0, done.err
    for signal in SIGNALS.values():
        (line,) = [line for line in done.out.splitlines() if line.startswith(signal.priority.name)]
        assert signal.melody in line and f"{len(signal.pulses)} pulses" in line
        path = tmp_path / "heard" / f"{signal.priority.name.lower()}.wav"
        with wave.open(str(path)) as file:
            assert file.getnframes() / RATE_HZ == pytest.approx(signal.period_s, abs=1e-3)
        assert re.search(rf"^wrote .*{path.name}$", done.out, re.MULTILINE)


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ionto("sounds", "--out", "file/below", cwd=tmp_path)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and "file/below" in done.err
