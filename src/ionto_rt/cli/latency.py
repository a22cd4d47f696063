"""`latency`: wake-up jitter and round trip, beside the floor of this host."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ionto_rt.cli import DONE, SHORT, complain, say
from ionto_rt.errors import RefusedError

if TYPE_CHECKING:
    from ionto_rt.latency import LatencyResult

_JSON, _PICTURE, _LOG = "latency.json", "latency.png", "latency.hlog"
_DURATION = "10 s"


@click.command("latency", short_help="Measure wake-up jitter and round trip on this host.")
@click.option("--device", "uri", default="virtual:", show_default=True, metavar="URI", help="Whose answers to time.")
@click.option("--rate", "rate_hz", type=float, metavar="HZ", help="Wake-ups and questions a second; the device's own.")
@click.option("--duration", metavar="TIME", help=f"Of each of the three series; {_DURATION} if not given.")
@click.option("--priority", metavar="N|none", help="SCHED_FIFO priority of the measuring thread, 1 to 99; 40.")
@click.option("--cpu", type=int, metavar="N", help="Processor that the measuring thread stays on; any.")
@click.option("--out", metavar="DIR", help=f"Write {_JSON}, {_PICTURE} and {_LOG} there.")
@click.option("--session", metavar="FOLDER", help=f"Measure nothing; show the {_LOG} in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def latency_command(
    ctx: click.Context,
    uri: str,
    rate_hz: float | None,
    duration: str | None,
    priority: str | None,
    cpu: int | None,
    out: str | None,
    session: str | None,
    as_json: bool,
) -> int:
    """Measure how late this host wakes up, as cyclictest does, and how long the device takes to answer, beside a bare
    exchange over a pseudo-terminal: percentiles, raw and corrected for coordinated omission, and the worst of each.

    No current flows: the device is not armed. Ctrl-C ends it early and shows what has been measured (exit code 1).
    """
    if session is not None:
        others = [
            f"--{parameter.replace('uri', 'device').replace('rate_hz', 'rate')}"
            for parameter in ("uri", "rate_hz", "duration", "priority", "cpu", "out")
            if ctx.get_parameter_source(parameter) is not click.core.ParameterSource.DEFAULT
        ]
        if others:
            raise RefusedError("measures nothing", key="--session", remedy=f"leave out {', '.join(others)}")
        return _show_session(session, as_json)
    return _measure(uri, rate_hz, duration, priority, cpu, out, as_json)


def _measure(
    uri: str,
    rate_hz: float | None,
    duration: str | None,
    priority: str | None,
    cpu: int | None,
    out: str | None,
    as_json: bool,
) -> int:
    from ionto_rt.latency import LEAST_RATE_HZ, MOST_RATE_HZ, Measurement, refuse_without_bytes

    if rate_hz is not None and not LEAST_RATE_HZ <= rate_hz <= MOST_RATE_HZ:
        remedy = f"give {LEAST_RATE_HZ:g} to {MOST_RATE_HZ:g}"
        raise RefusedError("not a rate in Hz that can be measured", key="--rate", value=rate_hz, remedy=remedy)
    duration_s = _duration_s(duration)
    wanted_priority = _priority(priority)
    allowed = os.sched_getaffinity(0)
    if cpu is not None and cpu not in allowed:
        remedy = f"give one of {', '.join(map(str, sorted(allowed)))}"
        raise RefusedError("no processor of this process", key="--cpu", value=cpu, remedy=remedy)
    refuse_without_bytes(uri)
    folder = None if out is None else _folder(out)

    from ionto_rt.device import open_device

    with open_device(uri) as device:
        measurement = Measurement(
            device, rate_hz=rate_hz, duration_s=duration_s, priority=wanted_priority, cpu=cpu
        )
        if not as_json:
            say(f"measuring for {3.0 * duration_s:g} s; Ctrl-C ends it early")
        result = measurement.run()
    if as_json:
        say(json.dumps(result.as_dict(), ensure_ascii=False, allow_nan=False))
    else:
        from ionto_rt.latency_report import text_of

        say(text_of(result, shutil.get_terminal_size((100, 24)).columns))
    if folder is not None:
        _write(result, folder, as_json)
    if result.ended in ("silent", "lost"):
        what = "answers no more" if result.ended == "silent" else f"is gone ({result.error})"
        complain(f"{uri}: the device {what}; see that it is connected and speaks docs/wire-protocol.md")
    return DONE if result.ended == "done" else SHORT


def _duration_s(text: str | None) -> float:
    from ionto_rt.latency import MOST_DURATION_S
    from ionto_rt.units import Kind, UnitError, parse_quantity

    try:
        duration_s = parse_quantity(_DURATION if text is None else text, Kind.TIME)
    except UnitError as error:
        raise RefusedError(str(error), key="--duration", value=text) from None
    if not 0.0 < duration_s <= MOST_DURATION_S:
        raise RefusedError("not a time to measure for", key="--duration", value=text, remedy="give up to 24 h")
    return duration_s


def _priority(text: str | None) -> int | None:
    from ionto_rt.host import LOOP_PRIORITY

    if text is None:
        return LOOP_PRIORITY
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 99:
        raise RefusedError("not a priority", key="--priority", value=text, remedy="give 1 to 99, or none")
    return int(text)


def _folder(out: str) -> Path:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(result: "LatencyResult", folder: Path, quiet: bool) -> None:
    from ionto_rt.hdr_log import write_log
    from ionto_rt.latency_report import draw

    text = json.dumps(result.as_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    (folder / _JSON).write_text(text + "\n", encoding="utf-8")
    write_log(folder / _LOG, result.histograms, result.started_utc, result.duration_s)
    written = [_JSON, _LOG]
    try:
        draw(result, folder / _PICTURE)
        written.insert(1, _PICTURE)
    except ImportError:
        complain("no picture: matplotlib is not installed; pip install 'ionto-rt[report]'")
    if not quiet:
        say(f"\nwritten   {', '.join(str(folder / name) for name in written)}")


def _show_session(session: str, as_json: bool) -> int:
    from ionto_rt.cli.arguments import session_folder
    from ionto_rt.hdr_log import read_log
    from ionto_rt.latency import series_of_log
    from ionto_rt.latency_report import text_of_series

    path = session_folder(session) / _LOG
    if not path.is_file():
        remedy = "name the folder of a session, or one that `latency --out` has written"
        raise RefusedError(f"there is no {_LOG} in it", key="--session", value=session, remedy=remedy)
    log = read_log(path)
    series = series_of_log(log)
    if as_json:
        say(json.dumps({one.name: one.as_dict() for one in series}, ensure_ascii=False, allow_nan=False))
        return DONE
    started = "" if log.started_utc is None else f", from {log.started_utc.isoformat(' ', 'seconds')[:19]} UTC"
    say(f"log      {path}: {log.duration_s:g} s{started}\n")
    say("\n".join(text_of_series(series, shutil.get_terminal_size((100, 24)).columns)))
    return DONE
