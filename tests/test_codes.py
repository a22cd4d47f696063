"""The Python names of the core's numbers are those of types.pxd."""

import enum
import re
from pathlib import Path

import ionto_rt.codes as codes

TYPES = Path(codes.__file__).parent / "core" / "types.pxd"


def c_enums() -> dict[str, dict[str, int]]:
    text = TYPES.read_text(encoding="utf-8")
    found: dict[str, dict[str, int]] = {}
    for match in re.finditer(r"^cdef enum ?(\w*):[^\n]*\n((?:[ ]{4}[^\n]*\n|\n)+)", text, re.MULTILINE):
        members = re.findall(r"^    (\w+) = (0x[0-9A-Fa-f]+|\d+)", match.group(2), re.MULTILINE)
        found[match.group(1)] = {name: int(number, 0) for name, number in members}
    return found


def test_every_enum_of_the_core_has_the_same_members_and_numbers_in_python() -> None:
    of_core = c_enums()
    constants = of_core.pop("")
    assert {name: getattr(codes, name) for name in constants} == constants
    of_python = {
        name: value
        for name, value in vars(codes).items()
        if isinstance(value, enum.EnumMeta) and value.__module__ == codes.__name__
    }
    assert set(of_python) == set(of_core)
    for name, members in of_core.items():
        mine = {member: int(number) for member, number in of_python[name].__members__.items()}
        assert {without_prefix(member, mine): number for member, number in members.items()} == mine, name


def without_prefix(member: str, names: dict[str, int]) -> str:
    """The C name without its prefix: the longest tail that is a name in Python, or else the whole."""
    parts = member.split("_")
    tails = ("_".join(parts[start:]) for start in range(1, len(parts)))
    return next((tail for tail in tails if tail in names), member)
