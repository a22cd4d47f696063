from typing import Any

import numpy as np
from numpy.typing import NDArray

def empty_ticks(n: int) -> NDArray[np.void]: ...

class Controller:
    def __init__(self, config: dict[str, Any], segments: list[dict[str, Any]]) -> None: ...
    def start(self) -> None: ...
    @property
    def capsule(self) -> object: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def segments(self) -> list[dict[str, Any]]: ...
    def step(
        self,
        sample: dict[str, int],
        *,
        host_late_us: int = 0,
        host_time_us: int = 0,
        heartbeat: int = 0,
        operator_sequence: int = 0,
        operator_command: int = 0,
        operator_value_a: float = 0.0,
        stop: int = 0,
    ) -> tuple[dict[str, Any], dict[str, int]]: ...
    def run(self, rows: NDArray[np.void]) -> NDArray[np.void]: ...
    @property
    def stages(self) -> dict[str, dict[str, Any]]: ...
