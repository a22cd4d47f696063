"""What can go wrong, as people meet it: one line that says where, what and what to do about it."""

import os
import re

SHOWN_VALUE_CHARACTERS = 60


def one_line(text: str) -> str:
    """`text` with every line break and control character made visible, so that it stays one line on a terminal."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def shown(value: object) -> str:
    """`value` as it could stand in a TOML file, cut to a readable length; tables and lists by name only."""
    if isinstance(value, str):
        if len(value) > SHOWN_VALUE_CHARACTERS:
            value = value[:SHOWN_VALUE_CHARACTERS] + "..."
        return '"' + one_line(value) + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**SHOWN_VALUE_CHARACTERS:
        return "a number of more than 60 digits"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    return one_line(re.sub(r"\s+", " ", str(value))[:SHOWN_VALUE_CHARACTERS])


def system_words(error: OSError) -> str:
    """What the system says, with the file that it says it of, and without numbers or brackets."""
    words = error.strerror or str(error)
    if error.errno is not None and "[Errno" in words:
        words = os.strerror(error.errno)
    return f"{error.filename}: {words}" if error.filename is not None else words


class IontoError(Exception):
    """Base of the errors that end a command with one line instead of a traceback.

    `exit_code` is what the command line returns: 1 when a session ended short of its goal.
    """

    exit_code = 1


class EndedShortError(IontoError):
    """Current has flowed, and the session ended short of its goal."""


class RefusedError(IontoError):
    """Input that was refused before any current flowed.

    Attributes: `problem` (what is wrong), `file`, `line` (from 1), `key` (dotted, list items as `steps[0]`), `value`
    (as given), `remedy`. All but `problem` may be None. `str()` is one line of all of them.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        line: int | None = None,
        key: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.file = None if file is None else os.fspath(file)
        self.line = line
        self.key = key
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        where = ""
        if self.file is not None:
            where = f"{self.file}:{self.line}: " if self.line is not None else f"{self.file}: "
        if self.key is not None:
            where += self.key if self.value is None else f"{self.key} = {shown(self.value)}"
            where += ": "
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return one_line(f"{where}{self.problem}{remedy}")
