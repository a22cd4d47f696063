"""Runs the fuzzers, one after the other, each for so long, from its corpus: what `make fuzz` does.

    python fuzz/run.py [--seconds 60] [TARGET...]

`wire` and `device` are libFuzzer's programs in build/fuzz; the others are the readers of `readers.py`, under atheris.
New inputs go to build/fuzz/found/TARGET, what fails to build/fuzz/crash-TARGET-*; a table says how far each came. Exit
code 1 if anything failed.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from readers import READERS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "fuzz"
PROGRAMS = {"wire": 2200, "device": 600}
"""The longest input of each, in bytes."""
READER_BYTES = 8000
HANG_S = 20
"""Of the clock, on a host that may be busy; readers also measure their time of the processor."""


def command(target: str, seconds: int) -> list[str]:
    found = BUILD / "found" / target
    found.mkdir(parents=True, exist_ok=True)
    start = [str(BUILD / target)] if target in PROGRAMS else [sys.executable, str(HERE / "atheris_target.py"), target]
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={PROGRAMS.get(target, READER_BYTES)}",
        f"-timeout={HANG_S}",
        "-rss_limit_mb=1000",
        "-print_final_stats=1",
        f"-artifact_prefix={BUILD}/crash-{target}-",
    ]
    return [*start, *options, str(found), str(HERE / "corpus" / target)]


def environment(target: str) -> dict[str, str]:
    if target not in PROGRAMS:
        return dict(os.environ)
    places = (BUILD, BUILD / "src", sysconfig.get_path("purelib"))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONMALLOC": "malloc",
        # The interpreter leaves much behind on purpose. A small quarantine keeps memory flat from the start.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8",
    }


def number(pattern: str, log: str) -> str:
    found = re.findall(pattern, log)
    return str(found[-1]) if found else "-"


def main(arguments: list[str]) -> int:
    everything = [*PROGRAMS, *READERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(everything))
    given = parser.parse_args(arguments)
    failed = []
    print(f"{'target':12} {'executions':>11} {'a second':>9} {'coverage':>9} {'slowest':>8} {'memory':>8}")
    for target in given.targets or everything:
        done = subprocess.run(
            command(target, given.seconds), env=environment(target), capture_output=True, text=True, errors="replace"
        )
        log = done.stdout + done.stderr
        (BUILD / f"{target}.log").write_text(log)
        print(
            f"{target:12} {number('number_of_executed_units: *([0-9]+)', log):>11} "
            f"{number('average_exec_per_sec: *([0-9]+)', log):>9} {number('cov: ([0-9]+)', log):>9} "
            f"{number('slowest_unit_time_sec: *([0-9]+)', log):>6} s {number('peak_rss_mb: *([0-9]+)', log):>5} MB",
            flush=True,
        )
        if done.returncode != 0:
            failed.append(target)
            print(f"  FAILED: see {BUILD / f'{target}.log'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
