"""Is this host fit for real time: what each of its settings costs, and what to change.

One list of checks is the source of `ionto-rt doctor`, of the verdict in every session's record, of the deadlines a
session gets, and of the table in docs/real-time.md. A check reads files below /proc and /sys and takes well under a
millisecond; nothing is changed but in a thread that ends with the check.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ionto_rt.errors import RefusedError

if TYPE_CHECKING:
    from ionto_rt.device import SessionDevice

State = Literal["unfit", "unknown", "poor", "good"]
Verdict = Literal["fit", "unfit"]

RATE_HZ = 1000.0
"""Samples a second of the session that is assumed when none is known."""
EVENT_ROWS = 1024
"""Of the ring of events, for each channel."""
STATE_BYTES = 1 << 20
"""Bound on the states of one channel and of its loop, the longest programme included."""
CODE_BYTES = 5 << 20
"""Bound on what the loop's code is mapped from: the core's modules, and the C library."""
FIFO_SHARE_GOOD = 0.9
FIFO_SHARE_LEAST = 0.5
IDLE_US_MOST = 20
"""A processor that takes longer to wake adds more than a tick's work to each tick."""
SLACK_NS_MOST = 1000
LATENCY_TIMER_GOOD_MS = 1
LOAD_SHARE_MOST = 10.0
"""PSI, in percent: what threads waited for a processor in the last 10 s."""
STEAL_SHARE_MOST = 0.1
"""In percent, since the host was started."""
CAP_IPC_LOCK, CAP_SYS_NICE = 14, 23
GRUB = "in /etc/default/grub, then `update-grub` and start anew"
LIMITS_FILE = "/etc/security/limits.d/ionto-rt.conf"


class Found(NamedTuple):
    """What a check has found. `costs` and `remedy` are those of the check where they are empty."""

    state: State
    found: str
    costs: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Host:
    """Where the checks look: files below `root`, and what a thread was given when it asked.

    `serial` is the path of the device's port, `low_latency` what came of asking it for low latency.
    """

    root: Path = Path("/")
    thread: Mapping[str, str] = field(default_factory=dict)
    rate_hz: float = RATE_HZ
    channels: int = 1
    serial: str | None = None
    low_latency: str = ""

    def text(self, path: str) -> str | None:
        """A file's text without white space at its ends; None if it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file that holds a whole number."""
        text = self.text(path)
        return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return (self.root / path).exists()

    def line(self, path: str, name: str) -> str | None:
        """What a file of `NAME: value` lines says of `name`."""
        match = re.search(rf"^{name}:\s*(.*)$", self.text(path) or "", re.M)
        return match[1] if match else None

    @property
    def cpus(self) -> list[int]:
        """Processors that this process may use."""
        return sorted(cpu_list(self.line("proc/self/status", "Cpus_allowed_list") or "0"))

    def limit(self, name: str) -> float | None:
        """A soft limit of this process, as /proc/self/limits names it."""
        match = re.search(rf"^{name}\s+(\S+)", self.text("proc/self/limits") or "", re.M)
        if match is None:
            return None
        return float("inf") if match[1] == "unlimited" else float(match[1])

    def capable(self, capability: int) -> bool:
        """Whether this process has a capability, by its number."""
        effective = self.line("proc/self/status", "CapEff") or "0"
        return bool(int(effective, 16) >> capability & 1)

    @property
    def tty(self) -> str:
        """Of the port, below /sys."""
        return f"sys/class/tty/{Path(os.path.realpath(self.serial or '')).name}"


def cpu_list(text: str) -> set[int]:
    """Processors of a list as the kernel writes it: 0-3,6."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def cpu_mask(text: str) -> set[int]:
    """Processors of a bit mask as the kernel writes it: f or ffffffff,0000000f."""
    bits = int(text.strip().replace(",", "") or "0", 16)
    return {cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1}


def written(cpus: set[int] | list[int]) -> str:
    """Processors as a list: 0-3,6."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in parts)


