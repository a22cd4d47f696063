"""More current than a pad's area is for."""

from pathlib import Path

import numpy as np
import pytest

from cli_support import HEAD, Truth, ionto
from injection import session
from ionto_rt.codes import Phase, Trip
from responses import Response
from support import LSB_A, TICK_S, Rig, changed, endless, planned


@pytest.mark.parametrize("area", ["6 cm^2", "7.9 cm^2"])
def test_h13_density_of_the_treatment(tmp_path: Path, response: Response, area: str) -> None:
    path, truth = tmp_path / "dense.toml", tmp_path / "truth.csv"
    path.write_text(HEAD.replace("8 cm^2", area) + '[[steps]]\ncurrent = "4 mA"\ntime = "20 s"\nramp = "8 s"\n')
    done = ionto("run", path, "--device", f"virtual:?truth={truth}", "--speed", "max", cwd=tmp_path)
    assert "mA/cm²" in done.refusal and f"{path}:" in done.refusal
    flowed = Truth(truth)["current_peak_a"] if truth.exists() else np.zeros(0)
    response.nothing_flowed("H13", float(np.abs(flowed).max(initial=0.0)))


@pytest.mark.parametrize("begun_ticks", [1000, 1037, 1099])
def test_h13_density(response: Response, begun_ticks: int) -> None:
    """The guard was told of a smaller pad than the programme was made for. From the first second's worth beyond it."""
    config, _ = planned()
    level_a = 2e-3
    made = Rig(
        changed(
            config,
            programme={"polarity": 1.0},
            impedance={"tone_a": 0.0},
            guard={"density_trip_a": 1.05 * level_a, "over_ratio": 2.0, "over_mean_ratio": 2.0},
        ),
        endless(level_a),
    )
    made.run(begun_ticks)
    assert not made.trips()
    began_s = (made.index + 1) * TICK_S
    code = round(1.2 * level_a / LSB_A)
    made.until(lambda row: row["trip"] != 0, 2000, current_code=code, redundant_code=code)
    assert made.trips() == [Trip.DENSITY]
    response("H13", began_s, (made.index + 1) * TICK_S, through="samples")


@pytest.mark.parametrize("act", ["nobody touches it", "resume is pressed while nothing is paused"])
def test_h13_the_cap_of_a_pad_that_has_lost_area_stays(tmp_path: Path, response: Response, act: str) -> None:
    """The level never rises again by itself: the lower current ends the test's alarm, and not its cause."""
    acts = {18.0: lambda running: running.resume()} if act.startswith("resume") else {}
    done = session(
        tmp_path, "area=0.74@14", current="4 mA", hold="30 s", ramp="6 s", uri="sim:", acts=acts, attended=True,
        options="rate=5000&active-area=8&return-area=25&seed=2",
    )  # fmt: skip
    rows = done.rows
    level_a, cap_a = np.abs(rows["level_a"]), rows["cap_a"]
    capped = int(np.flatnonzero(cap_a > 0.0)[0])
    treated = slice(capped, int(np.flatnonzero(rows["phase"] == Phase.RAMP_DOWN)[-1]) + 1)
    assert (cap_a[treated] > 0.0).all() and (np.diff(cap_a[treated]) <= 0.0).all()
    assert (level_a[treated][1:] <= cap_a[treated][:-1] + 1e-12).all()
    assert done.receipt["trips"] == []
    response.no_effect("H13", through="device")
