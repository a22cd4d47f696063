"""Alarms themselves: a pause that is forgotten, a cause that comes again and again, a screen that hangs, no speaker."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cli_support import ionto
from injection import NOTHING_A, Injected, device_time_s, session
from ionto_rt.codes import Phase
from ionto_rt.device import open_device
from ionto_rt.errors import RefusedError
from ionto_rt.events import Event
from ionto_rt.live import LineView, LiveView
from ionto_rt.record import Record, session_folders
from ionto_rt.repeats import recent_stops
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from responses import Response

TEXT = """\
format = 1
title = "short"
drug = "dexamethasone-phosphate"
{where}
[electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "cathode"
[electrodes.return]
type = "return-pad"
area = "25 cm^2"
[[steps]]
current = "2 mA"
time = "{hold}"
ramp = "2.5 s"
"""


def text(subject: str = "", site: str = "", hold: str = "6 s") -> str:
    return TEXT.format(where=f'subject = "{subject}"\nsite = "{site}"' if subject else "", hold=hold)


def raised(done: Injected, key: str) -> list[dict[str, Any]]:
    events = Record.open(done.record_path).events().events
    return [event.fields | {"tick": event.tick} for event in events
            if event.fields.get("transition") == "raised" and event.fields["alarm"] == key]  # fmt: skip


@pytest.mark.virtual_clock
def test_h46_a_pause_that_is_left_is_reminded_of_each_ten_minutes(tmp_path: Path, response: Response) -> None:
    done = session(
        tmp_path, uri="sim:", options="rate=500", attended=True, steps=STEPS, whole=False,
        acts={4.0: Session.pause, 610.0: Session.acknowledge, 1250.0: Session.resume},
    )  # fmt: skip
    assert done.receipt["outcome"] == "complete"
    began_s = done.phase(Phase.PAUSE)
    first, second = raised(done, "pause-left")
    response("H46", began_s, first["device_time_s"], through="API")
    response("H46", first["device_time_s"], second["device_time_s"], through="API")
    assert first["device_time_s"] - began_s > 599.7
    (row,) = [row for row in done.receipt["alarm_log"] if row["alarm"] == "pause-left"]
    assert (row["priority"], row["latched"], row["times"]) == ("LOW", False, 2)
    assert row["acknowledged_s"] is None, "the second reminder sounds again"
    assert 1250.0 <= row["ended_s"] < 1260.0 and row["reset_s"] is None
    assert [len(done.events(kind)) for kind in ("alarm-acknowledged", "alarm-ended")] == [1, 1]


STEPS = '[[steps]]\ncurrent = "2 mA"\ndose = "0.6 mA*min"\nramp = "2.5 s"\n'
STOPS_S = (4.0, 12.0, 20.0)
"""Samples are lost for 4 ms, which pauses until somebody resumes."""


def test_h47_the_third_stop_locks_until_the_operator_resets(tmp_path: Path) -> None:
    said: dict[float, object] = {}

    def do(at_s: float, act: Callable[[Session], object]) -> tuple[float, Callable[[Session], object]]:
        return at_s, lambda running: said.__setitem__(at_s, act(running))

    def cleared(running: Session) -> list[str]:
        return [found.alarm.key for found in running.reset()[0]]

    acts = dict(
        [
            do(6.5, Session.resume),
            *(do(stop_s + 3.0, cleared) for stop_s in STOPS_S),
            *(do(stop_s + 3.5, Session.resume) for stop_s in STOPS_S),
            do(25.0, cleared),
            do(25.5, Session.resume),
        ]
    )
    faults = [f"stall@{stop_s}+0.004" for stop_s in STOPS_S]
    done = session(tmp_path, *faults, uri="sim:", steps=STEPS, attended=True, acts=acts)
    assert done.receipt["outcome"] == "complete", "current came back after the lock was reset"
    assert "not resumed, reset first: Paused: samples lost" in str(said[6.5]), "an alarm that latches needs its reset"
    assert [said[stop_s + 3.0] for stop_s in STOPS_S] == [["lost-samples-pause"]] * 3
    assert [said[stop_s + 3.5] for stop_s in STOPS_S[:2]] == ["", ""]
    assert "not resumed, reset first: Locked" in str(said[23.5])
    assert (said[25.0], said[25.5]) == (["locked"], "")
    (lock,) = raised(done, "locked")
    assert (lock["priority"], lock["repeated"]) == ("MEDIUM", "lost-samples-pause")
    third = raised(done, "lost-samples-pause")[2]
    assert lock["tick"] == third["tick"], "at the third"
    assert [event["alarm"] for event in done.events("alarm-reset")] == ["lost-samples-pause"] * 3 + ["locked"]
    time_s = done.truth["device_time_s"]
    locked = (time_s > 22.0) & (time_s < 25.5)
    assert locked.sum() > 3000
    assert np.abs(done.truth["current_peak_a"][locked]).max() < NOTHING_A


def run_at(out_dir: Path, site: str, *, fault: str = "open@3", subject: str = "p1", **how: Any) -> dict[str, Any]:
    treatment = Treatment.parse(text(subject, site).encode(), "t.toml")
    with open_device(f"sim:?fault={fault}" if fault else "sim:") as device:
        try:
            return Session(treatment, device, out_dir=out_dir, speed="max", **how).run()
        except RefusedError as refused:
            return {"refused": str(refused), "flowed_a": device.port.sim.device.current_peak_a}  # type: ignore[attr-defined]


def test_h47_a_new_session_at_the_site_is_refused(tmp_path: Path, response: Response) -> None:
    for _ in range(2):
        assert run_at(tmp_path, "left knee")["trips"] == ["OPEN_LEAD"]
    third = run_at(tmp_path, "left knee")
    assert third["trips"] == ["OPEN_LEAD"], "two stops lock nothing"
    assert [row["alarm"] for row in third["alarm_log"]][-2:] == ["open-lead", "locked"]
    fourth = run_at(tmp_path, "left knee")
    said = "p1, left knee: locked, stopped 3 times within 10 min by [H05] Lead or pad open; look at the skin"
    assert fourth["refused"].startswith(said)
    response.nothing_flowed("H47", fourth["flowed_a"], through="API")
    assert len(session_folders(tmp_path)) == 3, "a refused session leaves nothing behind"
    assert run_at(tmp_path, "right knee", fault="")["outcome"] == "complete"
    assert run_at(tmp_path, "left knee", fault="", subject="p2")["outcome"] == "complete"
    unlocked = run_at(tmp_path, "left knee", fault="", reset_lock=True)
    assert unlocked["outcome"] == "complete"
    (reset,) = events_of(unlocked, "alarm-reset")
    assert (reset.fields["alarm"], reset.fields["causes"]) == ("locked", ["H05"])
    assert run_at(tmp_path, "left knee")["trips"] == ["OPEN_LEAD"], "the count begins anew after the operator's act"


def test_h47_the_command_line_refuses_and_names_the_act(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text("p1", "knee"))
    run = ("run", "t.toml", "--speed", "max", "--device")
    for _ in range(3):
        assert ionto(*run, "sim:?fault=open@3", cwd=tmp_path).code == 1
    refused = ionto(*run, "sim:", cwd=tmp_path)
    assert refused.code == 2 and "--reset-lock" in refused.err.splitlines()[-1]
    assert ionto(*run, "sim:", "--reset-lock", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("later", "known"), [(timedelta(0), 1), (timedelta(seconds=590), 1), (timedelta(seconds=610), 0),
                         (timedelta(hours=-5), 1)]
)  # fmt: skip
def test_h47_stops_count_for_ten_minutes_and_a_clock_set_back_forgets_none(
    tmp_path: Path, later: timedelta, known: int
) -> None:
    run_at(tmp_path, "knee")
    assert len(recent_stops(tmp_path, "p1", "knee", simulated=True, now=datetime.now(UTC) + later)) == known
    assert not recent_stops(tmp_path, "p1", "knee", simulated=False), "a simulated patient is nobody else"


def events_of(receipt: dict[str, Any], kind: str) -> list[Event]:
    return [event for event in Record.open(receipt["record"]).events().events if event.kind == kind]


class Stuck(io.StringIO):
    """A terminal that somebody holds: what is written from the n-th time on waits until it is let go."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.free = free
        self.held = threading.Event()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.free -= 1
        if self.free < 0:
            self.held.set()
            self.go.wait()
        return super().write(text)


@contextmanager
def watched(
    out_dir: Path, view: LiveView | LineView, hold: str, watcher: Callable[[Session], None] | None = None
) -> Iterator[Session]:
    treatment = Treatment.parse(text(hold=hold).encode(), "t.toml")
    with open_device("sim:") as device, view:
        running = Session(treatment, device, out_dir=out_dir, speed="max", watcher=watcher or view)
        view.begin(running)
        yield running


def test_h30_a_screen_that_hangs_is_an_alarm_and_the_session_goes_on(tmp_path: Path) -> None:
    """Times here are those of the screen, which are the host's."""
    stuck = Stuck(free=20)
    view = LiveView(Console(file=stuck, force_terminal=True, width=80), None)

    def watch(session: Session) -> None:
        """Not before the screen hangs, and then not faster than that would be noticed."""
        view(session)
        assert stuck.held.wait(60.0)
        if session.alarms.find("screen-hung") is None:
            stuck.go.wait(0.1)

    with watched(tmp_path, view, "590 s", watch) as running:
        receipt = running.run()
        stuck.go.set()
    assert (receipt["outcome"], receipt["trips"]) == ("complete", [])
    hung = [row for row in receipt["alarm_log"] if row["alarm"] == "screen-hung"]
    assert [(row["priority"], row["latched"], row["times"]) for row in hung] == [("LOW", False, 1)]


@pytest.mark.parametrize("view", ["live", "lines"])
def test_h30_nothing_that_is_written_to_holds_the_session(tmp_path: Path, view: str) -> None:
    """A pipe that nobody reads, full from the start."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    with os.fdopen(writing, "w") as stream:
        made = LineView(stream) if view == "lines" else LiveView(Console(file=stream, force_terminal=True), None)
        with watched(tmp_path, made, "6 s") as running:
            receipt = running.run()
        assert (receipt["outcome"], receipt["trips"]) == ("complete", [])
        while len(os.read(reading, 65536)) == 65536:
            pass
        if made._thread is not None:
            os.set_blocking(reading, False)
            made._thread.join(5.0)
        os.close(reading)


def test_h04_a_current_that_stays_lowered_becomes_more_urgent_after_thirty_seconds(tmp_path: Path) -> None:
    done = session(tmp_path, uri="sim:", options="compliance=7.5&onset-scale=60", hold="60 s", steps=None)
    low = raised(done, "derated")
    rows = done.rows
    limited_s = device_time_s(rows)[rows["limited"] != 0]
    assert limited_s[-1] - limited_s[0] > 31.0
    (urgent,) = raised(done, "derated-long")
    assert urgent["priority"] == "MEDIUM"
    assert 30.0 < urgent["device_time_s"] - low[0]["device_time_s"] <= 30.2


@pytest.mark.virtual_clock
def test_h50_a_speaker_fault_is_marked_and_raised_again_each_ten_minutes(tmp_path: Path, response: Response) -> None:
    """It breaks after the start, with somebody at the screen, who acknowledges it; it is mended after 20 minutes."""
    steps = '[[steps]]\ncurrent = "0.5 mA"\ntime = "1300 s"\nramp = "2.5 s"\n'
    done = session(
        tmp_path, "speaker@5", "speaker=off@1210", uri="sim:", options="rate=500", attended=True, steps=steps,
        whole=False, acts={6.0: Session.acknowledge, 7.0: Session.reset, 1220.0: Session.reset},
    )  # fmt: skip
    assert (done.receipt["outcome"], done.receipt["trips"]) == ("complete", [])
    times_s = [event["device_time_s"] for event in raised(done, "speaker-fault")]
    assert len(times_s) == 3
    response("H50", 5.0, times_s[0])
    for before_s, after_s in pairwise(times_s):
        response("H50", before_s, after_s)
        assert after_s - before_s > 599.7
    (row,) = [row for row in done.receipt["alarm_log"] if row["alarm"] == "speaker-fault"]
    assert (row["priority"], row["latched"]) == ("LOW", True)
    assert 1210.0 <= row["gone_s"] < 1210.5 and 1220.0 <= row["reset_s"] < 1220.5, "no reset while it is broken"


@pytest.mark.parametrize("attended", [False, True])
def test_h50_without_a_speaker_nothing_starts_where_nobody_watches(
    tmp_path: Path, response: Response, attended: bool
) -> None:
    done = session(tmp_path, "speaker@0", uri="sim:", attended=attended)
    assert [event["tick"] <= 200 for event in raised(done, "speaker-fault")] == [True]
    if attended:
        assert done.receipt["outcome"] == "complete"
        return
    assert done.receipt["outcome"] == "aborted"
    assert done.receipt["reason"].startswith("The device's alarm speaker is broken [H50]")
    assert "nobody watches the screen" in done.receipt["reason"]
    assert Phase.RAMP_UP not in done.rows["phase"]
    response.nothing_flowed("H50", float(np.abs(done.truth["current_peak_a"]).max()))
