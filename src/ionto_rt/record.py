"""The record of a session: a folder that is the truth of what happened.

    DIR/20260317T142530Z-dexamethasone-40-3fa9c1/
        treatment.toml      the treatment as run
        session.json        versions, hashes, host fitness, resolved limits, plan, controller configuration
        telemetry.arrows    Arrow IPC stream, one row per tick and channel: every input and every term of the tick
        telemetry.sha256    what vouches for each batch of it (`ionto_rt.telemetry_chain`)
        events.jsonl        hash-chained events (`ionto_rt.events`)
        manifest.jsonl      every file by its hash (`ionto_rt.manifest`)
        receipt.json        the outcome; written last, whole or not at all
        lock                held while the session runs

`session.json` must hold, besides what its writer likes to keep: `subject` (text, may be empty) and `channels`, a list
of 1 to 32 mappings in the order of the device's channels, each with `name` and `site` (text, may be empty),
`prescribed_c` (C), `max_current_a` (A, the highest current that the device lets flow), `controller` (the
`ControllerConfig` struct as nested mappings: `calibration`, `programme`, `guard`, ..., `token`) and `segments` (its
programme, a list). Recovery and replay read these, and the journal is rebuilt from them.

Rows of telemetry are in the order of the ticks, and within a tick in the order of the channels (column `channel`). A
receipt speaks of the whole session; with more than one channel its `channels` is a list of what it says of each.

Any Arrow reader takes the telemetry: `polars.read_ipc_stream(path)`, `pyarrow.ipc.open_stream(path).read_pandas()`,
`duckdb.from_arrow(pyarrow.ipc.open_stream(path))`.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nanoarrow as na  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from nanoarrow.ipc import StreamWriter  # type: ignore[import-untyped]

from ionto_rt.codes import DeviceStatus, Phase
from ionto_rt.errors import IontoError, one_line
from ionto_rt.events import EventChain, EventError, EventLog, plain, read_events, utc_text
from ionto_rt.files import DISK, MOST_FILE_BYTES, Files, open_regular, read_regular
from ionto_rt.hazards import threshold
from ionto_rt.manifest import BEGUN, CLOSED, MANIFEST, Entry, describe, describe_bytes
from ionto_rt.manifest import encode as encode_manifest
from ionto_rt.telemetry_chain import ChainAudit, ChainHead, audit

TREATMENT = "treatment.toml"
SESSION = "session.json"
TELEMETRY = "telemetry.arrows"
TELEMETRY_CHAIN = "telemetry.sha256"
RECOVERED_TELEMETRY = "telemetry.recovered.arrows"
EVENTS = "events.jsonl"
RECEIPT = "receipt.json"
LATENCY = "latency.hlog"
LOCK = "lock"
DERIVED = ("report.html", "report.png")
"""Made from the record whenever somebody wants them, and no part of it."""
CHAINED = (TELEMETRY, TELEMETRY_CHAIN, RECOVERED_TELEMETRY, EVENTS)
"""Files in which a change is located without the manifest's help."""

FORMAT = 3
READABLE = (2, 3)
"""Formats that are read. 2 had neither manifest nor chain of telemetry."""
MAX_CHANNELS = 32
BATCHES_PER_SECOND = 10
COULOMB_PER_MAMIN = 0.06
HEARTBEAT_S = threshold("H30", "heartbeat_s")
# docs/design.md: longest lease of a command, slowest ramp of a safe stop.
LEASE_S = 0.1
SLOWEST_RAMP_A_PER_S = 1e-3
STALL_MOST_S = threshold("H38", "record_stall_s")
"""A session that could not write its record for this long ramps down (H38)."""
RENEW_S = 1.0
"""The reservation in the journal is renewed when this much of it, at the highest current, has been used."""
PHASES = tuple(phase.name.lower().replace("_", " ") for phase in Phase)
"""Names for people, by number."""

_CONTINUATION = 0xFFFFFFFF
END_OF_STREAM = struct.pack("<II", _CONTINUATION, 0)
# Batches are encoded in blocks that stay in the processor's cache.
_BLOCK_BYTES = 1 << 17
_SESSION_KEYS = {"subject": str, "channels": list}
_CHANNEL_KEYS = {
    "name": str,
    "site": str,
    "prescribed_c": float,
    "max_current_a": float,
    "controller": Mapping,
    "segments": list,
}
_REGULATOR_UNIT = "A on a current source, V on a voltage source"
_UNITS = {
    "index": "sample periods since arming",
    "applied_index": "index of the sample that the command in force answered",
    "lost_ticks": "samples lost or refused before this one",
    "device_charge_codes": "1/65536 code, net, by the device",
    "net_codes": "1/65536 code, by the host",
    "absolute_codes": "1/65536 code, by the host",
    "current_code": "code",
    "redundant_code": "code",
    "voltage_code": "code",
    "sentinel_code": "code; 0 where no sentinel electrode is wired",
    "applied_code": "code",
    "output_code": "code",
    "status": "bits of DeviceStatus",
    "channel": "of the device, from 0",
    "events": "bits of Event",
    "phase": ", ".join(f"{number} {name}" for number, name in enumerate(PHASES)),
    "end_reason": "EndReason",
    "contact": "Contact: 0 unknown, 1 good, 2 lost",
    "action": "Action: 0 none, 1 derate, 2 pause, 3 ramp down, 4 off",
    "trip": "number of the hazard, 0 none",
    "pause": "number of the hazard for which the guard asks for a pause, 0 none",
    "sample_fault": "SampleFault",
    "stop": "StopFlag",
    "operator_command": "OperatorCommand",
    "saturated": "-1, 0 or 1",
    "proportional": _REGULATOR_UNIT,
    "integral": _REGULATOR_UNIT,
    "derivative": _REGULATOR_UNIT,
    "feed_forward": _REGULATOR_UNIT,
    "unlimited": _REGULATOR_UNIT,
    "output": _REGULATOR_UNIT,
}
_ARROW_TYPES = {
    "<i8": na.Type.INT64,
    "<u8": na.Type.UINT64,
    "<i4": na.Type.INT32,
    "<u4": na.Type.UINT32,
    "<i2": na.Type.INT16,
    "<u2": na.Type.UINT16,
    "|i1": na.Type.INT8,
    "|u1": na.Type.UINT8,
    "<f8": na.Type.DOUBLE,
    "<f4": na.Type.FLOAT,
}
# What a type of an Arrow schema holds, by its number there, width in bits (precision of a float), and sign.
_NUMPY_FORMATS = {
    (2, 8 << shift, signed): f"{'|<'[shift > 0]}{'ui'[signed]}{1 << shift}" for shift in range(4) for signed in (0, 1)
}
_NUMPY_FORMATS |= {(3, 1, 0): "<f4", (3, 2, 0): "<f8"}
_MOST_HEADER_BYTES = 1 << 20

