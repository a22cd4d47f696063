"""The current that flows: too much of it, or too little voltage for it."""

from pathlib import Path

import numpy as np
import pytest

from injection import device_time_s, session
from ionto_rt.codes import Action, Phase
from responses import Response


@pytest.mark.parametrize("leak_ohm", [2000, 4000])
@pytest.mark.parametrize("at_s", [3.0, 5.0, 6.5])
def test_h01_over_current(tmp_path: Path, response: Response, leak_ohm: int, at_s: float) -> None:
    """A bridge under a voltage source, in ramp up, treatment and ramp down: the current leaps, and the second sample
    of it is answered by nothing."""
    done = session(tmp_path, f"leak={leak_ohm}@{at_s}", options="front-end=voltage")
    assert done.receipt["trips"] == ["OVER_CURRENT"]
    response("H01", at_s, done.first("trip"))
    assert done.truth.current_after(at_s + 0.02) == 0.0


@pytest.mark.parametrize("compliance_v", [10, 14])
@pytest.mark.parametrize("at_s", [2.5, 4.5])
def test_h04_compliance_limit_derates(tmp_path: Path, response: Response, compliance_v: int, at_s: float) -> None:
    """Most of the pad loses its contact at once, and the source has too little voltage for what is left."""
    done = session(tmp_path, f"area=0.05@{at_s}", options=f"compliance={compliance_v}")
    response("H04", at_s, done.first("limited", after_s=at_s))
    assert np.abs(done.rows["voltage_v"]).max() <= 1.01 * compliance_v
    assert not done.receipt["trips"]


@pytest.mark.parametrize("compliance_v", [7.5, 8.0])
def test_h33_no_wind_up(tmp_path: Path, response: Response, compliance_v: float) -> None:
    """Seconds at the limit of the voltage, until the skin lets the current through."""
    done = session(
        tmp_path, current="2 mA", hold="40 s", ramp="2.5 s", options=f"compliance={compliance_v}&onset-scale=3"
    )
    rows = done.rows
    limited = rows["limited"] != 0
    assert limited.sum() > 500 and not limited[-3000:].any(), "it was derated for long, and no longer at the end"
    free = rows["phase"] == Phase.TREATMENT
    level_a = np.abs(rows["prescribed_a"][free]).max()
    response.bound("H33", float(np.abs(done.truth["current_peak_a"]).max()) / level_a)


@pytest.mark.parametrize("value_a", [5e-4, 1.0])
def test_h35_setpoint_step(tmp_path: Path, response: Response, value_a: float) -> None:
    """A trim that asks for a jump: the level goes up from the next tick on, by the ramp's rate and to the limit."""
    done = session(
        tmp_path, current="2 mA", hold="12 s", acts={5.0: lambda running: running.trim(value_a)}, attended=True
    )
    (asked,) = done.events("operator")
    asked_s = (asked["tick"] + 1) * 1e-3
    level_a = np.abs(done.rows["level_a"])
    rise_a = np.diff(level_a)
    changed = np.flatnonzero(rise_a > 0.0)
    after = changed[device_time_s(done.rows)[changed + 1] >= asked_s]
    response("H35", asked_s, float(device_time_s(done.rows)[after[0] + 1]), through="API")
    assert rise_a.max() <= 0.8e-6 * 1.000001, "the drug's ramp limit is 0.8 mA/s"
    assert level_a.max() <= 4e-3
    assert done.receipt["trips"] == []


@pytest.mark.parametrize("rate", ["1 s", "2 s"])
def test_h35_a_steeper_ramp_is_refused(tmp_path: Path, response: Response, rate: str) -> None:
    from cli_support import Truth, ionto, treatment

    path = treatment(tmp_path, current="2 mA", hold="8 s", ramp=rate)
    uri = f"virtual:?truth={tmp_path / 'truth.csv'}"
    done = ionto("run", path, "--device", uri, "--speed", "max", cwd=tmp_path)
    assert "steeper" in done.refusal
    assert not (tmp_path / "truth.csv").exists() or not Truth(tmp_path / "truth.csv")["current_peak_a"].any()


def test_h55_device_cap(tmp_path: Path, response: Response) -> None:
    """A hard short under a voltage source: beyond the device's cap within a period, before any answer of the host."""
    done = session(tmp_path, "leak=20@4.5", options="front-end=voltage")
    assert done.receipt["trips"] == ["DEVICE_CAP"]
    response("H55", 4.5, done.off(after_s=4.5))
    (trip,) = done.events("trip")
    assert trip["action"] == Action.OFF.name and "over current" in trip["title"]
