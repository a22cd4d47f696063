"""One table of limits: device, catalogue, treatment and operator, each row with the source that is tightest.

A limit is three numbers, never one. The prescription limit is what a treatment may ask for, checked when it is
loaded. The guard's number lies above it, so that noise at a prescription exactly at the limit trips nothing. The
device's cap lies above that, and acts when the host does not.

Quantities are SI: A, A/m2, C, V, s, A/s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ionto_rt.codes import FrontEnd
from ionto_rt.hazards import threshold
from ionto_rt.units import (
    Kind,
    format_area,
    format_charge,
    format_current,
    format_density,
    format_quantity,
    format_resistance,
    format_time,
    format_voltage,
    parse_quantity,
)

if TYPE_CHECKING:
    from ionto_rt.catalogue import Catalogue, Drug, Electrode
    from ionto_rt.treatment import ChannelTreatment, Treatment

TOLERANCE = 1e-9
"""Relative; takes up the rounding of a few float operations, far below any decimal that a person writes."""

GUARD_RATIO = threshold("H01", "over_ratio")
"""Guard's trip over the setpoint."""
GUARD_FULL_SCALE_RATIO = threshold("H01", "over_full_scale_ratio")
"""Its trip is at least this part of the range's full scale above the setpoint."""
GUARD_DENSITY_RATIO = threshold("H13", "density_ratio")
DEVICE_RATIO = threshold("H55", "device_ratio")
"""Device's caps over the prescription limits."""
GUARD_CHARGE_RATIO = threshold("H15", "charge_ratio")
GUARD_CHARGE_MARGIN_C = threshold("H15", "charge_margin_c")
"""Never more than GUARD_CHARGE_MARGIN_RATIO of the limit. The guard counts absolute charge: the contact check, the tone
and the noise of readings at rest add to it, the dose does not."""
GUARD_CHARGE_MARGIN_RATIO = threshold("H15", "charge_margin_ratio")
GUARD_TIME_RATIO = threshold("H16", "time_ratio")
GUARD_TIME_MARGIN_S = threshold("H16", "time_margin_s")
"""A regulator's lag of some ticks must not end a session that was planned to the limit."""

BALLAST_LEAST_RATIO = 0.1
"""Ballast of a voltage source, of compliance voltage over full scale. With less, one output code is more than a percent
of the current on wet skin, and what flows at once through a contact that comes back has no bound (docs/design.md)."""

RANGE_LEAST_PART = 20.0
"""Levels from this part of a range's full scale on are those on which the regulator has been surveyed
(docs/regulator.md); a channel is not put below it for the sake of another."""

PLAUSIBLE_LOAD_OHM = 2000.0
"""The nominal body that makers rate their outputs into (iontophoresis-machines.co.uk, shopping advice). Conditioned
skin at 4 mA is as much: a device that cannot drive it would derate every session."""


def exceeds(value: float, limit: float) -> bool:
    """True if `value` is beyond `limit` by more than rounding. At the limit is within it."""
    return not value <= limit * (1.0 + TOLERANCE)


@dataclass(frozen=True)
class CurrentRange:
    """One current range of a device: its largest setpoint, and the largest current that it can read (0: no more).

    `index` is its number in the hello.
    """

    full_scale_a: float
    current_lsb_a: float
    index: int = 0
    ballast_ohm: float = 0.0
    reads_to_a: float = 0.0


@dataclass(frozen=True)
class DeviceCapabilities:
    """What a device can do, as far as limits and plans need it; filled from its hello."""

    name: str
    front_end: FrontEnd
    compliance_v: float
    ranges: tuple[CurrentRange, ...]
    tick_s: float
    lease_max_ticks: int
    channels: int = 1

    def range_for(self, current_a: float) -> CurrentRange | None:
        """The smallest range that holds `current_a` and reads what the device's cap lets pass, or at least holds it."""
        ranges = sorted(self.ranges, key=lambda item: item.full_scale_a)
        for headroom in (DEVICE_RATIO, 0.0):
            for candidate in ranges:
                reads_to_a = max(candidate.reads_to_a, candidate.full_scale_a)
                if not exceeds(current_a, candidate.full_scale_a) and not exceeds(headroom * current_a, reads_to_a):
                    return candidate
        return None


