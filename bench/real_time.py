"""Real time over a pseudo-terminal, beside a bare host in C on the same device: what the benches of the loop share.

The device measures: from just before it writes a sample to its reading of the command that answers it (its option
`round-trip`), and how many commands came late. So both hosts are judged by the same clock, on the other side.
"""

import gc
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_support import HERE, compile_c

from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import Pacing, SegmentKind
from ionto_rt.configuration import UNFIT, controller_config, device_limits
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.device import Device, new_token, open_device
from ionto_rt.host import prepare_thread
from ionto_rt.plan import compile_plan
from ionto_rt.safety import resolve_limits
from ionto_rt.treatment import Treatment

BUSY_THREADS = 4
LEVEL_A = 0.5e-3
NO_DEADLINE_US = 1 << 31
TRIES = 20


@dataclass
class Outcome:
    """What a host made of some seconds; those of several rounds add up."""

    seconds: float = 0.0
    samples: int = 0
    lost: int = 0
    late: int = 0
    lapsed: int = 0
    processor_s: float = 0.0
    minor_faults: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    """Round trips by the device's clock: bucket's end in ns -> how many."""

    def add(self, other: "Outcome") -> None:
        for name in ("seconds", "samples", "lost", "late", "lapsed", "processor_s", "minor_faults"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for end, count in other.counts.items():
            self.counts[end] = self.counts.get(end, 0) + count

    def percentile_us(self, share: float) -> float:
        """Of the round trips."""
        ends = np.array(sorted(self.counts))
        running = np.cumsum([self.counts[end] for end in ends])
        return float(ends[np.searchsorted(running, share * running[-1])]) / 1e3

    @property
    def share_of_a_core(self) -> float:
        return self.processor_s / self.seconds

    def facts(self) -> dict[str, Any]:
        names = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999, "max": 1.0}
        return {
            "round_trip_us": {name: self.percentile_us(share) for name, share in names.items()},
            "samples": self.samples, "lost": self.lost, "late": self.late, "lapsed": self.lapsed,
            "processor_share": self.share_of_a_core, "minor_faults": self.minor_faults,
        }  # fmt: skip


@contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """Threads of Python that take whatever the interpreter gives them, and one that keeps its collector busy."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            sum(range(1000))

    def collect() -> None:
        while not ended.wait(0.01):
            gc.collect()

    threads = [threading.Thread(target=run, name="busy") for _ in range(count)]
    threads += [threading.Thread(target=collect, name="collector")] if count else []
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


class Bench:
    """Runs either host for some seconds on a fresh virtual device of `rate_hz` and `channels`.

    `apart` keeps the host on the last processor and the device on the first, as docs/real-time.md advises.
    """

    def __init__(self, folder: Path, *, rate_hz: int, channels: int = 1, apart: bool = False) -> None:
        self.folder, self.rate_hz, self.channels = folder, rate_hz, channels
        processors = sorted(os.sched_getaffinity(0))
        self.apart = apart and len(processors) > 1
        self.device_cpu, self.cpu = processors[0], processors[-1] if self.apart else None
        self.bare_program = compile_c(HERE / "bare_host.c", folder / "bare_host")

    @contextmanager
    def device(self) -> Iterator[tuple[Device, dict[str, Any], int]]:
        """A device with its limits pushed, the tick's configuration for each of its channels, and the token."""
        self.trips = self.folder / "round-trip.json"
        self.trips.unlink(missing_ok=True)
        uri = f"virtual:?rate={self.rate_hz}&channels={self.channels}&round-trip={self.trips}"
        uri += f"&cpu={self.device_cpu}" if self.apart else ""
        with open_device(uri) as device:
            hello = device.hello
            treatment = Treatment.load(HERE / "minute.toml")
            limits = resolve_limits(treatment, Catalogue.load(), hello.capabilities)
            token = new_token()
            config = controller_config(hello, limits, compile_plan(treatment, limits, hello.tick_s), UNFIT, token)
            # A bench measures late data; it must not be ended by them: feed-forward alone winds nothing up.
            deadlines = ("late_pause_us", "late_stop_us", "overrun_us", "lease_us")
            config["guard"] |= dict.fromkeys(deadlines, NO_DEADLINE_US)
            config["regulator"] |= {"kp": 0.0, "ki": 0.0}
            device.push_limits(**device_limits(hello, limits, token))
            yield device, config, token

    def _outcome(self, seconds: float, counted: Any, **more: Any) -> Outcome:
        trips = json.loads(self.trips.read_text(encoding="utf-8"))
        assert counted is not None
        found = Outcome(seconds, counted.samples, late=counted.late, lapsed=counted.lapsed, **more)
        found.counts = {int(end): int(count) for end, count in trips["counts"]}
        return found

    def own(self, seconds: float, busy: int = 0) -> Outcome:
        """The loop, with a treatment that runs on every channel."""
        ticks = round(seconds * self.rate_hz)
        ended = threading.Event()
        with ExitStack() as stack:
            device, config, token = stack.enter_context(self.device())
            controllers = [Controller(config, [_endless(LEVEL_A)]) for _ in range(self.channels)]
            loop = Loop(
                controllers, device.port.loop_port(), virtual_clock=False,
                ring_rows=8 * self.rate_hz * self.channels,
            )  # fmt: skip
            loop.lock_memory()
            said = ""

            def run() -> None:
                nonlocal said
                prepare_thread(self.cpu)
                said = loop.run(ticks)
                ended.set()

            thread = threading.Thread(target=run)
            stack.enter_context(busy_threads(busy))
            device.arm(Pacing.DEVICE, token)
            thread.start()
            if busy:
                # In a thread of its own: beside busy threads it may take longer than a heartbeat may wait.
                threading.Thread(target=import_something_heavy).start()
            while not ended.wait(0.1):
                loop.beat()
                while len(loop.drain(8192)) == 8192:
                    pass
                loop.drain_events()
            thread.join()
            counted = device.disarm(token)
            counters = loop.counters
        # Where the machine stood still for longer than a lease, the guard has ended it, as it must.
        assert said == "running" or (counted is not None and counted.lapsed), f"{said}: {loop.error}"
        return self._outcome(
            counters["ticks"] / self.rate_hz, counted, lost=counters["lost"], processor_s=counters["processor_s"],
            minor_faults=counters["minor_faults"],
        )  # fmt: skip

    def bare(self, seconds: float, busy: int = 0) -> Outcome:
        """The C loop, by the same priority."""
        ticks = round(seconds * self.rate_hz)
        priority = prepare_thread_priority()
        with ExitStack() as stack:
            device, config, token = stack.enter_context(self.device())
            stack.enter_context(busy_threads(busy))
            device.arm(Pacing.DEVICE, token)
            fd = device.port.loop_port()
            cpu = -1 if self.cpu is None else self.cpu
            words = (fd, self.channels, token, config["lease_ticks"], priority, cpu, ticks)
            done = subprocess.run(
                [self.bare_program, *map(str, words)], pass_fds=[fd], capture_output=True, text=True, check=True
            )
            counted = device.disarm(token)
        return self._outcome(seconds, counted, processor_s=json.loads(done.stdout)["processor_s"])


def import_something_heavy() -> None:
    """What the first import of a large package does: reads its sources and compiles them, some seconds of Python."""
    for path in (Path(np.__file__).parent / "lib").rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def prepare_thread_priority() -> int:
    """The priority that the loop's thread gets on this host; 0 where it gets none."""
    said: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: said.update(prepare_thread()))
    thread.start()
    thread.join()
    words = str(said.get("priority", "")).split()
    return int(words[1]) if words and words[0] == "SCHED_FIFO" else 0


def _endless(level_a: float) -> dict[str, Any]:
    return {
        "kind": int(SegmentKind.DELIVER), "step": 0, "duration_ticks": 0, "level_a": level_a, "slope_a_per_tick": 1e-6,
        "ramp_out_a_per_tick": 1e-6, "charge_c": 0.0, "charge_total_c": 0.0,
    }  # fmt: skip


def interleaved(bench: Bench, *, rounds: int, seconds: float, busy: int = 0) -> tuple[Outcome, Outcome]:
    """Both hosts in turn, in `rounds` of so many seconds of samples each: (own, bare)."""
    own, bare = Outcome(), Outcome()
    for turn in range(1, rounds + 1):
        bare.add(bench.bare(seconds, busy))
        for _ in range(TRIES):
            if own.seconds < turn * seconds:
                own.add(bench.own(turn * seconds - own.seconds, busy))
    assert own.seconds >= rounds * seconds, f"{own.seconds} s: leases lapse too often to measure anything"
    return own, bare
