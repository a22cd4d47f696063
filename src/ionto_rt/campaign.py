"""The campaign: whole sessions on a virtual clock under seeded faults, every invariant checked in every tick.

A session is its number: what it runs (one of the scenarios), what goes wrong (a script of faults) and all noise follow
from the campaign's seed and that number alone. So any number of processes give the same result in any order, and one
line runs a session again. The sessions themselves are compiled (`ionto_rt.core.campaign`); here they are drawn, and
what came of them is counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ionto_rt
import ionto_rt.core
from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import (
    Advice,
    EndReason,
    FrontEnd,
    OnTrip,
    OperatorCommand,
    Pacing,
    Phase,
    SegmentKind,
    StopFlag,
    Trip,
)
from ionto_rt.configuration import FIT, UNFIT, controller_config, device_limits
from ionto_rt.core.campaign import ACT_NAMES, Prepared, Simulator
from ionto_rt.core.fault_port import WAYS, WIRE_FAULT_KINDS
from ionto_rt.core.virtual_device import DEVICE_FAULTS, FAULT_KINDS
from ionto_rt.device import Device, SimBytes
from ionto_rt.hazards import START, hazards, threshold
from ionto_rt.plan import compile_plan
from ionto_rt.safety import resolve_channels
from ionto_rt.treatment import Treatment

if TYPE_CHECKING:
    from ionto_rt.core.campaign import ActTuple, Simulated, Violation

SCENARIOS = 256
HEALTHY = 17
"""One session in so many has no fault: nothing may trip in it."""
MASK = (1 << 64) - 1
ARMED_PHASES = (
    Phase.SELF_TEST,
    Phase.CONTACT_CHECK,
    Phase.RAMP_UP,
    Phase.TREATMENT,
    Phase.PAUSE,
    Phase.RAMP_DOWN,
)
COLUMNS = {START: -1} | {phase.name: int(phase) for phase in ARMED_PHASES}
"""Of the table of coverage: name, and the number under which hits are counted."""
BILLION = 1_000_000_000
HITS_LEAST = 100
"""Of each cell in a campaign of a billion ticks."""
TOKEN = 0x5EED5EED


class Draw:
    """Numbers from a seed (splitmix64): the same on every version of Python."""

    def __init__(self, *seed: int) -> None:
        self.state = 0
        for part in seed:
            self.state = (self.state ^ part) & MASK
            self.state = self.word()

    def word(self) -> int:
        """64 bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, count: int) -> int:
        """0 to count - 1."""
        return self.word() % count

    def between(self, least: int, most: int) -> int:
        """Least to most, both included."""
        return least + self.below(most - least + 1)

    def share(self) -> float:
        """0 to 1."""
        return self.word() / 2.0**64

    def uniform(self, least: float, most: float) -> float:
        """Least to most."""
        return least + (most - least) * self.share()

    def of(self, things: Sequence[Any]) -> Any:
        """One of them."""
        return things[self.below(len(things))]


@dataclass(frozen=True)
class Act:
    """One thing that happens in a session, as struct Act of `core/campaign.pxd` has it."""

    kind: str
    code: int = 0
    phase: int = -1
    channel: int = 0
    after_ticks: int = 0
    length_ticks: int = 0
    value: float = 0.0
    undo: int = -1
    undo_value: float = 0.0

    def as_tuple(self) -> ActTuple:
        """For `Simulator.run`."""
        return (
            ACT_NAMES.index(self.kind),
            self.code,
            self.phase,
            self.undo,
            self.channel,
            self.after_ticks,
            self.length_ticks,
            self.value,
            self.undo_value,
        )

    @property
    def words(self) -> str:
        """What happens, for a person."""
        what = self.kind
        if self.kind == "device":
            what = FAULT_KINDS[self.code]
            if self.undo >= 0:
                what += f" (then {FAULT_KINDS[self.undo]})"
        elif self.kind == "wire":
            what = f"{WIRE_FAULT_KINDS[self.code & 15]} {WAYS[self.code >> 4]}"
        elif self.kind == "operator":
            what = f"operator: {OperatorCommand(self.code).name.lower()}"
        elif self.kind == "stop":
            what = f"stop flag: {StopFlag(self.code).name.lower()}"
        when = f"{self.after_ticks} ticks after " + ("arming" if self.phase < 0 else Phase(self.phase).name)
        more = f", value {self.value:g}" if self.value else ""
        more += f", for {self.length_ticks} ticks" if self.length_ticks else ""
        return f"{what} on channel {self.channel}, {when}{more}"


@dataclass(frozen=True)
class Scenario:
    """What a session runs: a device with its limits and a plan for each channel, and what it was made from."""

    number: int
    prepared: Prepared
    channels: int
    tick_s: float
    front_end: FrontEnd
    nominal_ticks: int
    levels_a: tuple[float, ...]
    lease_ticks: int
    words: str


STEPS = (
    '[[steps]]\ncurrent = "{a:g} uA"\ntime = "{t:g} s"\nramp = "{r:g} s"\n',
    '[[steps]]\ncurrent = "{a:g} uA"\ndose = "{d:g} mC"\nramp = "{r:g} s"\n',
    '[[steps]]\ncurrent = "{a:g} uA"\ntime = "{t:g} s"\nramp = "{r:g} s"\n'
    '[[steps]]\ncurrent = "{b:g} uA"\ndose = "{e:g} mC"\nramp = "{r:g} s"\n',
    '[[steps]]\ncurrent = "{a:g} uA"\ndose = "{d:g} mC"\nramp = "{r:g} s"\n[[steps]]\npause = "{p:g} s"\n'
    '[[steps]]\ncurrent = "{b:g} uA"\ntime = "{t:g} s"\nramp = "{r:g} s"\n',
)
PULSES = (
    '[[steps]]\ncurrent = "{a:g} uA"\ntime = "{t:g} s"\nramp = "0 s"\n[[steps]]\npause = "{p:g} s"\n'
    '[[steps]]\ncurrent = "{a:g} uA"\ntime = "{t:g} s"\nramp = "0 s"\n',
    '[[steps]]\ncurrent = "{a:g} uA"\ndose = "{f:g} mC"\nramp = "0.5 s"\n',
)


