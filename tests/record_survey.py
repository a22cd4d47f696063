"""The record under attack: cut at any byte, bits flipped anywhere, and what verify and recover make of it.

    python tests/record_survey.py flips COUNT SEED     verify finds each flip and names the place
    python tests/record_survey.py cuts COUNT SEED      recover after a cut at each byte of the last two batches, and at
                                                       COUNT random places of the files that grow while current flows
    python tests/record_survey.py flipped COUNT SEED   recover after a flip: no wrong sample

All in this process, in place, on a file system in memory where there is one.
"""

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli_support import treatment
from ionto_rt.device import open_device
from ionto_rt.record import (
    DERIVED,
    EVENTS,
    RECEIPT,
    RECOVERED_TELEMETRY,
    TELEMETRY,
    TELEMETRY_CHAIN,
    Record,
    SessionFolder,
    Telemetry,
)
from ionto_rt.recover import RecoverResult, recover
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify
from record_support import Channels, finished_channels, same_rows, ticked

KINDS = ("complete", "tripped", "recovered", "channels")
"""Of sessions whose every byte is vouched for."""
BATCHES = 4
"""Of a session whose host has died."""
GROWING = (TELEMETRY, TELEMETRY_CHAIN, EVENTS)
"""Files that are written while current flows; the others appear whole or not at all."""


