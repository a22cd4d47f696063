"""Instructions per tick of the compiled core, counted by callgrind over the treatment of short.toml.

    python bench/instructions.py FOLDER N     builds the harness into FOLDER and counts N times; prints JSON

The counted process is this script again, under valgrind, which counts between two marks: a pass of one stage over the
whole treatment, contact check and closing of blocks included. What Python does to start a pass is below one
instruction a tick.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench_support import CHUNK_TICKS, build_harness, compile_c, load_harness, recorded

from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop

MARKS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *what) { CALLGRIND_DUMP_STATS_AT(what); CALLGRIND_STOP_INSTRUMENTATION; }
"""
FOUND = re.compile(r"^desc: Trigger: Client Request: (\w+)$.*^totals: (\d+)", re.M | re.S)
STAGES = ["tick", "whole_tick", "ledger", "estimator", "regulator", "programme", "guard"]


def build(folder: Path) -> None:
    """Compiles what `count` runs. CalledProcessError: valgrind's headers are not there."""
    (folder / "marks.c").write_text(MARKS)
    compile_c(folder / "marks.c", folder / "marks.so", "-shared", "-fPIC")
    build_harness(folder)


def count(folder: Path) -> dict[str, float]:
    """Instructions per tick of each stage, of the ring's slot and commit, and of the loop with the tick in it.

    `folder` is where `build` has been. RuntimeError: the counted process failed.
    """
    out = folder / "callgrind"
    for old in folder.glob("callgrind.*"):
        old.unlink()
    command = [
        "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", sys.executable, __file__,
        "--passes", str(folder),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    ticks = int(done.stdout)
    dumps = [FOUND.search(path.read_text()) for path in folder.glob("callgrind.*")]
    found = {dump[1]: int(dump[2]) / ticks for dump in dumps if dump}
    return {name: found[name] for name in [*STAGES, "ring", "loop"]}


def passes(folder: Path) -> None:
    """Each pass once uncounted, so that lazy binding and first touches are done, and once counted."""
    marks = ctypes.CDLL(str(folder / "marks.so"))
    harness = load_harness(folder)
    recording = recorded(harness)
    rows = harness.Rows(len(recording))

    def loop() -> Callable[[], object]:
        port = harness.ScriptedPort(recording)
        controller = Controller(recording.controller.config, recording.controller.segments)
        driven = Loop(controller, port.capsule, virtual_clock=True, ring_rows=len(recording))

        def run(_port: object = port) -> None:
            for _ in range(0, len(recording), CHUNK_TICKS):
                driven.beat()
                driven.run(min(CHUNK_TICKS, len(recording) - driven.counters["ticks"]))

        return run

    made: dict[str, Callable[[], Callable[[], object]]] = {
        name: (lambda name=name: getattr(recording, name)) for name in STAGES
    }
    made |= {"ring": lambda: rows.commit, "loop": loop}
    for name, make in made.items():
        make()()
        counted = make()
        marks.begin()
        counted()
        marks.end(name.encode())
    print(len(recording))


if __name__ == "__main__":
    if sys.argv[1] == "--passes":
        passes(Path(sys.argv[2]))
    else:
        made = Path(sys.argv[1])
        build(made)
        print(json.dumps([count(made) for _ in range(int(sys.argv[2]))], indent=1))
