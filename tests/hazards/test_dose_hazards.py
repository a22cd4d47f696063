"""Charge and time: neither is passed, whatever the session goes through, and both are counted twice."""

from pathlib import Path

import numpy as np
import pytest

from injection import session
from ionto_rt.codes import Trip
from ionto_rt.hazards import threshold
from ionto_rt.safety import OperatorLimits
from ionto_rt.session import Session
from responses import Response
from support import TICK_S, Rig, changed, endless, planned

DOSE = '[[steps]]\ncurrent = "1.5 mA"\ndose = "0.08 mA*min"\nramp = "2 s"\n'
DOSE_C = 0.08 * 0.06


@pytest.mark.parametrize(
    ("faults", "acts"),
    [
        ((), {}),
        (("open@3", "close@3.003"), {}),
        ((), {3.0: Session.pause, 7.0: Session.resume}),
        ((), {3.0: lambda running: running.trim(5e-4)}),
    ],
    ids=["undisturbed", "contact lost", "paused", "trimmed"],
)
def test_h14_dose_is_never_passed(tmp_path: Path, response: Response, faults: tuple[str, ...], acts: object) -> None:
    """By the truth: what the converters' gains are off by is within the bound."""
    done = session(tmp_path, *faults, steps=DOSE, acts=acts, attended=True)  # type: ignore[arg-type]
    assert done.receipt["outcome"] == "complete"
    assert done.receipt["dose_ledger_mamin"] <= 0.08 + 1.5 * TICK_S / 60.0
    response.bound("H14", -float(done.truth["charge_c"][-1]) / DOSE_C)


def test_h15_charge_cap(tmp_path: Path, response: Response) -> None:
    """A current that swings about zero in a pause: no dose, but absolute charge. The cap holds for that one."""
    done = session(
        tmp_path,
        steps='[[steps]]\ncurrent = "0.5 mA"\ndose = "0.015 mA*min"\nramp = "0.7 s"\n',
        options="noise=100",
        operator=OperatorLimits(dose_c=0.015 * 0.06),
        acts={2.5: Session.pause},
        attended=True,
    )
    assert done.receipt["trips"] == ["CHARGE_CAP"]
    rows = done.rows
    cap_codes = next(row["guard"] for row in limits_of(done.record_path) if row["quantity"] == "dose") / code_c(
        done.record_path
    )
    passed = int(np.flatnonzero(rows["absolute_codes"] > cap_codes)[0])
    response("H15", float(rows["device_time_us"][passed]) * 1e-6, done.first("trip"))


def limits_of(record_path: Path) -> list[dict[str, object]]:
    from ionto_rt.record import Record

    return list(Record.open(record_path).session["channels"][0]["limits"])


def code_c(record_path: Path) -> float:
    """Charge of 1/65536 code."""
    from ionto_rt.record import Record

    calibration = Record.open(record_path).session["channels"][0]["controller"]["calibration"]
    return float(calibration["current_lsb_a"] * calibration["tick_s"] / 65536.0)


@pytest.mark.parametrize("paused_s", [2.0, 4.5])
def test_h16_session_time(tmp_path: Path, response: Response, paused_s: float) -> None:
    """A pause that nobody ends, in a session of at most ten seconds."""
    done = session(tmp_path, operator=OperatorLimits(time_s=10.0), acts={paused_s: Session.pause}, attended=True)
    assert done.receipt["trips"] == ["SESSION_TIME"]
    response("H16", threshold("H16", "time_ratio") * 10.0 + threshold("H16", "time_margin_s"), done.first("trip"))


@pytest.mark.parametrize("sign", [1, -1])
def test_h57_charge_mismatch(response: Response, sign: int) -> None:
    """A device whose count leaps away from the host's."""
    config, _ = planned()
    made = Rig(changed(config, programme={"polarity": 1.0}, impedance={"tone_a": 0.0}), endless(2e-3))
    made.run(100)
    jump = made.guard["charge_mismatch_codes"] + 65536
    made.charge_codes += sign * jump
    began_s = (made.index + 1) * TICK_S
    made.until(lambda row: row["trip"] == Trip.CHARGE_MISMATCH, 1000)
    response("H57", began_s, (made.index + 1) * TICK_S, through="samples")
    assert made.trips() == [Trip.CHARGE_MISMATCH]
