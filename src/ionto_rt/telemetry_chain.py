"""`telemetry.sha256`: what vouches for each batch of `telemetry.arrows`, a line for each, chained to the one before.

A line holds the offset at which its batch ends, the batch's rows (0: the schema), the SHA-256 of the line before's hash
(64 zeros before the first), these two numbers, each with a blank, and the batch's bytes, and at its end the CRC-32 of
what stands before it. So a changed byte of either file is found and located, and the batches behind it are still
vouched for. A line is on its way before its batch: a process that is killed leaves at most a line without a batch,
never a whole batch without a line.
"""

import hashlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

GENESIS = "0" * 64
_LINE = re.compile(rb"((0|[1-9][0-9]{0,18}) (0|[1-9][0-9]{0,18}) ([0-9a-f]{64}) )([0-9a-f]{8})")

Buffer = bytes | memoryview
Measure = Callable[[int], tuple[int, int] | None]
"""Where the batch that begins at an offset ends and how many rows it has, as its own header says; None: no header."""


def digest(before: str, end: int, rows: int, batch: Buffer) -> str:
    """What a batch's line holds in the end; `before` is that of the line before."""
    found = hashlib.sha256(f"{before}{end} {rows} ".encode("ascii"))
    found.update(batch)
    return found.hexdigest()


@dataclass(frozen=True)
class ChainHead:
    """Where a chain has come to: bytes of telemetry that it covers, the last line's hash, lines."""

    end: int = 0
    sha256: str = GENESIS
    lines: int = 0

    def follow(self, data: memoryview, batches: int, rows: int) -> tuple["ChainHead", bytes]:
        """The head after so many batches of one size and `rows` each, and their lines."""
        size = len(data) // batches
        end, last = self.end, self.sha256
        text = []
        for number in range(batches):
            end += size
            last = digest(last, end, rows, data[number * size : (number + 1) * size])
            line = f"{end} {rows} {last} ".encode("ascii")
            text.append(b"%s%08x\n" % (line, zlib.crc32(line)))
        return ChainHead(end, last, self.lines + batches), b"".join(text)


@dataclass(frozen=True)
class Vouched:
    """A batch that its line vouches for, or one that differs from it. `number` counts from 0, the schema's."""

    number: int
    start: int
    end: int
    rows: int


@dataclass(frozen=True)
class ChainAudit:
    """What a chain says of a file.

    good        batches that are as they were written, the schema first if it is
    changed     batches that are not
    lines       numbers (from 1) of lines that were changed, while their batches are whole
    covered     offset up to which there are lines and bytes
    beyond      whole batches behind that which no line vouches for
    lost_lines  lines whose batches the file does not have: it was cut, or the host died before them
    torn        bytes of a half-written last line
    """

    good: list[Vouched] = field(default_factory=list)
    changed: list[Vouched] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    covered: int = 0
    beyond: int = 0
    lost_lines: int = 0
    torn: int = 0

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.good)

    @property
    def schema(self) -> bool:
        """Whether the schema is as it was written: without it no row can be read."""
        return bool(self.good) and self.good[0].number == 0


def _parse(line: bytes) -> tuple[int, int, str] | None:
    found = _LINE.fullmatch(line)
    if found is None or zlib.crc32(found[1]) != int(found[5], 16):
        return None
    return int(found[2]), int(found[3]), found[4].decode()


def audit(data: memoryview, chain: bytes, measure: Measure) -> ChainAudit:
    """Compare a telemetry file's bytes with its chain's. Never raises, whatever was changed."""
    texts = chain.split(b"\n")
    torn = len(texts.pop())
    lines = [_parse(text) for text in texts]
    good: list[Vouched] = []
    changed: list[Vouched] = []
    wrong: list[int] = []
    start, before, lost = 0, GENESIS, 0

    def fits(number: int, before: str, start: int) -> bool:
        line = lines[number] if number < len(lines) else None
        if line is None or not start < line[0] <= len(data):
            return False
        return digest(before, line[0], line[1], data[start : line[0]]) == line[2]

    for number, line in enumerate(lines):
        if fits(number, before, start):
            assert line is not None
            good.append(Vouched(number, start, line[0], line[1]))
            start, before = line[0], line[2]
            continue
        if line is None:
            # The line was changed. Its batch is whole if the line after it, which goes on from it, says so.
            wrong.append(number + 1)
            measured = measure(start)
            if measured is None or not start < measured[0] <= len(data):
                break
            said = digest(before, *measured, data[start : measured[0]])
            if not fits(number + 1, said, measured[0]):
                break
            good.append(Vouched(number, start, *measured))
            start, before = measured[0], said
            continue
        if not start < line[0] <= len(data):
            lost = len(lines) - number
            break
        changed.append(Vouched(number, start, line[0], line[1]))
        start, before = line[0], line[2]
    beyond, at = 0, start
    while (measured := measure(at)) is not None and at < measured[0] <= len(data):
        beyond, at = beyond + 1, measured[0]
    return ChainAudit(good, changed, wrong, start, beyond, lost, torn)
