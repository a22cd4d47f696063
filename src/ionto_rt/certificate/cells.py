"""Stability between the points of a grid: a proof over whole cells of loads, mismatches and frequencies.

A loop whose load and model change continuously becomes unstable only by way of a root on the unit circle, that is, of a
frequency at which its transfer function L is -1. So one stable member, and no such frequency anywhere in a connected
set, prove the whole set (zero exclusion; J. Ackermann, Robust Control, Springer 1993). Here F = ln(-L) is enclosed over
cells, boxes in the logarithms of frequency and parameters: its value at the centre, plus the gradient there times the
half widths, plus a bound on how far the gradient strays from that within the cell (mean value theorem). L is -1 where F
is a multiple of 2 pi j; a cell for which this cannot be excluded is halved. docs/control.md, section 7.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ionto_rt.certificate.discs import Array, Complex

CELLS_MAX = 3_000_000
"""Cells that one problem may visit; what is left then counts as not proven."""
UNMODELLED = 0.03
"""Room left in every cell for a further factor between model and load: |ln| up to this, 3 % of gain or 1.7 degrees."""
_ROUNDING = 1e-9
"""Room for rounding: an enclosure is a sum of some hundred terms below 1e5, each right to 1e-16 of itself."""
_UNKNOWN = 1e6
_CHUNK = 1 << 13


class Enclosure(NamedTuple):
    """F over cells: `value` at their centres, shape (cells,), and the gradient's discs, (coordinates, cells)."""

    value: Complex
    gradient: Complex
    radius: Array
    slack: float = 0.0
    """By how much F itself may be off everywhere."""
    least: Array | None = None
    """A lower bound of |L| over the cell: where L has a pole, F is infinite and says nothing."""


class Problem(Protocol):
    """A set of loops: `low` and `high` per coordinate, and F over cells within."""

    low: Array
    high: Array

    def enclose(self, centre: Array, half: Array) -> Enclosure:
        """F over the cells centre +- half, both (coordinates, cells). NaN in `radius` where nothing is known."""

    def outside(self, centre: Array, half: Array) -> npt.NDArray[np.bool_]:
        """Cells that hold no loop of the set."""


class Exclusion(NamedTuple):
    """How far a proof came: the share of the volume, in logarithms of all coordinates, and the cells visited."""

    proven: float
    cells: int


def exclude(problem: Problem, room: float = UNMODELLED, cells_max: int = CELLS_MAX) -> Exclusion:
    """Prove that no loop of `problem` has its transfer function at -1, nor within `room` of it (of ln(-L))."""
    wide = problem.high > problem.low
    width = np.where(wide, problem.high - problem.low, 1.0)
    # Blocks of cells, centres above half widths: (2, coordinates, cells).
    left = [np.stack([0.5 * (problem.low + problem.high), 0.5 * (problem.high - problem.low)])[:, :, None]]
    proven, cells = 0.0, 0
    while left and cells < cells_max:
        block = left.pop()
        while left and block.shape[2] + left[-1].shape[2] <= _CHUNK:
            block = np.concatenate([block, left.pop()], axis=2)
        centre, half = block
        cells += block.shape[2]
        with np.errstate(all="ignore"):
            enclosure = problem.enclose(centre, half)
            done = _excluded(enclosure, half, room) | problem.outside(centre, half)
            if enclosure.least is not None:
                done |= enclosure.least > np.exp(room + _ROUNDING)
        volume = np.where(wide[:, None], 2.0 * half / width[:, None], 1.0).prod(axis=0)
        proven += float(volume[done].sum())
        if done.all():
            continue
        # Where a slope is not known at all, its coordinate goes first.
        slopes = (np.abs(enclosure.gradient) + 2.0 * enclosure.radius)[:, ~done]
        centre, half = centre[:, ~done], half[:, ~done]
        widest, index = (
            (np.where(np.isfinite(slopes), slopes, _UNKNOWN) * half).argmax(axis=0),
            np.arange(half.shape[1]),
        )
        half[widest, index] *= 0.5
        step = np.zeros_like(half)
        step[widest, index] = half[widest, index]
        left += [np.stack([centre - step, half]), np.stack([centre + step, half])]
    return Exclusion(1.0 if not left else min(proven, 1.0 - 1e-12), cells)


def _excluded(enclosure: Enclosure, half: Array, room: float) -> npt.NDArray[np.bool_]:
    """Cells whose enclosure holds no multiple of 2 pi j: some direction separates them."""
    value = enclosure.value.real + 1j * (np.remainder(enclosure.value.imag + np.pi, 2.0 * np.pi) - np.pi)
    sides = enclosure.gradient * half
    rest = (enclosure.radius * half).sum(axis=0) * (1.0 + _ROUNDING) + _ROUNDING + enclosure.slack + room
    answer: npt.NDArray[np.bool_] = np.abs(value.real) > np.abs(sides.real).sum(axis=0) + rest
    # Smaller than pi, so that of all multiples zero alone is near.
    small = np.abs(sides).sum(axis=0) + rest < np.pi
    for normal in (value, np.array(1j), *(1j * sides)):
        unit = np.conj(normal / np.abs(normal))
        answer |= small & (np.abs((unit * value).real) > np.abs((unit * sides).real).sum(axis=0) + rest)
    return answer
