"""Rows of the guard that go by readings and echoes, injected at the device: H02, H03, H17, H20, H22, H34, H52."""

from pathlib import Path

import numpy as np
import pytest

from injection import session
from ionto_rt.codes import Action, Phase
from ionto_rt.session import Session
from responses import Response
from support import state_of

MOMENTS = (2.5, 4.5)
"""In ramp up and treatment of the short session."""


@pytest.mark.parametrize("at_s", [4.5, 4.555])
@pytest.mark.parametrize("factor", [1.093, 1.098])
def test_h02_current_above_the_setpoint_on_the_mean(
    tmp_path: Path, response: Response, factor: float, at_s: float
) -> None:
    """The output stage's gain is too high by less than H01 sees; a current source's regulator trims 3 % of it."""
    done = session(tmp_path, f"gain={factor}@{at_s}", uri="sim:")
    assert done.receipt["trips"] == ["OVER_CURRENT_MEAN"]
    response("H02", at_s, done.first("trip"))


@pytest.mark.parametrize("at_s", [4.5, 4.555])
def test_h03_current_below_the_setpoint(tmp_path: Path, response: Response, at_s: float) -> None:
    """The output stage gives 15 % too little, 12 % after the regulator's trim: paused, and tried again twice."""
    done = session(tmp_path, f"gain=0.85@{at_s}", hold="24 s", uri="sim:")
    response("H03", at_s, done.first("pause"))
    assert done.receipt["trips"] == []
    assert len(done.events("guard-pause")) == 3 and len(done.events("guard-pause-over")) == 2
    assert "[H47]" in done.receipt["reason"], "the third waits for the operator, whom an unattended session has not"


@pytest.mark.parametrize("options", ["", "front-end=voltage"])
def test_h17_polarity_in_the_contact_check(tmp_path: Path, response: Response, options: str) -> None:
    """Wires swapped inside the device: refused before a current of the treatment has flowed."""
    done = session(tmp_path, "polarity@0.1", options=options, uri="sim:")
    began = done.phase(Phase.CONTACT_CHECK)
    assert done.receipt["trips"] == ["POLARITY"]
    response("H17", began, done.first("trip"))
    assert np.abs(done.truth["current_peak_a"]).max() < 100e-6


@pytest.mark.parametrize("at_s", [2.5, 4.5, 6.3])
@pytest.mark.parametrize("fault", ["dac-told=40", "dac-told=0", "stuck-told"])
def test_h20_output_converter(tmp_path: Path, response: Response, fault: str, at_s: float) -> None:
    """The output takes another code than it is told, and the device reads that back."""
    done = session(tmp_path, f"{fault}@{at_s}", uri="sim:")
    assert done.receipt["trips"] == ["OUTPUT_MISMATCH"]
    # What the period shows that began at at_s is sampled at its end.
    response("H20", at_s, done.first("trip"))
    assert int(done.rows["action"][-1]) == Action.OFF


@pytest.mark.parametrize("at_s", MOMENTS)
@pytest.mark.parametrize("which", [1, 2, 3])
def test_h22_reading_stuck(tmp_path: Path, response: Response, which: int, at_s: float) -> None:
    done = session(tmp_path, f"adc-flat={which}@{at_s}", uri="sim:")
    assert done.receipt["trips"] == ["READING_STUCK"]
    response("H22", at_s, done.first("trip"))


@pytest.mark.parametrize("at_s", [4.5])
def test_h52_reversal(tmp_path: Path, response: Response, at_s: float) -> None:
    """The polarity in the tick's own memory turns over in mid-treatment."""
    turned: list[float] = []

    def turn(running: Session) -> None:
        state = state_of(running.channels[0].controller)
        state.config.programme.polarity = -state.config.programme.polarity
        turned.append(running.loop.counters["ticks"] * 1e-3)

    done = session(tmp_path, acts={at_s: turn}, uri="sim:", whole=False)
    assert done.receipt["trips"] == ["REVERSAL"]
    response("H52", turned[0], done.first("trip"))
