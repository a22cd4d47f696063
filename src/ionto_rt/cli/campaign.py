"""`campaign`: whole sessions under seeded faults on a virtual clock, every invariant checked in every tick."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import ionto_rt
from ionto_rt.cli import DONE, SHORT, say
from ionto_rt.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ionto_rt.campaign import Tally

PLAIN_S = 10.0
"""Between two lines of progress where there is no terminal."""


@click.command("campaign", short_help="Run sessions under seeded faults and check every invariant.")
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=1,
    show_default=True,
    metavar="N",
    help="All faults and noise follow from it.",
)
@click.option("--ticks", type=click.IntRange(1), metavar="N", help="Until so many sample periods have been run.")
@click.option(
    "--sessions", type=click.IntRange(1), metavar="N", help="Until so many sessions; 1000 if nothing is said."
)
@click.option("--session", "number", type=click.IntRange(0), metavar="K", help="Run session K alone, and tell of it.")
@click.option("--jobs", type=click.IntRange(1, 256), metavar="N", help="Processes; one for each processor by default.")
@click.option(
    "--whole",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Also N whole sessions with record, journal and disk faults.",
)
@click.option(
    "--entries",
    type=click.IntRange(0),
    metavar="N",
    help="Also N each of the hazards that no tick can show: refused starts, clock, disk; 100 in a billion ticks.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the folders of the whole sessions there.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Write counts and coverage there, and the table beside it as FILE.md.",
)
def campaign_command(
    seed: int,
    ticks: int | None,
    sessions: int | None,
    number: int | None,
    jobs: int | None,
    out: Path | None,
    whole: int,
    entries: int | None,
    keep: Path | None,
) -> int:
    """Run whole sessions on a virtual clock with seeded faults in time, wire, device, skin, operator and memory, and
    check every invariant in every tick.

    A session is its number and the seed: the same line gives the same result on any number of processors. A violation
    ends the campaign, and is shrunk to the smallest script of faults that still shows it. Exit code 0 if every
    invariant held, 1 if not, or if in a billion ticks a hazard was hit less than 100 times in a phase.
    """
    from ionto_rt.campaign import (
        BILLION,
        HITS_LEAST,
        core_digest,
        explain,
        possible_cells,
        run,
        script,
        session_cells,
    )

    if number is not None:
        _refuse_beside_one("ticks", "sessions", "jobs", "whole", "entries", "keep", "out")
        return _one(seed, number)
    _check_places(out, keep if whole else None)
    jobs = jobs or len(os.sched_getaffinity(0))
    if ticks is None and sessions is None:
        sessions = 1000
    began = time.monotonic()
    with _progress(ticks, sessions) as tell:
        tally = run(seed, ticks=ticks, sessions=sessions, jobs=jobs, tell=tell)
    took_s = time.monotonic() - began
    long = ticks is not None and ticks >= BILLION
    cells: Mapping[str, Sequence[int]] = session_cells()
    wrong = 0
    each = entries if entries is not None else HITS_LEAST if long else 0
    if each and not tally.violations:
        from ionto_rt.testing.entries import run_entries

        found, said = run_entries(seed, each, jobs)
        tally.hits.update(found)
        cells, wrong = possible_cells(), len(said)
        for line in said:
            say(line)
    if whole and not tally.violations:
        wrong += _whole(seed, whole, keep)
    hits, hazard, phase = tally.least(cells)
    rare = long and hits < HITS_LEAST
    say(tally.table())
    say(f"fewest hits: {hits}, of {hazard} in {phase}")
    summary = (
        f"ionto_rt {ionto_rt.__version__}, core {core_digest()}, seed {seed}: {tally.sessions:,} sessions,"
        f" {tally.ticks:,} ticks, {tally.rows:,} rows in {took_s:.1f} s ({tally.ticks / took_s:,.0f} ticks/s,"
        f" {jobs} jobs), digest {tally.digest:016x}, {each} of each entry, {whole} whole sessions,"
        f" {len(tally.violations) + wrong} violations"
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(_as_json(seed, tally, took_s, jobs), indent=1) + "\n")
        out.with_suffix(".md").write_text(f"{summary}\n\n{tally.table()}\n")
    if tally.violations:
        failed, violation = tally.violations[0]
        say(explain(script(seed, failed), violation))
    elif rare:
        say(f"{hazard} in {phase} was hit {hits} times: at least {HITS_LEAST} of each are due in {BILLION:,} ticks")
    elif not wrong:
        say("every invariant held")
    say(summary)
    return SHORT if tally.violations or wrong or rare else DONE


def _refuse_beside_one(*names: str) -> None:
    """One session has no use for these."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise RefusedError("cannot be given with --session", key=f"--{name}", remedy="leave one of the two out")


