"""The contact-area test: a pad that shrinks is found in time, skin that changes is not taken for it."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.codes import AreaAlarm, OperatorCommand, Phase, Trip
from ionto_rt.core.contact_area import ContactArea
from ionto_rt.core.impedance import ImpedanceEstimator
from support import run_on_device

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from false_alarms import LOADS, wear

T = 2e-4
LSB_V, LSB_A = 2.44e-3, 0.12e-6
Load = tuple[float, float, float]
SKINS: list[Load] = [(600.0, 2e3, 240e-9), (500.0, 100e3, 30e-9), (1e3, 10e3, 100e-9)]
COVARIANCE = (1e-4, 0.0, 0.0, 1e-5, 0.0, 1e-5)


def fit(load: Load, covariance: tuple[float, ...] = COVARIANCE, disturbed: int = 0) -> dict[str, Any]:
    """A block's fit, as the estimator gives it."""
    names = ("series_ohm", "parallel_ohm", "capacitance_f")
    return {**dict(zip(names, load, strict=True)), "misfit": 0.0, "covariance": list(covariance),
            "disturbed": disturbed}  # fmt: skip


def shrunk(load: Load, area: float) -> Load:
    """One site alone, at a share of its area; leads and body, all of Rs, do not scale."""
    return load[0], load[1] / area, load[2] * area


def settled(test: ContactArea, load: Load, blocks: int = 60) -> None:
    for _ in range(blocks):
        state = test.step(fit(load))
    assert state["alarm"] == AreaAlarm.STEADY
    assert state["area_ratio"] == pytest.approx(1.0, rel=1e-12)


@given(st.floats(0.2, 0.85))
def test_a_lost_share_of_the_area_is_found_in_its_first_block_and_measured(area: float) -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    state = test.step(fit(shrunk(SKINS[0], area)))
    assert state["alarm"] == AreaAlarm.SMALLER
    for _ in range(3):
        state = test.step(fit(shrunk(SKINS[0], area)))
    assert state["area_ratio"] == pytest.approx(area, rel=0.05)


@given(st.floats(0.1, 10.0))
def test_skin_that_changes_moves_rp_alone_and_is_no_alarm(factor: float) -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    series, parallel, capacitance = SKINS[0]
    for _ in range(20):
        state = test.step(fit((series, factor * parallel, capacitance)))
    assert state["alarm"] == AreaAlarm.STEADY
    assert state["area_ratio"] == pytest.approx(1.0, rel=1e-9)


@given(st.floats(0.5, 2.0))
def test_leads_that_change_are_no_alarm(factor: float) -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    series, parallel, capacitance = SKINS[0]
    for _ in range(20):
        state = test.step(fit((factor * series, parallel, capacitance)))
    assert state["alarm"] == AreaAlarm.STEADY


@given(st.floats(0.3, 0.8), st.floats(0.3, 1.0))
def test_of_two_sites_in_series_the_ratio_is_that_of_the_watched_pad(area: float, share: float) -> None:
    """1/C of the whole: share / area + (1 - share)."""
    test = ContactArea(site_share=share)
    settled(test, SKINS[1])
    series, parallel, capacitance = SKINS[1]
    whole = capacitance / (share / area + 1.0 - share)
    for _ in range(12):
        state = test.step(fit((series, parallel / area, whole)))
    assert state["area_ratio"] == pytest.approx(area, rel=0.05)


def test_more_contact_is_told_from_less() -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    assert test.step(fit(shrunk(SKINS[0], 1.5)))["alarm"] == AreaAlarm.LARGER


def test_the_alarm_goes_with_its_cause() -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    for _ in range(20):
        state = test.step(fit(shrunk(SKINS[0], 0.6)))
    assert state["alarm"] == AreaAlarm.SMALLER
    blocks = 0
    while state["alarm"] != AreaAlarm.STEADY:
        state = test.step(fit(SKINS[0]))
        blocks += 1
    assert blocks <= 5


def test_the_baseline_follows_slow_skin_and_not_a_lost_contact() -> None:
    """A fifth more C over ten minutes is hydration; the alarm's own baseline stands still."""
    test = ContactArea()
    series, parallel, capacitance = SKINS[0]
    for block in range(6000):
        state = test.step(fit((series, parallel, capacitance * (1.0 + 0.2 * block / 6000))))
        assert state["alarm"] == AreaAlarm.STEADY
    for _ in range(600):
        state = test.step(fit((series, parallel / 0.6, 1.2 * capacitance * 0.6)))
    assert state["alarm"] == AreaAlarm.SMALLER, "a minute later it is still there"