Array = npt.NDArray[Any]


def unseen_c(max_current_a: float) -> float:
    """The most charge (C) that can flow after the last written row of a host that dies while its record keeps up.

    At `max_current_a` (A, the highest that can flow): a batch that was not yet written, the 2 s until the loop notices
    that the orchestrator is silent, and a lease of 0.1 s; between them a ramp down at 1 mA/s, the slowest allowed.
    """
    flat_s = 1 / BATCHES_PER_SECOND + HEARTBEAT_S + LEASE_S
    return max_current_a * flat_s + max_current_a**2 / (2 * SLOWEST_RAMP_A_PER_S)


def reserve_ahead_c(max_current_a: float) -> float:
    """The charge (C) that a session keeps reserved in the journal beyond what its record holds.

    It covers all that can flow before the session ends by itself because its record cannot be written, and `unseen_c`
    if the host dies then: so no session delivers more than is reserved on disk.
    """
    return max_current_a * (STALL_MOST_S + RENEW_S) + unseen_c(max_current_a)


class RecordError(IontoError):
    """A record cannot be written or read; the message is one line with what, where and the remedy."""

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


@dataclass(frozen=True)
class _BatchLayout:
    """Where the columns of one kind of record batch lie in its message."""

    rows: int
    header_bytes: int
    message: np.dtype[Any]


def _table_field(data: bytes, table: int, number: int) -> int | None:
    """Position of field `number` of a flatbuffer table, None if absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (vtable_bytes,) = struct.unpack_from("<H", data, vtable)
    slot = 4 + 2 * number
    if vtable < 0 or slot + 2 > vtable_bytes:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + slot)
    return table + offset if offset else None


def _indirect(data: bytes, position: int | None) -> int:
    if position is None:
        raise ValueError("a field is missing")
    return position + int(struct.unpack_from("<I", data, position)[0])


def _scalar(data: bytes, kind: str, position: int | None) -> int:
    """A number of a flatbuffer table, 0 if absent."""
    return 0 if position is None else int(struct.unpack_from(kind, data, position)[0])


def _text(data: bytes, position: int | None) -> str:
    start = _indirect(data, position)
    length = _scalar(data, "<I", start)
    if start + 4 + length > len(data):
        raise ValueError("a text is cut off")
    return data[start + 4 : start + 4 + length].decode()


def _tables(data: bytes, position: int | None) -> list[int]:
    """Positions of the tables of a flatbuffer vector; none if it is absent."""
    if position is None:
        return []
    start = _indirect(data, position)
    count = _scalar(data, "<I", start)
    if start + 4 + 4 * count > len(data):
        raise ValueError("a list is cut off")
    return [_indirect(data, start + 4 + 4 * number) for number in range(count)]


@functools.lru_cache(maxsize=16)
def _schema(header: bytes) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Columns and metadata of the schema message with this encapsulated header.

    Raises KeyError, ValueError, IndexError or struct.error if it is not one, or of types that telemetry does not have.
    Not by nanoarrow: it dies of a damaged one.
    """
    data = header[8:]
    message = struct.unpack_from("<I", data, 0)[0]
    if _scalar(data, "<B", _table_field(data, message, 1)) != 1:
        raise ValueError("not a schema")
    schema = _indirect(data, _table_field(data, message, 2))
    columns = []
    for field in _tables(data, _table_field(data, schema, 1)):
        kind = _scalar(data, "<B", _table_field(data, field, 2))
        of_kind = _indirect(data, _table_field(data, field, 3))
        if kind == 2:
            width = _scalar(data, "<i", _table_field(data, of_kind, 0))
            code = _NUMPY_FORMATS[kind, width, _scalar(data, "<B", _table_field(data, of_kind, 1))]
        else:
            code = _NUMPY_FORMATS[kind, _scalar(data, "<h", _table_field(data, of_kind, 0)), 0]
        columns.append((_text(data, _table_field(data, field, 0)), code))
    if len(dict(columns)) < len(columns) or not all(name.isprintable() and name for name, _ in columns):
        raise ValueError("columns without names of their own")
    metadata = tuple(
        (_text(data, _table_field(data, pair, 0)), _text(data, _table_field(data, pair, 1)))
        for pair in _tables(data, _table_field(data, schema, 2))
    )
    return tuple(columns), metadata


@functools.lru_cache(maxsize=64)
def _batch_layout(header: bytes, columns: tuple[tuple[str, str], ...]) -> _BatchLayout:
    """Layout of the record batch with this encapsulated message header (continuation, length, flatbuffer metadata).

    Raises ValueError or struct.error if the metadata is not that of an uncompressed batch of `columns`.
    """
    data = header[8:]
    message = struct.unpack_from("<I", data, 0)[0]
    kind = _table_field(data, message, 1)
    if kind is None or data[kind] != 3:
        raise ValueError("not a record batch")
    batch = _indirect(data, _table_field(data, message, 2))
    body = _table_field(data, message, 3)
    body_bytes = struct.unpack_from("<q", data, body)[0] if body is not None else 0
    length = _table_field(data, batch, 0)
    rows = struct.unpack_from("<q", data, length)[0] if length is not None else 0
    if _table_field(data, batch, 3) is not None:
        raise ValueError("compressed")
    nodes = _indirect(data, _table_field(data, batch, 1))
    buffers = _indirect(data, _table_field(data, batch, 2))
    counts = struct.unpack_from("<I", data, nodes)[0], struct.unpack_from("<I", data, buffers)[0]
    if counts != (len(columns), 2 * len(columns)) or rows < 0 or not 0 <= body_bytes < 1 << 40:
        raise ValueError("not a batch of these columns")
    offsets = []
    for number, (_, code) in enumerate(columns):
        node_rows, nulls = struct.unpack_from("<qq", data, nodes + 4 + 16 * number)
        offset, size = struct.unpack_from("<qq", data, buffers + 4 + 16 * (2 * number + 1))
        needed = rows * np.dtype(code).itemsize
        if node_rows != rows or nulls != 0 or offset < 0 or size < needed or offset + needed > body_bytes:
            raise ValueError("a column lies outside the batch")
        offsets.append(len(header) + offset)
    dtype = np.dtype(
        {
            "names": [name for name, _ in columns],
            "formats": [(code, (rows,)) for _, code in columns],
            "offsets": offsets,
            "itemsize": len(header) + body_bytes,
        }
    )
    return _BatchLayout(rows, len(header), dtype)


