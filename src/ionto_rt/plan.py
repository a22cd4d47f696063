"""What a treatment asks of a channel, within its limits, compiled to the segments that the tick's programme runs.

Segments have the fields of `struct Segment` in core/types.pxd. Charge of a ramp is that of the straight line: half the
sum of its levels, times its ticks.

How a treatment becomes segments:

- first a self-test (relay open) and a contact check, both of 0.5 s halves;
- each step that delivers becomes DELIVER; where a pause or the end follows, RAMP_DOWN belongs to it (slope 0: at once,
  in no ticks), with the same ramp time as its ramp in;
- a step with `time` has `duration_ticks` from the start of its ramp in to the start of its ramp out, and `charge_c` 0;
- a step with `dose` has `charge_c`, ramps included, and `duration_ticks` 0;
- `charge_total_c` is the charge since the session began that the segment never passes: the sum up to the end of its
  step, ramp out included (on service segments: the sum so far);
- a pause runs from the start of the ramp down to the start of the next ramp up: REST has what the ramp down leaves of
  it, and is left out if that is nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ionto_rt.codes import MAX_SEGMENTS, FrontEnd, OnTrip, SegmentKind
from ionto_rt.core.constant_current import PROBE_MOST_A, PROBE_RATIO, nominal_probe_ticks
from ionto_rt.safety import Limits, exceeds, format_limit
from ionto_rt.toml_source import Location, format_location
from ionto_rt.units import (
    Kind,
    format_area,
    format_charge,
    format_clock,
    format_current,
    format_density,
    format_quantity,
    format_time,
)

if TYPE_CHECKING:
    from ionto_rt.treatment import ChannelTreatment, Deliver, Pause

SELF_TEST_S = 0.5

VOLTAGE_RAMP_LEAST_S = 0.5
"""Least ramp on a voltage source. The regulator makes it slower where the load's impedance at rest is many times what a
step meets: each tick's step may add a fiftieth of the highest level at once (docs/control.md)."""

WHOLE = 1e-6
"""A time within this part of a tick of a whole number of ticks is that number."""

SHOWN_STEPS = 60
MOST_KEYS = 9
"""Channels that have a key in the live view: one digit."""

Segment = dict[str, Any]


@dataclass(frozen=True)
class PlanStep:
    """One row of the plan: a step, after blocks have been repeated. Times in s from arming, levels in A, charge in C.

    `step` is the number in the segments and in the record, `location` the key in the file, `name` the block and turn
    or empty, `kind` deliver or pause. `duration_s` of a delivery is from the start of its ramp in to the end of its
    ramp out; of a pause from the start of the ramp down before it, which is thus in both. `charge_total_c` is the
    charge of the session at the end of the step.
    """

    step: int
    location: Location
    name: str
    kind: str
    start_s: float
    duration_s: float
    level_a: float
    ramp_in_s: float
    ramp_out_s: float
    ends_by: str
    charge_c: float
    charge_total_c: float


@dataclass(frozen=True)
class Plan:
    """A compiled treatment, or one channel of several.

    Attributes: `title` of the treatment; `segments` for the programme; `polarity` +1 (the active electrode is the
    anode) or -1; `prescribed_c` and `max_level_a` as magnitudes; `nominal_duration_s` from arming to the end, without
    derating or pauses of the operator; `tick_s`; `service_s` of self-test and contact check; `steps` for people;
    `drug_mass_kg` least and greatest mass expected, or None; `notes` for the operator; `channel` its name, empty if
    there is only one.
    """

    title: str
    segments: list[Segment]
    polarity: int
    prescribed_c: float
    max_level_a: float
    nominal_duration_s: float
    tick_s: float
    service_s: float
    steps: list[PlanStep]
    drug_mass_kg: tuple[float, float] | None
    electrodes: tuple[str, str]
    limits: Limits
    notes: list[str]
    channel: str = ""


