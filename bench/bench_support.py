"""What the benches share: their C and Cython parts, an armed device with its loop, and times beside a peer's."""

import importlib.util
import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

import ionto_rt
from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import Pacing
from ionto_rt.configuration import FIT, controller_config, device_limits
from ionto_rt.core.controller import Controller, empty_ticks
from ionto_rt.core.loop import Loop
from ionto_rt.device import Device, new_token, open_device
from ionto_rt.plan import compile_plan
from ionto_rt.safety import resolve_limits
from ionto_rt.treatment import Treatment

HERE = Path(__file__).parent
TREATMENT = HERE.parent / "examples/dexamethasone-40.toml"
SHORT_TREATMENT = HERE / "short.toml"
FLAGS = ["-O2", "-std=c11", "-D_GNU_SOURCE", "-ffp-contract=off"]
HARNESS = ["harness.pyx", "transcription.h", "transcription.c", "estimator.c", "predictive.c"]
SHARED = ["types", "ledger", "impedance", "predictive", "probe"]
"""Modules of the core whose structs the transcription takes, in the order in which they need each other."""
RING_ROWS = 8192
TOKEN = 0x5EED1234
"""Of the recording: its frames are the same each time."""
CHUNK_TICKS = 1000
"""Ticks between two heartbeats of a bench; the guard waits for 2000."""


def compile_c(source: Path, target: Path, *switches: str) -> Path:
    """`target`, compiled from one C file with the core's flags."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    subprocess.run([compiler, *FLAGS, "-Wall", "-Wextra", str(source), "-o", str(target), *switches], check=True)
    return target


def core_header() -> str:
    """The structs that the transcription shares with the core, and the numbers of types.pxd, as C."""
    folder = Path(ionto_rt.__file__).parent / "core"
    text = "\n".join((folder / f"{name}.pxd").read_text() for name in SHARED)
    structs = re.findall(r"^cdef struct (\w+):\n((?:    .*\n|\n)+)", text, re.M)
    numbers = re.findall(r"^    ([A-Z]\w+ = \w+)", (folder / "types.pxd").read_text(), re.M)
    typed = "".join(
        "typedef struct {\n" + re.sub(r"^    (\w+ \w+(?:\[\d+\])?).*$", r"    \1;", fields.rstrip(), flags=re.M)
        + f"\n}} {name};\n"
        for name, fields in structs
        if name not in ("Tick", "TickInput", "Port", "Daq")
    )  # fmt: skip
    return f"#include <stdint.h>\nenum {{ {', '.join(numbers)} }};\n{typed}"


def build_harness(folder: Path) -> Any:
    """The module harness.pyx, translated and compiled with transcription.c into `folder`."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    for source in HARNESS:
        (folder / source).write_bytes((HERE / source).read_bytes())
    (folder / "core.h").write_text(core_header())
    extension = Extension(
        "harness",
        [str(folder / "harness.pyx"), str(folder / "transcription.c")],
        include_dirs=[str(folder)],
        extra_compile_args=[*FLAGS, "-fno-math-errno"],
    )
    directives = {"language_level": "3", "boundscheck": False, "wraparound": False, "cdivision": True}
    include = str(Path(ionto_rt.__file__).parent.parent)
    made = cythonize([extension], include_path=[include], compiler_directives=directives, quiet=True)
    command = Distribution({"ext_modules": made}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.ensure_finalized()
    command.run()
    return load_harness(folder)


def load_harness(folder: Path) -> Any:
    """The module that `build_harness` has left in `folder`."""
    spec = importlib.util.spec_from_file_location("harness", next(folder.glob("harness.*.so")))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Armed:
    """A device that is armed for a treatment in lock-step, and the loop that drives it."""

    device: Device
    controller: Controller
    loop: Loop
    token: int

    def chunk(self) -> bool:
        """CHUNK_TICKS ticks, or up to the programme's end; whether it runs on."""
        said = self.loop.run(CHUNK_TICKS)
        assert said in ("running", "ended"), f"{said}: {self.loop.error}"
        return said == "running"

    def turn(self) -> np.ndarray:
        """What the orchestrator does between two chunks; the rows of telemetry."""
        self.loop.beat()
        self.loop.drain_events()
        return self.loop.drain(RING_ROWS)


def arm(device: Device, treatment: Path | Treatment = TREATMENT, token: int | None = None) -> Armed:
    """Resolve limits and programme of a treatment, and arm the device for it; without a token, by a new one."""
    if isinstance(treatment, Path):
        treatment = Treatment.load(treatment)
    limits = resolve_limits(treatment, Catalogue.load(), device.hello.capabilities, None)
    plan = compile_plan(treatment, limits, device.hello.tick_s)
    token = token or new_token()
    controller = Controller(controller_config(device.hello, limits, plan, FIT, token), plan.segments)
    port = device.port.loop_port()
    loop = Loop(controller, port, virtual_clock=True, ring_rows=RING_ROWS, silence_s=2.0)
    device.push_limits(**device_limits(device.hello, limits, token))
    device.arm(Pacing.LOCK_STEP, token)
    return Armed(device, controller, loop, token)


def recorded(harness: Any) -> Any:
    """A short treatment on `sim:`, from the first tick to the last, as harness.Recording.

    The replay must give the bits of the live run, and the transcription those of the replay, or there is nothing to
    measure.
    """
    with open_device("sim:") as device:
        armed = arm(device, SHORT_TREATMENT, TOKEN)
        rows = empty_ticks(1 << 15)
        count, running = 0, True
        while running:
            running = armed.chunk()
            batch = armed.turn()
            rows[count : count + len(batch)] = batch
            count += len(batch)
        rows = rows[:count]
        controller = Controller(armed.controller.config, armed.controller.segments)
    made = harness.Recording(controller, rows)
    for name in rows.dtype.names:
        assert rows[name].tobytes() == made.replayed[name].tobytes(), f"{name}: the replay differs from the live run"
    return made


class OneCpu:
    """Keeps this thread on one processor for a while; `uri` puts a virtual device beside it."""

    def __enter__(self) -> "OneCpu":
        self.before = os.sched_getaffinity(0)
        self.cpu = max(self.before)
        self.uri = f"virtual:?cpu={self.cpu}"
        os.sched_setaffinity(0, {self.cpu})
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self.before)


