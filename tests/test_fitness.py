"""Is a host fit: recorded hosts, single settings, this host, and what a session and `doctor` make of the verdict."""

import ctypes
import os
import re
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_support import ROOT, ionto, sessions, started
from cli_support import treatment as written_treatment
from ionto_rt.cli.doctor import _table
from ionto_rt.configuration import FIT, UNFIT
from ionto_rt.core.loop import Loop
from ionto_rt.device import Device, SerialBytes, open_device
from ionto_rt.errors import RefusedError
from ionto_rt.fitness import (
    CHECKS,
    STATE_BYTES,
    Fitness,
    Host,
    Item,
    cpu_list,
    cpu_mask,
    examine,
    examine_for,
    examine_this_host,
    refuse_unfit,
    session_bytes,
    written,
)
from ionto_rt.host import deadline_profile
from ionto_rt.record import Record
from ionto_rt.session import Session
from support import hello, struct
from treatments import treatment

pytestmark = pytest.mark.real_time

HOSTS = sorted((ROOT / "tests" / "hosts").glob("*.toml"))
PAGE = ROOT / "docs" / "real-time.md"
PAGE_TABLE = re.compile(r"^\| what \|.*\n(?:\|.*\n)+", re.M)
STEP = '[[steps]]\ncurrent = "0.4 mA"\ntime = "1 s"\nramp = "0.5 s"'