class _Sink:
    """Collects what nanoarrow writes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def _encode(columns: tuple[tuple[str, str], ...], metadata: Mapping[str, str], rows: int) -> tuple[bytes, bytes]:
    """The schema message and one record batch of `rows` zero rows, as nanoarrow encodes them."""
    fields = [
        na.c_schema(na.Schema(_ARROW_TYPES[code], nullable=False)).modify(
            name=name, metadata={"unit": _UNITS[name]} if name in _UNITS else None
        )
        for name, code in columns
    ]
    schema = na.c_schema(na.Schema(na.Type.STRUCT, fields=fields, nullable=False)).modify(
        children=fields, metadata=dict(metadata)
    )
    children = [
        na.c_array_from_buffers(schema.child(number), length=rows, buffers=[None, np.zeros(rows, code)], null_count=0)
        for number, (_, code) in enumerate(columns)
    ]
    array = na.c_array_from_buffers(schema, length=rows, buffers=[None], null_count=0, children=children)
    sink = _Sink()
    writer = StreamWriter.from_writable(sink)
    writer.write_stream(array)
    stream = bytes(sink.data)
    writer.release()
    schema_bytes = 8 + struct.unpack_from("<I", stream, 4)[0]
    return stream[:schema_bytes], stream[schema_bytes:]


class TelemetryWriter:
    """Writes `telemetry.arrows`: batches of 100 ms, each reaching the file whole, with memory that does not grow.

    path      must not exist
    dtype     of the rows handed to `append`: the fields of struct `Tick`, little-endian scalars
    metadata  text by name, kept in the schema
    rate_hz   sample rate; a batch is rate_hz / 10 ticks of all `channels`, at least one

    The file is a finished stream at every moment: a batch is written behind the end-of-stream marker, and then the
    marker's four length bytes are replaced. So a process killed in mid-write leaves a file that any reader takes to its
    last whole batch. All batches of one length share one encoded header (nanoarrow makes it); a batch costs one strided
    copy per column, its hash and three writes: its line of the chain goes into `path` with the suffix `.sha256` first.
    Use from one thread. `files` is the file system.
    """

    def __init__(
        self,
        path: Path,
        dtype: npt.DTypeLike,
        metadata: Mapping[str, str],
        rate_hz: float,
        *,
        channels: int = 1,
        files: Files = DISK,
    ) -> None:
        given = np.dtype(dtype)
        if given.names is None or not (rate_hz > 0 and 1 <= channels <= MAX_CHANNELS):
            raise RecordError(
                f"{path}: telemetry needs a structured dtype, a positive rate and 1 to {MAX_CHANNELS} channels"
            )
        columns = [(name, given[name].str) for name in given.names]
        for name, code in columns:
            if code not in _ARROW_TYPES:
                raise RecordError(f"{path}: column {name} has type {code}, which telemetry cannot hold")
        self.path = path
        self.files = files
        self.dtype = given
        self.batch_rows = max(1, round(rate_hz / BATCHES_PER_SECOND)) * channels
        self.rows = 0
        self._names = given.names
        self._columns = tuple(columns)
        self._metadata = dict(metadata)
        schema, batch = _encode(self._columns, self._metadata, self.batch_rows)
        self._layout, self._block = self._make_block(batch, max(1, _BLOCK_BYTES // len(batch)))
        self.taken = 0
        self._fill = 0
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._chain = ChainHead()
        self._chain_bytes = 0
        self._fd = self._chain_fd = -1
        try:
            self._fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            self._chain_fd = files.open(path.with_suffix(".sha256"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        except OSError as error:
            self._close()
            raise RecordError(f"{path}: cannot be created ({error.strerror}); give a new session's folder") from None
        self._write(memoryview(schema))

    def _make_block(self, batch: bytes, count: int) -> tuple[_BatchLayout, Array]:
        header = batch[: 8 + struct.unpack_from("<I", batch, 4)[0]]
        layout = _batch_layout(header, self._columns)
        return layout, np.tile(np.frombuffer(batch, np.uint8), count).view(layout.message)

    def append(self, rows: Array) -> int:
        """Take rows (1-D, of the writer's dtype, any number); what does not fill a batch waits for the next call.

        Raises `RecordError` if the disk refuses; the file then ends with its last whole batch, `taken` says how many of
        the rows need not be handed over again, and the next call tries again what waits. Returns the number of rows.
        """
        if rows.dtype != self.dtype or rows.ndim != 1:
            raise RecordError(f"{self.path}: rows of another type than the writer was made for")
        block, size, total = self._block, self.batch_rows, len(rows)
        self.taken = start = 0
        if self._fill == size:
            self._write_waiting()
        while start < total:
            if self._fill == 0 and total - start >= size:
                count = min((total - start) // size, len(block))
                taken = rows[start : start + count * size].reshape(count, size)
                for name in self._names:
                    block[name][:count] = taken[name]
                self._write_batches(count)
                start += count * size
            else:
                taken = rows[start : start + size - self._fill]
                end = self._fill + len(taken)
                for name in self._names:
                    block[name][0, self._fill : end] = taken[name]
                start += len(taken)
                self.taken, self._fill = start, end
                if end == size:
                    self._write_waiting()
            self.taken = start
        return total

    def _write_waiting(self) -> None:
        self._write_batches(1)
        self._fill = 0

    def _write_batches(self, count: int) -> None:
        self._write(self._block[:count].view(np.uint8).data, count, self.batch_rows)
        self.rows += count * self.batch_rows

    def _write(self, data: memoryview, batches: int = 1, rows: int = 0) -> None:
        if self._fd < 0:
            raise RecordError(f"{self.path}: telemetry is closed")
        start = self._bytes
        chain, lines = self._chain.follow(data, batches, rows)
        try:
            self._write_at(self._chain_fd, self._chain_bytes, lines)
            # Up to here the file is whole and ends with the marker at `start`, whose continuation bytes stay.
            if start:
                self._write_at(self._fd, start + 8, data[8:], END_OF_STREAM)
                self._write_at(self._fd, start + 4, data[4:8])
            else:
                self._write_at(self._fd, 0, data, END_OF_STREAM)
        except OSError as error:
            self.files.write_at(self._fd, [END_OF_STREAM[: min(start, 8)]], start)
            self.files.truncate(self._fd, start + min(start, 8))
            self.files.truncate(self._chain_fd, self._chain_bytes)
            raise RecordError(f"{self.path}: telemetry not written ({error.strerror}); free disk space") from None
        self._chain = chain
        self._chain_bytes += len(lines)
        self._bytes += len(data)
        self._hash.update(data)

    def _write_at(self, fd: int, offset: int, *parts: memoryview | bytes) -> None:
        wanted = sum(map(len, parts))
        done = self.files.write_at(fd, parts, offset)
        if done < wanted:
            rest = memoryview(b"".join(parts))
            while done < wanted:
                done += self.files.write_at(fd, [rest[done:]], offset + done)

    def flush(self) -> None:
        """Write the rows that wait for a full batch as a shorter one (before a pause, or at the end)."""
        if not self._fill:
            return
        if self._fill == self.batch_rows:
            self._write_waiting()
            return
        rows = self._fill
        layout, block = self._make_block(_encode(self._columns, self._metadata, rows)[1], 1)
        for name, _ in self._columns:
            block[name][0] = self._block[name][0, :rows]
        self._write(block.view(np.uint8).data, 1, rows)
        self._fill = 0
        self.rows += layout.rows

    def sync(self) -> None:
        """Wait until all written batches are on disk; `RecordError` if the disk refuses."""
        try:
            self.files.sync(self._fd)
            self.files.sync(self._chain_fd)
        except OSError as error:
            raise RecordError(f"{self.path}: telemetry not on disk ({error.strerror}); check the disk") from None

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of the file and its chain; -1 once closed."""
        return self._fd, self._chain_fd

    @property
    def bytes(self) -> int:
        """Of the file so far, end-of-stream marker included."""
        return self._bytes + len(END_OF_STREAM)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes so far, hexadecimal."""
        whole = self._hash.copy()
        whole.update(END_OF_STREAM)
        return whole.hexdigest()

    def close(self) -> None:
        """Write the rows that wait, sync and close; closing twice does nothing."""
        if self._fd < 0:
            return
        try:
            self.flush()
            self.sync()
        finally:
            self._close()

    def _close(self) -> None:
        open_fds = [fd for fd in (self._fd, self._chain_fd) if fd >= 0]
        self._fd = self._chain_fd = -1
        for fd in open_fds:
            self.files.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Run:
    """Consecutive record batches of one layout."""

    offset: int
    count: int
    layout: _BatchLayout


class Telemetry:
    """What a telemetry file holds up to its last whole batch; columns are copied from the mapped file when asked for.

    names           of the columns
    metadata        of the schema
    whole_bytes     bytes of the file up to the end of its last whole batch
    dropped_bytes   bytes after that (a cut batch), end-of-stream marker not counted
    complete        the stream has its end-of-stream marker: any reader takes the file

    With `vouched`, what `audit_telemetry` found of it, only batches that are as they were written are there; the schema
    must be among them.
    """

    def __init__(self, path: Path, vouched: ChainAudit | None = None) -> None:
        self.path = path
        self.columns: tuple[tuple[str, str], ...] = ()
        self.metadata: dict[str, str] = {}
        self.complete = False
        self._runs: list[_Run] = []
        self._data: mmap.mmap | bytes = b""
        self.whole_bytes = 0
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size:
                    self._data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RecordError(f"{path}: no telemetry to read ({error.strerror}); give a session's folder") from None
        self._scan(size, vouched)
        self.dropped_bytes = size - self.whole_bytes - (len(END_OF_STREAM) if self.complete else 0)
        self._rows = sum(run.count * run.layout.rows for run in self._runs)

    def _header(self, offset: int) -> bytes | None:
        """The message header at `offset`, None if cut or not one."""
        prefix = self._data[offset : offset + 8]
        if len(prefix) < 8:
            return None
        continuation, length = struct.unpack("<II", prefix)
        if continuation != _CONTINUATION or not 0 < length <= min(len(self._data) - offset - 8, _MOST_HEADER_BYTES):
            return None
        return self._data[offset : offset + 8 + length]

    def _scan(self, size: int, vouched: ChainAudit | None) -> None:
        header = self._header(0)
        if header is None or (vouched is not None and not vouched.schema):
            return
        try:
            self.columns, metadata = _schema(header)
        except (LookupError, ValueError, struct.error) as error:
            raise RecordError(f"{self.path}: not a telemetry file ({error}); give a session's folder") from None
        self.metadata = dict(metadata)
        if vouched is not None:
            self._take(header, vouched)
            return
        offset = self.whole_bytes = len(header)
        known: bytes | None = None
        layout: _BatchLayout | None = None
        while True:
            if self._data[offset : offset + 8] == END_OF_STREAM:
                self.complete = True
                return
            if known is None or self._data[offset : offset + len(known)] != known:
                known = self._header(offset)
                if known is None:
                    return
                try:
                    layout = _batch_layout(known, self.columns)
                except (ValueError, struct.error, IndexError):
                    return
            assert layout is not None
            if offset + layout.message.itemsize > size:
                return
            self._add(offset, layout)
            offset += layout.message.itemsize
            self.whole_bytes = offset

    def _add(self, offset: int, layout: _BatchLayout) -> None:
        """One more batch, at `offset`."""
        run = self._runs[-1] if self._runs else None
        if run is not None and run.layout is layout and run.offset + run.count * layout.message.itemsize == offset:
            self._runs[-1] = _Run(run.offset, run.count + 1, layout)
        else:
            self._runs.append(_Run(offset, 1, layout))

    def _take(self, schema: bytes, vouched: ChainAudit) -> None:
        """The batches that are vouched for."""
        self.whole_bytes = len(schema)
        for batch in vouched.good[1:]:
            header = self._header(batch.start)
            assert header is not None
            self._add(batch.start, _batch_layout(header, self.columns))
            self.whole_bytes = batch.end
        end = self._data[vouched.covered : vouched.covered + len(END_OF_STREAM)]
        self.complete = end == END_OF_STREAM and not vouched.changed

    def parts(self) -> Iterator[memoryview]:
        """The file's bytes of schema and batches, in their order; an end-of-stream marker makes them a stream."""
        whole = memoryview(self._data)
        header = self._header(0)
        if header is None or not self.columns:
            return
        yield whole[: len(header)]
        for run in self._runs:
            yield whole[run.offset : run.offset + run.count * run.layout.message.itemsize]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that `rows` and `batches` give (packed)."""
        return np.dtype([(name, code) for name, code in self.columns])

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def _messages(self, run: _Run) -> Array:
        return np.ndarray((run.count,), run.layout.message, self._data, run.offset)

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise RecordError(f"{self.path}: no column {name}; the columns are {', '.join(self.names) or 'none'}")
        return name

    def __getitem__(self, name: str) -> Array:
        """One column, copied: shape (rows,)."""
        out = np.empty(self._rows, dict(self.columns)[self._known(name)])
        start = 0
        for run in self._runs:
            part = self._messages(run)[name].reshape(-1)
            out[start : start + len(part)] = part
            start += len(part)
        return out

    def batches(self, names: Sequence[str] | None = None) -> Iterator[Array]:
        """Structured rows (of all columns, or of `names`), a few batches at a time: memory stays flat however long the
        record.
        """
        codes = dict(self.columns)
        dtype = self.dtype if names is None else np.dtype([(name, codes[self._known(name)]) for name in names])
        for part, rows in self._parts():
            out = np.empty(rows, dtype)
            for name in dtype.names or ():
                out[name] = part[name].reshape(-1)
            yield out

    def _parts(self) -> Iterator[tuple[Array, int]]:
        for run in self._runs:
            step = max(1, _BLOCK_BYTES // run.layout.message.itemsize)
            for first in range(0, run.count, step):
                part = self._messages(run)[first : first + step]
                yield part, len(part) * run.layout.rows

    def rows(self) -> Array:
        """All rows as one structured array (some 330 bytes a row)."""
        out = np.empty(self._rows, self.dtype)
        start = 0
        for part, rows in self._parts():
            for name, _ in self.columns:
                out[name][start : start + rows] = part[name].reshape(-1)
            start += rows
        return out

    def last(self, channel: int | None = None) -> Array | None:
        """The last row (0-d structured array), of one channel if it is given; None if there is none."""
        for run in reversed(self._runs):
            messages = self._messages(run)
            for number in range(run.count if run.layout.rows else 0):
                message = messages[run.count - 1 - number]
                row = -1
                if channel is not None:
                    own = np.flatnonzero(message[self._known("channel")] == channel)
                    if not len(own):
                        continue
                    row = int(own[-1])
                out = np.empty((), self.dtype)
                for name, _ in self.columns:
                    out[name] = message[name][row]
                return out
        return None

    def of_channel(self, channel: int) -> "ChannelTelemetry":
        """The rows of one channel."""
        return ChannelTelemetry(self, channel)


class ChannelTelemetry:
    """One channel's rows; columns are copied from the mapped file when asked for."""

    def __init__(self, telemetry: Telemetry, channel: int) -> None:
        self._telemetry = telemetry
        self._parts: list[tuple[_Run, slice | Array]] = []
        self._rows = 0
        telemetry._known("channel")
        for run in telemetry._runs:
            own = telemetry._messages(run)["channel"] == channel
            self._rows += int(np.count_nonzero(own))
            self._parts.append((run, _every_nth(own)))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, name: str) -> Array:
        """One column: shape (rows of the channel,)."""
        out = np.empty(self._rows, dict(self._telemetry.columns)[self._telemetry._known(name)])
        start = 0
        for run, own in self._parts:
            column = self._telemetry._messages(run)[name]
            part = (column[:, own] if isinstance(own, slice) else column[own]).reshape(-1)
            out[start : start + len(part)] = part
            start += len(part)
        return out


