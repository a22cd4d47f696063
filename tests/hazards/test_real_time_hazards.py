"""Hazards in real time, by the device's clock, on whatever host this is: the limits are those of an unfit one.

The response starts when the answer to its sample is worked out: at the sample's time plus its age.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from injection import device_time_s, session
from responses import Response

pytestmark = pytest.mark.real_time


def in_real_time(
    hazard: str, *faults: str, at_s: float, kind: str = "trip", options: str = "", current: str = "2 mA"
) -> Callable[..., None]:
    """A test that injects the faults in real time, of which the last comes at `at_s`, and waits for a trip or pause."""

    def test(tmp_path: Path, response: Response) -> None:
        done = session(tmp_path, *faults, options=options, current=current, hold="6 s", speed="real")
        rows = done.rows
        shown = np.flatnonzero((rows[kind] != 0) & (device_time_s(rows) > at_s))
        assert f"[{hazard}]" in " ".join(done.receipt["alarms"]), done.receipt["reason"]
        assert len(shown), done.receipt["reason"]
        row = int(shown[0])
        responded_s = float(device_time_s(rows)[row]) + float(rows["host_late_us"][row]) * 1e-6
        response(hazard, at_s, responded_s, real_time=True)

    return test


test_h01_over_current_in_real_time = in_real_time("H01", "leak=2000@4", at_s=4.0, options="front-end=voltage")
test_h04_compliance_limit_in_real_time = in_real_time(
    "H04", "area=0.05@4", at_s=4.0, kind="limited", options="compliance=10"
)
test_h05_open_lead_in_real_time = in_real_time("H05", "open@4", at_s=4.0)
test_h07_intermittent_lead_in_real_time = in_real_time(
    "H07", *(line for k in (4.1, 4.2, 4.3, 4.4) for line in (f"open@{k}", f"close@{k + 0.002:.3f}")), at_s=4.4
)
test_h08_short_in_real_time = in_real_time("H08", "short@4", at_s=4.0)
test_h23_readings_disagree_in_real_time = in_real_time("H23", "adc-gain=0.94@4.5", at_s=4.5)
test_h24_lost_samples_in_real_time = in_real_time("H24", "stall@4+0.005", at_s=4.0, kind="pause")
test_h55_device_cap_in_real_time = in_real_time("H55", "leak=20@5.5", at_s=5.5, options="front-end=voltage")
