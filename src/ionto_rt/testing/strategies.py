"""hypothesis strategies: treatments that load, virtual devices that they run on, and what may go wrong."""

from __future__ import annotations

from typing import Any

from ionto_rt.campaign import SKINS, Draw, treatment_text
from ionto_rt.codes import OnTrip
from ionto_rt.core.fault_port import WAYS, WIRE_FAULT_KINDS
from ionto_rt.core.virtual_device import FAULT_VALUES
from ionto_rt.testing._hypothesis import strategies as st
from ionto_rt.treatment import Treatment

SEEDS = st.integers(0, (1 << 64) - 1)


@st.composite
def treatments(draw: st.DrawFn, *, channels: int = 1, research: bool = False, voltage: bool = False) -> Treatment:
    """A treatment of some seconds: one to three steps, by time or by dose.

    `research`: tens of uA, with steps at once; `voltage`: it is for a voltage source, which makes none.
    """
    on_trip = draw(st.sampled_from(OnTrip))
    text = treatment_text(Draw(draw(SEEDS)), channels, research, voltage, on_trip)
    return Treatment.parse(text.encode(), "drawn.toml")


@st.composite
def virtual_devices(draw: st.DrawFn, *, channels: int = 1) -> dict[str, Any]:
    """Options of a virtual device (`open_device("sim:", defaults=...)`) on which those treatments run."""
    return {
        "front_end": draw(st.sampled_from(["current", "voltage"])),
        "skin": draw(st.sampled_from(SKINS)),
        "seed": draw(st.integers(0, 99)),
        "sample_rate_hz": draw(st.sampled_from([500.0, 1000.0, 2000.0])),
        "channels": channels,
    }


@st.composite
def loads(draw: st.DrawFn) -> tuple[float, float, float]:
    """(series_ohm, parallel_ohm, capacitance_f): a dummy load as `VirtualDevice` takes it, from wet to dry skin."""
    return (
        draw(st.floats(200.0, 2e3)),
        draw(st.floats(500.0, 5e4)),
        draw(st.floats(2e-8, 5e-7)),
    )


@st.composite
def wire_faults(draw: st.DrawFn, *, last_tick: int = 8000, most: int = 4) -> list[tuple[str, str, int, int, int]]:
    """A script for `FaultyPort`: (kind, way, from_tick, ticks, value). It never disconnects."""
    one = st.tuples(
        st.sampled_from([kind for kind in WIRE_FAULT_KINDS if kind != "disconnect"]),
        st.sampled_from(WAYS),
        st.integers(1, last_tick),
        st.integers(1, 20),
        st.integers(1, 12),
    )
    return draw(st.lists(one, max_size=most))


PLANT = ("open", "close", "short", "area", "stuck", "peel", "dry", "loose", "leak", "return-area", "hum", "adc-gain")


@st.composite
def plant_faults(
    draw: st.DrawFn, *, last_s: float = 10.0, most: int = 3, channels: int = 1
) -> list[tuple[str, float, float, int]]:
    """A script for a virtual device's `faults`: (kind, value, time_s, channel), in the order of its times."""
    found = []
    for _ in range(draw(st.integers(0, most))):
        kind = draw(st.sampled_from(PLANT))
        _, least, highest = FAULT_VALUES.get(kind, ("", 0.0, 0.0))
        found.append(
            (kind, draw(st.floats(least, highest)), draw(st.floats(0.0, last_s)), draw(st.integers(0, channels - 1)))
        )
    return sorted(found, key=lambda fault: fault[2])