def measure_batch(data: memoryview, offset: int, columns: tuple[tuple[str, str], ...] | None) -> tuple[int, int] | None:
    """Where the message at `offset` of a telemetry file ends and its rows (0: the schema, at 0), as it says itself."""
    if len(data) < offset + 8:
        return None
    continuation, length = struct.unpack_from("<II", data, offset)
    if continuation != _CONTINUATION or not 0 < length <= len(data) - offset - 8:
        return None
    if offset == 0:
        return 8 + length, 0
    try:
        layout = _batch_layout(bytes(data[offset : offset + 8 + length]), columns or ())
    except (ValueError, struct.error, IndexError):
        return None
    return offset + layout.message.itemsize, layout.rows


def audit_telemetry(path: Path) -> ChainAudit | None:
    """What the chain beside a telemetry file says of it; None without a chain. Both may be damaged in any way."""
    try:
        chain = read_regular(path.with_suffix(".sha256"), MOST_FILE_BYTES)
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); check the folder's permissions") from None
    view = memoryview(data)
    columns: list[tuple[tuple[str, str], ...] | None] = []

    def measure(offset: int) -> tuple[int, int] | None:
        if offset and not columns:
            try:
                columns.append(Telemetry(path).columns)
            except RecordError:
                columns.append(None)
        return measure_batch(view, offset, columns[0] if offset else None)

    return audit(view, chain, measure)


