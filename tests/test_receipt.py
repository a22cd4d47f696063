"""The receipt as people read it: the whole first, then each channel, and only what is worth a line."""

from pathlib import Path
from typing import Any

import click
import pytest

from ionto_rt.cli.receipt import host_of
from ionto_rt.cli.receipt import receipt_text as styled_text
from record_support import finished_channels, make_session, receipt_of, steady_rows, ticked

LOAD = {
    "resistance_ohm": 3750.0, "resistance_sigma_ohm": 10.0, "series_ohm": 0.0, "series_sigma_ohm": 0.0,
    "parallel_ohm": 0.0, "parallel_sigma_ohm": 0.0, "capacitance_f": 0.0, "capacitance_sigma_f": 0.0,
}  # fmt: skip


def receipt_text(*words: Any) -> str:
    """The receipt without its colours."""
    return click.unstyle(styled_text(*words))


def one(**more: Any) -> dict[str, Any]:
    return dict(receipt_of(steady_rows(3000))) | {"reason": "done", "record": "sessions/x", "duration_s": 3.0} | more


def lines(text: str) -> dict[str, str]:
    """The lines that have a label, by it."""
    return {line[:9].strip(): line[9:] for line in text.splitlines() if line[:1].islower() and ": " not in line[:12]}


def test_of_several_channels_the_whole_comes_first_and_then_a_block_of_each() -> None:
    receipt = ticked(3).receipt(record="sessions/x", duration_s=4.29, trips=["OPEN_LEAD"])
    receipt |= {"outcome": "faulted", "reason": "site 1: lead open"}
    receipt["channels"][1] |= {"outcome": "faulted", "reason": "lead open", "trips": ["OPEN_LEAD"], "load": LOAD}
    text = receipt_text(receipt)
    whole, *blocks, last = text.split("\n\n", 1)[1].split("\n\n")
    assert text.startswith("faulted: site 1: lead open\n\ndose ")
    assert [block.splitlines()[0] for block in blocks] == [
        "site 0: complete: the prescribed dose was delivered",
        "site 1: faulted: lead open",
        "site 2: complete: the prescribed dose was delivered",
    ]
    assert "0.0628 of 0.07 mA·min" in whole and "4271 ticks" in whole and "OPEN_LEAD" in whole
    assert "0.0128 of 0.02 mA·min  (63.8 %)" in blocks[1]
    assert "load     R 3.75 ± 0.01 kΩ at the contact check" in blocks[1] and "trips    OPEN_LEAD" in blocks[1]
    assert "trips" not in blocks[0] and "load" not in whole
    assert last.splitlines() == [
        "record   sessions/x",
        "next     ionto-rt report sessions/x",
        "         ionto-rt replay sessions/x",
    ]


def test_one_channel_is_no_block_of_its_own() -> None:
    text = receipt_text(one(load=LOAD))
    assert text.count("\n\n") == 1 and "load     R 3.75" in text
    assert text.splitlines()[-1] == "         ionto-rt replay sessions/x"


def test_the_tail_of_the_latency_is_shown_where_it_was_measured() -> None:
    latency = {"p50": 70.0, "p99": 140.0, "p999": 190.0, "p9999": 1234.0, "max": 2600.0}
    assert lines(receipt_text(one(latency_us=latency)))["latency"] == (
        "p50 70 µs, p99 140 µs, p99.9 190 µs, p99.99 1.23 ms, max 2.6 ms"
    )
    assert "p99.99" not in receipt_text(one())


@pytest.mark.parametrize(
    ("time_us", "text"), [(999.0, "999 µs"), (999.6, "1 ms"), (999_000.0, "999 ms"), (999_600.0, "1 s"), (3e6, "3 s")]
)
def test_a_latency_is_told_in_the_unit_that_suits_it(time_us: float, text: str) -> None:
    assert lines(receipt_text(one(latency_us={"max": time_us})))["latency"] == f"max {text}"


@pytest.mark.parametrize(
    ("gaps", "late", "text"),
    [(0, 0, "0 samples lost, 0 commands late"), (1, 1, "1 sample lost, 1 command late"),
     (2, 11, "2 samples lost, 11 commands late")],
)  # fmt: skip
def test_one_is_no_plural(gaps: int, late: int, text: str) -> None:
    assert lines(receipt_text(one(gaps=gaps, late=late)))["time"].endswith(text)


@pytest.mark.parametrize(("most", "shown"), [(0, False), (4000, False), (4001, True), (8000, True)])
def test_a_ring_is_worth_a_line_when_it_was_more_than_half_full(most: int, shown: bool) -> None:
    text = receipt_text(one(loop={"ring_high_water": most, "ring_rows": 8000, "ring_dropped": 0}))
    assert ("ring" in lines(text)) == shown
    assert f"{most} of 8000 rows" in text or not shown


def test_missed_deadlines_are_told_with_their_phases_and_skipped_periods_with_them() -> None:
    phases = {"wait": 2, "decode": 0, "tick": 0, "encode": 0, "write": 1}
    loop: dict[str, Any] = {"deadlines_missed": 3, "missed_by_phase": phases, "skipped_periods": 0}
    assert lines(receipt_text(one(loop=loop)))["deadline"] == "3 missed (wait 2, write 1)"
    text = receipt_text(one(loop=loop | {"skipped_periods": 4}))
    assert "deadline 3 missed (wait 2, write 1)\n         4 sample periods skipped" in text
    text = receipt_text(one(loop=loop | {"deadlines_missed": 0, "skipped_periods": 4}))
    assert lines(text)["deadline"].startswith("4 sample periods skipped")
    for nothing in ({}, {"deadlines_missed": 0, "skipped_periods": 0, "missed_by_phase": phases}):
        assert "deadline" not in lines(receipt_text(one(loop=nothing)))


def test_the_host_s_fitness_is_told_with_what_is_worst() -> None:
    fit = {"verdict": "fit", "profile": "fit", "poor": [], "unfit": []}
    assert lines(receipt_text(one(), None, {"fitness": fit}))["host"] == "fit for real time"
    worst = {"verdict": "unfit", "profile": "unfit", "unfit": ["no real-time priority"], "poor": ["swap on", "turbo"]}
    said = "unfit for real time, accepted by the operator: no real-time priority; 2 more, see `ionto-rt doctor`"
    assert lines(receipt_text(one(), None, {"fitness": worst | {"accepted": True}}))["host"] == said
    for host in (None, {}, {"fitness": None}, {"fitness": {}}):
        assert "host" not in lines(receipt_text(one(), None, host))


def test_the_host_is_read_from_the_record(tmp_path: Path) -> None:
    folder = make_session(tmp_path, host={"cpu": "a"})
    receipt = folder.finish(one())
    assert host_of(receipt) == {"cpu": "a"}
    assert host_of({"record": str(tmp_path)}) is None
    assert host_of({"record": str(finished_channels(tmp_path, ticked(2)))}) is None


def test_sentences_are_broken_and_commands_are_not() -> None:
    receipt = ticked(2).receipt(record="sessions/" + "x" * 60, duration_s=4.29)
    receipt["channels"][0]["reason"] = "a sentence that is longer than the terminal is wide, as reasons often are"
    for line in receipt_text(receipt, 40).splitlines():
        assert len(line) <= 40 or "sessions/" in line
