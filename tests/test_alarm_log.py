"""Every alarm is in the log, once: sessions with faults, whose telemetry says what has to be there."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ionto_rt.alarms import (
    DERATED_LONG_S,
    Priority,
    SoftAlarm,
    alarm_for_end,
    alarm_for_pause,
    alarm_for_soft,
    alarm_for_trip,
)
from ionto_rt.codes import LOOP_SEQUENCE, Advice, Contact, EndReason, Event, OperatorCommand
from ionto_rt.device import open_device
from ionto_rt.record import Record
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from treatments import together, treatment

STEPS = '[[steps]]\ncurrent = "400 uA"\ndose = "0.03 mA*min"\nramp = "1 s"'
ACTS: dict[str, Callable[[Session], object]] = {
    "pause": Session.pause,
    "resume": Session.resume,
    "acknowledge": Session.acknowledge,
    "reset": Session.reset,
    "reset and resume": lambda session: (session.reset(), session.resume()),
    "silence": Session.pause_audio,
    "hear": Session.end_audio_pause,
    "stop": Session.stop,
    "off": Session.stop_now,
}
FAULTS = ("open@{0}", "short@{0}", "area=0.4@{0}", "area=0.05@{0}", "stall@{0}+0.004", "stall@{0}+0.02", "stuck@{0}",
          "unplug@{0}")  # fmt: skip
ADVICES = {Advice.WET_PADS: SoftAlarm.PADS_DRY, Advice.MAINS: SoftAlarm.MAINS, Advice.AREA: SoftAlarm.AREA_CAPPED}
MOMENTS = st.integers(2, 80).map(lambda tenths: tenths / 10.0)


def began(column: Any, value: int | None = None) -> list[int]:
    """Rows in which a column became `value`, or another number than 0."""
    now = column == value if value is not None else column
    before = np.concatenate([[0], now[:-1]])
    return [int(at) for at in np.flatnonzero((now != before) & (now != 0))]


def wanted_alarms(rows: Any) -> Counter[tuple[str, int]]:
    """(key, tick) of each alarm that the rows of one channel call for."""
    tick = rows["index"]
    found: Counter[tuple[str, int]] = Counter()

    def add(alarm: Any, row: int) -> None:
        if alarm.priority != Priority.INFORMATION:
            found[alarm.key, int(tick[row])] += 1

    for row in began(rows["trip"]):
        add(alarm_for_trip(int(rows["trip"][row])), row)
    at_once = (rows["operator_command"] == OperatorCommand.RESUME) & (rows["pause"] != 0)
    for row in sorted({*began(rows["pause"]), *np.flatnonzero(at_once).tolist()}):
        if not rows["trip"][row]:
            add(alarm_for_pause(int(rows["pause"][row]), latched=bool(rows["pause_latched"][row])), row)
    for row in began(rows["contact"], Contact.LOST):
        add(alarm_for_soft(SoftAlarm.CONTACT_LOST), row)
    for row in began(rows["limited"]):
        if rows["contact"][row] != Contact.LOST:
            add(alarm_for_soft(SoftAlarm.DERATED), row)
    for bit, soft in ADVICES.items():
        for row in began((rows["advice"] & bit) != 0):
            add(alarm_for_soft(soft), row)
    for row in np.flatnonzero(rows["operator_sequence"] & LOOP_SEQUENCE):
        add(alarm_for_soft(SoftAlarm.HELD_FOR_OTHERS), int(row))
    for row in np.flatnonzero(rows["events"] & Event.END):
        reason = int(rows["end_reason"][row])
        if reason not in (EndReason.COMPLETE, EndReason.TRIP):
            add(alarm_for_end(reason), int(row))
    return found


HOST = {"late-commands", "ring-overflow", "record-behind", "record-stopped", "device-lost", "screen-hung", "locked",
        "speaker-fault", "pause-left", "derated-long"}  # fmt: skip
"""Raised by what the host sees over many ticks, or not in telemetry at all."""


def check_log(receipt: dict[str, Any]) -> set[str]:
    """The log against telemetry and against the receipt's list; the keys that were raised."""
    record = Record.open(receipt["record"])
    telemetry, events = record.telemetry(), record.events().events
    times_us = dict(zip(telemetry["index"].tolist(), telemetry["device_time_us"].tolist(), strict=True))
    several = len(record.channels) > 1
    raised = [event for event in events if event.fields.get("transition") == "raised"]
    for number in range(len(record.channels)):
        rows = telemetry.of_channel(number) if several else {name: telemetry[name] for name in COLUMNS}
        own = [event for event in raised if not several or event.fields.get("channel") == number]
        logged = Counter((e.fields["alarm"], e.tick) for e in own if e.fields["alarm"] not in HOST)
        assert logged == wanted_alarms(rows)
    lost = receipt["trips"].count("DEVICE_LOST")
    assert sum(event.fields["alarm"] == "device-lost" for event in raised) == lost
    for event in events:
        if "transition" in event.fields and event.tick is not None:
            assert event.fields["device_time_s"] == pytest.approx(times_us[event.tick] * 1e-6, abs=1e-6)

    assert sum(row["times"] for row in receipt["alarm_log"]) == len(raised)
    kinds = Counter(event.kind for event in events)
    assert kinds["alarm-reset"] == sum(row["reset_s"] is not None for row in receipt["alarm_log"])
    silent = sum(row["acknowledged_s"] is not None for row in receipt["alarm_log"])
    assert kinds["alarm-acknowledged"] >= silent, "what came again after it sounds, and was acknowledged all the same"
    ended = sum(row["ended_s"] is not None and not row["latched"] for row in receipt["alarm_log"])
    assert kinds["alarm-ended"] == ended
    for row in receipt["alarm_log"]:
        assert row["ended_s"] == row["reset_s"] if row["latched"] else row["ended_s"] is not None, row
    return {event.fields["alarm"] for event in raised}


