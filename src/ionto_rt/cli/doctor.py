"""`doctor`: is this host fit for real time, what each shortcoming costs, and what to change."""

import json
import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from ionto_rt.cli import DONE, SHORT, say
from ionto_rt.errors import RefusedError

if TYPE_CHECKING:
    from ionto_rt.fitness import Fitness, Item

SCHEMES = ("virtual", "sim", "serial")
_COLORS = {"unfit": "red", "poor": "yellow", "unknown": "cyan", "good": "green"}
_STATE_WIDTH = 9
_LABEL_WIDTH = 8


@click.command("doctor", short_help="Check whether this host is fit for real time.")
@click.option("--device", "uri", metavar="URI", help="Check the port of this device too, as serial:/dev/ttyUSB0.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def doctor_command(uri: str | None, as_json: bool) -> int:
    """Check whether this host can keep the deadlines of the fit profile: worst first, what each shortcoming costs, and
    the command or the file that changes it.

    Changes nothing. With --device a serial port is opened, and asked for its low-latency mode as `run` would; nothing
    is sent to the device. Without it, a session of 1000 samples a second on one channel is assumed.

    Exit code 0 if the host is fit, 1 if not. Poor ones do not lower the verdict.
    """
    from ionto_rt.configuration import FIT, UNFIT

    fitness = _examine(uri)
    profile = FIT if fitness.profile == "fit" else UNFIT
    deadlines = {"late_pause_ms": profile.late_pause_us / 1000.0, "late_stop_ms": profile.late_stop_us / 1000.0}
    if as_json:
        say(json.dumps(fitness.as_dict() | {"deadlines": deadlines}, ensure_ascii=False))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        say(_table(fitness, deadlines, width))
    return DONE if fitness.verdict == "fit" else SHORT


def _examine(uri: str | None) -> "Fitness":
    from ionto_rt.device import SerialBytes, serial_path, split_uri
    from ionto_rt.fitness import examine_this_host

    if uri is None:
        return examine_this_host()
    scheme = split_uri(uri)[0]
    if scheme != "serial":
        if scheme not in SCHEMES:
            known = "virtual:, sim:, serial:/dev/ttyACM0"
            raise RefusedError("no such kind of device", key="--device", value=uri, remedy=f"write one of {known}")
        return examine_this_host()
    path = serial_path(uri)
    port = SerialBytes(path)
    try:
        return examine_this_host(serial=path, low_latency=port.low_latency)
    finally:
        port.close()


def _table(fitness: "Fitness", deadlines: dict[str, Any], width: int | None) -> str:
    """A line for each check, and for each that is unfit or poor what it costs and what to change.

    Sentences are broken at `width` columns, if given; commands never, so that they can be copied.
    """
    title_width = max(len(item.title) for item in fitness.items) + 2
    lines = []
    for item in fitness.worst_first:
        lines += _lines(item, title_width, width)
    verdict, name = fitness.verdict, fitness.profile
    late = f"pause after {deadlines['late_pause_ms']:g} ms without data, ramp down after {deadlines['late_stop_ms']:g}"
    end = _broken(f"{verdict}: a session in real time gets the deadlines of the {name} profile ({late})", width, 0)
    return "\n".join([*lines, "", _styled(verdict, end)])


def _lines(item: "Item", title_width: int, width: int | None) -> list[str]:
    indent = _STATE_WIDTH + title_width
    state = "unfit" if item.lowers else item.state
    head = _broken(f"{state:<{_STATE_WIDTH}}{item.title:<{title_width}}{item.found}", width, indent)
    lines = [_styled(state, head)]
    if item.lowers or item.state == "poor":
        for name, text in (("costs", item.costs), ("change", item.remedy)):
            label = f"{'':{_STATE_WIDTH}}{name:<{_LABEL_WIDTH}}"
            lines.append(_broken(f"{label}{text}", width, len(label)))
    return lines


def _broken(text: str, width: int | None, indent: int) -> str:
    if width is None:
        return text
    kept = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\xa0"), text)
    lines = textwrap.wrap(
        kept, max(width, 60), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\xa0", " ")


def _styled(state: str, text: str) -> str:
    color = _COLORS["good" if state == "fit" else state]
    return click.style(state, fg=color, bold=True) + text[len(state) :]