@dataclass(frozen=True)
class OperatorLimits:
    """Limits that the operator sets for one run; None leaves a quantity to the other sources."""

    current_a: float | None = None
    density_a_per_m2: float | None = None
    dose_c: float | None = None
    day_dose_c: float | None = None
    voltage_v: float | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class LimitRow:
    """One limit: `value` is the prescription limit, `guard` and `device_cap` the two numbers above it (None: no such
    check). `source` is device, catalogue, treatment or operator; `detail` names the entry or the file's line."""

    quantity: str
    kind: Kind
    value: float
    source: str
    detail: str
    guard: float | None
    device_cap: float | None

    @property
    def origin(self) -> str:
        """The source as a person reads it: `catalogue: lidocaine`."""
        return f"{self.source}: {self.detail}" if self.detail else self.source


@dataclass(frozen=True)
class Limits:
    """The limits of one session, and what else of catalogue and device the plan needs.

    Attributes: `rows` the table; `drug` the catalogue's entry; `catalogue_sha256`; `polarity` +1 or -1; `area_m2` of
    the active electrode; `device` and the `current_range` chosen (None without a device); `pad_charge_c` what the
    smaller of both pads is rated for.
    """

    rows: tuple[LimitRow, ...]
    drug: "Drug"
    drug_key: str
    catalogue_sha256: str
    polarity: int
    area_m2: float
    return_area_m2: float
    device: DeviceCapabilities | None
    current_range: CurrentRange | None
    pad_charge_c: float

    def row(self, quantity: str) -> LimitRow:
        """The row called `quantity`: current, density, dose, day dose, voltage, session time, ramp rate or step."""
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise KeyError(quantity)

    def _guard(self, quantity: str) -> float:
        guard = self.row(quantity).guard
        if guard is None:
            raise KeyError(quantity)
        return guard

    def _device_cap(self, quantity: str) -> float:
        cap = self.row(quantity).device_cap
        if cap is None:
            raise KeyError(quantity)
        return cap

    @property
    def current_max_a(self) -> float:
        """Highest level a setpoint may have; the density limit on the smaller electrode is part of it."""
        return self.row("current").value

    @property
    def current_cap_a(self) -> float:
        """The device's cap on current: 1.25 times the limit, and never below the guard's trip."""
        return self._device_cap("current")

    @property
    def density_max_a_per_m2(self) -> float:
        """Prescription limit of density on the nominal area; the guard's is 1.1 times it."""
        return self.row("density").value

    @property
    def density_max_a_per_cm2(self) -> float:
        """`density_max_a_per_m2` in A/cm2."""
        return self.density_max_a_per_m2 * 1e-4

    @property
    def density_trip_a(self) -> float:
        """Current at which the guard's density row trips: 1.1 times density limit times the smaller area."""
        return self._guard("density") * min(self.area_m2, self.return_area_m2)

    @property
    def area_cm2(self) -> float:
        """Area of the active electrode in cm2."""
        return self.area_m2 * 1e4

    @property
    def dose_max_c(self) -> float:
        """Most charge that a prescription may ask for."""
        return self.row("dose").value

    @property
    def charge_cap_c(self) -> float:
        """The guard's cap on absolute charge of the session: dose limit x 1.02 + the smaller of 0.05 mA*min and 5 %."""
        return self._guard("dose")

    @property
    def charge_device_cap_c(self) -> float:
        """The device's cap on absolute charge."""
        return self._device_cap("dose")

    @property
    def day_cap_c(self) -> float:
        """Most absolute charge that a subject's site may have received in a day when it ends, this session included.

        The guard's number of the row "day dose", because what was received counts all that flowed, and not doses.
        """
        return self._guard("day dose")

    def within_day(self, left_c: float) -> "Limits":
        """These limits where the day leaves `left_c` (C, absolute) for this session: guard and device stop there."""
        rows = tuple(
            replace(
                row,
                guard=min(self.charge_cap_c, left_c),
                device_cap=min(self.charge_device_cap_c, DEVICE_RATIO * left_c),
            )
            if row.quantity == "dose"
            else row
            for row in self.rows
        )
        return replace(self, rows=rows)

    @property
    def voltage_max_v(self) -> float:
        """Highest output voltage; the programme derates below it."""
        return self.row("voltage").value

    @property
    def session_time_max_s(self) -> float:
        """Longest session that a prescription may plan, from arming to the end."""
        return self.row("session time").value

    @property
    def session_time_trip_s(self) -> float:
        """Time after which the guard ramps down: session_time_max_s x 1.02 + 1 s."""
        return self._guard("session time")

    @property
    def session_time_cap_s(self) -> float:
        """Time after which the device itself ends the session."""
        return self._device_cap("session time")

    @property
    def ramp_rate_a_per_s(self) -> float:
        """Ramp of a step that states none, and of every return of the current after a pause or a lost contact."""
        return self.drug.ramp_rate_a_per_s

    @property
    def ramp_rate_max_a_per_s(self) -> float:
        """Steepest ramp."""
        return self.row("ramp rate").value

    @property
    def step_max_a(self) -> float:
        """Largest change of level that may be made at once; 0: none."""
        return self.row("step").value

    def as_rows(self) -> list[dict[str, Any]]:
        """The table for the record: quantity, unit, value, guard, device_cap, source, detail (SI units)."""
        return [
            {
                "quantity": row.quantity,
                "unit": _SI_UNITS[row.kind],
                "value": row.value,
                "guard": row.guard,
                "device_cap": row.device_cap,
                "source": row.source,
                "detail": row.detail,
            }
            for row in self.rows
        ]

    def text(self) -> str:
        """The table as people read it."""
        lines = [f"{'limit':<14}{'prescription':>16}{'guard':>16}{'device cap':>16}  set by"]
        for row in self.rows:
            guard = "" if row.guard is None else format_limit(row.guard, row.kind)
            cap = "" if row.device_cap is None else format_limit(row.device_cap, row.kind)
            value = format_limit(row.value, row.kind)
            lines.append(f"{row.quantity:<14}{value:>16}{guard:>16}{cap:>16}  {row.origin}")
        return "\n".join(lines)


