"""Memory of a session of 24 h on the virtual clock, with record and journal: it must not grow.

    python bench/day.py [HOURS]

The telemetry of a day is 20 GB at 500 samples a second. So that it fits anywhere, what is written is given back to the
disk behind the writer, by holes in the file: the folder stays bounded, and the writer does all its work.
"""

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from bench_support import HERE

import ionto_rt
from ionto_rt.catalogue import Catalogue
from ionto_rt.device import open_device
from ionto_rt.record import TELEMETRY
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment

RATE_HZ = 500
KEPT_BYTES = 1 << 20
PERIOD_S = 0.5
SETTLED = 0.05
"""Share of the session after which memory must be flat: what is loaded late has been loaded by then."""
GROWTH_BAR = 0.01
PUNCH_HOLE = 0x02 | 0x01  # and keep the file's size


def long_catalogue(folder: Path) -> Catalogue:
    """The package's catalogue, with a session time that lets a day pass."""
    shutil.copytree(Path(ionto_rt.__file__).parent / "catalogue", folder, ignore=shutil.ignore_patterns("*.py"))
    drugs = folder / "drugs.toml"
    text = drugs.read_text(encoding="utf-8")
    drugs.write_text(text.replace('session_time_max = "90 min"', 'session_time_max = "1500 min"'), encoding="utf-8")
    return Catalogue.load(folder)


def treatment(hours: float) -> Treatment:
    lines = (HERE / "minute.toml").read_text(encoding="utf-8").split("[[steps]]")[0].replace(
        'drug = "dexamethasone-phosphate"', 'drug = "saline"'
    )  # fmt: skip
    return Treatment.parse(f'{lines}[[steps]]\ncurrent = "50 uA"\ntime = "{hours * 60.0} min"\nramp = "1 s"'.encode())


class Bounded:
    """Makes holes in the telemetry behind its writer, and samples the process's resident memory."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.resident: list[int] = []
        self.most_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Bounded":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._ended.wait(PERIOD_S):
            self.resident.append(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page)
            for path in self.out.glob(f"*/{TELEMETRY}"):
                with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                    self.most_bytes = max(self.most_bytes, path.stat().st_blocks * 512)
                    keep = max(KEPT_BYTES, path.stat().st_size - KEPT_BYTES)
                    fallocate(file.fileno(), PUNCH_HOLE, KEPT_BYTES, keep - KEPT_BYTES)


def main(hours: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sessions"
        catalogue = long_catalogue(Path(folder) / "catalogue")
        began = time.perf_counter()
        with open_device(f"sim:?rate={RATE_HZ}") as device, Bounded(out) as bounded:
            session = Session(treatment(hours), device, out_dir=out, speed="max", catalogue=catalogue)
            receipt = session.run()
        took_s = time.perf_counter() - began
    settled = np.array(bounded.resident[int(SETTLED * len(bounded.resident)) :], dtype=float)
    growth = float(settled.max() / settled[0] - 1.0)
    print(
        f"{receipt['outcome']}: {receipt['duration_s'] / 3600.0:.2f} h in {took_s:.0f} s, {receipt['ticks']:,} ticks, "
        f"{receipt['dose_delivered_mamin']:.3f} mA*min"
    )
    print(
        f"resident memory {settled[0] / 1e6:.1f} MB after {SETTLED:.0%}, at most {settled.max() / 1e6:.1f} MB, "
        f"in the end {settled[-1] / 1e6:.1f} MB: {growth:+.2%} (bar: {GROWTH_BAR:.0%}); the folder held at most "
        f"{bounded.most_bytes / 1e6:.0f} MB of telemetry"
    )
    return 0 if receipt["outcome"] == "complete" and growth <= GROWTH_BAR else 1


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 24.0))
