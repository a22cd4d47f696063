"""Whole sessions under faults: `Session` with record and journal on `sim:`, and what must be true of them afterwards.

Where the compiled sessions of the campaign check every tick, these check what a person is left with: the receipt
against the plant's own charge, the journal against the receipt, every alarm in the log, a record that verifies, and a
replay that is the same to the bit. Like those, each follows from a seed and its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ionto_rt.campaign import SKINS, Draw, treatment_text
from ionto_rt.codes import OnTrip
from ionto_rt.core.virtual_device import DEVICE_FAULTS
from ionto_rt.device import Device, SimBytes
from ionto_rt.errors import RefusedError
from ionto_rt.journal import Journal
from ionto_rt.record import COULOMB_PER_MAMIN, EVENTS, Record, RecordError
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.testing.disk import FaultyFiles
from ionto_rt.testing.ports import FaultyPort
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify

VISITS_MOST = 900
"""Of the orchestrator; then the operator stops."""
Do = Callable[[Session, Any], object]
Happens = tuple[str, Do]

PLANT: tuple[tuple[str, float, float], ...] = (
    ("open", 0.0, 0.0),
    ("close", 0.0, 0.0),
    ("short", 0.0, 0.0),
    ("area", 0.2, 1.0),
    ("stuck", 0.0, 0.0),
    ("dac", -100.0, 100.0),
    ("leak", 1e3, 1e6),
    ("stall", 0.001, 0.2),
    ("loose", 10.0, 300.0),
    ("hum", 10.0, 5000.0),
    ("supply-low", 0.0, 0.0),
    ("leakage", 0.0, 0.0),
    ("hot", 0.0, 0.0),
    ("stop-button", 0.02, 0.4),
    ("adc-gain", 0.5, 1.5),
    ("unplug", 0.0, 0.0),
)
WIRE = ("drop", "duplicate", "flip", "split", "garbage", "delay", "reorder")


@dataclass
class Whole:
    """A whole session, before and after."""

    seed: int
    number: int
    said: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    receipt: dict[str, Any] | None = None
    folder: Path | None = None

    @property
    def words(self) -> str:
        """What was done, and what is wrong."""
        return "\n".join([f"whole session {self.number} of seed {self.seed}", *self.said, *self.problems])


def run_whole(seed: int, number: int, out_dir: Path) -> Whole:
    """Whole session `number`, its record in a folder under `out_dir`. In every eighth nothing goes wrong."""
    draw = Draw(seed, number, 0x3707E)
    out_dir.mkdir(parents=True, exist_ok=True)
    whole = Whole(seed, number)
    healthy = number % 8 == 7
    channels = draw.of((1, 1, 2))
    voltage, on_trip = draw.below(3) == 0, OnTrip(draw.below(3))
    text = treatment_text(draw, channels, research=False, voltage=voltage, on_trip=on_trip)
    options = {
        "front_end": "voltage" if voltage else "current",
        "skin": "typical" if healthy else draw.of(SKINS),
        "seed": 0 if healthy else draw.below(20),
        "channels": channels,
    }
    whole.said.append(f"{options} {text}")
    device = Device("sim:", SimBytes(options))
    sim = device.port.sim.device  # type: ignore[attr-defined]
    faults: list[tuple[str, str, int, int, int]] = []
    if not healthy and draw.below(2):
        for _ in range(draw.between(1, 4)):
            way = draw.of(("to-host", "to-device"))
            faults.append((draw.of(WIRE), way, draw.between(1, 8000), draw.between(1, 12), draw.between(1, 9)))
    device.port = FaultyPort(device.port, faults, seed=draw.word(), clocked=True)
    device.greet()
    acts = {} if healthy else _acts(draw, channels)
    whole.said += [f"visit {visit}: {what}" for visit, (what, _) in sorted(acts.items())] + [
        f"wire {f}" for f in faults
    ]
    plant = any(what.startswith("device") for what, _ in acts.values())
    visits = 0

    def watch(session: Session) -> None:
        nonlocal visits
        visits += 1
        if visits in acts:
            acts[visits][1](session, sim)
        if visits == VISITS_MOST:
            session.stop()

    full = None if healthy or draw.below(6) else draw.between(20_000, 4_000_000)
    if full is not None:
        whole.said.append(f"disk full after {full} bytes")
    session = Session(
        Treatment.parse(text.encode(), "whole.toml"),
        device,
        out_dir=out_dir,
        speed="max",
        watcher=watch,
        attended=draw.below(2) == 0,
        files=FaultyFiles(out_dir, seed=seed, full_after_bytes=full),
    )
    try:
        whole.receipt = session.run()
    except RefusedError as error:
        if healthy or session.record_path is not None or any(one.current_peak_a for one in _plants(sim)):
            whole.problems.append(f"refused: {error}")
        return whole
    except RecordError as error:
        # A disk that is full to the end leaves a session for `recover`; nothing may be on.
        if full is None or any(abs(one.current_a) > 1e-9 for one in _plants(sim)):
            whole.problems.append(f"record: {error}")
        return whole
    finally:
        device.close()
    whole.folder = session.record_path
    _judge(whole, session, sim, out_dir, healthy=healthy, plant=plant, full=full is not None)
    return whole


def _plants(sim: Any) -> list[Any]:
    return [sim.channel(number) for number in range(sim.channels)]


def _inject(kind: str, value: float, channel: int) -> Do:
    return lambda session, sim: sim.inject(kind, value, 0 if kind in DEVICE_FAULTS else channel)


def _trim(value_a: float) -> Do:
    return lambda session, sim: session.trim(value_a)


def _pause(session: Session, sim: Any) -> None:
    session.pause()


def _resume(session: Session, sim: Any) -> None:
    session.reset()
    session.resume()


def _stop(session: Session, sim: Any) -> None:
    session.stop()


def _stop_now(session: Session, sim: Any) -> None:
    session.stop_now()


def _acts(draw: Draw, channels: int) -> dict[int, Happens]:
    """What happens at which visit of the orchestrator."""
    found: dict[int, Happens] = {}
    for _ in range(draw.between(1, 5)):
        visit, channel = draw.between(1, 120), draw.below(channels)
        which = draw.below(8)
        if which < 4:
            kind, least, most = draw.of(PLANT)
            value = draw.uniform(least, most)
            found[visit] = f"device {kind} {value:g} on channel {channel}", _inject(kind, value, channel)
        elif which < 6:
            found[visit] = "pause", _pause
            found[visit + draw.between(2, 20)] = "reset and resume", _resume
        elif which == 6:
            value = draw.uniform(-4e-4, 4e-4)
            found[visit] = f"trim {value:g} A", _trim(value)
        elif draw.below(2):
            found[visit] = "stop now", _stop_now
        else:
            found[visit] = "stop", _stop
    return found


def _judge(whole: Whole, session: Session, sim: Any, out_dir: Path, *, healthy: bool, plant: bool, full: bool) -> None:
    receipt, folder = whole.receipt, session.record_path
    assert receipt is not None and folder is not None

    def must(good: bool, what: str) -> None:
        if not good:
            whole.problems.append(what)

    for number, one in enumerate(_plants(sim)):
        must(abs(one.current_a) < 1e-9 and not one.relay_closed, f"channel {number}: current after the end")
    parts = receipt.get("channels", [receipt])
    for channel, part in zip(session.channels, parts, strict=True):
        one = sim.channel(channel.number)
        truth_c = channel.plan.polarity * one.charge_c
        count = part["dose_device_mamin"]
        on_record_c = part["delivered_net_c"]
        must(
            count is None or on_record_c >= count * COULOMB_PER_MAMIN - 1e-12, "dose on record below the device's count"
        )
        if not plant:
            slack_c = 5e-6 + 2e-3 * one.absolute_charge_c
            must(on_record_c >= truth_c - slack_c, f"dose on record {on_record_c} C, in truth {truth_c} C")
            tick_c = session.limits.current_max_a * session.device.hello.tick_s
            level_c = 0.11 * session.limits.current_max_a if receipt["trips"] or receipt["gaps"] else 0.0
            must(truth_c <= channel.plan.prescribed_c + tick_c + slack_c + level_c, f"dose {truth_c} C is over")
        if part["outcome"] == "complete":
            must(on_record_c >= 0.995 * channel.plan.prescribed_c, "complete, but short of its dose")
    with Journal(out_dir) as journal:
        rows = sorted(journal.get(folder.name), key=lambda row: row.channel)
    must(len(rows) == len(parts), f"{len(rows)} channels in the journal")
    for row, part in zip(rows, parts, strict=False):
        must(row.outcome == part["outcome"], f"journal says {row.outcome}, receipt {part['outcome']}")
        must(abs(row.delivered_net_c - part["delivered_net_c"]) < 1e-12, "another net charge in the journal")
        must(abs(row.delivered_abs_c - part["delivered_abs_c"]) < 1e-12, "another absolute charge in the journal")
    if healthy:
        must(receipt["outcome"] == "complete", f"with nothing wrong: {receipt['reason']}")
        must(not receipt["trips"], f"with nothing wrong: {receipt['trips']}")
    if full:
        return
    events = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    told = {event["fields"].get("name") for event in events if event["kind"] == "trip"}
    for trip in receipt["trips"]:
        must(trip in told or trip == "DEVICE_LOST", f"trip {trip} is not in {EVENTS}")
    rows_of = Record.open(folder).telemetry()
    tripped = {int(code) for code in set(rows_of["trip"].tolist()) if code}
    must(bool(tripped) <= bool(receipt["trips"]), f"trips {tripped} in the rows, none on the receipt")
    must(len(rows_of) == receipt["ticks"] * len(parts), f"{len(rows_of)} rows of {receipt['ticks']} ticks")
    checked = verify(folder)
    must(checked.ok, f"verify: {checked.problems}")
    difference = replay(folder).difference
    must(difference is None, f"replay: {difference}")


__all__ = ["Whole", "run_whole"]