def run(folder: Path, uri: str = "sim:", **step: str) -> Path:
    """The folder of a session of some seconds that has run on `sim:`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_device(uri) as device:
        of = Treatment.load(treatment(folder, **{"current": "0.4 mA", "hold": "1 s", "ramp": "0.6 s"} | step))
        return Path(Session(of, device, out_dir=folder / "sessions", speed="max").run()["record"])


def died(folder: Path, source: Path, batches: int, under_way: int = 20_000) -> Path:
    """The folder that the session in `source` would have left had its host died after so many batches, with bytes of
    the next one behind them.
    """
    record = Record.open(source)
    telemetry = record.telemetry()
    facts = {key: value for key, value in record.session.items() if key not in ("format", "session_id", "name")}
    made = SessionFolder.create(folder, "died", treatment_source=record.treatment_source, session=facts)
    writer = made.open_telemetry(telemetry.dtype, 1.0 / record.tick_s, channels=len(record.channels))
    writer.append(telemetry.rows()[: batches * writer.batch_rows])
    for event in record.events().events[1:-3]:
        made.events.write(event.kind, event.tick, **event.fields)
    made.close()
    with (made.path / TELEMETRY).open("ab") as file:
        file.write(bytes(range(256)) * (under_way // 256))
    return made.path


def session_of(kind: str, folder: Path) -> Path:
    """A folder of a kind in KINDS, or of a session whose host has "died"."""
    if kind == "complete":
        return run(folder)
    if kind == "tripped":
        return run(folder, "sim:?fault=open@2.5", hold="3 s")
    if kind == "channels":
        known = ticked(3)
        few = Channels(known.rows[: 3 * 1000], known.facts)
        return finished_channels(folder, few)
    path = died(folder / "died", run(folder / "lived"), BATCHES)
    if kind == "recovered":
        recover(path)
    return path


@dataclass(frozen=True)
class Flip:
    """One bit of one file."""

    file: str
    byte: int
    bit: int

    @contextmanager
    def done(self, folder: Path) -> Iterator[None]:
        """In place, and back afterwards."""
        with (folder / self.file).open("r+b", buffering=0) as file:
            file.seek(self.byte)
            was = file.read(1)
            file.seek(self.byte)
            file.write(bytes([was[0] ^ 1 << self.bit]))
            try:
                yield
            finally:
                file.seek(self.byte)
                file.write(was)


def flips(folder: Path, count: int, seed: int, files: Iterable[str] = ()) -> Iterator[Flip]:
    """Random ones of `files` (all of the record): each second in any byte, the others in any file, however small."""
    chance = random.Random(seed)
    sizes = {
        path.name: path.stat().st_size
        for path in sorted(folder.iterdir())
        if path.name not in DERIVED and path.stat().st_size and (path.name in files or not files)
    }
    names = list(sizes)
    for number in range(count):
        (name,) = chance.choices(names, [sizes[name] for name in names]) if number % 2 else (chance.choice(names),)
        yield Flip(name, chance.randrange(sizes[name]), chance.randrange(8))


def unfound_flips(kind: str, count: int, seed: int) -> list[str]:
    """Flips that verify did not find, or of which it did not name file and place."""
    with _folder() as place:
        folder = session_of(kind, place)
        assert verify(folder).ok, verify(folder).problems
        unfound = []
        for flip in flips(folder, count, seed):
            with flip.done(folder):
                found = verify(folder).damage
            if [damage.file for damage in found] != [flip.file] or not found[0].start <= flip.byte < found[0].end:
                unfound.append(f"{kind}, seed {seed}: {flip}: {list(map(str, found))}")
        assert verify(folder).ok
        return unfound


class Died:
    """A session whose host has died, to be damaged, recovered and put back again and again."""

    def __init__(self, place: Path) -> None:
        self.folder = session_of("died", place)
        self.files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.telemetry = Telemetry(self.folder / TELEMETRY)
        self.rows = self.telemetry.rows()
        assert self.telemetry.complete and len(self.telemetry) == 100 * BATCHES

    def batch_starts(self) -> list[int]:
        """Where the batches begin in the file, and where the last one ends."""
        lines = self.files[TELEMETRY_CHAIN].splitlines()
        return [int(line.split()[0]) for line in lines]

    def put_back(self) -> None:
        """All that damage and recovery have changed."""
        for name in (RECEIPT, RECOVERED_TELEMETRY):
            (self.folder / name).unlink(missing_ok=True)
        for name, data in self.files.items():
            path = self.folder / name
            if path.stat().st_size != len(data) or (name != TELEMETRY and path.read_bytes() != data):
                path.write_bytes(data)

    def wrong(self, result: RecoverResult) -> str:
        """What is wrong with a recovery: empty if it returns only samples that were recorded, each in its place."""
        receipt = result.receipt
        record = Record.open(self.folder)
        if not record.has_telemetry:
            return "" if receipt["telemetry_rows"] == 0 and result.notes else "nothing says that telemetry is not read"
        found = record.telemetry()
        for telemetry in (found, Telemetry(self.folder / receipt["telemetry_file"])):
            rows = telemetry.rows() if telemetry.columns else self.rows[:0]
            if telemetry is not found and receipt["telemetry_file"] == TELEMETRY and receipt["telemetry_left_out"]:
                return "a file with batches that were left out is called the readable one"
            if len(rows) != receipt["telemetry_rows"]:
                return f"{len(rows)} rows, the receipt has {receipt['telemetry_rows']}"
            places = rows["index"].astype(np.int64) if len(rows) else np.zeros(0, np.int64)
            if len(rows) and (places.max() >= len(self.rows) or not same_rows(rows, self.rows[places])):
                return "a row that was never recorded"
        left = len(self.rows) - receipt["telemetry_rows"]
        if left and not any(name in note for note in result.notes for name in (TELEMETRY, TELEMETRY_CHAIN)):
            return f"{left} rows are missing, and no note says so: {result.notes}"
        return ""


def wrong_after_cuts(cuts: Iterable[tuple[str, int]]) -> list[str]:
    """Cuts (file, bytes that are left) after which a recovery was wrong, did not say what it dropped, or left a record
    that does not verify.
    """
    with _folder() as place:
        dead = Died(place)
        starts = dead.batch_starts()
        found = []
        for name, kept in cuts:
            with (dead.folder / name).open("r+b") as file:
                file.truncate(kept)
            try:
                result = recover(dead.folder)
                said = dead.wrong(result)
                if name == TELEMETRY:
                    whole = sum(start <= kept for start in starts[1:])
                    if result.receipt["telemetry_rows"] != 100 * whole:
                        said = said or f"{result.receipt['telemetry_rows']} rows of {whole} whole batches"
                problems = verify(dead.folder).problems
                said = said or "; ".join(problems)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            if said:
                found.append(f"{name} cut to {kept} bytes: {said}")
            dead.put_back()
        return found


def wrong_after_flips(count: int, seed: int) -> list[str]:
    """Flips before a recovery after which it was wrong, or which neither verify nor recover tells of after it."""
    with _folder() as place:
        dead = Died(place)
        end = dead.telemetry.whole_bytes
        found = []
        for flip in flips(dead.folder, count, seed, GROWING):
            with flip.done(dead.folder):
                before, notes = verify(dead.folder).damage, list[str]()
                try:
                    result = recover(dead.folder)
                    said, notes = dead.wrong(result), result.notes
                    after = verify(dead.folder).damage
                except Exception as error:
                    said, after = f"{type(error).__name__}: {error}", before
                # What lies behind the last whole batch when the host dies holds no sample.
                behind = flip.file == TELEMETRY and flip.byte >= end
                # And a last line without its end is left out with what it vouched for, which recover says.
                left_out = any(flip.file in note for note in notes)
                for damages in (before,) if left_out else (before, after):
                    if not behind and not any(
                        damage.file == flip.file and damage.start <= flip.byte < damage.end for damage in damages
                    ):
                        said = said or f"verify names {list(map(str, damages))}"
            if said:
                found.append(f"seed {seed}: {flip}: {said}")
            dead.put_back()
        return found


def last_two_batches() -> list[tuple[str, int]]:
    """A cut at each byte of the last two batches."""
    with _folder() as place:
        starts = Died(place).batch_starts()
    return [(TELEMETRY, kept) for kept in range(starts[-3], starts[-1] + 1)]


def random_cuts(count: int, seed: int) -> list[tuple[str, int]]:
    """Of the files that grow while current flows."""
    chance = random.Random(seed)
    with _folder() as place:
        sizes = {name: len(data) for name, data in Died(place).files.items() if name in GROWING}
    # An event log is begun with the folder, whole.
    least = {EVENTS: 600, TELEMETRY: 0, TELEMETRY_CHAIN: 0}
    names = chance.choices(GROWING, (4, 1, 1), k=count)
    return [(name, chance.randint(least[name], sizes[name])) for name in names]


@contextmanager
def _folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="ionto-", dir=memory if memory.is_dir() else None))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _shared(work: Callable[[int], list[str]], parts: int) -> list[str]:
    with ProcessPoolExecutor() as pool:
        return [line for found in pool.map(work, range(parts)) for line in found]


@dataclass(frozen=True)
class _Part:
    """One part of a survey, for a process of its own."""

    what: str
    count: int
    seed: int
    parts: int = 16

    def __call__(self, number: int) -> list[str]:
        share, seed = -(-self.count // self.parts), self.seed + number
        if self.what == "flips":
            return unfound_flips(KINDS[number % len(KINDS)], share, seed)
        if self.what == "flipped":
            return wrong_after_flips(share, seed)
        return wrong_after_cuts((last_two_batches() + random_cuts(self.count, self.seed))[number :: self.parts])


def main(what: str, count: int, seed: int) -> int:
    began = time.monotonic()
    part = _Part(what, count, seed)
    found = _shared(part, part.parts)
    every = f", and each byte of the last two batches ({len(last_two_batches())})" if what == "cuts" else ""
    seeds = f"seeds {seed} to {seed + part.parts - 1}"
    print(f"{what}: {count} random places, {seeds}{every}: {len(found)} wrong, {time.monotonic() - began:.0f} s")
    for line in found[:20]:
        print(line)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1))
