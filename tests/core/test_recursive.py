"""Recursive least squares: equal to the batch solution, bounded without excitation; and biased on this load."""

from typing import Any

import numpy as np
import pytest

from ionto_rt.core.recursive import RecursiveLeastSquares

T = 2e-4


@pytest.mark.parametrize("forgetting", [1.0, 0.98])
def test_it_is_weighted_least_squares_over_all_that_it_was_given(forgetting: float) -> None:
    rng = np.random.default_rng(1)
    regressors, start = rng.normal(size=(300, 4)), 50.0
    values = regressors @ [1.0, -2.0, 0.5, 3.0] + 0.1 * rng.normal(size=300)
    solver = RecursiveLeastSquares(
        coefficients=4, forgetting=forgetting, start_variance=start, most_variance=1e12, least_information=0.0
    )
    solver.run(regressors, values)
    weights = forgetting ** np.arange(299, -1, -1)
    information = (regressors.T * weights) @ regressors + forgetting**300 / start * np.eye(4)
    batch = np.linalg.solve(information, (regressors.T * weights) @ values)
    assert solver.coefficients == pytest.approx(batch, rel=1e-12)
    assert solver.covariance == pytest.approx(np.linalg.inv(information), rel=1e-10)


def test_steps_and_runs_are_the_same() -> None:
    rng = np.random.default_rng(2)
    regressors, values = rng.normal(size=(50, 2)), rng.normal(size=50)
    stepped, run = RecursiveLeastSquares(coefficients=2), RecursiveLeastSquares(coefficients=2)
    for regressor, value in zip(regressors, values, strict=True):
        stepped.step(regressor, value)
    run.run(regressors, values)
    assert (stepped.coefficients == run.coefficients).all() and (stepped.covariance == run.covariance).all()


@pytest.mark.parametrize("regressor", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
def test_without_excitation_the_covariance_stays_bounded(regressor: list[float]) -> None:
    """A million samples that say nothing, or only one thing: plain forgetting would end at infinity."""
    rng = np.random.default_rng(3)
    solver = RecursiveLeastSquares(coefficients=3, forgetting=0.99, most_variance=1e4, start_variance=10.0)
    known = rng.normal(size=(500, 3))
    solver.run(known, known @ [1.0, 2.0, 3.0])
    solver.run(np.tile(regressor, (1_000_000, 1)), np.full(1_000_000, float(np.dot(regressor, [1.0, 2.0, 3.0]))))
    assert np.trace(solver.covariance) <= 1e4 / 0.99
    assert np.linalg.eigvalsh(solver.covariance).min() > -1e-9
    assert solver.coefficients == pytest.approx([1.0, 2.0, 3.0], rel=1e-4)
    assert solver.frozen


def test_what_is_not_finite_changes_nothing() -> None:
    solver = RecursiveLeastSquares(coefficients=2)
    solver.step([1.0, 2.0], 3.0)
    before = solver.coefficients.tolist(), solver.covariance.tolist()
    for regressor, value in (([np.nan, 1.0], 1.0), ([1.0, np.inf], 1.0), ([1.0, 1.0], np.nan)):
        solver.step(regressor, value)
    assert (solver.coefficients.tolist(), solver.covariance.tolist()) == before


def test_noise_of_the_readings_biases_it_on_this_load() -> None:
    """Why the tick does not use it: v(k) = a v(k-1) + b i(k) - c i(k-1) + e has v(k-1), which is noisy, on its right.

    Without noise it is exact; with one step of the converter it puts Rs and the time constant wrong by far more than
    the 1 % of scatter that 4 s of these tones leave.
    """
    rs, rp, c = 600.0, 2e3, 240e-9
    a = np.exp(-T / (rp * c))
    rng = np.random.default_rng(4)
    k = np.arange(20_000)
    current = 1e-3 + 19e-6 * (np.sin(2 * np.pi * 130 * T * k) + np.sin(2 * np.pi * 1490 * T * k))
    skin = np.empty_like(current)
    value = 1e-3 * rp
    for at, drive in enumerate(current):
        value = a * value + rp * (1.0 - a) * drive
        skin[at] = value
    voltage = rs * current + skin

    def found(noise_v: float) -> tuple[float, float, float]:
        v = voltage + noise_v * rng.normal(size=len(k))
        solver = RecursiveLeastSquares(coefficients=4, forgetting=1.0, start_variance=1e12, most_variance=1e30)
        # Scaled to unit size: volts, tens of microamperes.
        solver.run(np.column_stack([v[:-1], current[1:] / 1e-5, current[:-1] / 1e-5, np.ones(len(k) - 1)]), v[1:])
        pole, b, less, _ = solver.coefficients
        series = -less / pole / 1e-5
        return series, (b / 1e-5 - series) / (1.0 - pole), -T / np.log(pole)

    assert found(0.0) == pytest.approx((rs, rp, rp * c), rel=1e-3)
    biased: Any = found(2.44e-3)
    assert abs(biased[0] / rs - 1.0) > 0.03
    assert abs(biased[2] / (rp * c) - 1.0) > 0.04


@pytest.mark.parametrize(
    "wrong",
    [{"coefficients": 0}, {"coefficients": 9}, {"forgetting": 0.0}, {"forgetting": 1.1}, {"start_variance": 0.0},
     {"most_variance": -1.0}, {"least_information": -1.0}],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RecursiveLeastSquares(**{"coefficients": 2, **wrong})


def test_a_regressor_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3, not 2"):
        RecursiveLeastSquares(coefficients=2).step([1.0, 2.0, 3.0], 1.0)
