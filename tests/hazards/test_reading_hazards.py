"""What host and device read, compute and keep in memory."""

import math
from pathlib import Path

import numpy as np
import pytest

from injection import device_time_s, session
from ionto_rt.codes import Trip
from ionto_rt.device import open_device
from ionto_rt.record import Record
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from responses import Response
from support import memory_of, state_of

MOMENTS = (2.5, 4.5, 6.3)
"""In ramp up, treatment and ramp down of the short session."""


@pytest.mark.parametrize("at_s", [4.5, 4.57])
@pytest.mark.parametrize(
    "fault", ["adc-gain=0.94", "adc-gain=1.07", "adc-gain-redundant=0.94", "adc-gain-redundant=1.06"]
)
def test_h23_readings_disagree(tmp_path: Path, response: Response, fault: str, at_s: float) -> None:
    """By more than 2 % of full scale, and by less than what is too much current for either reading."""
    done = session(tmp_path, f"{fault}@{at_s}")
    assert done.receipt["trips"] == ["READINGS_DISAGREE"]
    response("H23", at_s, done.first("trip"))


@pytest.mark.parametrize("at_s", [0.3, 0.8, *MOMENTS])
@pytest.mark.parametrize("lost_s", [0.003, 0.005, 0.009])
def test_h24_lost_samples(tmp_path: Path, response: Response, at_s: float, lost_s: float) -> None:
    done = session(tmp_path, f"stall@{at_s}+{lost_s}")
    response("H24", at_s, done.first("pause"))
    assert done.receipt["trips"] == [] and "[H24]" in done.receipt["reason"]


STEPS = '[[steps]]\ncurrent = "2 mA"\ndose = "0.4 mA*min"\nramp = "2.5 s"\n'


def waits_for_a_person(tmp_path: Path, key: str, *faults: str, at_s: float) -> list[str]:
    """Attended, it is resumed after a reset alone; unattended, it ends. The alarms, in their order."""
    said: list[object] = []
    acts = {
        at_s: lambda running: said.append(running.resume()),
        at_s + 1.0: lambda running: said.append([found.alarm.key for found in running.reset()[0]]),
        # Where it was the third stop by the same cause, its lock (H47) takes a reset of its own.
        at_s + 1.5: lambda running: running.reset(),
        at_s + 2.0: lambda running: said.append(running.resume()),
    }
    with_a_person = session(tmp_path, *faults, uri="sim:", steps=STEPS, acts=acts, attended=True)
    assert with_a_person.receipt["outcome"] == "complete"
    assert str(said[0]).startswith("not resumed, reset first: Paused") and said[1:] == [[key], ""]
    assert not (with_a_person.rows["level_a"] != 0.0)[round((at_s - 0.5) * 1e3) : round((at_s + 1.9) * 1e3)].any()
    alone = session(tmp_path, *faults, uri="sim:", steps=STEPS)
    assert alone.receipt["outcome"] == "aborted"
    assert alone.receipt["reason"].endswith("nobody was there to resume")
    for done in (with_a_person, alone):
        (row,) = [row for row in done.receipt["alarm_log"] if row["alarm"] == key]
        assert row["latched"]
    return [row["alarm"] for row in alone.receipt["alarm_log"]]


def test_h24_lost_samples_in_a_pause_that_would_end_by_itself(tmp_path: Path) -> None:
    faults = ("gain=0.85@5", "gain=1@7.5", "stall@7.6+0.004")
    alarms = waits_for_a_person(tmp_path, "lost-samples-pause", *faults, at_s=12.0)
    assert alarms[:2] == ["under-current-pause", "lost-samples-pause"]


def test_h03_the_last_retry_waits_for_a_person(tmp_path: Path) -> None:
    alarms = waits_for_a_person(tmp_path, "under-current", "gain=0.85@5", "gain=1@25.5", at_s=29.0)
    assert alarms[:3] == ["under-current-pause", "under-current-pause", "under-current"]


