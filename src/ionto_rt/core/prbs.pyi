from typing import Any

from numpy.typing import ArrayLike

class PrbsEstimator:
    def __init__(
        self,
        *,
        tick_s: float,
        amplitude_a: float,
        pairs: int = 0,
        current_between_samples: str = "held",
        output_time_s: float = 0.0,
        ballast_ohm: float = 0.0,
        skew_s: float = 0.0,
        electrode_emf_v: float = 0.5,
        voltage_noise_v: float = 0.0,
        current_noise_a: float = 0.0,
    ) -> None: ...
    def excitation(self) -> float: ...
    def skip(self, ticks: int) -> None: ...
    def step(self, current_a: float, voltage_v: float) -> dict[str, Any]: ...
    def run(self, current_a: ArrayLike, voltage_v: ArrayLike) -> dict[str, Any]: ...
    @property
    def window_ticks(self) -> int: ...
    @property
    def estimate(self) -> dict[str, Any]: ...
    @property
    def state_values(self) -> dict[str, Any]: ...