def compile_plan(treatment: "ChannelTreatment", limits: Limits, tick_s: float) -> Plan:
    """Compile `treatment` for sample periods of `tick_s` seconds (1 us to 100 ms).

    Raises RefusedError: a ramp too steep or a step at once too large, a dose smaller than its own ramps, dose or
    session time beyond the limit, a time shorter than a tick or than its ramp, a pause shorter than its ramp down, or
    more than MAX_SEGMENTS segments.
    """
    if not 1e-6 <= tick_s <= 0.1:
        raise ValueError(f"tick_s is {tick_s}, not between 1 us and 100 ms")
    return _Compiler(treatment, limits, tick_s).compile()


class _Compiler:
    def __init__(self, treatment: "ChannelTreatment", limits: Limits, tick_s: float) -> None:
        self.treatment = treatment
        self.limits = limits
        self.tick_s = tick_s
        self.segments: list[Segment] = []
        self.steps: list[PlanStep] = []
        self.charges: list[float] = []
        self.notes: dict[str, None] = {}
        self.time_s = 0.0
        self.total_c = 0.0
        self.level_a = 0.0
        self.down_ticks = 0

    def compile(self) -> Plan:
        treatment, limits = self.treatment, self.limits
        self._service_segments()
        leaves = list(treatment.expanded())
        for number, (location, leaf, name) in enumerate(leaves):
            if leaf.kind == "deliver":
                ramps_out = number + 1 == len(leaves) or leaves[number + 1][1].kind == "pause"
                self._deliver(number, location, leaf, name, ramps_out)
            else:
                self._pause(number, location, leaf, name)
            if len(self.segments) > MAX_SEGMENTS:
                raise treatment.refuse(location, f"makes more than {MAX_SEGMENTS} segments in all", "repeat less often")
        self._note_whole()
        active, other = treatment.electrodes.active, treatment.electrodes.return_
        return Plan(
            title=treatment.title,
            segments=self.segments,
            polarity=limits.polarity,
            prescribed_c=self.total_c,
            max_level_a=max(step.current_a for _, step in treatment.deliveries()),
            nominal_duration_s=self.time_s,
            tick_s=self.tick_s,
            service_s=self.service_s,
            steps=self.steps,
            drug_mass_kg=limits.drug.mass_interval_kg(self.total_c),
            electrodes=(
                f"{active.type}, {format_area(active.area_m2)}, {active.polarity}",
                f"{other.type}, {format_area(other.area_m2)}",
            ),
            limits=limits,
            notes=list(self.notes),
            channel=treatment.name,
        )

    def _segment(self, kind: SegmentKind, step: int, **fields: float) -> None:
        segment: Segment = {
            "kind": int(kind),
            "step": step,
            "duration_ticks": 0,
            "level_a": 0.0,
            "slope_a_per_tick": 0.0,
            "ramp_out_a_per_tick": 0.0,
            "charge_c": 0.0,
            "charge_total_c": self.total_c,
        }
        segment.update(fields)
        self.segments.append(segment)

    def _service_segments(self) -> None:
        smallest_a = min(step.current_a for _, step in self.treatment.deliveries())
        self_test_ticks = self._up(SELF_TEST_S)
        contact_ticks = nominal_probe_ticks(self.tick_s)
        self._segment(SegmentKind.SELF_TEST, -1, duration_ticks=self_test_ticks)
        self._segment(
            SegmentKind.CONTACT_CHECK,
            -1,
            level_a=min(PROBE_MOST_A, PROBE_RATIO * smallest_a),
        )
        self.time_s = self.service_s = (self_test_ticks + contact_ticks) * self.tick_s

    def _deliver(self, number: int, location: Location, step: "Deliver", name: str, ramps_out: bool) -> None:
        level_a, tick_s = step.current_a, self.tick_s
        change_a = abs(level_a - self.level_a)
        in_ticks = self._ramp_ticks(location, step, change_a, f"from {format_current(self.level_a)}")
        out_ticks = self._ramp_ticks(location, step, level_a, "down to zero") if ramps_out else 0
        in_c = 0.5 * (self.level_a + level_a) * in_ticks * tick_s
        out_c = 0.5 * level_a * out_ticks * tick_s

        ends_by, goal = step.goal
        key = (*location, ends_by)
        duration_ticks = 0
        if ends_by == "time":
            duration_ticks = self._whole(key, goal)
            if duration_ticks < in_ticks:
                raise self.treatment.refuse(
                    key,
                    f"is shorter than its ramp of {format_time(in_ticks * tick_s)}",
                    "give it more time, or a shorter ramp",
                )
            hold_s = (duration_ticks - in_ticks) * tick_s
            charge_c = math.fsum((in_c, level_a * hold_s, out_c))
        else:
            charge_c = goal
            if exceeds(in_c + out_c, charge_c):
                raise self.treatment.refuse(
                    key,
                    f"is less than the {format_charge(in_c + out_c)} that its ramps deliver",
                    "give a larger dose, a shorter ramp or a lower current",
                )
            hold_s = max(0.0, (charge_c - in_c - out_c) / level_a)

        start_s = self.time_s
        start_level_a, self.level_a = self.level_a, 0.0 if ramps_out else level_a
        self.charges.append(charge_c)
        self.total_c = math.fsum(self.charges)
        self.time_s = start_s + in_ticks * tick_s + hold_s + out_ticks * tick_s
        self.down_ticks = out_ticks
        self._check_totals(key, name)

        out_slope_a = level_a / out_ticks if out_ticks else 0.0
        self._segment(
            SegmentKind.DELIVER,
            number,
            duration_ticks=duration_ticks,
            level_a=level_a,
            slope_a_per_tick=abs(level_a - start_level_a) / in_ticks if in_ticks else 0.0,
            ramp_out_a_per_tick=out_slope_a,
            charge_c=charge_c if ends_by == "dose" else 0.0,
        )
        if ramps_out:
            self._segment(SegmentKind.RAMP_DOWN, number, slope_a_per_tick=out_slope_a)
        self.steps.append(
            PlanStep(
                step=number,
                location=location,
                name=name,
                kind="deliver",
                start_s=start_s,
                duration_s=self.time_s - start_s,
                level_a=level_a,
                ramp_in_s=in_ticks * tick_s,
                ramp_out_s=out_ticks * tick_s,
                ends_by=ends_by,
                charge_c=charge_c,
                charge_total_c=self.total_c,
            )
        )

    def _pause(self, number: int, location: Location, step: "Pause", name: str) -> None:
        ticks = self._whole((*location, "pause"), step.pause_s)
        rest_ticks = ticks - self.down_ticks
        down_s = self.down_ticks * self.tick_s
        if rest_ticks < 0:
            raise self.treatment.refuse(
                (*location, "pause"),
                f"is shorter than the ramp down of {format_time(down_s)} that it begins with",
                "pause longer, or shorten the ramp of the step before",
            )
        start_s = self.time_s - down_s
        self.time_s += rest_ticks * self.tick_s
        self.down_ticks = 0
        self._check_totals((*location, "pause"), name)
        if rest_ticks > 0:
            self._segment(SegmentKind.REST, number, duration_ticks=rest_ticks)
        self.steps.append(
            PlanStep(
                step=number,
                location=location,
                name=name,
                kind="pause",
                start_s=start_s,
                duration_s=ticks * self.tick_s,
                level_a=0.0,
                ramp_in_s=0.0,
                ramp_out_s=0.0,
                ends_by="time",
                charge_c=0.0,
                charge_total_c=self.total_c,
            )
        )

    def _ramp_ticks(self, location: Location, step: "Deliver", change_a: float, where: str) -> int:
        """Ticks of a ramp over `change_a`; rounded up, so that it is never steeper than written."""
        limits = self.limits
        if change_a == 0.0:
            return 0
        ramp_s = change_a / limits.ramp_rate_a_per_s if step.ramp_s is None else step.ramp_s
        if limits.device is not None and limits.device.front_end == FrontEnd.VOLTAGE_SOURCE:
            if step.ramp_s is None:
                ramp_s = max(ramp_s, VOLTAGE_RAMP_LEAST_S)
            elif exceeds(VOLTAGE_RAMP_LEAST_S, ramp_s):
                raise self.treatment.refuse(
                    (*location, "ramp"),
                    f"is shorter than a voltage source's ramps, which charge the skin's capacitance as they rise"
                    f" ({limits.device.name})",
                    f'write ramp = "{format_time(VOLTAGE_RAMP_LEAST_S)}" or longer',
                )
        ticks = self._up(ramp_s) if ramp_s > 0.0 else 0
        if not exceeds(change_a, limits.step_max_a):
            return ticks
        key: Location = (*location, "current" if step.ramp_s is None else "ramp")
        slowest_s = change_a / limits.ramp_rate_max_a_per_s
        remedy = f'write ramp = "{format_quantity(slowest_s * 1.0005, Kind.TIME, digits=4)}" or longer'
        if ticks == 0:
            allowed = (
                "no step may be made at once"
                if limits.step_max_a == 0.0
                else f"a step at once may have {format_current(limits.step_max_a)} at most"
            )
            origin = limits.row("step").origin
            raise self.treatment.refuse(
                key, f"{format_current(change_a)} {where} without a ramp: {allowed} ({origin})", remedy
            )
        rate = change_a / (ticks * self.tick_s)
        if exceeds(rate, limits.ramp_rate_max_a_per_s):
            steepest = limits.row("ramp rate")
            raise self.treatment.refuse(
                key,
                f"{where} it is {format_limit(rate, Kind.RAMP_RATE)}, steeper than"
                f" {format_limit(steepest.value, Kind.RAMP_RATE)} ({steepest.origin})",
                remedy,
            )
        return ticks

    def _check_totals(self, key: Location, name: str) -> None:
        turn = f" in {name}" if name else ""
        dose, day, time = (self.limits.row(name) for name in ("dose", "day dose", "session time"))
        if exceeds(self.total_c, dose.value):
            raise self.treatment.refuse(
                key,
                f"brings the session to {format_charge(self.total_c)}{turn},"
                f" beyond {format_charge(dose.value)} ({dose.origin})",
                "prescribe less, or in several sessions",
            )
        if exceeds(self.total_c, day.value):
            raise self.treatment.refuse(
                key,
                f"brings the session to {format_charge(self.total_c)}{turn},"
                f" beyond a day's {format_charge(day.value)} ({day.origin})",
                "prescribe less, or on several days",
            )
        if exceeds(self.time_s, time.value):
            raise self.treatment.refuse(
                key,
                f"brings the session to {format_clock(self.time_s)}{turn},"
                f" beyond {format_clock(time.value)} ({time.origin})",
                "shorten the treatment; checks and ramps count",
            )

    def _up(self, time_s: float) -> int:
        return max(1, math.ceil(time_s / self.tick_s - WHOLE))

    def _whole(self, key: Location, time_s: float) -> int:
        exact = time_s / self.tick_s
        ticks = round(exact)
        if ticks == 0:
            raise self.treatment.refuse(
                key,
                f"is shorter than half a sample period of {format_quantity(self.tick_s, Kind.TIME, 'ms')}",
                "give it more time",
            )
        if abs(exact - ticks) > WHOLE:
            line = self.treatment.line_of(key)
            taken = format_quantity(ticks * self.tick_s, Kind.TIME, digits=9)
            self.notes[f"line {line}: {format_time(time_s)} is taken as {taken}, a whole number of samples"] = None
        return ticks

    def _note_whole(self) -> None:
        treatment, drug = self.treatment, self.limits.drug
        for name in treatment.unused_blocks():
            self.notes[f"line {treatment.line_of(('blocks', name))}: no step repeats the block {name}"] = None
        advised = drug.density_advised_a_per_m2
        if advised is not None:
            small_m2 = min(self.limits.area_m2, self.limits.return_area_m2)
            density = max(step.current_a for _, step in treatment.deliveries()) / small_m2
            if exceeds(density, advised):
                self.notes[
                    f"{format_density(density)} is above the {format_density(advised)} that is advised for"
                    f" {treatment.drug}"
                ] = None
        if drug.unconfirmed:
            self.notes[f"unconfirmed in the catalogue for {treatment.drug}: {', '.join(drug.unconfirmed)}"] = None


