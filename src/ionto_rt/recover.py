"""Recovery of a session whose host died: what was delivered, a receipt, and the journal's open entry closed.

Nothing that the dead host wrote is changed. Telemetry is read to its last whole batch; if the file is cut so that other
readers would refuse it, a readable copy is put beside it. The charge on record is the device's own count when the
device still has it, and otherwise a bound, marked as one; it is never below what the device is known to have counted.
Each channel has its charge; the session's is their sum, and a measurement only if every channel's is.
"""

import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt.codes import DeviceStatus
from ionto_rt.events import RECOVERED, Event, EventError, EventLog, plain, utc_text
from ionto_rt.files import MOST_FILE_BYTES, open_regular, read_regular
from ionto_rt.journal import JOURNAL, Ending, Journal, JournalError, JournalRow
from ionto_rt.manifest import MANIFEST, Entry, decode
from ionto_rt.manifest import RECOVERED as MANIFEST_RECOVERED
from ionto_rt.record import (
    COULOMB_PER_MAMIN,
    END_OF_STREAM,
    EVENTS,
    PHASES,
    RECEIPT,
    RECOVERED_TELEMETRY,
    SESSION,
    TELEMETRY,
    TELEMETRY_CHAIN,
    TREATMENT,
    Channel,
    CountedCharge,
    Record,
    RecordError,
    Telemetry,
    audit_telemetry,
    lock_folder,
    pretty_json,
    sync_folder,
    write_atomic,
    write_manifest,
)
from ionto_rt.vouched import session_problem

OUTCOME = "recovered"
MEASURED = "device count"
AT_END = "device count at its end"
"""Of a session that had ended when its receipt was lost: in the last row, behind which nothing flowed."""
BOUND = "bound, not measured"
SESSION_ENDED = "session-ended"
_EVENTS_KEPT = 20
_IDLE_CODES = 100 << 16
"""What the noise of a converter may do to a count after the last row: a code in each of a hundred samples."""


@dataclass(frozen=True)
class DeviceCount:
    """What the device says it has counted since it was armed, in 1/65536 code.

    token    of the session for which it was armed
    charges  of each channel, from 0: net (signed), and the sum of magnitudes, None if the device does not keep it; a
             channel that the device does not tell of is left out at the end
    """

    token: int
    charges: tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class RecoverResult:
    """The receipt; whether it is new; whether the charge was measured; what else there is to tell, one line each."""

    folder: Path
    receipt: dict[str, Any]
    created: bool
    measured: bool
    notes: list[str] = field(default_factory=list)


def recover(folder: Path, device_count: DeviceCount | None = None) -> RecoverResult:
    """Write the receipt of a session that has none, and close its entry in the journal.

    Doing it again changes nothing and returns the same receipt. Raises `RecordError` (exit code 2) if the session is
    running, or the folder is not a session's.
    """
    # Its name says which session it is, whatever it is reached by.
    folder = folder.resolve()
    record = Record.open(folder)
    lock = lock_folder(folder)
    if lock is None:
        raise RecordError(f"{folder}: the session is still running; end it, then recover")
    try:
        receipt = record.receipt
        if receipt is not None:
            notes = _close_in_journal(folder, receipt)
            return RecoverResult(folder, receipt, False, bool(receipt.get("dose_measured", True)), notes)
        return _recover(record, device_count)
    finally:
        os.close(lock)