_SI_UNITS = {
    Kind.CURRENT: "A",
    Kind.DENSITY: "A/m^2",
    Kind.CHARGE: "C",
    Kind.VOLTAGE: "V",
    Kind.TIME: "s",
    Kind.RAMP_RATE: "A/s",
}

_FORMATS = {
    Kind.CURRENT: format_current,
    Kind.DENSITY: format_density,
    Kind.CHARGE: format_charge,
    Kind.VOLTAGE: format_voltage,
    Kind.TIME: format_time,
}


def format_limit(value: float, kind: Kind) -> str:
    """`value` in the unit that people use for limits of this kind."""
    formatter = _FORMATS.get(kind)
    return formatter(value) if formatter is not None else format_quantity(value, kind, digits=4)


@dataclass(frozen=True)
class _Offer:
    """One source's say on a limit."""

    value: float
    source: str
    detail: str


def resolve_limits(
    treatment: "ChannelTreatment",
    catalogue: "Catalogue",
    device: DeviceCapabilities | None = None,
    operator: OperatorLimits | None = None,
    *,
    current_range: CurrentRange | None = None,
) -> Limits:
    """Resolve the limits of one channel, and refuse what can be refused without a plan.

    `current_range` is the device's range in use; None: the smallest that holds the channel's levels. The limits of
    several channels of one device, which share a range, come from `resolve_channels`.

    Refused here (RefusedError): a drug or electrode that is not in the catalogue, the wrong polarity, an area that the
    electrode does not have, a limit that would loosen the catalogue's, a level beyond current, density or the device.
    Doses, times and ramps are checked by `ionto_rt.plan.compile_plan`. Without a device its rows and checks are left
    out, as `ionto-rt check` does.
    """
    drug = catalogue.drugs.get(treatment.drug)
    if drug is None:
        raise treatment.refuse(("drug",), "is not in the catalogue", catalogue.suggest_drug(treatment.drug))
    active, other = treatment.electrodes.active, treatment.electrodes.return_
    if drug.polarity not in ("either", active.polarity):
        raise treatment.refuse(
            ("electrodes", "active", "polarity"),
            f"{treatment.drug} goes in under the {drug.polarity}",
            f'write polarity = "{drug.polarity}" and connect the leads so',
        )
    opposite = "anode" if active.polarity == "cathode" else "cathode"
    active_pad = _electrode(treatment, catalogue, "active", active.type, active.area_m2, active.polarity)
    return_pad = _electrode(treatment, catalogue, "return", other.type, other.area_m2, opposite)

    stated = treatment.limits
    own = operator if operator is not None else OperatorLimits()
    entry = treatment.drug
    if device is not None and current_range is None:
        current_range = _range(treatment, device)
    density = _tightest(
        treatment,
        Kind.DENSITY,
        [_Offer(drug.density_max_a_per_m2, "catalogue", entry)],
        ("density", stated.density_a_per_m2),
        [own.density_a_per_m2],
    )
    small_m2 = min(active.area_m2, other.area_m2)
    density_name = f"density of {format_density(density.value)} on {format_area(small_m2)}"
    current_others: list[_Offer | float | None] = [
        _Offer(density.value * small_m2, density.source, density_name),
        own.current_a,
    ]
    voltage_others: list[_Offer | float | None] = [own.voltage_v]
    if device is not None and current_range is not None:
        range_name = f"range of {format_current(current_range.full_scale_a)}"
        current_others.append(_Offer(current_range.full_scale_a, "device", range_name))
        voltage_others.append(_Offer(device.compliance_v, "device", "compliance voltage"))
    current = _tightest(
        treatment,
        Kind.CURRENT,
        [_Offer(drug.current_max_a, "catalogue", entry)],
        ("current", stated.current_a),
        current_others,
    )
    dose = _tightest(
        treatment,
        Kind.CHARGE,
        [
            _Offer(drug.dose_max_c, "catalogue", entry),
            _Offer(active_pad.charge_rating_c, "catalogue", f"rating of {active.type}"),
            _Offer(return_pad.charge_rating_c, "catalogue", f"rating of {other.type}"),
        ],
        ("dose", stated.dose_c),
        [own.dose_c],
    )
    day_offer = (
        _Offer(drug.dose_max_c, "catalogue", f"{entry}, one full session")
        if drug.day_dose_max_c is None
        else _Offer(drug.day_dose_max_c, "catalogue", entry)
    )
    day = _tightest(treatment, Kind.CHARGE, [day_offer], ("day_dose", stated.day_dose_c), [own.day_dose_c])
    voltage = _tightest(
        treatment,
        Kind.VOLTAGE,
        [_Offer(drug.voltage_max_v, "catalogue", entry)],
        ("voltage", stated.voltage_v),
        voltage_others,
    )
    time = _tightest(
        treatment,
        Kind.TIME,
        [_Offer(drug.session_time_max_s, "catalogue", entry)],
        ("time", stated.time_s),
        [own.time_s],
    )
    _check_levels(treatment, density, current, voltage, current_range)

    # A setpoint that passed the checks is never cut by the rounding of density times area.
    current = replace(current, value=max(current.value, _highest_a(treatment)))
    margin_a = 0.0 if current_range is None else current_range.full_scale_a * GUARD_FULL_SCALE_RATIO
    current_guard_a = max(GUARD_RATIO * current.value, current.value + margin_a)
    compliance_v = DEVICE_RATIO * voltage.value if device is None else device.compliance_v
    rows = (
        _row("current", Kind.CURRENT, current, current_guard_a, max(DEVICE_RATIO * current.value, current_guard_a)),
        _row("density", Kind.DENSITY, density, GUARD_DENSITY_RATIO * density.value, None),
        _row(
            "dose",
            Kind.CHARGE,
            dose,
            _charge_guard_c(dose.value),
            DEVICE_RATIO * dose.value,
        ),
        _row("day dose", Kind.CHARGE, day, _charge_guard_c(day.value), None),
        _row("voltage", Kind.VOLTAGE, voltage, None, min(DEVICE_RATIO * voltage.value, compliance_v)),
        _row(
            "session time",
            Kind.TIME,
            time,
            GUARD_TIME_RATIO * time.value + GUARD_TIME_MARGIN_S,
            DEVICE_RATIO * time.value + GUARD_TIME_MARGIN_S,
        ),
        _row("ramp rate", Kind.RAMP_RATE, _Offer(drug.ramp_rate_max_a_per_s, "catalogue", entry), None, None),
        _row("step", Kind.CURRENT, _step_offer(drug.step_max_a, entry, device), None, None),
    )
    return Limits(
        rows=rows,
        drug=drug,
        drug_key=entry,
        catalogue_sha256=catalogue.sha256,
        polarity=treatment.polarity,
        area_m2=active.area_m2,
        return_area_m2=other.area_m2,
        device=device,
        current_range=current_range,
        pad_charge_c=min(active_pad.charge_rating_c, return_pad.charge_rating_c),
    )


