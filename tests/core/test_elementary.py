"""exp, log, cosine and sine from exact operations: as accurate as stated, and the same bits everywhere."""

import hashlib
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.core import elementary

ULP = 2.0**-52


@given(st.floats(-700.0, 700.0))
def test_exp_is_that_of_the_mathematical_library(x: float) -> None:
    assert elementary.exp(x) == pytest.approx(math.exp(x), rel=16.0 * (1.0 + abs(x)) * ULP, abs=0.0)


@given(st.floats(1e-12, 1e-3))
def test_exp_keeps_the_digits_of_a_slow_pole(x: float) -> None:
    assert 1.0 - elementary.exp(-x) == pytest.approx(-math.expm1(-x), rel=0.0, abs=2.0 * ULP)


@given(st.floats(1e-300, 1e300))
def test_log_is_that_of_the_mathematical_library(x: float) -> None:
    assert elementary.log(x) == pytest.approx(math.log(x), rel=16.0 * ULP, abs=16.0 * ULP)


@given(st.floats(0.0, 1.0))
def test_a_turn_is_on_the_unit_circle_where_it_belongs(turns: float) -> None:
    cosine, sine = elementary.turn(turns)
    assert cosine == pytest.approx(math.cos(math.tau * turns), rel=0.0, abs=4.0 * ULP)
    assert sine == pytest.approx(math.sin(math.tau * turns), rel=0.0, abs=4.0 * ULP)


@given(st.floats(-30.0, 30.0))
def test_log_takes_exp_back(x: float) -> None:
    assert elementary.log(elementary.exp(x)) == pytest.approx(x, rel=1e-13, abs=1e-13)


def test_what_has_no_result_gives_a_bounded_one() -> None:
    assert elementary.exp(-1e9) == 0.0
    assert elementary.exp(1e9) == elementary.exp(700.0) < math.inf
    assert elementary.log(0.0) == elementary.log(-1.0) == elementary.log(math.nan) == 0.0


def test_the_bits_are_the_same_on_every_processor() -> None:
    """Of a thousand values each; made from + - * / and square root, they cannot depend on a library."""
    values = [elementary.exp(0.7 * k - 350.0) for k in range(1000)]
    values += [elementary.log(1e-3 * (k + 1) ** 3) for k in range(1000)]
    values += [part for k in range(1001) for part in elementary.turn(k / 1000)]
    assert (
        hashlib.sha256(struct.pack(f"<{len(values)}d", *values)).hexdigest()
        == "25f142e8d2ff5fbfe3398899a7b85c62107b6c4abd7b5d34d98d046600342a86"
    )
