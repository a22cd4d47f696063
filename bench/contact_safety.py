"""Contact safety: which change of skin, pad or lead the guard notices, how soon, and what it calls it; and the current
that flows when contact comes back.

    python bench/contact_safety.py [SEED]      `make contacts`; 1 without it

Every skin of the virtual device, 0.3, 1 and 4 mA, current and voltage source, 1, 5 and 10 kHz (there at 1 mA alone), a
fault 10 s into the treatment. Two tables of docs/estimator.md.
"""

import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_support import arm
from guard_alarms import CLINIC, PERFUSION

from ionto_rt.codes import Advice, Contact, EndReason, Trip
from ionto_rt.core.skin import skin_names
from ionto_rt.device import open_device
from ionto_rt.treatment import Treatment

AT_S = 10.0
LASTS_S = 12.0
CHANGES = {
    "area x 0.5 at once": ["area=0.5@10"],
    "peels in 10 s": ["peel=10@10"],
    "peels in 60 s": ["peel=60@10"],
    "pad dries, Rs x 1.3 in some 7 s": ["dry=3000@10"],
    "skin alone, x 2 at once": ["breakdown=2@10"],
    "breakdown, x 20 at once": ["breakdown=20@10"],
    "open for 3 ms": ["open@10", "close@10.003"],
    "conditioning alone": [],
}
OPENS_MS = (1, 2, 3, 4)
NOTHING_A = 2e-7
"""A current that is none, of a session of 10 uA too."""