def test_a_reset_takes_what_is_there_for_good_contact() -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    test.step(fit(shrunk(SKINS[0], 0.6)))
    test.reset()
    settled(test, shrunk(SKINS[0], 0.6))


def test_other_tones_take_the_finding_along() -> None:
    """A load that is no single Rs + (Rp || C) shows another C to other tones; that is no change of area."""
    test = ContactArea()
    settled(test, SKINS[0])
    for _ in range(20):
        state = test.step(fit(shrunk(SKINS[0], 0.7)), tone=1)
    assert state["alarm"] == AreaAlarm.STEADY


def test_blocks_that_do_not_see_the_load_end_the_verdict() -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    blind = fit((0.0, 0.0, 0.0))
    for _ in range(20):
        state = test.step(blind)
    assert (state["area_ratio"], state["alarm"]) == (0.0, AreaAlarm.STEADY)
    wide = tuple(100.0 * value for value in (1e-3, 0.0, 0.0, 1e-3, 0.0, 1e-3))
    for _ in range(50):
        state = test.step(fit(SKINS[0], wide))
    assert state["area_ratio"] == 0.0, "as good as blind"


def test_a_disturbed_block_changes_nothing() -> None:
    test = ContactArea()
    settled(test, SKINS[0])
    before = test.state_values
    test.step(fit(shrunk(SKINS[0], 0.3), disturbed=1))
    assert test.state_values == before


@pytest.mark.parametrize(("sigma", "least"), [(0.02, 0.0), (0.06, 0.4)])
def test_false_alarms_of_normal_noise_come_at_the_stated_rate_or_less(sigma: float, least: float) -> None:
    """One in 2000 blocks asked for, counted over a million; less where the step is many deviations."""
    blocks = 1_000_000
    rng = np.random.default_rng(8)
    rows = np.zeros((blocks, 11))
    rows[:, 0], rows[:, 1] = 600.0, 2e3
    rows[:, 2] = 240e-9 * np.exp(sigma * rng.normal(size=blocks))
    rows[:, 3], rows[:, 6], rows[:, 8] = 1e-2, 1e-4, sigma**2
    test = ContactArea(series_share=0.0, blocks_to_false_alarm=2000.0, baseline_blocks=1e5, noise_floor=1e-3)
    _, alarm = test.run(rows)
    count = int(np.count_nonzero(np.diff((alarm != 0).astype(int)) > 0))
    assert least <= count / (blocks / 2000.0) < 1.6


def walked(
    before: Load, after: Load, at_s: float, seconds: float, hum_v: float = 0.0, drift_v_per_s: float = 0.0
) -> Any:
    """Time of the first alarm after the change (s), and the last state: ticks at 5 kHz through estimator and test."""
    rng = np.random.default_rng(9)
    level = min(1e-3, 20.0 / (before[0] + before[1]))
    own = ImpedanceEstimator(
        tick_s=T, tone_a=19e-6, corner_hz=1.0 / (2.0 * math.pi * before[1] * before[2]),
        voltage_noise_v=LSB_V / 12**0.5, current_noise_a=LSB_A / 12**0.5,
    )  # fmt: skip
    test = ContactArea()
    skin, block, state, found = level * before[1], 0, test.state_values, None
    for k in range(round(seconds / T)):
        rs, rp, c = before if k * T < at_s else after
        decay = math.exp(-T / (rp * c))
        current = level + own.tone()
        skin = decay * skin + rp * (1.0 - decay) * current
        voltage = rs * current + skin + hum_v * math.sin(2.0 * math.pi * 50.0 * T * k) + drift_v_per_s * T * k
        estimate = own.step(
            LSB_A * round(current / LSB_A + rng.normal()), LSB_V * round(voltage / LSB_V + rng.normal())
        )
        if estimate["block"] != block:
            block = estimate["block"]
            state = test.step(estimate["latest"], own.state_values["bins"][0], estimate["mean_a"])
            if state["alarm"] and found is None:
                found = k * T - at_s
    return found, state


