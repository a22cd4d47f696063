from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def assign_tones(corners_hz: Iterable[float], *, tick_s: float, block_ticks: int = 0) -> list[tuple[int, int]]: ...

class ImpedanceEstimator:
    def __init__(
        self,
        *,
        tick_s: float,
        tone_a: float = 0.0,
        corner_hz: float = 200.0,
        retune_factor: float = 1.6,
        block_ticks: int = 0,
        bins: tuple[int, int] | None = None,
        current_between_samples: str = "held",
        output_time_s: float = 0.0,
        ballast_ohm: float = 0.0,
        skew_s: float = 0.0,
        electrode_emf_v: float = 0.5,
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
    def choose_tones(self, corner_hz: float) -> None: ...
    def follow(self, leader: ImpedanceEstimator) -> None: ...
    def model(self, series_ohm: float, parallel_ohm: float, capacitance_f: float, hz: float) -> complex: ...
    def step(
        self, current_a: float, voltage_v: float, setpoint_a: float = ..., tone_on: bool = True
    ) -> dict[str, Any]: ...
    def run(
        self, current_a: ArrayLike, voltage_v: ArrayLike, setpoint_a: ArrayLike | None = None, tone_on: bool = True
    ) -> dict[str, Any]: ...
    def fits(self, current_a: ArrayLike, voltage_v: ArrayLike) -> NDArray[np.float64]: ...
    @property
    def estimate(self) -> dict[str, Any]: ...
    @property
    def state_values(self) -> dict[str, Any]: ...
