from collections.abc import Iterable

WIRE_FAULT_KINDS: tuple[str, ...]
WAYS: tuple[str, ...]

WireFault = tuple[str, str, int] | tuple[str, str, int, int] | tuple[str, str, int, int, int]

class FaultPort:
    def __init__(
        self, inner: object, faults: Iterable[WireFault] = (), *, seed: int = 0, clocked: bool = False
    ) -> None: ...
    def add(self, kind: str, way: str, from_tick: int, ticks: int = 1, value: int = 1) -> None: ...
    @property
    def capsule(self) -> object: ...
    @property
    def tick(self) -> int: ...
    @property
    def touched(self) -> dict[str, int]: ...
