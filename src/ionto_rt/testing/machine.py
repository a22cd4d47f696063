"""A state machine of operator and faults around a host: what an embedder subclasses with a host of his own.

    class MyHost:                                  # a `Host`
        def step(self) -> bool: ...                # some more ticks; False once the session has ended
        ...

    class MyMachine(HostMachine):
        def make_host(self, device): return MyHost(device)

    TestMine = MyMachine.TestCase

The machine lets skin, leads, converter and port of a virtual device fail, presses the operator's keys, and holds the
host to what must be true whatever happens: the device's cap is never passed, what has tripped stays tripped, the dose
is not passed, and nothing flows in the end, by the plant's own word.
"""

from __future__ import annotations

from typing import Any, Protocol

from ionto_rt.codes import OperatorCommand
from ionto_rt.core.virtual_device import VirtualDevice
from ionto_rt.testing._hypothesis import stateful
from ionto_rt.testing._hypothesis import strategies as st
from ionto_rt.testing.strategies import virtual_devices

STEPS_MOST = 4000
initialize, precondition, rule = stateful.initialize, stateful.precondition, stateful.rule


class Host(Protocol):
    """What the machine needs of a host that drives a device."""

    def step(self) -> bool:
        """Run on for about a tenth of a second of the device's time; False once the session has ended."""

    def operate(self, command: OperatorCommand, value_a: float = 0.0) -> None:
        """An operator's command."""

    def stop(self, now: bool) -> None:
        """Ramp down and end, or off at once."""

    @property
    def tripped(self) -> str:
        """Name of the trip that has latched, or empty."""

    @property
    def delivered_c(self) -> float:
        """Charge that the host says it has delivered, in the treatment's direction."""

    @property
    def prescribed_c(self) -> float:
        """The dose."""

    @property
    def current_limit_a(self) -> float:
        """Its highest setpoint."""

    @property
    def current_cap_a(self) -> float:
        """The cap that it has pushed to the device."""


class HostMachine(stateful.RuleBasedStateMachine):
    """Operator and faults in any order, and what holds at each step and in the end."""

    device_options = virtual_devices()
    """Strategy of the options of the virtual device."""

    def __init__(self) -> None:
        super().__init__()
        self.device: Any = None
        self.host: Any = None
        self.over = True
        self.unsound = False
        self.trip = ""

    def make_device(self, options: dict[str, Any]) -> Any:
        """An open device with a `VirtualDevice` behind it."""
        from ionto_rt.device import open_device

        return open_device("sim:", defaults=options)

    def make_host(self, device: Any) -> Host:
        """The host under test, armed."""
        raise NotImplementedError("make_host returns the host that is to be tested")

    @property
    def sim(self) -> VirtualDevice:
        """The device's other side."""
        plant: VirtualDevice = self.device.port.sim.device
        return plant

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.device = self.make_device(data.draw(self.device_options))
        self.host = self.make_host(self.device)
        self.over = False

    def running(self) -> bool:
        return not self.over

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def begin_another(self, data: st.DataObject) -> None:
        self.end()
        self.unsound, self.trip = False, ""
        self.begin(data)

    def _step(self) -> None:
        if not self.over:
            self.over = not self.host.step()
            self.check()

    @precondition(running)
    @rule(steps=st.sampled_from([1, 5, 20]))
    def wait(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    @precondition(running)
    @rule(command=st.sampled_from([OperatorCommand.PAUSE, OperatorCommand.RESUME]))
    def pause_or_resume(self, command: OperatorCommand) -> None:
        self.host.operate(command)
        self._step()

    @precondition(running)
    @rule(value_a=st.floats(-1e-3, 1e-3) | st.floats())
    def trim(self, value_a: float) -> None:
        self.host.operate(OperatorCommand.TRIM, value_a)
        self._step()

    @precondition(running)
    @rule(now=st.booleans())
    def stop(self, now: bool) -> None:
        self.host.stop(now)
        self._step()

    @precondition(running)
    @rule(kind=st.sampled_from(["open", "close", "short", "stuck"]))
    def break_something(self, kind: str) -> None:
        self.unsound = self.unsound or kind in ("short", "stuck")
        self.sim.inject(kind)
        self._step()

    @precondition(running)
    @rule(share=st.floats(0.3, 1.0))
    def lift_the_pad(self, share: float) -> None:
        self.sim.inject("area", share)
        self._step()

    @precondition(running)
    @rule(seconds=st.sampled_from([0.001, 0.004, 0.02, 0.2]))
    def lose_samples(self, seconds: float) -> None:
        self.sim.stall(seconds)
        self._step()

    @precondition(running)
    @rule()
    def pull_the_plug(self) -> None:
        self.sim.unplug()
        self._step()

    def check(self) -> None:
        """What holds at every step."""
        assert self.sim.current_peak_a <= 1.05 * self.host.current_cap_a, "the device's cap"
        if self.trip:
            assert self.host.tripped == self.trip, "the first cause is kept"
        self.trip = self.host.tripped
        if not self.unsound:
            slack_c = 2e-3 * self.host.current_limit_a + 2e-6
            assert self.host.delivered_c <= self.host.prescribed_c + slack_c, "the dose"

    def teardown(self) -> None:
        self.end()

    def end(self) -> None:
        """Stopped, it ends; and then nothing flows."""
        if self.host is None:
            return
        try:
            if not self.over:
                self.host.operate(OperatorCommand.RESUME)
                self.host.stop(False)
            for _ in range(STEPS_MOST):
                if self.over:
                    break
                self._step()
            assert self.over, "a stopped session must end"
        finally:
            self.device.close()
        assert abs(self.sim.current_a) < 1e-9
        assert not self.sim.relay_closed