def resolve_channels(
    treatment: "Treatment",
    catalogue: "Catalogue",
    device: DeviceCapabilities | None = None,
    operator: OperatorLimits | None = None,
) -> tuple[Limits, ...]:
    """Resolve the limits of every channel of a treatment, in its order; on a device all are of its `common_range`.

    The operator's limits hold for each channel. Refused (RefusedError): what `resolve_limits` refuses, more channels
    than the device has, and a level that is too small for the common range. A device may have more channels than the
    treatment.
    """
    channels = treatment.channels
    resolved = tuple(resolve_limits(channel, catalogue, None, operator) for channel in channels)
    if device is None:
        return resolved
    if len(channels) > device.channels:
        has = f"{device.channels} channel{'s' if device.channels > 1 else ''}"
        raise channels[device.channels].refuse(
            (),
            f"the device {device.name} has {has}, the treatment {len(channels)}",
            f"use a device with {len(channels)} channels, or write a treatment for each",
        )
    shared = common_range(channels, device)
    return tuple(resolve_limits(channel, catalogue, device, operator, current_range=shared) for channel in channels)


def common_range(channels: Sequence["ChannelTreatment"], device: DeviceCapabilities) -> CurrentRange:
    """The one range on which all channels run: the smallest that holds the highest level of any.

    RefusedError if the device has none; or if it is larger than the range that a channel would have on its own, and a
    level of that channel is less than 1/RANGE_LEAST_PART of its full scale.
    """
    highest = max(channels, key=_highest_a)
    shared = _range(highest, device)
    least_a = shared.full_scale_a / RANGE_LEAST_PART
    for channel in channels:
        own = device.range_for(_highest_a(channel))
        if own is None or own.full_scale_a >= shared.full_scale_a:
            continue
        for location, step in channel.deliveries():
            if exceeds(least_a, step.current_a):
                raise channel.refuse(
                    (*location, "current"),
                    f'is too small for the range of {format_current(shared.full_scale_a)} that "{highest.name}" needs:'
                    f" {device.name} has one range for all channels, and each level must have a twentieth of it,"
                    f" {format_current(least_a)}",
                    f'treat "{channel.name}" in a session of its own',
                )
    return shared


