"""What `ionto-rt latency` measures: nothing is lost, the worst is told with its phases, and it ends when it must."""

import contextlib
import json
import os
import re
import signal
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hdrh.log import HistogramLogReader

from cli_support import ended, ionto, started, wait_until
from ionto_rt.core.clock import LatencyHistogram
from ionto_rt.core.latency import Echo, RoundTripLoop, WakeUpLoop
from ionto_rt.core.wire import FrameReader, encode_frame
from ionto_rt.device import COUNTERS, COUNTERS_REQUEST, HELLO, open_device
from ionto_rt.hdr_log import read_log, write_log
from ionto_rt.latency import FLOOR, ROUND_TRIP, WAKE_UP, LatencyResult, Measurement, counters_frame_bytes

pytestmark = pytest.mark.real_time

MS = 1_000_000
ANSWER = encode_frame(bytes([COUNTERS]) + bytes(43))


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """A raw pseudo-terminal: the device's end and the host's."""
    far, near = os.openpty()
    tty.setraw(near)
    try:
        yield far, near
    finally:
        for fd in (far, near):
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def device_that(far: int, *answers: bytes) -> Iterator[None]:
    """A device that gives the next of `answers` to each question, and the last one to all that follow."""
    done_read, done_write = os.pipe()

    def serve() -> None:
        import select

        reader, left = FrameReader(), list(answers)
        while far in select.select([far, done_read], [], [])[0]:
            try:
                asked = reader.feed(os.read(far, 4096))
            except OSError:
                return
            for question in asked:
                assert question[0] == COUNTERS_REQUEST
                os.write(far, left.pop(0) if len(left) > 1 else left[0])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        os.close(done_write)
        thread.join()
        os.close(done_read)


def round_trips(near: int, interval_ns: int = MS) -> tuple[RoundTripLoop, LatencyHistogram, LatencyHistogram]:
    raw, corrected = LatencyHistogram(), LatencyHistogram()
    return RoundTripLoop(near, interval_ns, raw, corrected), raw, corrected


def test_every_period_is_a_wake_up_or_skipped_and_corrected() -> None:
    raw, corrected = LatencyHistogram(), LatencyHistogram()
    loop = WakeUpLoop(10_000, raw, corrected)
    assert loop.run(5000) == "done"
    assert loop.cycles == raw.total
    assert loop.cycles + loop.skipped >= 5000
    assert corrected.total == raw.total + loop.skipped
    assert corrected.highest_ns == raw.highest_ns == loop.worst["ns"]
    assert loop.worst["cycle"] < loop.cycles
    assert loop.worst["at_ns"] <= loop.measured_ns


def test_a_run_goes_on_where_the_last_one_ended() -> None:
    raw, corrected = LatencyHistogram(), LatencyHistogram()
    loop = WakeUpLoop(MS, raw, corrected)
    assert (loop.run(20), loop.run(30)) == ("done", "done")
    assert loop.cycles + loop.skipped >= 50
    assert raw.total == loop.cycles
    assert loop.measured_ns >= 49 * MS


def test_the_stop_flag_is_sticky() -> None:
    loop = WakeUpLoop(MS, LatencyHistogram(), LatencyHistogram())
    loop.stop()
    assert (loop.run(1 << 40), loop.run(1), loop.cycles) == ("stopped", "stopped", 0)


def test_an_interval_of_nothing_and_one_histogram_for_two_are_refused() -> None:
    one = LatencyHistogram()
    with pytest.raises(ValueError, match="interval of 0"):
        WakeUpLoop(0, one, LatencyHistogram())
    with pytest.raises(ValueError, match="one histogram for two"):
        WakeUpLoop(MS, one, one)


def test_the_phases_of_the_worst_round_trip_are_all_of_it() -> None:
    with terminal() as (far, near), device_that(far, ANSWER):
        loop, raw, corrected = round_trips(near)
        assert loop.run(200) == "done"
    worst = loop.worst
    assert sum(worst[phase] for phase in ("encode", "write", "wait", "decode")) == worst["ns"] == raw.highest_ns
    assert loop.counters == {"timeouts": 0, "stale": 0, "foreign": 0, "bad_frames": 0}
    assert raw.total == loop.cycles <= corrected.total
    assert loop.use["voluntary_switches"] >= loop.cycles


def test_frames_of_another_kind_and_broken_ones_are_counted_and_passed_over() -> None:
    foreign = encode_frame(bytes([HELLO]) + bytes(60))
    with terminal() as (far, near), device_that(far, foreign + b"\x05broken\x00" + ANSWER):
        loop, raw, _ = round_trips(near)
        assert loop.run(10) == "done"
    assert (loop.counters["foreign"], loop.counters["bad_frames"]) == (raw.total, raw.total)
    assert loop.counters["timeouts"] == 0


