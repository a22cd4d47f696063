"""Recovery of a session whose host died: what was delivered, a receipt, and the journal's open entry closed.

Nothing that the dead host wrote is changed. Telemetry is read to its last whole batch; if the file is cut so that other
readers would refuse it, a readable copy is put beside it. The charge on record is the device's own count when the
device still has it, and otherwise a bound, marked as one; it is never below what the device is known to have counted.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ionto_rt.codes import DeviceStatus
from ionto_rt.events import RECOVERED, Event, EventError, EventLog, plain, utc_text
from ionto_rt.journal import JOURNAL, Journal, JournalError
from ionto_rt.record import (
    COULOMB_PER_MAMIN,
    EVENTS,
    PHASES,
    RECEIPT,
    RECOVERED_TELEMETRY,
    TELEMETRY,
    CountedCharge,
    Record,
    RecordError,
    Telemetry,
    lock_folder,
    pretty_json,
    sync_folder,
    write_atomic,
)

OUTCOME = "recovered"
MEASURED = "device count"
BOUND = "bound, not measured"
_EVENTS_KEPT = 20
_COPY_BYTES = 1 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Counter(Protocol):
    """Anything that tells a device's count: a `DeviceCount`, or the counters that a device sends (`DeviceCounters`)."""

    @property
    def token(self) -> int: ...
    @property
    def net_codes(self) -> int: ...
    @property
    def absolute_codes(self) -> int | None: ...


@dataclass(frozen=True)
class DeviceCount:
    """What the device says it has counted since it was armed, in 1/65536 code.

    token           of the session for which it was armed
    net_codes       signed
    absolute_codes  sum of magnitudes, None if the device does not keep it
    """

    token: int
    net_codes: int
    absolute_codes: int | None = None


@dataclass(frozen=True)
class RecoverResult:
    """The receipt; whether it is new; whether the charge was measured; what else there is to tell, one line each."""

    folder: Path
    receipt: dict[str, Any]
    created: bool
    measured: bool
    notes: list[str] = field(default_factory=list)


def recover(folder: Path, device_counter: Counter | None = None) -> RecoverResult:
    """Write the receipt of a session that has none, and close its entry in the journal.

    Doing it again changes nothing and returns the same receipt. Raises `RecordError` (exit code 2) if the session is
    running, or the folder is not a session's.
    """
    record = Record.open(folder)
    lock = lock_folder(folder)
    if lock is None:
        raise RecordError(f"{folder}: the session is still running; end it, then recover")
    try:
        receipt = record.receipt
        if receipt is not None:
            notes = _close_in_journal(folder, receipt)
            return RecoverResult(folder, receipt, False, bool(receipt.get("dose_measured", True)), notes)
        return _recover(record, device_counter)
    finally:
        os.close(lock)


def _recover(record: Record, device: Counter | None) -> RecoverResult:
    folder = record.path
    notes: list[str] = []
    telemetry = record.telemetry() if record.has_telemetry else None
    counted = record.counted()
    reserved_c = _reserved(folder, notes)
    charge = _charge(record, counted, device, reserved_c, notes)
    file = _readable_telemetry(telemetry, notes) if telemetry is not None else None
    events = _note_in_events(folder, counted, charge, telemetry, notes)
    receipt: dict[str, Any] = {
        "outcome": OUTCOME,
        "session_id": folder.name,
        "record": str(folder),
        "dose_prescribed_mamin": record.number("prescribed_c") / COULOMB_PER_MAMIN,
        **charge,
        **_summary(telemetry),
        "telemetry_file": file,
        **events,
        "notes": notes,
        "recovered_utc": utc_text(),
        "ended_utc": utc_text(),
    }
    receipt = plain(receipt)
    write_atomic(folder / RECEIPT, pretty_json(receipt))
    notes = notes + _close_in_journal(folder, receipt)
    return RecoverResult(folder, receipt, True, bool(receipt["dose_measured"]), notes)


def _charge(
    record: Record, counted: CountedCharge, device: Counter | None, reserved_c: float | None, notes: list[str]
) -> dict[str, Any]:
    unit = record.coulombs_per_code
    token = int(record.number("controller", "token"))
    if device is not None and device.token != token:
        notes.append(
            f"the device counts for session token {device.token:#x}, this one had {token:#x}: its count was not used"
        )
        device = None
    if device is not None:
        absolute_codes = counted.absolute_codes + abs(device.net_codes - counted.device_net_codes)
        absolute_codes = max(absolute_codes, abs(device.net_codes), device.absolute_codes or 0)
        net_c, absolute_c, basis = record.polarity * device.net_codes * unit, absolute_codes * unit, MEASURED
    else:
        if reserved_c is None:
            absolute_c = counted.absolute_c + record.unreserved_c
        else:
            absolute_c = max(counted.absolute_c, reserved_c) + record.unseen_c
        net_c, basis = counted.net_c + (absolute_c - counted.absolute_c), BOUND
    return {
        "dose_delivered_mamin": net_c / COULOMB_PER_MAMIN,
        "dose_seen_mamin": counted.net_c / COULOMB_PER_MAMIN,
        "dose_basis": basis,
        "dose_measured": basis == MEASURED,
        "delivered_net_c": net_c,
        "delivered_abs_c": max(absolute_c, abs(net_c)),
    }


def _reserved(folder: Path, notes: list[str]) -> float | None:
    """Charge (C) that the journal holds reserved for the session, None if it does not know it."""
    if not (folder.parent / JOURNAL).exists():
        notes.append(f"no {JOURNAL} beside the session: its reservation is not known")
        return None
    try:
        with Journal(folder.parent) as journal:
            row = journal.get(folder.name)
    except JournalError as error:
        notes.append(str(error))
        return None
    if row is None:
        notes.append(f"{folder.name} is not in {JOURNAL}: its reservation is not known")
        return None
    return max(row.reserved_until_c, row.delivered_abs_c)


