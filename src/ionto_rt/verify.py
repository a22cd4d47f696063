"""Check a session's record against itself: the chain of events, the hashes, and the receipt's numbers."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ionto_rt.record import (
    COULOMB_PER_MAMIN,
    RECEIPT,
    SESSION,
    TELEMETRY,
    TREATMENT,
    Channel,
    Record,
    RecordError,
    Telemetry,
)
from ionto_rt.recover import OUTCOME

# A receipt may print its dose with four decimals.
_DOSE_TOLERANCE_MAMIN = 1e-4
# In the receipt of a whole session these are the sums over its channels.
_SUMS = ("dose_prescribed_mamin", "dose_delivered_mamin", "delivered_net_c", "delivered_abs_c")


class _Check(Protocol):
    """Note what was checked, and what was found wrong with it (None: nothing)."""

    def __call__(self, what: str, *found: str | None) -> None: ...


@dataclass(frozen=True)
class Verification:
    """What was checked and what is wrong, one line each; `ok` if nothing is."""

    checked: list[str]
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(folder: Path) -> Verification:
    """Check the record in `folder`; a session that runs, or has no receipt yet, is checked as far as it goes.

    Raises `RecordError` if `folder` is not a session's, or its receipt is not JSON.
    """
    record = Record.open(folder)
    checked: list[str] = []
    problems: list[str] = []

    def check(what: str, *found: str | None) -> None:
        checked.append(what)
        problems.extend(problem for problem in found if problem is not None)

    receipt = record.receipt
    if receipt is None:
        state = "the session is running" if record.running else "run `ionto-rt recover` on it"
        check("receipt", f"no receipt: {state}")
    chain = record.events()
    check(
        f"chain of {len(chain.events)} events",
        None if chain.intact else f"events.jsonl: line {chain.broken_line}: {chain.reason}",
    )
    if chain.torn_tail:
        problems.append(f"events.jsonl: the last line is half written ({len(chain.torn_tail)} bytes)")
    begun = next((event.fields for event in chain.events if event.kind == "record-begun"), {})
    for name, key in ((TREATMENT, "treatment_sha256"), (SESSION, "session_sha256")):
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        check(
            f"hash of {name}", None if found == begun.get(key) else f"{name}: not the file that the session began with"
        )
    if record.has_telemetry:
        try:
            _check_telemetry(record, receipt, check)
        except RecordError as error:
            check("charge", str(error))
    elif receipt is not None and receipt.get("telemetry_rows"):
        check(TELEMETRY, f"{TELEMETRY}: missing")
    return Verification(checked, problems)


def _check_telemetry(record: Record, receipt: dict[str, Any] | None, check: _Check) -> None:
    telemetry = record.telemetry()
    channels = len(record.channels)
    of = f" of {channels} channels" if channels > 1 else ""
    cut = receipt is None or receipt.get("outcome") == OUTCOME
    order = _order_problem(telemetry, channels, may_end_within_a_tick=cut) if len(telemetry) else None
    if receipt is None:
        check(f"{len(telemetry)} rows of telemetry{of}", order)
        return
    rows = receipt.get("telemetry_rows")
    found = len(telemetry)
    check(
        f"{found} rows of telemetry{of}",
        None if rows == found else f"{TELEMETRY}: {found} rows, the receipt has {rows}",
        order,
    )
    known = receipt.get("telemetry_sha256")
    if known is not None:
        with telemetry.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        check(f"hash of {TELEMETRY}", None if digest == known else f"{TELEMETRY}: not the file of the receipt")
    if channels > 1:
        check("sums over channels", *_sum_problems(record, receipt))
    if found:
        wrong = [_charge_problems(channel) for channel in record.channels]
        check("device's count", *(device for device, _ in wrong))
        if receipt.get("dose_basis") is None:
            check("dose", *(dose for _, dose in wrong))


def _order_problem(telemetry: Telemetry, channels: int, *, may_end_within_a_tick: bool) -> str | None:
    """The first place where a tick does not have each channel once, in order."""
    row = 0
    tick: int | None = None
    for batch in telemetry.batches(("index", "channel")):
        channel, index = batch["channel"], batch["index"].astype(np.int64)
        expected = (row + np.arange(len(batch))) % channels
        before = np.concatenate(([-1 if tick is None else tick], index[:-1]))
        wrong = np.flatnonzero((channel != expected) | ((expected > 0) & (index != before)))
        if len(wrong):
            place = int(wrong[0])
            lacking = int(expected[place])
            at = int(before[place]) if lacking > 0 else int(index[place])
            return f"{TELEMETRY}: tick {at} has no row of channel {lacking} where it must be"
        row += len(batch)
        tick = int(index[-1])
    if row % channels and not may_end_within_a_tick:
        return f"{TELEMETRY}: tick {tick} has no row of channel {row % channels}, and is the last"
    return None


def _sum_problems(record: Record, receipt: dict[str, Any]) -> list[str]:
    """Where the receipt's whole is not the sum of its channels."""
    parts = [channel.receipt or {} for channel in record.channels]
    problems = []
    for key in _SUMS:
        values = [part.get(key) for part in parts]
        whole = receipt.get(key)
        if whole is None and all(value is None for value in values):
            continue
        numbers = [float(value) for value in values if isinstance(value, (int, float))]
        if not isinstance(whole, (int, float)) or len(numbers) < len(parts):
            problems.append(f"{RECEIPT}: {key} is missing, of the session or of a channel")
        elif abs(sum(numbers) - whole) > _DOSE_TOLERANCE_MAMIN * (COULOMB_PER_MAMIN if key.endswith("_c") else 1.0):
            problems.append(f"{RECEIPT}: {key} is {whole:.4f}, the sum over its channels {sum(numbers):.4f}")
    return problems


def _charge_problems(channel: Channel) -> tuple[str | None, str | None]:
    """What is wrong with a channel's charge beside the device's count, and with its dose beside telemetry."""
    receipt = channel.receipt or {}
    several = len(channel.record.channels) > 1
    where = f"{RECEIPT}: {channel.name}" if several else RECEIPT
    counted = channel.counted()
    # What was booked for a device that was lost is in the delivered dose, and not in telemetry.
    dose = receipt.get("dose_ledger_mamin", receipt.get("dose_delivered_mamin"))
    if not isinstance(dose, (int, float)):
        return None, f"{where}: dose_delivered_mamin is missing"
    device = abs(counted.device_net_codes) * channel.coulombs_per_code / COULOMB_PER_MAMIN
    on_record = float(receipt.get("delivered_abs_c", abs(dose) * COULOMB_PER_MAMIN)) / COULOMB_PER_MAMIN
    seen = counted.net_c / COULOMB_PER_MAMIN
    return (
        None
        if on_record >= device - _DOSE_TOLERANCE_MAMIN
        else f"{where}: {on_record:.4f} mA*min on record, the device counted {device:.4f}",
        None
        if abs(seen - dose) <= _DOSE_TOLERANCE_MAMIN
        else f"{where}: {dose:.4f} mA*min, telemetry has {seen:.4f}",
    )