def test_an_answer_too_many_is_stale_and_answers_nothing() -> None:
    with terminal() as (far, near), device_that(far, ANSWER + ANSWER, ANSWER):
        loop, _, _ = round_trips(near, 20 * MS)
        assert loop.run(5) == "done"
    assert (loop.counters["stale"], loop.counters["timeouts"]) == (1, 0)


def test_a_question_without_an_answer_counts_with_a_tenth_of_a_second() -> None:
    with terminal() as (far, near), device_that(far, b"", ANSWER):
        loop, raw, corrected = round_trips(near, 10 * MS)
        assert loop.run(40) == "done"
    assert loop.counters["timeouts"] == 1
    assert raw.highest_ns >= 100 * MS
    assert loop.worst["wait"] >= 99 * MS
    # One time-out at 10 ms a period kept at least nine others from being taken.
    assert corrected.total - raw.total >= 9
    assert loop.skipped >= 9


def test_a_device_that_says_nothing_ends_it() -> None:
    with terminal() as (far, near), device_that(far, b""):
        loop, raw, _ = round_trips(near)
        assert loop.run(1 << 40) == "silent"
    assert loop.counters["timeouts"] == raw.total == 20


def test_a_device_that_goes_away_ends_it() -> None:
    with terminal() as (far, near):
        loop, raw, _ = round_trips(near)
        os.close(far)
        assert loop.run(1 << 40) == "lost"
    assert loop.error and raw.total == 0


def test_a_device_that_is_silent_does_not_keep_it_from_stopping() -> None:
    with terminal() as (_, near):
        loop, raw, _ = round_trips(near)
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(loop.run(1 << 40)))
        thread.start()
        loop.stop()
        thread.join(5.0)
        assert said == ["stopped"]
    assert raw.total == 0


