from typing import TypedDict

class Usage(TypedDict):
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int
    processor_s: float

def prepare(
    priority: int | None = 40, cpu: int | None = None, slack_ns: int = 1, stack_bytes: int = 262144
) -> dict[str, str]: ...
def usage() -> Usage: ...