@pytest.mark.parametrize("load", SKINS)
@pytest.mark.parametrize("at_s", [1.6, 1.63, 1.67])
def test_half_of_the_area_is_alarmed_within_a_fifth_of_a_second(load: Load, at_s: float) -> None:
    found, state = walked(load, shrunk(load, 0.5), at_s, at_s + 0.4)
    assert 0.0 < found <= 0.2
    assert state["area_ratio"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("load", SKINS)
@pytest.mark.parametrize("at_s", [1.6, 1.67])
def test_a_fifth_of_the_area_is_alarmed_within_half_a_second(load: Load, at_s: float) -> None:
    found, _ = walked(load, shrunk(load, 0.8), at_s, at_s + 0.6)
    assert 0.0 < found <= 0.5


@pytest.mark.parametrize("load", SKINS)
@pytest.mark.parametrize(
    ("factor", "hum_v", "drift_v_per_s"), [(0.33, 0.0, 0.0), (2.0, 0.0, 0.0), (1.0, 0.02, 0.0), (1.0, 0.0, 0.05)]
)
def test_skin_hum_and_drift_raise_no_alarm(load: Load, factor: float, hum_v: float, drift_v_per_s: float) -> None:
    found, _ = walked(load, (load[0], factor * load[1], load[2]), 1.6, 4.0, hum_v, drift_v_per_s)
    assert found is None


def test_an_hour_of_wear_raises_no_alarm() -> None:
    """A slice of what `make alarms` runs for a hundred hours."""
    worn = wear(LOADS["conditioned"], 1.0, seed=77)
    assert worn.hours >= 0.9 and worn.alarms == 0
    assert (worn.fits[:, 1] > 0.0).mean() > 0.95


DELIVER = '[[steps]]\ncurrent = "1 mA"\ntime = "14 s"\nramp = "3 s"'


def test_a_pad_that_peels_pauses_a_session_until_the_operator_resumes() -> None:
    """Area of the active pad halved at 10 s on a virtual device of 5 kHz, at constant current."""
    rows, _, _ = run_on_device(
        DELIVER,
        {90_000: lambda loop: loop.operator(OperatorCommand.RESUME)},
        faults=["area=0.5@10"], sample_rate_hz=5000.0,
    )  # fmt: skip
    began = np.flatnonzero(rows["area_alarm"] == AreaAlarm.SMALLER)
    assert len(began) and 10.0 < began[0] * T < 10.5
    assert 0.4 < rows["area_ratio"][began[0]] < 0.65
    paused = rows["pause"] == Trip.CONTACT_AREA
    tripped = rows["trip"] == Trip.CONTACT_AREA
    assert (paused | tripped).any()
    assert not paused[: began[0] - 1].any()
    if not tripped.any():
        assert paused[began[0] + 1 : 89_990].all()
        assert rows["phase"][-1] == Phase.COMPLETE


@pytest.mark.parametrize("skin", ["typical", "dry", "hairy", "sweating", "wounded"])
@pytest.mark.parametrize("steps", [
    DELIVER,
    '[[steps]]\ncurrent = "4 mA"\ntime = "12 s"\nramp = "5 s"',
    '[[steps]]\ncurrent = "1 mA"\ntime = "6 s"\nramp = "2 s"\n[[steps]]\ncurrent = "2 mA"\ntime = "6 s"\nramp = "3 s"',
])  # fmt: skip
def test_no_skin_in_no_treatment_looks_like_a_pad_that_peels(skin: str, steps: str) -> None:
    acts = {
        30_000: lambda loop: loop.operator(OperatorCommand.PAUSE),
        37_000: lambda loop: loop.operator(OperatorCommand.RESUME),
    }
    rows, _, _ = run_on_device(steps, acts, skin=skin, sample_rate_hz=5000.0)
    assert not (rows["area_alarm"] == AreaAlarm.SMALLER).any()
    assert not rows["pause"].any() and not rows["trip"].any()


@pytest.mark.parametrize(
    "wrong",
    [{"site_share": 0.0}, {"series_share": 1.1}, {"noise_floor": 0.0}, {"step": 0.0}, {"blocks_to_false_alarm": 1.0},
     {"baseline_blocks": math.nan}, {"start_blocks": 0}, {"sigma_most": 2.0}, {"moving_blocks": 0.5}],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ContactArea(**wrong)
