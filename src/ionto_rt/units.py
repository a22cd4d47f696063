"""Quantities as people write them: a number and one unit from a closed table, `"2 mA"`, `"40 mA*min"`.

Text is read in decimal and converted once, so that `"4 mA"` is the float nearest to 0.004 A. There are no bare
numbers, no expressions, no nan or inf, and no prefix that is not in the table.
"""

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import Enum

MAX_TEXT = 40
"""Longest text that is read as a quantity, in characters."""

_CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_QUANTITY = re.compile(
    r"([+-]?)([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)(?![eE][+-]?[0-9]|,[0-9])[ \t]*([^\s0-9.+-].*)?"
)
# Numbers that are none here, told apart so that the reason given is the true one.
_COMMA = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?,[0-9]")
_EXPONENT = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]{3}")


class UnitError(ValueError):
    """Text that is not a quantity of the kind asked for. The message says what is wrong and shows a valid example."""


@dataclass(frozen=True)
class _Kind:
    name: str
    example: str
    maximum: Decimal
    units: dict[str, Decimal]


class Kind(Enum):
    """A kind of quantity, its units (factors to SI) and the greatest value that is read at all.

    The greatest values are far beyond the machine: they only keep later arithmetic finite. Limits are elsewhere.
    """

    CURRENT = _Kind(
        "current",
        "2 mA",
        Decimal(10),
        {"mA": Decimal("1e-3"), "uA": Decimal("1e-6"), "µA": Decimal("1e-6"), "nA": Decimal("1e-9"), "A": Decimal(1)},
    )
    TIME = _Kind(
        "time",
        "30 s",
        Decimal(604800),
        {"s": Decimal(1), "ms": Decimal("1e-3"), "min": Decimal(60), "h": Decimal(3600)},
    )
    CHARGE = _Kind(
        "charge",
        "40 mA*min",
        Decimal(10000),
        {
            "mA*min": Decimal("0.06"),
            "mA·min": Decimal("0.06"),
            "C": Decimal(1),
            "mC": Decimal("1e-3"),
            "uC": Decimal("1e-6"),
            "µC": Decimal("1e-6"),
        },
    )
    AREA = _Kind(
        "area",
        "8 cm^2",
        Decimal(1),
        {"cm^2": Decimal("1e-4"), "cm²": Decimal("1e-4"), "mm^2": Decimal("1e-6"), "mm²": Decimal("1e-6")},
    )
    DENSITY = _Kind(
        "current density",
        "0.5 mA/cm^2",
        Decimal(100000),
        {
            "mA/cm^2": Decimal(10),
            "mA/cm²": Decimal(10),
            "uA/cm^2": Decimal("1e-2"),
            "µA/cm^2": Decimal("1e-2"),
            "µA/cm²": Decimal("1e-2"),
        },
    )
    VOLTAGE = _Kind("voltage", "10 V", Decimal(1000), {"V": Decimal(1), "mV": Decimal("1e-3")})
    RESISTANCE = _Kind(
        "resistance",
        "1 kohm",
        Decimal("1e9"),
        {
            "ohm": Decimal(1),
            "Ω": Decimal(1),
            "kohm": Decimal(1000),
            "kΩ": Decimal(1000),
            "Mohm": Decimal(1000000),
            "MΩ": Decimal(1000000),
        },
    )
    CAPACITANCE = _Kind(
        "capacitance",
        "240 nF",
        Decimal(1),
        {
            "nF": Decimal("1e-9"),
            "uF": Decimal("1e-6"),
            "µF": Decimal("1e-6"),
            "pF": Decimal("1e-12"),
            "F": Decimal(1),
        },
    )
    RAMP_RATE = _Kind(
        "ramp rate",
        "0.1 mA/s",
        Decimal(10),
        {
            "mA/s": Decimal("1e-3"),
            "uA/s": Decimal("1e-6"),
            "µA/s": Decimal("1e-6"),
            "mA/min": Decimal("1e-3") / Decimal(60),
        },
    )
    MOLAR_MASS = _Kind("molar mass", "234.3 g/mol", Decimal(1000), {"g/mol": Decimal("1e-3")})

    @property
    def label(self) -> str:
        """Name of the kind as people read it."""
        return self.value.name

    @property
    def example(self) -> str:
        """A valid text of this kind."""
        return self.value.example

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are read, the usual one first."""
        return tuple(self.value.units)


# Look-alikes that keyboards and word processors produce for the signs in the table.
_LOOK_ALIKES = str.maketrans(
    {
        "\N{GREEK SMALL LETTER MU}": "\N{MICRO SIGN}",
        "\N{OHM SIGN}": "\N{GREEK CAPITAL LETTER OMEGA}",
        "\N{DOT OPERATOR}": "\N{MIDDLE DOT}",
        "\N{BULLET OPERATOR}": "\N{MIDDLE DOT}",
        "\N{NO-BREAK SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ",
    }
)


def parse_quantity(text: object, kind: Kind) -> float:
    """Read `text` as a quantity of `kind`; the value in SI units, finite and not negative.

    Raises UnitError, whose message says what is wrong and shows a valid example.
    """
    example = f'write it like "{kind.example}"'
    if not isinstance(text, str):
        raise UnitError(f"must be text with a unit; {example}")
    if len(text) > MAX_TEXT:
        raise UnitError(f"longer than {MAX_TEXT} characters; {example}")
    match = _QUANTITY.fullmatch(text.translate(_LOOK_ALIKES).strip(" "))
    if match is None and _COMMA.match(text.strip(" ")):
        raise UnitError(f"has a comma in its number, where a point belongs; {example}")
    if match is None and _EXPONENT.match(text.strip(" ")):
        raise UnitError(f"has an exponent of more than two digits; {example}")
    if match is None:
        raise UnitError(f"not a number and a unit; {example}")
    sign, number, unit = match.groups()
    if unit is None:
        raise UnitError(f"has no unit; {example}")
    factor = kind.value.units.get(unit)
    if factor is None:
        for other in Kind:
            if unit in other.value.units:
                raise UnitError(f"has a unit of {other.label}, not of {kind.label}; {example}")
        raise UnitError(f"has none of the units of {kind.label}, {', '.join(kind.units)}; {example}")
    value = _CONTEXT.multiply(_CONTEXT.create_decimal(number), factor)
    if sign == "-" and value != 0:
        raise UnitError(f"is negative; {example}")
    if value > kind.value.maximum:
        raise UnitError(f"is far beyond any {kind.label} of this machine; {example}")
    return float(value)


def format_quantity(value: float, kind: Kind, unit: str | None = None, digits: int = 6) -> str:
    """`value` (SI units) as text in `unit` (the usual one if None), rounded to `digits` significant digits.

    A value that was read in that unit with no more digits than that is written back to the same number.
    """
    name = unit if unit is not None else kind.units[0]
    context = Context(prec=digits, rounding=ROUND_HALF_EVEN)
    scaled = context.divide(Decimal(repr(float(value))), kind.value.units[name])
    if not scaled.is_finite():
        return f"{scaled} {name}"
    plain = format(scaled, "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    if plain in ("", "-0"):
        plain = "0"
    return f"{plain} {name}"


def format_current(current_a: float, digits: int = 4) -> str:
    """Current in mA, or in µA up to 0.1 mA (research currents)."""
    small = 0.0 < abs(current_a) < 1.00005e-4
    return format_quantity(current_a, Kind.CURRENT, "µA" if small else "mA", digits)


def format_charge(charge_c: float, digits: int = 4) -> str:
    """Charge (dose) in mA·min, or in mC below 0.2 mA·min (research doses)."""
    small = 0.0 < abs(charge_c) < 0.012
    return format_quantity(charge_c, Kind.CHARGE, "mC" if small else "mA·min", digits)


def format_time(time_s: float, digits: int = 6) -> str:
    """Time in s."""
    return format_quantity(time_s, Kind.TIME, "s", digits)


def format_clock(time_s: float) -> str:
    """Time as minutes and seconds, `11:30`; hours in front from one hour on."""
    whole = round(time_s)
    hours, rest = divmod(whole, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_voltage(voltage_v: float, digits: int = 4) -> str:
    """Voltage in V."""
    return format_quantity(voltage_v, Kind.VOLTAGE, "V", digits)


def format_resistance(resistance_ohm: float, digits: int = 4) -> str:
    """Resistance in kΩ, or in Ω below 1 kΩ."""
    small = abs(resistance_ohm) < 999.95
    return format_quantity(resistance_ohm, Kind.RESISTANCE, "Ω" if small else "kΩ", digits)


def format_density(density_a_per_m2: float, digits: int = 4) -> str:
    """Current density in mA/cm²."""
    return format_quantity(density_a_per_m2, Kind.DENSITY, "mA/cm²", digits)


def format_area(area_m2: float, digits: int = 4) -> str:
    """Area in cm²."""
    return format_quantity(area_m2, Kind.AREA, "cm²", digits)