def _recover(record: Record, device: DeviceCount | None) -> RecoverResult:
    folder = record.path
    notes: list[str] = []
    known = _in_journal(folder, notes)
    wrong = session_problem(record)
    telemetry, left_out = _vouched_for(record, notes, format_known=wrong is None)
    if wrong is None:
        shares = _shares(record, telemetry, known, _believed(record, device, notes), notes, blind=left_out < 0)
    else:
        shares = _shares_by_journal(record, telemetry, known, wrong)
        notes.append(f"{wrong}: no count was used, the dose is the most that {JOURNAL} had let it deliver")
    charges = [share.charge for share in shares]
    whole = _whole(charges)
    file = _readable_telemetry(telemetry, notes) if telemetry is not None and left_out >= 0 else None
    last_tick = max(share.tick for share in shares)
    events, proofs = _note_in_events(folder, last_tick, whole, charges, telemetry, notes)
    ended = next((event.fields for event in reversed(events) if event.kind == SESSION_ENDED), None)
    if ended is not None:
        notes.append(f"the session had ended ({ended.get('outcome')}: {ended.get('reason')}); its receipt was missing")
    summary, ends = _summary(telemetry, len(charges))
    receipt: dict[str, Any] = {
        "outcome": OUTCOME,
        "session_id": folder.name,
        "record": str(folder),
        "dose_prescribed_mamin": sum(share.prescribed_mamin for share in shares),
        **whole,
        **{key: max(end[key] for end in ends) for key in ("peak_current_ma", "peak_voltage_v")},
        **summary,
        "telemetry_file": file,
        "telemetry_left_out": abs(left_out),
        **_told(events),
        **proofs,
        "notes": notes,
        "recovered_utc": utc_text(),
        "ended_utc": utc_text(),
    }
    if len(shares) > 1:
        receipt["channels"] = [
            {
                "name": share.name,
                "outcome": OUTCOME,
                "dose_prescribed_mamin": share.prescribed_mamin,
                **share.charge,
                **ends[number],
                "trips": _trips(events, number),
            }
            for number, share in enumerate(shares)
        ]
    receipt = plain(receipt)
    text = pretty_json(receipt)
    write_manifest(folder, MANIFEST_RECOVERED, text, _begun_with(folder))
    write_atomic(folder / RECEIPT, text)
    _read_back(folder, receipt)
    notes = notes + _close_in_journal(folder, receipt)
    return RecoverResult(folder, receipt, True, bool(receipt["dose_measured"]), notes)


def _read_back(folder: Path, receipt: dict[str, Any]) -> None:
    """`RecordError` unless what the recovery wrote is on disk as it was written; earlier damage is in the notes."""
    from ionto_rt.verify import verify

    written = [RECEIPT, MANIFEST, RECOVERED_TELEMETRY, *([EVENTS] if "events_head" in receipt else [])]
    wrong = [str(damage) for damage in verify(folder).damage if damage.file in written]
    if wrong or Record(folder).receipt != receipt:
        raise RecordError(
            f"{folder}: the recovery does not read back as it was written ({'; '.join(wrong)}); check the disk"
        )


def _begun_with(folder: Path) -> list[Entry]:
    """What the manifest has of the files that the session began with: no change since is to be vouched for."""
    path = folder / MANIFEST
    entries = decode(read_regular(path, MOST_FILE_BYTES)).entries if path.is_file() else {}
    return [entries[name] for name in (TREATMENT, SESSION) if name in entries]


def _vouched_for(record: Record, notes: list[str], *, format_known: bool) -> tuple[Telemetry | None, int]:
    """Telemetry without what is not as it was written, and how many batches that leaves out; -1: all of it."""
    path = record.path / TELEMETRY
    found = audit_telemetry(path)
    if found is None:
        if not record.has_telemetry:
            return None, 0
        if not format_known or record.session["format"] > 2:
            notes.append(f"{TELEMETRY}: no {TELEMETRY_CHAIN} beside it: nothing vouches for its rows")
        return record.telemetry(), 0
    rows = 0
    for batch in sorted([*found.good, *found.changed], key=lambda batch: batch.number):
        if batch in found.changed:
            what = f"rows {rows} to {rows + batch.rows - 1}" if batch.number else "its schema"
            notes.append(
                f"{TELEMETRY}: batch {batch.number} ({what}; bytes {batch.start} to {batch.end - 1}) is not as it was "
                "written and was left out"
            )
        rows += batch.rows
    for line in found.lines:
        notes.append(f"{TELEMETRY_CHAIN}: line {line}: it was changed")
    if found.beyond:
        notes.append(f"{TELEMETRY}: {found.beyond} batches that no line of {TELEMETRY_CHAIN} has were left out")
    if found.lost_lines:
        notes.append(f"{TELEMETRY}: it ends before {found.lost_lines} batches that were begun")
    blind = not found.schema and bool(found.changed or found.beyond)
    return Telemetry(path, found), -1 if blind else len(found.changed) + found.beyond


