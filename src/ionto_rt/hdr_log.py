"""Histograms of times as an HdrHistogram log: text that HdrHistogram's own tools read.

The log's format is version 1.3 of HdrHistogram's HistogramLogWriter, its payloads are V2 compressed histograms
(github.com/HdrHistogram/HdrHistogram: AbstractHistogram.encodeIntoByteBuffer, ZigZagEncoding). The buckets of
`LatencyHistogram` are those of an HdrHistogram of two significant digits from 1 to 2**32 - 1, so counts go over as they
are. Values are ns; the column of maxima is in ms, as is usual.
"""

import base64
import binascii
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ionto_rt.core.clock import LatencyHistogram, bucket_ends
from ionto_rt.errors import RefusedError
from ionto_rt.files import read_regular

COMPRESSED_COOKIE, ENCODED_COOKIE = 0x1C849314, 0x1C849313
_OUTER = struct.Struct(">II")
_INNER = struct.Struct(">IIIIQQd")
_SIGNIFICANT_DIGITS = 2
_HIGHEST_NS = (1 << 32) - 1
_MOST_BYTES = 1 << 20
_MOST_LINES = 10_000
_MOST_FILE_BYTES = 1 << 26
_TAG = re.compile(r"[^\s,]+")
_LINE = re.compile(r"(?:Tag=([^,]*),)?([0-9.]+),([0-9.]+),([0-9.]+),([A-Za-z0-9+/=]+)")
_START = re.compile(r"#\[StartTime: ([0-9.]+) ")
_LEGEND = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'


@dataclass(frozen=True)
class Interval:
    """One line of a log. `began_s` is from the log's start; `tag` is empty if there is none."""

    tag: str
    began_s: float
    duration_s: float
    histogram: LatencyHistogram


@dataclass(frozen=True)
class HdrLog:
    """A log that was read."""

    started_utc: datetime | None
    intervals: tuple[Interval, ...]

    @property
    def histograms(self) -> dict[str, LatencyHistogram]:
        """By tag, all intervals added up."""
        found: dict[str, LatencyHistogram] = {}
        for interval in self.intervals:
            found.setdefault(interval.tag, LatencyHistogram()).fold(interval.histogram)
        return found

    @property
    def duration_s(self) -> float:
        """From the log's start to the end of its last interval."""
        return max((one.began_s + one.duration_s for one in self.intervals), default=0.0)


def encode_histogram(histogram: LatencyHistogram) -> str:
    """A histogram as HdrHistogram's V2 compressed form, in base64."""
    counts = histogram.counts
    used = np.flatnonzero(counts)
    data = _pack_counts(counts[: used[-1] + 1].tolist() if len(used) else [])
    inner = _INNER.pack(ENCODED_COOKIE, len(data), 0, _SIGNIFICANT_DIGITS, 1, _HIGHEST_NS, 1.0)
    packed = zlib.compress(inner + data)
    return base64.b64encode(_OUTER.pack(COMPRESSED_COOKIE, len(packed)) + packed).decode("ascii")


def decode_histogram(text: str, highest_ns: int | None = None) -> LatencyHistogram:
    """The histogram of a V2 compressed payload in base64, as this module writes it.

    `highest_ns` is its longest time where that is known better than by its bucket. ValueError says what is wrong.
    """
    try:
        raw = base64.b64decode(text, validate=True)
        cookie, length = _OUTER.unpack_from(raw)
        if cookie != COMPRESSED_COOKIE or length != len(raw) - _OUTER.size:
            raise ValueError("no V2 compressed histogram")
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(raw[_OUTER.size :], _MOST_BYTES)
        if not unpacker.eof:
            raise ValueError("a histogram that is cut off, or too long")
        cookie, length, offset, digits, lowest, _, ratio = _INNER.unpack_from(data)
    except (binascii.Error, zlib.error, struct.error) as error:
        raise ValueError(f"no V2 compressed histogram ({error})") from None
    if cookie != ENCODED_COOKIE or length != len(data) - _INNER.size:
        raise ValueError("no V2 histogram")
    if (offset, digits, lowest, ratio) != (0, _SIGNIFICANT_DIGITS, 1, 1.0):
        raise ValueError("a histogram with other buckets than those of two significant digits from 1")
    ends = bucket_ends()
    counts = np.zeros(len(ends), dtype=np.uint64)
    found = _unpack_counts(data[_INNER.size :], len(ends))
    counts[: len(found)] = found
    used = np.flatnonzero(counts)
    top = int(used[-1]) if len(used) else 0
    last_ns = int(ends[top]) if len(used) else 0
    if highest_ns is None or not (int(ends[top - 1]) if top else -1) < highest_ns <= last_ns:
        highest_ns = last_ns
    return LatencyHistogram.of_counts(counts, highest_ns)


