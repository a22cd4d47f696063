"""Circuits that the simulator and ngspice both run: front-end, leads, body and skin, under the same events.

Each side is written from the equations of docs/simulator.md, in the language of its own program. ngspice sees each site
per cm2: a current source of the density I/(A a) into a node of its own, on which hang the capacitance (or the ladder's
resistors and capacitors) and the law of the skin as a behavioural source; the pores and the polarisation are charges on
capacitors of 1 F.
"""

import math
from dataclasses import dataclass

import numpy as np

from ionto_rt.core.frontend import FrontEnd
from ionto_rt.core.skin import Skin
from ngspice import ngspice

PERIOD_S = 1e-4
FULL_SCALE_A = 4e-3
EDGE_S = 1e-8
BODY_OHM = 534.0
CPE = (0.85, 60e-9)
"""Exponent, and admittance at 1 rad/s in S s^0.85 / cm2."""

Steps = tuple[tuple[float, float], ...]
"""(time in s, value from then on), times on whole periods."""


@dataclass(frozen=True)
class Circuit:
    """One circuit and what happens to it. Signals are compared at the end of each sample period of 0.1 ms."""

    name: str
    drive: Steps
    """What the output stage is asked for: A of a current source, V of a voltage source."""
    duration_s: float
    front_end: str = "current"
    bandwidth_hz: float = 2000.0
    compliance_v: float = 60.0
    fixed_load: tuple[float, float, float] | None = None
    """(series ohm, parallel ohm, F) in the place of the skin."""
    areas_cm2: tuple[float, float] = (8.0, 25.0)
    ladder: bool = False
    polarisation_v: float = 0.0
    half_cell_v: float = 0.0
    ramp_s: float = 0.0
    """The first value of the drive is reached in a straight line from zero."""
    open: Steps = ()
    """Ohm in series with the skin; 0: none."""
    bridge: Steps = ()
    """Ohm between the leads; 0: none."""
    contact: Steps = ()
    """Wetted share of the active pad."""
    longest_step_s: float = 2e-6


def at(steps: Steps, time_s: float, before: float) -> float:
    """Value of a step function just after `time_s`."""
    for begins_s, value in steps:
        if time_s >= begins_s - 1e-9:
            before = value
    return before


def asked(circuit: Circuit, time_s: float) -> float:
    """What the output stage is asked for in the period that begins at `time_s`."""
    if time_s < circuit.ramp_s:
        return circuit.drive[0][1] * (time_s + 0.5 * PERIOD_S) / circuit.ramp_s
    return at(circuit.drive, time_s, 0.0)


def in_simulator(circuit: Circuit, substeps: int, every: int = 1) -> dict[str, np.ndarray]:
    """The signals by `FrontEnd` and `Skin`, at the end of each period of `every` times 0.1 ms in so many sub-steps."""
    skin = None
    if circuit.fixed_load is None:
        exponent, admittance = CPE if circuit.ladder else (0.0, 1.0)
        skin = Skin(
            active_area_cm2=circuit.areas_cm2[0], return_area_cm2=circuit.areas_cm2[1], cpe_exponent=exponent,
            cpe_admittance_s_cm2=admittance,
        )  # fmt: skip
        skin.polarisation_v = circuit.polarisation_v
        skin.half_cell_v = circuit.half_cell_v
    period_s = every * PERIOD_S
    load = dict(zip(("series_ohm", "parallel_ohm", "capacitance_f"), circuit.fixed_load or (), strict=False))
    stage = FrontEnd(
        circuit.front_end, **load, skin=skin, sample_rate_hz=1.0 / period_s, full_scale_a=FULL_SCALE_A,
        compliance_v=circuit.compliance_v, bandwidth_hz=circuit.bandwidth_hz, gain_error=0.0, offset_codes=0.0,
        noise_codes=0.0, substeps=substeps,
    )  # fmt: skip
    lsb = output_lsb(circuit, stage)
    rows = []
    for k in range(round(circuit.duration_s / period_s)):
        time_s = k * period_s
        stage.output(round(asked(circuit, time_s) / lsb))
        if at(circuit.open, time_s, 0.0):
            stage.open_lead()
        elif at(circuit.bridge, time_s, 0.0):
            stage.short_leads(at(circuit.bridge, time_s, 0.0))
        else:
            stage.close_lead()
        if skin is not None and circuit.contact:
            skin.contact_fraction = at(circuit.contact, time_s, 1.0)
        stage.run()
        inner = (skin.active_v, skin.return_v) if skin is not None else (0.0, 0.0)
        rows.append((time_s + period_s, stage.source_a, stage.voltage_v, *inner))
    return dict(zip(("time", "source_a", "voltage_v", "active_v", "return_v"), np.array(rows).T, strict=True))