def _steps(draw: Draw, research: bool, voltage: bool) -> str:
    if research:
        a = draw.between(20, 100)
        return str(draw.of(PULSES if not voltage else PULSES[1:])).format(
            a=a, t=draw.between(2, 5) * 0.5, p=1 + 0.5 * draw.below(4), f=round(a * 1e-3 * draw.uniform(2.0, 5.0), 3)
        )
    a, b = draw.between(210, 1500), draw.between(210, 1500)
    slowest = max(a, b) / 800.0
    r = round(slowest + draw.uniform(0.3, 1.0), 2)
    t = round(r + draw.uniform(1.0, 3.0), 1)
    return str(draw.of(STEPS)).format(
        a=a,
        b=b,
        r=r,
        t=t,
        p=round(r + draw.uniform(0.5, 1.5), 1),
        d=round(a * 1e-3 * (r + draw.uniform(1.0, 3.0)), 3),
        e=round((max(a, b) * 1e-3) * (2.0 * r + draw.uniform(0.5, 2.0)), 3),
    )


def _special_steps(draw: Draw, research: bool, special: str) -> str:
    a = draw.between(50, 100) if research else draw.between(300, 1000)
    ramp_s = 0.5 if research else round(a / 800.0 + draw.uniform(0.2, 0.5), 2)
    time_s: float = draw.between(14, 18)
    if special == "sight":
        time_s = 21.0
    elif special == "slow":
        a, ramp_s, time_s = draw.between(1500, 2000), 6.0, 13.0
    elif special == "brief":
        a = draw.between(210, 260)
        ramp_s = round(a / 800.0 + draw.uniform(0.02, 0.06), 2)
        time_s = round(ramp_s + 0.1, 2)
    return f'[[steps]]\ncurrent = "{a} uA"\ntime = "{time_s:g} s"\nramp = "{ramp_s:g} s"\n'


def treatment_text(draw: Draw, channels: int, research: bool, voltage: bool, on_trip: OnTrip, special: str = "") -> str:
    """A treatment file of a few seconds."""
    lines = ["format = 1", 'title = "campaign"']
    if channels > 1:
        lines.append(f'on_channel_trip = "{on_trip.name.lower()}"')
    for channel in range(channels):
        table = "channels." if channels > 1 else ""
        if channels > 1:
            lines += ["[[channels]]", f'name = "{channel}"']
        drug, pad, area, polarity = "dexamethasone-phosphate", "buffered-pad", "8 cm^2", "cathode"
        if research:
            drug, pad, area, polarity = "acetylcholine", "perfusion-chamber", "1 cm^2", "anode"
        lines += [
            f'drug = "{drug}"',
            f"[{table}electrodes.active]",
            f'type = "{pad}"',
            f'area = "{area}"',
            f'polarity = "{polarity}"',
            f"[{table}electrodes.return]",
            f'type = "{"perfusion-return" if research else "return-pad"}"',
            'area = "25 cm^2"',
            (
                _special_steps(draw, research, special) if special in OWN_STEPS else _steps(draw, research, voltage)
            ).replace("[[steps]]", f"[[{table}steps]]"),
        ]
    return "\n".join(lines)


RATES_HZ = (1000.0,) * 12 + (500.0,) * 8 + (2000.0,) * 2 + (4000.0, 10000.0)
SKINS = ("typical", "typical", "typical", "hairy", "sweating", "wounded")


ORDINARY = 16
VARIANTS = (
    *("",) * ORDINARY,
    *("density", "brief", "charge", "charge", "time", "time", "late"),
    *("long", "long", "long", "long", "long", "sight", "sight", "slow", "slow"),
)
OWN_STEPS = ("long", "sight", "slow", "brief")
SIGHT_HZ = 5000.0
"""At slower rates the corner of conditioned skin lies beyond the tones (docs/estimator.md)."""


def variant(number: int) -> str:
    """What is particular about a scenario; "" for most.

    A limit of the guard's that will be passed ("density", "charge", "time", and by the end of the session "brief" and
    "late"), or what the estimator needs: "long", at 5 kHz "sight", with long ramps "slow".
    """
    return VARIANTS[number % len(VARIANTS)]


def channels_of(number: int) -> int:
    """How many channels a scenario has."""
    if variant(number) in ("sight", "slow", "brief"):
        return 1
    return int(Draw(0xC4A22E15, number).of((1, 1, 1, 2, 1, 3)))


def voltage_source(number: int) -> bool:
    """Whether its output stage is one; the others are current sources."""
    return variant(number) != "brief" and Draw(0xF2047E4D, number).below(3) == 0


def _ramps(segments: list[dict[str, Any]]) -> tuple[float, float]:
    """Ticks of the first ramp up and of the last ramp down."""
    delivers = [one for one in segments if one["kind"] == SegmentKind.DELIVER]
    first, last = delivers[0], delivers[-1]
    return (
        first["level_a"] / first["slope_a_per_tick"] if first["slope_a_per_tick"] else 0.0,
        last["level_a"] / last["ramp_out_a_per_tick"] if last["ramp_out_a_per_tick"] else 0.0,
    )


