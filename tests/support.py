"""What the tests of the tick share: the core's C structs and functions, configurations, and an ideal device.

The C structs are read from the .pxd files and the functions come from the modules' exported table, so that a stage can
be tested below its Python face, as an embedder calls it.
"""

import ctypes
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import Action, FrontEnd, Pacing, SegmentKind, Trip
from ionto_rt.configuration import FIT, DeadlineProfile, controller_config, device_limits
from ionto_rt.core.controller import Controller, empty_ticks
from ionto_rt.core.loop import Loop
from ionto_rt.device import Hello, Range, open_device
from ionto_rt.heartbeat import answer_of
from ionto_rt.plan import Plan, compile_plan
from ionto_rt.safety import resolve_limits
from ionto_rt.treatment import Treatment
from treatments import treatment

CORE = Path(__file__).parent.parent / "src" / "ionto_rt" / "core"
PLAIN = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint8_t": ctypes.c_uint8,
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "double": ctypes.c_double,
    "char": ctypes.c_char,
}

LSB_A = 2.0**-22
"""Current per code of the tests' device: a power of two, so that limits can be met exactly. 4 mA are 16777 codes."""
LSB_V = 2.0**-9
TICK_S = 1e-3
TOKEN = 0x1234ABCD
SILENT = -1
"""As the heartbeat of a rig: nothing new is said."""


@cache
def struct(name: str) -> type[ctypes.Structure]:
    """The C struct `name` of the core as a ctypes class, nested structs included."""
    for path in sorted(CORE.glob("*.pxd")):
        body = re.search(rf"^cdef struct {name}:.*\n((?:    .*\n|\n(?=    ))+)", path.read_text(), re.M)
        if body is not None:
            break
    else:
        raise KeyError(name)
    fields: list[tuple[str, Any]] = []
    for line in body[1].splitlines():
        found = re.match(r"    (\w+)(\*?) (\w+)(?:\[(\d+)\])?\s*(?:#.*)?$", line)
        if found is None:
            if re.match(r"\s*(#.*)?$", line) or "(*" in line:
                if "(*" in line:
                    fields.append((re.search(r"\(\*(\w+)\)", line)[1], ctypes.c_void_p))  # type: ignore[index]
                continue
            raise ValueError(f"{name}: cannot read {line!r}")
        kind, pointer, field, count = found.groups()
        known: Any = ctypes.c_void_p if pointer else PLAIN.get(kind) or struct(kind)
        fields.append((field, known * int(count) if count else known))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@cache