def _highest_a(treatment: "ChannelTreatment") -> float:
    return max(step.current_a for _, step in treatment.deliveries())


def _step_offer(step_max_a: float, entry: str, device: DeviceCapabilities | None) -> _Offer:
    """A voltage source makes no steps: what its output jumps by flows through the skin's capacitance alone."""
    if device is not None and device.front_end == FrontEnd.VOLTAGE_SOURCE and step_max_a > 0.0:
        return _Offer(0.0, "device", "voltage source")
    return _Offer(step_max_a, "catalogue", entry)


def _charge_guard_c(limit_c: float) -> float:
    """The number that absolute charge is held against, above a limit on the dose."""
    return GUARD_CHARGE_RATIO * limit_c + min(GUARD_CHARGE_MARGIN_C, GUARD_CHARGE_MARGIN_RATIO * limit_c)


def _row(quantity: str, kind: Kind, offer: _Offer, guard: float | None, device_cap: float | None) -> LimitRow:
    return LimitRow(quantity, kind, offer.value, offer.source, offer.detail, guard, device_cap)


def _tightest(
    treatment: "ChannelTreatment",
    kind: Kind,
    from_catalogue: list[_Offer],
    from_treatment: tuple[str, float | None],
    others: list[_Offer | float | None],
) -> _Offer:
    """The smallest of all offers; a bare number among `others` is the operator's. Refuses a treatment that loosens."""
    chosen = min(from_catalogue, key=lambda offer: offer.value)
    key, stated = from_treatment
    if stated is not None:
        if exceeds(stated, chosen.value):
            raise treatment.refuse(
                ("limits", key),
                f"is looser than the catalogue's {format_limit(chosen.value, kind)} ({chosen.detail})",
                "a treatment may only tighten a limit",
            )
        if stated < chosen.value:
            chosen = _Offer(stated, "treatment", f"line {treatment.line_of(('limits', key))}")
    for other in others:
        if other is not None:
            offer = other if isinstance(other, _Offer) else _Offer(other, "operator", "")
            if exceeds(chosen.value, offer.value):
                chosen = offer
    return chosen


