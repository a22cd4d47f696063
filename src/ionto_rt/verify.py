"""Check a session's record against itself: every byte by hashes and chains, then the receipt's numbers."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ionto_rt.black_box import BLACK_BOX, is_black_box
from ionto_rt.events import EventChain, check_events
from ionto_rt.files import MOST_FILE_BYTES
from ionto_rt.manifest import CLOSED, MANIFEST, RECOVERED, Damage, Entry, Manifest, decode, describe, locate
from ionto_rt.record import (
    COULOMB_PER_MAMIN,
    DERIVED,
    END_OF_STREAM,
    EVENTS,
    LATENCY,
    LOCK,
    RECEIPT,
    RECOVERED_TELEMETRY,
    SESSION,
    TELEMETRY,
    TELEMETRY_CHAIN,
    TREATMENT,
    Channel,
    Record,
    RecordError,
    Telemetry,
    audit_telemetry,
    is_running,
)
from ionto_rt.recover import OUTCOME
from ionto_rt.vouched import stranger

# A receipt may print its dose with four decimals.
_DOSE_TOLERANCE_MAMIN = 1e-4
_NOT_ENDED = "no receipt: "
# In the receipt of a whole session these are the sums over its channels.
_SUMS = ("dose_prescribed_mamin", "dose_delivered_mamin", "delivered_net_c", "delivered_abs_c")


class _Check(Protocol):
    """Note what was checked, and what was found wrong with it (None: nothing)."""

    def __call__(self, what: str, *found: str | None) -> None: ...


@dataclass(frozen=True)
class Verification:
    """What was checked and what is wrong, one line each; `ok` if nothing is. `damage` are those by file and bytes.

    Of a session that has no receipt yet `not_ended` says so, and `changes` are the other problems: nobody has taken a
    receipt away that a session gets at its end.
    """

    checked: list[str]
    problems: list[str]
    damage: tuple[Damage, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def not_ended(self) -> str | None:
        return next((problem for problem in self.problems if problem.startswith(_NOT_ENDED)), None)

    @property
    def changes(self) -> list[str]:
        return [problem for problem in self.problems if not problem.startswith(_NOT_ENDED)]


def verify(folder: Path) -> Verification:
    """Check the record in `folder`; a session that runs, or has no receipt yet, is checked as far as it goes.

    First the bytes: each file against the manifest, and the chains of events and of telemetry, which say where a change
    is; then what they say, against each other. Raises `RecordError` if `folder` is not a session's.
    """
    if not any((folder / name).is_file() for name in (SESSION, MANIFEST, EVENTS)):
        raise RecordError(f"{folder}: not a session's folder (no {SESSION}); see `ionto-rt sessions`")
    strange = [path.name for path in folder.iterdir() if not _readable(path)]
    if strange:
        # Nothing of it is opened: a pipe would keep its reader waiting, and a file without an end would fill memory.
        damage = [Damage(name, 0, 0, "not a file, or one too large to read") for name in sorted(strange)]
        return Verification([], [str(each) for each in damage], tuple(damage))
    found = _Bytes(folder)
    checked, problems = list(found.checked), [str(damage) for damage in found.damage]

    def check(what: str, *wrong: str | None) -> None:
        checked.append(what)
        problems.extend(problem for problem in wrong if problem is not None and problem not in problems)

    try:
        # What is damaged names nobody.
        check("the session's own files", None if found.damage else stranger(Record(folder)))
        _check_meaning(Record(folder), found, check)
    except (RecordError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Nobody can tell what changed bytes say.
        if not problems:
            check("meaning", str(error))
    return Verification(checked, problems, tuple(found.damage))


def _readable(path: Path) -> bool:
    """Whether it is a file, and, unless it is read piece by piece, of a size that a session may have written."""
    return path.is_file() and (path.suffix == ".arrows" or path.stat().st_size <= MOST_FILE_BYTES)


class _Bytes:
    """What is wrong with the files of a folder, byte for byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damage: list[Damage] = []
        self.checked: list[str] = []
        self.present = {path.name for path in folder.iterdir()}
        self.manifest = self._read_manifest()
        self.closed = self.manifest.state in (CLOSED, RECOVERED)
        self.chain = self._read_events()
        # What a running session writes next must not be missed: lines first, batches after.
        self.intact: set[str] = set()
        for entry in self.manifest.entries.values():
            self._check_file(entry)
        if TELEMETRY in self.present:
            self._check_telemetry()
        self._check_black_boxes()
        self._check_names()
        if MANIFEST in self.present:
            self.checked.append(f"{len(self.manifest.entries)} files by their hashes")

    def wrong(self, file: str, start: int, end: int, what: str) -> None:
        self.damage.append(Damage(file, start, end, what))

    def size(self, file: str) -> int:
        return (self.folder / file).stat().st_size

    def _read_manifest(self) -> Manifest:
        if MANIFEST in self.present:
            found = decode((self.folder / MANIFEST).read_bytes())
            self.damage.extend(found.damage)
            return found
        # Format 2 had none; its session.json says so, and the first event vouches for that.
        try:
            earlier = Record(self.folder).session["format"] == 2
        except RecordError:
            earlier = False
        if not earlier:
            self.wrong(MANIFEST, 0, 0, "missing")
        return Manifest()

    def _read_events(self) -> EventChain:
        if EVENTS not in self.present:
            if EVENTS not in self.manifest.entries:
                self.wrong(EVENTS, 0, 0, "missing")
            return EventChain()
        data = (self.folder / EVENTS).read_bytes()
        chain = check_events(data, self._events_head())
        self.checked.append(f"chain of {len(chain.events)} events")
        lines = data.split(b"\n")
        if chain.broken_line is not None:
            start = sum(len(line) + 1 for line in lines[: chain.broken_line - 1])
            end = min(len(data), start + len(lines[chain.broken_line - 1]) + 1)
            self.wrong(EVENTS, start, end, f"line {chain.broken_line}: {chain.reason}")
        elif chain.torn_tail:
            start = len(data) - len(chain.torn_tail)
            self.wrong(EVENTS, start, len(data), f"the last line is half written ({len(chain.torn_tail)} bytes)")
        return chain

    def _events_head(self) -> str | None:
        try:
            head = (Record(self.folder).receipt or {}).get("events_head")
        except RecordError:
            return None
        entry = self.manifest.entries.get(RECEIPT) if RECEIPT in self.present else None
        if entry is not None and entry.sha256 != hashlib.sha256((self.folder / RECEIPT).read_bytes()).hexdigest():
            return None
        return head if isinstance(head, str) else None

    def _check_file(self, entry: Entry) -> None:
        path = self.folder / entry.file
        if not path.is_file():
            self.wrong(entry.file, 0, entry.bytes, "missing")
            return
        if entry.kind:
            data = path.read_bytes()
            if len(data) == entry.bytes and hashlib.sha256(data).hexdigest() == entry.sha256:
                self.intact.add(entry.file)
            else:
                self.damage.append(locate(entry, data))
            return
        found = describe(path, chained=True)
        if (found.bytes, found.sha256) == (entry.bytes, entry.sha256):
            self.intact.add(entry.file)
        elif found.bytes != entry.bytes:
            first, last = sorted((found.bytes, entry.bytes))
            self.wrong(entry.file, first, last, f"{found.bytes} bytes, {entry.bytes} were written")
        elif entry.file == EVENTS and self.chain.intact and not self.chain.torn_tail:
            # A line and its own sum that were both changed.
            self.wrong(EVENTS, 0, entry.bytes, "it was changed")
        elif entry.file == RECOVERED_TELEMETRY:
            self._locate_in_copy(entry)

    def _locate_in_copy(self, entry: Entry) -> None:
        """The recovered copy has the original's batches: the first byte in which they differ."""
        with (self.folder / RECOVERED_TELEMETRY).open("rb") as file:
            at = 0
            for part in _parts_of_original(self.folder):
                copy = file.read(len(part))
                if copy != part:
                    left, right = np.frombuffer(copy, np.uint8), np.frombuffer(part, np.uint8)[: len(copy)]
                    at += int(np.argmax(left != right)) if len(left) == len(right) else 0
                    self.wrong(entry.file, at, at + 1, f"byte {at}: it was changed")
                    return
                at += len(part)
        self.wrong(entry.file, at, entry.bytes, f"bytes {at} to {entry.bytes - 1}: changed at its end")

    def _check_telemetry(self) -> None:
        if TELEMETRY_CHAIN not in self.present:
            if MANIFEST in self.present and TELEMETRY_CHAIN not in self.manifest.entries:
                self.wrong(TELEMETRY_CHAIN, 0, 0, "missing")
            return
        if self.manifest.state == CLOSED and {TELEMETRY, TELEMETRY_CHAIN} <= self.intact:
            return
        found = audit_telemetry(self.folder / TELEMETRY)
        assert found is not None
        size = self.size(TELEMETRY)
        self.checked.append(f"chain of {len(found.good)} batches")
        rows = 0
        chain_wrong = TELEMETRY in self.intact and TELEMETRY_CHAIN not in self.intact
        for batch in sorted([*found.good, *found.changed], key=lambda batch: batch.number):
            if batch in found.changed and not chain_wrong:
                held = f"rows {rows} to {rows + batch.rows - 1}" if batch.number else "its schema"
                where = f"batch {batch.number} ({held}), bytes {batch.start} to {batch.end - 1}: it was changed"
                self.wrong(TELEMETRY, batch.start, batch.end, where)
            elif batch in found.changed:
                self._wrong_line(batch.number + 1)
            rows += batch.rows
        for line in found.lines:
            self._wrong_line(line)
        end = min(size, found.covered + len(END_OF_STREAM))
        with (self.folder / TELEMETRY).open("rb") as file:
            file.seek(found.covered)
            marker = file.read(len(END_OF_STREAM))
        told = any(damage.file in (TELEMETRY, TELEMETRY_CHAIN) for damage in self.damage)
        if self.closed and not told:
            if TELEMETRY in self.manifest.entries and TELEMETRY not in self.intact:
                what = "the end-of-stream marker" if size == end else "what was left out behind the last whole batch"
                where = f"bytes {found.covered} to {size - 1}: {what} was changed"
                self.wrong(TELEMETRY, found.covered, size, where)
            elif TELEMETRY_CHAIN in self.manifest.entries and TELEMETRY_CHAIN not in self.intact:
                size = self.size(TELEMETRY_CHAIN)
                self.wrong(TELEMETRY_CHAIN, self._line_starts()[-1], size, "its last line was changed")
        elif not self.closed and not told:
            if found.torn:
                what = "its last line is half written, or was changed"
                self.wrong(TELEMETRY_CHAIN, self._line_starts()[-1], self.size(TELEMETRY_CHAIN), what)
            if found.beyond and not is_running(self.folder):
                where = f"{found.beyond} batches from byte {found.covered} on are not in {TELEMETRY_CHAIN}"
                self.wrong(TELEMETRY, found.covered, size, where)
            elif not END_OF_STREAM.startswith(marker[:4]) or (size == end and marker != END_OF_STREAM):
                what = f"bytes {found.covered} to {end - 1}: the end-of-stream marker was changed"
                self.wrong(TELEMETRY, found.covered, end, what)

    def _line_starts(self) -> list[int]:
        data = (self.folder / TELEMETRY_CHAIN).read_bytes()
        starts = [0]
        for line in data.removesuffix(b"\n").split(b"\n"):
            starts.append(starts[-1] + len(line) + 1)
        return starts[:-1]

    def _wrong_line(self, line: int) -> None:
        starts = [*self._line_starts(), self.size(TELEMETRY_CHAIN)]
        line = min(line, len(starts) - 1)
        self.wrong(TELEMETRY_CHAIN, starts[line - 1], starts[line], f"line {line}: it was changed")

    def _check_black_boxes(self) -> None:
        """Before the session is closed, the events alone vouch for them."""
        for event in self.chain.events:
            if event.kind != BLACK_BOX or event.fields.get("file") in self.manifest.entries:
                continue
            name, known = str(event.fields.get("file")), event.fields.get("sha256")
            if name not in self.present:
                self.wrong(name, 0, 0, "missing")
            elif describe(self.folder / name, chained=True).sha256 != known:
                self.wrong(name, 0, self.size(name), "it was changed")

    def _check_names(self) -> None:
        ours = {MANIFEST, LOCK, *DERIVED, *self.manifest.entries}
        if not self.closed:
            ours |= {TREATMENT, SESSION, EVENTS, TELEMETRY, TELEMETRY_CHAIN, LATENCY, RECEIPT}
            ours |= {str(event.fields.get("file")) for event in self.chain.events if event.kind == BLACK_BOX}
        strange = self.present - ours
        if self.manifest.damage or not self.closed:
            # A name that the changed line had; a black box whose event is on its way.
            strange = {name for name in strange if not is_black_box(name) and not name.startswith(".")}
        if self.manifest.damage:
            strange = set()
        for name in sorted(strange):
            self.wrong(name, 0, 0, "added: no file of the session")
        if LOCK in self.present and self.size(LOCK):
            self.wrong(LOCK, 0, self.size(LOCK), "not empty")


