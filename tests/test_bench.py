"""The benches run on what the tick is: they import, the harness builds, and the transcription has the core's bits."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if "__main__" in path.read_text())


def run(*arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "bench")])}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_scripts_of_the_bench_import() -> None:
    run("-c", f"import {', '.join(SCRIPTS)}")
    assert {"survey", "comparison", "false_alarms", "estimator"} <= set(SCRIPTS)


def test_the_transcription_of_the_tick_has_its_bits() -> None:
    run("-m", "pytest", "bench", "--benchmark-skip", "-q", "-p", "no:cacheprovider")
