"""What the tests of the record share: the telemetry row's dtype read from types.pxd, a session that looks real, and one
of several channels whose every row is a tick.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ionto_rt.core.controller import Controller, empty_ticks
from ionto_rt.record import SessionFolder
from support import TOKEN, run_on_device

TYPES = Path(__file__).parent.parent / "src" / "ionto_rt" / "core" / "types.pxd"
KINDS = {"int32_t": "<i4", "int64_t": "<i8", "uint8_t": "u1", "uint16_t": "<u2", "uint32_t": "<u4", "uint64_t": "<u8"}
KINDS["double"] = "<f8"

TICK_S = 1e-3
CURRENT_LSB_A = 4e-3 / 30000
VOLTAGE_LSB_V = 80 / 30000
TREATMENT = b'format = 1\nname = "Dexamethasone 40"\n[[steps]]\ncurrent = "4 mA"\n'
CONTROLLER: dict[str, Any] = {
    "calibration": {
        "front_end": 0,
        "current_offset_q16": 0,
        "current_lsb_a": CURRENT_LSB_A,
        "voltage_lsb_v": VOLTAGE_LSB_V,
        "tick_s": TICK_S,
    },
    "programme": {"polarity": -1.0, "slope_down_a_per_tick": 4e-3 / 30 * TICK_S},
    "guard": {"heartbeat_ticks": 2000, "current_limit_a": 4e-3},
    "lease_ticks": 80,
    "token": 0x1234ABCD,
}


def struct_fields(name: str) -> list[tuple[str, str]]:
    """(field, C type) of a struct in types.pxd, in order."""
    body = re.search(rf"^cdef struct {name}:\n((?:    .*\n|\n)+)", TYPES.read_text(), re.M)
    assert body is not None
    text = re.sub(r'""".*?"""', "", body[1], flags=re.S)
    return [(field, kind) for kind, field in re.findall(r"^    (\w+) (\w+)", text, re.M)]


TICK = np.dtype([(field, KINDS[kind]) for field, kind in struct_fields("Tick")], align=True)


def random_rows(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[Any]]:
    """Rows of any bytes at all: doubles of every kind, NaN payloads included."""
    data = np.random.default_rng(seed).integers(0, 256, count * TICK.itemsize, np.uint8)
    return data.view(TICK)


def same_rows(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    """Equal bit for bit in every column of struct Tick."""
    return len(left) == len(right) and all(left[name].tobytes() == right[name].tobytes() for name in TICK.names or ())


def channel_facts(**more: Any) -> dict[str, Any]:
    """The least that a session's folder asks for of a channel."""
    facts: dict[str, Any] = {
        "name": "",
        "site": "left knee",
        "prescribed_c": 2.4,
        "max_current_a": 4e-3,
        "controller": CONTROLLER,
        "segments": [],
    }
    return facts | more


def session_facts(**more: Any) -> dict[str, Any]:
    """The least that a session's folder asks for."""
    return {"subject": "S-07", "channels": [channel_facts()]} | more


def steady_rows(count: int, current_a: float = -4e-3) -> np.ndarray[Any, np.dtype[Any]]:
    """A constant cathodal current in treatment, its charge counted by host and device alike."""
    rows = np.zeros(count, TICK)
    code = round(current_a / CURRENT_LSB_A)
    rows["index"] = np.arange(count)
    rows["current_code"] = rows["redundant_code"] = code
    rows["current_a"] = rows["redundant_a"] = code * CURRENT_LSB_A
    rows["setpoint_a"] = rows["level_a"] = rows["prescribed_a"] = current_a
    rows["voltage_code"] = round(current_a * 2120 / VOLTAGE_LSB_V)
    rows["voltage_v"] = rows["voltage_code"] * VOLTAGE_LSB_V
    rows["net_codes"] = rows["device_charge_codes"] = np.arange(1, count + 1) * code * 65536
    rows["absolute_codes"] = np.abs(rows["net_codes"])
    rows["delivered_c"] = -rows["net_codes"] * (CURRENT_LSB_A * TICK_S / 65536)
    rows["phase"] = 3
    rows["contact"] = 1
    return rows


