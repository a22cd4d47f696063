"""`ionto-rt calibrate`: what the virtual device is told to be is found on a known load, and a session goes by it."""

import json
import math
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import treatment as short_treatment
from ionto_rt.calibrate import MOST_A, check_load, level_for, measure_range
from ionto_rt.calibration_file import (
    RangeCalibration,
    calibration_in_force,
    calibration_path,
    write_calibration,
)
from ionto_rt.cli import call
from ionto_rt.device import open_device
from ionto_rt.dummy_fit import NAMES, Staircase, expected, fit_staircase
from ionto_rt.dummy_load import DummyLoad
from ionto_rt.errors import EndedShortError, RefusedError
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from support import hello

NETWORK = "600 ohm, 2 kohm, 240 nF"
DAC_GAIN = 0.015
"""The output converter's error of the virtual device, which its hello does not state."""


def measured(uri: str, load: str, *, tolerance: float = 0.003, number: int = 2, **options: Any) -> Any:
    """The measurement of one range of a virtual device that carries this load."""
    with open_device(uri, defaults={"load": load, **options}) as device:
        return measure_range(device, number, DummyLoad.parse(load), tolerance)


@pytest.mark.parametrize("skew_us", [0.0, 4.0, 10.0, 40.0])
@pytest.mark.parametrize(
    "load, rate_hz, front_end",
    [
        ("1k", 5000, "current"),
        ("600,2k,240n", 1000, "current"),
        ("600,2k,240n", 5000, "current"),
        ("500,100k,30n", 5000, "current"),
        ("600,2k,240n", 5000, "voltage"),
    ],
)
def test_the_skew_is_found_within_its_stated_uncertainty(
    load: str, rate_hz: int, front_end: str, skew_us: float
) -> None:
    uri = f"sim:?rate={rate_hz}&front-end={front_end}&skew-us={skew_us}&seed=3"
    values = measured(uri, load, number=1, substeps=20).values
    assert abs(values.skew_s - 1e-6 * skew_us) < 4.0 * values.skew_sigma_s
    assert values.skew_sigma_s < 2e-6 + 0.1e-6 * skew_us


def test_the_output_stage_is_found_as_far_as_the_rate_shows_it() -> None:
    values = measured("sim:?rate=5000", "1k").values
    assert values.output_time_s == pytest.approx(1.0 / (2.0 * math.pi * 2000.0), abs=4 * values.output_time_sigma_s)
    assert values.output_gain == pytest.approx(DAC_GAIN, abs=5.0 * values.output_gain_sigma + 2e-4)


def test_the_parts_of_the_load_are_seen_without_being_told() -> None:
    free = measured("sim:?rate=5000&skew-us=10", "600,2k,240n", substeps=20).free
    assert free.series_ohm == pytest.approx(600.0, abs=4 * free.series_sigma_ohm)
    assert free.parallel_ohm == pytest.approx(2e3, abs=4 * free.parallel_sigma_ohm)
    assert free.capacitance_f == pytest.approx(240e-9, abs=4 * free.capacitance_sigma_f)
    assert free.series_sigma_ohm < 6.0


@pytest.mark.parametrize("front_end", ["current", "voltage"])
@pytest.mark.parametrize("skew_us", [0.0, 10.0, 40.0])
def test_the_estimator_that_is_told_of_the_skew_sees_the_load(front_end: str, skew_us: float) -> None:
    """Untold it has Rs too high by skew over C, and by what of a step the voltage reading has seen already."""
    seen = measured(
        f"sim:?rate=5000&skew-us={skew_us}&front-end={front_end}&seed=2", "600,2k,240n", number=1, substeps=20
    ).estimator
    assert seen.series_ohm == pytest.approx(600.0, abs=4 * seen.series_sigma_ohm)
    assert seen.parallel_ohm == pytest.approx(2e3, abs=4 * seen.parallel_sigma_ohm)
    assert seen.capacitance_f == pytest.approx(240e-9, abs=4 * seen.capacitance_sigma_f)
    assert 0.0 < seen.series_sigma_ohm < 30.0


def test_the_gains_are_those_of_the_converters() -> None:
    """At most 0.02 % each, the residual error of the virtual device's converters."""
    values = measured("sim:?rate=5000&seed=5", "5k", number=1).values
    assert abs(values.gain) < 4e-4 + 4.0 * math.sqrt(max(0.0, values.gain_sigma**2 - 0.003**2))
    assert abs(values.redundant_gain) < 4e-4 + 4.0 * values.redundant_gain_sigma
    assert abs(values.current_offset_a) < 0.02 * 1.6e-8 + 4.0 * values.current_offset_sigma_a


