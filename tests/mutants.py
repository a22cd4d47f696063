"""Defects that are planted one at a time, and that the campaign's quick slice must find: `make mutants`.

Each is one place in one file; `old` occurs in it exactly once (tests/test_mutants.py). A mutant of the core is rebuilt
in a copy of the tree under build/mutants, then the quick slice runs there until something fails.

    python tests/mutants.py [NUMBER ...]
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build/mutants"
SLICE = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_campaign.py", "-k", "quick_slice"]
COPIED = ("ext", "src", "tests", "setup.py", "pyproject.toml", "README.md", "examples", "bench")


class Mutant(NamedTuple):
    """One planted defect."""

    file: str
    old: str
    new: str
    why: str


GUARD, LEDGER, PROGRAMME = "ext/guard.pyx", "ext/ledger.pyx", "ext/programme.pyx"
LOOP, CONTROLLER, SESSION = "ext/loop.pyx", "ext/controller.pyx", "src/ionto_rt/session.py"

MUTANTS = [
    Mutant(
        GUARD,
        "    if state.trip == TRIP_NONE:\n        state.trip = cause",
        "    state.trip = cause",
        "missing latch: the last cause is kept, not the first",
    ),
    Mutant(
        GUARD,
        "    if action > state.action:\n        state.action = action",
        "    state.action = action",
        "missing latch: a later cause lowers the urgency",
    ),
    Mutant(
        GUARD,
        "if state.heartbeat_age >= limits.heartbeat_ticks:",
        "if state.heartbeat_age > limits.heartbeat_ticks:",
        "off by one: the heartbeat may be a tick too old",
    ),
    Mutant(
        GUARD,
        "if state.missing_run > limits.gap_stop_ticks:",
        "if state.missing_run >= limits.gap_stop_ticks:",
        "off by one: ramps down at the limit of lost samples",
    ),
    Mutant(
        GUARD,
        "if state.missing_run > limits.gap_stop_ticks:",
        "if state.missing_run > limits.gap_pause_ticks:",
        "swapped limit: ramps down where a pause is due",
    ),
    Mutant(
        GUARD,
        "if given.host_late_us > limits.lease_us:",
        "if given.host_late_us > limits.late_stop_us:",
        "swapped limit: off where a ramp down is due",
    ),
    Mutant(
        GUARD,
        "        state.pause_latched = latched",
        "        state.pause_latched = 0",
        "missing latch: a pause that waits for a person goes on by itself",
    ),
    Mutant(
        GUARD,
        "        state.output_code -= slope",
        "        state.output_code += slope",
        "sign: the safe ramp down rises",
    ),
    Mutant(GUARD, "    slope *= ticks\n", "", "the safe ramp down stands still while samples are lost"),
    Mutant(
        GUARD,
        "        code = state.zero_code\n        verdict.close_relay = 0",
        "        code = state.zero_code",
        "off leaves the relay closed",
    ),
    Mutant(
        GUARD,
        "if given.status & STATUS_LEASE_EXPIRED:",
        "if given.status & STATUS_CHARGE_CAP:",
        "swapped status bit: a lapsed lease is not seen",
    ),
    Mutant(
        GUARD,
        "if given.absolute_codes > limits.charge_cap_codes:",
        "if given.net_codes > limits.charge_cap_codes:",
        "sign: the charge cap is passed by a cathode",
    ),
    Mutant(
        GUARD,
        "if guard_checksum(limits) != limits.checksum:",
        "if limits.checksum == 0:",
        "the limits are not verified again",
    ),
    Mutant(
        GUARD,
        "    if given.stop >= STOP_NOW:\n",
        "    if given.stop > STOP_NOW:\n",
        "off by one: the second press of stop is not heard",
    ),
    Mutant(
        LEDGER,
        "<int64_t>sample.current_code * 65536 - calibration.current_offset_q16",
        "<int64_t>sample.current_code * 65536 + calibration.current_offset_q16",
        "sign of the reading's offset",
    ),
    Mutant(LEDGER, "        ledger.net_codes = total(ledger.net_codes, lost)\n", "", "what was lost is not booked"),
    Mutant(
        LEDGER,
        "    ledger.device_net_codes = sample.charge_codes\n",
        "    ledger.device_net_codes = ledger.net_codes\n",
        "the device's count is the host's own",
    ),
    Mutant(
        PROGRAMME,
        "    return target - delivered\n",
        "    return target + delivered\n",
        "sign: a dose never comes nearer to its end",
    ),
    Mutant(
        PROGRAMME,
        "    elif state.paused or given.pause:\n        state.recovering = 1",
        "    elif state.paused:\n        state.recovering = 1",
        "the guard's pause is not kept",
    ),
    Mutant(
        PROGRAMME,
        "    elif state.stopping:\n        state.phase = PHASE_RAMP_DOWN",
        "    elif state.stopping and state.limited:\n        state.phase = PHASE_RAMP_DOWN",
        "stop is not obeyed",
    ),
    Mutant(
        PROGRAMME,
        "        return level + rise if rise > 0.0",
        "        return level + 2.0 * rise if rise > 0.0",
        "the setpoint rises at twice its slope",
    ),
    Mutant(PROGRAMME, "        state.paused = 1\n", "        state.paused = 0\n", "the operator's pause is not obeyed"),
    Mutant(
        LOOP,
        "        if row.events or (loop.owed[channel] and has_room(&loop.events)):\n",
        "        if row.trip and (row.events or (loop.owed[channel] and has_room(&loop.events))):\n",
        "events but for trips are not told",
    ),
    Mutant(
        LOOP,
        "        if channel == 0:\n            loop.lost += row.lost_ticks",
        "        if row.lost_ticks:\n            continue\n        if channel == 0:\n            loop.lost += 1",
        "rows behind a gap are lost silently",
    ),
    Mutant(
        LOOP,
        "            loop.others_stop[channel] = 1",
        "            loop.others_stop[faulted] = 1",
        "the other channels are not told to stop",
    ),
    Mutant(
        CONTROLLER,
        "lost = sample.index - controller.last_index - 1",
        "lost = sample.index - controller.last_index",
        "off by one: each sample counts as a gap",
    ),
    Mutant(
        CONTROLLER, "    guard.status = sample.status\n", "    guard.status = 0\n", "the device's status is not judged"
    ),
    Mutant(
        CONTROLLER,
        "    command.lease_ticks = config.lease_ticks\n",
        "    command.lease_ticks = 65535\n",
        "leases beyond the device's limit",
    ),
    Mutant(
        "ext/predictive.pyx",
        "    step = config.slew_per_tick\n",
        "    step = 100.0 * config.slew_per_tick\n",
        "the regulator's output rises without its limit",
    ),
    Mutant(
        SESSION,
        "        self.loop.beat()\n        if isinstance(error, Exception):",
        "        if isinstance(error, Exception):",
        "after a failure the heartbeat is left to chance",
    ),
    Mutant(
        "src/ionto_rt/outcome.py",
        "        if charge.net_c < channel.plan.prescribed_c * DOSE_LEAST_RATIO:",
        "        if charge.net_c > channel.plan.prescribed_c * DOSE_LEAST_RATIO:",
        "sign: short of the dose is called complete",
    ),
    Mutant(
        "src/ionto_rt/channel_run.py",
        "Delivered(max(most_c, device_c), absolute_c, ledger_c, device_c, 0.0)",
        "Delivered(min(most_c, device_c) - 1e-9, absolute_c, ledger_c, device_c, 0.0)",
        "the dose on record may lie below the device's count",
    ),
    Mutant(
        SESSION,
        "Ending(outcome, charge.net_c, charge.absolute_c, ",
        "Ending(outcome, charge.absolute_c, charge.net_c, ",
        "swapped: net and absolute charge in the journal",
    ),
]


def copy_tree() -> None:
    """The tree as it stands, with its built extensions."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, COPY / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, COPY / name)
    for folder in ("cython",):
        if (ROOT / "build" / folder).is_dir():
            shutil.copytree(ROOT / "build" / folder, COPY / "build" / folder)