def test_bare_frames_go_both_ways() -> None:
    with terminal() as (far, near):
        os.set_blocking(far, False)
        raw, corrected = LatencyHistogram(), LatencyHistogram()
        loop = RoundTripLoop(near, MS, raw, corrected, question_bytes=7, answer_bytes=5000 // 2)
        echo = Echo(far, 7, 5000 // 2)
        answering = threading.Thread(target=echo.run)
        answering.start()
        assert loop.run(50) == "done"
        echo.stop()
        answering.join()
    assert raw.total == loop.cycles > 0
    assert loop.counters["timeouts"] == 0


@pytest.fixture(scope="module")
def measured() -> LatencyResult:
    with open_device("virtual:") as device:
        assert len(ANSWER) == counters_frame_bytes(device.hello)
        return Measurement(device, duration_s=0.4, rate_hz=500.0).run()


def test_all_three_series_are_measured(measured: LatencyResult) -> None:
    assert [one.name for one in measured.series] == [WAKE_UP, ROUND_TRIP, FLOOR]
    assert measured.ended == "done"
    for one in measured.series:
        assert one.corrected is not None
        assert one.raw.total + one.skipped >= 200
        assert one.corrected.total >= one.raw.total
        assert one.interval_s == 0.002
    assert set(measured.host) == {"priority", "affinity", "timer_slack", "stack", "memory", "processors"}


def test_percentiles_rise_to_the_worst(measured: LatencyResult) -> None:
    told = measured.as_dict()
    for name in ("wake_up", "round_trip", "floor"):
        for kind in ("raw_us", "corrected_us"):
            values = [told[name][kind][key] for key in ("p50", "p90", "p99", "p999", "p9999", "max")]
            assert values == sorted(values)
        assert told[name]["worst"]["us"] == told[name]["raw_us"]["max"]
    assert sum(told["round_trip"]["worst"]["phases_us"].values()) == pytest.approx(told["round_trip"]["raw_us"]["max"])


def test_the_device_is_not_armed_and_answers_every_question(measured: LatencyResult) -> None:
    counters = measured[ROUND_TRIP].counters
    assert counters is not None
    assert (counters["foreign"], counters["bad_frames"]) == (0, 0)


def test_the_command_shows_percentiles_bars_and_the_host(tmp_path: Path) -> None:
    done = ionto("latency", "--duration", "0.3 s", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    for part in ("wake-up jitter", "round trip", "floor: bare exchange", "corrected", "p99.99", "page faults", "█"):
        assert part in done.out, part
    assert re.search(r"^  in \w+: encode .* write .* wait .* decode ", done.out, re.M)
    assert max(map(len, done.out.splitlines()[2:])) <= 100 + 20
    assert max(len(line) for line in done.out.splitlines() if "█" in line) <= 100
    assert not list(tmp_path.iterdir())


def test_the_folder_has_json_picture_and_a_log_that_others_read(tmp_path: Path) -> None:
    done = ionto("latency", "--duration", "0.3 s", "--rate", "500", "--out", "made", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    folder = tmp_path / "made"
    assert {path.name for path in folder.iterdir()} == {"latency.json", "latency.png", "latency.hlog"}
    assert json.loads((folder / "latency.json").read_text()) == done.receipt
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")
    reader = HistogramLogReader(str(folder / "latency.hlog"), None)
    counts = {}
    while (found := reader.get_next_interval_histogram()) is not None:
        counts[found.get_tag()] = found.get_total_count()
    assert set(counts) == {name + end for name in (WAKE_UP, ROUND_TRIP, FLOOR) for end in ("", "-corrected")}
    assert counts[WAKE_UP] == done.receipt["wake_up"]["count"]
    assert done.receipt["rate_hz"] == 500.0


def test_without_matplotlib_there_is_no_picture_and_a_hint(tmp_path: Path) -> None:
    (tmp_path / "hidden/matplotlib").mkdir(parents=True)
    (tmp_path / "hidden/matplotlib/__init__.py").write_text("raise ImportError('hidden')\n")
    import ionto_rt

    home = Path(ionto_rt.__file__).parent.parent
    paths = os.pathsep.join([str(tmp_path / "hidden"), str(home)])
    done = ionto("latency", "--duration", "0.1 s", "--out", "made", cwd=tmp_path, PYTHONPATH=paths)
    assert done.code == 0
    assert "pip install 'ionto-rt[report]'" in done.err and done.err.count("\n") == 1
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"latency.json", "latency.hlog"}


def most_wake_ups(process_id: int) -> int:
    """Of the threads of a process, how often the one that waited most has waited."""
    statuses = [path.read_text() for path in Path(f"/proc/{process_id}/task").glob("*/status")]
    return max(int(re.findall(r"^voluntary_ctxt_switches:\t(\d+)", status, re.M)[0]) for status in statuses)


def test_an_interrupt_ends_it_early_with_what_was_measured(tmp_path: Path) -> None:
    with started("latency", "--duration", "1 h", "--out", "made", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("measuring for 10800 s")
        wait_until(lambda: most_wake_ups(process.pid) > 200, "a thread that has woken 200 times")
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert (done.code, done.err) == (1, "")
    assert "ended early: stopped before its time" in done.out
    assert "wake-up jitter" in done.out
    log = read_log(tmp_path / "made/latency.hlog").histograms
    assert log[WAKE_UP].total > 0


def test_a_session_shows_the_log_that_it_has_kept(tmp_path: Path, measured: LatencyResult) -> None:
    write_log(
        tmp_path / "latency.hlog",
        {"answer": measured[ROUND_TRIP].raw, "age": measured[FLOOR].raw, "wake_up": LatencyHistogram()},
        measured.started_utc,
        12.5,
    )
    done = ionto("latency", "--session", tmp_path, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "12.5 s, from" in done.out
    assert "sample read to command written" in done.out and "sample due to command written" in done.out
    assert "later than planned" not in done.out, "a series without a time has no line"
    told = ionto("latency", "--session", tmp_path, "--json", cwd=tmp_path).receipt
    assert told["answer"]["count"] == measured[ROUND_TRIP].raw.total
    assert told["answer"]["raw_us"]["max"] == measured[ROUND_TRIP].raw.highest_ns / 1e3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "sim:"], '--device = "sim:": is in this process'),
        (["--device", "nonsense"], "not a device URI"),
        (["--device", "serial:/dev/ionto-none"], "no such port"),
        (["--rate", "0"], "--rate = 0.0: not a rate"),
        (["--rate", "nan"], "not a rate"),
        (["--rate", "1e9"], "not a rate"),
        (["--duration", "10"], '--duration = "10": has no unit'),
        (["--duration", "0 s"], "not a time to measure for"),
        (["--duration", "25 h"], "not a time to measure for"),
        (["--priority", "100"], '--priority = "100": not a priority'),
        (["--priority", "high"], "not a priority"),
        (["--cpu", "4096"], "--cpu = 4096: no processor of this process"),
        (["--out", "/dev/null/x"], "/dev/null/x: Not a directory"),
        (["--session", "."], "there is no latency.hlog in it"),
        (["--session", ".", "--rate", "5", "--device", "virtual:"], "leave out --device, --rate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    assert said in ionto("latency", *words, cwd=tmp_path).refusal


def test_a_log_that_is_broken_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "latency.hlog").write_text("#[comment]\nTag=answer,0,1,2,broken\n")
    assert "latency.hlog:2: no V2 compressed histogram" in ionto("latency", "--session", ".", cwd=tmp_path).refusal


def test_priority_none_leaves_the_thread_as_it_is(tmp_path: Path) -> None:
    wanted: dict[str, Any] = ionto(
        "latency", "--duration", "0.1 s", "--priority", "none", "--cpu", str(min(os.sched_getaffinity(0))), "--json",
        cwd=tmp_path,
    ).receipt  # fmt: skip
    assert wanted["host"]["priority"] == "ordinary (as asked)"
    assert wanted["host"]["affinity"] == f"cpu {min(os.sched_getaffinity(0))}"
