"""The hazard table: what can go wrong, how it is noticed, what follows within which time, and what a person is told.

`hazards.toml` beside this module is the one source: the guard's thresholds, the alarms, docs/safety.md and `make
hazards` are derived from it. It comes with the package and is read as it is; tests/test_hazards.py says what a table
must be, and holds it to the code.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

START = "start"
"""In `Hazard.phases`: before any current has flowed."""


@dataclass(frozen=True, slots=True)
class HazardAlarm:
    """One alarm. `source` is trip, pause, end or soft, and `name` the member of the enum that it belongs to.

    `harm`, `onset`, `priority`, `latched` and `response` are the hazard's where the alarm states none.
    """

    source: str
    name: str
    key: str
    title: str
    advice: str
    harm: str
    onset: str
    priority: str
    latched: bool
    response: str


@dataclass(frozen=True, slots=True)
class Hazard:
    """One row; the head of the table says what each key is. Times in s, thresholds in SI units.

    `limit_s` and `limit_unfit_s` are None where nothing has to be fast: the hazard is refused before any current, or
    what flows has a bound (`limit_ratio` of `ratio_of`) instead.
    """

    id: str
    title: str
    cause: str
    detection: str
    response: str
    limit_s: float | None
    limit_unfit_s: float | None
    limit_ratio: float | None
    ratio_of: str
    harm: str
    onset: str
    priority: str
    latched: bool
    where: tuple[str, ...]
    test: str
    phases: tuple[str, ...]
    hardware: str
    thresholds: Mapping[str, float]
    alarms: tuple[HazardAlarm, ...]


@dataclass(frozen=True, slots=True)
class HazardTable:
    """All rows by their id, in its order, and the alarms that belong to none of them."""

    hazards: Mapping[str, Hazard]
    others: tuple[HazardAlarm, ...]


def _alarm(given: dict[str, Any], row: dict[str, Any]) -> HazardAlarm:
    (source,) = (source for source in ("trip", "pause", "end", "soft") if source in given)
    row = {**row, "response": "S2"} if source == "pause" else row
    own = {key: given.get(key, row.get(key, "")) for key in ("harm", "onset", "priority", "latched", "response")}
    return HazardAlarm(source, given[source], given["key"], given["title"], given["advice"], **own)


def _hazard(name: str, given: dict[str, Any]) -> Hazard:
    row = dict(given)
    alarms = tuple(_alarm(alarm, row) for alarm in row.pop("alarms", ()))
    return Hazard(
        id=name,
        alarms=alarms,
        thresholds=MappingProxyType(row.pop("thresholds", {})),
        where=tuple(row.pop("where")),
        phases=tuple(row.pop("phases")),
        limit_s=row.pop("limit_s", None),
        limit_unfit_s=row.pop("limit_unfit_s", None),
        limit_ratio=row.pop("limit_ratio", None),
        ratio_of=row.pop("ratio_of", ""),
        **row,
    )


def parse_table(text: str) -> HazardTable:
    """A table from the text of its file. KeyError, TypeError or ValueError if it is none."""
    given = tomllib.loads(text)
    if given.pop("format") != 1:
        raise ValueError("a hazard table of another format")
    others = tuple(_alarm(alarm, {}) for alarm in given.pop("alarms", ()))
    return HazardTable(MappingProxyType({name: _hazard(name, row) for name, row in given.items()}), others)


@cache
def hazard_table() -> HazardTable:
    """The table of this version."""
    return parse_table((resources.files("ionto_rt") / "hazards.toml").read_text("utf-8"))


def hazards() -> Mapping[str, Hazard]:
    """All rows of this version by their id."""
    return hazard_table().hazards


def threshold(hazard: str, name: str) -> float:
    """One number in force, in SI units: `threshold("H05", "open_s")`. KeyError if the row has no such number."""
    return hazards()[hazard].thresholds[name]
