"""The hazard table for people: the page docs/safety.md, and the times that the injecting tests have measured.

    python tests/hazard_table.py page docs/safety.md     write the table's part of the page (make safety)
    python tests/hazard_table.py times REPORT.xml...     print limits beside worst times (make hazards)

REPORT.xml is pytest's --junitxml of tests/hazards, of each clock one. `times` exits with 1 if a row has no passing
measurement.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ionto_rt.hazards import START, Hazard, hazards

BEGIN, END = "<!-- hazards -->\n", "<!-- end of hazards -->\n"
ARMED = ("SELF_TEST", "CONTACT_CHECK", "RAMP_UP", "TREATMENT", "PAUSE", "RAMP_DOWN")
RESPONSES = {
    "S0": "off",
    "S1": "ramp down",
    "S2": "pause",
    "S3": "derate",
    "refuse": "refused",
    "ignore": "no effect",
    "limit": "limited",
    "log": "told",
    "remind": "reminded",
}


def time_text(seconds: float) -> str:
    return f"{seconds * 1e3:g} ms" if seconds < 1.0 else f"{seconds:g} s"


def limit_text(row: Hazard) -> str:
    """Both limits of a row, or its bound."""
    if row.limit_ratio is not None:
        return f"at most {100.0 * row.limit_ratio:g} % of {row.ratio_of}"
    if row.limit_s is None or row.limit_unfit_s is None:
        return "before any current" if row.response == "refuse" else "always"
    return f"{time_text(row.limit_s)}; {time_text(row.limit_unfit_s)}"


def phases_text(row: Hazard) -> str:
    armed = [phase for phase in row.phases if phase != START]
    names = "all with the device armed" if tuple(armed) == ARMED else ", ".join(armed).lower().replace("_", " ")
    before = ["before the start"] if START in row.phases else []
    return "; ".join([*before, *filter(None, [names])])


def cell(text: str) -> str:
    return text.replace("|", "&#124;")


def page_lines() -> list[str]:
    """The part of docs/safety.md between its marks."""
    rows = hazards().values()
    lines = ["| | hazard | response | within | alarm | hardware |", "|---|---|---|---|---|:-:|"]
    for row in rows:
        alarm = "none" if row.priority == "none" else row.priority + (", latched" if row.latched else "")
        anchor = f"[{row.id}](#{row.id.lower()})"
        response = f"{RESPONSES[row.response]}" + (f" ({row.response})" if row.response[0] == "S" else "")
        hardware = "yes" if row.hardware else ""
        lines.append(f"| {anchor} | {cell(row.title)} | {response} | {limit_text(row)} | {alarm} | {hardware} |")
    for row in rows:
        lines += ["", f"### {row.id}", "", f"**{row.title}**: {row.cause}.", ""]
        lines.append(f"- noticed by: {row.detection} ({', '.join(f'`{place}`' for place in row.where)})")
        lines.append(f"- can come up: {phases_text(row)}")
        if row.thresholds:
            numbers = ", ".join(f"`{name}` {value:g}" for name, value in row.thresholds.items())
            lines.append(f"- numbers: {numbers}")
        if row.hardware:
            lines.append(f"- **below the host**: {row.hardware}")
        if row.harm != "none":
            lines.append(f"- harm if nobody responds: {row.harm}, {row.onset}")
        for alarm in row.alarms:
            urgency = "information" if alarm.priority == "none" else alarm.priority
            latched = ", latched" if alarm.latched else ""
            lines.append(f"- `{alarm.key}` ({urgency}{latched}): {alarm.title}: {alarm.advice}")
        lines.append(f"- injected by `{row.test}`")
    return lines


def write_page(page: Path) -> None:
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(before + BEGIN + "\n".join(page_lines()) + "\n" + END + after)


@dataclass
class Measured:
    """What the tests of one row have found, on one clock. `worst` of the value that its limit is for, in `unit`."""

    unit: str = "none"
    worst: float = 0.0
    limit: float = 0.0
    through: set[str] = field(default_factory=set)
    count: int = 0
    failed: int = 0


def measurements(reports: Iterable[Path]) -> dict[tuple[str, bool], Measured]:
    """By hazard and whether in real time."""
    found: dict[tuple[str, bool], Measured] = {}
    for case in (case for report in reports for case in ElementTree.parse(report).getroot().iter("testcase")):
        failed = case.find("failure") is not None or case.find("error") is not None
        for item in case.iter("property"):
            if item.get("name") != "response":
                continue
            said: dict[str, Any] = json.loads(str(item.get("value")))
            of = found.setdefault((said["hazard"], said["real_time"]), Measured())
            of.count += 1
            of.failed += failed
            of.through.add(said["through"])
            # A row that is refused in one way may have a time in another: the time is what is shown.
            timed = said["unit"] in ("s", "ratio")
            worse = timed and (of.unit not in ("s", "ratio") or said["value"] >= of.worst)
            if worse or of.unit == "none":
                of.unit, of.worst, of.limit = said["unit"], said["value"], said["limit"]
    return found


def value_text(unit: str, value: float) -> str:
    if unit == "s":
        return time_text(round(value, 6))
    return f"{100.0 * value:.1f} %" if unit == "ratio" else {"A": "no current", "none": "no effect"}[unit]


def times_lines(*reports: Path) -> tuple[list[str], bool]:
    """The table of `make hazards`, and whether every row has been measured and holds."""
    found = measurements(reports)
    table = [("", "hazard", "through", "clock", "limit", "worst", "times", "alarm", "latched", "")]
    whole = True
    for row in hazards().values():
        clocks = [real for real in (False, True) if (row.id, real) in found]
        if not clocks:
            whole = False
            table.append((row.id, row.title, "", "", limit_text(row), "not measured", "0", row.priority, "", "FAIL"))
        for real in clocks:
            of = found[row.id, real]
            holds = not of.failed and (of.unit not in ("s", "ratio") or of.worst <= of.limit + 5e-7)
            whole = whole and holds
            limit = value_text(of.unit, of.limit) if of.unit in ("s", "ratio") else limit_text(row)
            table.append(
                (
                    row.id if real == clocks[0] else "",
                    row.title if real == clocks[0] else "",
                    ", ".join(sorted(of.through)),
                    "real time" if real else "virtual",
                    limit,
                    value_text(of.unit, of.worst),
                    str(of.count),
                    row.priority,
                    "yes" if row.latched else "no",
                    "pass" if holds else "FAIL",
                )
            )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table
    ], whole


def main(words: Iterable[str]) -> int:
    match list(words):
        case ["page", page]:
            write_page(Path(page))
            return 0
        case ["times", *reports] if reports:
            lines, whole = times_lines(*map(Path, reports))
            print("\n".join(lines))
            return 0 if whole else 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