def side_by_side(
    benchmark: Any,
    subject: Callable[[], object],
    peer: Callable[[], object],
    *,
    rounds: int,
    per: int,
    peer_per: int = 0,
    between: Callable[[], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds of `subject`, each just after one of `peer`, so that both meet the same disturbances: times in ns per one
    of `per` (of the peer: of `peer_per`, if given). `between` runs before each pair, outside the clock.
    """
    beside: list[int] = []

    def setup() -> None:
        if between is not None:
            between()
        began = perf_counter_ns()
        peer()
        beside.append(perf_counter_ns() - began)

    benchmark.pedantic(subject, setup=setup, rounds=rounds, warmup_rounds=2)
    own = np.array(benchmark.stats.stats.data) * 1e9 / per
    others = np.array(beside[-rounds:]) / (peer_per or per)
    benchmark.extra_info.update(own_ns=percentiles(own), beside_ns=percentiles(others))
    return own, others


def percentiles(values: np.ndarray) -> dict[str, float]:
    names = {"best": 0, "p50": 50, "p90": 90, "p99": 99, "worst": 100}
    return {name: round(float(np.percentile(values, share)), 3) for name, share in names.items()}


class PingPong:
    """ping_pong.c as a process, on the processor `cpu`."""

    def __init__(self, program: Path, cpu: int) -> None:
        self.process = subprocess.Popen(
            [program, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def exchange(self, count: int) -> int:
        """`count` exchanges; the nanoseconds that they took."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(5.0)
        self.process.stdout.close()
