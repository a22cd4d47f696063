"""A session on a device that only answers: the host's clock paces it."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from cli_support import ionto, treatment
from ionto_rt.cli.receipt import receipt_text
from ionto_rt.codes import Trip
from ionto_rt.device import open_device
from ionto_rt.hdr_log import read_log
from ionto_rt.record import LATENCY, Record
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from treatments import together

pytestmark = pytest.mark.real_time


def run(folder: Path, uri: str = "virtual:?pacing=host", **how: Any) -> tuple[dict[str, Any], Path]:
    path = treatment(folder, current="1 mA", hold="3 s", ramp="1.25 s")
    with open_device(uri) as device:
        session = Session(Treatment.load(path), device, out_dir=folder / "sessions", **how)
        receipt = session.run()
    assert session.record_path is not None
    return receipt, session.record_path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole session; again, twice at most, if this host has stalled."""
    stalls = {Trip.LOST_SAMPLES.name, Trip.STALE_DATA.name, Trip.HOST_SUSPENDED.name, Trip.LEASE_LAPSED.name}
    for _ in range(3):
        found = run(tmp_path_factory.mktemp("host"))
        if not stalls.intersection(found[0]["trips"]) and "nobody was there" not in found[0]["reason"]:
            break
    return found


def test_it_completes_and_host_and_device_count_the_same_dose(ran: tuple[dict[str, Any], Path]) -> None:
    receipt, folder = ran
    assert (receipt["outcome"], receipt["trips"]) == ("complete", []), receipt["reason"]
    assert receipt["dose_device_mamin"] == pytest.approx(receipt["dose_ledger_mamin"], abs=2e-5)
    assert Record.open(folder).session["device"]["pacing"] == "HOST"
    assert verify(folder).ok, verify(folder).problems
    assert replay(folder).identical


def test_how_late_it_woke_is_in_its_log_once_a_command(ran: tuple[dict[str, Any], Path]) -> None:
    receipt, folder = ran
    histograms = read_log(folder / LATENCY).histograms
    assert {"answer", "wake_up"} <= set(histograms) and "age" not in histograms
    assert histograms["wake_up"].total == receipt["loop"]["sent"]
    shown = ionto("latency", "--session", folder, cwd=folder)
    assert shown.code == 0, shown.err
    assert "wake-up, later than planned" in shown.out and "sample read to command written" in shown.out


def test_periods_that_the_host_slept_through_are_counted_and_are_gaps_in_the_rows(
    ran: tuple[dict[str, Any], Path],
) -> None:
    receipt, folder = ran
    index = Record.open(folder).telemetry()["index"].astype(np.int64)
    skipped = receipt["loop"]["skipped_periods"]
    assert int((np.diff(index) - 1).sum()) == receipt["gaps"]
    # The last instants may be skipped behind the last row. A device that is late itself rounds up, and is ahead then.
    assert receipt["gaps"] >= skipped - 2
    text = click.unstyle(receipt_text(receipt))
    assert (f"{skipped} sample periods skipped" in text) == (skipped > 0)


def test_two_channels_are_paced_by_the_host_alike(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    single = Path(treatment(tmp_path, current="1 mA", hold="2.6 s", ramp="1.25 s")).read_text()
    path.write_text(together([single, single]))
    with open_device("virtual:?channels=2&pacing=host") as device:
        receipt = Session(Treatment.load(path), device, out_dir=tmp_path / "sessions", attended=True).run()
    assert receipt["dose_device_mamin"] == pytest.approx(receipt["dose_ledger_mamin"], abs=4e-5)
    assert receipt["outcome"] == "complete", receipt["reason"]