def treatment_rows(minutes: float = 10.5, prescribed_c: float = 2.4, seed: int = 1) -> np.ndarray[Any, np.dtype[Any]]:
    """A 4 mA cathodal treatment as skin shows it: 30 s ramps, 9 V at the end of the ramp settling to 8.5 V.

    One retreat to 2 mA for a minute at high resistance, a pause of 40 s, a contact check before, then the end.
    """
    count = round(minutes * 60 / TICK_S)
    random = np.random.default_rng(seed)
    level = np.zeros(count)
    phase = np.full(count, 3, np.int32)
    ticks = np.arange(count)
    second = ticks * TICK_S
    total = count * TICK_S
    start, pause, resume = 2.0, 0.45 * total, 0.45 * total + 40
    phase[second < 0.5] = 0
    phase[(second >= 0.5) & (second < start)] = 1
    up = np.clip((second - start) / 30, 0, 1)
    down = np.clip((total - 1 - second) / 30, 0, 1)
    level = 4e-3 * np.minimum(up, down)
    derated = (second > 0.7 * total) & (second < 0.7 * total + 60)
    level = np.where(derated, np.minimum(level, 3e-3), level)
    paused = np.clip(np.minimum(1, np.maximum((pause - second) / 4, (second - resume) / 30)), 0, 1)
    level = np.minimum(level, 4e-3 * paused)
    phase[(second >= start) & (up < 1)] = 2
    phase[(second >= pause - 4) & (second < resume)] = 4
    phase[(second >= resume) & (second < resume + 30)] = 2
    phase[(second > total - 31)] = 5
    phase[-1000:] = 6
    current = -level * (1 + 0.0005 * np.sin(second / 7)) + random.normal(0, 0.4e-6, count)
    current_code = np.rint(current / CURRENT_LSB_A).astype(np.int32)
    resistance = 2120 + 4000 * np.exp(-second / 12) + 60 * np.sin(second / 40)
    resistance += np.where(derated, 900, 0)
    voltage = current * resistance + np.where(level > 0, -0.05, 0)
    rows = np.zeros(count, TICK)
    rows["index"] = ticks
    rows["device_time_us"] = (ticks * 1000) % 2**32
    rows["host_late_us"] = (40 + random.gamma(2, 15, count)).astype(np.uint32)
    rows["host_time_us"] = ticks * 1000
    rows["current_code"] = current_code
    rows["redundant_code"] = current_code
    rows["voltage_code"] = np.rint(voltage / VOLTAGE_LSB_V)
    rows["current_a"] = current_code * CURRENT_LSB_A
    rows["redundant_a"] = rows["current_a"]
    rows["voltage_v"] = rows["voltage_code"] * VOLTAGE_LSB_V
    rows["setpoint_a"] = -level
    rows["level_a"] = -level
    rows["prescribed_a"] = np.where(derated, -4e-3, -level)
    rows["net_codes"] = np.cumsum(current_code.astype(np.int64) * 65536)
    rows["absolute_codes"] = np.cumsum(np.abs(current_code.astype(np.int64)) * 65536)
    rows["device_charge_codes"] = rows["net_codes"]
    rows["delivered_c"] = -rows["net_codes"] * (CURRENT_LSB_A * TICK_S / 65536)
    rows["resistance_ohm"] = np.where(second > start + 0.2, resistance, 0)
    rows["resistance_sigma_ohm"] = np.where(second > start + 0.2, 12, 0)
    rows["phase"] = phase
    rows["limited"] = derated
    rows["contact"] = 1
    return rows


def make_session(out_dir: Path, rows: np.ndarray[Any, Any] | None = None, **more: Any) -> SessionFolder:
    """A running session's folder with `rows` written (50 steady ones by default)."""
    folder = SessionFolder.create(
        out_dir, "Dexamethasone 40", treatment_source=TREATMENT, session=session_facts(**more)
    )
    channels = len(more.get("channels", "1"))
    writer = folder.open_telemetry(TICK, 1 / TICK_S, channels=channels)
    writer.append(steady_rows(50) if rows is None else rows)
    folder.events.write("session-begun", 0, safety=True)
    return folder


