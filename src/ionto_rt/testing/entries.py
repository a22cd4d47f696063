"""Hazards that no running tick can show: what must not begin, and what happens around a session, each through the way
that it takes in earnest. The campaign counts them beside its compiled sessions, in the same table.

An entry is a hazard and where it comes up (before the start, or a phase); what is done follows from seed and number.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ionto_rt.calibration_file import RangeCalibration, write_calibration
from ionto_rt.campaign import ARMED_PHASES, COLUMNS, Draw
from ionto_rt.codes import Phase
from ionto_rt.device import Device, SimBytes
from ionto_rt.errors import IontoError, RefusedError
from ionto_rt.events import utc_text
from ionto_rt.hazards import START
from ionto_rt.journal import Journal
from ionto_rt.record import RecordError
from ionto_rt.session import Session
from ionto_rt.testing.disk import FaultyFiles
from ionto_rt.treatment import Treatment

HEAD = """\
format = 1
title = "entry"
drug = "{drug}"
{who}
[electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "{polarity}"
[electrodes.return]
type = "return-pad"
area = "25 cm^2"
{limits}
"""
STEP = '[[steps]]\ncurrent = "{current}"\n{length}\nramp = "{ramp}"\n'
WITH_PAUSE = (
    '[[steps]]\ncurrent = "1 mA"\ntime = "2.5 s"\nramp = "1.5 s"\n[[steps]]\npause = "2.5 s"\n'
    '[[steps]]\ncurrent = "1 mA"\ntime = "2.5 s"\nramp = "1.5 s"\n'
)
SOME = 10
"""Entries that a process takes at a time."""
PATIENT = 'subject = "S-07"\nsite = "left knee"'


class WrongError(Exception):
    """What must not be, has been."""


def must(good: object, what: str) -> None:
    """WrongError unless `good`."""
    if not good:
        raise WrongError(what)


def text(
    *,
    drug: str = "dexamethasone-phosphate",
    polarity: str = "cathode",
    current: str = "1 mA",
    length: str = 'time = "2 s"',
    ramp: str = "1.5 s",
    who: str = "",
    limits: str = "",
    steps: str | None = None,
) -> bytes:
    """A treatment file of some seconds."""
    head = HEAD.format(drug=drug, polarity=polarity, who=who, limits=limits)
    return (head + (steps or STEP.format(current=current, length=length, ramp=ramp))).encode()


def simulated(**options: Any) -> Device:
    """A virtual device in lock-step."""
    device = Device("sim:", SimBytes({"sample_rate_hz": 500.0, **options}))
    device.greet()
    return device


def flowed_c(device: Device) -> float:
    """What has truly flowed."""
    return float(device.port.sim.device.absolute_charge_c)  # type: ignore[attr-defined]


def refused(folder: Path, treatment: bytes, said: str, device: Device | None = None, **how: Any) -> None:
    """It does not begin: in one line that says why, and without any current."""
    device = device or simulated()
    try:
        Session(Treatment.parse(treatment, "entry.toml"), device, out_dir=folder, speed="max", **how).run()
    except IontoError as error:
        line = str(error)
    else:
        raise WrongError("it ran")
    finally:
        device.close()
    must(said in line and "\n" not in line, f"{said!r} is not in {line!r}")
    must(flowed_c(device) == 0.0, "current flowed")


def day_is_full(draw: Draw, folder: Path) -> None:
    """H15"""
    limits = '[limits]\nday_dose = "0.1 mA*min"'
    if not (folder / "ready").exists():
        first = text(who=PATIENT, length='dose = "0.08 mA*min"', limits=limits)
        device = simulated()
        receipt = Session(Treatment.parse(first), device, out_dir=folder, speed="max").run()
        must(receipt["outcome"] == "complete", receipt["reason"])
        (folder / "ready").touch()
    dose = f'dose = "{draw.uniform(0.03, 0.1):.3f} mA*min"'
    refused(folder, text(who=PATIENT, length=dose, limits=limits), "exceed a day's")


def other_polarity(draw: Draw, folder: Path) -> None:
    """H17"""
    current = f"{draw.between(100, 2000)} uA"
    refused(
        folder, text(polarity="anode", current=current, ramp="4 s", length='time = "9 s"'), "goes in under the cathode"
    )


def other_drug(draw: Draw, folder: Path) -> None:
    """H18: a letter that is missing, doubled or another."""
    name, at = "dexamethasone-phosphate", draw.below(20)
    wrong = (name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name[:at] + "x" + name[at + 1 :])
    refused(folder, text(drug=draw.of([one for one in wrong if one != name])), "not in the catalogue")


def other_unit(draw: Draw, folder: Path) -> None:
    """H19"""
    number = draw.between(1, 40)
    if draw.below(2):
        refused(
            folder, text(current=f"{number}{draw.of((' mA*min', ' mg', '', ' A', ' mV', ' min'))}"), "steps[0].current"
        )
    else:
        length = f'dose = "{number}{draw.of((" mg", " mA", "", " mV", " s"))}"'
        refused(folder, text(length=length), "steps[0].dose")


def steeper_ramp(draw: Draw, folder: Path) -> None:
    """H35"""
    refused(folder, text(current=f"{draw.between(1000, 3900)} uA", ramp=f"{draw.uniform(0.0, 0.9):.2f} s"), "ramp")


def no_setpoint(draw: Draw, folder: Path) -> None:
    """H36"""
    current = draw.of(
        (f"-{draw.between(1, 4000)} uA", "nan mA", "inf mA", "-inf mA", f"1e{draw.between(1, 300)} mA", "0 mA")
    )
    refused(folder, text(current=current), current)


def calibration_expired(draw: Draw, folder: Path) -> None:
    """H37"""
    device = simulated()
    device.uri, device.hello = "acme:1", replace(device.hello, model="daq", serial=f"E{os.getpid()}")
    days = draw.of((draw.between(31, 4000), -draw.between(2, 4000)))
    facts: dict[str, Any] = dict.fromkeys(RangeCalibration.__dataclass_fields__, 0.0)
    facts |= {"measured_utc": utc_text(datetime.now(UTC) - timedelta(days=days)), "load": "600 ohm"}
    write_calibration(folder, device.hello, dict.fromkeys(range(len(device.hello.ranges)), RangeCalibration(**facts)))
    refused(folder, text(), "days old" if days > 0 else "after today", device)


def disk_refuses(draw: Draw, folder: Path) -> None:
    """H38"""
    files = (
        FaultyFiles(folder, read_only=True) if draw.below(2) else FaultyFiles(folder, full_after_bytes=draw.below(400))
    )
    refused(folder, text(), str(folder), files=files)


def supply_weak(draw: Draw, folder: Path) -> None:
    """H39: below its reserve nothing starts."""
    device = simulated(faults=["supply-warning@0"], seed=draw.below(1000))
    receipt = Session(Treatment.parse(text()), device, out_dir=folder, speed="max").run()
    device.close()
    must(receipt["trips"] == ["SUPPLY_LOW"], str(receipt["trips"]))
    must(flowed_c(device) == 0.0, "current flowed")


def pads_too_small(draw: Draw, folder: Path) -> None:
    """H43"""
    dose = f'dose = "{draw.between(200, 5000)} mA*min"'
    refused(folder, text(length=dose), "steps")


def locked(draw: Draw, folder: Path) -> None:
    """H47"""
    if not (folder / "ready").exists():
        for _ in range(3):
            device = simulated(faults=["open@2.5"])
            receipt = Session(Treatment.parse(text(who=PATIENT)), device, out_dir=folder, speed="max").run()
            device.close()
            must(receipt["trips"] == ["OPEN_LEAD"], str(receipt["trips"]))
        (folder / "ready").touch()
    refused(folder, text(who=PATIENT, current=f"{draw.between(300, 1000)} uA"), "locked")


def no_speaker(draw: Draw, folder: Path) -> None:
    """H50: where nobody watches."""
    device = simulated(faults=["speaker@0"], seed=draw.below(1000))
    receipt = Session(Treatment.parse(text()), device, out_dir=folder, speed="max").run()
    device.close()
    must(receipt["outcome"] == "aborted" and "[H50]" in receipt["reason"], receipt["reason"])


def second_host(draw: Draw, folder: Path) -> None:
    """H51"""
    device, said, visits, at = simulated(), [], 0, draw.between(1, 20)

    def watch(running: Session) -> None:
        nonlocal visits
        visits += 1
        if visits == at:
            try:
                Session(Treatment.parse(text()), device, out_dir=folder, speed="max").run()
            except RefusedError as error:
                said.append(str(error))
            running.stop_now()

    Session(Treatment.parse(text()), device, out_dir=folder, speed="max", watcher=watch).run()
    device.close()
    must(len(said) == 1 and "runs on this device already" in said[0], f"second session: {said}")


@contextmanager
def clock_set(jump: timedelta) -> Iterator[None]:
    """The wall clock of this process is off by so much."""
    clock = time.time

    class Set(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + jump

    set_in = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("ionto_rt.") and name != __name__ and getattr(module, "datetime", None) is datetime
    ]
    try:
        time.time = lambda: clock() + jump.total_seconds()
        for module in set_in:
            module.datetime = Set  # type: ignore[attr-defined]
        yield
    finally:
        time.time = clock
        for module in set_in:
            module.datetime = datetime  # type: ignore[attr-defined]


def in_phase(
    folder: Path, phase: Phase, act: Callable[[Session], object], device: Device, draw: Draw, **how: Any
) -> tuple[Session, dict[str, Any]]:
    """A session in which something happens at one of the first visits in a phase, and what its receipt says."""
    left, done = draw.below(4) if phase not in (Phase.SELF_TEST, Phase.CONTACT_CHECK) else draw.below(2), False

    def watch(running: Session) -> None:
        nonlocal left, done
        if not done and running.progress.phase == phase:
            left -= 1
            if left < 0:
                done = True
                act(running)

    treatment = Treatment.parse(text(steps=WITH_PAUSE))
    session = Session(treatment, device, out_dir=folder, speed="max", watcher=watch, attended=True, **how)
    try:
        receipt = session.run()
    finally:
        device.close()
    must(done, f"there was no {phase.name}")
    return session, receipt


def clock_jumps(phase: Phase) -> Entry:
    """H27: a session takes no notice."""

    def entry(draw: Draw, folder: Path) -> None:
        jump = timedelta(seconds=draw.of((-1, 1)) * draw.uniform(1.0, 3e7))
        with ExitStack() as until_then:
            session, receipt = in_phase(
                folder,
                phase,
                lambda running: until_then.enter_context(clock_set(jump)),
                simulated(seed=draw.below(20)),
                draw,
            )
        must(receipt["outcome"] == "complete" and not receipt["trips"], receipt["reason"])
        must(receipt["delivered_net_c"] >= 0.995 * session.plan.prescribed_c, "short of its dose")
        with Journal(folder) as journal:
            (row,) = journal.get(Path(receipt["record"]).name)
        must(row.outcome == "complete" and row.delivered_net_c == receipt["delivered_net_c"], "another journal entry")

    return entry


def disk_fills(phase: Phase) -> Entry:
    """H38: the session ends by itself with the output off, or the disk has room again and nothing is lost."""

    def entry(draw: Draw, folder: Path) -> None:
        files = FaultyFiles(folder)
        device = simulated(seed=draw.below(20))

        def act(running: Session) -> None:
            files.full_after_bytes = files.written_bytes

        told: list[str] = ["record-stopped"]
        try:
            _, receipt = in_phase(folder, phase, act, device, draw, files=files)
        except RecordError:
            pass
        else:
            told = [row["alarm"] for row in receipt["alarm_log"]]
        sim = device.port.sim.device  # type: ignore[attr-defined]
        must(abs(sim.current_a) < 1e-9 and not sim.relay_closed, "current after the end")
        must("record-behind" in told or "record-stopped" in told, "nothing was said of it")

    return entry


def pause_is_left(draw: Draw, folder: Path) -> None:
    """H46"""
    left_s, resumed = draw.uniform(610.0, 640.0), False

    def watch(running: Session) -> None:
        nonlocal resumed
        elapsed_s = running.loop.counters["ticks"] * running.device.hello.tick_s
        if running.progress.phase == Phase.TREATMENT and not running.progress.paused:
            running.pause()
        elif elapsed_s > left_s and not resumed:
            resumed = True
            running.stop()

    device = simulated(seed=draw.below(20))
    session = Session(Treatment.parse(text()), device, out_dir=folder, speed="max", watcher=watch, attended=True)
    receipt = session.run()
    device.close()
    told = [row for row in receipt["alarm_log"] if row["alarm"] == "pause-left"]
    must(len(told) == 1 and told[0]["raised_s"] > 600.0, f"pause-left: {told}")
    must(receipt["outcome"] == "aborted", receipt["reason"])


def third_stop(draw: Draw, folder: Path) -> None:
    """H47: the same cause for the third time locks, until it is reset."""
    apart_s = draw.uniform(4.0, 6.0)
    faults = [f"stall@{3.0 + apart_s * k:.3f}+0.006" for k in range(3)]
    said: list[str] = []
    waited = 0

    def watch(running: Session) -> None:
        nonlocal waited
        waited = waited + 1 if running.progress.paused else 0
        if waited == 20:
            running.reset()
            said.append(running.resume())
            if said[-1]:
                running.reset()
                said.append(running.resume())

    device = simulated(faults=faults, seed=draw.below(20))
    session = Session(
        Treatment.parse(text(length='dose = "0.2 mA*min"')),
        device, out_dir=folder, speed="max", watcher=watch, attended=True,
    )  # fmt: skip
    receipt = session.run()
    device.close()
    must("locked" in [row["alarm"] for row in receipt["alarm_log"]], f"not locked: {receipt['alarm_log']}")
    must(any("Locked" in one for one in said), f"resumed: {said}")
    must(receipt["outcome"] == "complete", receipt["reason"])


Entry = Callable[[Draw, Path], None]
ENTRIES: dict[tuple[str, str], Entry] = {
    ("H15", START): day_is_full,
    ("H17", START): other_polarity,
    ("H18", START): other_drug,
    ("H19", START): other_unit,
    ("H35", START): steeper_ramp,
    ("H36", START): no_setpoint,
    ("H37", START): calibration_expired,
    ("H38", START): disk_refuses,
    ("H39", START): supply_weak,
    ("H43", START): pads_too_small,
    ("H47", START): locked,
    ("H50", START): no_speaker,
    ("H51", START): second_host,
    ("H46", "PAUSE"): pause_is_left,
    ("H47", "PAUSE"): third_stop,
    **{("H27", phase.name): clock_jumps(phase) for phase in ARMED_PHASES},
    **{("H38", phase.name): disk_fills(phase) for phase in ARMED_PHASES},
}


def run_entry(seed: int, hazard: str, place: str, number: int, folder: Path) -> str:
    """Entry `number` of a hazard at a place, in a folder that it may share with its like. What is wrong, or ""."""
    draw = Draw(seed, number, int(hazard[1:]), len(place))
    try:
        ENTRIES[hazard, place](draw, folder)
    except (WrongError, IontoError, OSError) as error:
        return f"{hazard} {place} {number} of seed {seed}: {error}"
    return ""


def run_some(seed: int, hazard: str, place: str, first: int, count: int) -> list[str]:
    """Entries first to first + count - 1 of a hazard at a place: what is wrong with each, or ""."""
    with tempfile.TemporaryDirectory() as scratch:
        found = []
        for number in range(first, first + count):
            folder = Path(scratch) / ("all" if place == START else str(number))
            folder.mkdir(exist_ok=True)
            found.append(run_entry(seed, hazard, place, number, folder))
        return found


def run_entries(seed: int, each: int, jobs: int = 1) -> tuple[Counter[tuple[str, int]], list[str]]:
    """`each` of all entries: how many were as they must be, by hazard and column of the campaign's table, and what was
    wrong with the others.
    """
    hits: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        asked = [
            (cell, pool.submit(run_some, seed, *cell, first, min(SOME, each - first)))
            for cell in sorted(ENTRIES, key=lambda cell: cell[0] != "H46")
            for first in range(0, each, SOME)
        ]
        for (hazard, place), future in asked:
            said = future.result()
            hits[hazard, COLUMNS[place]] += said.count("")
            wrong += filter(None, said)
    return hits, wrong


__all__ = ["ENTRIES", "run_entries", "run_entry"]
