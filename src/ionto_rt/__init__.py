"""Real-time host controller for iontophoresis.

Importing the package loads nothing; each name below brings its module when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ionto_rt.core.constant_current import ConstantCurrentRegulator
    from ionto_rt.core.controller import Controller
    from ionto_rt.core.impedance import ImpedanceEstimator
    from ionto_rt.core.prbs import PrbsEstimator
    from ionto_rt.core.regulator import Regulator
    from ionto_rt.device import open_device
    from ionto_rt.record import Record
    from ionto_rt.session import Session
    from ionto_rt.treatment import Treatment

    __version__: str

__all__ = [
    "ConstantCurrentRegulator",
    "Controller",
    "ImpedanceEstimator",
    "PrbsEstimator",
    "Record",
    "Regulator",
    "Session",
    "Treatment",
    "__version__",
    "get_include",
    "open_device",
]

_HOMES = {
    "ConstantCurrentRegulator": "ionto_rt.core.constant_current",
    "Controller": "ionto_rt.core.controller",
    "ImpedanceEstimator": "ionto_rt.core.impedance",
    "PrbsEstimator": "ionto_rt.core.prbs",
    "Record": "ionto_rt.record",
    "Regulator": "ionto_rt.core.regulator",
    "Session": "ionto_rt.session",
    "Treatment": "ionto_rt.treatment",
    "open_device": "ionto_rt.device",
}


def get_include() -> str:
    """The folder for a C compiler's -I, so that `#include "ionto_rt/daq.h"` is found."""
    from pathlib import Path

    return str(Path(__file__).parent / "include")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; `0+unknown` in a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ionto-rt")
    except PackageNotFoundError:
        return "0+unknown"