def test_no_more_than_100_ua_ever_flow(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    measured("sim:?rate=5000&front-end=voltage", "600,2k,240n", truth=str(truth), substeps=20)
    peaks = np.loadtxt(truth, delimiter=",", skiprows=1, usecols=3)
    assert 0.5 * MOST_A < peaks.max() <= MOST_A


@pytest.mark.parametrize(
    "stated, carried, said",
    [
        ("1k", "2k", "the load has 2... ohm, not 1000 ohm"),
        ("1k", "1.05k", "voltage per current is off by .5...* %, more than 1 %"),
        ("600,2k,240n", "2.6k", "ohm, not|nF, not"),
        ("600,2k,240n", "600,2k,220n", "the capacitor has 2.* nF, not"),
        ("600,2k,240n", "700,1.9k,240n", "the series resistor has 6.* ohm, not"),
        ("2.6k", "600,2k,240n", "does not behave like|ohm, not"),
    ],
)
def test_another_load_than_the_stated_one_is_found(stated: str, carried: str, said: str) -> None:
    with (
        open_device("sim:?rate=5000", defaults={"load": carried}) as device,
        pytest.raises(EndedShortError, match=said),
    ):
        measure_range(device, 1, DummyLoad.parse(stated), 0.01)


@pytest.mark.parametrize("fault", ["open@3", "short@3", "unplug@3"])
def test_what_goes_wrong_on_the_way_ends_it(fault: str) -> None:
    with (
        open_device(f"sim:?fault={fault}", defaults={"load": "600,2k,240n"}) as device,
        pytest.raises(EndedShortError),
    ):
        measure_range(device, 1, DummyLoad.parse("600,2k,240n"), 0.01)


def test_a_range_too_coarse_for_the_load_is_left_out() -> None:
    with open_device("sim:", defaults={"load": "500,100k,30n"}) as device:
        levels = [level_for(device, number, DummyLoad.parse("500,100k,30n")) for number in range(4)]
        assert all(levels[:3]) and levels[3] == 0.0
        with pytest.raises(RefusedError, match="too coarse"):
            measure_range(device, 3, DummyLoad.parse("500,100k,30n"), 0.01)


@pytest.mark.parametrize("load", ["100", "1k,100k,1u", "1k,1M,1n"])
def test_loads_that_cannot_serve_are_refused(load: str) -> None:
    with pytest.raises(RefusedError):
        check_load(DummyLoad.parse(load), "--load")


def test_the_fit_finds_what_made_the_readings() -> None:
    """Readings without noise, from the model itself, on either front-end."""
    chance = np.random.default_rng(4)
    for ballast_ohm, unit in ((0.0, 1.0), (1500.0, 2100.0)):
        applied = unit * np.repeat(chance.uniform(2e-5, 8e-5, 300), chance.integers(1, 6, 300))
        truth = dict(zip(NAMES, np.zeros(len(NAMES)), strict=True)) | {
            "skew_s": 7e-6,
            "ln_tau": math.log(60e-6),
            "gain": 1.02,
            "ln_rs": math.log(600.0),
            "ln_rp": math.log(2e3),
            "ln_c": math.log(240e-9),
            "ln_rb": math.log(ballast_ohm or 1.0),
        }
        blank = np.zeros(len(applied))
        given = Staircase(2e-4, ballast_ohm, applied, blank, blank, 1e-9, 1e-6, (0.0, 1e-9), (0.0, 1e-6))
        current, voltage = expected(np.array(list(truth.values())), given, False)
        found = fit_staircase(replace(given, current_a=current, voltage_v=voltage), DummyLoad(606.0, 2e3, 238e-9), 0.02)
        assert found.skew_s == pytest.approx(7e-6, abs=2e-8)
        assert found.output_time_s == pytest.approx(60e-6, rel=1e-3)
        assert (found.series_ohm, found.parallel_ohm) == pytest.approx((600.0, 2e3), rel=1e-3)
        assert found.capacitance_f == pytest.approx(240e-9, rel=1e-3)
        assert found.misfit < 0.01


def values(**changes: Any) -> RangeCalibration:
    found: dict[str, Any] = {name: 1e-6 for name in RangeCalibration.__dataclass_fields__}
    found |= {"measured_utc": "2026-03-01T12:00:00.000000Z", "load": NETWORK, "skew_s": 1e-5}
    return RangeCalibration(**found | changes)


NOW = datetime(2026, 3, 10, tzinfo=UTC)


def test_the_file_gives_back_what_was_written_to_the_bit(tmp_path: Path) -> None:
    known = values(skew_s=math.pi * 1e-6, load='a "load"\\')
    path = write_calibration(tmp_path, hello(), {1: known})
    assert path == calibration_path(tmp_path, hello())
    found = calibration_in_force(tmp_path, hello(), 1, NOW)
    assert found is not None and found.values == known and found.skew_s == known.skew_s and found.warnings == ()
    assert calibration_in_force(tmp_path, hello(), 0, NOW) is None
    assert calibration_in_force(tmp_path, hello(serial="2"), 1, NOW) is None


def test_ranges_that_are_not_measured_again_stay_unless_the_firmware_changed(tmp_path: Path) -> None:
    write_calibration(tmp_path, hello(), {0: values()})
    path = write_calibration(tmp_path, hello(), {1: values()})
    assert set(tomllib.loads(path.read_text())["ranges"]) == {"0", "1"}
    write_calibration(tmp_path, hello(firmware_version=2), {1: values()})
    assert set(tomllib.loads(path.read_text())["ranges"]) == {"1"}


def test_an_old_calibration_is_named_and_one_of_another_firmware_is_not_used(tmp_path: Path) -> None:
    write_calibration(tmp_path, hello(), {0: values()})
    old = calibration_in_force(tmp_path, hello(), 0, NOW + timedelta(days=30))
    assert old is not None and old.skew_s == 1e-5 and "days old" in old.text
    other = calibration_in_force(tmp_path, hello(firmware_version=9), 0, NOW)
    assert other is not None and other.skew_s == 0.0 and "of firmware 1, the device has 9" in other.text


@pytest.mark.parametrize(
    "text", ["", "format = 2", "format = 1\nfirmware = 1\n[ranges.0]\n", "[", "format = 1\nranges = 3"]
)
def test_a_file_that_is_no_calibration_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = calibration_path(tmp_path, hello())
    path.write_text(text)
    with pytest.raises(RefusedError, match="is no calibration"):
        calibration_in_force(tmp_path, hello(), 0)


def command(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = call(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_measures_every_range_keeps_them_and_the_session_goes_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "sessions")
    uri = "sim:?skew-us=10&rate=5000"
    plan = short_treatment(tmp_path)
    code, said, err = command("calibrate", "--device", uri, "--load", NETWORK, "--out", out, "--json", capsys=capsys)
    assert (code, err) == (0, "")
    facts = json.loads(said)
    assert [one["range"] for one in facts["ranges"]] == [1, 2, 3]
    assert all(abs(one["skew_s"] - 1e-5) < 5 * one["skew_sigma_s"] for one in facts["ranges"])

    code, said, _ = command("check", str(plan), "--device", uri, "--out", out, capsys=capsys)
    assert code == 0 and "calibration: calibration-ionto-virtual-virtual-0001.toml" in said
    code, said, _ = command("check", str(plan), "--device", uri, "--out", out, "--json", capsys=capsys)
    in_force = json.loads(said)["calibration"]

    with open_device(uri) as device:
        Session(Treatment.load(plan), device, out_dir=Path(out), speed="max").run()
    (folder,) = [path for path in Path(out).iterdir() if path.is_dir()]
    session = Record.open(folder).session
    (channel,) = session["channels"]
    assert channel["calibration"] == in_force
    assert channel["calibration"]["skew_s"] == facts["ranges"][1]["skew_s"]
    assert replay(folder).identical


def test_without_a_calibration_the_session_says_so(tmp_path: Path) -> None:
    out = tmp_path / "sessions"
    with open_device("sim:") as device:
        Session(Treatment.load(short_treatment(tmp_path)), device, out_dir=out, speed="max").run()
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    assert Record.open(folder).session["channels"][0]["calibration"] is None


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "give one of --resistor and --load"),
        (("--resistor", "1k", "--load", NETWORK), "give one of --resistor and --load"),
        (("--resistor", "0"), "no part of a dummy load"),
        (("--resistor", "1 mA"), "has a unit of current"),
        (("--resistor", "50"), "is taken for a short"),
        (("--load", "1k"), "is the other kind of load"),
        (("--load", "600,2k,240"), "far beyond any capacitance"),
        (("--load", "1k,100k,1u"), "settles too slowly"),
        (("--resistor", "2M"), "is taken for an open lead"),
        (("--resistor", "1k", "--device", "sim:?rate=2"), "sample rate"),
        (("--resistor", "1k", "--tolerance", "0"), "0.01 to 10 percent"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, out, err = command("calibrate", "--device", "sim:", "--out", str(tmp_path), *words, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not list(tmp_path.iterdir())


def test_a_wrong_load_ends_with_1_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(
        "calibrate", "--device", "sim:?load=2k", "--resistor", "1k", "--out", str(tmp_path), capsys=capsys
    )
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "connect the stated one" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["a folder that cannot be written", "a file that is no calibration"])
def test_what_cannot_be_kept_is_said_before_current_flows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    place, truth = Path("/proc/none"), tmp_path / "t.csv"
    if there != "a folder that cannot be written":
        place = tmp_path
        with open_device("sim:") as device:
            calibration_path(place, device.hello).write_text("nonsense")
    uri = f"sim:?truth={truth}"
    code, out, err = command("calibrate", "--device", uri, "--resistor", "1k", "--out", str(place), capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not truth.exists() or truth.read_text().count("\n") <= 1