def _every_nth(own: Array) -> slice | Array:
    """A mask of shape (batches, rows) as a slice of its rows, if it is one: that takes a fraction of the time."""
    places = np.flatnonzero(own[0]) if own.size else own.reshape(-1)
    if not len(places):
        return own
    first = int(places[0])
    step = int(places[1]) - first if len(places) > 1 else own.shape[1]
    regular = np.zeros(own.shape[1], bool)
    regular[first::step] = True
    return slice(first, None, step) if bool((own == regular).all()) else own


def _exact_json(value: Any, where: str) -> Any:
    """`value` as JSON that reads back exactly; a non-finite float or an unknown type raises `RecordError`."""
    if isinstance(value, Mapping):
        return {str(key): _exact_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact_json(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if hasattr(value, "tolist"):
        return _exact_json(value.tolist(), where)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        raise RecordError(f"{SESSION}: {where} is {value}, which a record cannot hold; leave it out or give a number")
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise RecordError(f"{SESSION}: {where} is a {type(value).__name__}, which JSON cannot hold; give its fields")
    return value


def write_atomic(path: Path, data: bytes, files: Files = DISK) -> None:
    """Write `path` so that it holds either its old content or all of `data`, also after a power loss."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            left = memoryview(data)
            while left:
                left = left[files.write(fd, left) :]
            files.sync(fd)
        finally:
            files.close(fd)
        files.replace(temporary, path)
        files.sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            files.remove(temporary)
        raise RecordError(f"{path}: not written ({error.strerror}); check permissions and disk space") from None


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk."""
    DISK.sync_folder(folder)


def pretty_json(value: Any) -> bytes:
    """JSON for people: two blanks of indent, a newline at the end."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `RecordError` if it is missing or not one."""
    try:
        value = json.loads(read_regular(path, MOST_FILE_BYTES))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); give a session's folder") from None
    except (ValueError, RecursionError) as error:
        where = f" from line {error.lineno} on" if isinstance(error, json.JSONDecodeError) else ""
        raise RecordError(f"{path}: not JSON{where}; restore the file from a copy") from None
    if not isinstance(value, dict):
        raise RecordError(f"{path}: not a JSON object; restore the file from a copy")
    return value


def lock_folder(folder: Path) -> int | None:
    """Take the session's lock: a file descriptor to close, or None while another process holds it."""
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RecordError(f"{folder}: cannot be locked ({error.strerror}); check the folder's permissions") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_running(folder: Path) -> bool:
    """True while the process that runs the session lives (it holds the lock; the kernel lets go when it dies)."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def slug(name: str) -> str:
    """`name` as part of a folder's name: a-z, 0-9 and hyphens, at most 40; `session` if nothing is left."""
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:40].strip("-") or "session"