def _priority(host: Host) -> Found:
    outcome = host.thread.get("priority", "not tried")
    if outcome.startswith("SCHED_FIFO"):
        return Found("good", outcome)
    limit = host.limit("Max realtime priority")
    has = "has" if host.capable(CAP_SYS_NICE) else "has not"
    return Found("unfit", f"{outcome}; rtprio limit {limit or 0:g}, this process {has} CAP_SYS_NICE")


def _hypervisor(host: Host) -> Found:
    by = host.text("sys/hypervisor/type")
    if by is None and " hypervisor" not in (host.text("proc/cpuinfo") or ""):
        return Found("good", "none")
    name = by or host.text("sys/class/dmi/id/sys_vendor") or "the processor says so"
    return Found("unfit", f"this is a virtual machine ({name})")


def _configured(host: Host) -> str:
    """The kernel's build configuration; empty if this user cannot read it."""
    release = host.text("proc/sys/kernel/osrelease")
    text = host.text(f"boot/config-{release}")
    if text is None and host.exists("proc/config.gz"):
        import gzip

        try:
            text = gzip.decompress((host.root / "proc/config.gz").read_bytes()).decode("ascii", "replace")
        except (OSError, EOFError):
            text = None
    return text or ""


def _preemption(host: Host) -> Found:
    version = host.text("proc/sys/kernel/version") or ""
    if host.text("sys/kernel/realtime") == "1" or "PREEMPT_RT" in version:
        return Found("good", "PREEMPT_RT")
    # Later sources are what the earlier ones were started from: in force now, asked for at boot, built in.
    now = re.search(r"\((\w+)\)", host.text("sys/kernel/debug/sched/preempt") or "")
    boot = re.search(r"(?:^|\s)preempt=(\w+)", host.text("proc/cmdline") or "")
    built = re.search(r"^CONFIG_PREEMPT_(NONE|VOLUNTARY|LAZY)=y$", configured := _configured(host), re.M)
    if now or boot:
        mode = (now or boot)[1]  # type: ignore[index]
    elif built:
        mode = built[1].lower()
    elif re.search(r"^CONFIG_PREEMPT=y$", configured, re.M):
        mode = "full"
    elif "PREEMPT_DYNAMIC" in version:
        return Found("unknown", "PREEMPT_DYNAMIC, and this user cannot read which model is in force")
    else:
        mode = "full" if re.search(r"\bPREEMPT\b", version) else "none or voluntary"
    dynamic = "PREEMPT_DYNAMIC, " if "PREEMPT_DYNAMIC" in version else ""
    # A lazy kernel lets ordinary threads go on for a while, never before one of real-time priority.
    return Found("good" if mode in ("full", "lazy") else "unfit", f"{dynamic}{mode}")


def _throttling(host: Host) -> Found:
    runtime = host.number("proc/sys/kernel/sched_rt_runtime_us")
    period = host.number("proc/sys/kernel/sched_rt_period_us")
    if runtime is None or not period:
        return Found("unknown", "this kernel does not say")
    if runtime < 0:
        return Found("good", "none")
    share = runtime / period
    state: State = "good" if share >= FIFO_SHARE_GOOD else "poor" if share >= FIFO_SHARE_LEAST else "unfit"
    stop = (period - runtime) / 1000.0
    costs = f"{stop:g} ms without the loop in every {period / 1000.0:g} ms in which it never rested"
    return Found(state, f"{runtime:,} of every {period:,} µs", "" if state == "good" else costs)


def session_bytes(rate_hz: float, channels: int) -> int:
    """What a session locks into memory: the ring of telemetry, that of events, states, and the loop's code."""
    from ionto_rt.configuration import RING_S
    from ionto_rt.core.controller import empty_ticks

    rows = (RING_S * rate_hz + EVENT_ROWS) * channels
    return int(rows * empty_ticks(1).dtype.itemsize) + channels * STATE_BYTES + CODE_BYTES


