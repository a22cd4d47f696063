"""`manifest.jsonl`: every file of a session's folder by its hash, and by what locates a change in it.

The first line has `format`, `session_id` and `state` ("begun": the files that the session began with; "closed";
"recovered"). Then a line for each file: `file`, `bytes`, `sha256`, and, but for those that are chained in themselves,
the CRC-32 (8 hexadecimal digits) of each of its `lines` (newline included) or of its `blocks` of 4096 bytes. The last
line vouches for those before it: `crc32` of each, and `sha256` of all their bytes. Each is canonical JSON.

It is written before the receipt, whose hash it has: a receipt is never without it.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ionto_rt.events import canonical

MANIFEST = "manifest.jsonl"
FORMAT = 1
BEGUN, CLOSED, RECOVERED = "begun", "closed", "recovered"
BLOCK_BYTES = 4096
_READ_BYTES = 1 << 20
_TEXT = (".toml", ".json", ".jsonl", ".hlog", ".txt")


@dataclass(frozen=True)
class Damage:
    """Bytes from `start` up to `end` of a file of the folder that are not what they were; `what` in words."""

    file: str
    start: int
    end: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Entry:
    """What a manifest has of a file. `crc32` are of its lines, or blocks, or none."""

    file: str
    bytes: int
    sha256: str
    kind: str = ""
    crc32: tuple[str, ...] = ()


def crc32(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def pieces(data: bytes, kind: str) -> list[bytes]:
    """`data` as its lines, newline included, or its blocks."""
    if kind == "lines":
        return _lines(data)
    return [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]


def _lines(data: bytes) -> list[bytes]:
    found = [line + b"\n" for line in data.split(b"\n")]
    found[-1] = found[-1][:-1]
    return found if found[-1] else found[:-1]


def describe(path: Path, *, chained: bool) -> Entry:
    """The entry of a file as it is on disk; OSError if it cannot be read."""
    if chained:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Entry(path.name, file.tell(), digest)
    return describe_bytes(path.name, path.read_bytes())


def describe_bytes(name: str, data: bytes) -> Entry:
    kind = "lines" if name.endswith(_TEXT) else "blocks"
    sums = tuple(crc32(piece) for piece in pieces(data, kind))
    return Entry(name, len(data), hashlib.sha256(data).hexdigest(), kind, sums)


def encode(session_id: str, state: str, entries: Iterable[Entry]) -> bytes:
    """The manifest's bytes."""
    lines: list[dict[str, Any]] = [{"format": FORMAT, "session_id": session_id, "state": state}]
    for entry in sorted(entries, key=lambda entry: entry.file):
        facts: dict[str, Any] = {"file": entry.file, "bytes": entry.bytes, "sha256": entry.sha256}
        lines.append(facts | ({entry.kind: list(entry.crc32)} if entry.kind else {}))
    texts = [canonical(line) + b"\n" for line in lines]
    end = {"crc32": [crc32(text) for text in texts], "sha256": hashlib.sha256(b"".join(texts)).hexdigest()}
    return b"".join(texts) + canonical(end) + b"\n"


@dataclass(frozen=True)
class Manifest:
    """What a manifest's bytes say. `damage` is its own; the entries of changed lines are left out."""

    state: str = ""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    damage: tuple[Damage, ...] = ()
    session_id: str = ""


def decode(data: bytes) -> Manifest:
    """Read and check a manifest; never raises."""
    texts = _lines(data)
    found = _decode(texts)
    begun = _object(texts[0]) if texts else None
    named = begun.get("session_id") if begun is not None and found.state else None
    return replace(found, session_id=named) if isinstance(named, str) else found


def _decode(texts: list[bytes]) -> Manifest:
    end = _object(texts[-1]) if texts else None
    last = len(texts)
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text))

    def line(number: int, what: str = "it was changed") -> Damage:
        return Damage(MANIFEST, starts[number - 1], starts[number], f"line {number}: {what}")

    if not texts:
        return Manifest(damage=(Damage(MANIFEST, 0, 0, "empty"),))
    before = b"".join(texts[:-1])
    sums = end.get("crc32") if end is not None else None
    if end is None or end.keys() != {"crc32", "sha256"} or not isinstance(sums, list):
        return Manifest(*_facts(texts[:-1]), (line(last),))
    if hashlib.sha256(before).hexdigest() == end["sha256"]:
        intact = sums == [crc32(text) for text in texts[:-1]]
        return Manifest(*_facts(texts[:-1]), () if intact else (line(last),))
    wrong = [
        number
        for number, text in enumerate(texts[:-1], 1)
        if number > len(sums) or crc32(text) != sums[number - 1]
    ]
    if not wrong and len(sums) == last - 1:
        return Manifest(*_facts(texts[:-1]), (line(last),))
    wrong = wrong or [last]
    kept = [text for number, text in enumerate(texts[:-1], 1) if number not in wrong]
    if len(sums) != last - 1:
        # A newline was changed: what follows it is counted otherwise.
        wrong = wrong[:1]
    return Manifest(*_facts(kept), tuple(line(number) for number in wrong))


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
        return value if isinstance(value, dict) and canonical(value) + b"\n" == text else None
    except (ValueError, RecursionError):
        return None


def _facts(texts: Iterable[bytes]) -> tuple[str, dict[str, Entry]]:
    state, entries = "", {}
    for text in texts:
        found = _object(text) or {}
        if "state" in found:
            state = str(found["state"])
            continue
        kind = next((kind for kind in ("lines", "blocks") if isinstance(found.get(kind), list)), "")
        name, size, digest = found.get("file"), found.get("bytes"), found.get("sha256")
        if isinstance(name, str) and type(size) is int and isinstance(digest, str):
            entries[name] = Entry(name, size, digest, kind, tuple(map(str, found.get(kind, ()))))
    return state, entries


def locate(entry: Entry, data: bytes) -> Damage:
    """Where `data`, which is not what the entry has, differs from it."""
    found = pieces(data, entry.kind)
    unit = "line" if entry.kind == "lines" else "block"
    start = 0
    for number, (piece, known) in enumerate(zip(found, entry.crc32, strict=False), 1):
        if crc32(piece) != known:
            where = f"{unit} {number}" + (f" (bytes {start} to {start + len(piece) - 1})" if unit == "block" else "")
            return Damage(entry.file, start, start + len(piece), f"{where}: it was changed")
        start += len(piece)
    if len(data) != entry.bytes:
        what = f"{len(data)} bytes, {entry.bytes} were written"
        return Damage(entry.file, min(start, entry.bytes), max(len(data), entry.bytes), what)
    return Damage(entry.file, 0, len(data), f"it was changed; its {unit}s are as they were")
