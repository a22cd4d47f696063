"""Logs of histograms: HdrHistogram's own reader finds in them what was counted, and so does ours."""

import base64
import math
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.core.clock import LatencyHistogram, bucket_ends
from ionto_rt.errors import RefusedError
from ionto_rt.hdr_log import decode_histogram, encode_histogram, read_log, write_log

HIGHEST_NS = (1 << 32) - 1
STARTED = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
TIMES = st.lists(st.one_of(st.integers(0, 300), st.integers(0, HIGHEST_NS)), max_size=60)


def counted(times: list[int], expected_ns: int = 0) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for time_ns in times:
        histogram.add(time_ns, expected_ns)
    return histogram


def of_hdrhistogram(times: list[int]) -> HdrHistogram:
    histogram = HdrHistogram(1, HIGHEST_NS, 2)
    for time_ns in times:
        assert histogram.record_value(time_ns)
    return histogram


def same_counts(ours: LatencyHistogram, theirs: HdrHistogram) -> None:
    assert theirs.get_total_count() == ours.total
    assert [theirs.get_count_at_index(k) for k in range(theirs.counts_len)] == ours.counts.tolist()


@given(TIMES)
@settings(deadline=None)
def test_hdrhistogram_reads_what_was_counted(times: list[int]) -> None:
    ours = counted(times)
    theirs = HdrHistogram.decode(encode_histogram(ours))
    same_counts(ours, theirs)
    ends = bucket_ends()
    for nth in range(1, len(times) + 1):
        share = nth / len(times)
        top = int(ends[np.searchsorted(ends, ours.percentile(share))])
        assert theirs.get_value_at_percentile(100.0 * share) == top
    if times:
        assert theirs.get_max_value() == int(ends[np.searchsorted(ends, max(times))])


@given(TIMES, st.integers(10_000_000, 1_000_000_000))
@settings(deadline=None, max_examples=30)
def test_a_stall_adds_the_times_that_it_kept_from_being_taken(times: list[int], expected_ns: int) -> None:
    """By HdrHistogram's rule: each an interval shorter than the one before, none shorter than an interval."""
    taken = list(times)
    for time_ns in times:
        taken += range(time_ns - expected_ns, expected_ns - 1, -expected_ns)
    same_counts(counted(times, expected_ns), of_hdrhistogram(taken))


@given(TIMES)
@settings(deadline=None)
def test_what_hdrhistogram_wrote_is_read_to_the_same_counts(times: list[int]) -> None:
    same_counts(decode_histogram(of_hdrhistogram(times).encode().decode()), of_hdrhistogram(times))


@given(st.lists(st.one_of(st.just(0), st.integers(0, (1 << 62) - 1)), max_size=3328))
@settings(deadline=None, max_examples=30)
def test_any_counts_come_back(counts: list[int]) -> None:
    given_counts = np.zeros(3328, dtype=np.uint64)
    given_counts[: len(counts)] = counts
    used = np.flatnonzero(given_counts)
    highest = int(bucket_ends()[used[-1]]) if len(used) else 0
    histogram = LatencyHistogram.of_counts(given_counts, highest)
    assert decode_histogram(encode_histogram(histogram)).counts.tolist() == given_counts.tolist()


def test_the_mean_of_a_histogram_that_was_read_is_within_its_buckets() -> None:
    written = counted([12_345, 678_901, 23_456_789])
    read = decode_histogram(encode_histogram(written))
    assert math.isclose(read.mean_ns, written.mean_ns, rel_tol=0.004)


def test_a_log_comes_back_with_names_times_and_the_exact_longest_time(tmp_path: Path) -> None:
    path = tmp_path / "latency.hlog"
    histograms = {"answer": counted([10_001, 20_003, 3_000_001]), "age": counted([7]), "wake_up": LatencyHistogram()}
    write_log(path, histograms, STARTED, 12.5)
    read = read_log(path)
    assert (read.started_utc, read.duration_s) == (STARTED, 12.5)
    assert list(read.histograms) == list(histograms)
    for name, histogram in read.histograms.items():
        assert histogram.counts.tolist() == histograms[name].counts.tolist()
        assert histogram.highest_ns == histograms[name].highest_ns


def test_hdrhistograms_reader_finds_each_tag_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "latency.hlog"
    histograms = {"wake-up": counted([10_001, 20_003]), "round-trip": counted([1 << 31])}
    write_log(path, histograms, STARTED, 2.0)
    reader = HistogramLogReader(str(path), HdrHistogram(1, HIGHEST_NS, 2))
    for name, histogram in histograms.items():
        found = reader.get_next_interval_histogram()
        assert found.get_tag() == name
        assert found.get_start_time_stamp() == STARTED.timestamp() * 1000.0
        assert found.get_end_time_stamp() - found.get_start_time_stamp() == 2000.0
        same_counts(histogram, found)
    assert reader.get_next_interval_histogram() is None
    assert reader.get_start_time_sec() == STARTED.timestamp()


def test_a_name_that_would_break_the_line_is_refused(tmp_path: Path) -> None:
    for name in ("", "wake up", "a,b", "a\nb"):
        with pytest.raises(ValueError, match="cannot be a tag"):
            write_log(tmp_path / "x.hlog", {name: LatencyHistogram()}, STARTED, 1.0)


GOOD = encode_histogram(counted([5]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hello", "no line of an HdrHistogram log"),
        ("Tag=a,0,1,1,HISTFAAAABB42", "no V2 compressed histogram"),
        ("Tag=a,0,1,1,AAAA", "no V2 compressed histogram"),
        (f"Tag=a,0,1,1,{GOOD[:-8]}", "no V2 compressed histogram"),
        (f"Tag=a,0.0.0,1,1,{GOOD}", "could not convert"),
        ("Tag=a,0,1,1," + HdrHistogram(1, HIGHEST_NS, 3).encode().decode(), "other buckets"),
        ("Tag=a,0,1,1," + HdrHistogram(1000, HIGHEST_NS, 2).encode().decode(), "other buckets"),
    ],
)
def test_a_log_of_something_else_is_refused_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "latency.hlog"
    path.write_text(f"#[a comment]\n{line}\n")
    with pytest.raises(RefusedError, match=said) as refused:
        read_log(path)
    assert str(refused.value).startswith(f"{path}:2: ")


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_can_do_more_than_be_refused(data: bytes) -> None:
    inner = struct.pack(">IIIIQQd", 0x1C849313, len(data), 0, 2, 1, HIGHEST_NS, 1.0) + data
    packed = zlib.compress(inner)
    text = base64.b64encode(struct.pack(">II", 0x1C849314, len(packed)) + packed).decode()
    try:
        histogram = decode_histogram(text)
    except ValueError:
        return
    assert histogram.counts.sum(dtype=object) >= 0
