"""Disks that are full, read-only, slow or used twice; files that have expired; clocks of real programs that are set."""

import errno
import shutil
import subprocess
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import COMMAND, HEAD, environment, sessions
from ionto_rt.calibration_file import RangeCalibration, write_calibration
from ionto_rt.device import Device, SimBytes, open_device
from ionto_rt.errors import IontoError, RefusedError
from ionto_rt.events import utc_text
from ionto_rt.journal import Journal
from ionto_rt.record import Record, session_folders
from ionto_rt.recover import recover
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.testing.disk import FaultyFiles, Kind
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from responses import Response

SHORT = HEAD.replace('title = "short"', 'title = "short"\nsubject = "S-07"') + (
    '[[steps]]\ncurrent = "1 mA"\ntime = "2 s"\nramp = "1.25 s"\n'
)


def ran_on(disk: FaultyFiles, **how: Any) -> tuple[Session, dict[str, Any] | Exception, float]:
    """The short treatment on this disk: session, receipt or what it raised, and charge (C) that truly flowed."""
    with open_device("sim:?seed=7") as device, disk.sqlite():
        assert isinstance(device, Device) and isinstance(device.port, SimBytes)
        plant = device.port.sim.device
        session = Session(Treatment.parse(SHORT.encode()), device, out_dir=disk.root, speed="max", files=disk, **how)
        try:
            receipt: dict[str, Any] | Exception = session.run()
        except (IontoError, OSError) as error:
            receipt = error
        flowed_c = plant.absolute_codes * session.channels[0].code_c if hasattr(session, "loop") else 0.0
        if session.record_path is not None:
            assert plant.applied_code == 0 and not plant.relay_closed, "the output is off"
    return session, receipt, flowed_c


def settled(folder: Path, flowed_c: float) -> None:
    """The disk takes writes again: what is there can be recovered, and counts with no less than flowed."""
    for path in session_folders(folder):
        receipt = recover(path).receipt
        assert receipt["delivered_abs_c"] >= flowed_c * (1.0 - 1e-9)
        assert recover(path).created is False
    if flowed_c > 0.0:
        assert len(session_folders(folder)) == 1
    with Journal(folder) as journal:
        assert journal.open_sessions() == []
        assert journal.received_today("S-07", "", simulated=True) >= flowed_c * (1.0 - 1e-9)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_h38_a_disk_that_refuses_from_any_write_on(tmp_path: Path, response: Response, number: int) -> None:
    """Before the device is armed the session is refused; after it the output is off in the end, and the dose kept."""
    whole = FaultyFiles(tmp_path)
    session, receipt, _ = ran_on(whole)
    assert isinstance(receipt, dict) and receipt["outcome"] == "complete"
    count = len(whole.trace)
    refused = 0
    armed_at = next(at for at, step in enumerate(whole.trace) if step.data.startswith(b"\xff\xff\xff\xff"))
    for first in [*range(0, armed_at + 4, 2), *range(armed_at + 4, count, 12), *range(count - 30, count, 3)]:
        folder = tmp_path / f"from-{first}"
        folder.mkdir()
        disk = FaultyFiles(folder)

        def fails(at: int, kind: Kind, first: int = first) -> int:
            return number if at >= first and kind not in ("remove", "sync-folder") else 0

        disk.fails = fails
        session, receipt, flowed_c = ran_on(disk)
        disk.fails = None
        if session.record_path is None:
            refused += 1
            assert isinstance(receipt, Exception) and "\n" not in str(receipt)
            assert flowed_c == 0.0
        settled(folder, flowed_c)
        shutil.rmtree(folder)
    assert refused > 10
    response.nothing_flowed("H38", 0.0, through="file")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.9, 0.999])
def test_h38_a_disk_that_fills_up_at_a_byte(tmp_path: Path, response: Response, share: float) -> None:
    (tmp_path / "whole").mkdir()
    whole = FaultyFiles(tmp_path / "whole")
    ran_on(whole)
    (tmp_path / "full").mkdir()
    disk = FaultyFiles(tmp_path / "full", full_after_bytes=int(share * whole.written_bytes))
    session, _, flowed_c = ran_on(disk)
    assert (session.record_path is not None) == (flowed_c > 0.0) == (share >= 0.5)
    disk.full_after_bytes = None
    settled(tmp_path / "full", flowed_c)
    response.no_effect("H38", through="file")


def test_h38_a_read_only_disk_begins_nothing(tmp_path: Path, response: Response) -> None:
    disk = FaultyFiles(tmp_path, read_only=True)
    session, receipt, flowed_c = ran_on(disk)
    assert session.record_path is None and isinstance(receipt, IontoError) and receipt.exit_code == 2
    assert "check permissions and disk space" in str(receipt) and str(tmp_path) in str(receipt)
    response.nothing_flowed("H38", flowed_c, through="file")
    assert list(tmp_path.iterdir()) == []