def _electrode(
    treatment: "ChannelTreatment", catalogue: "Catalogue", role: str, key: str, area_m2: float, polarity: str
) -> "Electrode":
    pad = catalogue.electrodes.get(key)
    if pad is None:
        raise treatment.refuse(
            ("electrodes", role, "type"), "is not in the catalogue", catalogue.suggest_electrode(key)
        )
    if exceeds(area_m2, pad.area_max_m2) or exceeds(pad.area_min_m2, area_m2):
        sizes = format_area(pad.area_min_m2)
        if pad.area_max_m2 > pad.area_min_m2:
            sizes += f" to {format_area(pad.area_max_m2)}"
        raise treatment.refuse(
            ("electrodes", role, "area"), f"{key} has {sizes}", "correct the area, or choose the electrode that has it"
        )
    if pad.polarity not in ("either", polarity):
        raise treatment.refuse(
            ("electrodes", role, "type"),
            f"may only be the {pad.polarity}, but is the {polarity} here",
            "choose another electrode, or correct the polarity of the active one",
        )
    return pad


def _range(treatment: "ChannelTreatment", device: DeviceCapabilities) -> CurrentRange:
    location, step = max(treatment.deliveries(), key=lambda item: item[1].current_a)
    chosen = device.range_for(step.current_a)
    if chosen is None:
        reach_a = max((item.full_scale_a for item in device.ranges), default=0.0)
        raise treatment.refuse(
            (*location, "current"),
            f"the device {device.name} reaches {format_current(reach_a)} at most",
            "lower the current and give it more time, or use another device",
        )
    least_ohm = BALLAST_LEAST_RATIO * device.compliance_v / chosen.full_scale_a
    if device.front_end == FrontEnd.VOLTAGE_SOURCE and exceeds(least_ohm, chosen.ballast_ohm * 1.01):
        raise treatment.refuse(
            (*location, "current"),
            f"the voltage source {device.name} has a ballast of {chosen.ballast_ohm:.0f} ohm on its range of"
            f" {format_current(chosen.full_scale_a)}, less than {least_ohm:.0f} ohm",
            "put more in series with its output and state it in the hello, or use a current source",
        )
    return chosen


def _check_levels(
    treatment: "ChannelTreatment", density: _Offer, current: _Offer, voltage: _Offer, chosen: CurrentRange | None
) -> None:
    areas = (("active", treatment.electrodes.active.area_m2), ("return", treatment.electrodes.return_.area_m2))
    ballast_ohm = 0.0 if chosen is None else chosen.ballast_ohm
    for location, step in treatment.deliveries():
        key = (*location, "current")
        for role, area_m2 in areas:
            if exceeds(step.current_a / area_m2, density.value):
                raise treatment.refuse(
                    key,
                    f"is {format_density(step.current_a / area_m2)} on the {role} electrode's {format_area(area_m2)},"
                    f" beyond {format_density(density.value)} ({_origin(density)})",
                    f"stay at or below {format_current(_floor(density.value * area_m2))}, or use a larger electrode",
                )
        if exceeds(step.current_a, current.value):
            raise treatment.refuse(
                key,
                f"is beyond {format_current(current.value)} ({_origin(current)})",
                f"stay at or below {format_current(_floor(current.value))}; the dose then takes longer",
            )
        needed_v = step.current_a * (ballast_ohm + PLAUSIBLE_LOAD_OHM)
        if exceeds(needed_v, voltage.value):
            ballast = f" and the ballast of {format_resistance(ballast_ohm)}" if ballast_ohm > 0.0 else ""
            raise treatment.refuse(
                key,
                f"needs {format_voltage(needed_v)} through {format_resistance(PLAUSIBLE_LOAD_OHM)}{ballast},"
                f" beyond {format_voltage(voltage.value)} ({_origin(voltage)})",
                "lower the current and give it more time, or use another device",
            )


def _origin(offer: _Offer) -> str:
    return f"{offer.source}: {offer.detail}" if offer.detail else offer.source


def _floor(current_a: float) -> float:
    """`current_a` rounded down to the four digits in which it is shown, so that the remedy itself is within limits."""
    text = format_current(current_a)
    shown_a = parse_quantity(text, Kind.CURRENT)
    if not exceeds(shown_a, current_a):
        return shown_a
    return current_a * (1.0 - 5e-4)
