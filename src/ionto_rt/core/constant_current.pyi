from typing import Any

PROBE_MOST_A: float
PROBE_RATIO: float
SETPOINT_POLE: float
TRACKING_POLE: float
INTEGRAL_SHARE: float
TRIM_RATIO: float
TRIM_FLOOR_RATIO: float
PARALLEL_RATIO_MOST: float
SERIES_LEAST_OHM: float
SHORT_OHM: float
OPEN_OHM: float
RECONTACT_RATIO: float
JUMP_RATIO: float
RESCALE_MOST: float
PROBE_LEAST_S: float
PROBE_LEAST_PERIODS: int
PROBE_MOST_S: float
SCHEDULE_RATIO: float
SCHEDULE_S: float
VERDICTS: dict[int, str]

def probe_periods(tick_s: float) -> int: ...
def nominal_probe_ticks(tick_s: float) -> int: ...
def configure(
    *,
    front_end: str,
    tick_s: float,
    full_scale_a: float,
    compliance_v: float,
    current_lsb_a: float,
    output_lsb: float,
    output_min: float,
    output_max: float,
    delay_ticks: int,
    ballast_ohm: float = 0.0,
    probe_a: float = ...,
) -> dict[str, dict[str, Any]]: ...

class ConstantCurrentRegulator:
    def __init__(
        self,
        *,
        front_end: str,
        tick_s: float,
        full_scale_a: float,
        compliance_v: float,
        current_lsb_a: float = 0.0,
        output_lsb: float = 0.0,
        output_min: float = ...,
        output_max: float = ...,
        delay_ticks: int = 2,
        ballast_ohm: float = 0.0,
        setpoint_pole: float = ...,
        tracking_pole: float = ...,
        slew_per_tick: float = 0.0,
    ) -> None: ...
    def step(self, setpoint_a: float, measured_a: float, voltage_v: float = 0.0, tone_a: float = 0.0) -> float: ...
    def manual(self, output: float) -> None: ...
    def automatic(self) -> None: ...
    @property
    def verdict(self) -> str: ...
    @property
    def identified(self) -> dict[str, Any]: ...
    @property
    def contact_lost(self) -> bool: ...
    @property
    def terms(self) -> dict[str, Any]: ...
    @property
    def fault(self) -> bool: ...
    @property
    def state_values(self) -> dict[str, Any]: ...