def _believed(record: Record, device: DeviceCount | None, notes: list[str]) -> DeviceCount | None:
    """The device's count, if it is that of this session."""
    token = record.channels[0].token
    if device is None or device.token == token:
        return device
    notes.append(
        f"the device counts for session token {device.token:#x}, this one had {token:#x}: its count was not used"
    )
    return None


@dataclass(frozen=True)
class _Share:
    """What the receipt has of one channel. `tick` is that of its last row, -1 without any."""

    name: str
    prescribed_mamin: float
    charge: dict[str, Any]
    tick: int


def _shares(
    record: Record,
    telemetry: Telemetry | None,
    known: dict[int, JournalRow],
    device: DeviceCount | None,
    notes: list[str],
    *,
    blind: bool,
) -> list[_Share]:
    shares = []
    for channel in record.channels:
        counted, number = channel.counted(telemetry), channel.number
        told = device.charges[number] if device is not None and number < len(device.charges) else None
        if told is not None and _is_older(told, counted, channel.polarity):
            notes.append(
                f"{channel.name}: the device's count is an older one than its samples show: it has forgotten some, and "
                "was not used"
            )
            told = None
        basis = MEASURED
        if told is None and counted.over and not blind:
            told, basis = (counted.device_net_codes, None), AT_END
        charge = _charge(channel, counted, told, known.get(number), basis, blind=blind)
        shares.append(_Share(channel.name, channel.prescribed_c / COULOMB_PER_MAMIN, charge, counted.tick))
    return shares


def _is_older(told: tuple[int, int | None], counted: CountedCharge, polarity: float) -> bool:
    """Whether a device's count is of before the last row. Its net count also goes back while the contact is checked, by
    currents of both signs; its sum of magnitudes never does.
    """
    net_codes, absolute_codes = told
    if polarity * (counted.device_net_codes - net_codes) <= _IDLE_CODES:
        return False
    return absolute_codes is None or absolute_codes + _IDLE_CODES < counted.absolute_codes


def _shares_by_journal(
    record: Record, telemetry: Telemetry | None, known: dict[int, JournalRow], wrong: str
) -> list[_Share]:
    """Without a `session.json` to believe: of each channel the most that the journal had let it deliver."""
    if not known:
        raise RecordError(f"{record.path}: {wrong}, and no {JOURNAL} knows the session; restore the file from a copy")
    shares = []
    for number, row in sorted(known.items()):
        last = telemetry.last(number) if telemetry is not None else None
        # In C, by the core, as it ran: no scale of session.json's is in it.
        seen_c = float(last["delivered_c"]) if last is not None else 0.0
        seen_c = seen_c if math.isfinite(seen_c) else 0.0
        most_c = max(row.committed_c, abs(seen_c)) + max(0.0, row.reserved_until_c - row.delivered_abs_c)
        charge = _as_charge(most_c, seen_c, most_c, BOUND)
        tick = int(last["index"]) if last is not None else -1
        shares.append(_Share(f"channel {number}", row.prescribed_c / COULOMB_PER_MAMIN, charge, tick))
    return shares


def _charge(
    channel: Channel,
    counted: CountedCharge,
    told: tuple[int, int | None] | None,
    known: JournalRow | None,
    basis: str,
    *,
    blind: bool,
) -> dict[str, Any]:
    """`basis`: of what was told."""
    unit = channel.coulombs_per_code
    if told is not None:
        net_codes, device_codes = told
        absolute_codes = counted.absolute_codes + abs(net_codes - counted.device_net_codes)
        absolute_codes = max(absolute_codes, abs(net_codes), device_codes or 0)
        net_c, absolute_c = channel.polarity * net_codes * unit, absolute_codes * unit
        if basis == AT_END:
            # The device goes on counting its converter's noise until it is told, or its lease lapses.
            net_c = max(net_c, counted.net_c) + _IDLE_CODES * unit
            absolute_c += _IDLE_CODES * unit
    else:
        if known is None:
            # Where telemetry cannot be read at all, the prescription alone bounds what had flowed before.
            seen_c = max(counted.absolute_c, channel.prescribed_c) if blind else counted.absolute_c
            absolute_c = seen_c + channel.unreserved_c
        else:
            absolute_c = max(counted.absolute_c, known.reserved_until_c, known.delivered_abs_c) + channel.unseen_c
        net_c, basis = counted.net_c + (absolute_c - counted.absolute_c), BOUND
    return _as_charge(net_c, counted.net_c, absolute_c, basis)


