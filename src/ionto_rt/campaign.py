"""The campaign: whole sessions on a virtual clock under seeded faults, every invariant checked in every tick.

A session is its number: what it runs (one of the scenarios), what goes wrong (a script of faults) and all noise follow
from the campaign's seed and that number alone. So any number of processes give the same result in any order, and one
line runs a session again. The sessions themselves are compiled (`ionto_rt.core.campaign`); here they are drawn, and
what came of them is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import FrontEnd, OnTrip, OperatorCommand, Pacing, Phase, StopFlag
from ionto_rt.configuration import FIT, UNFIT, controller_config, device_limits
from ionto_rt.core.campaign import ACT_NAMES, Prepared, Simulator
from ionto_rt.core.fault_port import WAYS, WIRE_FAULT_KINDS
from ionto_rt.core.virtual_device import FAULT_KINDS
from ionto_rt.device import Device, SimBytes
from ionto_rt.plan import compile_plan
from ionto_rt.safety import resolve_channels
from ionto_rt.treatment import Treatment

if TYPE_CHECKING:
    from ionto_rt.core.campaign import ActTuple, Simulated

SCENARIOS = 192
MASK = (1 << 64) - 1
ARMED_PHASES = (
    Phase.SELF_TEST,
    Phase.CONTACT_CHECK,
    Phase.RAMP_UP,
    Phase.TREATMENT,
    Phase.PAUSE,
    Phase.RAMP_DOWN,
)
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


def treatment_text(draw: Draw, channels: int, research: bool, voltage: bool, on_trip: OnTrip) -> str:
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
            _steps(draw, research, voltage).replace("[[steps]]", f"[[{table}steps]]"),
        ]
    return "\n".join(lines)


RATES_HZ = (1000.0,) * 12 + (500.0,) * 8 + (2000.0,) * 2 + (4000.0, 10000.0)
SKINS = ("typical", "typical", "typical", "hairy", "sweating", "wounded")


@cache
def scenario(number: int) -> Scenario:
    """Scenario `number`, by the way that a real session takes: limits resolved, plan compiled, limits pushed."""
    draw = Draw(0x5CE2A210, number)
    rate_hz = draw.of(RATES_HZ)
    channels = draw.of((1, 1, 1, 2, 1, 3))
    voltage = draw.below(3) == 0
    research = draw.below(4) == 0
    on_trip = OnTrip(draw.below(3))
    text = treatment_text(draw, channels, research, voltage, on_trip)
    treatment = Treatment.parse(text.encode(), f"scenario {number}")
    options: dict[str, Any] = {
        "front_end": "voltage" if voltage else "current",
        "sample_rate_hz": rate_hz,
        "skin": draw.of(SKINS),
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
        config["guard"] = {**config["guard"], "checksum": 0}
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


@dataclass(frozen=True)
class Recipe:
    """How a hazard is injected in a phase, and what of it must be seen."""

    hazard: str
    phases: tuple[Phase, ...]
    make: Make
    sights: tuple[Sight, ...]
    needs: Callable[[Scenario], bool] = lambda scenario: True


CURRENT_PHASES = (Phase.RAMP_UP, Phase.TREATMENT, Phase.RAMP_DOWN)
RELAY_PHASES = (Phase.CONTACT_CHECK, *CURRENT_PHASES)
ANY: tuple[Sight, ...] = (("trip", -1), ("pause", -1), ("end", -1), ("loop", -1))


def _ticks(scenario: Scenario, seconds: float) -> int:
    return max(1, round(seconds / scenario.tick_s))


def device(kind: str, phase: Phase, channel: int, after: int, value: float = 0.0, length: int = 0, undo: str = "",
           undo_value: float = 0.0) -> Act:
    """A fault of the virtual device."""
    return Act(
        "device", FAULT_KINDS.index(kind), phase, channel, after, length, value,
        FAULT_KINDS.index(undo) if undo else -1, undo_value,
    )


def wire(kind: str, way: str, phase: Phase, channel: int, after: int, length: int = 1, value: float = 1.0) -> Act:
    """A fault of the wire."""
    return Act("wire", WIRE_FAULT_KINDS.index(kind) + 16 * WAYS.index(way), phase, channel, after, length, value)


def _some(most_s: float) -> Callable[[Draw, Scenario], int]:
    return lambda draw, scenario: draw.below(_ticks(scenario, most_s))


SOON = _some(0.3)


def plant(kind: str, value: Callable[[Draw], float] = lambda draw: 0.0, length_s: tuple[float, float] | None = None,
          undo: str = "", undo_value: float = 0.0) -> Make:
    """One fault of the device, for good or for a while."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        length = 0 if length_s is None else _ticks(scenario, draw.uniform(*length_s))
        return [device(kind, phase, channel, SOON(draw, scenario), value(draw), length, undo, undo_value)]

    return make


