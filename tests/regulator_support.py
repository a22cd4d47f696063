"""What the tests of the bare regulator share: the C functions of the predictor as a Python object, and plants."""

import ctypes
import math
from collections.abc import Mapping
from typing import Any

from support import as_dict, fill, function, struct

_DOUBLE, _POINTER = ctypes.c_double, ctypes.c_void_p

PLAIN_LAW: dict[str, Any] = {
    "tracking_pole": 0.6,
    "setpoint_pole": 0.3,
    "integral_pole_most": 0.7,
    "output_min": -1e6,
    "output_max": 1e6,
    "contact_floor_a": 1e300,
    "recontact_ratio": 0.02,
    "rescale_most": 4.0,
    "open_ticks": 3,
    "good_ticks": 3,
}
"""Neither limits nor verdicts: the equations alone."""


class Predictive:
    """predictive.pxd below its Python face, as an embedder calls it."""

    def __init__(
        self,
        config: Mapping[str, Any],
        model: Mapping[str, Any],
        *,
        output: float = 0.0,
        offset: float = 0.0,
        measured_a: float = 0.0,
    ) -> None:
        self.config = fill(struct("PredictiveConfig")(), config)
        self.state = struct("PredictiveState")()
        self.last = struct("RegulatorTerms")()
        reset = function("predictive", "predictive_reset", None, *[_POINTER] * 3, *[_DOUBLE] * 3)
        made = fill(struct("PlantModel")(), model)
        reset(*map(ctypes.addressof, (self.state, self.config, made)), output, offset, measured_a)
        self._step = function(
            "predictive", "predictive_step", ctypes.c_int, *[_POINTER] * 2, *[_DOUBLE] * 4, ctypes.c_int32, _POINTER
        )

    def step(
        self, setpoint_a: float, measured_a: float, voltage_v: float = 0.0, tone_a: float = 0.0, at_limit: bool = False
    ) -> float:
        self.refused = self._step(
            ctypes.addressof(self.state), ctypes.addressof(self.config), setpoint_a, tone_a, measured_a, voltage_v,
            int(at_limit), ctypes.addressof(self.last),
        )  # fmt: skip
        output: float = self.last.output
        return output

    def adopt(self, model: Mapping[str, Any]) -> None:
        made = fill(struct("PlantModel")(), model)
        function("predictive", "predictive_adopt", None, *[_POINTER] * 3)(
            ctypes.addressof(self.state), ctypes.addressof(self.config), ctypes.addressof(made)
        )

    def skip(self, ticks: int) -> None:
        function("predictive", "predictive_skip", None, _POINTER, ctypes.c_uint32)(ctypes.addressof(self.state), ticks)

    def applied(self, output: float, ticks: int) -> None:
        function("predictive", "predictive_applied", None, _POINTER, _DOUBLE, ctypes.c_int32)(
            ctypes.addressof(self.state), output, ticks
        )

    @property
    def terms(self) -> dict[str, Any]:
        return as_dict(self.last)

    @property
    def memory(self) -> bytes:
        return bytes(self.state)


class Plant:
    """i(k) = pole i(k-1) + gain u(k-delay) - gain_before u(k-delay-1), from rest at zero."""

    def __init__(self, pole: float, gain: float, gain_before: float, delay_ticks: int) -> None:
        self.pole, self.gain, self.gain_before = pole, gain, gain_before
        self.given = [0.0] * (delay_ticks + 1)
        self.current = 0.0

    def sample(self) -> float:
        """The next sample."""
        self.current = self.pole * self.current + self.gain * self.given[-2] - self.gain_before * self.given[-1]
        return self.current

    def answer(self, output: float) -> None:
        """The output given in answer to it."""
        self.given = [output, *self.given[:-1]]


def voltage_source_model(
    series_ohm: float, parallel_ohm: float, capacitance_f: float, tick_s: float, delay_ticks: int
) -> dict[str, Any]:
    """The plant behind a voltage source, series_ohm with the ballast: one period of u held on Rs + (Rp || C)."""
    pole = math.exp(-tick_s / (series_ohm * parallel_ohm / (series_ohm + parallel_ohm) * capacitance_f))
    share = parallel_ohm / (series_ohm + parallel_ohm)
    return {
        "pole": pole,
        "gain": (1.0 - (1.0 - pole) * share) / series_ohm,
        "gain_before": pole / series_ohm,
        "delay_ticks": delay_ticks,
    }
