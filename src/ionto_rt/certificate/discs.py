"""Discs in the complex plane, in arrays: what is known of a number is that it lies within `radius` of `centre`.

Sums, products and inverses of discs contain every sum, product and inverse of their members (Gargantini & Henrici,
Numer. Math. 18 (1972) 305). Rounding is not directed; who draws a conclusion leaves room for it.
"""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]


class Disc(NamedTuple):
    """Arrays that broadcast; a radius of NaN says that nothing is known."""

    centre: Complex | Array
    radius: Array

    def plus(self, other: Self) -> "Disc":
        return Disc(self.centre + other.centre, self.radius + other.radius)

    def minus(self, other: Self) -> "Disc":
        return Disc(self.centre - other.centre, self.radius + other.radius)

    def times(self, other: Self) -> "Disc":
        reach = np.abs(self.centre) * other.radius + np.abs(other.centre) * self.radius
        return Disc(self.centre * other.centre, reach + self.radius * other.radius)

    def negative(self) -> "Disc":
        return Disc(-self.centre, self.radius)

    def least(self) -> Array:
        """The least modulus; not above zero if the disc holds zero."""
        answer: Array = np.abs(self.centre) - self.radius
        return answer

    def most(self) -> Array:
        """The largest modulus."""
        answer: Array = np.abs(self.centre) + self.radius
        return answer

    def inverse(self) -> "Disc":
        """NaN where the disc holds zero."""
        room = np.abs(self.centre) ** 2 - self.radius**2
        room = np.where(room > 0.0, room, np.nan)
        return Disc(np.conj(self.centre) / room, self.radius / room)


def interval(low: Array, high: Array) -> Disc:
    """The disc around a real interval."""
    return Disc(0.5 * (low + high), 0.5 * (high - low))
