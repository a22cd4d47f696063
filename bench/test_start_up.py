"""How long a person waits before anything happens, over a bare interpreter."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_support import side_by_side

import ionto_rt

SOURCE = str(Path(ionto_rt.__file__).parent.parent)
BARS_MS = {"import ionto_rt": 150.0, "ionto-rt --help": 300.0}
ARGUMENTS = {"import ionto_rt": ["-c", "import ionto_rt"], "ionto-rt --help": ["-m", "ionto_rt", "--help"]}


@pytest.mark.parametrize("what", list(ARGUMENTS))
def test_start_up(what: str, benchmark: Any, table: Any) -> None:
    environment = os.environ | {"PYTHONPATH": SOURCE}

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

    own, bare = side_by_side(
        benchmark, lambda: python(*ARGUMENTS[what]), lambda: python("-c", "pass"), rounds=10, per=1
    )
    over_ms = float(own.min() - bare.min()) / 1e6
    table.add(
        what, f"{own.min() / 1e6:.0f} ms", beside="python -c pass", beside_own=f"{bare.min() / 1e6:.0f} ms",
        ratio=float(own.min() / bare.min()), bar=f"at most {BARS_MS[what]:.0f} ms more", kept=over_ms <= BARS_MS[what],
        **benchmark.extra_info,
    )  # fmt: skip
