"""The record on a disk that stalls or refuses: the loop never waits, what is lost is counted, the session is safe."""

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import LEASE_S, Truth
from ionto_rt.device import open_device
from ionto_rt.events import Event
from ionto_rt.files import Files
from ionto_rt.journal import JOURNAL, Journal, _connect
from ionto_rt.record import STALL_MOST_S, Record, RecordError, reserve_ahead_c
from ionto_rt.recorder import RING_S, ring_rows
from ionto_rt.session import Session
from ionto_rt.verify import verify
from treatments import treatment

pytestmark = pytest.mark.real_time


class Disk(Files):
    """A file system of which every call that touches the disk waits while it stalls, and fails while it is full."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.full = False
        self.stalled_calls = 0

    def _touch(self, *, grows: bool = False) -> None:
        if not self.answers.is_set():
            self.stalled_calls += 1
            self.answers.wait()
        if grows and self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._touch(grows=True)
        return super().write(fd, data)

    def write_at(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        self._touch(grows=sum(map(len, parts)) > 8)
        return super().write_at(fd, parts, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._touch()
        super().truncate(fd, size)

    def sync(self, fd: int) -> None:
        self._touch()
        super().sync(fd)

    def stall(self, time_s: float) -> None:
        """From now on for so long."""
        self.answers.clear()
        threading.Timer(time_s, self.answers.set).start()


def steps(hold_s: float) -> str:
    return f'[[steps]]\ncurrent = "1 mA"\ntime = "{hold_s} s"\nramp = "1.5 s"'


def run(
    out_dir: Path, uri: str, hold_s: float, at: dict[float, Callable[[], object]], disk: Files, **how: Any
) -> tuple[Session, dict[str, Any]]:
    """A session on this disk in which each act happens at its time, in s of the session's own."""
    waiting = sorted(at.items())

    def watch(session: Session) -> None:
        elapsed_s = session.loop.counters["ticks"] * session.device.hello.tick_s
        while waiting and elapsed_s >= waiting[0][0]:
            waiting.pop(0)[1]()

    with open_device(uri) as device:
        session = Session(
            treatment(steps(hold_s)), device, out_dir=out_dir, watcher=watch, files=disk, **{"speed": "real"} | how
        )
        return session, session.run()


def events(session: Session, kind: str) -> list[Event]:
    assert session.record_path is not None
    return [event for event in Record.open(session.record_path).events().events if event.kind == kind]


def alarms(session: Session, host: str = "late-commands") -> list[str]:
    """The alarms of the record, without what a shared host may have raised beside them."""
    found = [event.fields["alarm"] for event in events(session, "alarm")]
    return [alarm for alarm in found if alarm != host]


def rows_of(session: Session) -> Any:
    assert session.record_path is not None
    return Record.open(session.record_path).telemetry()


def test_the_ring_holds_eight_seconds_of_every_channel() -> None:
    assert RING_S == 8.0
    assert ring_rows(10_000.0, 8) == 640_000
    assert ring_rows(1_000.0, 1) == 8_000


@pytest.mark.parametrize("rate_hz", [1_000, 10_000])
def test_a_disk_that_stalls_for_five_seconds_costs_no_row_and_no_heartbeat(tmp_path: Path, rate_hz: int) -> None:
    disk = Disk()
    session, receipt = run(
        tmp_path, f"virtual:?rate={rate_hz}&truth={tmp_path}/truth.csv", 7.0, {2.5: lambda: disk.stall(5.0)}, disk
    )
    assert disk.stalled_calls
    assert receipt["outcome"] == "complete" and receipt["trips"] == []
    index = rows_of(session)["index"].astype(np.int64)
    assert (np.diff(index) == 1).all() and index[0] == 0
    assert len(index) == receipt["ticks"] == receipt["telemetry_rows"]
    assert receipt["loop"]["ring_dropped"] == 0
    assert 4.0 * rate_hz < receipt["loop"]["ring_high_water"] < 6.5 * rate_hz
    assert alarms(session).count("record-behind") == 1 and "ring-overflow" not in alarms(session)
    assert verify(session.record_path).ok  # type: ignore[arg-type]


def test_a_journal_that_somebody_holds_stops_nothing(tmp_path: Path) -> None:
    held = threading.Event()

    def hold() -> None:
        with closing(_connect(tmp_path / JOURNAL)) as db:
            db.execute("BEGIN IMMEDIATE")
            held.set()
            # Long enough for a renewal: it comes when a second's worth of the highest current has flowed.
            time.sleep(6.0)
            db.execute("ROLLBACK")

    def begin() -> None:
        threading.Thread(target=hold).start()
        held.wait()

    session, receipt = run(tmp_path, "virtual:", 8.0, {2.5: begin}, Disk())
    assert (receipt["outcome"], receipt["trips"]) == ("complete", [])
    assert (np.diff(rows_of(session)["index"].astype(np.int64)) == 1).all()
    assert alarms(session) == ["record-behind"]
    assert receipt["loop"]["ring_high_water"] > 1500