def _check_places(out: Path | None, keep: Path | None) -> None:
    """See that the results can be written, for half an hour of work goes before."""
    from ionto_rt.cli.arguments import check_file, check_folder

    if out is not None:
        if out.suffix == ".md":
            remedy = "end it in .json"
            raise RefusedError("is the name of the table beside it", key="--out", value=str(out), remedy=remedy)
        check_file("--out", out)
        check_file("--out", out.with_suffix(".md"))
    if keep is not None:
        check_folder("--keep", keep)
        if (keep / _folder_name(0)).exists():
            remedy = "give another folder, or move them away"
            raise RefusedError("holds whole sessions already", key="--keep", value=str(keep), remedy=remedy)


def _folder_name(number: int) -> str:
    return f"{number:05}"


def _whole(seed: int, count: int, keep: Path | None) -> int:
    """Whole sessions, one after the other: how many were wrong, each of which is told."""
    import tempfile

    from ionto_rt.testing.whole import run_whole

    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            folder = (keep or Path(scratch)) / _folder_name(number)
            folder.mkdir(parents=True)
            made = run_whole(seed, number, folder)
            if made.problems:
                wrong += 1
                say(made.words)
    say(f"{count} whole sessions, {wrong} wrong")
    return wrong


def _as_json(seed: int, tally: "Tally", took_s: float, jobs: int) -> dict[str, Any]:
    from ionto_rt.campaign import COLUMNS, core_digest, possible_cells, reproduce

    names = {place: name for name, place in COLUMNS.items()}

    return {
        "version": ionto_rt.__version__,
        "core": core_digest(),
        "seed": seed,
        "sessions": tally.sessions,
        "ticks": tally.ticks,
        "rows": tally.rows,
        "digest": f"{tally.digest:016x}",
        "seconds": round(took_s, 3),
        "jobs": jobs,
        "hits": {
            hazard: {names[place]: tally.hits[hazard, place] for place in places}
            for hazard, places in possible_cells().items()
        },
        "violations": [{"line": reproduce(seed, number), **violation} for number, violation in tally.violations],
    }


def _one(seed: int, number: int) -> int:
    """One session, told in words."""
    from ionto_rt.campaign import explain, script, simulator, told

    made = script(seed, number)
    result = made.run(simulator())
    say(told(made, result))
    if result["violation"] is None:
        say("every invariant held")
        return DONE
    say(explain(made, result["violation"]))
    return SHORT


@contextmanager
def _progress(ticks: int | None, sessions: int | None) -> Iterator["Callable[[Tally], object]"]:
    """A bar on a terminal, a line now and then elsewhere."""
    total = ticks if ticks is not None else sessions

    def done(tally: "Tally") -> int:
        return tally.ticks if ticks is not None else tally.sessions

    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(tally: "Tally") -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_S:
                last = time.monotonic()
                click.echo(f"{tally.sessions:,} sessions, {tally.ticks:,} ticks", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[what]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, what="")
        yield lambda tally: bar.update(
            task, completed=done(tally), what=f"{tally.sessions:,} sessions, {tally.ticks:,} ticks"
        )
