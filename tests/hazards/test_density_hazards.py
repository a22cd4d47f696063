"""More current than a pad's area is for."""

from pathlib import Path

import numpy as np
import pytest

from cli_support import HEAD, Truth, ionto
from ionto_rt.codes import Trip
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