def test_a_stall_longer_than_the_ring_is_counted_and_the_session_ends_safely(tmp_path: Path) -> None:
    disk = Disk()
    session, receipt = run(
        tmp_path, f"virtual:?truth={tmp_path}/truth.csv", 12.0, {2.0: lambda: disk.stall(10.5)}, disk
    )
    assert receipt["outcome"] == "complete" and receipt["trips"] == []
    assert {"record-behind", "ring-overflow"} <= set(alarms(session))
    dropped = receipt["loop"]["ring_dropped"]
    assert dropped > 500
    assert receipt["telemetry_rows"] + dropped == receipt["ticks"]
    index = rows_of(session)["index"].astype(np.int64)
    assert int((np.diff(index) - 1).sum()) == dropped
    assert sum(event.fields["rows"] for event in events(session, "rows-missing")) == dropped
    # The dose does not hang on the record: the loop counts, and the device does.
    assert receipt["dose_ledger_mamin"] == pytest.approx(receipt["dose_device_mamin"], abs=2e-5)
    truth = Truth(tmp_path / "truth.csv")
    assert truth["current_a"][-1] == 0.0 and truth["relay_closed"][-1] == 0


def test_a_record_that_cannot_be_written_for_long_ramps_down_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ionto_rt.session.STALL_MOST_S", 2.5)
    disk = Disk()
    session, receipt = run(tmp_path, f"virtual:?truth={tmp_path}/truth.csv", 60.0, {2.5: lambda: disk.stall(5.0)}, disk)
    assert receipt["outcome"] == "faulted" and receipt["trips"] == []
    assert "[H38]" in receipt["reason"] and "ramped down" in receipt["reason"]
    assert alarms(session) == ["record-behind", "record-stopped"]
    assert len(rows_of(session)) == receipt["ticks"]
    assert 5.0 < receipt["duration_s"] < 9.0


def test_a_full_disk_is_told_at_once_and_ends_the_session_after_thirty_seconds(tmp_path: Path) -> None:
    disk = Disk()

    def fill() -> None:
        disk.full = True

    def free() -> None:
        disk.full = False

    session, receipt = run(tmp_path, "sim:", 60.0, {5.0: fill, 35.4: free}, disk, speed="max")
    assert receipt["outcome"] == "faulted" and "[H38]" in receipt["reason"]
    assert alarms(session) == ["record-behind", "ring-overflow", "record-stopped"]
    behind, overflow, _ = events(session, "alarm")
    assert behind.tick is not None and 5_000 <= behind.tick <= 5_300
    assert overflow.tick is not None and 12_900 <= overflow.tick <= 13_300, "the ring holds eight seconds"
    assert 35_000 <= receipt["ticks"] <= 37_500, "thirty seconds, then a ramp of 1 mA at 1 mA/s"
    assert receipt["loop"]["ring_dropped"] > 0
    assert receipt["telemetry_rows"] + receipt["loop"]["ring_dropped"] == receipt["ticks"]


def test_a_disk_that_was_full_for_a_moment_costs_no_row(tmp_path: Path) -> None:
    disk = Disk()

    def fill() -> None:
        disk.full = True

    def free() -> None:
        disk.full = False

    session, receipt = run(tmp_path, "sim:", 15.0, {5.0: fill, 9.0: free}, disk, speed="max")
    assert receipt["outcome"] == "complete"
    index = rows_of(session)["index"].astype(np.int64)
    assert (np.diff(index) == 1).all() and len(index) == receipt["ticks"]
    assert verify(session.record_path).ok  # type: ignore[arg-type]


def test_a_disk_that_never_answers_again_does_not_hold_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ionto_rt.session.STALL_MOST_S", 2.0)
    disk = Disk()
    try:
        with pytest.raises(RecordError, match="did not take the record"):
            run(tmp_path, f"virtual:?truth={tmp_path}/truth.csv", 60.0, {2.5: disk.answers.clear}, disk)
    finally:
        disk.answers.set()
    truth = Truth(tmp_path / "truth.csv")
    assert truth["current_a"][-1] == 0.0 and truth["relay_closed"][-1] == 0
    assert float(truth["device_time_s"][-1]) - truth.last_command_s <= 10.0 * LEASE_S


def test_no_more_charge_flows_than_is_reserved_on_disk(tmp_path: Path) -> None:
    """At every visit, whatever the disk does: what the device could deliver until the session ends by itself."""
    disk = Disk()
    short_c: list[float] = []
    path = tmp_path / JOURNAL

    def watch(session: Session) -> None:
        elapsed_s = session.loop.counters["ticks"] * session.device.hello.tick_s
        disk.full = 4.0 <= elapsed_s < 30.0
        with closing(_connect(path)) as db:
            (reserved_c,) = db.execute("SELECT reserved_until_c FROM sessions").fetchone()
        last = session.channels[0].last
        if last is not None:
            left_s = STALL_MOST_S - (elapsed_s - session._recorder.written_at_s)
            absolute_c = session.channels[0].coulombs(int(last["absolute_codes"]))
            short_c.append(absolute_c + 1e-3 * left_s - reserved_c)

    with open_device("sim:") as device:
        session = Session(treatment(steps(40.0)), device, out_dir=tmp_path, speed="max", watcher=watch, files=disk)
        session.run()
    assert len(short_c) > 300 and max(short_c) < 0.0
    with Journal(tmp_path) as journal:
        (row,) = journal.sessions()
        assert row.reserved_until_c <= row.delivered_abs_c + reserve_ahead_c(session.limits.current_cap_a)
