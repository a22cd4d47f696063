"""What the injecting tests measure: held to the row of the hazard table, and kept for `make hazards`."""

import json
from collections.abc import Callable

from ionto_rt.hazards import hazards


class Response:
    """Called with what a test measured; asserts that it is within its row's limit.

    through     what the hazard came in by: "device" (a fault of the virtual device), "command line", "API", "file",
                "signal", "wire" (the bytes between host and device), "samples" (of a tick below the wire), "memory"
    real_time   True: on the host's clock, by the profile of an unfit host; False: on the virtual clock, unless
                `in_real_time` says that the test's session was not
    """

    def __init__(
        self, keep: Callable[[str, object], None], test: str, in_real_time: Callable[[], bool] = lambda: False
    ) -> None:
        self._keep = keep
        self._test = test
        self._in_real_time = in_real_time

    def __call__(
        self,
        hazard: str,
        injected_s: float,
        responded_s: float,
        *,
        through: str = "device",
        real_time: bool = False,
    ) -> None:
        """Injection and start of the response, both on the device's clock (s)."""
        row = hazards()[hazard]
        real_time = real_time or self._in_real_time()
        limit_s = row.limit_unfit_s if real_time else row.limit_s
        assert limit_s is not None, f"{hazard} has no limit in time"
        taken_us, limit_us = round((responded_s - injected_s) * 1e6), round(limit_s * 1e6)
        self._note(hazard, through, real_time, "s", taken_us * 1e-6, limit_s)
        assert taken_us >= 0, f"{hazard}: a response {-taken_us} us before its cause"
        assert taken_us <= limit_us, f"{hazard}: {taken_us} us, limit {limit_us} us"

    def bound(self, hazard: str, ratio: float, *, through: str = "device", real_time: bool = False) -> None:
        """The most that flowed, as a part of what the row's `ratio_of` says."""
        limit = hazards()[hazard].limit_ratio
        assert limit is not None, f"{hazard} has no bound"
        self._note(hazard, through, real_time, "ratio", ratio, limit)
        assert ratio <= limit, f"{hazard}: {ratio:.4f}, limit {limit}"

    def nothing_flowed(self, hazard: str, current_a: float, *, through: str = "file", real_time: bool = False) -> None:
        """The largest current that truly flowed (A): the hazard was refused, or had no effect, without any."""
        self._note(hazard, through, real_time, "A", current_a, 0.0)
        assert current_a == 0.0

    def no_effect(self, hazard: str, *, through: str, real_time: bool = False) -> None:
        """What the test has asserted: the hazard changed no output."""
        self._note(hazard, through, real_time, "none", 0.0, 0.0)

    def _note(self, hazard: str, through: str, real_time: bool, unit: str, value: float, limit: float) -> None:
        assert self._test.startswith(f"test_{hazard.lower()}_"), f"{self._test} injects {hazard}, and is not named so"
        found = {
            "hazard": hazard,
            "through": through,
            "real_time": real_time or self._in_real_time(),
            "unit": unit,
            "value": value,
            "limit": limit,
        }
        self._keep("response", json.dumps(found))
