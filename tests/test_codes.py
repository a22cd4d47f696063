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
        members = re.findall(r"^    (\w+) = (\d+)", match.group(2), re.MULTILINE)
        found[match.group(1)] = {name: int(number) for name, number in members}
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
        prefixes = {member.split("_")[0] for member in members}
        mine = {member.name: int(member) for member in of_python[name].__members__.values()}
        shortened = {min_suffix(member, mine): number for member, number in members.items()}
        assert shortened == mine, (name, prefixes)


def min_suffix(member: str, names: dict[str, int]) -> str:
    """The C name without its prefix: the longest tail that is a name in Python."""
    parts = member.split("_")
    for start in range(1, len(parts)):
        tail = "_".join(parts[start:])
        if tail in names:
            return tail
    return member