@pytest.mark.parametrize("lost_s", [0.011, 0.05])
def test_h24_many_lost_samples(tmp_path: Path, response: Response, lost_s: float) -> None:
    """From the end of the gap: nobody can answer a sample that does not come, and until then the lease runs."""
    done = session(tmp_path, f"stall@4.5+{lost_s}")
    response("H24", 4.5 + lost_s, done.first("trip"))
    assert done.receipt["trips"] == ["LOST_SAMPLES"]


@pytest.mark.parametrize("at_s", MOMENTS[:2])
@pytest.mark.parametrize(("stage", "field"), [("programme", "trim_a"), ("impedance", "estimate.resistance_ohm")])
def test_h32_not_a_number(tmp_path: Path, response: Response, stage: str, field: str, at_s: float) -> None:
    """A value in the tick's own memory turns into none, between two visits of the orchestrator."""
    injected: list[float] = []

    def poison(running: Session) -> None:
        part = getattr(state_of(running.channels[0].controller), stage)
        *inner, name = field.split(".")
        for step in inner:
            part = getattr(part, step)
        assert math.isfinite(getattr(part, name))
        setattr(part, name, math.nan)
        injected.append(running.loop.counters["ticks"] * 1e-3)

    done = session(tmp_path, acts={at_s: poison}, uri="sim:", whole=False)
    assert done.receipt["trips"] == ["NOT_FINITE"]
    response("H32", injected[0], done.first("trip"), through="memory")
    assert done.truth.current_after(injected[0] + 0.02) == 0.0


@pytest.mark.parametrize("at_s", [1.0, *MOMENTS])
@pytest.mark.parametrize("byte", [0, 77, -9])
def test_h54_limits_corrupt(tmp_path: Path, response: Response, byte: int, at_s: float) -> None:
    injected: list[float] = []

    def flip(running: Session) -> None:
        memory = memory_of(running.channels[0].controller, "guard")
        memory[byte % len(memory)] ^= 0x10
        injected.append(running.loop.counters["ticks"] * 1e-3)

    done = session(tmp_path, acts={at_s: flip}, uri="sim:", whole=False)
    assert Trip.LIMITS_CORRUPT.name in done.receipt["trips"]
    response("H54", injected[0], done.first("trip"), through="memory")


CHANNEL = """
[[channels]]
name = "{name}"
drug = "dexamethasone-phosphate"
[channels.electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "cathode"
[channels.electrodes.return]
type = "return-pad"
area = "25 cm^2"
[[channels.steps]]
current = "1 mA"
time = "{hold}"
ramp = "1.5 s"
"""


@pytest.mark.parametrize("on_trip", ["continue", "pause", "stop"])
def test_h42_leakage_between_channels(tmp_path: Path, response: Response, on_trip: str) -> None:
    """One channel has had its dose; from the other's pad gel runs to its own, and current with it."""
    head = f'format = 1\ntitle = "two"\non_channel_trip = "{on_trip}"\n'
    text = head + CHANNEL.format(name="left", hold="2 s") + CHANNEL.format(name="right", hold="12 s")
    truth = tmp_path / "truth.csv"
    with open_device(f"sim:?channels=2&truth={truth}&fault=0:crosstalk=3000@7") as device:
        running = Session(Treatment.parse(text.encode()), device, out_dir=tmp_path, speed="max")
        receipt = running.run()
    rows = Record.open(running.record_path).telemetry()
    left, right = (rows["channel"] == channel for channel in (0, 1))
    assert receipt["trips"] == ["CROSS_LEAKAGE"]
    tripped = int(np.argmax(left & (rows["trip"] != 0)))
    response("H42", 7.0, float(device_time_s(rows)[tripped]))
    asked = int(np.argmax(right & (rows["stop"] != 0)))
    assert rows["index"][asked] == rows["index"][tripped] + 1
    assert rows["level_a"][right][-1] == 0.0
    assert right.sum() < 10_000, "ended within the second or two that a ramp down takes"
