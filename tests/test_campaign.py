"""The campaign: its quick slice holds, it repeats to the bit, and it finds and shrinks what is planted."""

import json
from collections import Counter
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from ionto_rt.campaign import (
    CHUNK,
    COLUMNS,
    Act,
    Draw,
    Script,
    Tally,
    explain,
    focus_of,
    hits,
    possible_cells,
    reproduce,
    run,
    run_chunk,
    scenario,
    script,
    session_cells,
    shrink,
    simulator,
)
from ionto_rt.cli.campaign import campaign_command
from ionto_rt.codes import OperatorCommand, Phase, Trip
from ionto_rt.core.campaign import ACT_NAMES
from ionto_rt.core.virtual_device import FAULT_KINDS
from ionto_rt.errors import RefusedError
from ionto_rt.hazards import START, hazards
from ionto_rt.session import Session
from ionto_rt.testing.entries import ENTRIES, run_some, simulated, text
from ionto_rt.testing.whole import run_whole
from ionto_rt.treatment import Treatment

QUICK_SEED = 1
QUICK_SESSIONS = 1500


def test_in_the_quick_slice_every_invariant_holds() -> None:
    tally = run(QUICK_SEED, sessions=QUICK_SESSIONS)
    print(tally.table())
    failures = [f"{reproduce(QUICK_SEED, number)}: {violation}" for number, violation in tally.violations]
    assert not failures
    assert tally.sessions == QUICK_SESSIONS
    assert tally.ticks > 5000 * QUICK_SESSIONS


COUNTED = ("H16", "H24", "H25", "H28", "H30", "H56")
"""Rows whose limit is a number of ticks or microseconds, and what a person says: at the limit, and a step beside it."""


@pytest.mark.parametrize("hazard", COUNTED)
def test_in_the_quick_slice_counted_rows_are_exact(hazard: str) -> None:
    numbers = (number for number in count(QUICK_SESSIONS) if (focus := focus_of(number)) and focus[0].hazard == hazard)
    for number in islice(numbers, 80):
        violation = script(QUICK_SEED, number).run(simulator())["violation"]
        assert violation is None, f"{reproduce(QUICK_SEED, number)}: {violation}"


@pytest.mark.parametrize("first", [0, 8, 16, 24])
def test_in_the_quick_slice_whole_sessions_leave_what_is_true(first: int, tmp_path: Path) -> None:
    """Receipt, journal, log, record and replay of sessions with everything in them."""
    for number in range(first, first + 8):
        made = run_whole(QUICK_SEED, number, tmp_path / str(number))
        assert not made.problems, made.words


@pytest.mark.parametrize("first_visit", [15, 40, 60])
def test_in_the_quick_slice_an_orchestrator_that_always_fails_ramps_down_and_trips_nothing(
    first_visit: int, tmp_path: Path
) -> None:
    """For longer than the guard waits for a heartbeat: what fails must not look like what hangs."""
    visits = 0

    def watch(running: Session) -> None:
        nonlocal visits
        visits += 1
        if visits >= first_visit:
            raise ValueError("the screen is broken")

    treatment = Treatment.parse(text(current="3.8 mA", ramp="5 s", length='time = "9 s"'))
    session = Session(treatment, simulated(), out_dir=tmp_path, speed="max", watcher=watch)
    receipt = session.run()
    assert receipt["outcome"] == "faulted" and "the screen is broken" in receipt["reason"]
    assert receipt["trips"] == []
    assert session.loop.status == "ended"
    assert not session.device.port.sim.device.relay_closed  # type: ignore[attr-defined]


def test_its_result_does_not_depend_on_the_number_of_processes() -> None:
    alone, shared = run(7, sessions=2 * CHUNK + 5), run(7, sessions=2 * CHUNK + 5, jobs=2)
    assert alone == shared
    assert alone.sessions == 2 * CHUNK + 5


def test_a_session_repeats_to_the_bit_and_seeds_differ() -> None:
    once, again = (script(3, 40).run(simulator()) for _ in range(2))
    assert repr(once) == repr(again)
    assert script(4, 40).run(simulator())["digest"] != once["digest"]


def test_until_so_many_ticks_means_whole_chunks_in_order() -> None:
    whole = run(7, ticks=1)
    assert whole.sessions == CHUNK
    assert whole == run_chunk(7, 0, CHUNK)


def planted(number: int) -> Script:
    """A session with everything that can go wrong but for the end of it, and one code added to the host's ledger."""
    quiet = Script(0, number, scenario(number), 1)
    acts = [
        Act("operator", int(OperatorCommand.TRIM), Phase.TREATMENT, 0, 40, 0, 1e-5),
        Act("host-sleeps", 0, Phase.RAMP_UP, 0, 20, 0, 2.0),
        Act("device", FAULT_KINDS.index("leak"), Phase.TREATMENT, 0, 30, 0, 1e6),
        Act("ledger", 0, Phase.TREATMENT, 0, 60),
        Act("heartbeat-stops", 0, Phase.TREATMENT, 0, 10, 500),
        Act("operator", int(OperatorCommand.PAUSE), Phase.TREATMENT, 0, 90),
    ]
    return replace(quiet, acts=acts)


