"""The fault proxy for ports: what a loop has in front of a device when frames are lost, spoilt or late.

    device = open_device("serial:/dev/ttyACM0")
    device.port = FaultyPort(device.port, [("drop", "to-host", 2000, 5)])
    Session(treatment, device, ...).run()

Kinds, ways and ticks are those of `ionto_rt.core.fault_port`. Hello, limits and arming pass untouched: they are the
port's own reading and writing, and the faults stand in the loop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ionto_rt.core.fault_port import FaultPort

if TYPE_CHECKING:
    from ionto_rt.core.fault_port import WireFault
    from ionto_rt.device import BytePort


class FaultyPort:
    """A `BytePort` with faults between it and the loop.

    `clocked` is for a device in lock-step (`sim:`), whose clock stands still while an answer to it is lost.
    """

    low_latency = "through faults"

    def __init__(
        self, port: BytePort, faults: Sequence[WireFault] = (), *, seed: int = 0, clocked: bool = False
    ) -> None:
        self.behind = port
        self.faults = FaultPort(port.loop_port(), faults, seed=seed, clocked=clocked)

    def read(self, most: int, timeout_s: float) -> bytes:
        """As the port behind."""
        return self.behind.read(most, timeout_s)

    def write(self, data: bytes) -> None:
        """As the port behind."""
        self.behind.write(data)

    def loop_port(self) -> object:
        """A capsule "ionto_rt.core.types.Port" with the faults in it."""
        return self.faults.capsule

    def close(self) -> None:
        """As the port behind."""
        self.behind.close()
