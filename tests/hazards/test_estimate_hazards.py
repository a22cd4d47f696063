"""What the estimates of skin and pads tell: never the only stop, but the only thing that sees these."""

from pathlib import Path

import numpy as np
import pytest

from injection import device_time_s, session
from ionto_rt.codes import Advice
from ionto_rt.core.skin import Skin
from ionto_rt.hazards import threshold
from ionto_rt.session import Session
from responses import Response


def test_h10_pad_drying(tmp_path: Path, response: Response) -> None:
    """From the moment at which the whole series resistance, leads and body too, has grown by what the row says: the
    device dries out the pad alone, which is 50 ohm of it."""
    percent_a_minute = 3000.0
    skin = Skin("typical")
    pad_ohm = skin.series_ohm_cm2 / 8.0
    grown_s = (threshold("H10", "drying_ratio") - 1.0) * skin.series_ohm / (pad_ohm * percent_a_minute / 6000.0)
    done = session(tmp_path, f"dry={percent_a_minute:g}@10", hold="40 s", options="rate=5000", uri="sim:")
    shown_s = done.first("advice", int(Advice.WET_PADS))
    response("H10", 10.0 + grown_s, shown_s)
    assert done.receipt["trips"] == [] and not done.rows["pause"].any()


@pytest.mark.parametrize(("front_end", "rate", "current", "ramp"), [
    ("current", 1000, "100 uA", "1 s"),
    ("current", 1000, "2 mA", "2.5 s"),
    ("current", 1000, "4 mA", "5 s"),
    ("current", 500, "1 mA", "2 s"),
    ("current", 10000, "1 mA", "2 s"),
    ("voltage", 5000, "300 uA", "1 s"),
])  # fmt: skip
@pytest.mark.parametrize("factor", [20, 50])
@pytest.mark.parametrize("at_s", [9.05, 9.5])
def test_h11_skin_breakdown(
    tmp_path: Path, response: Response, at_s: float, factor: int, front_end: str, rate: int, current: str, ramp: str
) -> None:
    """Whether or not the rate of samples shows Rs."""
    done = session(
        tmp_path, f"breakdown={factor}@{at_s}", current=current, ramp=ramp, hold="11 s", uri="sim:", whole=False,
        options=f"rate={rate}&front-end={front_end}",
    )  # fmt: skip
    response("H11", at_s, done.first("pause"))
    assert "[H11]" in done.receipt["reason"]


@pytest.mark.parametrize(("percent_a_s", "rate"), [(6, 1000), (4.5, 5000)])
def test_h12_resistance_rising(tmp_path: Path, response: Response, percent_a_s: float, rate: int) -> None:
    """From when it has risen for the five seconds that a slope is judged over, less what it may take to respond."""
    done = session(tmp_path, f"rising={percent_a_s}@12", hold="30 s", uri="sim:", options=f"rate={rate}")
    response("H12", 12.0 + 2.0, done.first("trip"))
    assert done.receipt["trips"] == ["RESISTANCE_RISING"]


def test_h12_elements_that_rise_need_not_be_a_resistance_that_does(tmp_path: Path) -> None:
    """Each element of the skin by 3 % a second: it bends, and the true V/I rises by less than the row's 2 %."""
    done = session(tmp_path, "rising=3@12", hold="18 s", uri="sim:")
    time_s = done.truth["device_time_s"]
    true_ohm = done.truth["voltage_v"] / np.where(done.truth["current_a"] == 0.0, 1.0, done.truth["current_a"])
    mean_ohm = [float(true_ohm[(time_s > at) & (time_s <= at + 1.0)].mean()) for at in (12.0, 17.0)]
    assert mean_ohm[0] < mean_ohm[1] < 1.1 * mean_ohm[0]
    assert done.receipt["trips"] == []


@pytest.mark.parametrize("hum_mv", [600, 2000])
def test_h41_interference(tmp_path: Path, response: Response, hum_mv: int) -> None:
    """600 mV are 5.4 % rms of the 7.8 V that there are by then. (500 mV are 4.5 %: no response until the voltage has
    fallen to 7.07 V.)"""
    done = session(tmp_path, f"hum={hum_mv}@5", hold="9 s")
    volts = np.abs(done.rows["voltage_v"][4500:5000]).mean()
    assert 1e-3 * hum_mv * 0.5**0.5 > 1.02 * threshold("H41", "pause_ratio") * volts
    response("H41", 5.0, done.first("pause"))


def test_h48_another_pad(tmp_path: Path, response: Response) -> None:
    """In a pause the pad is changed for one of a fifth of the area, at 5 kHz, where C is seen. From the resume's first
    current."""
    done = session(
        tmp_path,
        "area=0.2@10",
        hold="16 s",
        options="rate=5000",
        uri="sim:",
        acts={8.0: Session.pause, 11.0: Session.resume, 15.0: Session.stop},
        attended=True,
    )
    resumed_s = done.first("level_a", after_s=11.0)
    response("H48", resumed_s, done.first("pause", after_s=resumed_s))


def test_h43_electrode_spent(tmp_path: Path, response: Response) -> None:
    """A potential that steps up by 1.2 V within ten seconds; from the moment at which it is 0.8 V."""
    done = session(tmp_path, "redox=10@10", hold="40 s", options="rate=5000")
    response("H43", 10.0 + 10.0 * 0.8 / 1.2, done.first("trip"))
    assert done.receipt["trips"] == ["ELECTRODE_SPENT"]
    assert len(device_time_s(done.rows))
