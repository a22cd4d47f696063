"""What the operator does, or leaves undone."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from injection import session
from ionto_rt.session import Session
from responses import Response
from support import TICK_S

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize("at_s", [0.3, 0.9, 2.5, 4.5, 6.3])
@pytest.mark.virtual_clock
def test_h56_operator_stop(tmp_path: Path, response: Response, at_s: float) -> None:
    """In each phase, from the orchestrator's visit on."""
    done = session(tmp_path, acts={at_s: Session.stop_now}, uri="sim:")
    assert done.receipt["trips"] == ["OPERATOR_STOP"]
    response("H56", at_s, done.first("trip"), through="API")
    assert done.truth.current_after(at_s + 0.02) == 0.0


@pytest.mark.parametrize("speed", ["max", "real"])
def test_h56_operator_stop_by_a_second_interrupt(tmp_path: Path, response: Response, speed: str) -> None:
    injected: list[float] = []

    def interrupt(running: Session) -> None:
        injected.append(running.loop.counters["ticks"] * TICK_S)
        os.kill(os.getpid(), signal.SIGINT)

    done = session(tmp_path, acts={4.5: interrupt, 4.8: interrupt}, speed=speed)  # type: ignore[arg-type]
    assert done.receipt["trips"] == ["OPERATOR_STOP"]
    response("H56", injected[1], done.first("trip"), through="signal", real_time=speed == "real")
    assert np.abs(done.rows["setpoint_a"])[round(injected[1] / TICK_S) - 1] > 1e-3, "it was ramping down"
    assert done.truth.current_after(done.off(after_s=injected[1])) == 0.0