def _parts_of_original(folder: Path) -> Iterator[bytes | memoryview]:
    path = folder / TELEMETRY
    yield from Telemetry(path, audit_telemetry(path)).parts()


def _check_meaning(record: Record, found: _Bytes, check: _Check) -> None:
    """What the files say, against each other."""
    receipt = record.receipt
    if receipt is None and RECEIPT not in found.manifest.entries:
        state = "the session is running" if record.running else "run `ionto-rt recover` on it"
        check("receipt", _NOT_ENDED + state)
    begun = next((event.fields for event in found.chain.events if event.kind == "record-begun"), {})
    for name, key in ((TREATMENT, "treatment_sha256"), (SESSION, "session_sha256")):
        path = record.path / name
        known = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        told = any(damage.file in (name, EVENTS) for damage in found.damage)
        check(
            f"hash of {name}",
            None if told or known == begun.get(key) else f"{name}: not the file that the session began with",
        )
    if any(damage.file in (TELEMETRY, TELEMETRY_CHAIN, SESSION) for damage in found.damage):
        return
    if record.has_telemetry:
        try:
            _check_telemetry(record, receipt, found.manifest.entries.get(TELEMETRY), check)
        except RecordError as error:
            check("charge", str(error))
    elif receipt is not None and receipt.get("telemetry_rows"):
        check(TELEMETRY, f"{TELEMETRY}: missing")


def _check_telemetry(record: Record, receipt: dict[str, Any] | None, entry: Entry | None, check: _Check) -> None:
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
        # That the file is the manifest's has been checked.
        path = record.path / TELEMETRY
        digest = entry.sha256 if entry is not None else describe(path, chained=True).sha256
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
