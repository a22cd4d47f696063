"""The trial's plant against an independent discretisation of its circuits, and its converters."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ionto_rt.core.trial import Trial

QUIET: dict[str, Any] = {"noise_lsb": 0.0, "hum_lsb": 0.0}


@st.composite
def loops(draw: st.DrawFn, front_end: str) -> dict[str, Any]:
    def decades(low: float, high: float) -> float:
        return 10.0 ** draw(st.floats(np.log10(low), np.log10(high)))

    return {
        "front_end": front_end,
        "series_ohm": decades(100.0, 5e3),
        "parallel_ohm": decades(200.0, 2e4),
        "capacitance_f": decades(1e-9, 2e-6),
        "tick_s": 1.0 / decades(500.0, 1e4),
        "delay_ticks": draw(st.integers(1, 4)),
        "setpoint_a": 1e-3,
        "full_scale_a": 4e-3,
        "ballast_ohm": 2e3 if front_end == "voltage" else 0.0,
        "emf_v": draw(st.floats(-1.0, 1.0)),
        "gain_error": draw(st.floats(-0.05, 0.05)),
        **QUIET,
    }


def held_response(
    a: NDArray[np.float64], b: NDArray[np.float64], tick_s: float, inputs: NDArray[np.float64], parts: int = 1
) -> NDArray[np.float64]:
    """States at `parts` instants of each period of dx/dt = a x + b u, u held, from x = 0, by matrix exponential."""
    linalg = pytest.importorskip("scipy.linalg")
    n, m = b.shape
    whole = linalg.expm(np.block([[a, b], [np.zeros((m, n + m))]]) * (tick_s / parts))
    x, states = np.zeros(n), []
    for u in inputs:
        for _ in range(parts):
            x = whole[:n, :n] @ x + whole[:n, n:] @ u
            states.append(x)
    return np.array(states)


def in_force(trial: Trial, outputs: NDArray[np.float64], delay: int) -> NDArray[np.float64]:
    """The output during the period that ends with each sample."""
    return np.concatenate([np.zeros(delay), outputs[: len(outputs) - delay]])


@settings(max_examples=25)
@given(loops("voltage"))
def test_a_voltage_source_drives_the_circuit(loop: dict[str, Any]) -> None:
    trial = Trial(**loop)
    current, peak, measured, outputs = trial.run(np.full(1500, 1e-3))
    series, parallel, c = loop["series_ohm"] + loop["ballast_ohm"], loop["parallel_ohm"], loop["capacitance_f"]
    source = in_force(trial, outputs, loop["delay_ticks"]) * (1.0 + loop["gain_error"]) - loop["emf_v"]
    rate = -(1.0 / series + 1.0 / parallel) / c
    inner = held_response(np.array([[rate]]), np.array([[1.0 / (series * c)]]), loop["tick_s"], source[:, None])[:, 0]
    assert current == pytest.approx((source - inner) / series, rel=0.0, abs=1e-12)
    # The current is largest at an end of its period.
    first = (source - np.concatenate([[0.0], inner[:-1]])) / series
    assert peak == pytest.approx(np.maximum(np.abs(first), np.abs(current)), rel=0.0, abs=1e-12)
    lsb = loop["full_scale_a"] / 32768.0
    assert np.abs(measured - current).max() <= 0.5000001 * lsb
    assert np.abs(measured / lsb - np.round(measured / lsb)).max() < 1e-6


@settings(max_examples=25)
@given(loops("current"), st.floats(1e3, 5e3))
def test_a_current_source_drives_the_circuit(loop: dict[str, Any], bandwidth_hz: float) -> None:
    trial = Trial(**loop, bandwidth_hz=bandwidth_hz)
    current, peak, _, outputs = trial.run(np.full(1500, 1e-3))
    target = in_force(trial, outputs, loop["delay_ticks"]) * (1.0 + loop["gain_error"])
    stage = held_response(
        np.array([[-2.0 * np.pi * bandwidth_hz]]), np.array([[2.0 * np.pi * bandwidth_hz]]), loop["tick_s"],
        target[:, None],
    )[:, 0]  # fmt: skip
    assert current == pytest.approx(stage, rel=0.0, abs=1e-12)
    assert (peak >= np.abs(current)).all()


@settings(max_examples=10)
@given(loops("current"))
def test_the_pads_show_the_voltage_of_the_circuit(loop: dict[str, Any]) -> None:
    """The probe identifies the load from it: so its result is the circuit's."""
    assume(loop["parallel_ohm"] * loop["capacitance_f"] < 10.0 * loop["tick_s"])
    # Noise, for without it the converter's steps would be an error that no mean removes.
    trial = Trial(**{**loop, "noise_lsb": 1.0})
    verdict, _, _ = trial.probe()
    assert verdict == "good"
    found = trial.identified
    resistance = loop["series_ohm"] + loop["parallel_ohm"]
    assert abs(found["resistance_ohm"] - resistance) <= 0.005 * resistance + 6.0 * found["resistance_sigma_ohm"]


@pytest.mark.parametrize("front_end", ["voltage", "current"])
def test_the_plant_it_states_is_the_one_it_is(front_end: str) -> None:
    trial = Trial(
        front_end=front_end, series_ohm=500.0, parallel_ohm=8e3, capacitance_f=50e-9, tick_s=1e-3, delay_ticks=2,
        setpoint_a=1e-3, full_scale_a=4e-3, ballast_ohm=2e3 if front_end == "voltage" else 0.0, **QUIET,
    )  # fmt: skip
    current, _, _, outputs = trial.run(np.full(2000, 1e-3))
    pole, gain, before = trial.plant
    u = in_force(trial, outputs, 2)
    foreseen = pole * current[:-1] + gain * u[1:] - before * u[:-1]
    assert current[1:] == pytest.approx(foreseen, rel=0.0, abs=1e-15)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    given: dict[str, Any] = {
        "front_end": "current", "series_ohm": 500.0, "parallel_ohm": 8e3, "capacitance_f": 50e-9, "tick_s": 1e-3,
        "delay_ticks": 2, "setpoint_a": 1e-3, "full_scale_a": 4e-3,
    }  # fmt: skip
    once, again, other = (Trial(**given, seed=seed).run(np.full(800, 1e-3)).tobytes() for seed in (5, 5, 6))
    assert once == again != other


def test_the_compliance_voltage_is_never_passed() -> None:
    trial = Trial(
        front_end="current", series_ohm=1e3, parallel_ohm=7e3, capacitance_f=50e-9, tick_s=1e-3, delay_ticks=2,
        setpoint_a=4e-3, full_scale_a=4e-3, compliance_v=20.0, **QUIET,
    )  # fmt: skip
    assert trial.probe()[0] == "good"
    current = trial.run(np.full(2000, 4e-3))[0]
    assert current[-1] == pytest.approx(20.0 / 8e3, rel=1e-6)
    assert current.max() * 1e3 <= 20.0


def test_an_open_lead_carries_no_current() -> None:
    trial = Trial(
        front_end="voltage", series_ohm=1e3, parallel_ohm=7e3, capacitance_f=50e-9, tick_s=1e-3, delay_ticks=2,
        setpoint_a=1e-3, full_scale_a=4e-3, ballast_ohm=2e3,
    )  # fmt: skip
    assert trial.probe()[0] == "good"
    trial.run(np.full(300, 1e-3))
    trial.open()
    current, peak, _, _ = trial.run(np.full(100, 1e-3))
    assert not current.any() and not peak.any()
    assert trial.regulator["contact_lost"] == 1
