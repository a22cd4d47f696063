"""Quantities are a number and one unit from a closed table, and nothing else."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.units import (
    MAX_TEXT,
    Kind,
    UnitError,
    format_charge,
    format_clock,
    format_current,
    format_density,
    format_quantity,
    format_resistance,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("4 mA", Kind.CURRENT, 0.004),
        ("1.77mA", Kind.CURRENT, 0.00177),
        ("100 uA", Kind.CURRENT, 1e-4),
        ("100 \u00b5A", Kind.CURRENT, 1e-4),
        ("100 \u03bcA", Kind.CURRENT, 1e-4),
        ("1e-1 mA", Kind.CURRENT, 1e-4),
        ("40 mA*min", Kind.CHARGE, 2.4),
        ("40 mA\u00b7min", Kind.CHARGE, 2.4),
        ("17.7 mA*min", Kind.CHARGE, 1.062),
        ("6 mC", Kind.CHARGE, 0.006),
        ("30 s", Kind.TIME, 30.0),
        ("10 min", Kind.TIME, 600.0),
        ("8 cm^2", Kind.AREA, 8e-4),
        ("8 cm\u00b2", Kind.AREA, 8e-4),
        ("0.5 mA/cm^2", Kind.DENSITY, 5.0),
        ("10 V", Kind.VOLTAGE, 10.0),
        ("1 kohm", Kind.RESISTANCE, 1000.0),
        ("1 k\u2126", Kind.RESISTANCE, 1000.0),
        ("0.8 mA/s", Kind.RAMP_RATE, 8e-4),
        ("8 mA/min", Kind.RAMP_RATE, 0.008 / 60),
        ("0 s", Kind.TIME, 0.0),
        ("-0 s", Kind.TIME, 0.0),
        ("+2 mA", Kind.CURRENT, 0.002),
    ],
)
def test_text_is_read_as_the_nearest_float_in_si(text: str, kind: Kind, value: float) -> None:
    assert parse_quantity(text, kind) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "4",
        "mA",
        "nan mA",
        "inf mA",
        "2*2 mA",
        "1/2 mA",
        "(4) mA",
        "4 mA + 1 mA",
        "9**9**9 mA",
        "0x10 mA",
        "1_000 uA",
        "1,5 mA",
        ".5 mA",
        "5. mA",
        "4 MA",
        "4 ma",
        "4 mA\n",
        "\u0664 mA",
        "4 mA 4 mA",
        "1e999 mA",
        "-1 mA",
        "99 A",
        "0." + "0" * MAX_TEXT + "1 mA",
        4,
        4.0,
        True,
        None,
        ["4 mA"],
        {"mA": 4},
    ],
)
def test_anything_else_is_refused_with_a_valid_example(text: object) -> None:
    with pytest.raises(UnitError, match='"2 mA"'):
        parse_quantity(text, Kind.CURRENT)


def test_a_unit_of_another_kind_is_named() -> None:
    with pytest.raises(UnitError, match="has a unit of time, not of current"):
        parse_quantity("30 s", Kind.CURRENT)


def test_negative_zero_is_zero() -> None:
    assert math.copysign(1.0, parse_quantity("-0 mA", Kind.CURRENT)) == 1.0


@pytest.mark.parametrize("kind", list(Kind))
def test_the_example_of_each_kind_is_valid(kind: Kind) -> None:
    assert parse_quantity(kind.example, kind) > 0.0


@given(kind=st.sampled_from(list(Kind)), text=st.text(max_size=60))
def test_no_text_raises_anything_but_a_unit_error(kind: Kind, text: str) -> None:
    try:
        value = parse_quantity(text, kind)
    except UnitError as error:
        assert kind.example in str(error)
    else:
        assert math.isfinite(value) and value >= 0.0


@given(
    kind=st.sampled_from(list(Kind)),
    digits=st.integers(0, 999_999),
    exponent=st.integers(-6, 0),
    data=st.data(),
)
def test_a_quantity_of_six_digits_survives_writing_and_reading(
    kind: Kind, digits: int, exponent: int, data: st.DataObject
) -> None:
    unit = data.draw(st.sampled_from(kind.units))
    text = f"{Decimal(digits).scaleb(exponent):f} {unit}"
    try:
        value = parse_quantity(text, kind)
    except UnitError as error:
        assert "far beyond any" in str(error)
        return
    assert parse_quantity(format_quantity(value, kind, unit), kind) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_current(0.004), "4 mA"),
        (format_current(-0.00177), "-1.77 mA"),
        (format_current(1e-4), "100 \u00b5A"),
        (format_current(7e-6), "7 \u00b5A"),
        (format_current(0.0), "0 mA"),
        (format_charge(2.4), "40 mA\u00b7min"),
        (format_charge(0.006), "6 mC"),
        (format_density(5.0), "0.5 mA/cm\u00b2"),
        (format_resistance(499.999), "500 \u03a9"),
        (format_resistance(12345.0), "12.34 k\u03a9"),
        (format_clock(59.6), "1:00"),
        (format_clock(3661.0), "1:01:01"),
        (format_quantity(math.inf, Kind.CURRENT), "Infinity mA"),
    ],
)
def test_values_are_shown_in_the_units_of_people(text: str, expected: str) -> None:
    assert text == expected