def test_a_planted_defect_is_found_in_its_tick_and_shrunk_to_itself() -> None:
    made = planted(1)
    result = made.run(simulator())
    violation = result["violation"]
    assert violation is not None
    assert violation["invariant"] == "ledger"
    assert abs(violation["found"] - violation["allowed"]) == 65536
    assert violation["tick"] - result["fired"][3][0] <= 1
    small = shrink(made, "ledger")
    assert small.acts == [Act("ledger", 0, Phase.TREATMENT, 0, 0)]
    told = explain(made, violation)
    assert reproduce(made.seed, made.number) in told.splitlines()[0]
    assert "smallest script found (1 of 6 acts):" in told


def test_a_session_without_faults_delivers_and_says_nothing() -> None:
    for number in range(4):
        made = Script(0, number, scenario(number), number)
        result = made.run(simulator())
        assert result["violation"] is None
        assert not [seen for seen in result["seen"] if seen[0] in ("trip", "pause")]


@pytest.mark.parametrize("name", [name for name in ACT_NAMES if name != "ledger"])
def test_every_kind_of_act_is_drawn(name: str) -> None:
    assert any(act.kind == name for number in range(2000) for act in script(1, number).acts)


def test_cells_are_hazards_of_the_table_in_phases_in_which_they_can_occur() -> None:
    for hazard, phases in session_cells().items():
        assert {phase.name for phase in phases} <= set(hazards()[hazard].phases), hazard
    assert set(possible_cells()) == set(hazards())


def test_every_cell_of_the_hazard_table_is_served() -> None:
    served = {(hazard, int(phase)) for hazard, phases in session_cells().items() for phase in phases}
    entries = {(hazard, COLUMNS[place]) for hazard, place in ENTRIES}
    assert served | entries == {(hazard, place) for hazard, places in possible_cells().items() for place in places}
    assert not served & entries


@pytest.mark.parametrize(("hazard", "place"), [cell for cell in ENTRIES if cell != ("H46", "PAUSE")])
def test_in_the_quick_slice_each_entry_is_refused_or_ends_as_it_must(hazard: str, place: str) -> None:
    assert run_some(QUICK_SEED, hazard, place, 0, 3 if place == START else 1) == [""] * (3 if place == START else 1)


def test_a_hit_needs_the_injection_and_its_sight() -> None:
    made = next(
        made
        for made in (script(1, number) for number in range(1000))
        if made.focus is not None and made.focus[0].hazard == "H56"
    )
    result = made.run(simulator())
    assert hits(made, result) == [("H56", made.focus[1] if made.focus else None)]
    blind = {**result, "seen": [seen for seen in result["seen"] if seen[:2] != ("trip", int(Trip.OPERATOR_STOP))]}
    assert hits(made, blind) == []  # type: ignore[arg-type]
    assert hits(made, {**result, "fired": [(-1, -1)]}) == []


def test_numbers_drawn_are_the_same_everywhere() -> None:
    draw = Draw(1, 2)
    assert [draw.word() >> 32 for _ in range(3)] == [Draw(1, 2).word() >> 32, *[d for d in _after(Draw(1, 2), 2)]]
    assert Draw(1, 2).word() != Draw(2, 1).word()


def _after(draw: Draw, count: int) -> list[int]:
    draw.word()
    return [draw.word() >> 32 for _ in range(count)]


def test_the_table_has_every_hazard_and_phase() -> None:
    tally = Tally(hits=Counter({("H01", int(Phase.PAUSE)): 17}))
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in tally.table().splitlines())
    assert head[1:-1] == ["start", "self test", "contact check", "ramp up", "treatment", "pause", "ramp down"]
    assert [line[0] for line in lines] == list(hazards())
    assert lines[0][1:-1] == [".", ".", ".", "0", "0", "17", "0"]
    assert all(line[-1] for line in lines if line[0] in session_cells())


def test_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "campaign.json"
    result = CliRunner().invoke(
        campaign_command, ["--sessions", "20", "--jobs", "1", "--out", str(out)], standalone_mode=False
    )
    assert result.return_value == 0, result.output
    assert "every invariant held" in result.output
    written = json.loads(out.read_text())
    assert written["sessions"] == 20
    assert written["digest"] in result.output
    *_, summary = result.output.splitlines()
    assert summary == out.with_suffix(".md").read_text().splitlines()[0]
    assert "seed 1: 20 sessions" in summary and summary.endswith(" 0 violations")
    one = CliRunner().invoke(campaign_command, ["--session", "5"], standalone_mode=False)
    assert one.return_value == 0
    assert "every invariant held" in one.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "/proc/c.json"], '--out = "/proc": cannot be written'),
        (["--out", "c.md"], "is the name of the table beside it"),
        (["--whole", "1", "--keep", "/proc/kept"], "cannot be written"),
        (["--session", "5", "--ticks", "9"], "--ticks: cannot be given with --session"),
        (["--session", "5", "--sessions", "9"], "--sessions"),
        (["--session", "5", "--whole", "0"], "--whole"),
        (["--session", "5", "--entries", "9"], "--entries"),
        (["--session", "5", "--out", "c.json"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_refused_before_the_first_session(
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr("ionto_rt.campaign.run", lambda *_, **__: pytest.fail("a campaign was begun"))
    result = CliRunner().invoke(campaign_command, words, standalone_mode=False)
    assert isinstance(result.exception, RefusedError)
    assert said in str(result.exception)


def test_the_counts_go_into_a_folder_that_is_made(tmp_path: Path) -> None:
    out = tmp_path / "new" / "c.json"
    words = ["--sessions", "2", "--jobs", "1", "--out", str(out)]
    assert CliRunner().invoke(campaign_command, words, standalone_mode=False).return_value == 0
    assert out.exists() and out.with_suffix(".md").exists()