COLUMNS = ("index", "trip", "pause", "pause_latched", "contact", "limited", "operator_command", "operator_sequence",
           "events", "end_reason", "advice")  # fmt: skip


def run(text: Treatment, uri: str, acts: dict[float, str]) -> dict[str, Any]:
    waiting = sorted(acts.items())

    def watch(session: Session) -> None:
        while waiting and session.progress.elapsed_s >= waiting[0][0]:
            ACTS[waiting.pop(0)[1]](session)
        if session.progress.elapsed_s > 30.0:
            session.stop()

    with tempfile.TemporaryDirectory() as folder, open_device(uri) as device:
        receipt = Session(text, device, out_dir=Path(folder), speed="max", watcher=watch, attended=True).run()
        check_log(receipt)
        return receipt


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    faults=st.lists(st.tuples(st.sampled_from(FAULTS), MOMENTS), max_size=3),
    acts=st.dictionaries(MOMENTS, st.sampled_from(sorted(ACTS)), max_size=8),
    skin=st.sampled_from(["typical", "dry", "hairy"]),
    compliance=st.sampled_from([7, 20, 60]),
)
def test_telemetry_and_log_agree_on_every_alarm(
    faults: list[tuple[str, float]], acts: dict[float, str], skin: str, compliance: int
) -> None:
    query = [f"skin={skin}", f"compliance={compliance}", *(f"fault={kind.format(at_s)}" for kind, at_s in faults)]
    run(treatment(STEPS), f"sim:?{'&'.join(query)}", acts)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    faults=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(FAULTS[:4]), MOMENTS), max_size=3),
    acts=st.dictionaries(MOMENTS, st.sampled_from(sorted(ACTS)), max_size=6),
    policy=st.sampled_from(["stop", "pause", "continue"]),
)
def test_of_several_channels_too(faults: list[tuple[int, str, float]], acts: dict[float, str], policy: str) -> None:
    one = treatment(STEPS).source.decode()
    both = Treatment.parse(together([one, one], on_channel_trip=policy).encode(), "t.toml")
    query = ["channels=2", *(f"fault={number}:{kind.format(at_s)}" for number, kind, at_s in faults)]
    run(both, f"sim:?{'&'.join(query)}", acts)


def test_what_is_raised_here_is_not_little() -> None:
    """The sessions above reach most kinds of alarm; a few that must be among them."""
    seen: set[str] = set()
    for uri, acts in (
        ("sim:?fault=open@3", {}),
        ("sim:?fault=short@3", {}),
        ("sim:?fault=stall@3+0.004", {4.5: "acknowledge", 5.0: "reset and resume"}),
        ("sim:?fault=open@0.1", {}),
        ("sim:?fault=unplug@3", {}),
        ("sim:?compliance=7", {}),
    ):
        with tempfile.TemporaryDirectory() as folder, open_device(uri) as device:
            waiting = sorted(acts.items())

            def watch(session: Session, waiting: list[tuple[float, str]] = waiting) -> None:
                while waiting and session.progress.elapsed_s >= waiting[0][0]:
                    ACTS[waiting.pop(0)[1]](session)

            receipt = Session(
                treatment(STEPS), device, out_dir=Path(folder), speed="max", watcher=watch, attended=True
            ).run()
            seen |= check_log(receipt)
    assert {"open-lead", "short", "lost-samples-pause", "contact-open", "device-lost"} <= seen
    assert DERATED_LONG_S == 30.0
