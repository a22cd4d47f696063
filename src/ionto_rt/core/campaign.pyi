from typing import Any, TypedDict

INVARIANT_NAMES: tuple[str, ...]
ACT_NAMES: tuple[str, ...]
SEEN_NAMES: tuple[str, ...]

ActTuple = tuple[int, int, int, int, int, int, int, float, float]

class Violation(TypedDict):
    invariant: str
    channel: int
    tick: int
    found: float
    allowed: float

class Simulated(TypedDict):
    ticks: int
    rows: int
    digest: int
    violation: Violation | None
    status: int
    seen: list[tuple[str, int, int, int, int]]
    fired: list[tuple[int, int]]
    truth: list[tuple[float, float, int, int]]

class Prepared:
    def __init__(self, device: object, channels: list[dict[str, Any]], *, on_trip: int = 0) -> None: ...

class Simulator:
    def run(
        self,
        prepared: Prepared,
        seed: int,
        acts: list[ActTuple],
        *,
        most_ticks: int,
        resumes: bool = True,
        clock: bool = True,
    ) -> Simulated: ...