@cache
def scenario(number: int) -> Scenario:
    """Scenario `number`, by the way that a real session takes: limits resolved, plan compiled, limits pushed."""
    draw = Draw(0x5CE2A210, number)
    special = variant(number)
    rate_hz = draw.of((500.0, 1000.0, 2000.0)) if special == "long" else draw.of(RATES_HZ)
    channels = channels_of(number)
    voltage = voltage_source(number)
    research = draw.below(4) == 0
    skin = draw.of(SKINS)
    if special in ("sight", "slow"):
        rate_hz, research, skin = SIGHT_HZ, False, "typical"
    elif special == "brief":
        research = False
    on_trip = OnTrip(draw.below(3))
    text = treatment_text(draw, channels, research, voltage, on_trip, special)
    treatment = Treatment.parse(text.encode(), f"scenario {number}")
    options: dict[str, Any] = {
        "front_end": "voltage" if voltage else "current",
        "sample_rate_hz": rate_hz,
        "skin": skin,
        "seed": draw.below(1000),
        "channels": channels,
        "pacing": "both",
        "active_area_cm2": 1.0 if research else 8.0,
        "return_area_cm2": 25.0,
    }
    device = Device("sim:", SimBytes(options))
    hello = device.greet()
    limits = resolve_channels(treatment, Catalogue.load(), hello.capabilities, None)
    profile = UNFIT if draw.below(3) == 0 else FIT
    parts: list[dict[str, Any]] = []
    nominal_s = 0.0
    levels = []
    for channel, limit in zip(treatment.channels, limits, strict=True):
        plan = compile_plan(channel, limit, hello.tick_s)
        config = controller_config(hello, limit, plan, profile, TOKEN, pacing=Pacing.DEVICE)
        guard = config["guard"]
        if special == "density":
            guard["density_trip_a"] = draw.uniform(0.3, 0.9) * plan.max_level_a
        elif special == "charge":
            guard["charge_cap_codes"] = round(
                draw.uniform(0.1, 1.0) * plan.prescribed_c * 65536.0 / (guard["current_lsb_a"] * hello.tick_s)
            )
        elif special == "brief":
            up, down = _ramps(plan.segments)
            # All current so far is within the last second: its mean grows until the end of the ramp down.
            counted_s = (0.5 * up + 0.1 / hello.tick_s + draw.uniform(0.15, 0.3) * down) * hello.tick_s
            guard["density_trip_a"] = plan.max_level_a * counted_s
        elif special == "late":
            _, down = _ramps(plan.segments)
            guard["session_ticks"] = round(plan.nominal_duration_s / hello.tick_s - draw.uniform(0.2, 0.8) * down)
        elif special == "time":
            guard["session_ticks"] = round(draw.uniform(0.02, 1.0) * plan.nominal_duration_s / hello.tick_s)
        delivers = [segment for segment in plan.segments if segment["kind"] == 2]
        slopes = [segment["slope_a_per_tick"] for segment in delivers]
        at_once = max(segment["level_a"] for segment in delivers) if 0.0 in slopes else 0.0
        current_source = hello.front_end == FrontEnd.CURRENT_SOURCE
        parts.append(
            {
                "config": config,
                "segments": plan.segments,
                "prescribed_c": plan.prescribed_c,
                "rise_most_a": max(*slopes, at_once, config["programme"]["slope_up_a_per_tick"]),
                "slew_codes": config["regulator"]["slew_per_tick"] / config["calibration"]["output_lsb"]
                if current_source
                else 0.0,
            }
        )
        nominal_s = max(nominal_s, plan.nominal_duration_s)
        levels.append(plan.max_level_a)
    device.push_limits(**device_limits(hello, limits, TOKEN))
    words = ", ".join(f"{name} {value}" for name, value in options.items())
    return Scenario(
        number=number,
        prepared=Prepared(device.port.loop_port(), parts, on_trip=int(on_trip)),
        channels=channels,
        tick_s=hello.tick_s,
        front_end=hello.front_end,
        nominal_ticks=round(nominal_s / hello.tick_s),
        levels_a=tuple(levels),
        lease_ticks=parts[0]["config"]["lease_ticks"],
        words=f"{words}, {profile.name} deadlines, others {on_trip.name.lower()}\n{text}",
    )


@dataclass
class Script:
    """A session before it is run."""

    seed: int
    number: int
    scenario: Scenario
    noise: int
    acts: list[Act] = field(default_factory=list)
    resumes: bool = True
    clock: bool = True

    @property
    def focus(self) -> tuple[Recipe, Phase] | None:
        """The cell that this session is after, by its first act. None: a session in which nothing goes wrong."""
        return focus_of(self.number)

    def run(self, simulator: Simulator) -> Simulated:
        """Run it."""
        return simulator.run(
            self.scenario.prepared,
            self.noise,
            [act.as_tuple() for act in self.acts],
            most_ticks=4 * self.scenario.nominal_ticks,
            resumes=self.resumes,
            clock=self.clock,
        )


# What goes wrong, and how it is seen.

Make = Callable[[Draw, Scenario, Phase, int], list[Act]]
Sight = tuple[str, int]
"""What the simulator notes, and its code; -1: any."""
TRIP, PAUSE, END = "trip", "pause", "end"


@dataclass(frozen=True)
class Recipe:
    """How a hazard is injected, by its first act, and what of it must be seen. Its phases are those of the table.

    `variant` is of the scenarios that it needs; `only` are the phases of it, where another recipe has the others;
    `weight` is how often it is drawn, of which the long and dear sessions need less.
    """

    hazard: str
    make: Make
    sights: tuple[Sight, ...]
    variant: str = ""
    channels: int = 1
    voltage: bool = False
    only: tuple[Phase, ...] = ()
    weight: int = 2


