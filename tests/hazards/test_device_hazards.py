"""What only the device can see (supply, isolation, temperature, the patient's button, self-test), and what is asked of
both sides: its sample clock, and the heartbeat's challenge."""

from pathlib import Path

import numpy as np
import pytest

from injection import session
from ionto_rt.codes import Action, Phase
from ionto_rt.hazards import threshold
from ionto_rt.session import Session
from responses import Response

PHASES = {0.2: "self-test", 0.8: "contact check", 3.0: "ramp up", 5.0: "treatment", 6.5: "ramp down"}
"""Seconds of the session at which something is injected, and the phase that they lie in."""


@pytest.mark.parametrize("at_s", PHASES)
def test_h31_stuck_watchdog(tmp_path: Path, response: Response, at_s: float) -> None:
    """Something else than the orchestrator keeps the heartbeat going: it repeats, or counts, and has not read."""
    said = {}

    def beat_on(running: Session) -> None:
        answer = running.loop.answer

        class Beater:
            """The loop, with an answer that no challenge was read for."""

            def __getattr__(self, name: str) -> object:
                return getattr(loop, name)

            def answer(self, value: int) -> None:
                answer(value + 1 & 0xFFFFFFFF)

        loop = running.loop
        running.loop = Beater()  # type: ignore[assignment]
        said["at_s"] = running.loop.counters["ticks"] * 1e-3  # type: ignore[attr-defined]

    done = session(tmp_path, acts={at_s: beat_on}, uri="sim:")
    assert done.receipt["trips"] == ["WATCHDOG"]
    # The visit that is made wrong ends with its answer, which the next sample's tick reads.
    response("H31", said["at_s"], done.first("trip"), through="API")
    assert done.first("action", Action.OFF) == done.first("trip")
    assert done.truth.current_after(said["at_s"] + 0.1) == 0.0


def test_h20_a_device_that_keeps_no_leases_is_found_out(tmp_path: Path) -> None:
    """Nothing that the host says is heard for a while: an honest device lets go, this one drives on with what it had.
    It is told to stop before two leases are over, so that it stops as soon as it hears again."""
    done = session(tmp_path, "lease-stuck@1", "deaf=0.3@5")
    assert done.receipt["trips"] == ["OUTPUT_MISMATCH"]
    assert 5.16 < done.first("trip") < 5.17
    assert done.truth.current_after(5.305) == 0.0


@pytest.mark.parametrize("at_s", PHASES)
def test_h39_supply_low(tmp_path: Path, response: Response, at_s: float) -> None:
    done = session(tmp_path, f"supply-low@{at_s}")
    assert done.receipt["trips"] == ["SUPPLY_LOW"]
    response("H39", at_s, done.first("trip"))
    assert done.truth.current_after(at_s + 1.0 + 2.1) == 0.0


def test_h39_below_its_reserve_nothing_starts(tmp_path: Path, response: Response) -> None:
    done = session(tmp_path, "supply-warning@0")
    assert done.receipt["trips"] == ["SUPPLY_LOW"]
    assert not done.truth["current_peak_a"].any()
    response("H39", 0.001, done.first("trip"))


def test_h39_a_warning_in_mid_session_lets_it_go_on(tmp_path: Path) -> None:
    done = session(tmp_path, "supply-warning@4")
    assert (done.receipt["outcome"], done.receipt["trips"]) == ("complete", [])
    (raised,) = [alarm for alarm in done.events("alarm") if alarm["alarm"] == "supply-warning"]
    assert raised["priority"] == "LOW"


@pytest.mark.parametrize("at_s", PHASES)
def test_h40_leakage(tmp_path: Path, response: Response, at_s: float) -> None:
    """The device is off by itself, before the host knows; the host latches, and nothing comes back."""
    done = session(tmp_path, f"leakage@{at_s}")
    assert done.receipt["trips"] == ["LEAKAGE"]
    response("H40", at_s, done.off(after_s=at_s - 0.0005))
    response("H40", at_s, done.first("trip"))
    assert done.truth.current_after(at_s + 0.01) == 0.0


@pytest.mark.parametrize("at_s", PHASES)
def test_h44_too_warm(tmp_path: Path, response: Response, at_s: float) -> None:
    done = session(tmp_path, f"hot@{at_s}", f"hot=off@{at_s + 0.01}")
    assert done.receipt["trips"] == ["TEMPERATURE"], "it stays latched when the pad has cooled"
    response("H44", at_s, done.first("trip"))
    assert done.truth.current_after(at_s + 1.0 + 2.1) == 0.0


@pytest.mark.parametrize("at_s", PHASES)
def test_h45_patient_stop(tmp_path: Path, response: Response, at_s: float) -> None:
    """A short press: down to zero within 250 ms of device time, from wherever the current is."""
    done = session(tmp_path, f"stop-button=0.1@{at_s}")
    assert done.receipt["trips"] == ["PATIENT_STOP"]
    response("H45", at_s, done.first("trip"))
    assert done.truth.current_after(at_s + 0.25) == 0.0
    if Phase.TREATMENT in done.rows["phase"]:
        falling = np.abs(done.truth["current_a"])[done.truth["device_time_s"] > at_s]
        assert falling[50] > 0.5 * falling[0], "by a ramp, and not by a leap"


def test_h45_a_second_press_is_off_at_once(tmp_path: Path, response: Response) -> None:
    done = session(tmp_path, "stop-button=0.02@5", "stop-button=0.02@5.06")
    assert done.receipt["trips"] == ["PATIENT_STOP"]
    response("H45", 5.06, done.first("action", Action.OFF))
    assert done.truth.current_after(5.06 + 0.05) == 0.0


@pytest.mark.parametrize("held_samples", [1, 2])
def test_h45_one_sample_is_no_press(tmp_path: Path, held_samples: int) -> None:
    done = session(tmp_path, f"stop-button={held_samples / 1000}@5")
    assert done.receipt["trips"] == ([] if held_samples == 1 else ["PATIENT_STOP"])


def test_h49_self_test(tmp_path: Path, response: Response) -> None:
    done = session(tmp_path, "post-fail@0")
    assert done.receipt["outcome"] == "faulted"
    assert done.receipt["trips"] == ["DEVICE_SELF_TEST"]
    assert not (done.rows["close_relay"] != 0).any()
    response.nothing_flowed("H49", float(done.truth["current_peak_a"].max()), through="device")


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_h53_device_clock(tmp_path: Path, response: Response, factor: float) -> None:
    """In real time, on a device whose periods are 2 % longer, or shorter, than it says: found in the first window that
    lies behind the change. A slow clock makes each sample later than the one before, and is found as that if it is
    sooner."""
    found = ["DEVICE_CLOCK"] if factor < 1.0 else ["DEVICE_CLOCK", "STALE_DATA"]
    done = session(tmp_path, f"clock={factor}@3", speed="real", hold="30 s")
    assert done.receipt["trips"][0] in found
    response("H53", 3.0, done.first("trip"), real_time=True)
    assert done.rows["action"][-1] == Action.OFF


@pytest.mark.real_time
def test_h53_a_clock_within_its_tolerance_is_no_hazard(tmp_path: Path) -> None:
    """The boundary itself is tested in tests/core/test_guard.py; here: a good clock, over a window."""
    done = session(tmp_path, options="clock-error-ppm=100", speed="real", hold="10 s")
    assert done.rows["host_time_us"].max() > 1.1e6 * threshold("H53", "clock_window_s")
    assert "DEVICE_CLOCK" not in done.receipt["trips"]