def run(
    skin: str, current_a: float, front_end: str, rate_hz: float, faults: Sequence[str], hold_s: float, seed: int,
    truth: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """Telemetry of a treatment without an operator, and the largest current that truly flowed in each period (A)."""
    head = CLINIC if current_a > 100e-6 else PERFUSION
    ramp_s = max(1.0, current_a / 0.75e-3) if current_a > 100e-6 else 0.5
    text = f'{head}[[steps]]\ncurrent = "{current_a * 1e6:g} uA"\ntime = "{hold_s:g} s"\nramp = "{ramp_s:g} s"\n'
    options = {
        "skin": skin, "front_end": front_end, "sample_rate_hz": rate_hz, "seed": seed, "faults": list(faults),
    }  # fmt: skip
    handle, name = tempfile.mkstemp()
    os.close(handle)
    if truth:
        options["truth"] = name
    try:
        with open_device("sim:", defaults=options) as device:
            loop = arm(device, Treatment.parse(text.encode(), "contact.toml")).loop
            parts, ended, ticks = [], "running", 0
            while ended == "running" and ticks < (hold_s + 30.0) * rate_hz:
                loop.beat()
                ended = loop.run(round(0.1 * rate_hz))
                parts.append(loop.drain().copy())
                ticks += len(parts[-1])
                # What waits for an operator whom nobody has sent ends here.
                if len(parts[-1]) and (parts[-1]["pause"][-1] and parts[-1]["level_a"][-1] == 0.0):
                    break
        flowed = np.loadtxt(name, delimiter=",", skiprows=1, usecols=3) if truth else None
        return np.concatenate(parts), flowed
    finally:
        Path(name).unlink()


def named(rows: Any, rate_hz: float, after_s: float) -> tuple[str, float] | None:
    """What was noticed first from that time on, and after how long."""
    first = round(after_s * rate_hz)
    found: list[tuple[int, str]] = []
    for kind in ("trip", "pause", "advice"):
        column = rows[kind]
        shown = np.flatnonzero((column[first:] != 0) & (column[first:] != column[first - 1]))
        if len(shown):
            value = int(column[first + shown[0]])
            what = Advice(value & -value).name if kind == "advice" else Trip(value).name
            found.append((int(shown[0]), str(what)))
    lost = np.flatnonzero(rows["contact"][first:] == Contact.LOST)
    if len(lost):
        found.append((int(lost[0]), "CONTACT_LOST"))
    if not found:
        return None
    tick, cause = min(found)
    return cause, (tick + 1) / rate_hz


def causes(seed: int) -> None:
    print("change | rate, kHz | loads | noticed | after, s: median, most | what it was called")
    for change, rate_hz in itertools.product(CHANGES, (1e3, 5e3, 10e3)):
        times: list[float] = []
        names: Counter[str] = Counter()
        loads = refused = 0
        for skin, current_a, front_end in itertools.product(
            skin_names(), (0.3e-3, 1e-3, 4e-3) if rate_hz < 10e3 else (1e-3,), ("current", "voltage")
        ):
            rows, _ = run(skin, current_a, front_end, rate_hz, CHANGES[change], AT_S + LASTS_S, seed)
            if len(rows) < AT_S * rate_hz or rows["trip"][round(AT_S * rate_hz) - 1]:
                # The contact check or the compliance of this source would not have it.
                refused += 1
                continue
            loads += 1
            what = named(rows, rate_hz, AT_S)
            if what is not None:
                names[what[0]] += 1
                times.append(what[1])
        after = f"{statistics.median(times):.2f}, {max(times):.2f}" if times else "-"
        called = ", ".join(f"{name} {count}" for name, count in names.most_common()) or "-"
        print(
            f"{change} | {rate_hz / 1e3:g} | {loads}{f' ({refused} not treated)' if refused else ''} "
            f"| {len(times)} | {after} | {called}",
            flush=True,
        )


def answered_a(rows: Any, rate_hz: float) -> Any:
    """Of each sample period the largest setpoint that its current may answer: the loop takes two periods, and the stage
    of 2 kHz is within a percent after half a millisecond."""
    back = 3 + round(0.5e-3 * rate_hz)
    set_a = np.maximum(np.abs(rows["setpoint_a"]), NOTHING_A)
    return np.max([np.concatenate([np.zeros(k), set_a[: len(set_a) - k]]) for k in range(back + 1)], axis=0)


def recontact(seed: int, front_ends: Sequence[str] = ("current", "voltage")) -> None:
    print("source | rate, kHz | open, ms | cases | true peak over the setpoint that it answers: median, most "
          "| beyond 105 % | over the level before: median, most")  # fmt: skip
    draws = random.Random(seed)
    for front_end, rate_hz, open_ms in itertools.product(front_ends, (1e3, 10e3), OPENS_MS):
        ratios: dict[str, float] = {}
        before: list[float] = []
        for skin in skin_names():
            for _ in range(2):
                current_a = 10.0 ** draws.uniform(-5.0, np.log10(4e-3))
                start_s = round(draws.uniform(8.0, 8.2), 3)
                back_s = round(start_s + 1e-3 * open_ms, 4)
                rows, truth = run(
                    skin, current_a, front_end, rate_hz, [f"open@{start_s}", f"close@{back_s}"], 9.0,
                    draws.randrange(1 << 30), truth=True,
                )  # fmt: skip
                first = round(back_s * rate_hz)
                if len(rows) <= first or rows["end_reason"][first - 1] != EndReason.NONE:
                    continue
                last = min(len(rows), len(truth), first + round(0.8 * rate_hz))
                peak_a = np.abs(truth[first:last])
                over = (peak_a / answered_a(rows, rate_hz)[first:last]).max()
                ratios[f"{skin} {current_a * 1e6:.0f} uA"] = float(over)
                before.append(float(peak_a.max()) / current_a)
        values = sorted(ratios.values())
        if not values:
            print(f"{front_end} | {rate_hz / 1e3:g} | {open_ms} | 0 | - | - | -")
            continue
        worst = max(ratios, key=lambda case: ratios[case])
        print(
            f"{front_end} | {rate_hz / 1e3:g} | {open_ms} | {len(values)} | {statistics.median(values):.3f}, "
            f"{values[-1]:.3f} ({worst}) | {sum(value > 1.05 for value in values)} "
            f"| {statistics.median(before):.2f}, {max(before):.2f}",
            flush=True,
        )


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    began = time.process_time()
    print(f"seed {seed}")
    recontact(seed)
    causes(seed)
    print(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
