"""TOML files that people write: read with bounds, and kept together with the line of every key.

tomllib gives no positions, so `key_lines` walks the text a second time. Everything that is wrong with a file becomes
one RefusedError naming file, line, key, value and remedy.
"""

import bisect
import difflib
import errno
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ionto_rt.errors import RefusedError, one_line

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_BYTES = 1 << 19
"""Largest file that is read: what Python and pydantic make of it takes hundreds of times as much."""
MAX_LINE = 2000
"""Longest line, in characters."""
MAX_DOTS = 50
"""Most dots in a line that is no comment: the time for a dotted key goes with the square of its parts."""
MAX_DOTS_IN_ALL = 1 << 15
MAX_ENTRIES = 4096
"""Most entries of a table or a list: pydantic keeps a report for each that is wrong."""

Location = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED_KEY = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')
# Possessive: what could be matched otherwise would be kept for each character of a long text.
_STRING = re.compile(
    r'''
    """(?:[^"\\]++|\\.|"(?!""))*+""""{0,2}
    | \'\'\'(?:[^\']++|\'(?!\'\'))*+\'\'\'\'{0,2}
    | "(?:[^"\\]++|\\.)*+"
    | \'[^\']*+\'
    ''',
    re.DOTALL | re.VERBOSE,
)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def read_source(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES. Raises RefusedError for anything else."""
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:
        raise RefusedError("is not a file name", file=name, remedy="give the path of a .toml file") from error
    except FileNotFoundError as error:
        raise RefusedError("no such file", file=name, remedy="check the path") from error
    except IsADirectoryError as error:
        raise RefusedError("is a folder", file=name, remedy="give the path of a .toml file") from error
    except PermissionError as error:
        raise RefusedError("may not be read", file=name, remedy="check the file's permissions") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedError("is a loop of symbolic links", file=name, remedy="give the file itself") from error
        raise RefusedError(f"cannot be opened ({error.strerror})", file=name, remedy="check the path") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise RefusedError("is a folder", file=name, remedy="give the path of a .toml file")
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError("is not a regular file", file=name, remedy="give the path of a .toml file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            source = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RefusedError(f"cannot be read ({error.strerror})", file=name, remedy="check the disk") from error
    finally:
        os.close(descriptor)
    if len(source) > MAX_BYTES:
        raise _too_large(name)
    return source


def _too_large(path: str) -> RefusedError:
    remedy = "a file of this kind has a few kilobytes"
    return RefusedError(f"is larger than {MAX_BYTES >> 10} KiB", file=path, remedy=remedy)


def format_location(location: Location) -> str:
    """`("steps", 0, "current")` as people read it: `steps[0].current`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else f'"{one_line(part[:60])}"'
            text += f".{name}" if text else name
    return text


class _Scanner:
    """Walks text that tomllib has accepted; only the structure matters, so values are skipped, not read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Location, int] = {}
        self.tables: dict[Location, int] = {}
        self.breaks = [match.start() for match in re.finditer("\n", text)]

    def line(self) -> int:
        return bisect.bisect_left(self.breaks, self.at) + 1

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"line {self.line()}")
        self.at = match.end()
        return match.group()

    def note(self, location: Location, line: int) -> None:
        for length in range(len(location), 0, -1):
            if location[:length] in self.lines:
                break
            self.lines[location[:length]] = line

    def key(self) -> list[str]:
        parts = []
        while True:
            self.skip(_BLANK)
            if self.text[self.at] in "\"'":
                quoted = self.skip(_QUOTED_KEY)
                parts.append(str(tomllib.loads(f"key = {quoted}")["key"]))
            else:
                parts.append(self.skip(_BARE_KEY))
            self.skip(_BLANK)
            if self.at >= len(self.text) or self.text[self.at] != ".":
                return parts
            self.at += 1

    def document(self) -> None:
        table: Location = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.skip(_BLANK)

    def header(self) -> Location:
        line = self.line()
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        parts = self.key()
        self.at += 2 if is_array else 1
        location: Location = ()
        for part in parts[:-1]:
            location += (part,)
            if location in self.tables:
                location += (self.tables[location] - 1,)
        location += (parts[-1],)
        if is_array:
            self.note(location, line)
            index = self.tables.get(location, 0)
            self.tables[location] = index + 1
            location += (index,)
        self.note(location, line)
        return location

    def pair(self, table: Location) -> None:
        line = self.line()
        location = (*table, *self.key())
        self.note(location, line)
        self.at += 1
        self.value(location)

    def value(self, location: Location) -> None:
        self.skip(_BLANK)
        first = self.text[self.at]
        if first in "\"'":
            self.skip(_STRING)
        elif first == "[":
            self.items(location)
        elif first == "{":
            self.pairs(location)
        else:
            self.skip(_SCALAR)

    def items(self, location: Location) -> None:
        self.at += 1
        index = 0
        while True:
            self.skip(_BLANK)
            if self.text[self.at] == "]":
                self.at += 1
                return
            self.note((*location, index), self.line())
            self.value((*location, index))
            index += 1
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1

    def pairs(self, location: Location) -> None:
        self.at += 1
        while True:
            self.skip(_BLANK)
            if self.text[self.at] == "}":
                self.at += 1
                return
            self.pair(location)
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1


def key_lines(text: str) -> dict[Location, int]:
    """Line (from 1) of every key, table and list item in `text`, which must be valid TOML."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


@dataclass(frozen=True)
class TomlDocument:
    """A TOML file as read: its bytes, its data, and the line of every key."""

    path: str
    source: bytes
    data: dict[str, Any]
    lines: Mapping[Location, int] = field(repr=False)

    @classmethod
    def parse(cls, source: bytes, path: str) -> "TomlDocument":
        """Parse the bytes of the file called `path`. Raises RefusedError."""
        remedy = "the file must be TOML; see examples/"
        if len(source) > MAX_BYTES:
            raise _too_large(path)
        if not source.strip():
            raise RefusedError("is empty", file=path, remedy=remedy)
        try:
            text = source.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = source.count(b"\n", 0, error.start) + 1
            raise RefusedError("is not text in UTF-8", file=path, line=line, remedy=remedy) from error
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise RefusedError("is a binary file, not text", file=path, line=line, remedy=remedy)
        dots = 0
        for number, line_text in enumerate(text.split("\n"), start=1):
            if len(line_text) > MAX_LINE:
                raise RefusedError(
                    f"the line is longer than {MAX_LINE} characters", file=path, line=number, remedy="break it up"
                )
            of_line = 0 if line_text.lstrip().startswith("#") else line_text.count(".")
            dots += of_line
            if of_line > MAX_DOTS:
                raise RefusedError(
                    f"the line has more than {MAX_DOTS} dots", file=path, line=number, remedy="a key has at most four"
                )
            if dots > MAX_DOTS_IN_ALL:
                problem = f"has more than {MAX_DOTS_IN_ALL} dots up to this line"
                raise RefusedError(problem, file=path, line=number, remedy="a key has at most four")
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            problem, line_number = _decode_problem(str(error), text)
            raise RefusedError(f"is not valid TOML: {problem}", file=path, line=line_number, remedy=remedy) from error
        except RecursionError:
            raise RefusedError("is nested too deeply", file=path, remedy="a treatment needs five levels") from None
        except ValueError as error:
            raise RefusedError(f"is not valid TOML: {error}", file=path, remedy=remedy) from error
        try:
            lines = key_lines(text)
        except (RecursionError, ValueError, IndexError):
            lines = {}
        document = cls(path, source, data, lines)
        crowded = _crowded(data)
        if crowded is not None:
            raise document.refuse(crowded, f"has more than {MAX_ENTRIES} entries", "write less, or repeat blocks")
        return document

    def line_of(self, location: Location) -> int | None:
        """Line of the key at `location`, or of the nearest table around it; None for the file as a whole."""
        for length in range(len(location), 0, -1):
            line = self.lines.get(location[:length])
            if line is not None:
                return line
        return None

    def value_at(self, location: Location) -> Any:
        """The value at `location` as the file has it; None if it is not there."""
        value: Any = self.data
        for part in location:
            if not _holds(value, part):
                return None
            value = value[part]
        return value

    def refuse(self, location: Location, problem: str, remedy: str | None = None) -> RefusedError:
        """The error that names the file, the line, the key and the value at `location`."""
        value = self.value_at(location)
        return RefusedError(
            problem,
            file=self.path,
            line=self.line_of(location),
            key=format_location(location) if location else None,
            value=None if isinstance(value, (dict, list)) else value,
            remedy=remedy,
        )


def _holds(value: Any, part: int | str) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _crowded(data: dict[str, Any]) -> Location | None:
    """The first table or list with more than MAX_ENTRIES entries."""
    waiting: list[tuple[Location, Any]] = [((), data)]
    while waiting:
        location, value = waiting.pop()
        if not isinstance(value, (dict, list)):
            continue
        if len(value) > MAX_ENTRIES:
            return location
        items = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [((*location, key), item) for key, item in items if isinstance(item, (dict, list))]
    return None


def _decode_problem(message: str, text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL)
    if match is None:
        return message, None
    line = int(match.group(2)) if match.group(2) else text.rstrip("\n").count("\n") + 1
    problem = match.group(1)
    return problem[:1].lower() + problem[1:], line


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown `name`: the closest known one, or the list of all."""
    names = list(known)
    close = difflib.get_close_matches(name[:80], names, n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"known here: {', '.join(names)}"


_PROBLEMS = {
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "list_type": "must be a list of tables in double brackets",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "string_too_long": "is longer than {max_length} characters",
    "too_short": "is empty",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "union_tag_invalid": "a block cannot repeat another block",
}


def refuse_validation(
    error: "ValidationError",
    document: TomlDocument,
    known_keys: Callable[[Location, Any], Iterable[str]],
    examples: Mapping[str, str],
) -> RefusedError:
    """Turn a pydantic error into one line.

    `known_keys(location, table)` gives the valid keys of a table; `examples` what to add for a key that is missing.
    Parts of pydantic's location that are not in the file (tags of unions) are dropped.
    """
    found = []
    for detail in error.errors(include_url=False):
        location = _real_location(document, detail["loc"], detail["type"] == "missing")
        found.append((detail["type"] != "extra_forbidden", location, detail))
    found.sort(key=lambda item: item[0])
    _, location, detail = found[0]
    kind = detail["type"]
    remedy: str | None
    if kind == "extra_forbidden":
        name = str(location[-1]) if location else ""
        problem, remedy = "unknown key", suggest(name, known_keys(location[:-1], document.value_at(location[:-1])))
    elif kind == "missing":
        name = str(location[-1]) if location else ""
        problem, remedy = "is missing", f"add {examples[name]}" if name in examples else None
    elif kind == "literal_error":
        problem, remedy = "is not one of the choices", f"write {detail.get('ctx', {}).get('expected', '')}"
    elif kind == "value_error":
        problem, _, rest = str(detail["ctx"]["error"]).partition("; ")
        remedy = rest or None
    else:
        text = str(detail["msg"])
        problem = _PROBLEMS[kind].format(**detail.get("ctx", {})) if kind in _PROBLEMS else text[:1].lower() + text[1:]
        remedy = None
    if len(found) > 1:
        more = f"{len(found) - 1} more problem{'s' if len(found) > 2 else ''} after this one"
        remedy = f"{remedy} ({more})" if remedy else more
    return document.refuse(location, problem, remedy)


def _real_location(document: TomlDocument, location: tuple[int | str, ...], missing: bool) -> Location:
    real: Location = ()
    value: Any = document.data
    for position, part in enumerate(location):
        if _holds(value, part):
            value = value[part]
        elif not (missing and position == len(location) - 1):
            continue
        real += (part,)
    return real
