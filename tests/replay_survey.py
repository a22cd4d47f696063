"""Sessions replayed by cores of other builds and on the C library's paths for other processors: every bit is the same.

    python tests/replay_survey.py faulted COUNT SEED FOLDER      short sessions with seeded faults, for others to use
    python tests/replay_survey.py replays COUNT SEED SRC...      each example and COUNT faulted sessions, replayed by
                                                                 this build and by the packages in the folders SRC, each
                                                                 with and without the library's FMA and AVX2 paths
    python tests/replay_survey.py sessions FOLDER SRC...         the same for the sessions in FOLDER
"""

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cli_support import HEAD
from ionto_rt.device import open_device
from ionto_rt.errors import IontoError
from ionto_rt.record import SESSION
from ionto_rt.replay import replay
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

ROOT = Path(__file__).resolve().parent.parent
FEATURES = [f"{feature}{old}" for feature in ("AVX2", "FMA", "FMA4", "AVX512F") for old in ("", "_Usable")]
TUNABLES = "glibc.cpu.hwcaps=" + ",".join(f"-{name}" for name in FEATURES)
"""Under which the C library chooses its functions for processors without these."""
FAULTS = (
    "open@{at}", "short@{at}", "stuck@{at}", "area=0.4@{at}", "area=0.7@{at}", "peel=2@{at}", "dry=4000@{at}",
    "loose=600@{at}", "leak=20000@{at}", "stall@{at}+0.04", "stall@{at}+0.005", "unplug@{at}", "leak=5000@{at}",
)  # fmt: skip


def drawn(number: int, seed: int) -> tuple[str, str, list[tuple[float, str]]]:
    """Treatment, device and acts of the operator (second, what) of one faulted session."""
    chance = random.Random(f"{seed}/{number}")
    current = chance.uniform(0.4, 1.5)
    ramp = current / 0.75
    time_s = chance.uniform(ramp, ramp + 4)
    steps = f'[[steps]]\ncurrent = "{current:.2f} mA"\ntime = "{time_s:.2f} s"\nramp = "{ramp:.2f} s"\n'
    faults = [chance.choice(FAULTS).format(at=f"{chance.uniform(0.1, 6):.3f}") for _ in range(chance.randint(0, 3))]
    options = [
        f"seed={chance.randrange(1 << 16)}",
        f"rate={chance.choice((500, 1000, 1000, 2000))}",
        f"skin={chance.choice(('typical', 'dry', 'hairy', 'sweating', 'wounded'))}",
        f"front-end={chance.choice(('current', 'current', 'voltage'))}",
        *(f"fault={fault}" for fault in faults),
    ]
    acts = [
        (chance.uniform(0.5, 6.0), chance.choice(("pause", "resume", "trim up", "trim down", "stop", "stop now")))
        for _ in range(chance.choice((0, 0, 1, 3)))
    ]
    # A pause that nobody ends lasts for ever.
    return HEAD + steps, "sim:?" + "&".join(options), [*sorted(acts), (12.0, "stop")]


def run_drawn(folder: Path, number: int, seed: int) -> Path | None:
    """Run one; its folder, None if host or device refused it before any current had flowed."""
    text, uri, acts = drawn(number, seed)
    waiting = list(acts)

    def act(session: Session) -> None:
        while waiting and session.progress.elapsed_s >= waiting[0][0]:
            what = waiting.pop(0)[1]
            if what.startswith("trim"):
                session.trim(5e-5 if what == "trim up" else -5e-5)
            else:
                getattr(session, what.replace(" ", "_"))()

    try:
        with open_device(uri) as device:
            of = Treatment.parse(text.encode(), f"faulted-{number}.toml")
            # A folder of its own: three stops for the same cause lock the next session of the same site.
            out_dir, attended = folder / f"{number:04}", bool(number % 2)
            session = Session(of, device, out_dir=out_dir, speed="max", watcher=act, attended=attended)
            session.run()
    except IontoError as error:
        print(f"seed {seed}, session {number}: {error}")
        return None
    return session.record_path