def output_lsb(circuit: Circuit, stage: FrontEnd | None = None) -> float:
    """A or V of one output code."""
    stage = stage or FrontEnd(circuit.front_end, full_scale_a=FULL_SCALE_A, compliance_v=circuit.compliance_v)
    return stage.range["output_lsb"] * (1e-15 if circuit.front_end == "current" else 1e-12)


def in_ngspice(circuit: Circuit) -> dict[str, np.ndarray]:
    """The same signals by ngspice, at the ends of the periods of 0.1 ms."""
    wanted = ["v(source)", "v(pads)", "v(x1)", "v(x2)"] if circuit.fixed_load is None else ["v(source)", "v(pads)"]
    found = ngspice().transient(netlist(circuit), wanted)
    time = PERIOD_S * np.arange(1, round(circuit.duration_s / PERIOD_S) + 1)
    inner = np.zeros_like(time)
    rows = {name: np.interp(time, found["time"], found[name]) for name in wanted}
    return {
        "time": time,
        "source_a": 1e-3 * rows["v(source)"],
        "voltage_v": rows["v(pads)"],
        "active_v": rows.get("v(x1)", inner),
        "return_v": rows.get("v(x2)", inner),
    }


def netlist(circuit: Circuit) -> list[str]:
    """The circuit in ngspice's language. Node "source" carries the current out of the stage, in mA."""
    lag_s = 1.0 / (2.0 * math.pi * circuit.bandwidth_hz)
    lsb = output_lsb(circuit)
    quantised = tuple((time_s, round(value / lsb) * lsb) for time_s, value in circuit.drive)
    lines = [
        f"* {circuit.name}",
        ".options reltol=1e-6 abstol=1e-14 vntol=1e-9 chgtol=1e-18 method=trap",
        *staircase("asked", quantised, 0.0, circuit.duration_s, circuit.ramp_s),
        *staircase("opened", tuple((t, float(ohm > 0.0)) for t, ohm in circuit.open), 0.0, circuit.duration_s),
        *staircase("bridged", tuple((t, float(ohm > 0.0)) for t, ohm in circuit.bridge), 0.0, circuit.duration_s),
        *staircase("a1", circuit.contact, 1.0, circuit.duration_s),
        *staircase("a2", (), 1.0, circuit.duration_s),
        f"Rlag asked lagged {lag_s:.12g}",
        "Clag lagged 0 1 IC=0",
    ]
    bridge_ohm = max((ohm for _, ohm in circuit.bridge), default=1e12)
    if circuit.front_end == "current":
        # The limit takes what would lift the pads above it, and none of that flows through the skin.
        limit = circuit.compliance_v
        clamp = f"(V(pads)>{limit} ? (V(pads)-{limit})*10 : V(pads)<-{limit} ? (V(pads)+{limit})*10 : 0)"
        lines += ["Bstage 0 pads I = V(lagged)", f"Bclamp pads 0 I = {clamp}"]
        source_a = f"V(lagged) - {clamp}"
    else:
        ballast_ohm = 0.1 * circuit.compliance_v / FULL_SCALE_A
        lines += ["Estage behind 0 lagged 0 1", f"Rballast behind stage {ballast_ohm:.9g}", "Vstage stage pads 0"]
        source_a = "I(Vstage)"
    lines += [
        f"Bsource source 0 V = 1000*({source_a})",
        f"Rbridge pads 0 R='V(bridged) > 0.5 ? {bridge_ohm} : 1e15'",
        "Ropen pads lead R='V(opened) > 0.5 ? 1e9 : 1e-3'",
    ]
    if circuit.fixed_load is not None:
        series_ohm, parallel_ohm, capacitance_f = circuit.fixed_load
        lines += [
            "Vskin lead w 0", f"Rs w x {series_ohm}", f"Rp x 0 {parallel_ohm}", f"Cp x 0 {capacitance_f} IC=0",
        ]  # fmt: skip
    else:
        lines += ["Vskin lead w 0", f"Rbody w b0 {BODY_OHM}"]
        for k, area_cm2, positive, negative in (
            (1, circuit.areas_cm2[0], 1.25, 0.80), (2, circuit.areas_cm2[1], 0.80, 1.25),
        ):  # fmt: skip
            lines += site(k, f"b{k - 1}", f"b{k}", area_cm2, positive, negative, circuit.ladder)
        lines += [
            "Belectrode b2 0 V = V(electrode) + " + str(circuit.half_cell_v),
            "Celectrode electrode 0 1 IC=0",
            f"Bpolarise 0 electrode I = ({circuit.polarisation_v}*I(Vskin)/(abs(I(Vskin)) + "
            f"{1e-6 * circuit.areas_cm2[0]}) - V(electrode))/0.2",
        ]
    lines.append(f".tran {PERIOD_S} {circuit.duration_s + 0.5 * PERIOD_S} 0 {circuit.longest_step_s} uic")
    return lines