def function(module: str, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """The C function `name` that `ionto_rt.core.module` exports to other extensions."""
    capsule = import_module(f"ionto_rt.core.{module}").__pyx_capi__[name]
    return ctypes.CFUNCTYPE(result, *arguments)(address(capsule))


def address(capsule: object) -> int:
    """Where the thing in a PyCapsule lies."""
    ctypes.pythonapi.PyCapsule_GetName.restype = ctypes.c_char_p
    ctypes.pythonapi.PyCapsule_GetName.argtypes = [ctypes.py_object]
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    found: int = ctypes.pythonapi.PyCapsule_GetPointer(capsule, ctypes.pythonapi.PyCapsule_GetName(capsule))
    return found


def fill(target: ctypes.Structure, values: Mapping[str, Any]) -> ctypes.Structure:
    """Set the named fields, nested ones by nested mappings; returns `target`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            fill(getattr(target, name), value)
        elif isinstance(value, list):
            getattr(target, name)[:] = value
        else:
            setattr(target, name, value)
    return target


def as_dict(source: ctypes.Structure) -> dict[str, Any]:
    """A ctypes struct as Cython shows it to Python: nested dicts and lists."""
    found: dict[str, Any] = {}
    for name, _ in source._fields_:
        value = getattr(source, name)
        if isinstance(value, ctypes.Structure):
            value = as_dict(value)
        elif isinstance(value, ctypes.Array):
            value = list(value)
        found[name] = value
    return found


def state_of(controller: Controller) -> Any:
    """The controller's memory itself, as struct ControllerState: writing to it corrupts it."""
    return struct("ControllerState").from_address(address(controller.capsule))


def memory_of(controller: Controller, stage: str) -> Any:
    """The bytes of one stage's part of the controller's configuration, as a ctypes array; writing corrupts it."""
    state = state_of(controller)
    part = getattr(struct("ControllerConfig"), stage)
    at = ctypes.addressof(state) + struct("ControllerState").config.offset + part.offset
    return (ctypes.c_uint8 * part.size).from_address(at)


def hello(front_end: FrontEnd = FrontEnd.CURRENT_SOURCE, **changes: Any) -> Hello:
    """A device of one range, 4 mA full scale and 60 V, whose scales are powers of two."""
    output_lsb, ballast_ohm = (LSB_A, 0.0) if front_end == FrontEnd.CURRENT_SOURCE else (LSB_V, 2e3)
    said: dict[str, Any] = {
        "version": 1,
        "channels": 1,
        "pacing": 5,
        "front_end": front_end,
        "lease_max_ticks": 100,
        "firmware_version": 1,
        "tick_s": TICK_S,
        "compliance_v": 60.0,
        "voltage_lsb_v": LSB_V,
        "voltage_offset_q16": 0,
        "code_limit": 32767,
        "model": "test",
        "serial": "1",
        "last_token": 0,
        "last_net_codes": 0,
        "last_absolute_codes": 0,
        "last_samples": 0,
        "last_range": 0,
        "ranges": (Range(4e-3, LSB_A, 0, LSB_A, 0, output_lsb, -32767, 32767, ballast_ohm),),
    }
    return Hello(**{**said, **changes})


def planned(
    of: Treatment | None = None, device: Hello | None = None, profile: DeadlineProfile = FIT
) -> tuple[dict[str, Any], Plan]:
    """Configuration of the tick and plan, as a session makes them. By default 2 mA for 2 mA*min, ramps of 10 s."""
    device = device or hello()
    of = of or treatment('[[steps]]\ncurrent = "2 mA"\ndose = "2 mA*min"\nramp = "10 s"')
    limits = resolve_limits(of, Catalogue.load(), device.capabilities)
    plan = compile_plan(of, limits, device.tick_s)
    return controller_config(device, limits, plan, profile, TOKEN), plan


def changed(config: Mapping[str, Any], **stages: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in which some fields of some stages are others: `changed(config, guard={"over_ticks": 3})`."""
    return {name: {**part, **stages[name]} if name in stages else part for name, part in config.items()}


def segment(kind: SegmentKind, **fields: Any) -> dict[str, Any]:
    """One segment; what is not given is zero, and the step is 0."""
    nothing: dict[str, Any] = {name: 0 for name, _ in struct("Segment")._fields_}
    return {**nothing, "kind": int(kind), **fields}


def endless(level_a: float) -> list[dict[str, Any]]:
    """A programme of one level, at once and for good, without self-test and contact check."""
    return [segment(SegmentKind.DELIVER, level_a=level_a)]


SAMPLE_FIELDS = tuple(name for name, _ in struct("Sample")._fields_)


class Rig:
    """A controller on an ideal device: a current source without lag or noise on a resistor, in the wire's order.

    The command that answers sample k is in force while sample k + 2 is taken. `tick` makes the next healthy sample,
    changes what the test wants changed, and returns the row. The heartbeat answers its challenge at
    each tick, unless it is given; SILENT: it stays as it was.
    """

    def __init__(
        self, config: Mapping[str, Any], segments: list[dict[str, Any]], *, resistance_ohm: float = 5000.0
    ) -> None:
        self.controller = Controller(dict(config), segments)
        self.calibration = config["calibration"]
        self.guard = config["guard"]
        self.resistance_ohm = resistance_ohm
        self.index = -1
        self.charge_codes = 0
        self.rows: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []

    def sample(self, lose: int = 0, **changes: int) -> dict[str, int]:
        """The next healthy sample, `lose` samples after the next, with some fields changed."""
        calibration = self.calibration
        self.index = (self.index + 1 + lose) & 0xFFFFFFFF
        before = self.commands[-2] if len(self.commands) > 1 else {"code": 0, "flags": 0, "index": 0xFFFFFFFF}
        applied = before["code"]
        current_a = applied * calibration["output_lsb"] if before["flags"] else 0.0
        code = round(current_a / calibration["current_lsb_a"])
        found = {
            "index": self.index,
            "device_time_us": round(self.index * calibration["tick_s"] * 1e6) & 0xFFFFFFFF,
            "applied_index": before["index"],
            "nonce": (self.index * 40503) & 0xFFFF,
            "status": before["flags"],
            "current_code": code,
            "redundant_code": round(current_a / calibration["redundant_lsb_a"]),
            "voltage_code": round(current_a * self.resistance_ohm / calibration["voltage_lsb_v"]),
            "applied_code": applied,
        } | changes
        self.charge_codes += (1 + lose) * found["current_code"] * 65536
        self.charge_codes = (self.charge_codes + (1 << 63)) % (1 << 64) - (1 << 63)
        return {"charge_codes": self.charge_codes} | found

    def tick(self, lose: int = 0, **changes: Any) -> dict[str, Any]:
        """One tick on the next sample; changes are fields of the sample or other inputs of the tick."""
        inputs = {name: changes.pop(name) for name in tuple(changes) if name not in SAMPLE_FIELDS}
        if inputs.get("heartbeat") is None:
            inputs["heartbeat"] = answer_of(self.challenge)
        elif inputs["heartbeat"] == SILENT:
            inputs["heartbeat"] = self.rows[-1]["heartbeat"] if self.rows else 0
        row, command = self.controller.step(self.sample(lose, **changes), **inputs)
        self.rows.append(row)
        self.commands.append(command)
        return row

    @property
    def challenge(self) -> int:
        """What the next heartbeat must answer."""
        return self.rows[-1]["challenge"] if self.rows else self.controller.stages["guard"]["challenge"]

    def run(self, ticks: int, **changes: Any) -> list[dict[str, Any]]:
        """So many ticks; the rows."""
        return [self.tick(**changes) for _ in range(ticks)]

    def until(self, wanted: Callable[[dict[str, Any]], bool], most: int, **changes: Any) -> int:
        """Ticks that it took until a row was as wanted; AssertionError if `most` were not enough."""
        for count in range(1, most + 1):
            if wanted(self.tick(**changes)):
                return count
        raise AssertionError(f"not reached in {most} ticks; last row: {self.rows[-1]}")

    def trips(self) -> list[Trip]:
        """Causes as they came up; each is here once, however long it lasted."""
        causes = [0, *(row["trip"] for row in self.rows)]
        return [Trip(now) for was, now in pairwise(causes) if now != was]

    def table(self) -> np.ndarray[Any, Any]:
        """The rows so far as the record has them."""
        return rows_to_array(self.rows)


def rows_to_array(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Rows of `Controller.step` as the structured array of `Controller.run`."""
    table = empty_ticks(len(rows))
    names = table.dtype.names or ()
    for at, row in enumerate(rows):
        table[at] = tuple(row[name] for name in names)
    return table


def same_bits(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> str:
    """Name of the first column that differs in a bit, with its row; empty if none does."""
    if len(left) != len(right):
        return f"{len(left)} rows and {len(right)}"
    for name in left.dtype.names or ():
        ours, theirs = np.ascontiguousarray(left[name]), np.ascontiguousarray(right[name])
        if ours.tobytes() != theirs.tobytes():
            width = ours.dtype.itemsize
            pairs = zip(ours.tobytes(), theirs.tobytes(), strict=True)
            at = next(k for k, (a, b) in enumerate(pairs) if a != b) // width
            return f"{name} in row {at}: {ours[at]} and {theirs[at]}"
    return ""


def assert_safe_from_here(rig: Rig, trip: Trip, action: Action) -> None:
    """The trip of the last row is latched: nothing healthy clears it, nothing else replaces it, the output only falls.

    Under S1 it falls at the guard's slope and reaches zero in as many ticks as that takes, then the relay opens and
    stays open. Under S0 both are at once.
    """
    assert (rig.rows[-1]["trip"], rig.rows[-1]["action"]) == (trip, action)
    zero = rig.guard["output_zero_code"]
    code = abs(rig.rows[-1]["output_code"] - zero)
    if action == Action.RAMP_DOWN:
        most = int((code + 1) / rig.guard["stop_slope_codes"]) + 1
        taken = rig.until(lambda row: row["action"] == Action.OFF, most) if code else 0
        falling = [abs(row["output_code"] - zero) for row in rig.rows[-taken - 1 :]]
        assert falling == sorted(falling, reverse=True)
        assert max(a - b for a, b in pairwise(falling)) <= rig.guard["stop_slope_codes"] + 1
    rig.run(20)
    rig.tick(operator_command=2)
    rig.run(20, stop=2)
    for row in rig.rows[-41:]:
        assert (row["trip"], row["action"], row["close_relay"]) == (trip, Action.OFF, 0)
        assert row["output_code"] == zero
    assert rig.trips() == [trip]
    assert all(command["flags"] == 0 for command in rig.commands[-41:])


def run_on_device(
    steps: str, acts: Mapping[int, Callable[[Loop], object]] | None = None, **device_options: Any
) -> tuple[np.ndarray[Any, Any], dict[str, Any], list[dict[str, Any]]]:
    """A treatment of these steps on a virtual device in this process, in lock-step, to its end, without a session.

    acts: what to do to the loop before the tick of that number. Gives rows, configuration and segments.
    """
    with open_device("sim:", defaults=device_options) as device:
        config, plan = planned(treatment(steps), device.hello)
        limits = plan.limits
        loop = Loop(Controller(config, plan.segments), device.port.loop_port(), virtual_clock=True)
        device.push_limits(**device_limits(device.hello, limits, TOKEN))
        device.arm(Pacing.LOCK_STEP, TOKEN)
        rows, ended, at = [], "running", 0
        stops = sorted(acts or {})
        while ended == "running":
            loop.beat()
            ahead = [stop for stop in stops if stop > at]
            turn = min(1000, ahead[0] - at) if ahead else 1000
            ended = loop.run(turn)
            at += turn
            rows.append(loop.drain())
            if acts and at in acts:
                acts[at](loop)
    assert ended == "ended", ended
    return np.concatenate(rows), config, plan.segments
