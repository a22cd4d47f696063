"""A load made of known parts: what the virtual device can carry instead of skin, and what a device is calibrated on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ionto_rt.units import Kind, UnitError, format_quantity, parse_quantity

LEAST_OHM, MOST_OHM = 10.0, 10e6
LEAST_F, MOST_F = 100e-12, 100e-6
WIRE_OHM, WIRE_F = 1e-9, 1.0
"""Parallel part of a load that has none: a resistance far below any reading, with a time constant of a nanosecond."""

_NUMBER = re.compile(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class DummyLoad:
    """series_ohm + (parallel_ohm || capacitance_f); a plain resistor has 0 for the latter two."""

    series_ohm: float
    parallel_ohm: float = 0.0
    capacitance_f: float = 0.0

    @classmethod
    def parse(cls, text: str) -> DummyLoad:
        """`1k`, `1 kohm`, `600,2k,240n` or `600 ohm, 2 kohm, 240 nF`: a resistor, or series, parallel, capacitor.

        Raises UnitError: another number of parts, a part that is no such quantity, or one outside 10 ohm to 10 Mohm
        and 100 pF to 100 uF.
        """
        parts = text.split(",")
        if len(parts) not in (1, 3):
            raise UnitError('must be one resistor or three parts; write it like "1k" or "600,2k,240n"')
        ohms = [_part(part, Kind.RESISTANCE, "ohm", "kM", LEAST_OHM, MOST_OHM) for part in parts[:2]]
        if len(parts) == 1:
            return cls(ohms[0])
        return cls(ohms[0], ohms[1], _part(parts[2], Kind.CAPACITANCE, "F", "pnuµ", LEAST_F, MOST_F))

    @property
    def resistor(self) -> bool:
        """Whether it has no capacitor."""
        return self.capacitance_f == 0.0

    @property
    def total_ohm(self) -> float:
        """Resistance at rest."""
        return self.series_ohm + self.parallel_ohm

    @property
    def elements(self) -> tuple[float, float, float]:
        """(series_ohm, parallel_ohm, capacitance_f) with a parallel part that does nothing for a resistor."""
        return (
            (self.series_ohm, WIRE_OHM, WIRE_F)
            if self.resistor
            else (
                self.series_ohm,
                self.parallel_ohm,
                self.capacitance_f,
            )
        )

    def __str__(self) -> str:
        ohms = [self.series_ohm] if self.resistor else [self.series_ohm, self.parallel_ohm]
        parts = [format_quantity(value, Kind.RESISTANCE, "ohm" if value < 1e3 else "kohm") for value in ohms]
        if not self.resistor:
            parts.append(format_quantity(self.capacitance_f, Kind.CAPACITANCE))
        return ", ".join(parts)


def _part(text: str, kind: Kind, unit: str, prefixes: str, least: float, most: float) -> float:
    """One part: a quantity, or a number with a prefix alone, which then is of the kind's unit."""
    bare = text.strip()
    number = bare.rstrip(prefixes)
    value = parse_quantity(bare + unit if _NUMBER.fullmatch(number) and len(bare) - len(number) < 2 else bare, kind)
    if not least <= value <= most:
        allowed = f"{format_quantity(least, kind)} to {format_quantity(most, kind)}"
        raise UnitError(f"{kind.label} {bare} is no part of a dummy load; use {allowed}")
    return value