def _remove_abandoned(out_dir: Path) -> None:
    """Remove what a process left that was killed while it made a session's folder (no current had flowed)."""
    oldest = datetime.now(UTC).timestamp() - 60
    for path in out_dir.glob(".new-*"):
        if path.stat().st_mtime < oldest and not is_running(path):
            shutil.rmtree(path, ignore_errors=True)


def _require(facts: Any, keys: Mapping[str, type], where: str) -> None:
    for key, kind in keys.items():
        value = facts.get(key) if isinstance(facts, Mapping) else None
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise RecordError(f"{SESSION}: {where}{key} is missing or not a {kind.__name__}; the session must give it")


def write_manifest(
    folder: Path, state: str, receipt: bytes, known: Sequence[Entry] = (), files: Files = DISK
) -> None:
    """Write the manifest of all that is in `folder`, and of the receipt that is about to be written.

    `known` are entries that need not be read from disk. `RecordError` if something cannot be read or written.
    """
    entries = {entry.file: entry for entry in (*known, describe_bytes(RECEIPT, receipt))}
    try:
        for path in folder.iterdir():
            if path.name not in (MANIFEST, LOCK, *DERIVED, *entries) and path.is_file():
                entries[path.name] = describe(path, chained=path.name in CHAINED)
    except OSError as error:
        raise RecordError(f"{folder}: cannot be read ({error.strerror}); check the folder's permissions") from None
    write_atomic(folder / MANIFEST, encode_manifest(folder.name, state, entries.values()), files)


