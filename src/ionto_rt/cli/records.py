"""`sessions`, `report`, `replay`, `blackbox`, `recover` and `verify`: what can be done with a session's record."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ionto_rt.cli import DONE, SHORT, complain
from ionto_rt.errors import RefusedError

if TYPE_CHECKING:
    from ionto_rt.black_box import BlackBox, Message
    from ionto_rt.record import Record

AROUND_TICKS = 20
"""Of a black box these before and after the trip are printed, if not all are asked for."""


@click.command("sessions", short_help="List the sessions of a folder.")
@click.argument("folder", metavar="[DIR]", default="sessions")
@click.option("--rebuild", is_flag=True, help="Make the journal anew from the sessions' folders; the old one is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def sessions_command(folder: str, rebuild: bool, as_json: bool) -> int:
    """List the sessions in DIR (`sessions` if not given), oldest first. Doses are those of all channels together."""
    from ionto_rt.cli.receipt import dose_text
    from ionto_rt.journal import rebuild as rebuild_journal
    from ionto_rt.record import list_sessions

    place = Path(folder)
    if not place.is_dir():
        remedy = "name the folder that was given to `run --out`"
        raise RefusedError("no such folder", key=folder, remedy=remedy)
    if rebuild:
        made = rebuild_journal(place)
        kept = f"; the old journal is kept as {made.kept_as}" if made.kept_as is not None else ""
        click.echo(f"journal made anew from {made.sessions} sessions{kept}", err=True)
        for problem in made.unreadable:
            click.echo(f"not readable: {problem}", err=True)
    rows = list_sessions(place)
    if as_json:
        click.echo(json.dumps([asdict(row) | {"folder": str(row.folder)} for row in rows], ensure_ascii=False))
        return DONE
    if not rows:
        click.echo(f"no sessions in {folder}")
        return DONE
    several = any(row.channels > 1 for row in rows)
    table = [["session", "outcome", "mA·min", "of", "trips", *(["channels"] if several else []), "subject", "site"]]
    for row in rows:
        doses = [
            dose_text(dose) if dose is not None else ""
            for dose in (row.dose_delivered_mamin, row.dose_prescribed_mamin)
        ]
        channels = [str(row.channels)] if several else []
        table.append([row.session_id, row.outcome, *doses, str(row.trips or ""), *channels, row.subject, row.site])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = [
            text.rjust(width) if 2 <= column < len(table[0]) - 2 else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
    return DONE


@click.command("report", short_help="Write a session's report.")
@click.argument("session", metavar="SESSION")
@click.option("--out", "out_dir", metavar="DIR", help="Folder for the files, instead of the session's.")
def report_command(session: str, out_dir: str | None) -> int:
    """Write the report of SESSION (a folder, or `latest`, the newest in ./sessions): one HTML page that needs nothing
    else, and a picture.

    The record is verified first: one that is not as it was written is reported with that at the head.
    """
    from ionto_rt.cli.arguments import session_folder
    from ionto_rt.report import report

    folder = session_folder(session)
    written = report(folder, None if out_dir is None else Path(out_dir))
    for path in (written.html, written.png):
        click.echo(path)
    if written.problems:
        more = f", {len(written.problems) - 1} more" if len(written.problems) > 1 else ""
        complain(
            f"{folder}: the record does not verify ({written.problems[0]}{more}), and the report says so;"
            " see `ionto-rt verify`"
        )
    return DONE


@click.command("replay", short_help="Run a session's inputs again and compare every bit.")
@click.argument("session", metavar="SESSION")
def replay_command(session: str) -> int:
    """Run the recorded inputs of SESSION (a folder, or `latest`, the newest in ./sessions) through the tick again and
    compare every bit.

    Exit code 0 if all results are the same; 1 if not, with the first tick and term that differ.
    """
    from ionto_rt.cli.arguments import session_folder
    from ionto_rt.replay import replay

    result = replay(session_folder(session))
    click.echo(result.text)
    return DONE if result.identical else SHORT


@click.command("recover", short_help="After a crash: restore the record and settle the dose.")
@click.argument("session", metavar="SESSION")
@click.option(
    "--device",
    "uri",
    metavar="URI",
    help="Device to ask for its count; by default the one of the session, if it can be opened.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as one JSON object.")
def recover_command(session: str, uri: str | None, as_json: bool) -> int:
    """Write the receipt of SESSION (a folder, or `latest`, the newest in ./sessions) whose host died, and close its
    entry in the journal.

    The dose is the device's own count where it can be asked, and otherwise a bound that says so. Nothing that was
    written is changed; doing it again changes nothing.
    """
    from ionto_rt.cli.arguments import session_folder
    from ionto_rt.cli.receipt import dose_text
    from ionto_rt.cli.recovery import ask_device
    from ionto_rt.record import Record
    from ionto_rt.recover import recover
    from ionto_rt.verify import verify

    folder = session_folder(session)
    record = Record.open(folder)
    count, notes = (None, []) if record.receipt is not None or record.running else ask_device(record, uri)
    result = recover(folder, count)
    changed = [] if result.created else verify(folder).changes
    code = SHORT if changed else DONE
    if as_json:
        click.echo(json.dumps(result.receipt, ensure_ascii=False))
        return code
    receipt = result.receipt
    click.echo(
        "recovered" if result.created else f"nothing to recover: the session has its receipt ({receipt['outcome']})"
    )
    basis = f" ({receipt['dose_basis']})" if receipt.get("dose_basis") else ""
    doses = (dose_text(receipt[name]) for name in ("dose_delivered_mamin", "dose_prescribed_mamin"))
    click.echo(f"dose      {' of '.join(doses)} mA·min{basis}")
    for number, part in enumerate(receipt.get("channels") or []):
        of = " of ".join(dose_text(part[name]) for name in ("dose_delivered_mamin", "dose_prescribed_mamin"))
        known = f" ({part['dose_basis']})" if part.get("dose_basis") else ""
        click.echo(f"          {number} {part['name']}: {of} mA·min{known}")
    click.echo(f"record    {folder}, {receipt.get('telemetry_rows', 0)} rows")
    for note in [*notes, *(result.notes if result.created else [])]:
        click.echo(f"note: {note}")
    if changed:
        click.echo(f"note: this is not what was written ({changed[0]}): `ionto-rt verify {folder}` has it all")
    return code


@click.command("verify", short_help="Check a session's record against itself.")
@click.argument("session", metavar="SESSION")
def verify_command(session: str) -> int:
    """Check the record of SESSION (a folder, or `latest`, the newest in ./sessions): chain of events, hashes, and the
    receipt's numbers.

    Exit code 0 if nothing is wrong, 1 if something is, or if the session has no receipt yet.
    """
    from ionto_rt.cli.arguments import session_folder
    from ionto_rt.verify import verify

    result = verify(session_folder(session))
    changed, unended = result.changes, result.not_ended
    click.echo(f"checked: {', '.join(what for what in result.checked if what != 'receipt' or unended is None)}")
    for problem in result.problems:
        click.echo(f"wrong: {problem}" if problem != unended else problem)
    if unended is None:
        click.echo("the record is not as it was written" if changed else "the record is whole")
    else:
        click.echo("what there is, is not as it was written" if changed else "what there is, is as it was written")
    return DONE if result.ok else SHORT


@click.command("blackbox", short_help="What went over the port before a trip, and after it.")
@click.argument("session", metavar="SESSION")
@click.option("--all", "whole", is_flag=True, help="Every frame, and not only those around the trip.")
@click.option("--json", "as_json", is_flag=True, help="Print each frame as one JSON object.")
def blackbox_command(session: str, whole: bool, as_json: bool) -> int:
    """Print the black boxes of SESSION (a folder, or `latest`, the newest in ./sessions): frames both ways, from 2 s
    before a trip until the output was off.

    Exit code 0 if there is one, 1 if not, or if one is missing.
    """
    from ionto_rt.black_box import black_boxes
    from ionto_rt.cli.arguments import session_folder
    from ionto_rt.record import Record

    record = Record.open(session_folder(session))
    boxes = black_boxes(record.path)
    missing = _missing_boxes(record, [box.path.name for box in boxes])
    for box in boxes:
        if as_json:
            for message in box.messages():
                click.echo(json.dumps(_frame_facts(box, message)))
            continue
        facts = box.facts
        trips = ", ".join(facts["trips"]) or "no trip"
        tick = f" at tick {facts['trip_tick']}" if facts["trip_tick"] is not None else ""
        left = f", {facts['left_out']} left out" if facts["left_out"] else ""
        click.echo(f"{box.path.name}: {trips}{tick}; {facts['entries']} reads and writes{left}")
        for message in box.messages():
            line = _frame_line(box, message, whole)
            if line:
                click.echo(line)
    for line in missing:
        complain(line)
    if not boxes and not missing:
        ended = record.receipt is not None
        click.echo(f"no black box: {'nothing tripped' if ended else 'the session runs, or its host died'}")
    return DONE if boxes and not missing else SHORT


def _missing_boxes(record: "Record", present: list[str]) -> list[str]:
    """Black boxes that the events vouch for, or the receipt lets expect, and that are not there."""
    from ionto_rt.black_box import BLACK_BOX

    kept = [event.fields for event in record.events().events if event.kind == BLACK_BOX]
    gone = [
        f"{record.path / str(fields.get('file'))}: the black box of {', '.join(map(str, fields.get('trips') or []))}"
        " is missing; restore it from a copy"
        for fields in kept
        if fields.get("file") not in present
    ]
    trips = (record.receipt or {}).get("trips")
    if trips and not kept and not present:
        names = ", ".join(map(str, trips))
        gone.append(f"{record.path}: the receipt names {names}, and there is no black box; restore it from a copy")
    return gone


def _frame_facts(box: "BlackBox", message: "Message") -> dict[str, Any]:
    entry = message.entry
    return {
        "file": box.path.name,
        "tick": entry.tick,
        "host_s": entry.host_s,
        "to_device": entry.to_device,
        "outcome": entry.outcome,
        "what": message.what,
        "channels": list(message.channels),
        "bytes": (message.payload or entry.data).hex(),
    }


def _frame_line(box: "BlackBox", message: "Message", whole: bool) -> str:
    """One line for people; empty for what is far from the trip."""
    entry, trip = message.entry, box.facts["trip_tick"]
    last = box.entries[-1].tick if trip is None else trip
    ticks = entry.tick - last
    if not whole and abs(ticks) > AROUND_TICKS:
        return ""
    host = f"  host {entry.host_s:.6f} s" if entry.host_s is not None else ""
    failed = f"  failed ({os.strerror(-entry.outcome)})" if entry.outcome < 0 else ""
    parts = []
    for channel in message.channels:
        if message.what == "sample":
            parts.append(
                "index {index}  device {device_time_us} us  applied {applied_code} (of {applied_index})  "
                "current {current_code}  redundant {redundant_code}  voltage {voltage_code}  "
                "status {status:#06x}".format_map(channel)
            )
        else:
            parts.append("answers {index}  code {code}  lease {lease_ticks}  flags {flags}".format_map(channel))
    way = "->" if entry.to_device else "<-"
    return f"{ticks:+6d}  {way} {message.what:8}  {' | '.join(parts)}{host}{failed}".rstrip()
