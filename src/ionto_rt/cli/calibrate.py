"""`calibrate`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ionto_rt.cli import DONE, say
from ionto_rt.errors import EndedShortError, RefusedError

if TYPE_CHECKING:
    from ionto_rt.calibrate import EstimatorView, RangeMeasurement
    from ionto_rt.device import Hello
    from ionto_rt.dummy_fit import StaircaseFit
    from ionto_rt.dummy_load import DummyLoad

SUBSTEPS = 40
SEEN = 0.2
"""An estimate less certain than this share of its value is not worth a line."""


@click.command("calibrate", short_help="Measure a device on a load that is known.")
@click.option("--device", "uri", default="virtual:", metavar="URI", show_default=True, help="As for `run`.")
@click.option("--resistor", metavar="OHM", help='The known load is a resistor, as "1 kohm".')
@click.option(
    "--load",
    "network",
    metavar="RS,RP,C",
    help='... or a network, as "600 ohm, 2 kohm, 240 nF": RS and RP || C in series.',
)
@click.option(
    "--tolerance",
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="How well each part of the load is known, 0.01 to 10.",
)
@click.option("--out", "out_dir", default="sessions", metavar="DIR", show_default=True, help="Folder of sessions.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def calibrate_command(
    uri: str, resistor: str | None, network: str | None, tolerance: float, out_dir: str, as_json: bool
) -> int:
    """Measure a device on a load that is known, with at most 100 uA, and keep what was found beside the sessions.

    What is measured, for each range that is fine enough: by how much the voltage is read later than the current, the
    gain of voltage per current, of the second current reading and of the output, and what the readings show of zero.
    `ionto-rt run` goes by it on that device. A network tells skew and series resistance apart no better than its parts
    are known; a resistor at 5 kHz or more does. A virtual device carries the stated load, unless its URI says another.

    Exit code 1, and no file: the load is not the stated one, or a gain is off by more than 1 %.
    """
    from ionto_rt.calibrate import check_load, level_for, measure_range
    from ionto_rt.calibration_file import calibration_in_force, write_calibration
    from ionto_rt.cli.arguments import check_folder
    from ionto_rt.device import open_device, split_uri

    load = _stated(resistor, network)
    if not 0.01 <= tolerance <= 10.0:
        raise RefusedError("must be 0.01 to 10 percent", key="--tolerance", value=tolerance)
    check_load(load, "--resistor" if load.resistor else "--load")
    if not out_dir:
        raise RefusedError("is empty", key="--out", value=out_dir, remedy="give a folder")
    check_folder("--out", Path(out_dir))
    virtual = split_uri(uri)[0] in ("virtual", "sim")
    # The staircase shows how coarsely a virtual device solves its circuit; the default is made for slower things.
    defaults: dict[str, Any] = {"load": str(load), "substeps": SUBSTEPS} if virtual else {}
    with open_device(uri, defaults=defaults) as device:
        usable = [k for k in range(len(device.hello.ranges)) if level_for(device, k, load) > 0.0]
        if not usable:
            remedy = "use a load of less resistance"
            raise RefusedError("too high for every range", key="--resistor or --load", value=str(load), remedy=remedy)
        hello = device.hello
        # A file that cannot be read could not be added to: that is said before current flows.
        calibration_in_force(Path(out_dir), hello, usable[0])
        found = [measure_range(device, number, load, tolerance / 100.0) for number in usable]
        try:
            path = write_calibration(Path(out_dir), hello, {one.range_index: one.values for one in found})
        except RefusedError as error:
            raise EndedShortError(f"measured, and not kept: {error}") from None
    if as_json:
        say(json.dumps(_facts(hello, load, path, found), ensure_ascii=False))
    else:
        say(_table(hello, load, tolerance, path, found))
    return DONE


def _stated(resistor: str | None, network: str | None) -> "DummyLoad":
    from ionto_rt.dummy_load import DummyLoad
    from ionto_rt.units import UnitError

    if (resistor is None) == (network is None):
        raise RefusedError("give one of --resistor and --load", remedy="one load at a time: what is connected")
    key, text = ("--resistor", resistor) if network is None else ("--load", network)
    try:
        load = DummyLoad.parse(str(text))
    except UnitError as error:
        raise RefusedError(str(error), key=key, value=text) from None
    if load.resistor != (key == "--resistor"):
        other = "--load" if key == "--resistor" else "--resistor"
        raise RefusedError("is the other kind of load", key=key, value=text, remedy=f"give it as {other}")
    return load


def _facts(hello: "Hello", load: "DummyLoad", path: Path, found: "list[RangeMeasurement]") -> dict[str, Any]:
    """The measurement as plain values in SI units."""
    return {
        "device": hello.name,
        "firmware": hello.firmware_version,
        "load": str(load),
        "file": str(path),
        "ranges": [
            {"range": one.range_index, "full_scale_a": one.full_scale_a, "level_a": one.level_a}
            | asdict(one.values)
            | {"free_fit": asdict(one.free), "estimator": asdict(one.estimator)}
            for one in found
        ],
    }


def _parts(what: str, seen: "StaircaseFit | EstimatorView", resistor: bool) -> str:
    """What the load was seen to be made of."""
    from ionto_rt.units import Kind, format_quantity, format_resistance

    ohms = [("Rs", seen.series_ohm, seen.series_sigma_ohm), ("Rp", seen.parallel_ohm, seen.parallel_sigma_ohm)]
    parts = [f"{name} {format_resistance(value)} ± {format_resistance(sigma, 2)}" for name, value, sigma in ohms]
    value, sigma = (
        format_quantity(number, Kind.CAPACITANCE, digits=digits)
        for number, digits in ((seen.capacitance_f, 4), (seen.capacitance_sigma_f, 2))
    )
    return f"{what}: " + ", ".join(parts[:1] if resistor else [*parts, f"C {value} ± {sigma}"])


def _table(hello: "Hello", load: "DummyLoad", tolerance: float, path: Path, found: "list[RangeMeasurement]") -> str:
    from ionto_rt.units import format_current

    def both(value: float, sigma: float, digits: int = 2) -> str:
        return f"{value:+.{digits}f} ± {sigma:.{digits}f}"

    rows = [["range", "skew µs", "V per I %", "2nd current %", "output %", "zero of I µA", "zero of V mV"]]
    for one in found:
        v = one.values
        rows.append(
            [
                format_current(one.full_scale_a),
                both(1e6 * v.skew_s, 1e6 * v.skew_sigma_s),
                both(100 * v.gain, 100 * v.gain_sigma, 3),
                both(100 * v.redundant_gain, 100 * v.redundant_gain_sigma, 3),
                both(100 * v.output_gain, 100 * v.output_gain_sigma, 3),
                both(1e6 * v.current_offset_a, 1e6 * v.current_offset_sigma_a, 3),
                both(1e3 * v.voltage_offset_v, 1e3 * v.voltage_offset_sigma_v, 3),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"device  {hello.name}, firmware {hello.firmware_version}",
        f"load    {load}, each part within {tolerance:g} %",
        "",
        *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows),
        "",
        "each with one standard deviation; gains are off by this much",
    ]
    for one in found:
        what = f"{format_current(one.full_scale_a)}: by the staircase alone"
        lines.append(_parts(what, one.free, load.resistor))
        view = one.estimator
        if not load.resistor and 0.0 < view.series_sigma_ohm < SEEN * view.series_ohm:
            lines.append(_parts("  by the estimator of the tick, told of the skew", view, False))
    lines.append(f"kept in {path}")
    return "\n".join(lines)
