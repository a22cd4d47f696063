from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

class Trial:
    def __init__(
        self,
        *,
        front_end: str,
        series_ohm: float,
        parallel_ohm: float,
        capacitance_f: float,
        tick_s: float,
        delay_ticks: int,
        setpoint_a: float,
        full_scale_a: float,
        compliance_v: float = 80.0,
        ballast_ohm: float = 0.0,
        noise_lsb: float = 1.0,
        hum_lsb: float = 2.0,
        emf_v: float = 0.0,
        gain_error: float = 0.0,
        offset_ratio: float = 0.0,
        bandwidth_hz: float = 2236.0,
        told_ticks: int = 0,
        output_bits: int = 16,
        seed: int = 1,
        options: dict[str, Any] | None = None,
        probe_options: dict[str, Any] | None = None,
    ) -> None: ...
    def run(self, setpoint_a: ArrayLike, tone_a: ArrayLike | None = None) -> NDArray[np.float64]: ...
    def probe(self, most_ticks: int = 20000) -> tuple[str, int, float]: ...
    def assume(self, model: dict[str, Any]) -> None: ...
    def load(self, *, series: float = 1.0, parallel: float = 1.0, capacitance: float = 1.0) -> None: ...
    def open(self) -> None: ...
    def close(self) -> None: ...
    def limit(self, compliance_v: float) -> None: ...
    @property
    def identified(self) -> dict[str, Any]: ...
    @property
    def regulator(self) -> dict[str, Any]: ...
    @property
    def plant(self) -> tuple[float, float, float]: ...