def _memory_lock(host: Host) -> Found:
    limit = host.limit("Max locked memory")
    if limit is None:
        return Found("unknown", "this process cannot read its limits")
    needed = session_bytes(host.rate_hz, host.channels)
    of = f"a session of {host.rate_hz:g} Hz and {host.channels} channel{'s' * (host.channels > 1)}"
    wanted = f"{needed / 2**20:.1f} MiB needed by {of}"
    if host.capable(CAP_IPC_LOCK):
        return Found("good", f"no limit (CAP_IPC_LOCK), {wanted}")
    given = "no limit" if limit == float("inf") else f"{limit / 2**20:.4g} MiB"
    kib = 1 << (needed // 1024).bit_length()
    remedy = f"`@realtime - memlock {kib}` in {LIMITS_FILE}, and log in anew"
    return Found("good" if limit >= needed else "unfit", f"{given}, {wanted}", remedy=remedy)


def _swap(host: Host) -> Found:
    areas = [line.split() for line in (host.text("proc/swaps") or "").splitlines()[1:]]
    if not areas:
        return Found("good", "none")
    size, used = (sum(int(area[column]) for area in areas) / 1024.0 for column in (2, 3))
    text = f"{used:.0f} of {size:.0f} MiB used, swappiness {host.text('proc/sys/vm/swappiness')}"
    return Found("unfit" if used else "poor", text)


def _latency_timer(host: Host) -> Found:
    timer_ms = host.number(f"{host.tty}/device/latency_timer")
    if timer_ms is None:
        return Found("good", "the port's driver has none")
    from ionto_rt.configuration import FIT

    state: State = "good" if timer_ms <= LATENCY_TIMER_GOOD_MS else "poor"
    if timer_ms * 1000 >= FIT.late_pause_us:
        state = "unfit"
    remedy = f"`echo 1 > /{host.tty}/device/latency_timer`"
    return Found(state, f"{timer_ms} ms", f"samples come up to {timer_ms} ms late, in batches", remedy)


def _low_latency(host: Host) -> Found:
    if host.low_latency == "set":
        return Found("good", "set, and read back")
    driver = Path(os.path.realpath(host.root / host.tty / "device" / "driver")).name
    if driver == "cdc_acm":
        return Found("good", f"{host.low_latency}; {driver} delivers at once without it")
    return Found("poor" if host.low_latency else "unknown", host.low_latency or "not asked")


def _processors(host: Host) -> Found:
    cpus = set(host.cpus)
    workers = cpu_mask(host.text("sys/devices/virtual/workqueue/cpumask") or "0") or cpus
    isolated = cpu_list(host.text("sys/devices/system/cpu/isolated") or "")
    if len(cpus) == 1:
        costs = "what the loop uses of it is missing where its samples are delivered, and each of them late"
        return Found("poor", "1, for the loop and for what delivers its samples", costs, "use a host with two or more")
    text = f"{len(cpus)}; the kernel's workers on {written(workers)}"
    if isolated:
        text += f", isolated {written(isolated)}"
    free = cpus - workers
    if free:
        return Found("good", f"{text}; run with --cpu {max(free & isolated or free)}")
    kept, last = cpus - {max(cpus)}, max(cpus)
    mask = sum(1 << cpu for cpu in kept)
    remedy = f"`echo {mask:x} > /sys/devices/virtual/workqueue/cpumask`, and run with --cpu {last}"
    return Found("poor", text, remedy=remedy)


def _governor(host: Host) -> Found:
    at = {cpu: f"sys/devices/system/cpu/cpu{cpu}/cpufreq" for cpu in host.cpus}
    governors = {cpu: name for cpu in at if (name := host.text(f"{at[cpu]}/scaling_governor"))}
    if not governors:
        return Found("unknown", "this host does not let its kernel choose frequencies")
    slow = [cpu for cpu, name in governors.items() if name != "performance"]
    text = ", ".join(
        f"{name} on {written([cpu for cpu in governors if governors[cpu] == name])}"
        for name in sorted(set(governors.values()))
    )
    if not slow:
        return Found("good", text)
    low, high = (host.number(f"{at[slow[0]]}/cpuinfo_{which}_freq") for which in ("min", "max"))
    costs = ""
    if low and high:
        costs = f"a tick at {low / 1e6:.1f} in place of {high / 1e6:.1f} GHz takes {high / low:.1f} times as long"
    return Found("poor", text, costs)


def _thermal(host: Host) -> Found:
    at = "sys/devices/system/cpu/cpu{}/thermal_throttle/{}_throttle_count"
    found = [host.number(at.format(cpu, what)) for cpu in host.cpus for what in ("core", "package")]
    counts = [count for count in found if count is not None]
    if not counts:
        return Found("unknown", "not counted here")
    if not max(counts):
        return Found("good", "never since start")
    at = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_total_time_ms"
    times_ms = [time_ms for cpu in host.cpus if (time_ms := host.number(at.format(cpu))) is not None]
    costs = f"{max(times_ms):,} ms of lowered clock since start (thermal_throttle)" if times_ms else ""
    return Found("poor", f"{max(counts):,} times since start", costs)


def _idle(host: Host) -> Found:
    states: list[tuple[int, str]] = []
    for k in range(16):
        at = f"sys/devices/system/cpu/cpu{host.cpus[0]}/cpuidle/state{k}"
        latency_us = host.number(f"{at}/latency")
        if latency_us is None:
            break
        if host.number(f"{at}/disable") != 1:
            states.append((latency_us, host.text(f"{at}/name") or f"state {k}"))
    asks = os.access(host.root / "dev/cpu_dma_latency", os.W_OK)
    may = f"/dev/cpu_dma_latency {'may' if asks else 'may not'} be opened"
    if not states:
        return Found("unknown", f"the kernel names no idle states; {may}")
    latency_us, name = max(states)
    state: State = "good" if latency_us <= IDLE_US_MOST else "poor"
    return Found(state, f"{name}, {latency_us} µs to wake; {may}", f"{latency_us} µs each time a processor wakes")


def _clock(host: Host) -> Found:
    name = host.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if name is None:
        return Found("unknown", "the kernel does not say")
    fast = name in ("tsc", "kvm-clock", "arch_sys_counter", "timebase") or name.startswith("hyperv_clocksource_tsc")
    return Found("good" if fast else "poor", name)


def _slack(host: Host) -> Found:
    outcome = host.thread.get("timer_slack", "")
    match = re.fullmatch(r"(\d+) ns", outcome)
    if match is None:
        return Found("unknown", outcome or "not tried")
    return Found("good" if int(match[1]) <= SLACK_NS_MOST else "poor", f"{int(match[1]):,} ns")


def _usb_interrupts(host: Host) -> Found:
    lines = (host.text("proc/interrupts") or "").splitlines()
    found = []
    for line in lines:
        number, _, rest = line.strip().partition(":")
        driver = re.search(r"\b([xeou]hci_hcd)\b", rest)
        if driver and number.isdigit():
            cpus = host.text(f"proc/irq/{number}/effective_affinity_list") or host.text(
                f"proc/irq/{number}/smp_affinity_list"
            )
            found.append(f"{driver[1]} (interrupt {number}) on {cpus or '?'}")
    text = ", ".join(found) or "no USB controller has an interrupt here"
    balanced = host.exists("sys/fs/cgroup/system.slice/irqbalance.service") or host.exists("run/irqbalance")
    if not balanced or not found:
        return Found("good", f"{text}; irqbalance {'runs' if balanced else 'does not run'}")
    return Found("poor", f"{text}; irqbalance runs")


def _load(host: Host) -> Found:
    load = (host.text("proc/loadavg") or "").split()
    pressure = re.search(r"^some avg10=([\d.]+)", host.text("proc/pressure/cpu") or "", re.M)
    if not load:
        return Found("unknown", "the kernel does not say")
    text = f"load {load[0]} on {len(host.cpus)}"
    busy = float(load[0]) > len(host.cpus)
    costs = ""
    if pressure:
        text += f", threads waited {float(pressure[1]):g} % of the last 10 s"
        busy = float(pressure[1]) > LOAD_SHARE_MOST
        costs = f"a thread without real-time priority waits {float(pressure[1]):g} % of its time (/proc/pressure/cpu)"
    return Found("poor" if busy else "good", text, costs if busy else "")


def _quota(host: Host) -> Found:
    path = (host.line("proc/self/cgroup", "0:") or host.line("proc/self/cgroup", "0::") or "").lstrip(":").strip("/")
    least: tuple[float, float, float] | None = None
    parts = path.split("/") if path else []
    for depth in range(len(parts) + 1):
        text = host.text("/".join(["sys/fs/cgroup", *parts[:depth], "cpu.max"])) or "max"
        match = re.fullmatch(r"(\d+) (\d+)", text)
        if match:
            quota, period = float(match[1]), float(match[2])
            least = min(least or (quota / period, quota, period), (quota / period, quota, period))
    if least is None:
        return Found("good", "none")
    _, quota, period = least
    costs = f"all ordinary threads stand still for up to {period / 1000.0:g} ms when the share is used up (cpu.max)"
    return Found("poor", f"{quota / 1000.0:g} ms of processor time each {period / 1000.0:g} ms", costs)


def _steal(host: Host) -> Found:
    match = re.search(r"^cpu +(.*)$", host.text("proc/stat") or "", re.M)
    fields = [int(word) for word in match[1].split()] if match else []
    if len(fields) < 8 or not sum(fields[:8]):
        return Found("unknown", "the kernel does not say")
    share = 100.0 * fields[7] / sum(fields[:8])
    text = f"{share:.2g} % since start" if share else "none since start"
    return Found("poor" if share > STEAL_SHARE_MOST else "good", text)


def _huge_pages(host: Host) -> Found:
    mode = re.search(r"\[(\w+)\]", host.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
    if mode is None:
        return Found("good", "not in this kernel")
    return Found("poor" if mode[1] == "always" else "good", mode[1])


@dataclass(frozen=True)
class Check:
    """One thing to look at. What it must be for a fit host (`wanted`), what it costs otherwise, what to change.

    A `required` one that is unfit, or that nobody can know, makes the host unfit.
    """

    name: str
    title: str
    required: bool
    wanted: str
    costs: str
    remedy: str
    examine: Callable[[Host], Found]
    of_a_port: bool = False


CHECKS = (
    Check(
        "priority",
        "real-time priority",
        True,
        "a thread is given SCHED_FIFO",
        "wakes 65 µs late in place of 14 (p50; p99 98 in place of 48): cyclictest at 1 kHz on two virtual cores",
        f"`@realtime - rtprio 50` in {LIMITS_FILE}, `groupadd -f realtime && usermod -aG realtime $USER`, and log in "
        "anew; in a container `--cap-add SYS_NICE`",
        _priority,
    ),
    Check(
        "hypervisor",
        "hypervisor",
        True,
        "none",
        "stalls of 4 to 30 ms, one in 2 to 30 s, whatever the priority: cyclictest at 1 kHz on two virtual cores",
        "run on the machine itself",
        _hypervisor,
    ),
    Check(
        "preemption",
        "kernel preemption",
        True,
        "PREEMPT_RT, full or lazy",
        "with none or voluntary a wake-up waits for the end of another's system call, without a bound; with full it is "
        "in the range of milliseconds (Kconfig.preempt of the kernel)",
        f"`preempt=full` in GRUB_CMDLINE_LINUX {GRUB}; on Debian better `apt-get install linux-image-rt-amd64`",
        _preemption,
    ),
    Check(
        "throttling",
        "real-time throttling",
        True,
        "half of each period, or more, is the loop's; better nine tenths",
        "the rest of each period without the loop, if it never rests: 50 ms in each second by default "
        "(kernel.sched_rt_runtime_us)",
        "`sysctl -w kernel.sched_rt_runtime_us=950000`; for good in /etc/sysctl.d/ionto-rt.conf",
        _throttling,
    ),
    Check(
        "memory-lock",
        "locked memory",
        True,
        "limit as high as rings, states and code of a session's loop",
        "a page that was taken away is read back in the middle of a tick: 48 µs (p50; worst 485) from a virtual disk, "
        "2,048 pages on two virtual cores",
        f"`@realtime - memlock KIB` in {LIMITS_FILE}, and log in anew",
        _memory_lock,
    ),
    Check(
        "swap",
        "swap",
        True,
        "unused; better none",
        "what is not locked (Python, libraries) is read back page by page: 48 µs each (p50; worst 485), as above",
        "`swapoff -a`, and take its line out of /etc/fstab",
        _swap,
    ),
    Check(
        "latency-timer",
        "FTDI latency timer",
        True,
        "1 ms; less than the 5 ms after which late data pause",
        "samples come in batches, up to 16 ms late by default (FTDI AN232B-04)",
        "`echo 1 > /sys/class/tty/ttyUSB0/device/latency_timer`",
        _latency_timer,
        of_a_port=True,
    ),
    Check(
        "low-latency",
        "serial low latency",
        False,
        "set, and read back as set",
        "an FTDI port stays at its latency timer: up to 16 ms by default (FTDI AN232B-04); cdc_acm loses nothing",
        "`setserial /dev/ttyUSB0 low_latency`",
        _low_latency,
        of_a_port=True,
    ),
    Check(
        "processors",
        "processors",
        False,
        "one that the kernel's unbound workers leave to the loop",
        "a worker of ordinary priority delivers what a pty or USB-serial port receives, and the loop starves it: at "
        "10 kHz 31,000 to 50,000 of 50,000 commands late in place of 3,000, over a pty on two virtual cores",
        "`echo 1 > /sys/devices/virtual/workqueue/cpumask`, and run with --cpu N of another processor",
        _processors,
    ),
    Check(
        "governor",
        "frequency governor",
        False,
        "performance, on each processor",
        "a tick at the lowest frequency takes highest/lowest times as long (cpuinfo_max_freq, cpuinfo_min_freq)",
        "`cpupower frequency-set -g performance`",
        _governor,
    ),
    Check(
        "thermal",
        "thermal throttling",
        False,
        "never since start",
        "the clock falls each time, for as long as core_throttle_total_time_ms says (thermal_throttle)",
        "clean the fan, let air in, take load off",
        _thermal,
    ),
    Check(
        "idle",
        "idle states",
        False,
        f"the deepest takes {IDLE_US_MOST} µs or less to wake",
        "its wake-up time, each tick (cpuidle/stateN/latency)",
        f"`cpupower idle-set -D {IDLE_US_MOST}`",
        _idle,
    ),
    Check(
        "clock",
        "clock source",
        False,
        "tsc, or another that is read without a system call",
        "163 ns and more for a reading in place of 21, several times a tick: measured on two virtual cores",
        f"`tsc=reliable` in GRUB_CMDLINE_LINUX {GRUB}, if the processors' counters do agree",
        _clock,
    ),
    Check(
        "slack",
        "timer slack",
        False,
        "1 µs or less",
        "an ordinary thread wakes 79 µs late in place of 41 (p50), 50 µs slack beside 1 ns: nanosleep on two virtual "
        "cores; SCHED_FIFO has none",
        "give real-time priority, see there",
        _slack,
    ),
    Check(
        "usb-interrupts",
        "interrupts of USB",
        False,
        "irqbalance does not move them",
        "each 10 s (irqbalance's interval) it may move them to the loop's processor",
        "`systemctl disable --now irqbalance`",
        _usb_interrupts,
    ),
    Check(
        "load",
        "other load",
        False,
        f"threads wait less than {LOAD_SHARE_MOST:g} % of the time for a processor",
        "a thread without real-time priority waits for that share of its time (/proc/pressure/cpu)",
        "end what else runs: `ps -eo pcpu,pid,args --sort=-pcpu | head`",
        _load,
    ),
    Check(
        "quota",
        "processor quota",
        False,
        "none",
        "all ordinary threads stand still for up to a period, 100 ms by default, when it is used up (cpu.max)",
        "start the container without --cpus, or give its slice CPUQuota= in systemd without a value",
        _quota,
    ),
    Check(
        "steal",
        "stolen time",
        False,
        f"{STEAL_SHARE_MOST} % or less",
        "that share of the time another guest had the processor (/proc/stat)",
        "run on the machine itself",
        _steal,
    ),
    Check(
        "huge-pages",
        "transparent huge pages",
        False,
        "madvise or never",
        "a first touch maps 2 MiB at once: 4.7 ms in place of 1.2 µs (p50), measured on two virtual cores",
        "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`; for good `transparent_hugepage=madvise` in "
        f"GRUB_CMDLINE_LINUX {GRUB}",
        _huge_pages,
    ),
)


@dataclass(frozen=True)
class Item:
    """The result of one check. `lowers`: the host is unfit because of it."""

    name: str
    title: str
    state: State
    found: str
    costs: str
    remedy: str
    lowers: bool

    @property
    def line(self) -> str:
        """Title and what was found."""
        return f"{self.title}: {self.found}"


@dataclass(frozen=True)
class Fitness:
    """All results, and what a thread was given that asked."""

    items: tuple[Item, ...]
    thread: Mapping[str, str]

    @property
    def verdict(self) -> Verdict:
        """Fit: this host can keep the deadlines of the fit profile."""
        return "unfit" if any(item.lowers for item in self.items) else "fit"

    @property
    def profile(self) -> Verdict:
        """Name of the deadline profile that a session in real time gets."""
        return self.verdict

    @property
    def worst_first(self) -> tuple[Item, ...]:
        """Those that lower the verdict, then poor ones, unknown ones, good ones."""
        order: Mapping[State, int] = {"unfit": 0, "poor": 1, "unknown": 2, "good": 3}
        return tuple(sorted(self.items, key=lambda item: (not item.lowers, order[item.state])))

    def as_record(self, *, accepted: bool = False) -> dict[str, Any]:
        """For the record: verdict, profile, what is poor and what is unfit; `accepted` if a person took it so."""
        lines: dict[str, list[str]] = {
            "poor": [item.line for item in self.items if item.state == "poor" and not item.lowers],
            "unfit": [item.line for item in self.items if item.lowers],
        }
        record: dict[str, Any] = {"verdict": self.verdict, "profile": self.profile, **lines}
        return record | ({"accepted": True} if accepted else {})

    def as_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "verdict": self.verdict,
            "profile": self.profile,
            "thread": dict(self.thread),
            "checks": [asdict(item) for item in self.worst_first],
        }


def _items(host: Host) -> Iterator[Item]:
    for check in CHECKS:
        if check.of_a_port and host.serial is None:
            continue
        found = check.examine(host)
        lowers = check.required and found.state in ("unfit", "unknown")
        yield Item(
            check.name,
            check.title,
            found.state,
            found.found,
            found.costs or check.costs,
            found.remedy or check.remedy,
            lowers,
        )


def examine(host: Host) -> Fitness:
    """Carry out the checks on what `host` names."""
    return Fitness(tuple(_items(host)), host.thread)


def examine_this_host(
    *,
    rate_hz: float = RATE_HZ,
    channels: int = 1,
    serial: str | None = None,
    low_latency: str = "",
    cpu: int | None = None,
) -> Fitness:
    """Carry out the checks here. What the loop's thread would ask for is tried in a thread that ends with it.

    `rate_hz` and `channels` are those of the session, `cpu` the processor that its loop is to stay on.
    """
    from ionto_rt.host import prepare_thread

    thread: dict[str, str] = {}
    trial = threading.Thread(target=lambda: thread.update(prepare_thread(cpu)), name="ionto-rt trial")
    trial.start()
    trial.join()
    return examine(Host(Path("/"), thread, rate_hz, channels, serial, low_latency))


def examine_for(device: "SessionDevice", *, cpu: int | None = None) -> Fitness:
    """Carry out the checks for a session on an open device."""
    scheme, _, path = device.uri.partition(":")
    return examine_this_host(
        rate_hz=1.0 / device.hello.tick_s,
        channels=device.hello.channels,
        serial=path if scheme == "serial" and device.hardware else None,
        low_latency=getattr(device.port, "low_latency", ""),
        cpu=cpu,
    )


def refuse_unfit(fitness: Fitness, device: "SessionDevice") -> None:
    """RefusedError, with the worst reason, if the host is unfit and the device could drive current through somebody."""
    if fitness.verdict == "unfit" and device.hardware:
        raise RefusedError(
            f"this host is unfit for hardware ({fitness.worst_first[0].line})",
            key=device.uri,
            remedy="see `ionto-rt doctor`, or run with --accept-unfit and the slower deadlines",
        )
