"""Whole ticks a second: in process with the skin, and in lock-step over a pseudo-terminal beside a bare C ping-pong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_support import CHUNK_TICKS, HERE, OneCpu, PingPong, arm, compile_c, percentiles, side_by_side

from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.device import open_device

SIM_BAR = 1_000_000
PROCESSES_BAR = 1_000_000
PROCESSES = "sim:?cpe=0.85&hydration=5&electroporation=1&sweat=0.03&motion=0.5&electrode-charge=100"
LOCK_STEP_RATIO = 1.3
UNDISTURBED = 10
"""Percentile of the rounds that stands for this code on this machine; the slower ones tell of other programs."""


@pytest.mark.parametrize(
    ("uri", "what", "bar"),
    [
        ("sim:", "loop on sim:, skin and wire included", SIM_BAR),
        (PROCESSES, "the same with ladder and every slow process", PROCESSES_BAR),
    ],
    ids=["plain", "processes"],
)
def test_in_process(benchmark: Any, recording: Any, table: Any, uri: str, what: str, bar: int) -> None:
    with open_device(uri) as device:
        armed = arm(device)
        own, tick = side_by_side(
            benchmark, armed.chunk, recording.tick, rounds=400, per=CHUNK_TICKS, peer_per=len(recording),
            between=armed.turn,
        )  # fmt: skip
    rate = 1e9 / float(np.percentile(own, UNDISTURBED))
    table.add(
        what, f"{rate:,.0f} /s", beside="the tick alone",
        beside_own=f"{1e9 / np.percentile(tick, UNDISTURBED):,.0f} /s",
        ratio=float(np.percentile(own, UNDISTURBED) / np.percentile(tick, UNDISTURBED)),
        bar=f"at least {bar:,} /s", kept=rate >= bar, **benchmark.extra_info,
    )  # fmt: skip


class Pass:
    """The loop on scripted frames of so many channels, from the treatment's start: wire and ticks, no device."""

    TICKS = 1900  # the guard waits 2000 for a heartbeat

    def __init__(self, harness: Any, recording: Any, channels: int) -> None:
        self.harness, self.recording, self.channels = harness, recording, channels
        self.wire = harness.Wire(recording, channels, 0)
        self.begin()

    def begin(self) -> None:
        given = self.recording.controller
        controllers = [Controller(given.config, given.segments) for _ in range(self.channels)]
        port = self.harness.ScriptedPort(self.recording, self.wire)
        self.loop = Loop(
            controllers, port.capsule, virtual_clock=True, ring_rows=self.TICKS * self.channels,
            device_channels=self.channels,
        )  # fmt: skip
        self.port = port

    def __call__(self) -> None:
        said = self.loop.run(self.TICKS)
        assert said == "running", said


@pytest.mark.parametrize("channels", [8, 32])
def test_cost_of_a_channel(benchmark: Any, harness: Any, recording: Any, table: Any, channels: int) -> None:
    one, several = Pass(harness, recording, 1), Pass(harness, recording, channels)

    def begin() -> None:
        one.begin()
        several.begin()

    own, alone = side_by_side(benchmark, several, one, rounds=40, per=Pass.TICKS, between=begin)
    each = float(own.min() - alone.min()) / (channels - 1)
    table.add(
        f"loop, {channels} channels: each further one", f"{each:.0f} ns", beside="the first, loop included",
        beside_own=f"{alone.min():.0f} ns", ratio=each / float(alone.min()), **benchmark.extra_info,
    )  # fmt: skip


def test_lock_step_over_a_pseudo_terminal(benchmark: Any, built: Path, table: Any) -> None:
    program = compile_c(HERE / "ping_pong.c", built / "ping_pong", "-lutil")
    with OneCpu() as one, open_device(one.uri) as device:
        ping_pong = PingPong(program, one.cpu)
        bare: list[int] = []
        try:
            armed = arm(device)
            own, _ = side_by_side(
                benchmark, armed.chunk, lambda: bare.append(ping_pong.exchange(CHUNK_TICKS)), rounds=200,
                per=CHUNK_TICKS, between=armed.turn,
            )  # fmt: skip
        finally:
            ping_pong.close()
    floor = np.array(bare[-len(own) :]) / CHUNK_TICKS
    rate = 1e9 / float(np.percentile(own, UNDISTURBED))
    ratio = float(np.percentile(own, UNDISTURBED) / np.percentile(floor, UNDISTURBED))
    table.add(
        "lock-step over a pty, one processor", f"{rate:,.0f} /s", beside="bare C ping-pong, 48 and 24 bytes",
        beside_own=f"{1e9 / np.percentile(floor, UNDISTURBED):,.0f} /s",
        ratio=ratio, bar=f"at most {LOCK_STEP_RATIO:g} x", kept=ratio <= LOCK_STEP_RATIO,
        **benchmark.extra_info | {"beside_ns": percentiles(floor)},
    )  # fmt: skip