class SessionFolder:
    """The folder of a running session, and what is written into it. Made by `create`, ended by `finish`.

    path, session_id   the folder, and its name, which identifies the session
    events             its event log
    """

    def __init__(self, path: Path, lock_fd: int, files: Files = DISK) -> None:
        self.path = path
        self.session_id = path.name
        self.files = files
        self.events = EventLog(path / EVENTS, files)
        self._lock_fd = lock_fd
        self._telemetry: TelemetryWriter | None = None

    @classmethod
    def create(
        cls,
        out_dir: Path,
        name: str,
        *,
        treatment_source: str | bytes,
        session: Mapping[str, Any],
        needs_bytes: int = 0,
        files: Files = DISK,
    ) -> Self:
        """Make DIR/<UTC time>-<slug of name>-<token> with treatment, session and first event, all at once or not.

        Call it when current may flow, not before. `session` must hold the keys named in the module's text; numbers are
        kept exactly, non-finite ones are refused. `needs_bytes` is what the session will write: refused if the disk has
        less. `files` is the file system of telemetry and events. The lock is held until `finish` or `close`. Raises
        `RecordError`; then nothing is left behind.
        """
        _require(session, _SESSION_KEYS, "")
        if not 1 <= len(session["channels"]) <= MAX_CHANNELS:
            raise RecordError(f"{SESSION}: {len(session['channels'])} channels; a record holds 1 to {MAX_CHANNELS}")
        for number, facts_of_channel in enumerate(session["channels"]):
            _require(facts_of_channel, _CHANNEL_KEYS, f"channels[{number}].")
        source = treatment_source.encode() if isinstance(treatment_source, str) else treatment_source
        now = datetime.now(UTC)
        session_id = f"{now:%Y%m%dT%H%M%SZ}-{slug(name)}-{secrets.token_hex(3)}"
        facts = {"format": FORMAT, "session_id": session_id, "name": name, "created_utc": utc_text(now)}
        text = pretty_json(facts | {key: _exact_json(value, key) for key, value in session.items() if key not in facts})
        temporary = out_dir / f".new-{session_id}"
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(out_dir).free
            if free < needs_bytes:
                raise RecordError(
                    f"{out_dir}: {free // 10**6} MB free, the session needs {needs_bytes // 10**6} MB; free disk space"
                )
            _remove_abandoned(out_dir)
            files.make_folder(temporary)
        except OSError as error:
            raise RecordError(f"{out_dir}: cannot keep a session ({error.strerror}); give another --out") from None
        lock_fd = None
        try:
            lock_fd = lock_folder(temporary)
            assert lock_fd is not None
            write_atomic(temporary / TREATMENT, source, files)
            write_atomic(temporary / SESSION, text, files)
            begun = [describe_bytes(TREATMENT, source), describe_bytes(SESSION, text)]
            write_atomic(temporary / MANIFEST, encode_manifest(session_id, BEGUN, begun), files)
            with EventLog(temporary / EVENTS, files) as events:
                events.write(
                    "record-begun",
                    None,
                    safety=True,
                    session_id=session_id,
                    treatment_sha256=hashlib.sha256(source).hexdigest(),
                    session_sha256=hashlib.sha256(text).hexdigest(),
                )
            files.sync_folder(temporary)
            path = out_dir / session_id
            files.replace(temporary, path)
            files.sync_folder(out_dir)
            return cls(path, lock_fd, files)
        except BaseException as error:
            if lock_fd is not None:
                os.close(lock_fd)
            files.remove_folder(temporary)
            if isinstance(error, OSError):
                raise RecordError(f"{out_dir}: session not created ({error.strerror}); check disk space") from None
            raise

    def open_telemetry(
        self, dtype: npt.DTypeLike, rate_hz: float, metadata: Mapping[str, str] | None = None, *, channels: int = 1
    ) -> TelemetryWriter:
        """The session's telemetry writer; `finish` closes it. Append rows of all `channels` in the order of the ticks.

        The session's id is added to the metadata.
        """
        facts = {"session_id": self.session_id, "rate_hz": repr(float(rate_hz)), "format": str(FORMAT)}
        self._telemetry = TelemetryWriter(
            self.path / TELEMETRY,
            dtype,
            facts | dict(metadata or {}),
            rate_hz,
            channels=channels,
            files=self.files,
        )
        try:
            # Without its schema no row can be read, and a file that is on disk under no name is lost with the power.
            self._telemetry.sync()
            self.files.sync_folder(self.path)
        except OSError as error:
            raise RecordError(f"{self.path}: telemetry not on disk ({error.strerror}); check the disk") from None
        return self._telemetry

    def finish(self, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """Close everything and write `receipt.json`, last and whole; returns the receipt as written.

        Added to it: `session_id`, `record` (path), `telemetry_rows`, `telemetry_sha256`, `events_count`, `events_head`,
        and `notes` (text) if the last rows could not be written. Non-finite numbers become null. Whatever happens, the
        files are closed and the lock is let go.
        """
        written: dict[str, Any] = plain(receipt)
        written |= {"session_id": self.session_id, "record": str(self.path), "ended_utc": utc_text()}
        try:
            if self._telemetry is not None:
                try:
                    self._telemetry.close()
                except RecordError as error:
                    written["notes"] = [*written.get("notes", []), str(error)]
                written["telemetry_rows"] = self._telemetry.rows
                written["telemetry_sha256"] = self._telemetry.sha256
            self.events.close()
            written |= {"events_count": self.events.count, "events_head": self.events.head}
            text = pretty_json(written)
            known = []
            if self._telemetry is not None:
                known = [Entry(TELEMETRY, self._telemetry.bytes, self._telemetry.sha256)]
            write_manifest(self.path, CLOSED, text, known, self.files)
            write_atomic(self.path / RECEIPT, text, self.files)
        finally:
            self.close()
        return written

    @property
    def descriptors(self) -> list[int]:
        """What is open: event log, telemetry, lock. A forked child must not keep or use them."""
        telemetry = () if self._telemetry is None else self._telemetry.descriptors
        return [fd for fd in (self.events.descriptor, *telemetry, self._lock_fd) if fd >= 0]

    def discard(self) -> None:
        """Remove the folder: no current has flowed, so nothing happened that a record must tell."""
        self.close()
        self.files.remove_folder(self.path)

    def close(self) -> None:
        """Close files and let go of the lock, without a receipt (then `recover` is what writes one)."""
        try:
            if self._telemetry is not None:
                self._telemetry.close()
            self.events.close()
        finally:
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1


@dataclass(frozen=True)
class CountedCharge:
    """Charge of one channel as telemetry has it.

    net_c is in the direction of the treatment, absolute_c never below the device's net count; absolute_codes
    (1/65536 code) are the host's, device_net_codes the device's; tick is the last row's index, -1 without rows. over:
    the last row is behind the channel's end, relay open: nothing has flowed since.
    """

    net_c: float
    absolute_c: float
    absolute_codes: int
    device_net_codes: int
    tick: int
    over: bool = False


class Channel:
    """What a record says of one of its channels.

    number   of the device, from 0
    facts    its mapping in `session.json`
    """

    def __init__(self, record: "Record", number: int, facts: dict[str, Any]) -> None:
        self.record = record
        self.number = number
        self.facts = facts

    @property
    def name(self) -> str:
        """As the treatment has it; `channel 1` if it has none."""
        return str(self.facts.get("name") or "") or f"channel {self.number}"

    @property
    def site(self) -> str:
        return str(self.facts.get("site", ""))

    @property
    def where(self) -> str:
        """For messages: the file and the place in it."""
        return f"{self.record.path / SESSION}: channels[{self.number}]"

    def value(self, *path: str) -> float:
        """A number of its facts, given by its keys; `RecordError` if it is not there."""
        value: Any = self.facts
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise RecordError(f"{self.where}.{'.'.join(path)} is missing or no number; restore the file")
        return value

    @property
    def prescribed_c(self) -> float:
        return self.value("prescribed_c")

    @property
    def max_current_a(self) -> float:
        """The highest current that the device lets flow."""
        return self.value("max_current_a")

    @property
    def tick_s(self) -> float:
        """Sample period."""
        return self.value("controller", "calibration", "tick_s")

    @property
    def token(self) -> int:
        """Of the session, for which the device was armed."""
        return int(self.value("controller", "token"))

    @property
    def coulombs_per_code(self) -> float:
        """Charge of one unit of the ledger's and the device's counts (1/65536 code)."""
        return self.value("controller", "calibration", "current_lsb_a") * self.tick_s / 65536

    @property
    def polarity(self) -> float:
        """+1 anodal, -1 cathodal: the sign of the active electrode's current."""
        return self.value("controller", "programme", "polarity")

    @property
    def receipt(self) -> dict[str, Any] | None:
        """What the receipt says of this channel; None without a receipt, `RecordError` if it leaves the channel out."""
        whole = self.record.receipt
        if whole is None or len(self.record.channels) == 1:
            return whole
        parts = whole.get("channels")
        part = parts[self.number] if isinstance(parts, list) and self.number < len(parts) else None
        if not isinstance(part, dict):
            raise RecordError(
                f"{self.record.path / RECEIPT}: channels[{self.number}] is missing; restore the file from a copy"
            )
        return part

    def counted(self, telemetry: Telemetry | None = None) -> CountedCharge:
        """What telemetry (the record's, if none is given) counted up to its last whole batch; all zero without any."""
        if telemetry is None and self.record.has_telemetry:
            telemetry = self.record.telemetry()
        last = telemetry.last(self.number) if telemetry is not None else None
        if last is None:
            return CountedCharge(0.0, 0.0, 0, 0, -1)
        net, absolute, device = (int(last[name]) for name in ("net_codes", "absolute_codes", "device_charge_codes"))
        unit = self.coulombs_per_code
        return CountedCharge(
            net_c=self.polarity * net * unit,
            absolute_c=max(absolute, abs(device)) * unit,
            absolute_codes=absolute,
            device_net_codes=device,
            tick=int(last["index"]),
            over=int(last["phase"]) >= Phase.COMPLETE
            and not last["close_relay"]
            and not int(last["status"]) & DeviceStatus.RELAY_CLOSED,
        )

    @property
    def unseen_c(self) -> float:
        """The most charge (C) that can have flowed beyond record and reservation of a host that died."""
        return unseen_c(self.max_current_a)

    @property
    def unreserved_c(self) -> float:
        """The most charge (C) that can have flowed beyond the record alone, where the reservation is not known."""
        return reserve_ahead_c(self.max_current_a)


class Record:
    """A session's folder, read lazily; nothing in it is changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """`folder` must hold a `session.json`; `RecordError` otherwise."""
        path = Path(folder)
        if not (path / SESSION).is_file():
            raise RecordError(f"{path}: not a session's folder (no {SESSION}); see `ionto-rt sessions`")
        return cls(path)

    @functools.cached_property
    def session(self) -> dict[str, Any]:
        """`session.json`; `RecordError` if another version of the format wrote it."""
        session = read_json(self.path / SESSION)
        found = session.get("format")
        if found not in READABLE:
            writer = "an earlier" if isinstance(found, int) and found < FORMAT else "another"
            raise RecordError(
                f"{self.path / SESSION}: written by {writer} version (format {json.dumps(found)}, this one reads "
                f"{FORMAT}); read it with the version that wrote it"
            )
        return session

    @functools.cached_property
    def channels(self) -> tuple[Channel, ...]:
        """One for each channel, in the order of the device's; at least one."""
        found = self.session.get("channels")
        if not isinstance(found, list) or not found or not all(isinstance(facts, dict) for facts in found):
            raise RecordError(f"{self.path / SESSION}: channels are missing or no list; restore the file from a copy")
        return tuple(Channel(self, number, facts) for number, facts in enumerate(found))

    @property
    def tick_s(self) -> float:
        """Sample period; all channels of a device have the same."""
        return self.channels[0].tick_s

    @property
    def simulated(self) -> bool:
        """True if its device is known to have been a simulation."""
        device = self.session.get("device")
        return isinstance(device, dict) and device.get("hardware") is False

    @functools.cached_property
    def receipt(self) -> dict[str, Any] | None:
        """None while the session runs, and after a crash until `recover`."""
        return read_json(self.path / RECEIPT) if (self.path / RECEIPT).exists() else None

    @property
    def treatment_source(self) -> bytes:
        """The treatment as run, byte for byte."""
        try:
            return read_regular(self.path / TREATMENT, MOST_FILE_BYTES)
        except OSError as error:
            raise RecordError(f"{self.path / TREATMENT}: cannot be read ({error.strerror})") from None

    @property
    def has_telemetry(self) -> bool:
        """False too where a recovery has found that nothing of it can be read."""
        return (self.path / TELEMETRY).exists() and (self.receipt or {}).get("telemetry_file", "") is not None

    def telemetry(self) -> Telemetry:
        """Rows up to the last whole batch; `dropped_bytes` says how much of a cut one was left out.

        After a recovery that left batches out, because they were not as they were written, those that it kept.
        """
        if not (self.receipt or {}).get("telemetry_left_out"):
            return Telemetry(self.path / TELEMETRY)
        if not self.has_telemetry:
            raise RecordError(f"{self.path / TELEMETRY}: not as it was written, from its schema on; restore a copy")
        return Telemetry(self.path / RECOVERED_TELEMETRY)

    def events(self) -> EventChain:
        """The events and the state of their chain, checked against the receipt if there is one."""
        head = (self.receipt or {}).get("events_head")
        try:
            return read_events(self.path / EVENTS, head if isinstance(head, str) else None)
        except EventError as error:
            raise RecordError(str(error)) from None

    @property
    def running(self) -> bool:
        return is_running(self.path)


def session_folders(out_dir: Path) -> list[Path]:
    """Folders of sessions in `out_dir`, oldest first."""
    if not out_dir.is_dir():
        return []
    found = [path for path in out_dir.iterdir() if not path.name.startswith(".") and (path / SESSION).is_file()]
    # Names tell the second; within one, the file that is written first and never changed.
    return sorted(found, key=lambda path: (path.name[:16], (path / SESSION).stat().st_mtime_ns, path.name))


@dataclass(frozen=True)
class SessionRow:
    """One line of the list of sessions. `outcome` is `running` or `unrecovered` for one without a receipt.

    Doses and trips are those of all channels together; sites are joined by commas.
    """

    session_id: str
    folder: Path
    created_utc: str
    name: str
    subject: str
    site: str
    outcome: str
    dose_prescribed_mamin: float | None
    dose_delivered_mamin: float | None
    trips: int
    channels: int = 1


def _prescribed_mamin(channels: Sequence[Channel]) -> float | None:
    try:
        return sum(channel.prescribed_c for channel in channels) / COULOMB_PER_MAMIN
    except RecordError:
        return None


def list_sessions(out_dir: Path) -> list[SessionRow]:
    """The sessions in `out_dir`, oldest first, from their folders alone; a damaged one is listed as `unreadable`."""
    rows = []
    for folder in session_folders(out_dir):
        try:
            record = Record.open(folder)
            session, receipt, channels = record.session, record.receipt, record.channels
        except RecordError:
            rows.append(SessionRow(folder.name, folder, "", "", "", "", "unreadable", None, None, 0))
            continue
        facts = receipt or {"outcome": "running" if record.running else "unrecovered"}
        prescribed = facts.get("dose_prescribed_mamin")
        if prescribed is None:
            prescribed = _prescribed_mamin(channels)
        trips = facts.get("trips")
        rows.append(
            SessionRow(
                session_id=folder.name,
                folder=folder,
                created_utc=str(session.get("created_utc", "")),
                name=str(session.get("name", "")),
                subject=str(session.get("subject", "")),
                site=", ".join(dict.fromkeys(channel.site for channel in channels if channel.site)),
                outcome=str(facts.get("outcome", "")),
                dose_prescribed_mamin=prescribed,
                dose_delivered_mamin=facts.get("dose_delivered_mamin"),
                trips=len(trips) if isinstance(trips, list) else 0,
                channels=len(channels),
            )
        )
    return rows
