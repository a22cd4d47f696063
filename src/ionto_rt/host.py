"""The host: what it is, and what the loop's thread was given. Attempted, recorded, never required."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ionto_rt.configuration import FIT, UNFIT, DeadlineProfile

LOOP_PRIORITY = 40
"""SCHED_FIFO priority asked for: above ordinary work, below the kernel's interrupt threads (50)."""


def describe_host() -> dict[str, Any]:
    """Platform, kernel, processor and versions, for the record."""
    return {
        "platform": platform.platform(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "hypervisor": _hypervisor(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in ("ionto-rt", "numpy", "pyserial", "nanoarrow", "pydantic")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _hypervisor() -> bool:
    try:
        return " hypervisor" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def prepare_thread() -> dict[str, str]:
    """Ask for real-time priority for the calling thread; what came of it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(LOOP_PRIORITY))
    except (OSError, AttributeError) as error:
        return {"priority": f"ordinary ({error})"}
    return {"priority": f"SCHED_FIFO {LOOP_PRIORITY}"}


def pin_to_cpu(cpu: int | None) -> str:
    """Keep the calling thread on processor `cpu`; what came of it."""
    if cpu is None:
        return "any"
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, AttributeError) as error:
        return f"not pinned ({error})"
    return f"cpu {cpu}"


def deadline_profile(outcome: dict[str, str]) -> DeadlineProfile:
    """The deadlines this host can keep: the fit profile needs real-time priority, locked memory and no hypervisor."""
    fit = (
        outcome.get("priority", "").startswith("SCHED_FIFO") and outcome.get("memory") == "locked" and not _hypervisor()
    )
    return FIT if fit else UNFIT