def faulted(folder: Path, count: int, seed: int) -> list[Path]:
    """`count` sessions with a record; what is refused is drawn anew."""
    found: list[Path] = []
    number = 0
    while len(found) < count:
        if number >= 2 * count + 20:
            raise RuntimeError(f"{len(found)} of {count} sessions after {number} were drawn from seed {seed}")
        path = run_drawn(folder, number, seed)
        found += [path] if path is not None else []
        number += 1
    return found


def probe() -> str:
    """The bits of some thousand results of the mathematical library: other paths round some of them otherwise."""
    chance = random.Random(1)
    digest = hashlib.sha256()
    for _ in range(20_000):
        x = chance.uniform(-20.0, 20.0)
        for value in (math.exp(x), math.sin(x), math.log(abs(x)), math.pow(abs(x), 1.37), math.atan(x), math.tan(x)):
            digest.update(value.hex().encode())
    return digest.hexdigest()


def replayed(folders: Sequence[Path]) -> dict[str, Any]:
    """In this process: what each came to, and what the library's paths are."""
    return {"probe": probe(), "results": {folder.name: replay(folder).text for folder in folders}}


def by_others(folders: Sequence[Path], sources: Sequence[Path]) -> list[str]:
    """Replay by each build on both of the library's paths; a line for each session that is not the same everywhere."""
    wrong: list[str] = []
    probes: dict[bool, str] = {}
    for source in (ROOT / "src", *sources):
        for plain in (True, False):
            environment = {**os.environ, "PYTHONPATH": str(source)} | ({} if plain else {"GLIBC_TUNABLES": TUNABLES})
            command = [sys.executable, __file__, "one", *map(str, folders)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                wrong.append(f"{source}: {done.stderr.strip().splitlines()[-1]}")
                continue
            found = json.loads(done.stdout)
            probes[plain] = found["probe"]
            how = f"{source}, {'plain' if plain else 'without FMA and AVX2'}"
            for name, said in found["results"].items():
                if not said.startswith("identical: "):
                    wrong.append(f"{how}: {name}: {said}")
            if found["core"] != str(source):
                wrong.append(f"{how}: the core was loaded from {found['core']}")
    if len(set(probes.values())) == 1:
        wrong.append("the library's results are the same with and without its FMA paths: nothing was compared")
    return wrong


def every_session(place: Path, count: int, seed: int) -> Iterator[list[Path]]:
    """The examples one by one, then the faulted ones together; each is removed when the next is asked for."""
    for example in sorted((ROOT / "examples").glob("*.toml")):
        of = Treatment.load(example)
        with open_device(f"sim:?channels={len(of.channels)}") as device:
            session = Session(of, device, out_dir=place / example.stem, speed="max")
            receipt = session.run()
        assert session.record_path is not None
        print(f"{example.name}: {receipt['outcome']}, {receipt['telemetry_rows']} rows", flush=True)
        yield [session.record_path]
        shutil.rmtree(place / example.stem)
    yield faulted(place / "faulted", count, seed)


def main(what: str, *words: str) -> int:
    if what == "one":
        import ionto_rt.core.controller

        core = Path(str(ionto_rt.core.controller.__file__)).parent.parent.parent
        print(json.dumps(replayed([Path(word) for word in words]) | {"core": str(core)}))
        return 0
    if what == "faulted":
        for path in faulted(Path(words[2]), int(words[0]), int(words[1])):
            print(path)
        return 0
    began = time.monotonic()
    wrong: list[str] = []
    sessions = 0
    sources = [Path(word).resolve() for word in words[1 if what == "sessions" else 2 :]]
    if what == "sessions":
        folders = sorted(path.parent for path in Path(words[0]).rglob(SESSION))
        sessions, wrong = len(folders), by_others(folders, sources)
    else:
        with tempfile.TemporaryDirectory(prefix="ionto-replays-") as place:
            for some in every_session(Path(place), int(words[0]), int(words[1])):
                sessions += len(some)
                wrong += by_others(some, sources)
    for line in wrong[:40]:
        print(line)
    print(f"{sessions} sessions, {len(sources) + 1} builds, both of the library's paths: {len(wrong)} differences")
    print(f"{time.monotonic() - began:.0f} s")
    return bool(wrong or not sessions)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