def staircase(node: str, steps: Steps, before: float, duration_s: float, ramp_s: float = 0.0) -> list[str]:
    """A voltage source on `node` that follows the steps, each within EDGE_S after its time."""
    points = [(0.0, before)]
    for begins_s, value in steps:
        if ramp_s > 0.0 and begins_s == 0.0:
            points.append((ramp_s, value))
        else:
            points += [(begins_s, points[-1][1])] if begins_s > 0.0 else []
            points.append((begins_s + EDGE_S, value))
    points.append((duration_s + 1.0, points[-1][1]))
    return [f"V{node} {node} 0 PWL(" + " ".join(f"{t:.12g} {v:.12g}" for t, v in points) + ")"]


def site(k: int, above: str, below: str, area_cm2: float, positive: float, negative: float, ladder: bool) -> list[str]:
    """One pad's skin between two nodes. Pores are in mS/cm2 on node n, voltages per site on node x."""
    factor = f"(V(x{k}) >= 0 ? {positive} : {negative})"
    lines = [
        f"Brho{k} {above} m{k} V = I(Vskin)*400/({area_cm2}*V(a{k}))",
        f"Eskin{k} m{k} {below} x{k} 0 1",
        f"Bdensity{k} 0 x{k} I = I(Vskin)/({area_cm2}*V(a{k}))",
        f"Blaw{k} x{k} 0 I = 1e-5*V(x{k})*sqrt(1 + V(x{k})*V(x{k})) + 1e-3*V(n{k})*V(x{k})",
        f"Bfourth{k} q{k} 0 V = (V(x{k})/(5*{factor}))^4",
        f"Bgoal{k} g{k} 0 V = 1.25*V(q{k})/(1 + V(q{k}))",
        f"Bfast{k} r{k} 0 V = max(0.2, 600/(1 + (abs(V(x{k}))/(0.8*{factor}))^3))",
        f"Bpores{k} 0 n{k} I = (V(g{k}) - V(n{k}))/(V(g{k}) > V(n{k}) ? V(r{k}) : 1500)",
        f"Cpores{k} n{k} 0 1 IC=0",
    ]
    if not ladder:
        return [*lines, f"C{k} x{k} 0 30n IC=0"]
    rest_f, branches = ladder_parts()
    lines.append(f"C{k} x{k} 0 {rest_f:.12g} IC=0")
    for j, (ohm, farad) in enumerate(branches):
        lines += [f"Rl{k}{j} x{k} l{k}{j} {ohm:.12g}", f"Cl{k}{j} l{k}{j} 0 {farad:.12g} IC=0"]
    return lines


