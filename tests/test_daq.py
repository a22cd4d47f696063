"""A device that is called: the header says what the core compiles, and a card behind it treats as a device does."""

import contextlib
import ctypes
import enum
import gc
import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import ionto_rt
import ionto_rt.codes as codes
from ionto_rt.codes import EndReason, Pacing, Phase, Trip
from ionto_rt.configuration import FIT, UNFIT, DeadlineProfile, controller_config
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.device import DeviceCounters, daq_capsule, open_device
from ionto_rt.errors import RefusedError
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from support import address, hello, planned, struct

EXAMPLE = Path(__file__).parent.parent / "examples" / "daq"
HEADER = Path(ionto_rt.get_include()) / "ionto_rt" / "daq.h"
STRUCTS = {"ionto_sample": "Sample", "ionto_command": "Command", "ionto_daq": "Daq"}
ENUMS = {"PACING": "Pacing", "STATUS": "DeviceStatus", "COMMAND": "CommandFlag"}
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
CURRENT_A = -0.5e-3
"""Setpoint of the example's treatment: a cathode drives."""

pytestmark = [pytest.mark.timeout(120), pytest.mark.real_time]


def cc(*arguments: str | Path, cwd: Path) -> None:
    done = subprocess.run(["cc", *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def declared_fields(name: str) -> list[str]:
    """Names of the fields of a struct of the header, in order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    body = re.search(rf"typedef struct {name} \{{(.*?)\}} {name};", text, re.S)
    assert body
    return [
        re.search(r"\(\*(\w+)\)|(\w+)$", one.strip()).group(1) or one.split()[-1].lstrip("*")  # type: ignore[union-attr]
        for one in body[1].split(";")
        if one.strip()
    ]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a C program that includes the header says of it: sizes, fields with offset, size and type, numbers."""
    folder = tmp_path_factory.mktemp("header")
    types = ("int32_t", "int64_t", "uint8_t", "uint16_t", "uint32_t")
    choices = ", ".join(f'{one}: "{one}"' for one in types)
    lines = [
        '#include "ionto_rt/daq.h"',
        "#include <stddef.h>",
        "#include <stdio.h>",
        f'#define TYPE(x) _Generic((x), {choices}, default: "pointer")',
        'int main(void) { printf("{");',
    ]
    for name in STRUCTS:
        lines.append(f'printf("\\"{name}\\": {{\\"\\": [0, %zu, \\"struct\\"]", sizeof({name}));')
        for field in declared_fields(name):
            at = f"(({name} *)0)->{field}"
            lines.append(
                f'printf(", \\"{field}\\": [%zu, %zu, \\"%s\\"]", offsetof({name}, {field}), sizeof({at}), TYPE({at}));'
            )
        lines.append('printf("}, ");')
    numbers = re.findall(r"^    (IONTO_\w+) =", HEADER.read_text(), re.M)
    lines += [f'printf("\\"{name}\\": %d, ", (int){name});' for name in numbers]
    lines += ['printf("\\"capsule\\": \\"%s\\"}\\n", IONTO_DAQ_CAPSULE); return 0; }']
    (folder / "print.c").write_text("\n".join(lines))
    cc("-std=c11", *WARNINGS, "-I", ionto_rt.get_include(), "-o", "print", "print.c", cwd=folder)
    found: dict[str, Any] = json.loads(subprocess.check_output([folder / "print"], text=True))
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_of_the_header_is_that_of_the_core_field_by_field(name: str, compiled: dict[str, Any]) -> None:
    mine = struct(STRUCTS[name])
    plain = {kind: text for text, kind in (("int32_t", ctypes.c_int32), ("int64_t", ctypes.c_int64),
             ("uint8_t", ctypes.c_uint8), ("uint16_t", ctypes.c_uint16), ("uint32_t", ctypes.c_uint32))}  # fmt: skip
    fields = {
        field: [getattr(mine, field).offset, getattr(mine, field).size, plain.get(kind, "pointer")]
        for field, kind, *_ in mine._fields_
    }
    assert compiled[name] == {"": [0, ctypes.sizeof(mine), "struct"], **fields}
    assert list(compiled[name])[1:] == list(fields)


def test_the_numbers_of_the_header_are_those_of_the_core(compiled: dict[str, Any]) -> None:
    numbers = {name: value for name, value in compiled.items() if name.startswith("IONTO_")}
    expected = {"IONTO_DAQ_VERSION": codes.DAQ_VERSION, "IONTO_MAX_CHANNELS": codes.MAX_CHANNELS}
    for prefix, name in ENUMS.items():
        members: type[enum.IntEnum] = getattr(codes, name)
        expected |= {f"IONTO_{prefix}_{member}": int(value) for member, value in members.__members__.items()}
    assert numbers == expected


def test_the_headers_capsule_is_one_that_the_loop_takes(compiled: dict[str, Any]) -> None:
    _, capsule = capsule_of()
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    assert name(capsule).decode() == compiled["capsule"]


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_the_header_is_cplusplus_too(standard: str, tmp_path: Path) -> None:
    (tmp_path / "host.cpp").write_text('#include "ionto_rt/daq.h"\nionto_daq daq = {};\n')
    cc(f"-std={standard}", *WARNINGS, "-I", ionto_rt.get_include(), "-c", "host.cpp", cwd=tmp_path)


def test_the_header_states_its_licence() -> None:
    assert "SPDX-License-Identifier: Apache-2.0" in HEADER.read_text()


class Keeper:
    """Something to be kept alive."""


def filled(**changes: Any) -> Any:
    daq: Any = struct("Daq")(version=1, size=ctypes.sizeof(struct("Daq")), channels=1, pacing=Pacing.DEVICE)
    daq.receive = daq.send = 1
    for name, value in changes.items():
        setattr(daq, name, value)
    return daq


def capsule_of(keep: object = None, **changes: Any) -> tuple[Any, object]:
    daq = filled(**changes)
    return daq, daq_capsule(ctypes.addressof(daq), keep)


def test_a_capsule_holds_the_struct_and_keeps_its_maker_alive() -> None:
    keeper = Keeper()
    gone = weakref.ref(keeper)
    daq, capsule = capsule_of(keeper)
    assert address(capsule) == ctypes.addressof(daq)
    del keeper
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "has version 2: set it to IONTO_DAQ_VERSION, here 1"),
        ({"size": 39}, "has size 39: set it to sizeof(ionto_daq), 40"),
        ({"receive": None}, "has no receive"),
        ({"send": None}, "has no send"),
        ({"channels": 0}, "has 0 channels: must be 1 to 32"),
        ({"channels": 33}, "has 33 channels"),
        ({"pacing": 3}, "has pacing 3"),
        ({"pacing": 0}, "has pacing 0"),
    ],
)
def test_a_struct_that_is_not_filled_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        capsule_of(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nowhere", [0, None])
def test_an_address_that_is_none_is_refused(nowhere: Any) -> None:
    with pytest.raises(ValueError, match="address 0"):
        daq_capsule(nowhere, None)


def test_a_loop_of_another_pacing_is_refused() -> None:
    config, plan = planned()
    for told, offered in ((Pacing.DEVICE, Pacing.HOST), (Pacing.HOST, Pacing.DEVICE)):
        daq, capsule = capsule_of(pacing=offered)
        with pytest.raises(ValueError, match=f"pacing {int(offered)}, the loop {int(told)}"):
            Loop(Controller(config, plan.segments), capsule, virtual_clock=False, pacing=told)
        del daq


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The example as its README builds it, in a folder of its own, with every warning an error."""
    folder = tmp_path_factory.mktemp("daq") / "daq"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.so", "sessions", "__pycache__"))
    readme = (folder / "README.md").read_text()
    command = re.search(r"^    cc (.*?[^\\])\n", readme, re.M | re.S)
    assert command
    text = re.sub(r"\$\(.*?'\)", ionto_rt.get_include(), command[1].replace("\\\n", ""))
    cc(*shlex.split(text), *WARNINGS, cwd=folder)
    spec = importlib.util.spec_from_file_location("daq_host", folder / "host.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["daq_host"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["daq_host"]


def example_treatment() -> Treatment:
    return Treatment.load(EXAMPLE / "treatment.toml")


class Run:
    """The example's treatment, run by the loop on the card to its end."""

    def __init__(self, host: ModuleType, uri: str) -> None:
        with host.open_acq(uri) as device:
            loop, config = host.make_loop(device, example_treatment())
            host.run_loop(loop)
            self.rows = loop.drain(1 << 20)
            self.status, self.counters, self.histograms = loop.status, loop.counters, loop.histograms
            self.counted: DeviceCounters = device.disarm(config["token"])
            self.true_c, self.left_a, self.openings = device.patient()
            self.calibration = config["calibration"]


@pytest.fixture(scope="module")
def runs(host: ModuleType) -> dict[str, Run]:
    """Both pacings, side by side: each takes its five seconds."""
    with ThreadPoolExecutor() as threads:
        started = {pacing: threads.submit(Run, host, f"acq:Acq1?pacing={pacing}") for pacing in ("device", "host")}
        return {pacing: run.result() for pacing, run in started.items()}


PACINGS = pytest.mark.parametrize("pacing", ["device", "host"])


@pytest.mark.slow
@PACINGS
def test_a_treatment_on_the_card_delivers_its_dose(pacing: str, runs: dict[str, Run]) -> None:
    run = runs[pacing]
    last = run.rows[-1]
    assert (run.status, last["end_reason"], last["trip"]) == ("ended", EndReason.COMPLETE, Trip.NONE)
    assert last["delivered_c"] == pytest.approx(1.5e-3, rel=1e-3)
    assert (run.left_a, run.openings) == (0.0, 0)


@pytest.mark.slow
@PACINGS
def test_ledger_card_and_patient_count_the_same_charge(pacing: str, runs: dict[str, Run]) -> None:
    run = runs[pacing]
    last = run.rows[-1]
    assert last["net_codes"] == last["device_charge_codes"]
    assert last["absolute_codes"] >= abs(last["net_codes"])
    assert run.counted.net_codes == last["net_codes"], "what came behind the last tick was zero"
    assert run.counted.samples >= last["index"] + 1
    code_c = run.calibration["current_lsb_a"] * run.calibration["tick_s"] / 65536.0
    assert last["net_codes"] * code_c == pytest.approx(run.true_c, rel=5e-3), "by the current's own course"


@pytest.mark.slow
@PACINGS
def test_at_the_plateau_the_current_is_the_setpoint(pacing: str, runs: dict[str, Run]) -> None:
    rows = runs[pacing].rows
    plateau = rows[(rows["phase"] == Phase.TREATMENT) & (rows["level_a"] == CURRENT_A)]
    assert len(plateau) > 1500
    assert plateau["current_a"][100:].mean() == pytest.approx(CURRENT_A, rel=0.01)
    assert np.abs(plateau["current_a"][100:] / CURRENT_A - 1.0).max() < 0.03, "tone and noise of the converter included"


@pytest.mark.slow
@PACINGS
def test_the_contact_check_finds_the_patient_and_the_delay_of_the_page(pacing: str, runs: dict[str, Run]) -> None:
    last = runs[pacing].rows[-1]
    assert last["model_delay_ticks"] == 2
    assert last["resistance_ohm"] == pytest.approx(20.6e3, rel=0.1)


@pytest.mark.slow
@PACINGS
def test_every_sample_is_answered_and_shows_which_command_it_is_under(pacing: str, runs: dict[str, Run]) -> None:
    run = runs[pacing]
    rows = run.rows[run.rows["applied_index"] != 0xFFFFFFFF]
    late = (rows["status"] & codes.DeviceStatus.LATE) != 0
    behind = rows["index"].astype(np.int64) - rows["applied_index"]
    assert behind.min() == 2
    assert (behind[~late] == 2).mean() > 0.5, "and more where a host that was behind answers the newest alone"
    assert run.counted.refused == run.counted.lapsed == 0
    applied = dict(zip(run.rows["index"].tolist(), run.rows["output_code"].tolist(), strict=True))
    shown = [(applied[row["applied_index"]], row["applied_code"]) for row in rows if row["applied_index"] in applied]
    assert len(shown) > 1000
    assert all(sent == taken for sent, taken in shown)


@pytest.mark.slow
def test_the_hosts_clock_paces_one_and_the_cards_the_other(runs: dict[str, Run]) -> None:
    assert set(runs["host"].histograms) == {"answer", "wake_up"}
    assert set(runs["device"].histograms) == {"answer", "age"}
    of_card = runs["device"].rows
    assert (np.diff(of_card["index"]) == 1).all(), "no sample is lost, however late"
    assert (np.diff(of_card["device_time_us"].astype(np.int64)) == 1000).all()
    of_host = runs["host"].rows
    advance, took_us = np.diff(of_host["index"]), np.diff(of_host["device_time_us"].astype(np.int64))
    assert (np.abs(took_us - 1000 * advance) < 1000).all(), "a period that was missed is skipped whole"


@pytest.mark.parametrize("profile", [FIT, UNFIT])
def test_an_instant_that_the_host_missed_is_no_lost_sample(profile: DeadlineProfile) -> None:
    _, plan = planned()
    limits = (plan.limits, plan, profile, 1)
    of_device, of_host = (controller_config(hello(), *limits, pacing=pacing) for pacing in (Pacing.DEVICE, Pacing.HOST))
    assert (of_device["guard"]["gap_pause_ticks"], of_device["guard"]["gap_stop_ticks"]) == (2, 10)
    assert of_host["guard"]["gap_pause_ticks"] * 1000 == profile.late_pause_us
    assert of_host["guard"]["gap_stop_ticks"] * 1000 == profile.late_stop_us


def until(wanted: Callable[[], bool], most_s: float = 5.0) -> None:
    """Until another thread has made it so."""
    end = time.monotonic() + most_s
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.002)