def _pack_counts(counts: Iterable[int]) -> bytes:
    """ZigZag LEB128 numbers of at most 9 bytes; a run of zeros is its length, negative."""
    out = bytearray()
    zeros = 0
    for count in counts:
        if count == 0:
            zeros += 1
            continue
        if zeros:
            _put(out, -zeros)
            zeros = 0
        _put(out, count)
    return bytes(out)


def _put(out: bytearray, number: int) -> None:
    left = ((number << 1) ^ (number >> 63)) & (1 << 64) - 1
    for _ in range(8):
        if left < 0x80:
            out.append(left)
            return
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)


def _unpack_counts(data: bytes, most: int) -> list[int]:
    counts: list[int] = []
    at = 0
    while at < len(data):
        number = shift = 0
        for position in range(9):
            if at == len(data):
                raise ValueError("counts that are cut off")
            byte = data[at]
            at += 1
            if position == 8:
                number |= byte << shift
                break
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        value = (number >> 1) ^ -(number & 1)
        if value < 0 and len(counts) - value <= most:
            counts += [0] * -value
        elif value >= 0 and len(counts) < most:
            counts.append(value)
        else:
            raise ValueError("counts beyond its last bucket")
    return counts


def write_log(
    path: str | os.PathLike[str],
    histograms: Mapping[str, LatencyHistogram],
    started_utc: datetime,
    duration_s: float,
) -> None:
    """Write one interval of `duration_s` with a line for each histogram, its name as the tag.

    Names have no space and no comma. `started_utc` is aware of its time zone. OSError if the file cannot be written.
    """
    started = started_utc.timestamp()
    lines = [
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {started:.3f} (seconds since epoch), {started_utc.astimezone(UTC).isoformat(' ', 'seconds')}]",
        f"#[BaseTime: {started:.3f} (seconds since epoch)]",
        _LEGEND,
    ]
    for name, histogram in histograms.items():
        if not _TAG.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a tag: no spaces, no commas")
        highest_ms = histogram.highest_ns / 1e6
        lines.append(f"Tag={name},0.000,{duration_s:.3f},{highest_ms:.6f},{encode_histogram(histogram)}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="ascii")


def read_log(path: str | os.PathLike[str]) -> HdrLog:
    """Read a log of histograms of two significant digits in ns, as `write_log` writes it.

    RefusedError names the line that is no histogram of that kind; OSError if the file cannot be read.
    """
    started: datetime | None = None
    intervals = []
    text = read_regular(Path(path), _MOST_FILE_BYTES).decode("ascii", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if number > _MOST_LINES:
            raise RefusedError(f"more than {_MOST_LINES} lines", file=path, remedy="give a latency.hlog")
        stamp = _START.match(line)
        if stamp:
            started = _moment(stamp[1])
        if line.startswith(("#", '"')) or not line.strip():
            continue
        try:
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError("no line of an HdrHistogram log")
            began, duration, highest_ms = (float(match[k]) for k in (2, 3, 4))
            histogram = decode_histogram(match[5], round(highest_ms * 1e6) if math.isfinite(highest_ms) else None)
            intervals.append(Interval(match[1] or "", began, duration, histogram))
        except (ValueError, OverflowError) as error:
            raise RefusedError(str(error), file=path, line=number, remedy="give a latency.hlog") from None
    return HdrLog(started, tuple(intervals))


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        return None
