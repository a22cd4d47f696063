"""Rows of the guard that rest on the estimate, injected at the virtual skin: H11, H12, H41, H43."""

from pathlib import Path

import pytest

from injection import session
from responses import Response


def test_h11_skin_breakdown(tmp_path: Path, response: Response) -> None:
    """Twenty times as conductive at once, at 5 kHz, where Rs is known: paused until somebody has looked at it."""
    done = session(tmp_path, "breakdown=20@9", options="rate=5000", current="4 mA", ramp="5 s", hold="9 s", uri="sim:")
    assert done.receipt["trips"] == []
    response("H11", 9.0, done.first("pause", 11))
    assert "[H11]" in done.receipt["reason"]


def test_h12_resistance_rising(tmp_path: Path, response: Response) -> None:
    """From when it has risen for the five seconds that a slope is judged over."""
    done = session(tmp_path, "rising=6@12", hold="30 s", uri="sim:")
    assert done.receipt["trips"] == ["RESISTANCE_RISING"]
    response("H12", 12.0 + 2.0, done.first("trip"))


@pytest.mark.parametrize("mains_mv", [2000])
def test_h41_interference(tmp_path: Path, response: Response, mains_mv: int) -> None:
    """Two volts on a voltage of some: paused, and tried again twice."""
    done = session(tmp_path, f"hum={mains_mv}@5", hold="20 s", uri="sim:")
    response("H41", 5.0, done.first("pause", 41))


def test_h43_electrode_spent(tmp_path: Path, response: Response) -> None:
    done = session(tmp_path, "redox=10@20", options="rate=5000", current="4 mA", ramp="5 s", hold="60 s", uri="sim:")
    assert done.receipt["trips"] == ["ELECTRODE_SPENT"]
    # 1.2 V within 10 s: after two thirds of it the limit is passed.
    response("H43", 20.0 + 10.0 * 0.8 / 1.2, done.first("trip"))
