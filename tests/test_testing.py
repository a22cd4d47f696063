"""`ionto_rt.testing`, by an embedder who tests a host of his own with it: a loop around the bare core, no Session."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_support import HEAD
from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import OperatorCommand, Pacing, SegmentKind, StopFlag, Trip
from ionto_rt.configuration import FIT, controller_config, device_limits
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.device import open_device
from ionto_rt.plan import compile_plan
from ionto_rt.safety import resolve_channels
from ionto_rt.testing.machine import HostMachine
from ionto_rt.testing.model import compare
from ionto_rt.testing.ports import FaultyPort
from ionto_rt.testing.strategies import loads, plant_faults, treatments, virtual_devices, wire_faults
from ionto_rt.treatment import Treatment

TOKEN = 77


class BareHost:
    """A host in fifty lines: plan, controller, loop, and a heartbeat."""

    def __init__(self, device: Any, treatment: Treatment) -> None:
        hello = device.hello
        limits = resolve_channels(treatment, Catalogue.load(), hello.capabilities, None)
        self.plan = compile_plan(treatment.channels[0], limits[0], hello.tick_s)
        self.limits = limits[0]
        self.config = controller_config(hello, limits[0], self.plan, FIT, TOKEN, pacing=Pacing.LOCK_STEP)
        device.push_limits(**device_limits(hello, limits, TOKEN))
        device.arm(Pacing.LOCK_STEP, TOKEN)
        self.loop = Loop(Controller(self.config, self.plan.segments), device.port.loop_port(), virtual_clock=True)
        self.ticks = round(0.1 / hello.tick_s)
        self.rows: list[Any] = []
        self.tripped = ""
        self.delivered_c = 0.0

    def step(self) -> bool:
        challenge = self.loop.challenge
        assert isinstance(challenge, int)
        self.loop.beat()
        status = self.loop.run(self.ticks)
        self.rows.append(self.loop.drain())
        if len(self.rows[-1]):
            last = self.rows[-1][-1]
            self.tripped = Trip(int(last["trip"])).name if last["trip"] else ""
            self.delivered_c = float(last["delivered_c"])
        return status == "running"

    def operate(self, command: OperatorCommand, value_a: float = 0.0) -> None:
        self.loop.operator(command, value_a)

    def stop(self, now: bool) -> None:
        self.loop.stop(StopFlag.NOW if now else StopFlag.RAMP_DOWN)

    @property
    def prescribed_c(self) -> float:
        return self.plan.prescribed_c

    @property
    def current_limit_a(self) -> float:
        return self.limits.current_max_a

    @property
    def current_cap_a(self) -> float:
        return self.limits.current_cap_a


TREATMENT = Treatment.parse(
    f'{HEAD}[[steps]]\ncurrent = "400 uA"\ndose = "1.2 mC"\nramp = "1 s"\n'.encode(), "embedded.toml"
)


class BareHostMachine(HostMachine):
    """The machine, around that host."""

    def make_host(self, device: Any) -> BareHost:
        return BareHost(device, TREATMENT)


BareHostMachine.TestCase.settings = settings(
    max_examples=8, stateful_step_count=8, suppress_health_check=[HealthCheck.too_slow], deadline=None
)
TestBareHost = BareHostMachine.TestCase

SLOW = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@SLOW
@given(options=virtual_devices(), faults=wire_faults(), seed=st.integers(0, 1000), stop_at=st.integers(20, 120))
def test_recorded_rows_agree_with_the_models(
    options: dict[str, Any], faults: list[tuple[str, str, int, int, int]], seed: int, stop_at: int
) -> None:
    """Ledger to the code, guard to the tick, whatever the wire does."""
    device = open_device("sim:", defaults=options)
    device.port = FaultyPort(device.port, faults, seed=seed, clocked=True)  # type: ignore[misc, arg-type]
    host = BareHost(device, TREATMENT)
    for step in range(1200):
        if step == stop_at:
            host.stop(now=seed % 2 == 1)
        if not host.step():
            break
    device.close()
    assert compare(np.concatenate(host.rows), host.config) == []


def test_the_models_notice_a_wrong_row() -> None:
    device = open_device("sim:")
    host = BareHost(device, TREATMENT)
    for _ in range(20):
        host.step()
    device.close()
    rows = np.concatenate(host.rows)
    assert compare(rows, host.config) == []
    for field, value, what in (
        ("net_codes", 1, "net charge"),
        ("status", 4, "LEASE_LAPSED asks for more"),
        ("stop", 2, "OPERATOR_STOP asks for more"),
        ("trip", int(Trip.HEARTBEAT), "which was not due"),
    ):
        wrong = rows.copy()
        wrong[field][1500] = value
        assert what in compare(wrong, host.config)[0]


@SLOW
@given(treatment=treatments(channels=2), load=loads(), faults=plant_faults(channels=2))
def test_what_is_drawn_can_be_used(
    treatment: Treatment, load: tuple[float, float, float], faults: list[tuple[str, float, float, int]]
) -> None:
    device = open_device("sim:", defaults={"channels": 2, "load": load})
    assert len(treatment.channels) == 2
    limits = resolve_channels(treatment, Catalogue.load(), device.hello.capabilities, None)
    plan = compile_plan(treatment.channels[0], limits[0], device.hello.tick_s)
    assert any(segment["kind"] == SegmentKind.DELIVER for segment in plan.segments)
    device.close()
    assert [fault[2] for fault in faults] == sorted(fault[2] for fault in faults)


@pytest.mark.parametrize("module", ["strategies", "machine"])
def test_without_hypothesis_one_line_says_what_to_install(module: str, tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ImportError('gone')\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ionto_rt.testing.{module}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr.strip().splitlines()[-1] == (
        "ImportError: ionto_rt.testing needs hypothesis here: in its checkout, pip install '.[testing]'"
    )


def test_its_extra_brings_what_it_imports_and_nothing_else() -> None:
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["testing"]
    assert "pip install '.[testing]'" in (root / "docs" / "testing.md").read_text()
    known = {re.split(r"\W", line)[0] for line in [*project["dependencies"], *extra]} | sys.stdlib_module_names
    found = set()
    for path in (root / "src" / "ionto_rt" / "testing").glob("*.py"):
        found |= set(re.findall(r"^ *(?:from|import) (\w+)", path.read_text(), re.M))
    assert found - known == {"ionto_rt"}
    assert [re.split(r"\W", line)[0] for line in extra] == ["hypothesis"]