def armed_and_flowing(host: ModuleType, device: Any) -> tuple[Loop, dict[str, Any]]:
    """The loop stopped in mid-ramp: relay closed, current on."""
    loop, config = host.make_loop(device, example_treatment())
    host.run_loop(loop, 1500)
    assert (loop.status, loop.newest()[0]["phase"]) == ("running", Phase.RAMP_UP)
    return loop, config


@pytest.mark.slow
@PACINGS
def test_when_the_loop_stops_the_lease_switches_off(pacing: str, host: ModuleType) -> None:
    with host.open_acq(f"acq:Acq1?pacing={pacing}") as device:
        loop, config = armed_and_flowing(host, device)
        before_c, current_a, _ = device.patient()
        assert current_a < -0.04e-3
        until(lambda: device.count().lapsed == 1 and device.patient()[1] == 0.0)
        flowed_c = device.patient()[0] - before_c
        assert abs(flowed_c) < abs(current_a) * 1.2 * 0.12, "at most a lease and what the watchdog line takes"
        assert device.count().status == codes.DeviceStatus.LEASE_EXPIRED
        loop.beat()
        assert loop.run(200) == "ended"
        last = loop.drain(1 << 20)[-1]
        assert last["trip"] in (Trip.LEASE_LAPSED, Trip.HOST_SUSPENDED, Trip.STALE_DATA, Trip.LOST_SAMPLES)
        assert (last["output_code"], last["close_relay"]) == (0, 0), "and what the loop finds does not bring it back"
        assert device.disarm(config["token"]).lapsed == 1


