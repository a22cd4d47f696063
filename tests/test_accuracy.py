"""What a receipt says of accuracy is what plain arithmetic over all of the rows says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.accuracy import SETTLE_TICKS, Accuracy
from ionto_rt.codes import Phase
from ionto_rt.core.controller import empty_ticks


def rows_of(levels: list[tuple[float, int]], seed: int = 1) -> np.ndarray:
    """Rows that hold each level for so many ticks, with noise of a percent."""
    level = np.repeat([a for a, _ in levels], [n for _, n in levels])
    rows = empty_ticks(len(level))
    rows["level_a"] = level
    rows["current_a"] = level * (1.0 + 0.01 * np.random.default_rng(seed).standard_normal(len(level)))
    rows["phase"] = Phase.TREATMENT
    return rows


def test_mean_and_ripple_leave_out_what_follows_a_change() -> None:
    rows = rows_of([(1e-3, 300), (-2e-3, 15), (2e-3, 200)])
    held = np.r_[SETTLE_TICKS:300, 315 + SETTLE_TICKS : 515]
    level, current = rows["level_a"][held], rows["current_a"][held]
    found = Accuracy()
    found.add(rows)
    assert found.samples == len(held)
    assert found.mean_error_ratio == pytest.approx(current.sum() / level.sum() - 1.0, abs=1e-15)
    assert found.ripple_rms_ratio == pytest.approx(np.sqrt((((current - level) / level) ** 2).mean()), rel=1e-12)


@given(
    st.lists(st.tuples(st.sampled_from([1e-3, 2e-3, 3e-3]), st.integers(1, 60)), min_size=1, max_size=8),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_chunks_of_any_size_say_the_same(levels: list[tuple[float, int]], cuts: list[int]) -> None:
    rows = rows_of(levels)
    whole, parts = Accuracy(), Accuracy()
    whole.add(rows)
    for part in np.split(rows, sorted(min(cut, len(rows)) for cut in cuts)):
        parts.add(part)
    assert parts.samples == whole.samples
    if whole.samples:
        assert parts.mean_error_ratio == pytest.approx(whole.mean_error_ratio, abs=1e-9)
        assert parts.ripple_rms_ratio == pytest.approx(whole.ripple_rms_ratio, rel=1e-9)


def test_without_a_steady_sample_nothing_is_said() -> None:
    found = Accuracy()
    found.add(rows_of([(1e-3, SETTLE_TICKS)]))
    assert (found.mean_error_ratio, found.ripple_rms_ratio) == (None, None)
