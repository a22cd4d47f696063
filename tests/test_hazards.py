"""The hazard table: whole, consistent with itself and with IEC 60601-1-8, and the one that the code goes by."""

import importlib
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest

import hazard_table as hazard_table_page
import ionto_rt.hazards
from ionto_rt.alarms import SoftAlarm, alarm_for_pause, alarm_for_trip
from ionto_rt.codes import EndReason, Phase, Trip
from ionto_rt.hazards import START, Hazard, HazardAlarm, HazardTable, hazard_table, hazards

ROOT = Path(__file__).parent.parent
ROWS = list(hazards().values())
IDS = [row.id for row in ROWS]
ALARMS: list[tuple[str, HazardAlarm]] = [
    *(("", alarm) for alarm in hazard_table().others),
    *((row.id, alarm) for row in ROWS for alarm in row.alarms),
]

PRIORITY = {
    "irreversible": {"immediate": "high", "prompt": "high", "delayed": "medium"},
    "reversible": {"immediate": "high", "prompt": "medium", "delayed": "low"},
    "minor": {"immediate": "medium", "prompt": "low", "delayed": "low"},
    "none": {"immediate": "none", "prompt": "none", "delayed": "none"},
}
"""Of IEC 60601-1-8: harm if nobody responds, against its onset."""
RESPONSES = {"S0", "S1", "S2", "S3", "refuse", "ignore", "limit", "log", "remind"}


def test_there_is_a_row_for_every_hazard_in_order() -> None:
    assert [f"H{number:02d}" for number in range(1, 58)] == IDS


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_is_whole(row: Hazard) -> None:
    for text in (row.title, row.cause, row.detection, row.test):
        assert text.isprintable() and len(text) > 8
    assert row.response in RESPONSES
    assert set(row.phases) <= {START, *(phase.name for phase in Phase)} and row.phases
    assert not set(row.phases) & {"COMPLETE", "ABORTED", "FAULTED"}, "no current flows there"
    for name, value in row.thresholds.items():
        assert re.search(r"_(s|a|v|ohm|c|hz|ppm|ratio|codes|count|deg_c|pause|stop)$", name), f"{name} has no unit"
        assert math.isfinite(value) and value > 0


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_has_a_limit_in_time_or_a_bound_unless_nothing_flows_by_it(row: Hazard) -> None:
    if row.limit_ratio is not None:
        assert row.limit_s is None and row.limit_unfit_s is None
        assert row.limit_ratio >= 1.0 and row.ratio_of
    elif row.limit_s is None:
        assert row.limit_unfit_s is None
        assert row.response in ("refuse", "ignore")
    else:
        assert row.limit_unfit_s is not None
        assert 0.0 < row.limit_s <= row.limit_unfit_s


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_an_unfit_host_adds_no_more_than_a_lease_and_the_orchestrators_rounds(row: Hazard) -> None:
    """When the host is later than the lease, the device has let go."""
    if row.limit_s is not None and row.limit_unfit_s is not None:
        assert row.limit_unfit_s <= row.limit_s + 0.2


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_rows_priority_is_that_of_iec_60601_1_8(row: Hazard) -> None:
    assert row.priority == PRIORITY[row.harm][row.onset]


@pytest.mark.parametrize(("hazard", "alarm"), ALARMS, ids=lambda value: getattr(value, "key", value))
def test_an_alarms_priority_is_that_of_iec_60601_1_8(hazard: str, alarm: HazardAlarm) -> None:
    if hazard:
        assert alarm.priority == PRIORITY[alarm.harm][alarm.onset]
    assert alarm.response in {*RESPONSES, "none"}


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_names_functions_that_exist(row: Hazard) -> None:
    for place in row.where:
        path, name = place.split(":")
        source = (ROOT / path).read_text()
        assert re.search(rf"^ *(cdef .*\b|def ){name}\(", source, re.M), place


def test_every_trip_end_and_soft_alarm_has_one_row() -> None:
    named = [(alarm.source, alarm.name) for _, alarm in ALARMS]
    assert len(set(named)) == len(named)
    members = {source: {name for its, name in named if its == source} for source in ("trip", "pause", "end", "soft")}
    assert members["trip"] == {trip.name for trip in Trip} - {"NONE"}
    assert members["pause"] < members["trip"]
    assert members["end"] == {reason.name for reason in EndReason} - {"NONE"}
    assert members["soft"] == {soft.name for soft in SoftAlarm}


@pytest.mark.parametrize("trip", [trip for trip in Trip if trip != Trip.NONE])
def test_a_trip_belongs_to_the_row_of_its_number(trip: Trip) -> None:
    assert alarm_for_trip(trip).hazard == f"H{trip:02d}"


@pytest.mark.parametrize("alarm", [alarm for _, alarm in ALARMS if alarm.source == "pause"], ids=lambda a: a.key)
def test_the_text_of_a_pause_says_whether_it_ends_by_itself(alarm: HazardAlarm) -> None:
    assert alarm.response == "S2" and alarm.title.startswith("Paused: ")
    assert ("resume by hand" in alarm.advice) == alarm.latched
    assert ("goes on by itself" in alarm.advice) != alarm.latched
    assert alarm_for_pause(Trip[alarm.name]).latched == alarm.latched


READ_BY = ("hazards", "safety", "configuration", "alarms", "alarm_system", "record", "channel_run", "plan",
           "journal", "session")