def lost(least_s: float, most_s: float) -> Make:
    """Samples that do not come: the device's stall, or the wire's."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        seconds = draw.uniform(least_s, most_s)
        ticks = _ticks(scenario, seconds)
        how = draw.below(3)
        after = SOON(draw, scenario)
        if how == 0:
            return [device("stall", phase, channel, after, seconds)]
        return [wire("drop" if how == 1 else "flip", "to-host", phase, channel, after, ticks, 1.0)]

    return make


def late(least_s: float, most_s: float) -> Make:
    """The host reads late, or its data are old."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        ticks = _ticks(scenario, draw.uniform(least_s, most_s))
        after = SOON(draw, scenario)
        if draw.below(2):
            return [Act("host-sleeps", 0, phase, channel, after, 0, float(ticks))]
        return [wire("stall", "to-host", phase, channel, after, ticks)]

    return make


def overruns(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """Many ticks that come late by a few periods."""
    after = SOON(draw, scenario)
    return [
        Act("host-sleeps", 0, phase, channel, after + 12 * k, 0, float(_ticks(scenario, 0.003)))
        for k in range(draw.between(4, 12))
    ]


def simple(kind: str, code: int = 0, value: Callable[[Draw], float] = lambda draw: 0.0, length_s: float = 0.0) -> Make:
    """One act that is not the device's."""

    def make(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
        length = _ticks(scenario, length_s) if length_s else 0
        return [Act(kind, code, phase, channel, SOON(draw, scenario), length, value(draw))]

    return make


def intermittent(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """A lead that opens again and again, for less than it takes to latch."""
    after = SOON(draw, scenario)
    apart = _ticks(scenario, draw.uniform(0.08, 0.3))
    length = max(2, _ticks(scenario, 0.003))
    return [
        device("open", phase, channel, after + k * apart, 0.0, length, "close") for k in range(draw.between(4, 8))
    ]


def wire_noise(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """Any faults of the wire, both ways."""
    acts = []
    for _ in range(draw.between(1, 6)):
        kind = draw.of(WIRE_FAULT_KINDS[:9])
        value = float(draw.between(1, 12))
        length = draw.between(1, 1 + draw.below(40))
        acts.append(wire(kind, draw.of(WAYS), phase, channel, SOON(draw, scenario), length, value))
    return acts


def operator_noise(draw: Draw, scenario: Scenario, phase: Phase, channel: int) -> list[Act]:
    """An operator who presses everything."""
    acts = []
    for _ in range(draw.between(1, 5)):
        command = draw.of((OperatorCommand.PAUSE, OperatorCommand.RESUME, OperatorCommand.TRIM))
        level = scenario.levels_a[channel]
        value = draw.of((-level, level, 0.1 * level, -0.1 * level, 1e300, -1e300, float("nan"), float("inf")))
        acts.append(Act("operator", int(command), phase, channel, draw.below(_ticks(scenario, 1.0)), 0, value))
    return acts


def _area(draw: Draw) -> float:
    return draw.uniform(0.25, 0.6)


TRIP, PAUSE = "trip", "pause"
RECIPES: list[Recipe] = [
    Recipe("H01", CURRENT_PHASES, plant("stuck"), ((TRIP, 1), (TRIP, 2), (TRIP, 20), (TRIP, 55))),
    Recipe("H04", CURRENT_PHASES, plant("area", lambda draw: draw.uniform(0.002, 0.02), (0.3, 1.0), "area", 1.0),
           (("limited", -1),)),
    Recipe("H05", RELAY_PHASES, plant("open"), ((TRIP, 5), ("end", 4), (TRIP, 3))),
    Recipe("H06", CURRENT_PHASES, plant("open", length_s=(0.001, 0.004), undo="close"), (("contact-lost", -1),)),
    Recipe("H07", CURRENT_PHASES, intermittent, ((TRIP, 7), (TRIP, 5))),
    Recipe("H08", RELAY_PHASES, plant("short"), ((TRIP, 8), ("end", 5), ("end", 8), ("end", 7), (TRIP, 1), (TRIP, 55))),
    Recipe("H09", (Phase.TREATMENT,), plant("area", _area), ((PAUSE, 9), (TRIP, 9))),
    Recipe("H20", CURRENT_PHASES, plant("stuck"), ((TRIP, 20), (TRIP, 1), (TRIP, 2), (TRIP, 55))),
    Recipe("H21", ARMED_PHASES, simple("wire", WIRE_FAULT_KINDS.index("disconnect"), length_s=1.0),
           (("loop", 3),)),
    Recipe("H24", ARMED_PHASES, lost(0.003, 0.02), ((PAUSE, 24), (TRIP, 24), ("gap", -1))),
    Recipe("H25", ARMED_PHASES, late(0.006, 0.07), ((PAUSE, 25), (TRIP, 25), (TRIP, 28), (TRIP, 26), (PAUSE, 26))),
    Recipe("H26", ARMED_PHASES, overruns, ((PAUSE, 26), (TRIP, 26), ("late", -1))),
    Recipe("H28", ARMED_PHASES, late(0.085, 0.2), ((TRIP, 28), (TRIP, 29))),
    Recipe("H29", RELAY_PHASES, simple("host-dies"), (("device-off", -1),)),
    Recipe("H30", ARMED_PHASES, simple("heartbeat-stops"), ((TRIP, 30),)),
    Recipe("H32", RELAY_PHASES, simple("not-finite", 0), ((TRIP, 32),)),
    Recipe("H33", (Phase.RAMP_UP, Phase.TREATMENT),
           plant("area", lambda draw: draw.uniform(0.002, 0.02), (0.2, 0.6), "area", 1.0), (("limited", -1),)),
    Recipe("H35", ARMED_PHASES, simple("operator", int(OperatorCommand.TRIM), lambda draw: draw.of((1e-3, -1e-3))), ANY),
    Recipe("H36", ARMED_PHASES,
           simple("operator", int(OperatorCommand.TRIM), lambda draw: draw.of((float("nan"), float("inf"), -1e300))), ANY),
    Recipe("H53", (Phase.SELF_TEST, Phase.CONTACT_CHECK, Phase.RAMP_UP),
           simple("host-clock", 0, lambda draw: draw.of((-2e4, 2e4, -5e4, 5e4))),
           ((TRIP, 53), (TRIP, 25), (TRIP, 26), (PAUSE, 25), (PAUSE, 26))),
    Recipe("H54", ARMED_PHASES, simple("limits", 0, lambda draw: float(draw.below(1 << 20))), ((TRIP, -1),)),
    Recipe("H56", ARMED_PHASES, simple("stop", int(StopFlag.NOW)), ((TRIP, 56),)),
]
NOISE: list[Make] = [
    wire_noise,
    operator_noise,
    simple("operator", int(OperatorCommand.STOP)),
    simple("stop", int(StopFlag.RAMP_DOWN)),
    simple("heartbeat-stops", length_s=1.5),
    plant("leak", lambda draw: draw.uniform(1e3, 1e6)),
    plant("loose", lambda draw: draw.uniform(10.0, 600.0)),
    plant("dry", lambda draw: draw.uniform(10.0, 5000.0)),
    plant("peel", lambda draw: draw.uniform(0.5, 20.0)),
    plant("return-area", _area),
    lost(0.0005, 0.5),
    late(0.001, 0.3),
    plant("unplug"),
]


@cache
def cells() -> tuple[tuple[Recipe, Phase], ...]:
    """Every recipe in every phase in which its hazard can occur."""
    return tuple((recipe, phase) for recipe in RECIPES for phase in recipe.phases)


def script(seed: int, number: int) -> Script:
    """Session `number` of the campaign `seed`."""
    draw = Draw(seed, number)
    found = scenario(draw.below(SCENARIOS))
    made = Script(seed, number, found, draw.word(), resumes=draw.below(4) > 0, clock=draw.below(8) > 0)
    if number % 16 == 15:
        return made
    recipe, phase = cells()[number % len(cells())]
    channel = draw.below(found.channels)
    made.acts += recipe.make(draw, found, phase, channel)
    if phase == Phase.PAUSE:
        made.acts.append(
            Act("operator", int(OperatorCommand.PAUSE), Phase.TREATMENT, channel, SOON(draw, found))
        )
    while draw.below(3) == 0 and len(made.acts) < 24:
        other = draw.below(found.channels)
        made.acts += draw.of(NOISE)(draw, found, draw.of(ARMED_PHASES), other)
    return made


def hits(made: Script, result: Simulated) -> list[tuple[str, Phase]]:
    """(hazard, phase) cells that the session hit: injected there, and seen by what must see it."""
    if made.number % 16 == 15:
        return []
    recipe, phase = cells()[made.number % len(cells())]
    fired, where = result["fired"][0]
    if fired < 0:
        return []
    channel = made.acts[0].channel
    for what, code, of, _, tick in result["seen"]:
        if tick < fired or (of != channel and what not in ("loop", "device-off")):
            continue
        if any(what == sight and wanted in (-1, code) for sight, wanted in recipe.sights):
            return [(recipe.hazard, Phase(where))]
    return []