@dataclass(frozen=True)
class Channels:
    """Several channels as one device would have ticked them: rows in the order of ticks and channels, their facts."""

    rows: np.ndarray[Any, np.dtype[Any]]
    facts: list[dict[str, Any]]

    @property
    def count(self) -> int:
        return len(self.facts)

    def of(self, channel: int) -> np.ndarray[Any, np.dtype[Any]]:
        return self.rows[channel :: self.count]

    def unit_c(self, channel: int) -> float:
        """C in 1/65536 code."""
        calibration = self.facts[channel]["controller"]["calibration"]
        return float(calibration["current_lsb_a"] * calibration["tick_s"] / 65536)

    def receipt(self, outcome: str = "complete", **more: Any) -> dict[str, Any]:
        """The receipt that the session would hand over."""
        parts: list[dict[str, Any]] = []
        for channel, facts in enumerate(self.facts):
            rows = self.of(channel)
            net_c = float(rows["delivered_c"][-1])
            parts.append(
                {
                    "name": facts["name"],
                    "outcome": outcome,
                    "reason": "the prescribed dose was delivered",
                    "dose_prescribed_mamin": facts["prescribed_c"] / 0.06,
                    "dose_delivered_mamin": net_c / 0.06,
                    "delivered_net_c": net_c,
                    "delivered_abs_c": int(rows["absolute_codes"][-1]) * self.unit_c(channel),
                    "peak_current_ma": float(np.abs(rows["current_a"]).max()) * 1e3,
                    "peak_voltage_v": float(np.abs(rows["voltage_v"]).max()),
                    "trips": [],
                }
            )
        whole = dict(receipt_of(self.of(0), outcome, reason="the prescribed dose was delivered"))
        for key in ("dose_prescribed_mamin", "dose_delivered_mamin", "delivered_net_c", "delivered_abs_c"):
            whole[key] = sum(part[key] for part in parts)
        for key in ("peak_current_ma", "peak_voltage_v"):
            whole[key] = max(part[key] for part in parts)
        return whole | {"channels": parts} | more


@functools.cache
def ticked(channels: int, ticks: int = 0) -> Channels:
    """1 to 32 channels, each a short treatment on a virtual device of its own, as the core ticked it; at least `ticks`.

    Levels and loads differ; the lead of channel 1 opens in mid-treatment. What ends earlier goes on ticking, as on a
    device that samples all of its channels.
    """
    kinds = [_treated(number) for number in range(min(channels, 4))]
    length = max(ticks, *(len(rows) for rows, _ in kinds))
    table = empty_ticks(length * channels)
    facts = []
    for channel in range(channels):
        rows, known = kinds[channel % len(kinds)]
        given = np.concatenate([rows, np.repeat(rows[-1:], length - len(rows))])
        given["channel"] = channel
        given["index"] = np.arange(length)
        given["applied_index"][len(rows) :] = np.arange(len(rows) - 2, length - 2)
        given["device_time_us"] = np.arange(length) * 1000
        result = Controller(known["controller"], known["segments"]).run(given)
        for name in table.dtype.names or ():
            table[name][channel::channels] = result[name]
        facts.append(known | {"name": f"site {channel}", "site": f"place {channel % 3}"})
    return Channels(table, facts)


@functools.cache
def _treated(number: int) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    current, load_ohm = ("0.8 mA", "0.6 mA", "0.7 mA", "0.5 mA")[number], (1500.0, 3000.0, 2000.0, 6000.0)[number]
    steps = f'[[steps]]\ncurrent = "{current}"\ntime = "2 s"\nramp = "1 s"'
    more: dict[str, Any] = {"faults": ["open@3"]} if number == 1 else {}
    rows, config, segments = run_on_device(steps, load=(load_ohm / 4, load_ohm, 30e-9), seed=number + 1, **more)
    assert config["token"] == TOKEN
    limit_a = float(config["guard"]["current_limit_a"])
    facts = channel_facts(
        prescribed_c=float(current.split()[0]) * 1e-3 * 2.0,
        max_current_a=1.25 * limit_a,
        controller=config,
        segments=segments,
    )
    return rows, facts


def make_channels(
    out_dir: Path, channels: Channels, rows: np.ndarray[Any, Any] | None = None, **more: Any
) -> SessionFolder:
    """A running session's folder of several channels, with `rows` (all of them by default) written."""
    return make_session(out_dir, channels.rows if rows is None else rows, channels=channels.facts, **more)


def finished_channels(
    out_dir: Path, channels: Channels, rows: np.ndarray[Any, Any] | None = None, **receipt: Any
) -> Path:
    """The folder of an ended session of several channels."""
    folder = make_channels(out_dir, channels, rows)
    folder.finish(channels.receipt(**receipt))
    return folder.path


def receipt_of(rows: np.ndarray[Any, Any], outcome: str = "complete", **more: Any) -> Mapping[str, Any]:
    """The receipt that the session would hand over for these rows."""
    facts: dict[str, Any] = {
        "outcome": outcome,
        "dose_prescribed_mamin": 40.0,
        "dose_delivered_mamin": float(rows["delivered_c"][-1]) / 0.06 if len(rows) else 0.0,
        "peak_current_ma": float(np.abs(rows["current_a"]).max()) * 1e3 if len(rows) else 0.0,
        "peak_voltage_v": float(np.abs(rows["voltage_v"]).max()) if len(rows) else 0.0,
        "ticks": len(rows),
        "gaps": 0,
        "late": 0,
        "latency_us": {"p50": 70.0, "p99": 140.0, "p999": 190.0, "max": 260.0},
        "trips": [],
    }
    return facts | more
