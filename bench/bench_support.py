"""What the benches share: their C and Cython parts, an armed device with its loop, and times beside a peer's."""

import ctypes
import importlib.util
import os
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
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.device import Device, new_token
from ionto_rt.plan import compile_plan
from ionto_rt.safety import resolve_limits
from ionto_rt.treatment import Treatment

HERE = Path(__file__).parent
TREATMENT = HERE.parent / "examples/dexamethasone-40.toml"
SHORT_TREATMENT = HERE / "short.toml"
FLAGS = ["-O2", "-std=c11", "-D_GNU_SOURCE", "-ffp-contract=off"]
RING_ROWS = 8192
CHUNK_TICKS = 1000
"""Ticks between two heartbeats of a bench; the guard waits for 2000."""


def compile_c(source: Path, target: Path, *switches: str) -> Path:
    """`target`, compiled from one C file with the core's flags."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    subprocess.run([compiler, *FLAGS, "-Wall", "-Wextra", str(source), "-o", str(target), *switches], check=True)
    return target


def build_harness(folder: Path) -> Any:
    """The module harness.pyx, translated and compiled into `folder`."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    source = folder / "harness.pyx"
    source.write_bytes((HERE / "harness.pyx").read_bytes())
    extension = Extension("harness", [str(source)], extra_compile_args=[*FLAGS, "-fno-math-errno"])
    directives = {"language_level": "3", "boundscheck": False, "wraparound": False, "cdivision": True}
    include = str(Path(ionto_rt.__file__).parent.parent)
    made = cythonize([extension], include_path=[include], compiler_directives=directives, quiet=True)
    command = Distribution({"ext_modules": made}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.ensure_finalized()
    command.run()
    spec = importlib.util.spec_from_file_location("harness", command.get_ext_fullpath("harness"))
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


def arm(device: Device, path: Path = TREATMENT) -> Armed:
    """Resolve limits and programme of a treatment, and arm the device for it."""
    treatment = Treatment.load(path)
    limits = resolve_limits(treatment, Catalogue.load(), device.hello.capabilities, None)
    plan = compile_plan(treatment, limits, device.hello.tick_s)
    token = new_token()
    controller = Controller(controller_config(device.hello, limits, plan, FIT, token), plan.segments)
    port = device.port.loop_port()
    loop = Loop(controller, port, virtual_clock=True, ring_rows=RING_ROWS, silence_s=2.0)
    device.push_limits(**device_limits(device.hello, limits, token))
    device.arm(Pacing.LOCK_STEP, token)
    return Armed(device, controller, loop, token)


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


class Transcription:
    """transcription.c as a library, on the input of a recording."""

    def __init__(self, library: Path, config: dict[str, Any], given: list[tuple[Any, ...]], tones: Any) -> None:
        self.library = ctypes.CDLL(str(library))
        self.config = np.zeros(1, _config_dtype())
        for part in ("regulator", "impedance", "calibration"):
            for name in self.config.dtype[part].names:
                self.config[part][name] = config[part][name]
        self.config["tone_cos"], self.config["tone_sin"] = tones
        self.given = np.array(given, _INPUT)
        self.rows = np.zeros(len(given), _OUTPUT)
        self.last = np.zeros(1, _OUTPUT)
        for name, array in (("config", self.config), ("input", self.given), ("output", self.rows)):
            size = getattr(self.library, f"{name}_bytes")
            size.restype = ctypes.c_size_t
            assert size() == array.itemsize, f"{name}: {size()} bytes in C, {array.itemsize} here"
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (self.config, self.given, self.rows, self.last)]
        self._config, self._given, self._rows, self._last = pointers
        self._n = ctypes.c_size_t(len(given))
        self.library.run_ticks(self._config, self._given, self._n, self._rows, 1)

    def tick(self) -> None:
        """One pass over all ticks; `last` takes the terms of the last one."""
        self.library.run_ticks(self._config, self._given, self._n, self._last, 0)

    def stage(self, name: str) -> None:
        """One pass of a single stage: ledger, estimator or regulator."""
        getattr(self.library, f"run_{name}")(self._config, self._given, self._n, self._rows, self._last)


def _record(spec: str) -> np.dtype:
    """An aligned dtype from "type name name; type name"."""
    fields = [(name, kind) for kind, *names in (part.split() for part in spec.split(";")) for name in names]
    return np.dtype(fields, align=True)


_INPUT = _record(
    "i8 device_charge_codes; f8 setpoint_a contact_setpoint_a feed_forward; i4 current_code voltage_code;"
    "u4 lost_ticks; i4 tone regulating hold"
)
_OUTPUT = _record(
    "i8 net_codes absolute_codes; f8 current_a voltage_v resistance_ohm resistance_sigma_ohm series_ohm"
    " series_sigma_ohm parallel_ohm parallel_sigma_ohm capacitance_f capacitance_sigma_f proportional integral"
    " derivative feed_forward unlimited output; u4 estimate_block; i4 contact saturated"
)


def _config_dtype() -> np.dtype:
    regulator = _record(
        "f8 tick_s kp ki kd derivative_filter_s setpoint_weight derivative_weight output_min output_max slew_per_tick"
        " tracking_s; i4 delay_ticks integration anti_windup free_fall"
    )
    impedance = _record(
        "f8 tick_s tone_a electrode_emf_v nonlinearity voltage_noise_v current_noise_a open_ratio open_floor_a"
        " open_voltage_v; i4 open_any_voltage; u4 open_ticks good_ticks tone_period_ticks block_ticks"
    )
    calibration = _record("f8 current_lsb_a voltage_lsb_v; i4 current_offset_q16 voltage_offset_q16 code_limit")
    parts = [("regulator", regulator), ("impedance", impedance), ("calibration", calibration)]
    return np.dtype([*parts, ("tone_cos", "f8", 1024), ("tone_sin", "f8", 1024)], align=True)


TERMS: tuple[str, ...] = _OUTPUT.names or ()
