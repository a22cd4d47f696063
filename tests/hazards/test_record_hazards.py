"""A record that cannot be written."""

from pathlib import Path

import numpy as np
import pytest

from cli_support import treatment
from injection import FullDisk, session
from ionto_rt.device import open_device
from ionto_rt.errors import IontoError
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from responses import Response


@pytest.mark.parametrize("at_s", [0.2, 5.0])
@pytest.mark.virtual_clock
def test_h38_record_cannot_be_written(tmp_path: Path, response: Response, at_s: float) -> None:
    """From the last row that is on disk, to the ramp down."""
    disk = FullDisk()
    last_written_s = float("nan")

    def fill(running: Session) -> None:
        nonlocal last_written_s
        disk.full = True
        last_written_s = running._recorder.written_at_s

    def free(running: Session) -> None:
        disk.full = False

    done = session(
        tmp_path, current="1 mA", hold="60 s", uri="sim:", files=disk, whole=False,
        acts={at_s: fill, at_s + 30.4: free},
    )  # fmt: skip
    assert done.receipt["outcome"] == "faulted" and "[H38]" in done.receipt["reason"]
    assert [alarm["alarm"] for alarm in done.events("alarm")] == ["record-behind", "ring-overflow", "record-stopped"]
    time_s, current_a = done.truth["device_time_s"], np.abs(done.truth["current_a"])
    begun = np.flatnonzero((current_a < 0.98e-3) & (time_s > at_s + 5.0))[0]
    assert current_a[begun - 100] > 0.98e-3
    response("H38", last_written_s, float(time_s[begun]), through="file")


def test_h38_no_session_starts_where_nothing_can_be_written(tmp_path: Path, response: Response) -> None:
    disk = FullDisk()
    disk.full = True
    with open_device("sim:") as device:
        running = Session(Treatment.load(treatment(tmp_path)), device, out_dir=tmp_path / "s", speed="max", files=disk)
        with pytest.raises((IontoError, OSError)):
            running.run()
        flowed_a = abs(device.port.sim.device.absolute_charge_c)  # type: ignore[attr-defined]
    response.nothing_flowed("H38", flowed_a, through="file")


@pytest.mark.parametrize("at_s", [2.513, 4.513])
def test_h38_a_trip_is_told_though_the_ring_of_events_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_s: float
) -> None:
    """A device that repeats each sample makes an event of each: the visits are too far apart for so many."""
    monkeypatch.setattr("ionto_rt.core.loop.EVENTS_S", 0.0)
    monkeypatch.setattr("ionto_rt.core.loop.LEAST_EVENTS", 4)
    done = session(tmp_path, "repeat@2", f"open@{at_s}", uri="sim:", attended=True)
    assert done.receipt["loop"]["events_dropped"] > 100
    assert done.receipt["trips"] == ["OPEN_LEAD"] and "[H05]" in done.receipt["reason"]
    (trip,) = done.events("trip")
    assert (trip["name"], trip["alarm"]) == ("OPEN_LEAD", "open-lead")
    assert [event["reason"] for event in done.events("end")] == ["TRIP"]
    raised = [row["alarm"] for row in done.receipt["alarm_log"]]
    assert raised.count("open-lead") == 1 and "ring-overflow" in raised
    told = sum(event["dropped"] for event in done.events("events-dropped"))
    assert told == done.receipt["loop"]["events_dropped"]
