"""Leads, pads and skin: injected at the virtual skin, seen through the port of a session."""

from pathlib import Path

import pytest

from injection import Injected, session
from ionto_rt.codes import Phase
from responses import Response

RAMP_UP_S, TREATMENT_S, RAMP_DOWN_S = 2.5, 4.5, 6.3
"""Of the short session: moments well inside each phase."""
MOMENTS = {
    "ramp up": (RAMP_UP_S, Phase.RAMP_UP),
    "treatment": (TREATMENT_S, Phase.TREATMENT),
    "ramp down": (RAMP_DOWN_S, Phase.RAMP_DOWN),
}


def in_its_phase(moment: str, done: Injected) -> float:
    """The time of the moment; that it was in the phase which it stands for."""
    at_s, phase = MOMENTS[moment]
    rows = done.rows
    assert rows["phase"][round(at_s * 1e3) - 1] == phase
    return at_s


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("front_end", ["current", "voltage"])
def test_h05_open_lead(tmp_path: Path, response: Response, moment: str, front_end: str) -> None:
    at_s, _ = MOMENTS[moment]
    done = session(tmp_path, f"open@{at_s}", options=f"front-end={front_end}")
    in_its_phase(moment, done)
    assert (done.receipt["outcome"], done.receipt["trips"]) == ("faulted", ["OPEN_LEAD"])
    response("H05", at_s, done.first("trip"))
    assert done.truth.current_after(at_s + 0.03) == 0.0


def test_h05_open_lead_before_the_start(tmp_path: Path, response: Response) -> None:
    """Nothing but what the probe tries flows, and the contact check says that there is no contact."""
    done = session(tmp_path, "open@0.2")
    assert (done.receipt["outcome"], done.receipt["trips"]) == ("aborted", [])
    assert "no contact" in done.receipt["reason"]
    assert Phase.RAMP_UP not in done.rows["phase"]
    assert abs(done.receipt["dose_device_mamin"]) < 1e-4


@pytest.mark.parametrize(
    ("moment", "open_s"), [("ramp up", 0.001), ("ramp up", 0.003), ("treatment", 0.001), ("treatment", 0.003)]
)
def test_h07_intermittent_lead(tmp_path: Path, response: Response, moment: str, open_s: float) -> None:
    """The fourth opening within ten seconds; each of them is too short to be an open lead."""
    last_s, _ = MOMENTS[moment]
    starts = [round(last_s - 0.2 * k, 3) for k in (3, 2, 1, 0)]
    faults = [line for start in starts for line in (f"open@{start}", f"close@{round(start + open_s, 3)}")]
    done = session(tmp_path, *faults)
    assert done.receipt["trips"] == ["INTERMITTENT_LEAD"]
    response("H07", last_s, done.first("trip"))


@pytest.mark.parametrize("moment", ["ramp up", "treatment"])
def test_h08_short(tmp_path: Path, response: Response, moment: str) -> None:
    at_s, _ = MOMENTS[moment]
    done = session(tmp_path, f"short@{at_s}")
    in_its_phase(moment, done)
    assert (done.receipt["outcome"], done.receipt["trips"]) == ("faulted", ["SHORT"])
    assert not any("[H41]" in alarm for alarm in done.receipt["alarms"]), "the fall of the current is no mains"
    response("H08", at_s, done.first("trip"))


def test_h08_short_before_the_start(tmp_path: Path) -> None:
    done = session(tmp_path, "short@0.2")
    assert (done.receipt["outcome"], done.receipt["trips"]) == ("aborted", [])
    assert "shorted" in done.receipt["reason"]
    assert Phase.RAMP_UP not in done.rows["phase"]


@pytest.mark.parametrize("share", [0.3, 0.45, 0.65])
def test_h09_contact_area(tmp_path: Path, response: Response, share: float) -> None:
    """At 5 kHz, where conditioned skin is seen: at 1 kHz its corner lies beyond the tones (docs/estimator.md)."""
    done = session(tmp_path, f"area={share}@10", hold="11 s", options="rate=5000")
    responded_s = min(done.first(kind) for kind in ("pause", "trip") if done.rows[kind].any())
    response("H09", 10.0, responded_s)
    assert "[H09]" in done.receipt["reason"]