def _as_charge(net_c: float, seen_c: float, absolute_c: float, basis: str) -> dict[str, Any]:
    return {
        "dose_delivered_mamin": net_c / COULOMB_PER_MAMIN,
        "dose_seen_mamin": seen_c / COULOMB_PER_MAMIN,
        "dose_basis": basis,
        "dose_measured": basis != BOUND,
        "delivered_net_c": net_c,
        "delivered_abs_c": max(absolute_c, abs(net_c)),
    }


def _whole(charges: list[dict[str, Any]]) -> dict[str, Any]:
    """The session's charge, from its channels'."""
    basis = next((charge["dose_basis"] for charge in charges if not charge["dose_measured"]), charges[0]["dose_basis"])
    sums = {key: sum(charge[key] for charge in charges) for key, value in charges[0].items() if type(value) is float}
    return {**charges[0], **sums, "dose_basis": basis, "dose_measured": basis != BOUND}


def _in_journal(folder: Path, notes: list[str]) -> dict[int, JournalRow]:
    """The channels of the session as the journal holds them, none if it does not know it."""
    if not (folder.parent / JOURNAL).exists():
        notes.append(f"no {JOURNAL} beside the session: its reservation is not known")
        return {}
    try:
        with Journal(folder.parent) as journal:
            rows = journal.get(folder.name)
    except JournalError as error:
        notes.append(str(error))
        return {}
    if not rows:
        notes.append(f"{folder.name} is not in {JOURNAL}: its reservation is not known")
    return {row.channel: row for row in rows}


def _close_in_journal(folder: Path, receipt: dict[str, Any]) -> list[str]:
    if not (folder.parent / JOURNAL).exists():
        return []
    try:
        endings = [_ending(part) for part in receipt.get("channels") or [receipt]]
        with Journal(folder.parent) as journal:
            if not journal.recovered(folder.name, endings):
                journal.enter(folder)
    except (RecordError, KeyError, TypeError, ValueError) as error:
        return [f"journal not updated: {error}"]
    return []


def _ending(receipt: dict[str, Any]) -> Ending:
    net_c = float(receipt.get("delivered_net_c", float(receipt["dose_delivered_mamin"]) * COULOMB_PER_MAMIN))
    absolute_c = float(receipt.get("delivered_abs_c", abs(net_c)))
    return Ending(str(receipt["outcome"]), net_c, absolute_c, bool(receipt.get("dose_measured", True)))


def _readable_telemetry(telemetry: Telemetry, notes: list[str]) -> str:
    """Name of the telemetry file that any Arrow reader takes: the original, or a copy that was made if it is cut."""
    if telemetry.dropped_bytes:
        notes.append(f"{TELEMETRY}: {telemetry.dropped_bytes} bytes of an unfinished batch were left out")
    if telemetry.complete or not telemetry.columns:
        return TELEMETRY
    copy = telemetry.path.with_name(RECOVERED_TELEMETRY)
    temporary = copy.with_name(f".{copy.name}")
    try:
        with temporary.open("wb") as target:
            for part in telemetry.parts():
                target.write(part)
            target.write(END_OF_STREAM)
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
    folder: Path,
    last_tick: int,
    whole: dict[str, Any],
    charges: list[dict[str, Any]],
    telemetry: Telemetry | None,
    notes: list[str],
) -> tuple[list[Event], dict[str, Any]]:
    """Continue the event log with the recovery (once); the events, and what the receipt says about their chain."""
    record = Record(folder)
    chain = record.events() if (folder / EVENTS).exists() else None
    if chain is not None and not chain.intact:
        notes.append(f"{EVENTS}: line {chain.broken_line}: {chain.reason}")
        return chain.events, {"events_broken_line": chain.broken_line}
    if chain is not None and chain.torn_tail:
        notes.append(f"{EVENTS}: the last line is half written ({len(chain.torn_tail)} bytes)")
    of_channels: dict[str, Any] = {"channels": charges} if len(charges) > 1 else {}
    try:
        with EventLog(folder / EVENTS) as log:
            if chain is None or not chain.events or chain.events[-1].kind != RECOVERED:
                log.write(
                    RECOVERED,
                    last_tick if last_tick >= 0 else None,
                    safety=True,
                    torn_bytes=len(chain.torn_tail) if chain is not None else 0,
                    telemetry_rows=len(telemetry) if telemetry is not None else 0,
                    telemetry_dropped_bytes=telemetry.dropped_bytes if telemetry is not None else 0,
                    **whole,
                    **of_channels,
                )
            proofs = {"events_count": log.count, "events_head": log.head}
    except EventError as error:
        raise RecordError(str(error)) from None
    return record.events().events, proofs


