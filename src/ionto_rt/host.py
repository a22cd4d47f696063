"""The host: what it is, and what the loop's thread was given. Attempted and recorded; fitness.py judges it."""

import contextlib
import os
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ionto_rt.configuration import FIT, UNFIT, DeadlineProfile
from ionto_rt.core.host_thread import prepare

LOOP_PRIORITY = 40
"""SCHED_FIFO priority asked for: above ordinary work, below the kernel's interrupt threads (50)."""


def describe_host() -> dict[str, Any]:
    """Platform, kernel, processor and versions, for the record."""
    return {
        "platform": platform.platform(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in ("ionto-rt", "numpy", "pyserial", "nanoarrow", "pydantic")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def prepare_thread(cpu: int | None = None) -> dict[str, str]:
    """Ask for what the loop's thread would like to have, for the calling thread; what came of each.

    Priority, processor (`cpu`; None: any), timer slack, and a stack that faults no more.
    """
    return prepare(LOOP_PRIORITY, cpu)


def pin_to_cpu(cpu: int | None) -> str:
    """Keep the calling thread on processor `cpu`; what came of it."""
    if cpu is None:
        return "any"
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, AttributeError) as error:
        return f"not pinned ({error})"
    return f"cpu {cpu}"


@contextlib.contextmanager
def awake_processors(wanted: bool) -> Iterator[str]:
    """Keep the processors from sleeping between two samples, where this user may ask for it; what came of it.

    Waking a sleeping processor costs more than a tick. The kernel honours the request while the file is open. Not in
    real time: there each tick has its time, and a shared host takes processors away that never rest.
    """
    if not wanted:
        yield "not asked (real time)"
        return
    try:
        request = os.open("/dev/cpu_dma_latency", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        yield f"may sleep ({error.strerror})"
        return
    try:
        os.write(request, struct.pack("i", 0))
        yield "kept awake"
    finally:
        os.close(request)


def deadline_profile(host: Mapping[str, Any]) -> DeadlineProfile:
    """The deadlines of a session in real time, by the verdict on the host in its record."""
    return FIT if host["fitness"]["verdict"] == "fit" else UNFIT
