"""Check a session's record against itself: the chain of events, the hashes, and the receipt's numbers."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ionto_rt.record import COULOMB_PER_MAMIN, SESSION, TELEMETRY, TREATMENT, Record, RecordError

# A receipt may print its dose with four decimals.
_DOSE_TOLERANCE_MAMIN = 1e-4


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

    def check(what: str, problem: str | None) -> None:
        checked.append(what)
        if problem is not None:
            problems.append(problem)

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


def _check_telemetry(record: Record, receipt: dict[str, Any] | None, check: Any) -> None:
    telemetry = record.telemetry()
    if receipt is None:
        return
    rows = receipt.get("telemetry_rows")
    found = len(telemetry)
    check(f"{found} rows of telemetry", None if rows == found else f"{TELEMETRY}: {found} rows, the receipt has {rows}")
    known = receipt.get("telemetry_sha256")
    if known is not None:
        with telemetry.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        check(f"hash of {TELEMETRY}", None if digest == known else f"{TELEMETRY}: not the file of the receipt")
    if not found:
        return
    counted = record.counted()
    # What was booked for a device that was lost is in the delivered dose, and not in telemetry.
    dose = receipt.get("dose_ledger_mamin", receipt.get("dose_delivered_mamin"))
    if not isinstance(dose, (int, float)):
        check("dose", "receipt.json: dose_delivered_mamin is missing")
        return
    device = abs(counted.device_net_codes) * record.coulombs_per_code / COULOMB_PER_MAMIN
    on_record = float(receipt.get("delivered_abs_c", abs(dose) * COULOMB_PER_MAMIN)) / COULOMB_PER_MAMIN
    check(
        "device's count",
        None
        if on_record >= device - _DOSE_TOLERANCE_MAMIN
        else f"receipt.json: {on_record:.4f} mA*min on record, the device counted {device:.4f}",
    )
    if receipt.get("dose_basis") is None:
        seen = counted.net_c / COULOMB_PER_MAMIN
        check(
            "dose",
            None
            if abs(seen - dose) <= _DOSE_TOLERANCE_MAMIN
            else f"receipt.json: {dose:.4f} mA*min, telemetry has {seen:.4f}",
        )