def _close_in_journal(folder: Path, receipt: dict[str, Any]) -> list[str]:
    if not (folder.parent / JOURNAL).exists():
        return []
    try:
        with Journal(folder.parent) as journal:
            net_c = float(receipt.get("delivered_net_c", float(receipt["dose_delivered_mamin"]) * COULOMB_PER_MAMIN))
            absolute_c = float(receipt.get("delivered_abs_c", abs(net_c)))
            measured = bool(receipt.get("dose_measured", True))
            journal.recovered(folder.name, net_c, absolute_c, measured=measured, outcome=str(receipt["outcome"]))
    except (JournalError, KeyError, TypeError, ValueError) as error:
        return [f"journal not updated: {error}"]
    return []


def _readable_telemetry(telemetry: Telemetry, notes: list[str]) -> str:
    """Name of the telemetry file that any Arrow reader takes: the original, or a copy that was made if it is cut."""
    if telemetry.dropped_bytes:
        notes.append(f"{TELEMETRY}: {telemetry.dropped_bytes} bytes of an unfinished batch were left out")
    if telemetry.complete or not telemetry.columns:
        return TELEMETRY
    copy = telemetry.path.with_name(RECOVERED_TELEMETRY)
    temporary = copy.with_name(f".{copy.name}")
    try:
        with telemetry.path.open("rb") as source, temporary.open("wb") as target:
            left = telemetry.whole_bytes
            while left:
                data = source.read(min(left, _COPY_BYTES))
                target.write(data)
                left -= len(data)
            target.write(_END_OF_STREAM)
            target.flush()
            os.fsync(target.fileno())
        made = Telemetry(temporary)
        if not made.complete or len(made) != len(telemetry) or made.columns != telemetry.columns:
            raise RecordError(f"{copy}: does not read back as it was written; check the disk")
        temporary.replace(copy)
        sync_folder(copy.parent)
    except OSError as error:
        raise RecordError(f"{copy}: not written ({error.strerror}); check permissions and disk space") from None
    finally:
        temporary.unlink(missing_ok=True)
    return RECOVERED_TELEMETRY


def _note_in_events(
    folder: Path, counted: CountedCharge, charge: dict[str, Any], telemetry: Telemetry | None, notes: list[str]
) -> dict[str, Any]:
    """Continue the event log with the recovery (once), and give what the receipt says about events."""
    record = Record(folder)
    chain = record.events() if (folder / EVENTS).exists() else None
    if chain is not None and not chain.intact:
        notes.append(f"{EVENTS}: line {chain.broken_line}: {chain.reason}")
        return {
            **_told(chain.events),
            "events_broken_line": chain.broken_line,
        }
    if chain is not None and chain.torn_tail:
        notes.append(f"{EVENTS}: the last line is half written ({len(chain.torn_tail)} bytes)")
    try:
        with EventLog(folder / EVENTS) as log:
            if chain is None or not chain.events or chain.events[-1].kind != RECOVERED:
                log.write(
                    RECOVERED,
                    counted.tick if counted.tick >= 0 else None,
                    safety=True,
                    torn_bytes=len(chain.torn_tail) if chain is not None else 0,
                    telemetry_rows=len(telemetry) if telemetry is not None else 0,
                    telemetry_dropped_bytes=telemetry.dropped_bytes if telemetry is not None else 0,
                    **charge,
                )
            proofs = {"events_count": log.count, "events_head": log.head}
    except EventError as error:
        raise RecordError(str(error)) from None
    return _told(record.events().events) | proofs


def _told(events: list[Event]) -> dict[str, Any]:
    """Trips by name, alarms in a line each, and the last events."""
    tail = [
        {"seq": event.seq, "time_utc": event.time_utc, "tick": event.tick, "kind": event.kind, "fields": event.fields}
        for event in events[-_EVENTS_KEPT:]
    ]
    return {
        "trips": [str(event.fields.get("name", "")) for event in events if event.kind == "trip"],
        "alarms": [
            f"{event.fields.get('title') or event.kind}: {event.fields['advice']}"
            for event in events
            if event.fields.get("advice")
        ],
        "events": tail,
    }


def _summary(telemetry: Telemetry | None) -> dict[str, Any]:
    """What telemetry says about the run; zero and null without any."""
    facts: dict[str, Any] = {
        "peak_current_ma": 0.0,
        "peak_voltage_v": 0.0,
        "ticks": 0,
        "gaps": 0,
        "late": 0,
        "latency_us": None,
        "last_phase": None,
        "last_tick": None,
        "telemetry_rows": 0,
    }
    if telemetry is None or not len(telemetry):
        return facts
    with telemetry.path.open("rb") as file:
        facts["telemetry_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    late_us = telemetry["host_late_us"]
    lost = telemetry["lost_ticks"]
    last = telemetry.last()
    assert last is not None
    phase = int(last["phase"])
    p50, p99, p999 = (float(value) for value in np.percentile(late_us, (50, 99, 99.9)))
    return facts | {
        "peak_current_ma": float(np.nanmax(np.abs(telemetry["current_a"]))) * 1e3,
        "peak_voltage_v": float(np.nanmax(np.abs(telemetry["voltage_v"]))),
        "ticks": len(telemetry),
        "gaps": int(lost.sum()),
        "late": int(np.count_nonzero(telemetry["status"] & DeviceStatus.LATE)),
        "latency_us": {"p50": p50, "p99": p99, "p999": p999, "max": float(late_us.max())},
        "last_phase": PHASES[phase] if 0 <= phase < len(PHASES) else str(phase),
        "last_tick": int(last["index"]),
        "telemetry_rows": len(telemetry),
    }
