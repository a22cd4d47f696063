from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

class ContactArea:
    def __init__(
        self,
        *,
        site_share: float = 1.0,
        series_share: float = 0.1,
        series_spread: float = 0.1,
        noise_floor: float = 0.02,
        sigma_most: float = 0.15,
        step: float = 0.16,
        blocks_to_false_alarm: float = 1.08e6,
        baseline_blocks: float = 100.0,
        moving_blocks: float = 3.0,
        moving_ratio: float = 0.003,
        start_blocks: int = 10,
        moving_hold_blocks: int = 10,
    ) -> None: ...
    def step(self, fit: dict[str, Any], tone: int = 0, current_a: float = 0.0) -> dict[str, Any]: ...
    def run(self, fits: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int32]]: ...
    def reset(self) -> None: ...
    @property
    def state_values(self) -> dict[str, Any]: ...
