"""What `ionto-rt calibrate` found out about a device, kept beside the sessions, one file for each device.

format = 1
model = "ionto-virtual"
serial = "VIRTUAL-0001"
firmware = 65536

[ranges.2]                      number of the range in the device's hello
measured_utc = "2026-11-24T00:40:00Z"
load = "600 ohm, 2 kohm, 240 nF"
tolerance = 0.01                of each part of the load
skew_s = 1.0e-05                ... and one entry for each field of `RangeCalibration`, in SI units
"""

import hashlib
import math
import tomllib
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ionto_rt.device import Hello
from ionto_rt.errors import RefusedError
from ionto_rt.events import utc_text
from ionto_rt.record import slug, write_atomic
from ionto_rt.toml_source import read_source

FORMAT = 1
MOST_AGE = timedelta(days=30)


@dataclass(frozen=True)
class RangeCalibration:
    """One range, as measured. Each `sigma` is one standard deviation of the value before it, the load's tolerance in.

    skew_s is how much later than the currents the voltage is read; gain the voltage per current on the load, over the
    stated resistance, less 1; redundant_gain the second current reading over the first, less 1; output_gain the current
    (or voltage) per commanded one, less 1; the offsets are what a reading shows of zero after its stated offset.
    """

    measured_utc: str
    load: str
    tolerance: float
    skew_s: float
    skew_sigma_s: float
    gain: float
    gain_sigma: float
    redundant_gain: float
    redundant_gain_sigma: float
    output_gain: float
    output_gain_sigma: float
    current_offset_a: float
    current_offset_sigma_a: float
    redundant_offset_a: float
    redundant_offset_sigma_a: float
    voltage_offset_v: float
    voltage_offset_sigma_v: float
    output_time_s: float
    output_time_sigma_s: float


@dataclass(frozen=True)
class CalibrationInForce:
    """The calibration that a session goes by, and what speaks against it. `skew_s` is 0 if it is not to be used."""

    path: Path
    sha256: str
    values: RangeCalibration
    skew_s: float
    warnings: tuple[str, ...]
    expired: str = ""
    """Why it is not to be gone by any more, or empty (H37)."""

    def refuse_expired(self) -> None:
        """RefusedError if it has expired."""
        if self.expired:
            remedy = "run `ionto-rt calibrate` again, or move the file away"
            raise RefusedError(self.expired, file=self.path, key="measured_utc", remedy=remedy)

    def as_record(self) -> dict[str, Any]:
        """For `session.json`."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "skew_s": self.skew_s,
            "values": asdict(self.values),
            "warnings": list(self.warnings),
        }

    @property
    def text(self) -> str:
        """One line for people."""
        said = f"skew {1e6 * self.values.skew_s:.2f} ± {1e6 * self.values.skew_sigma_s:.2f} µs"
        return "; ".join([f"{self.path.name} of {self.values.measured_utc[:10]}, {said}", *self.warnings])


def calibration_path(out_dir: Path, hello: Hello) -> Path:
    """Where the calibration of this device is kept."""
    return out_dir / f"calibration-{slug(hello.name)}.toml"


def write_calibration(out_dir: Path, hello: Hello, ranges: dict[int, RangeCalibration]) -> Path:
    """Keep these ranges; those that the file has of the same firmware stay. RefusedError if it cannot be written."""
    path = calibration_path(out_dir, hello)
    kept: dict[int, RangeCalibration] = {}
    if path.exists():
        firmware, known = _read(path)
        kept = known if firmware == hello.firmware_version else {}
    lines = [
        f"format = {FORMAT}",
        f"model = {_quoted(hello.model)}",
        f"serial = {_quoted(hello.serial)}",
        f"firmware = {hello.firmware_version}",
    ]
    for number, values in sorted((kept | ranges).items()):
        lines += ["", f"[ranges.{number}]"]
        for name, value in asdict(values).items():
            lines.append(f"{name} = {_quoted(value) if isinstance(value, str) else repr(float(value))}")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise RefusedError(f"cannot be written ({error.strerror})", file=path, remedy="give another --out") from None
    return path


def calibration_in_force(
    out_dir: Path, hello: Hello, range_index: int, now: datetime | None = None
) -> CalibrationInForce | None:
    """What the file of this device says of the range; None without a file, or without that range in it.

    A skew measured under another firmware is not used: the order of the readings is the firmware's. RefusedError if the
    file is there and is none.
    """
    path = calibration_path(out_dir, hello)
    if not path.exists():
        return None
    firmware, ranges = _read(path)
    values = ranges.get(range_index)
    if values is None:
        return None
    warnings = []
    if firmware != hello.firmware_version:
        warnings.append(f"of firmware {firmware}, the device has {hello.firmware_version}: the skew is not used")
    age = (now or datetime.now(UTC)) - datetime.fromisoformat(values.measured_utc)
    expired = ""
    if age > MOST_AGE:
        expired = f"{age.days} days old, more than {MOST_AGE.days}"
    elif age < -timedelta(days=1):
        expired = f"is dated after today, by {-age.days} days: the clock of this host has been set, or the file"
    if expired:
        warnings.append(f"{expired}: calibrate again")
    skew_s = values.skew_s if firmware == hello.firmware_version else 0.0
    digest = hashlib.sha256(read_source(path)).hexdigest()
    return CalibrationInForce(path, digest, values, skew_s, tuple(warnings), expired)


def measured_now() -> str:
    """The time for `measured_utc`, as the record writes times."""
    return utc_text()


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read(path: Path) -> tuple[int, dict[int, RangeCalibration]]:
    """Firmware, and the ranges by their number."""
    remedy = "run `ionto-rt calibrate` again, or move the file away"
    try:
        found = tomllib.loads(read_source(path).decode())
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}, not {FORMAT}")
        ranges = {int(number): _range(table) for number, table in found["ranges"].items()}
        return int(found["firmware"]), ranges
    except OSError as error:
        raise RefusedError(f"cannot be read ({error.strerror})", file=path, remedy=remedy) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError(f"is no calibration ({error})", file=path, remedy=remedy) from None


def _range(table: dict[str, Any]) -> RangeCalibration:
    values: dict[str, Any] = {}
    for item in fields(RangeCalibration):
        value = table[item.name]
        if item.type is str:
            values[item.name] = str(value)
        elif isinstance(value, (int, float)) and math.isfinite(value):
            values[item.name] = float(value)
        else:
            raise ValueError(f"{item.name} is no number")
    if datetime.fromisoformat(values["measured_utc"]).tzinfo is None:
        raise ValueError("measured_utc has no time zone")
    return RangeCalibration(**values)