@pytest.mark.slow
def test_when_the_whole_process_stops_the_watchdog_line_opens_the_relay(host: ModuleType, tmp_path: Path) -> None:
    """A process that is stopped keeps no lease. The card's simulation runs on by the clock when it goes on again."""
    program = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:]; import test_daq, host\n"
        "with host.open_acq('acq:Acq1') as device:\n"
        "    test_daq.armed_and_flowing(host, device)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    _, current_a, openings = device.patient()\n"
        "    print(openings, current_a)\n"
    )
    folders = [str(Path(__file__).parent), str(Path(host.__file__).parent)]
    process = subprocess.Popen([sys.executable, "-c", program, *folders], stdout=subprocess.PIPE, text=True)
    with contextlib.closing(process.stdout):  # type: ignore[type-var]
        stat = Path(f"/proc/{process.pid}/stat")
        until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", 30.0)
        stopped = time.monotonic()
        until(lambda: time.monotonic() - stopped > 0.25)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=20.0)
    assert said.split()[0] == "1"
    assert float(said.split()[1]) == 0.0


@pytest.mark.slow
@PACINGS
def test_a_session_runs_on_the_card(pacing: str, host: ModuleType, tmp_path: Path) -> None:
    with host.open_acq(f"acq:Acq1?pacing={pacing}") as device:
        receipt = Session(example_treatment(), device, out_dir=tmp_path).run()
    assert (receipt["outcome"], receipt["trips"]) == ("complete", []), receipt["reason"]
    assert receipt["dose_delivered_mamin"] == pytest.approx(0.025, rel=1e-3)
    assert receipt["dose_ledger_mamin"] == receipt["dose_device_mamin"]
    assert receipt["mean_error_ratio"] == pytest.approx(0.0, abs=0.01)


def test_a_session_is_refused_by_a_card_that_is_armed_already(host: ModuleType, tmp_path: Path) -> None:
    with host.open_acq("acq:Acq1") as device:
        host.make_loop(device, example_treatment())
        with pytest.raises(RefusedError, match="Device or resource busy"):
            Session(example_treatment(), device, out_dir=tmp_path).run()


def test_an_installed_package_brings_its_devices_by_their_scheme(
    host: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "acq-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acq\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[ionto_rt.devices]\nacq = daq_host:open_acq\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with open_device("acq:Acq1?pacing=host") as device:
        assert device.hello.name == "Acq Acq1"
        assert device.hello.pacing == Pacing.HOST
    for uri in ("acq:Acq2", "acq:Acq1?pacing=none", "acq:Acq1?rate=20"):
        with pytest.raises(RefusedError, match="; write"):
            open_device(uri)
