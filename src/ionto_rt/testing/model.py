"""Slow models of ledger and guard in plain Python, as oracles for rows that a host has recorded.

They share no code with the tick. The ledger's is complete and exact. The guard's has the rows that are counts and
comparisons (heartbeat, lost and late samples, time, charge, the device's status, the operator's stop); rows that judge
currents, voltages and estimates are left to `tests/core/test_guard.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ionto_rt.codes import Action, DeviceStatus, SampleFault, StopFlag, Trip

CODE = 65536


@dataclass
class ReferenceLedger:
    """Charge of one channel in 1/65536 code, in Python's own integers."""

    offset_q16: int
    code_limit: int
    net_codes: int = 0
    absolute_codes: int = 0
    device_codes: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row; a refused sample counts nothing."""
        if row["sample_fault"] != SampleFault.GOOD:
            return
        code = int(row["current_code"]) * CODE - self.offset_q16
        lost, count = int(row["lost_ticks"]), int(row["device_charge_codes"])
        if lost:
            bound = lost * self.code_limit * CODE
            unseen = max(-bound, min(bound, count - self.device_codes - code))
            self.net_codes += unseen
            self.absolute_codes += abs(unseen)
        self.net_codes += code
        self.absolute_codes += abs(code)
        self.device_codes = count


@dataclass
class ReferenceGuard:
    """The guard's counts of one channel. `limits` are those of struct GuardLimits."""

    limits: Mapping[str, Any]
    ticks: int = 0
    heartbeat: int = 0
    heartbeat_age: int = 0
    missing: int = 0
    refused: int = 0
    """Bad samples since the last good one: each has had a tick of its own."""

    def add(self, row: Mapping[str, Any]) -> dict[Trip, Action]:
        """What is due in this row: each cause, and the least that it asks for."""
        limits, good = self.limits, row["sample_fault"] == SampleFault.GOOD
        ticks = 1
        if good:
            ticks += max(0, int(row["lost_ticks"]) - self.refused)
            self.refused = 0
        elif row["sample_fault"] == SampleFault.REPEATED:
            ticks = 0
        else:
            self.refused += 1
        self.ticks += ticks
        if int(row["heartbeat"]) == self.heartbeat:
            self.heartbeat_age += ticks
        else:
            self.heartbeat, self.heartbeat_age = int(row["heartbeat"]), 0
        self.missing += ticks - 1 if good else 1
        late_us, status = int(row["host_late_us"]), DeviceStatus(int(row["status"]))
        caps = DeviceStatus.OVER_CURRENT | DeviceStatus.CHARGE_CAP | DeviceStatus.TIME_CAP
        apart = abs(int(row["net_codes"]) - int(row["device_charge_codes"]))
        due = {
            Trip.OPERATOR_STOP: (row["stop"] >= StopFlag.NOW, Action.OFF),
            Trip.SESSION_TIME: (self.ticks > limits["session_ticks"], Action.RAMP_DOWN),
            Trip.HEARTBEAT: (self.heartbeat_age >= limits["heartbeat_ticks"], Action.RAMP_DOWN),
            Trip.LOST_SAMPLES: (self.missing > limits["gap_stop_ticks"], Action.RAMP_DOWN),
            Trip.HOST_SUSPENDED: (late_us > limits["lease_us"], Action.OFF),
            Trip.STALE_DATA: (limits["late_stop_us"] < late_us <= limits["lease_us"], Action.RAMP_DOWN),
            Trip.LEASE_LAPSED: (good and bool(status & DeviceStatus.LEASE_EXPIRED), Action.OFF),
            Trip.DEVICE_CAP: (good and bool(status & caps), Action.OFF),
            Trip.CHARGE_CAP: (good and int(row["absolute_codes"]) > limits["charge_cap_codes"], Action.RAMP_DOWN),
            Trip.CHARGE_MISMATCH: (good and apart > limits["charge_mismatch_codes"], Action.RAMP_DOWN),
        }
        if good:
            self.missing = 0
        return {cause: action for cause, (is_due, action) in due.items() if is_due}


COUNTED = frozenset(
    {
        Trip.OPERATOR_STOP,
        Trip.SESSION_TIME,
        Trip.HEARTBEAT,
        Trip.LOST_SAMPLES,
        Trip.HOST_SUSPENDED,
        Trip.STALE_DATA,
        Trip.LEASE_LAPSED,
        Trip.DEVICE_CAP,
        Trip.CHARGE_CAP,
        Trip.CHARGE_MISMATCH,
    }
)
"""The causes that `ReferenceGuard` knows."""


@dataclass
class Disagreements:
    """What rows and models differ in; empty if in nothing."""

    found: list[str] = field(default_factory=list)

    def must(self, good: bool, row: Mapping[str, Any], what: str) -> None:
        """Note it unless good."""
        if not good:
            self.found.append(f"row {int(row['index'])}: {what}")


def compare(rows: Any, config: Mapping[str, Any]) -> list[str]:
    """What the rows of one channel, in their order, and the models differ in: one line each, the first ten.

    rows: a sequence of rows of telemetry (dicts, or a structured array). config: struct ControllerConfig.
    """
    calibration = config["calibration"]
    ledger = ReferenceLedger(calibration["current_offset_q16"], calibration["code_limit"])
    guard, found = ReferenceGuard(config["guard"]), Disagreements()
    trip, action = Trip.NONE, Action.NONE
    for row in rows:
        ledger.add(row)
        found.must(int(row["net_codes"]) == ledger.net_codes, row, f"net charge, {ledger.net_codes} expected")
        found.must(int(row["absolute_codes"]) == ledger.absolute_codes, row, "absolute charge")
        due = guard.add(row)
        now, did = Trip(int(row["trip"])), Action(int(row["action"]))
        least = max(due.values(), default=Action.NONE)
        found.must(did >= least, row, f"{did.name}, though {', '.join(cause.name for cause in due)} asks for more")
        found.must(trip == Trip.NONE or now == trip, row, f"{now.name} in the place of {trip.name}, which had latched")
        found.must(action < Action.RAMP_DOWN or did >= action, row, f"{did.name} after {action.name}")
        if trip == Trip.NONE and now in COUNTED:
            found.must(now in due, row, f"{now.name} has tripped, which was not due")
        trip, action = now, did
        if len(found.found) >= 10:
            break
    return found.found
