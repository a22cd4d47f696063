"""What the commands' arguments mean: folders of sessions, limits, defaults of a virtual device."""

import tempfile
from pathlib import Path
from typing import Any

from ionto_rt.device import split_uri
from ionto_rt.errors import RefusedError
from ionto_rt.record import session_folders, slug
from ionto_rt.safety import OperatorLimits
from ionto_rt.treatment import Treatment
from ionto_rt.units import Kind, UnitError, parse_quantity

SESSIONS = "sessions"
"""Default folder of sessions."""
LATEST = "latest"
STATE = "virtual-device-state"

LIMITS = {
    "current_a": ("--current-limit", Kind.CURRENT),
    "density_a_per_m2": ("--density-limit", Kind.DENSITY),
    "dose_c": ("--dose-limit", Kind.CHARGE),
    "day_dose_c": ("--day-dose-limit", Kind.CHARGE),
    "voltage_v": ("--voltage-limit", Kind.VOLTAGE),
    "time_s": ("--time-limit", Kind.TIME),
}


def session_folder(text: str) -> Path:
    """A session's folder; `latest` is the newest one in `sessions`, unless a folder has that name."""
    path = Path(text)
    if text != LATEST or path.exists():
        return path
    folders = session_folders(Path(SESSIONS))
    if not folders:
        remedy = f"`{LATEST}` is the newest one in ./{SESSIONS}: run a treatment here first, or name a session's folder"
        raise RefusedError(f"there is no session in {SESSIONS}", key="SESSION", value=text, remedy=remedy)
    return folders[-1]


def check_folder(option: str, folder: Path) -> None:
    """See before the work that its result can be put into `folder`, which need not be there. RefusedError if not."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        remedy = "give a folder that can be made and written to"
        raise RefusedError(
            f"cannot be written ({error.strerror})", key=option, value=str(folder), remedy=remedy
        ) from None


def check_file(option: str, path: Path) -> None:
    """The same for a file, which is made or written over."""
    check_folder(option, path.parent)
    if not path.exists():
        return
    try:
        with path.open("r+b"):
            pass
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise RefusedError(problem, key=option, value=str(path), remedy="give another name") from None


def operator_limits(given: dict[str, str | None]) -> OperatorLimits:
    """The operator's limits, as text by field of `OperatorLimits`. RefusedError names the option that is wrong."""
    values = {}
    for name, (option, kind) in LIMITS.items():
        text = given.get(name)
        if text is None:
            continue
        try:
            value = parse_quantity(text, kind)
        except UnitError as error:
            raise RefusedError(str(error), key=option, value=text) from None
        if value == 0.0:
            raise RefusedError("is zero; it must be greater", key=option, value=text)
        values[name] = value
    return OperatorLimits(**values)


def state_file(out_dir: Path, uri: str) -> Path | None:
    """Where the virtual device that `uri` starts remembers its last session; None for any other device.

    It is what `recover` asks when the host has died, as it would ask a real device.
    """
    scheme, _, options = split_uri(uri)
    if scheme != "virtual":
        return None
    if "state" in options:
        return Path(options["state"][-1])
    serial = options.get("serial")
    return out_dir / (f"{STATE}-{slug(serial[-1])}.json" if serial else f"{STATE}.json")


def device_defaults(treatment: Treatment, uri: str, speed: str, out_dir: Path) -> dict[str, Any]:
    """What a virtual device should be like where its URI does not say: channels and the first channel's pads of the
    treatment, a memory of its own.
    """
    scheme, _, _ = split_uri(uri)
    if scheme not in ("virtual", "sim"):
        return {}
    pads = treatment.channels[0].electrodes
    defaults: dict[str, Any] = {
        "channels": len(treatment.channels),
        "active_area_cm2": pads.active.area_m2 * 1e4,
        "return_area_cm2": pads.return_.area_m2 * 1e4,
    }
    state = state_file(out_dir, uri)
    if state is not None:
        defaults["state"] = str(state)
    return defaults
