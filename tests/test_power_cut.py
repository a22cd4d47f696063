"""The power fails at each of a session's writes: what `recover` then finds is true, and never less than what flowed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionto_rt.device import Device, SimBytes, open_device
from ionto_rt.events import RECOVERED
from ionto_rt.journal import JOURNAL, Journal
from ionto_rt.record import TELEMETRY, Record, Telemetry, session_folders
from ionto_rt.recorder import Recorder
from ionto_rt.recover import DeviceCount, recover
from ionto_rt.session import Session
from ionto_rt.testing.disk import FaultyFiles, Survivors
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from record_support import same_rows

TREATMENT = b"""\
format = 1
title = "short"
subject = "S-07"
drug = "dexamethasone-phosphate"
site = "left knee"
[electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "cathode"
[electrodes.return]
type = "return-pad"
area = "25 cm^2"
[[steps]]
current = "1 mA"
time = "3 s"
ramp = "1.25 s"
"""


@dataclass(frozen=True)
class Ran:
    """A session that has run on a disk of which each operation is known, and what the device had counted at each."""

    disk: FaultyFiles
    session: Session
    receipt: dict[str, Any]
    rows: np.ndarray[Any, Any]

    def counted(self, at: int) -> tuple[int, int]:
        """Net and absolute, in 1/65536 code, when the power failed."""
        mark = self.disk.trace[at - 1].mark if at else (0, 0)
        return int(mark[0]), int(mark[1])

    @property
    def code_c(self) -> float:
        return self.session.channels[0].code_c


def run_on(disk: FaultyFiles, durable: bool = True) -> tuple[Session, dict[str, Any]]:
    """The treatment on a virtual clock; `durable`: rows are synced each second, as in real time."""
    with pytest.MonkeyPatch.context() as patch, open_device("sim:?seed=7") as device, disk.sqlite():
        patch.setattr("ionto_rt.session.Recorder", lambda *a, **k: Recorder(*a, **k | {"durable": durable}))
        assert isinstance(device, Device) and isinstance(device.port, SimBytes)
        plant = device.port.sim.device
        disk.mark = lambda: (plant.net_codes, plant.absolute_codes)
        session = Session(Treatment.parse(TREATMENT), device, out_dir=disk.root, speed="max", files=disk)
        return session, session.run()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    disk = FaultyFiles(tmp_path_factory.mktemp("sessions"), seed=20261126)
    session, receipt = run_on(disk)
    assert receipt["outcome"] == "complete"
    yield Ran(disk, session, receipt, Record.open(receipt["record"]).telemetry().rows())


def check_journal(folder: Path, least_c: float) -> None:
    """It opens, holds no session twice or by half, and counts no less than flowed."""
    if not (folder / JOURNAL).exists():
        assert least_c == 0.0 and not session_folders(folder)
        return
    with Journal(folder) as journal:
        rows = journal.sessions()
        assert len(rows) <= 1
        assert journal.received_today("S-07", "left knee", simulated=True) >= least_c
        for row in rows:
            assert row.reserved_until_c >= least_c or row.delivered_abs_c >= least_c


def synced_lines(ran: Ran, at: int) -> int:
    """Lines of the event log that were on disk for certain."""
    lines: dict[int, int] = {}
    certain = 0
    for step in ran.disk.trace[:at]:
        if step.data.startswith(b'{"fields"'):
            lines[step.node] = lines.get(step.node, 0) + 1
        elif step.kind == "sync" and step.node in lines:
            certain = lines[step.node]
    return certain


def check_events(ran: Ran, at: int, path: Path, survivors: Survivors, notes: list[str]) -> None:
    """Events that were synced are there. Of the others there may be half a line amid whole ones, which is told."""
    known = Record.open(ran.receipt["record"]).events().events
    chain = Record.open(path).events()
    kept = [event for event in chain.events if event.kind != RECOVERED]
    assert kept == known[: len(kept)]
    problems = verify(path).problems
    if not (path / TELEMETRY).exists() or not (path / TELEMETRY).stat().st_size:
        problems = [problem for problem in problems if problem != "telemetry.sha256: missing"]
    if survivors == "nothing":
        assert problems == []
        return
    # What the power cut has left of unfinished batches and lines stays, and is told by both.
    for problem in problems:
        assert problem.startswith(("telemetry.", "events.jsonl: line ")), problem
        assert any(note.partition(":")[0] == problem.partition(":")[0] for note in notes), (problem, notes)
    if chain.intact:
        return
    assert chain.broken_line is not None and chain.broken_line > synced_lines(ran, at)


def check_cut(ran: Ran, at: int, survivors: Survivors, folder: Path, *, asked: bool) -> str:
    """One power cut, looked at; what was found of the session."""
    net_codes, absolute_codes = ran.counted(at)
    least_c = absolute_codes * ran.code_c
    ran.disk.after_power_cut(at, folder, survivors)
    check_journal(folder, least_c)
    found = session_folders(folder)
    if not found:
        assert least_c == 0.0, "current has flowed, and there is no session"
        return "no session"
    (path,) = found
    had_receipt = Record.open(path).receipt is not None
    token = Record.open(path).channels[0].token
    result = recover(path, DeviceCount(token, ((net_codes, absolute_codes),)) if asked else None)
    receipt = result.receipt
    assert result.created == (not had_receipt)
    if had_receipt:
        assert receipt == ran.receipt
    assert receipt["delivered_abs_c"] >= least_c
    if asked and not had_receipt:
        assert result.measured and receipt["delivered_net_c"] == -net_codes * ran.code_c
    if receipt["telemetry_rows"]:
        rows = Telemetry(path / (receipt.get("telemetry_file") or "telemetry.arrows")).rows()
        assert len(rows) == receipt["telemetry_rows"]
        assert len(rows) % 100 == 0 or len(rows) > len(ran.rows) - 100, "whole batches"
        assert (np.diff(rows["index"].astype(np.int64)) > 0).all()
        assert same_rows(rows, ran.rows[rows["index"]]), "a sample that was none"
        if survivors != "some":
            assert len(rows) == int(rows["index"][-1]) + 1
    check_events(ran, at, path, survivors, result.notes)
    with Journal(folder) as journal:
        assert journal.open_sessions() == []
        assert journal.received_today("S-07", "left knee", simulated=True) >= least_c
    return "with its receipt" if had_receipt else f"{receipt['telemetry_rows']} rows"


@pytest.mark.parametrize("survivors", ["nothing", "everything", "some"])
def test_a_power_cut_at_any_write_leaves_a_session_that_can_be_recovered(
    ran: Ran, tmp_path: Path, survivors: Survivors
) -> None:
    found = []
    for at in range(len(ran.disk.trace) + 1):
        folder = tmp_path / str(at)
        found.append(check_cut(ran, at, survivors, folder, asked=bool(at % 2)))
        shutil.rmtree(folder)
    print(f"{len(found)} cuts, seed {ran.disk.seed}, {len(set(found))} kinds")
    assert found[0] == "no session" and found[-1] == "with its receipt" and len(set(found)) > 4
