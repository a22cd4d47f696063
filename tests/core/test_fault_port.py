"""The port with faults: what it does to each frame, tick by tick, and that nothing else happens."""

import pytest

from ionto_rt.codes import Pacing
from ionto_rt.core.controller import Controller
from ionto_rt.core.fault_port import WAYS, WIRE_FAULT_KINDS, FaultPort
from ionto_rt.core.loop import Loop
from ionto_rt.device import Device, SimBytes
from support import TOKEN, endless, planned

TICKS = 400


def loop_through(faults: list[tuple[object, ...]], **options: object) -> tuple[Loop, FaultPort, SimBytes]:
    """A loop on a device in lock-step behind a port with these faults; it has run TICKS ticks, or to its end."""
    port = SimBytes({"noise_codes": 0.0})
    device = Device("sim:", port)
    device.greet()
    config, _ = planned()
    caps = {"current_cap_code": 20000, "output_code_min": -20000, "output_code_max": 20000}
    device.push_limits(
        range_index=2, lease_max_ticks=100, token=TOKEN, session_ticks=1 << 30, charge_cap_codes=1 << 60, **caps
    )
    device.arm(Pacing.LOCK_STEP, TOKEN)
    faulty = FaultPort(port.loop_port(), faults, clocked=True, **options)  # type: ignore[arg-type]
    loop = Loop(Controller(config, endless(0.0)), faulty.capsule, virtual_clock=True)
    loop.run(TICKS)
    return loop, faulty, port


def test_without_faults_it_is_not_there() -> None:
    loop, faulty, port = loop_through([])
    assert loop.counters["ticks"] == faulty.tick == TICKS
    assert loop.counters["lost"] == loop.counters["bad_frames"] == port.sim.device.refused == 0
    assert not any(faulty.touched.values())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [kind for kind in WIRE_FAULT_KINDS if kind != "disconnect"])
def test_each_kind_touches_the_frames_of_its_ticks_and_its_way(kind: str, way: str) -> None:
    """In lock-step there is no command in the tick after one that was lost, and an answer to what clocks the device."""
    loop, faulty, _ = loop_through([(kind, way, 100, 3, 2)], seed=5)
    assert 1 <= faulty.touched[kind] <= 6
    assert loop.counters["ticks"] == TICKS
    assert sum(faulty.touched.values()) == faulty.touched[kind]


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_dropped_samples_are_gaps_of_so_many(lost: int) -> None:
    loop, faulty, _ = loop_through([("drop", "to-host", 100, lost)])
    rows = loop.drain()
    assert faulty.touched["drop"] >= lost
    assert rows["lost_ticks"].sum() == lost
    assert loop.counters["bad_frames"] == 0


def test_flipped_bits_are_refused_by_the_check_of_the_frame() -> None:
    loop, _, port = loop_through([("flip", "to-host", 100, 4, 1), ("flip", "to-device", 200, 3, 1)], seed=2)
    assert loop.counters["bad_frames"] >= 1
    assert loop.drain()["lost_ticks"].sum() == 2, "of four ticks: after each refused frame one clocks the device"
    assert port.sim.device.late == 0


def test_reordered_samples_come_after_their_successors_and_are_refused_there() -> None:
    loop, _, _ = loop_through([("reorder", "to-host", 100, 1)])
    assert loop.counters["bad_samples"] == 1


def test_a_split_frame_is_put_together_again() -> None:
    loop, _, _ = loop_through([("split", "to-host", 100, 1), ("split", "to-device", 200, 1)])
    assert loop.counters["bad_frames"] == loop.counters["lost"] == 0


def test_what_a_stall_holds_back_comes_at_once_and_in_order() -> None:
    loop, _, _ = loop_through([("stall", "to-host", 100, 20)])
    assert loop.counters["lost"] == loop.counters["bad_samples"] == 0


def test_a_disconnected_port_stays_closed() -> None:
    loop, faulty, _ = loop_through([("disconnect", "to-host", 100)])
    assert loop.status == "lost"
    assert faulty.tick == 100
    assert loop.counters["ticks"] == 99


def test_the_same_seed_spoils_the_same_bits() -> None:
    script = [("garbage", "to-host", 50, 10, 9), ("flip", "to-device", 70, 10, 5)]
    counts = [loop_through(script, seed=seed)[0].counters["bad_frames"] for seed in (1, 1)]
    assert counts[0] == counts[1]


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="use drop, duplicate"):
        FaultPort(0, [("spill", "to-host", 1)])
    with pytest.raises(ValueError, match="more than 64"):
        FaultPort(0, [("drop", "to-host", 1)] * 65)