def planted(mutant: Mutant) -> tuple[bool, str, float]:
    """Whether it was caught, by what, and after how many seconds; the copy is as before then."""
    path = COPY / mutant.file
    whole = path.read_text()
    assert whole.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r} occurs {whole.count(mutant.old)} times"
    environment = {**os.environ, "PYTHONPATH": str(COPY / "src")}
    path.write_text(whole.replace(mutant.old, mutant.new))
    stem = Path(mutant.file).stem
    built = [*(COPY / "src/ionto_rt/core").glob(f"{stem}.*.so")] if mutant.file.startswith("ext/") else []
    kept = {library: library.read_bytes() for library in built}
    began = time.monotonic()
    try:
        if built:
            command = ["nice", "-n", "10", sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(command, cwd=COPY, env=environment, check=True, capture_output=True)
        command = ["nice", "-n", "10", sys.executable, *SLICE]
        run = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True)
        said = [line for line in run.stdout.splitlines() if "'invariant':" in line or line.startswith("E  ")]
        return run.returncode == 1, said[0].strip()[:160] if said else "", time.monotonic() - began
    finally:
        path.write_text(whole)
        for library, data in kept.items():
            library.write_bytes(data)
        if built:
            # Newer than its source, so that the next build leaves it alone.
            for stale in (COPY / "build/cython/ext").glob(f"{stem}.c"):
                stale.unlink()
            for library in kept:
                os.utime(library)


def main(numbers: list[int]) -> int:
    """Plant them one after the other, and print what became of each."""
    copy_tree()
    missed = 0
    for number in numbers or range(len(MUTANTS)):
        mutant = MUTANTS[number]
        caught, by, seconds = planted(mutant)
        missed += not caught
        print(
            f"{number:2} {'caught' if caught else 'MISSED'} {seconds:5.0f} s  {mutant.file}: {mutant.why}", flush=True
        )
        if by:
            print(f"            {by}", flush=True)
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main([int(number) for number in sys.argv[1:]]))