def host(name: str, root: Path, **files: str | None) -> tuple[Host, dict[str, Any]]:
    """A host of tests/hosts, its files below `root`, some of them changed or missing; and what is expected of it."""
    said = tomllib.loads((ROOT / "tests" / "hosts" / f"{name}.toml").read_text())
    for path, text in {**said["files"], **files}.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text.lstrip("\n") + "\n")
    for path, target in said.get("links", {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(root / target)
    serial = said.get("serial", {})
    return Host(root, said["thread"], serial=serial.get("path"), low_latency=serial.get("low_latency", "")), said


def item(of: Host, name: str) -> Item:
    (found,) = (one for one in examine(of).items if one.name == name)
    return found


@pytest.mark.parametrize("name", [path.stem for path in HOSTS])
def test_each_recorded_host_gets_its_verdict(name: str, tmp_path: Path) -> None:
    of, said = host(name, tmp_path)
    fitness = examine(of)
    assert fitness.verdict == fitness.profile == said["verdict"]
    assert [one.name for one in fitness.items if one.lowers] == said["unfit"]
    assert [one.name for one in fitness.items if one.state == "poor"] == said["poor"]
    assert len(fitness.items) == sum(not check.of_a_port or of.serial is not None for check in CHECKS)
    assert all(one.costs and one.remedy and one.found for one in fitness.items)


def test_a_host_of_which_nothing_can_be_read_is_not_called_fit(tmp_path: Path) -> None:
    fitness = examine(Host(tmp_path))
    assert fitness.verdict == "unfit"
    assert {one.name for one in fitness.items if one.lowers} >= {"priority", "preemption", "memory-lock"}


@pytest.mark.parametrize(
    ("check", "file", "text", "state"),
    [
        ("preemption", "sys/kernel/realtime", None, "good"),
        ("preemption", "proc/sys/kernel/version", "#1 SMP PREEMPT_DYNAMIC", "good"),
        ("throttling", "proc/sys/kernel/sched_rt_runtime_us", "500000", "poor"),
        ("throttling", "proc/sys/kernel/sched_rt_runtime_us", "100000", "unfit"),
        ("throttling", "proc/sys/kernel/sched_rt_runtime_us", "-1", "good"),
        ("hypervisor", "sys/hypervisor/type", "xen", "unfit"),
        ("memory-lock", "proc/self/limits", "Max locked memory   65536   65536   bytes", "unfit"),
        ("memory-lock", "proc/self/limits", "Max locked memory   unlimited   unlimited   bytes", "good"),
        ("latency-timer", "sys/class/tty/ttyUSB0/device/latency_timer", "4", "poor"),
        ("latency-timer", "sys/class/tty/ttyUSB0/device/latency_timer", "5", "unfit"),
        ("latency-timer", "sys/class/tty/ttyUSB0/device/latency_timer", None, "good"),
        ("processors", "sys/devices/virtual/workqueue/cpumask", "f", "poor"),
        ("clock", "sys/devices/system/clocksource/clocksource0/current_clocksource", "acpi_pm", "poor"),
        ("huge-pages", "sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never", "poor"),
        ("huge-pages", "sys/kernel/mm/transparent_hugepage/enabled", None, "good"),
        ("idle", "sys/devices/system/cpu/cpu0/cpuidle/state2/disable", "0", "poor"),
        ("idle", "sys/devices/system/cpu/cpu0/cpuidle/state0/latency", None, "unknown"),
        ("load", "proc/pressure/cpu", "some avg10=12.00 avg60=0.00 avg300=0.00 total=1", "poor"),
        ("usb-interrupts", "run/irqbalance/irqbalance1.sock", "", "poor"),
        ("steal", "proc/stat", "cpu  1 2 3 4", "unknown"),
        ("governor", "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "schedutil", "poor"),
    ],
)
def test_one_setting_of_a_fit_host_is_another(
    check: str, file: str, text: str | None, state: str, tmp_path: Path
) -> None:
    of, _ = host("real-time", tmp_path, **{file: text})
    found = item(of, check)
    assert found.state == state, found
    required = next(one.required for one in CHECKS if one.name == check)
    assert examine(of).verdict == ("unfit" if required and state in ("unfit", "unknown") else "fit")


@pytest.mark.parametrize(
    ("files", "found", "state"),
    [
        ({"sys/kernel/debug/sched/preempt": "none voluntary (full)"}, "PREEMPT_DYNAMIC, full", "good"),
        ({"sys/kernel/debug/sched/preempt": "none voluntary full (lazy)"}, "PREEMPT_DYNAMIC, lazy", "good"),
        ({"proc/cmdline": "root=/dev/sda1 preempt=full quiet"}, "PREEMPT_DYNAMIC, full", "good"),
        ({"boot/config-6.8.0-41-generic": "CONFIG_PREEMPT=y"}, "PREEMPT_DYNAMIC, full", "good"),
        ({}, "PREEMPT_DYNAMIC, voluntary", "unfit"),
        ({"boot/config-6.8.0-41-generic": None}, "this user cannot read", "unknown"),
        ({"boot/config-6.8.0-41-generic": None, "proc/sys/kernel/version": "#1 SMP"}, "none or voluntary", "unfit"),
        ({"boot/config-6.8.0-41-generic": None, "proc/sys/kernel/version": "#1 SMP PREEMPT"}, "full", "good"),
    ],
)
def test_the_preemption_model_is_the_one_in_force(
    files: dict[str, str | None], found: str, state: str, tmp_path: Path
) -> None:
    one = item(host("laptop", tmp_path, **files)[0], "preemption")
    assert (found in one.found, one.state) == (True, state), one
    assert one.lowers == (state != "good")


def test_the_costs_are_the_hosts_own_numbers(tmp_path: Path) -> None:
    of, _ = host("laptop", tmp_path)
    assert "10.5 times as long" in item(of, "governor").costs
    assert item(of, "governor").found == "performance on 7, powersave on 0-1"
    assert "890 µs" in item(of, "idle").costs
    assert "340 ms" in item(of, "thermal").costs
    assert "16 ms" in item(of, "latency-timer").costs
    assert item(of, "swap").found == "402 of 8192 MiB used, swappiness 60"
    assert "rtprio limit 0, this process has not CAP_SYS_NICE" in item(of, "priority").found


def test_a_processor_is_named_for_the_loop(tmp_path: Path) -> None:
    assert "run with --cpu 3" in item(host("real-time", tmp_path / "a")[0], "processors").found
    assert "run with --cpu 6" in item(host("container", tmp_path / "b")[0], "processors").found
    laptop = item(host("laptop", tmp_path / "c")[0], "processors")
    assert laptop.remedy == "`echo 7f > /sys/devices/virtual/workqueue/cpumask`, and run with --cpu 7"
    assert item(host("virtual-machine", tmp_path / "d")[0], "processors").found.startswith("1, for the loop and")


def test_more_samples_need_more_locked_memory(tmp_path: Path) -> None:
    of, _ = host("real-time", tmp_path)
    assert item(of, "memory-lock").state == "good"
    one = item(replace(of, rate_hz=10_000.0, channels=8), "memory-lock")
    assert one.state == "unfit"
    kib = int(re.search(r"memlock (\d+)", one.remedy)[1])  # type: ignore[index]
    assert session_bytes(10_000.0, 8) <= kib * 1024 < 4 * session_bytes(10_000.0, 8)


def test_the_states_of_a_channel_stay_below_their_bound() -> None:
    assert ctypes.sizeof(struct("ControllerState")) + ctypes.sizeof(struct("LoopState")) <= STATE_BYTES


def locked_bytes() -> int:
    return int(re.search(r"VmLck:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def test_a_session_locks_no_more_than_the_check_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[int] = []

    class Watched(Loop):
        def lock_memory(self) -> str:
            before = locked_bytes()
            outcome = super().lock_memory()
            locked.append(locked_bytes() - before)
            return outcome

    monkeypatch.setattr("ionto_rt.session.Loop", Watched)
    with open_device("virtual:") as device:
        Session(treatment(STEP), device, out_dir=tmp_path).run()
    assert len(locked) == 1 and locked[0] <= session_bytes(1000.0, 1)


@pytest.mark.parametrize(("text", "cpus"), [("0-3,6", {0, 1, 2, 3, 6}), ("", set()), ("5", {5})])
def test_lists_of_processors_are_read_as_they_are_written(text: str, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus and written(cpus) == text


def test_masks_of_processors_are_read_in_groups_of_32() -> None:
    assert cpu_mask("00000001,0000000f") == {0, 1, 2, 3, 32}


def test_this_host_is_examined_in_a_moment_and_left_as_it_was() -> None:
    before = os.sched_getscheduler(0), os.sched_getaffinity(0)
    began = time.thread_time()
    fitness = examine_this_host()
    spent_s = time.thread_time() - began
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == before
    assert spent_s < 0.05
    assert [one.name for one in fitness.items] == [check.name for check in CHECKS if not check.of_a_port]
    granted = fitness.thread["priority"].startswith("SCHED_FIFO")
    assert (next(one for one in fitness.items if one.name == "priority").state == "good") == granted
    assert (fitness.verdict == "fit") == (not any(one.lowers for one in fitness.items))


def test_the_deadlines_follow_the_verdict(tmp_path: Path) -> None:
    fit, unfit = (examine(host(name, tmp_path / name)[0]) for name in ("real-time", "laptop"))
    assert deadline_profile({"fitness": fit.as_record()}) is FIT
    assert deadline_profile({"fitness": unfit.as_record(accepted=True)}) is UNFIT
    assert fit.as_record() == {"verdict": "fit", "profile": "fit", "poor": [], "unfit": []}
    record = unfit.as_record(accepted=True)
    assert record["accepted"] is True and record["profile"] == "unfit"
    assert record["unfit"][0].startswith("real-time priority: ordinary (Operation not permitted)")


def named(uri: str, model: str, **facts: Any) -> Device:
    device = Device(uri, port=None, **facts)  # type: ignore[arg-type]
    device.hello = hello(model=model)
    return device


def test_hardware_is_what_is_not_known_to_be_virtual() -> None:
    assert named("serial:/dev/ttyACM0", "daq").hardware
    assert named("acme:1", "daq").hardware
    assert not named("serial:/dev/pts/3", "ionto-virtual").hardware
    assert not named("virtual:", "ionto-virtual").hardware
    assert not named("sim:?seed=3", "ionto-virtual").hardware
    assert not named("acme:1", "daq", virtual=True).hardware


def test_an_unfit_host_is_refused_on_hardware_alone(tmp_path: Path) -> None:
    fit, unfit = (examine(host(name, tmp_path / name)[0]) for name in ("real-time", "laptop"))
    refuse_unfit(fit, named("serial:/dev/ttyACM0", "daq"))
    refuse_unfit(unfit, named("virtual:", "ionto-virtual"))
    with pytest.raises(RefusedError) as refused:
        refuse_unfit(unfit, named("serial:/dev/ttyACM0", "daq"))
    line = str(refused.value)
    for part in ("serial:/dev/ttyACM0", "real-time priority: ordinary", "`ionto-rt doctor`", "--accept-unfit"):
        assert part in line, line


def unfit_host(tmp_path: Path) -> Fitness:
    return examine(host("laptop", tmp_path / "laptop")[0])


def test_a_session_on_hardware_needs_a_fit_host_or_a_person_who_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the virtual one on its pseudo-terminal, under a URI that makes it hardware."""
    found = unfit_host(tmp_path)
    monkeypatch.setattr("ionto_rt.session.examine_for", lambda device, cpu: found)
    with open_device("virtual:") as device:
        device.uri, device.hello = "acme:1", replace(device.hello, model="daq")
        with pytest.raises(RefusedError, match="unfit for hardware"):
            Session(treatment(STEP), device, out_dir=tmp_path / "sessions")
        assert not (tmp_path / "sessions").exists()
        receipt = Session(treatment(STEP), device, out_dir=tmp_path / "sessions", accept_unfit=True).run()
    kept = Record.open(Path(receipt["record"])).session["host"]
    assert kept["fitness"] == found.as_record(accepted=True)
    assert kept["deadlines"] == "unfit"
    assert kept["priority"] == found.thread["priority"]


def test_on_a_virtual_clock_the_host_does_not_matter_but_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = unfit_host(tmp_path)
    monkeypatch.setattr("ionto_rt.session.examine_for", lambda device, cpu: found)
    with open_device("sim:") as device:
        receipt = Session(treatment(STEP), device, out_dir=tmp_path, speed="max").run()
    kept = Record.open(Path(receipt["record"])).session["host"]
    assert kept["fitness"] == found.as_record()
    assert kept["deadlines"] == "fit"


def test_a_device_tells_the_checks_its_rate_and_channels() -> None:
    with open_device("sim:?rate=10000") as device:
        one = next(one for one in examine_for(device).items if one.name == "memory-lock")
    assert "10000 Hz and 1 channel" in one.found


def test_low_latency_is_what_the_driver_reads_back() -> None:
    """A pseudo-terminal offers none; a driver that forgets the flag is told from one that keeps it."""
    with open_device("virtual:") as device:
        assert isinstance(device.port, SerialBytes)
        assert device.port.low_latency == "not offered by the driver"
        device.port.port.set_low_latency_mode = lambda on: None  # type: ignore[method-assign]
        assert device.port._ask_low_latency() == "taken but not kept by the driver"


@pytest.mark.parametrize("width", [60, 80, 200, None])
@pytest.mark.parametrize("name", [path.stem for path in HOSTS])
def test_the_table_fits_its_terminal_and_ends_in_the_verdict(name: str, width: int | None, tmp_path: Path) -> None:
    fitness = examine(host(name, tmp_path)[0])
    text = re.sub(r"\x1b\[[\d;]*m", "", _table(fitness, {"late_pause_ms": 5.0, "late_stop_ms": 10.0}, width))
    lines = text.splitlines()
    if width is not None:
        commands = re.findall(r"`[^`]*`,?", text)
        assert not any("\n" in command for command in commands)
        assert all(len(line) <= max(width, 18 + max(map(len, commands), default=0)) for line in lines)
    states = re.findall(r"^(unfit|poor|unknown|good) ", text.rpartition("\n\n")[0], re.M)
    assert len(states) == len(fitness.items)
    assert states == sorted(states, key=["unfit", "poor", "unknown", "good"].index)
    assert text.rpartition("\n\n")[2].startswith(f"{fitness.verdict}: a session in real time gets the deadlines")
    flat = re.sub(r"\s+", " ", text)
    for one in fitness.items:
        assert one.title in flat and one.found in flat
        assert not (one.lowers or one.state == "poor") or (one.costs in flat and one.remedy in flat)


def test_doctor_ends_by_its_verdict(tmp_path: Path) -> None:
    fitness = examine_this_host()
    done = ionto("doctor", cwd=tmp_path)
    assert (done.code, done.err) == (0 if fitness.verdict == "fit" else 1, "")
    assert done.out.splitlines()[-1].startswith(f"{fitness.verdict}: ")
    facts = ionto("doctor", "--json", cwd=tmp_path)
    assert facts.code == done.code
    assert facts.receipt["verdict"] == fitness.verdict
    assert facts.receipt["deadlines"]["late_pause_ms"] == (5 if fitness.verdict == "fit" else 30)
    assert {one["name"] for one in facts.receipt["checks"]} == {one.name for one in fitness.items}
    assert not list(tmp_path.iterdir())


def test_doctor_looks_at_the_port_of_a_device(tmp_path: Path) -> None:
    with started("virtual-device", "--link", "port", cwd=tmp_path) as device:
        assert device.stdout is not None and device.stdout.readline()
        facts = ionto("doctor", "--device", "serial:port", "--json", cwd=tmp_path).receipt
    found = {one["name"]: one for one in facts["checks"]}
    assert found["low-latency"]["found"] == "not offered by the driver"
    assert found["latency-timer"]["state"] == "good"


@pytest.mark.parametrize(("uri", "said"), [("serial:/ionto/none", "no such port"), ("nonsense", "not a device URI")])
def test_doctor_refuses_a_device_that_is_none(uri: str, said: str, tmp_path: Path) -> None:
    assert said in ionto("doctor", "--device", uri, cwd=tmp_path).refusal


def test_run_says_that_its_host_is_unfit_and_goes_on(tmp_path: Path) -> None:
    path = written_treatment(tmp_path, current="0.4 mA", hold="1 s", ramp="0.5 s")
    cpu = max(os.sched_getaffinity(0))
    done = ionto("run", path, "--json", "--cpu", str(cpu), cwd=tmp_path)
    unfit = examine_this_host().verdict == "unfit"
    assert done.err.count("this host is unfit (") == unfit
    (folder,) = sessions(tmp_path / "sessions")
    kept = Record.open(folder).session["host"]
    assert kept["affinity"] == f"cpu {cpu}"
    assert kept["deadlines"] == kept["fitness"]["profile"]
    assert ionto("run", path, "--cpu", "4096", cwd=tmp_path).refusal.startswith("--cpu = 4096: no such processor")


def table_of_the_page() -> str:
    """The checks as docs/real-time.md has them."""
    rows = ["| what | fit, or good | what it costs otherwise | what to change |", "|---|---|---|---|"]
    for check in CHECKS:
        title = f"**{check.title}**" if check.required else check.title
        rows.append(f"| {title} | {check.wanted} | {check.costs} | {check.remedy} |")
    return "\n".join(rows)


def test_the_page_has_the_checks_of_the_code() -> None:
    found = PAGE_TABLE.search(PAGE.read_text())
    assert found and found[0].strip() == table_of_the_page(), "take it over with python tests/test_fitness.py"


if __name__ == "__main__":
    PAGE.write_text(PAGE_TABLE.sub(lambda _: table_of_the_page() + "\n", PAGE.read_text()))
