"""What the estimates of skin and pads tell: never the only stop, but the only thing that sees these."""

from pathlib import Path

import numpy as np
import pytest

from injection import device_time_s, session
from ionto_rt.session import Session
from responses import Response


@pytest.mark.parametrize("open_s", [0.001, 0.002, 0.003])
@pytest.mark.parametrize("at_s", [2.5, 4.5])
@pytest.mark.parametrize("front_end", ["current", "voltage"])
def test_h06_contact_that_comes_back(
    tmp_path: Path, response: Response, open_s: float, at_s: float, front_end: str
) -> None:
    """From the re-contact to the end of the ramp that follows, by the truth of each sample period."""
    back_s = round(at_s + open_s, 4)
    done = session(
        tmp_path, f"open@{at_s}", f"close@{back_s}", hold="8 s", options=f"front-end={front_end}"
    )
    assert done.receipt["trips"] == []
    level_a = np.abs(done.rows["level_a"])
    first = round(back_s * 1e3)
    peak_a = np.abs(done.truth["current_peak_a"])[first : first + 3000]
    ramp_a = np.maximum.accumulate(level_a[first : first + 3000])
    response.bound("H06", float((peak_a / ramp_a).max()))


@pytest.mark.parametrize("percent_a_minute", [60, 200])
def test_h10_pad_drying(tmp_path: Path, response: Response, percent_a_minute: int) -> None:
    """From the moment at which the series resistance has grown by what the row says."""
    done = session(tmp_path, f"dry={percent_a_minute}@10", hold="60 s", options="rate=5000")
    print(done.receipt["reason"], done.receipt["alarms"], done.receipt["trips"])
    alarms = [alarm for alarm in done.events("alarm") if "H10" in str(alarm)]
    assert alarms
    response("H10", 10.0 + 60.0 * 30.0 / percent_a_minute, (alarms[0]["tick"] + 1) * 2e-4)


@pytest.mark.parametrize("factor", [20, 50])
@pytest.mark.parametrize("at_s", [4.5, 6.05])
def test_h11_skin_breakdown(tmp_path: Path, response: Response, factor: int, at_s: float) -> None:
    done = session(tmp_path, f"breakdown={factor}@{at_s}", hold="9 s")
    response("H11", at_s, done.first("pause"))
    assert "[H11]" in done.receipt["reason"]


@pytest.mark.parametrize("percent_a_s", [3, 6])
def test_h12_resistance_rising(tmp_path: Path, response: Response, percent_a_s: int) -> None:
    done = session(tmp_path, f"rising={percent_a_s}@10", hold="25 s")
    response("H12", 10.0, done.first("trip"))
    assert done.receipt["trips"] == ["RESISTANCE_RISING"]


@pytest.mark.parametrize("hum_mv", [500, 2000])
def test_h41_interference(tmp_path: Path, response: Response, hum_mv: int) -> None:
    done = session(tmp_path, f"hum={hum_mv}@5", hold="9 s")
    response("H41", 5.0, done.first("pause"))


def test_h48_another_pad(tmp_path: Path, response: Response) -> None:
    """In a pause the pad is changed for one of a third of the area. From the resume's first current."""
    done = session(
        tmp_path,
        "area=0.2@8",
        hold="14 s",
        acts={5.0: Session.pause, 9.0: Session.resume},
        attended=True,
    )
    resumed_s = done.first("level_a", after_s=9.0)
    response("H48", resumed_s, done.first("pause", after_s=resumed_s))


def test_h43_electrode_spent(tmp_path: Path, response: Response) -> None:
    """A potential that steps up by 1.2 V within ten seconds; from the moment at which it is 0.8 V."""
    done = session(tmp_path, "redox=10@10", hold="40 s", options="rate=5000")
    response("H43", 10.0 + 10.0 * 0.8 / 1.2, done.first("trip"))
    assert done.receipt["trips"] == ["ELECTRODE_SPENT"]
    assert len(device_time_s(done.rows))
