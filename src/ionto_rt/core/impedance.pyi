from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def tone_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...

class ImpedanceEstimator:
    def __init__(
        self,
        *,
        tick_s: float,
        tone_a: float = 0.0,
        tone_period_ticks: int = 8,
        block_ticks: int = 200,
        electrode_emf_v: float = 0.5,
        nonlinearity: float = 0.25,
        voltage_noise_v: float = 0.0,
        current_noise_a: float = 0.0,
        open_ratio: float = 0.1,
        open_floor_a: float = 1e-6,
        open_voltage_v: float = 0.0,
        open_any_voltage: bool = False,
        open_ticks: int = 3,
        good_ticks: int = 3,
    ) -> None: ...
    def tone(self) -> float: ...
    def step(
        self, current_a: float, voltage_v: float, setpoint_a: float = ..., tone_on: bool = True
    ) -> dict[str, Any]: ...
    def run(
        self, current_a: ArrayLike, voltage_v: ArrayLike, setpoint_a: ArrayLike | None = None, tone_on: bool = True
    ) -> dict[str, Any]: ...
    @property
    def estimate(self) -> dict[str, Any]: ...
    @property
    def state_values(self) -> dict[str, Any]: ...
