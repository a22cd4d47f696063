"""How well a session held its setpoint: what no box on the market publishes."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt.codes import Phase

SETTLE_TICKS = 20
"""After a change of level: the loop's delay, and the decay of its error to nothing."""


class Accuracy:
    """Mean error and ripple over the samples at which the level has stood for SETTLE_TICKS, chunk by chunk.

    Tones count as ripple: they flow through the skin.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._level_c = 0.0
        self._current_c = 0.0
        self._square = 0.0
        self._stood = 0
        self._last_a = 0.0

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Rows of telemetry, shape (n,), in their order."""
        if len(rows) == 0:
            return
        level = rows["level_a"]
        changed = np.diff(level, prepend=self._last_a) != 0.0
        at = np.arange(1, len(rows) + 1)
        since = at - np.maximum.accumulate(np.where(changed, at, -self._stood))
        self._last_a, self._stood = float(level[-1]), int(since[-1])
        steady = (since >= SETTLE_TICKS) & (rows["phase"] == Phase.TREATMENT)
        steady &= (level != 0.0) & (rows["sample_fault"] == 0)
        held, current = level[steady], rows["current_a"][steady]
        if not held.size:
            return
        self.samples += held.size
        self._level_c += float(held.sum())
        self._current_c += float(current.sum())
        self._square += float((((current - held) / held) ** 2).sum())

    @property
    def mean_error_ratio(self) -> float | None:
        """(mean current - mean setpoint) / mean setpoint; None before the first sample."""
        return self._current_c / self._level_c - 1.0 if self.samples else None

    @property
    def ripple_rms_ratio(self) -> float | None:
        """Root mean square of (current - setpoint) / setpoint; None before the first sample."""
        return float(np.sqrt(self._square / self.samples)) if self.samples else None