def _ticks(scenario: Scenario, seconds: float) -> int:
    return max(1, round(seconds / scenario.tick_s))


def _soon(draw: Draw, scenario: Scenario) -> int:
    return draw.below(_ticks(scenario, 0.3))


def device(
    kind: str,
    phase: Phase,
    channel: int,
    after: int,
    value: float = 0.0,
    length: int = 0,
    undo: str = "",
    undo_value: float = 0.0,
) -> Act:
    """A fault of the virtual device."""
    undone = FAULT_KINDS.index(undo) if undo else -1
    return Act("device", FAULT_KINDS.index(kind), phase, channel, after, length, value, undone, undo_value)


def wire(kind: str, way: str, phase: Phase, channel: int, after: int, length: int = 1, value: float = 1.0) -> Act:
    """A fault of the wire."""
    return Act("wire", WIRE_FAULT_KINDS.index(kind) + 16 * WAYS.index(way), phase, channel, after, length, value)


def plant(
    *kinds: str,
    least: float = 0.0,
    most: float = 0.0,
    length_s: tuple[float, float] | None = None,
    undo: str = "",
    undo_value: float = 0.0,
    after_s: tuple[float, float] = (0.0, 0.3),
) -> Make:
    """One fault of the device, one of `kinds`, for good or for a while."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        length = 0 if length_s is None else _ticks(scenario, draw.uniform(*length_s))
        value = draw.uniform(least, most)
        after = int(draw.uniform(*after_s) / scenario.tick_s)
        return [device(draw.of(kinds), phase, channel, after, value, length, undo, undo_value)]

    return make


def mark(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """Nothing at all, where the scenario itself is what goes wrong."""
    return [Act("mark", 0, phase, channel)]


def simple(kind: str, code: int = 0, values: Sequence[float] = (0.0,), length_s: float = 0.0) -> Make:
    """One act that is not the device's."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        length = _ticks(scenario, length_s) if length_s else 0
        return [Act(kind, code, phase, channel, _soon(draw, scenario), length, draw.of(values))]

    return make


def either(*makes: Make) -> Make:
    """One of several ways."""
    return lambda draw, scenario, phase, channel: draw.of(makes)(draw, scenario, phase, channel)


def lost(least_s: float, most_s: float) -> Make:
    """Samples that do not come: the device's stall, or the wire's."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        seconds = draw.uniform(least_s, most_s)
        if draw.below(2):
            # At the guard's limits, and a sample beside them.
            limit_s = threshold("H24", draw.of(("gap_pause_s", "gap_stop_s")))
            seconds = max(1, _ticks(scenario, limit_s) + draw.below(3) - 1) * scenario.tick_s
        how, after = draw.below(3), _soon(draw, scenario)
        if how == 0:
            return [device("stall", phase, channel, after, seconds)]
        return [wire("drop" if how == 1 else "flip", "to-host", phase, channel, after, _ticks(scenario, seconds))]

    return make


def late(least_s: float, most_s: float) -> Make:
    """The host reads late, or its data are old."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        ticks, after = _ticks(scenario, draw.uniform(least_s, most_s)), _soon(draw, scenario)
        if draw.below(2):
            return [Act("host-sleeps", 0, phase, channel, after, 0, float(ticks))]
        return [wire("stall", "to-host", phase, channel, after, ticks)]

    return make