"""Modules that take numbers from the table; loaded anew on another one, in this order."""


@contextmanager
def code_on(table: HazardTable) -> Iterator[dict[str, ModuleType]]:
    """The modules as they are when the package holds this table."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith("ionto_rt")}
    names = [f"ionto_rt.{name}" for name in READ_BY]
    try:
        for name in names[1:]:
            sys.modules.pop(name, None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ionto_rt.hazards, "hazard_table", lambda: table)
            yield {name: importlib.import_module(name) for name in names[1:]}
    finally:
        for name in [name for name in sys.modules if name.startswith("ionto_rt")]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name in names:
            parent, _, child = name.rpartition(".")
            if name in kept:
                setattr(sys.modules[parent], child, kept[name])


def in_force(modules: dict[str, ModuleType]) -> dict[str, Any]:
    """Every number that a session of these modules goes by, from configurations of both kinds of device and host."""
    from ionto_rt.catalogue import Catalogue
    from support import TOKEN, hello
    from treatments import treatment

    safety, configuration, plan = (modules[f"ionto_rt.{name}"] for name in ("safety", "configuration", "plan"))
    of = treatment('[[steps]]\ncurrent = "2 mA"\ndose = "2 mA*min"\nramp = "10 s"')
    found: dict[str, Any] = {}
    for front_end, profile, pacing in itertools.product((0, 1), ("FIT", "UNFIT"), (1, 2)):
        device = hello(front_end)
        limits = safety.resolve_limits(of, Catalogue.load(), device.capabilities)
        compiled = plan.compile_plan(of, limits, device.tick_s)
        config = configuration.controller_config(
            device, limits, compiled, getattr(configuration, profile), TOKEN, pacing=pacing
        )
        for stage, part in config.items():
            for name, value in (part if isinstance(part, Mapping) else {"": part}).items():
                found[f"{front_end} {profile} {pacing} {stage}.{name}"] = value
        for name, value in configuration.device_limits(device, limits, TOKEN).items():
            found[f"{front_end} device {name}"] = value
        small = safety.resolve_limits(of, Catalogue.load(), device.capabilities, safety.OperatorLimits(dose_c=0.03))
        for row in limits.as_rows() + small.as_rows():
            found[f"{front_end} limit {row}"] = ""
    for name in ("alarms", "alarm_system", "record", "journal", "session"):
        for constant, value in vars(modules[f"ionto_rt.{name}"]).items():
            if constant.isupper() and isinstance(value, (int, float)):
                found[f"{name}.{constant}"] = value
    return found


def with_threshold(row: Hazard, name: str, value: float) -> HazardTable:
    table = hazard_table()
    changed = replace(row, thresholds=MappingProxyType({**row.thresholds, name: value}))
    return HazardTable(MappingProxyType({**table.hazards, row.id: changed}), table.others)


THRESHOLDS = [(row, name) for row in ROWS for name in row.thresholds]


@pytest.fixture(scope="module")
def as_it_is() -> dict[str, Any]:
    with code_on(hazard_table()) as modules:
        return in_force(modules)


@pytest.mark.parametrize(("row", "name"), THRESHOLDS, ids=[f"{row.id}-{name}" for row, name in THRESHOLDS])
def test_a_threshold_is_the_one_in_force(row: Hazard, name: str, as_it_is: dict[str, Any]) -> None:
    """A table with another number makes another configuration: so no number of it stands somewhere else."""
    for factor in (16.0, 1.0 / 16.0):
        with code_on(with_threshold(row, name, factor * row.thresholds[name])) as modules:
            if in_force(modules) != as_it_is:
                return
    pytest.fail("neither a larger nor a smaller number changes anything")


def test_the_page_shows_the_table_as_it_is() -> None:
    page = (ROOT / "docs/safety.md").read_text()
    shown = page.partition(hazard_table_page.BEGIN)[2].partition(hazard_table_page.END)[0]
    assert shown.splitlines() == hazard_table_page.page_lines(), "make safety"


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The tests that pytest finds in the folder, without their parameters."""
    command = [sys.executable, "-m", "pytest", "tests/hazards", "--collect-only", "-q", "-p", "no:cacheprovider"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line.partition("[")[0] for line in listing.splitlines() if "::" in line}


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_is_injected_by_a_test_that_is_named_after_it(row: Hazard, collected: set[str]) -> None:
    assert row.test in collected
    assert row.test.rpartition("::")[2].startswith(f"test_{row.id.lower()}_")


def test_times_of_the_injecting_tests_are_set_beside_their_limits(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    said = {"hazard": "H05", "through": "device", "real_time": False, "unit": "s", "limit": 0.005}

    def case(value: float, inside: str = "") -> str:
        text = json.dumps(said | {"value": value}).replace('"', "&quot;")
        return f'<testcase><properties><property name="response" value="{text}"/></properties>{inside}</testcase>'

    def line(*cases: str) -> str:
        report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        lines, whole = hazard_table_page.times_lines(report)
        assert not whole, "the other rows were not measured"
        return next(line for line in lines if line.startswith("H05"))

    assert re.search(r"virtual +5 ms +4.5 ms +2 +medium +yes +pass$", line(case(0.004), case(0.0045)))
    assert line(case(0.0051)).endswith("FAIL")
    assert line(case(0.004, "<failure/>")).endswith("FAIL")
    assert "not measured" in line()