def test_h38_a_slow_disk_costs_no_row(tmp_path: Path, response: Response) -> None:
    disk = FaultyFiles(tmp_path, delay_s=0.002)
    _, receipt, _ = ran_on(disk)
    assert isinstance(receipt, dict) and receipt["outcome"] == "complete"
    folder = Path(receipt["record"])
    assert len(Record.open(folder).telemetry()) == receipt["ticks"]
    assert verify(folder).ok and replay(folder).identical
    response.no_effect("H38", through="file")


def test_h51_two_writers_in_one_folder_of_sessions(tmp_path: Path, response: Response) -> None:
    """Each has a folder of its own, and a lock on it: nobody recovers, nor rebuilds, under a session that runs."""
    receipts: list[dict[str, Any]] = []

    def one(seed: int) -> None:
        with open_device(f"sim:?seed={seed}") as device:
            text = SHORT.replace("[electrodes.active]", f'site = "{seed}"\n[electrodes.active]')
            made = Session(Treatment.parse(text.encode()), device, out_dir=tmp_path, speed="max")
            receipts.append(made.run())

    writers = [threading.Thread(target=one, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [receipt["outcome"] for receipt in receipts] == ["complete"] * 3
    assert len({receipt["record"] for receipt in receipts}) == 3
    for receipt in receipts:
        assert verify(Path(receipt["record"])).ok and replay(Path(receipt["record"])).identical
    with Journal(tmp_path) as journal:
        received = sorted(journal.received_today("S-07", str(seed), simulated=True) for seed in range(3))
        assert received == sorted(receipt["delivered_abs_c"] for receipt in receipts)
    response.no_effect("H51", through="API")


def calibration(measured: datetime) -> RangeCalibration:
    numbers = dict.fromkeys(RangeCalibration.__dataclass_fields__, 0.0)
    return RangeCalibration(**numbers | {"measured_utc": utc_text(measured), "load": "600 ohm"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("age", "said"),
    [(timedelta(days=30, minutes=-1), ""), (timedelta(days=31), "31 days old"), (timedelta(days=-2), "after today")],
    ids=["in force", "expired", "of the future"],
)
def test_h37_an_expired_calibration_is_refused_on_hardware(
    tmp_path: Path, response: Response, age: timedelta, said: str
) -> None:
    with open_device("sim:") as device:
        assert isinstance(device, Device)
        device.uri, device.hello = "acme:1", replace(device.hello, model="daq")
        known = calibration(datetime.now(UTC) - age)
        write_calibration(tmp_path, device.hello, dict.fromkeys(range(len(device.hello.ranges)), known))
        session = Session(Treatment.parse(SHORT.encode()), device, out_dir=tmp_path, speed="max")
        if not said:
            assert session.run()["outcome"] == "complete"
            response.no_effect("H37", through="file")
            return
        with pytest.raises(RefusedError, match=said) as caught:
            session.run()
        assert "run `ionto-rt calibrate` again" in str(caught.value)
        assert isinstance(device.port, SimBytes)
        response.nothing_flowed("H37", device.port.sim.device.absolute_charge_c, through="file")
    assert session_folders(tmp_path) == []


CLOCK = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
/* The wall clock is off by SECONDS while the file MARK is there. */
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    const char *mark = getenv("MARK"), *seconds = getenv("SECONDS_OFF");
    if (id == CLOCK_REALTIME && mark && seconds && access(mark, F_OK) == 0) now->tv_sec += atol(seconds);
    return code;
}
"""


@pytest.mark.real_time
@pytest.mark.parametrize("seconds", [-86400 * 3, 86400 * 400])
def test_h27_a_program_whose_wall_clock_is_set_in_mid_session(
    tmp_path: Path, response: Response, seconds: int
) -> None:
    """The whole program sees it. The treatment goes on as if nothing had been, and the day it counts for stays full."""
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", "clock.so", "clock.c", "-ldl"], cwd=tmp_path, check=True)
    path, mark = tmp_path / "short.toml", tmp_path / "mark"
    limited = SHORT.replace("[[steps]]", '[limits]\nday_dose = "0.1 mA*min"\n[[steps]]')
    path.write_text(limited.replace('time = "2 s"', 'time = "4 s"'))
    words = [*COMMAND, "run", str(path), "--device", "virtual:", "--json"]
    clock = environment(LD_PRELOAD=str(tmp_path / "clock.so"), MARK=str(mark), SECONDS_OFF=str(seconds))
    with subprocess.Popen(
        words, cwd=tmp_path, env=clock, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "treatment" in line:
                break
        mark.touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (session,) = sessions(tmp_path / "sessions")
    rows = Record.open(session).telemetry()
    assert (np.diff(rows["index"].astype(np.int64)) == 1).all() and not rows["trip"].any()
    times = [datetime.fromisoformat(event.time_utc) for event in Record.open(session).events().events]
    assert abs((times[-1] - times[0]).total_seconds() - seconds) < 60.0
    assert verify(session).ok and replay(session).identical
    for off in (True, False):
        if not off:
            mark.unlink()
        done = subprocess.run(words, cwd=tmp_path, env=clock, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "mA*min today and" in done.stderr and "exceed a day's 6 mC" in done.stderr
    response.no_effect("H27", through="command line", real_time=True)