def _told(events: list[Event]) -> dict[str, Any]:
    """Trips by name, alarms in a line each, and the last events."""
    tail = [
        {"seq": event.seq, "time_utc": event.time_utc, "tick": event.tick, "kind": event.kind, "fields": event.fields}
        for event in events[-_EVENTS_KEPT:]
    ]
    return {
        "trips": _trips(events),
        "alarms": [
            f"{event.fields.get('title') or event.kind}: {event.fields['advice']}"
            for event in events
            if event.fields.get("advice")
        ],
        "events": tail,
    }


def _trips(events: list[Event], channel: int | None = None) -> list[str]:
    """Names of the trips, of one channel if it is given."""
    return [
        str(event.fields.get("name", ""))
        for event in events
        if event.kind == "trip" and (channel is None or event.fields.get("channel") == channel)
    ]


def _summary(telemetry: Telemetry | None, channels: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What telemetry says about the run, and peaks and last phase of each channel; zero and null without any.

    A sample holds all channels: ticks, gaps and latency are those of the first.
    """
    facts: dict[str, Any] = {
        "ticks": 0,
        "gaps": 0,
        "late": 0,
        "latency_us": None,
        "last_phase": None,
        "last_tick": None,
        "telemetry_rows": 0,
    }
    if telemetry is None or not len(telemetry):
        return facts, [{"peak_current_ma": 0.0, "peak_voltage_v": 0.0, "last_phase": None}] * channels
    with os.fdopen(open_regular(telemetry.path), "rb") as file:
        facts["telemetry_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    ends = []
    for number in range(channels):
        own, last_of_channel = telemetry.of_channel(number), telemetry.last(number)
        ends.append(
            {
                "peak_current_ma": _greatest(own["current_a"]) * 1e3,
                "peak_voltage_v": _greatest(own["voltage_v"]),
                "last_phase": _phase(last_of_channel) if last_of_channel is not None else None,
            }
        )
    first, last = telemetry.of_channel(0), telemetry.last()
    late_us = first["host_late_us"]
    assert last is not None
    facts |= {
        "ticks": len(first),
        "gaps": int(first["lost_ticks"].sum()),
        "late": int(np.count_nonzero(first["status"] & DeviceStatus.LATE)),
        "latency_us": _percentiles(late_us),
        "last_phase": ", ".join(dict.fromkeys(str(end["last_phase"]) for end in ends if end["last_phase"])),
        "last_tick": int(last["index"]),
        "telemetry_rows": len(telemetry),
    }
    return facts, ends


def _percentiles(late_us: npt.NDArray[np.uint32]) -> dict[str, float] | None:
    if not len(late_us):
        return None
    names = ("p50", "p99", "p999", "p9999", "max")
    return dict(zip(names, map(float, np.percentile(late_us, (50, 99, 99.9, 99.99, 100))), strict=True))


def _phase(row: npt.NDArray[np.void]) -> str:
    phase = int(row["phase"])
    return PHASES[phase] if 0 <= phase < len(PHASES) else str(phase)


def _greatest(values: npt.NDArray[np.float64]) -> float:
    """Greatest magnitude, 0 where there is none."""
    magnitudes = np.abs(values[np.isfinite(values)])
    return float(magnitudes.max(initial=0.0))