def overruns(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """Many ticks that come late by a few periods."""
    after = _soon(draw, scenario)
    return [
        Act("host-sleeps", 0, phase, channel, after + 12 * k, 0, float(_ticks(scenario, 0.003)))
        for k in range(draw.between(4, 12))
    ]


def intermittent(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """A lead that opens again and again, for less than it takes to latch."""
    after, apart = _soon(draw, scenario) // 4, _ticks(scenario, draw.uniform(0.05, 0.15))
    length = max(2, _ticks(scenario, 0.003))
    return [device("open", phase, channel, after + k * apart, 0.0, length, "close") for k in range(draw.between(4, 8))]


def another_pad(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """A pause of the operator's, in which the load becomes another."""
    after = _ticks(scenario, draw.uniform(3.0, 6.0))
    return [
        device("area", phase, channel, draw.below(_ticks(scenario, 0.1)), draw.uniform(0.1, 0.4)),
        Act("operator", int(OperatorCommand.PAUSE), Phase.TREATMENT, channel, after),
    ]


def wire_noise(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """Any faults of the wire, both ways."""
    return [
        wire(
            draw.of(WIRE_FAULT_KINDS[:9]),
            draw.of(WAYS),
            phase,
            channel,
            _soon(draw, scenario),
            draw.between(1, 1 + draw.below(40)),
            float(draw.between(1, 12)),
        )
        for _ in range(draw.between(1, 6))
    ]


def operator_noise(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """An operator who presses everything."""
    level = scenario.levels_a[channel]
    values = (-level, level, 0.1 * level, -0.1 * level, 1e300, -1e300, math.nan, math.inf)
    commands = (OperatorCommand.PAUSE, OperatorCommand.RESUME, OperatorCommand.TRIM)
    return [
        Act("operator", int(draw.of(commands)), phase, channel, draw.below(_ticks(scenario, 1.0)), 0, draw.of(values))
        for _ in range(draw.between(1, 5))
    ]


TRIM = int(OperatorCommand.TRIM)
RAMP_UP, TREATMENT, RAMP_DOWN = Phase.RAMP_UP, Phase.TREATMENT, Phase.RAMP_DOWN
BROKEN: tuple[Sight, ...] = ((PAUSE, 11), (TRIP, 11), (TRIP, 1), (TRIP, 55))
OVER: tuple[Sight, ...] = ((TRIP, 1), (TRIP, 2), (TRIP, 20), (TRIP, 55))
SEEN: tuple[Sight, ...] = (("phase", -1), (TRIP, -1), (END, -1), (PAUSE, -1), ("loop", -1))
"""A hazard that nothing has to answer: the session goes on, under every invariant."""
RECIPES: list[Recipe] = [
    Recipe("H01", plant("dac", "dac-told", least=50.0, most=100.0), OVER),
    Recipe("H02", plant("adc-gain", least=0.85, most=0.94), ((TRIP, 2), (TRIP, 23), (TRIP, 1)), weight=3),
    Recipe(
        "H03",
        either(plant("adc-gain", least=1.12, most=1.4), plant("stuck-told")),
        ((TRIP, 3), (PAUSE, 3), (TRIP, 23), (TRIP, 20), (TRIP, 1)),
    ),
    Recipe(
        "H04",
        plant("area", least=0.001, most=0.01, length_s=(0.3, 1.0), undo="area", undo_value=1.0),
        (("limited", -1),),
        only=(TREATMENT,),
        weight=4,
    ),
    Recipe(
        "H04",
        plant("area", least=0.002, most=0.02, length_s=(2.0, 5.0), undo="area", undo_value=1.0, after_s=(0.05, 1.0)),
        (("limited", -1),),
        "slow",
        only=(RAMP_UP, RAMP_DOWN),
        weight=2,
    ),
    Recipe("H05", plant("open"), ((TRIP, 5), (END, 4), (TRIP, 3))),
    Recipe("H06", plant("open", length_s=(0.002, 0.004), undo="close"), (("contact-lost", -1), (TRIP, 5))),
    Recipe("H07", intermittent, ((TRIP, 7), (TRIP, 5)), weight=3),
    Recipe("H08", plant("short"), ((TRIP, 8), (END, 5), (END, 8), (END, 7), (TRIP, 1), (TRIP, 55), (TRIP, 2))),
    Recipe(
        "H09",
        plant("area", "return-area", least=0.1, most=0.4, after_s=(3.0, 4.5)),
        ((PAUSE, 9), (TRIP, 9)),
        "slow",
        only=(RAMP_UP, TREATMENT),
    ),
    Recipe(
        "H09",
        plant("area", "return-area", least=0.1, most=0.4, after_s=(0.2, 2.0)),
        ((PAUSE, 9), (TRIP, 9)),
        "slow",
        only=(RAMP_DOWN,),
    ),
    Recipe(
        "H10",
        plant("dry", least=2500.0, most=5000.0, after_s=(9.0, 15.0)),
        (("advice", int(Advice.WET_PADS)),),
        "sight",
        weight=4,
    ),
    Recipe("H11", plant("breakdown", least=12.0, most=200.0), BROKEN, voltage=True, only=(RAMP_UP,)),
    Recipe("H11", plant("breakdown", least=12.0, most=200.0, after_s=(3.0, 9.0)), BROKEN, "long", only=(TREATMENT,)),
    Recipe("H12", plant("rising", least=4.0, most=15.0), ((TRIP, 12),), "long"),
    Recipe("H13", mark, ((TRIP, 13),), "density", only=(RAMP_UP, TREATMENT), weight=4),
    Recipe("H13", mark, ((TRIP, 13),), "brief", only=(RAMP_DOWN,)),
    Recipe("H14", mark, ((END, 1),)),
    Recipe("H15", mark, ((TRIP, 15),), "charge"),
    Recipe("H16", mark, ((TRIP, 16),), "time", only=(Phase.SELF_TEST, Phase.CONTACT_CHECK)),
    Recipe("H16", mark, ((TRIP, 16),), "time", only=(RAMP_UP, TREATMENT), weight=3),
    Recipe("H16", mark, ((TRIP, 16),), "time", only=(Phase.PAUSE,), weight=7),
    Recipe("H16", mark, ((TRIP, 16),), "late", only=(RAMP_DOWN,)),
    Recipe("H17", plant("polarity"), ((TRIP, 17), (TRIP, 1), (TRIP, 5), (TRIP, 55), (END, -1))),
    Recipe(
        "H20",
        either(plant("stuck-told", "stuck"), plant("dac", "dac-told", least=-100.0, most=100.0)),
        (*OVER, (TRIP, 3), (TRIP, 5), (TRIP, 17), (TRIP, 22), (END, 8)),
    ),
    Recipe(
        "H21",
        either(simple("wire", WIRE_FAULT_KINDS.index("disconnect"), length_s=1.0), plant("unplug")),
        (("loop", 3),),
    ),
    Recipe("H22", plant("adc-flat", least=1.0, most=3.99), ((TRIP, 22), (TRIP, 23), *OVER)),
    Recipe(
        "H23", plant("adc-gain", "adc-gain-redundant", least=0.3, most=0.8), ((TRIP, 23), (TRIP, 3), (PAUSE, 3), *OVER)
    ),
    Recipe("H24", lost(0.003, 0.02), ((PAUSE, 24), (TRIP, 24), ("gap", -1))),
    Recipe("H25", late(0.006, 0.07), ((PAUSE, 25), (TRIP, 25), (TRIP, 28), (TRIP, 26), (PAUSE, 26), ("late", -1))),
    Recipe("H26", overruns, ((PAUSE, 26), (TRIP, 26), ("late", -1))),
    Recipe("H28", late(0.085, 0.2), ((TRIP, 28), (TRIP, 29))),
    Recipe("H29", simple("host-dies"), (("device-off", -1), ("loop", 3))),
    Recipe("H30", simple("heartbeat-stops"), ((TRIP, 30),)),
    Recipe("H31", simple("heartbeat-wrong"), ((TRIP, 31),)),
    Recipe("H32", simple("not-finite", 1), ((TRIP, 32),)),
    Recipe(
        "H33",
        plant("area", least=0.002, most=0.02, length_s=(2.0, 5.0), undo="area", undo_value=1.0, after_s=(0.2, 2.0)),
        (("limited", -1),),
        "slow",
        only=(RAMP_UP,),
        weight=2,
    ),
    Recipe(
        "H33",
        plant("area", least=0.001, most=0.01, length_s=(0.2, 0.6), undo="area", undo_value=1.0),
        (("limited", -1),),
        only=(TREATMENT,),
    ),
    Recipe(
        "H34",
        either(plant("gain", least=2.5, most=8.0), plant("delay", least=4.0, most=20.0)),
        ((TRIP, 34), (PAUSE, 34), *OVER),
        weight=3,
    ),
    Recipe("H35", simple("operator", TRIM, (1e-3, -1e-3)), SEEN),
    Recipe("H36", simple("operator", TRIM, (math.nan, math.inf, -math.inf, -1e300)), SEEN),
    Recipe("H39", plant("supply-warning", "supply-low"), ((TRIP, 39), ("status", -1))),
    Recipe("H40", plant("leakage"), ((TRIP, 40),)),
    Recipe("H41", plant("hum", least=500.0, most=2e4), ((PAUSE, 41), (TRIP, 41))),
    Recipe(
        "H42",
        plant("crosstalk", least=500.0, most=2e4),
        ((TRIP, 42), (PAUSE, 34), (TRIP, 34), (PAUSE, 3), (TRIP, 3), *OVER),
        channels=2,
        weight=4,
    ),
    Recipe("H43", plant("redox", least=0.5, most=2.0, after_s=(8.0, 11.0)), ((TRIP, 43),), "sight"),
    Recipe("H44", plant("hot"), ((TRIP, 44),)),
    Recipe("H45", plant("stop-button", least=0.05, most=0.5), ((TRIP, 45),)),
    Recipe("H48", another_pad, ((TRIP, 48), (PAUSE, 48)), "long", weight=12),
    Recipe("H49", plant("post-fail"), ((TRIP, 49),)),
    Recipe("H50", plant("speaker"), (("status", -1),)),
    Recipe("H51", simple("foreign"), (("refused", -1),)),
    Recipe("H52", simple("reverse"), ((TRIP, 52), (TRIP, 17), (TRIP, 1))),
    Recipe(
        "H53",
        simple("host-clock", 0, (-2e4, 2e4, -5e4, 5e4)),
        ((TRIP, 53), (TRIP, 25), (TRIP, 26), (PAUSE, 25), (PAUSE, 26), ("late", -1)),
        "long",
        weight=4,
    ),
    Recipe(
        "H54",
        lambda draw, scenario, phase, channel: [
            Act("limits", 0, phase, channel, _soon(draw, scenario), 0, float(draw.below(1 << 20)))
        ],
        ((TRIP, -1),),
    ),
    Recipe("H55", plant("dac", least=90.0, most=100.0), ((TRIP, 55), (TRIP, 20), (TRIP, 1))),
    Recipe("H56", simple("stop", int(StopFlag.NOW)), ((TRIP, 56),)),
    Recipe("H57", simple("device-count", 0, (1e15, -1e15)), ((TRIP, 57),)),
]
OFF_AT_ONCE = ("H01", "H05", "H32", "H40", "H55", "H56")
NOISE: list[Make] = [
    wire_noise,
    operator_noise,
    simple("operator", int(OperatorCommand.STOP)),
    simple("stop", int(StopFlag.RAMP_DOWN)),
    simple("heartbeat-stops", length_s=1.5),
    simple("foreign"),
    plant("leak", least=1e3, most=1e6),
    plant("loose", least=10.0, most=600.0),
    plant("dry", least=10.0, most=5000.0),
    plant("peel", least=0.5, most=20.0),
    plant("return-area", least=0.25, most=0.6),
    plant("repeat", "replayed"),
    plant("flood", least=1.0, most=20.0),
    plant("hum", least=1.0, most=1000.0),
    lost(0.0005, 0.5),
    late(0.001, 0.3),
    plant("unplug"),
]


@cache
def cells() -> tuple[tuple[Recipe, Phase], ...]:
    """Every recipe in every phase in which the hazard table says that its hazard can occur, as often as it weighs."""
    table = hazards()
    return tuple(
        (recipe, phase)
        for turn in range(max(recipe.weight for recipe in RECIPES))
        for recipe in RECIPES
        for phase in recipe.only or ARMED_PHASES
        if turn < recipe.weight and phase.name in table[recipe.hazard].phases
    )


def focus_of(number: int) -> tuple[Recipe, Phase] | None:
    """The cell that a session is after; None: one in which nothing goes wrong."""
    return None if number % HEALTHY == HEALTHY - 1 else cells()[number % len(cells())]


@cache
def scenarios_for(recipe_number: int) -> tuple[int, ...]:
    """Numbers of the scenarios that a recipe can be injected in."""
    recipe = RECIPES[recipe_number]
    return tuple(
        number
        for number in range(SCENARIOS)
        if (recipe.variant == variant(number) or (not recipe.variant and variant(number) == ""))
        and channels_of(number) >= recipe.channels
        and (voltage_source(number) or not recipe.voltage)
    )


def script(seed: int, number: int) -> Script:
    """Session `number` of the campaign `seed`."""
    draw = Draw(seed, number)
    cell = focus_of(number)
    chosen = scenarios_for(RECIPES.index(cell[0])) if cell is not None else scenarios_for(0)
    found = scenario(draw.of(chosen))
    made = Script(seed, number, found, draw.word(), resumes=draw.below(4) > 0, clock=draw.below(8) > 0)
    if cell is None:
        return made
    recipe, phase = cell
    channel = draw.below(found.channels)
    made.acts += recipe.make(draw, found, phase, channel)
    if recipe.hazard in OFF_AT_ONCE and draw.below(3) == 0:
        # A lesser cause before or behind it must not lower what is in force.
        soon = max(0, made.acts[0].after_ticks + draw.between(-20, 20))
        made.acts.append(device("hot", phase, channel, soon))
    if phase == Phase.PAUSE and recipe.make is not another_pad:
        made.acts.append(Act("operator", int(OperatorCommand.PAUSE), Phase.TREATMENT, channel, _soon(draw, found)))
    while draw.below(3) == 0 and len(made.acts) < 24:
        other = draw.below(found.channels)
        made.acts += draw.of(NOISE)(draw, found, draw.of(ARMED_PHASES), other)
    return made


def hits(made: Script, result: Simulated) -> list[tuple[str, Phase]]:
    """(hazard, phase) cells that the session hit: injected there, and seen by what must see it."""
    if made.focus is None:
        return []
    recipe, _ = made.focus
    fired, where = result["fired"][0]
    if fired < 0:
        return []
    channel = made.acts[0].channel
    whole = made.acts[0].kind != "device" or FAULT_KINDS[made.acts[0].code] in DEVICE_FAULTS
    for what, code, of, _, tick in result["seen"]:
        if tick < fired or (of != channel and not whole and what not in ("loop", "device-off")):
            continue
        if any(what == sight and wanted in (-1, code) for sight, wanted in recipe.sights):
            return [(recipe.hazard, Phase(where))]
    return []


# Many sessions.

CHUNK = 32
"""Sessions that a process takes at a time."""
MIX = 0xD6E8FEB86659FD93


@dataclass
class Tally:
    """What came of sessions. Adding is commutative, so that it does not matter who ran which."""

    sessions: int = 0
    ticks: int = 0
    rows: int = 0
    digest: int = 0
    hits: Counter[tuple[str, int]] = field(default_factory=Counter)
    injected: Counter[tuple[str, int]] = field(default_factory=Counter)
    violations: list[tuple[int, Violation]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Those of another."""
        self.sessions += other.sessions
        self.ticks += other.ticks
        self.rows += other.rows
        self.digest = (self.digest + other.digest) & MASK
        self.hits.update(other.hits)
        self.injected.update(other.injected)
        self.violations += other.violations

    def count(self, made: Script, result: Simulated) -> None:
        """One more session."""
        self.sessions += 1
        self.ticks += result["ticks"]
        self.rows += result["rows"]
        self.digest = (self.digest + Draw(result["digest"], made.number * MIX & MASK).state) & MASK
        focus = made.focus
        if focus is not None and result["fired"][0][0] >= 0:
            self.injected[focus[0].hazard, result["fired"][0][1]] += 1
        self.hits.update((hazard, int(phase)) for hazard, phase in hits(made, result))
        if result["violation"] is not None:
            self.violations.append((made.number, result["violation"]))

    def table(self) -> str:
        """Hits by hazard and phase, as a table of Markdown: "." where the hazard cannot occur."""
        rows = [["", *(name.lower().replace("_", " ") for name in COLUMNS), "injected as"]]
        rows.append([":--", *("--:" for _ in COLUMNS), ":--"])
        for hazard, places in possible_cells().items():
            counts = (str(self.hits[hazard, place]) if place in places else "." for place in COLUMNS.values())
            rows.append([hazard, *counts, served(hazard)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "| " + " | ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)) + " |" for row in rows
        )

    def least(self, hazard_cells: Mapping[str, Sequence[int]]) -> tuple[int, str, str]:
        """Of these cells that with the fewest hits: how many, hazard and phase."""
        names = {place: name for name, place in COLUMNS.items()}
        hits, hazard, place = min(
            (self.hits[hazard, place], hazard, place) for hazard, places in hazard_cells.items() for place in places
        )
        return hits, hazard, names[place]


def session_cells() -> dict[str, list[Phase]]:
    """Phases in which each hazard of the recipes is injected, in the order of the hazards."""
    found: dict[str, list[Phase]] = {}
    for recipe, phase in cells():
        if phase not in found.setdefault(recipe.hazard, []):
            found[recipe.hazard].append(phase)
    return dict(sorted(found.items()))


def possible_cells() -> dict[str, list[int]]:
    """Where each hazard can occur, by the hazard table: before the start, or in phases."""
    return {
        row.id: [COLUMNS[name] for name in (START, *(phase.name for phase in ARMED_PHASES)) if name in row.phases]
        for row in hazards().values()
    }


def served(hazard: str) -> str:
    """Which of the campaign's parts inject a hazard."""
    from ionto_rt.testing.entries import ENTRIES

    parts = {"sessions": session_cells(), "entries": {of for of, _ in ENTRIES}}
    return ", ".join(name for name, part in parts.items() if hazard in part)


def core_digest() -> str:
    """What the core was built to, in twelve digits: sessions repeat to the bit on the same."""
    digest = hashlib.sha256()
    for library in sorted(Path(ionto_rt.core.__path__[0]).glob("*.so")):
        digest.update(library.name.encode() + library.read_bytes())
    return digest.hexdigest()[:12]


_simulators: list[Simulator] = []


def simulator() -> Simulator:
    """This process's own."""
    if not _simulators:
        _simulators.append(Simulator())
    return _simulators[0]


def run_chunk(seed: int, first: int, count: int) -> Tally:
    """Sessions first to first + count - 1; the first violation ends it."""
    tally = Tally()
    for number in range(first, first + count):
        made = script(seed, number)
        tally.count(made, made.run(simulator()))
        if tally.violations:
            break
    return tally


def _pin(cpus: Any) -> None:
    """A worker stays on a processor of its own, and leaves Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {cpus.get()})


def run(
    seed: int,
    *,
    ticks: int | None = None,
    sessions: int | None = None,
    jobs: int = 1,
    tell: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Sessions in the order of their numbers until there are so many, or so many ticks, or a violation.

    `tell` is called each time that some more are done. What comes out does not depend on `jobs`.
    """
    tally = Tally()
    starts = itertools.count(0, CHUNK)
    most = (1 << 62) if sessions is None else sessions

    def chunk(first: int) -> tuple[int, int, int]:
        return seed, first, min(CHUNK, most - first)

    def done() -> bool:
        enough = tally.sessions >= most or (ticks is not None and tally.ticks >= ticks)
        return enough or bool(tally.violations)

    if jobs == 1:
        while not done():
            tally.add(run_chunk(*chunk(next(starts))))
            tell(tally)
        return tally
    context = multiprocessing.get_context("spawn")
    cpus = context.Queue()
    allowed = sorted(os.sched_getaffinity(0))
    for k in range(jobs):
        cpus.put(allowed[k % len(allowed)])
    with ProcessPoolExecutor(jobs, context, _pin, (cpus,)) as pool:
        waiting: deque[Future[Tally]] = deque()
        while not done():
            while len(waiting) < 3 * jobs:
                first = next(starts)
                if first >= most:
                    break
                waiting.append(pool.submit(run_chunk, *chunk(first)))
            tally.add(waiting.popleft().result())
            tell(tally)
        for future in waiting:
            future.cancel()
    return tally


def reproduce(seed: int, number: int) -> str:
    """The line that runs a session again."""
    return f"ionto-rt campaign --seed {seed} --session {number}"


def _earlier(act: Act, divisor: int) -> Act:
    return replace(act, after_ticks=act.after_ticks // divisor if divisor else 0)


def _shorter(act: Act, divisor: int) -> Act:
    return replace(act, length_ticks=act.length_ticks // divisor if divisor else 0)


def _weaker(act: Act, divisor: int) -> Act:
    if not math.isfinite(act.value):
        return act
    return replace(act, value=act.value // divisor if divisor else 0.0)


def shrink(made: Script, invariant: str, most_runs: int = 600) -> Script:
    """The smallest script found that still violates `invariant`: fewer acts, then earlier, shorter and rounder ones."""
    runs = 0

    def fails(tried: Script) -> bool:
        nonlocal runs
        runs += 1
        violation = tried.run(simulator())["violation"]
        return violation is not None and violation["invariant"] == invariant

    def take(tried: Script) -> bool:
        nonlocal made
        if runs < most_runs and fails(tried):
            made = tried
            return True
        return False

    count = len(made.acts)
    while count:
        at = 0
        while at < len(made.acts):
            kept = made.acts[:at] + made.acts[at + count :]
            if not (kept or len(made.acts) == count) or not take(replace(made, acts=kept)):
                at += count
        count //= 2
    take(replace(made, clock=False))
    take(replace(made, resumes=True))
    for at in range(len(made.acts)):
        for divisor in (0, 16, 2, 2, 2, 2):
            for change in (_shorter, _earlier, _weaker):
                smaller = change(made.acts[at], divisor)
                if smaller != made.acts[at]:
                    take(replace(made, acts=[*made.acts[:at], smaller, *made.acts[at + 1 :]]))
    return made


def explain(made: Script, violation: Violation) -> str:
    """A failure for a person: the line that repeats it, what was violated, and the smallest script found."""
    small = shrink(made, violation["invariant"])
    seen = small.run(simulator())["violation"]
    assert seen is not None
    lines = [
        f"ionto_rt {ionto_rt.__version__}: {reproduce(made.seed, made.number)}",
        f"invariant {seen['invariant']} of channel {seen['channel']} at tick {seen['tick']}:"
        f" {seen['found']:.9g}, allowed {seen['allowed']:.9g}",
        f"smallest script found ({len(small.acts)} of {len(made.acts)} acts):",
        *(f"  - {act.words}" for act in small.acts),
        f"scenario {small.scenario.number}: {small.scenario.words}",
    ]
    return "\n".join(lines)


def told(made: Script, result: Simulated) -> str:
    """A session in words: what it was, what happened in it, and what was seen."""
    lines = [f"session {made.number} of seed {made.seed}, scenario {made.scenario.number}: {made.scenario.words}"]
    for act, (fired, phase) in zip(made.acts, result["fired"], strict=True):
        came = "never came" if fired < 0 else f"at tick {fired}, in {Phase(phase).name}"
        lines.append(f"  - {act.words}: {came}")
    for what, code, channel, phase, tick in result["seen"]:
        name = str(code)
        if what in ("trip", "pause", "resumed"):
            name = Trip(code).name
        elif what == "phase":
            name = Phase(code).name
        elif what == "end":
            name = EndReason(code).name
        lines.append(f"  tick {tick:7} channel {channel} {Phase(phase).name:14} {what} {name}")
    lines.append(f"{result['ticks']} ticks, {result['rows']} rows, digest {result['digest']:016x}")
    return "\n".join(lines)