def format_plan(plan: Plan) -> str:
    """The plan as `ionto-rt check` prints it: what, steps with times and charge, expected drug, limits, notes."""
    return f"{plan.title}\n{_body(plan)}"


def format_plans(plans: Sequence[Plan], on_channel_trip: OnTrip) -> str:
    """The plans of all channels of a treatment under its title; of one channel as `format_plan` has it."""
    if len(plans) == 1:
        return format_plan(plans[0])
    act = {OnTrip.STOP: "stop", OnTrip.PAUSE: "pause", OnTrip.CONTINUE: "go on"}[on_channel_trip]
    head = f"{plans[0].title}\n{len(plans)} channels; if one trips or ends short, the others {act}"
    return "\n\n".join([head, *(f"{_channel(at, plan)}\n{_body(plan)}" for at, plan in enumerate(plans))])


def _channel(at: int, plan: Plan) -> str:
    """A channel by its name, with the key that chooses it in the live view if it has one, and the device's number."""
    key = f"key {at + 1}, " if at < MOST_KEYS else ""
    return f"{plan.channel} ({key}device channel {at})"


def _body(plan: Plan) -> str:
    limits, drug = plan.limits, plan.limits.drug
    rows = [["step", "", "from", "lasts", "level", "ramp in", "ramp out", "ends by", "charge", "total"]]
    service_s = plan.service_s
    rows.append(["", "self-test, contact check", "0:00", format_time(service_s), "", "", "", "time", "", ""])
    for step in plan.steps[:SHOWN_STEPS]:
        deliver = step.kind == "deliver"
        rows.append(
            [
                format_location(step.location),
                step.name if deliver else f"{step.name} pause".strip(),
                format_clock(step.start_s),
                format_quantity(step.duration_s, Kind.TIME, digits=5),
                format_current(step.level_a) if deliver else "",
                _seconds(step.ramp_in_s),
                _seconds(step.ramp_out_s),
                step.ends_by,
                format_charge(step.charge_c) if deliver else "",
                format_charge(step.charge_total_c) if deliver else "",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = {0, 1, 7}
    table = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if len(plan.steps) > SHOWN_STEPS:
        table.append(f"... and {len(plan.steps) - SHOWN_STEPS} more steps")
    lines = [
        f"drug      {limits.drug_key}: {drug.title}",
        f"active    {plan.electrodes[0]}",
        f"return    {plan.electrodes[1]}",
        "",
        *table,
        "",
        f"dose      {format_charge(plan.prescribed_c, 6)} in {format_clock(plan.nominal_duration_s)},"
        f" up to {format_current(plan.max_level_a)}",
        f"expected  {_expected(plan)}",
        "",
        limits.text(),
    ]
    if plan.notes:
        lines += ["", *(f"note: {note}" for note in plan.notes)]
    return "\n".join(lines)


def _seconds(time_s: float) -> str:
    return format_quantity(time_s, Kind.TIME, digits=4) if time_s > 0.0 else ""


def _expected(plan: Plan) -> str:
    drug = plan.limits.drug
    if plan.drug_mass_kg is None:
        return "no drug mass: the solution has no ion of interest"
    low, high = (format_mass(mass) for mass in plan.drug_mass_kg)
    return (
        f"{low} to {high} of {drug.mass_of}, at a transport number of {drug.transport_low:g}"
        f" to {drug.transport_high:g}\n          transport number: {drug.transport_source}"
    )


def format_mass(mass_kg: float) -> str:
    """Mass in mg, or in ug below 0.1 mg, with two significant digits: the interval knows no more."""
    if mass_kg < 1e-7:
        return f"{float(f'{mass_kg * 1e9:.2g}'):g} µg"
    return f"{float(f'{mass_kg * 1e6:.2g}'):g} mg"