def ladder_parts() -> tuple[float, list[tuple[float, float]]]:
    """(C_0, [(R_k, C_k)]) per cm2: eight branches, one for each factor of six in rate from 1/s on."""
    exponent, admittance = CPE
    scale = admittance * math.sin(math.pi * exponent) / math.pi * math.log(6.0)
    farads = [scale * 6.0 ** (k * (exponent - 1.0)) for k in range(200)]
    return sum(farads[8:]), [(1.0 / (6.0**k * farads[k]), farads[k]) for k in range(8)]


def deviation(own: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of each signal over the largest magnitude of that signal, where it has one at all."""
    return {
        name: float(np.max(np.abs(own[name] - values)) / np.max(np.abs(values)))
        for name, values in reference.items()
        if name != "time" and np.max(np.abs(values)) > 1e-9
    }


CIRCUITS = (
    Circuit(
        "fixed load: current source with output pole", ((0.0, 3e-3), (5e-3, -2e-3), (10e-3, 0.0)), 15e-3,
        bandwidth_hz=1000.0, fixed_load=(600.0, 1500.0, 240e-9),
    ),
    Circuit(
        "one nonlinear site: current step, reversal and rest", ((0.0, 3.5e-3), (10e-3, -3.5e-3), (20e-3, 0.0)), 30e-3,
        areas_cm2=(8.0, 1e6),
    ),
    Circuit(
        "two nonlinear sites, body and polarisation: ramp, hold, off", ((0.0, -4e-3), (1.5, 0.0)), 2.0, ramp_s=1.0,
        polarisation_v=1.0, longest_step_s=1e-3,
    ),
    Circuit(
        "ladder of the constant phase element: current step and rest", ((0.0, 2e-3), (10e-3, 0.0)), 20e-3, ladder=True,
    ),
    Circuit(
        "open lead and reconnection, current source", ((0.0, 2e-3),), 20e-3, open=((8e-3, 1e9), (12e-3, 0.0)),
    ),
    Circuit(
        "voltage limit and its release, current source", ((0.0, 3e-3), (15e-3, 0.5e-3), (25e-3, -3e-3)), 35e-3,
        compliance_v=8.0,
    ),
    Circuit(
        "voltage source behind its ballast: step and reversal", ((0.0, 12.0), (10e-3, -9.0), (20e-3, 0.0)), 30e-3,
        front_end="voltage",
    ),
    Circuit(
        "current source with a slow output pole into skin", ((0.0, 1e-3), (5e-3, 3e-3), (10e-3, 0.0)), 15e-3,
        bandwidth_hz=300.0,
    ),
    Circuit(
        "short between the leads and its release", ((0.0, 3e-3),), 25e-3, bridge=((8e-3, 20.0), (14e-3, 0.0)),
    ),
    Circuit(
        "electrode potential and polarisation, voltage source", ((0.0, 0.0), (0.1, 6.0), (0.3, 0.0)), 0.5,
        front_end="voltage", half_cell_v=0.5, polarisation_v=1.0, longest_step_s=1e-4,
    ),
    Circuit(
        "half the contact, and all of it again", ((0.0, -3e-3),), 30e-3,
        contact=((0.0, 1.0), (10e-3, 0.5), (20e-3, 1.0)),
    ),
    Circuit(
        "open lead and reconnection, voltage source with ladder", ((0.0, 10.0),), 20e-3, front_end="voltage",
        ladder=True, open=((8e-3, 1e9), (12e-3, 0.0)),
    ),
)  # fmt: skip
