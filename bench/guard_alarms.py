"""False alarms of the guard's rows: treatments without a fault, from contact check to ramp down, that must not trip.

    python bench/guard_alarms.py [SECONDS]     how long each treatment holds its level; 20 s without it

Every skin of the virtual device, research and clinical currents, current and voltage source, 1 and 10 kHz, with the
converters' noise and an operator's pause halfway. Prints each trip, pause and advice, and the count of sessions.
"""

import itertools
import sys
import time
from collections import Counter

from bench_support import arm

from ionto_rt.codes import Advice, EndReason, Event, OperatorCommand, Trip
from ionto_rt.core.skin import skin_names
from ionto_rt.device import open_device
from ionto_rt.treatment import Treatment

PERFUSION = """\
format = 1
title = "false alarms"
drug = "acetylcholine"
[electrodes.active]
type = "perfusion-chamber"
area = "1 cm^2"
polarity = "anode"
[electrodes.return]
type = "perfusion-return"
area = "10 cm^2"
"""
CLINIC = """\
format = 1
title = "false alarms"
drug = "dexamethasone-phosphate"
[electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "cathode"
[electrodes.return]
type = "return-pad"
area = "25 cm^2"
"""
CURRENTS = {
    "1 uA": (PERFUSION, 'ramp = "0.5 s"'),
    "7 uA": (PERFUSION, 'ramp = "0.5 s"'),
    "100 uA": (PERFUSION, 'ramp = "0.5 s"'),
    "0.3 mA": (CLINIC, 'ramp = "5 s"'),
    "1 mA": (CLINIC, 'ramp = "5 s"'),
    "4 mA": (CLINIC, 'ramp = "5 s"'),
}


def session(
    skin: str, current: str, front_end: str, rate_hz: float, hold_s: float, seed: int, faults: list[str] | None = None
) -> tuple[Counter[str], float]:
    """What one treatment raised, and how long it took on the device's clock."""
    head, ramp = CURRENTS[current]
    text = f'{head}[[steps]]\ncurrent = "{current}"\ntime = "{hold_s:g} s"\n{ramp}\n'
    options = {"skin": skin, "front_end": front_end, "sample_rate_hz": rate_hz, "seed": seed, "faults": faults or []}
    found: Counter[str] = Counter()
    with open_device("sim:", defaults=options) as device:
        loop = arm(device, Treatment.parse(text.encode(), "alarms.toml")).loop
        ended, ticks, paused, was = "running", 0, 0, (0, 0, 0)
        half = round(0.5 * hold_s * rate_hz)
        while ended == "running":
            loop.beat()
            if paused == 0 and ticks > half:
                loop.operator(OperatorCommand.PAUSE)
                paused = 1
            elif paused == 1 and ticks > half + 8 * rate_hz:
                loop.operator(OperatorCommand.RESUME)
                paused = 2
            ended = loop.run(1000)
            if ticks > 3000 * rate_hz:
                break
            rows = loop.drain()
            ticks += len(rows)
            for row in rows[rows["events"] & (Event.TRIP | Event.PAUSE | Event.END | Event.ADVICE) != 0]:
                now = (int(row["trip"]), int(row["pause"]), int(row["advice"]))
                if now != was:
                    found.update(
                        f"{kind} {(Advice if kind == 'advice' else Trip)(value).name}"
                        for kind, value, old in zip(("trip", "pause", "advice"), now, was, strict=True)
                        if value and value != old
                    )
                    was = now
            if len(rows) and rows["end_reason"][-1] not in (0, 1) and not rows["trip"][-1]:
                found[f"end {EndReason(rows['end_reason'][-1]).name}"] += 1
    return found, ticks / rate_hz


def main() -> None:
    hold_s = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    total: Counter[str] = Counter()
    sessions, seconds, began = 0, 0.0, time.monotonic()
    cases = itertools.product(skin_names(), CURRENTS, ("current", "voltage"), (1000.0, 10000.0))
    for seed, (skin, current, front_end, rate_hz) in enumerate(cases):
        if front_end == "voltage" and rate_hz > 1000.0 and hold_s > 60.0:
            continue
        found, lasted = session(skin, current, front_end, rate_hz, hold_s, seed)
        sessions, seconds = sessions + 1, seconds + lasted
        total += found
        if found:
            named = ", ".join(f"{name} x{count}" for name, count in found.items())
            print(f"{skin:>9} {current:>7} {front_end:>8} {rate_hz / 1e3:3.0f} kHz: {named}", flush=True)
    print(f"{sessions} sessions, {seconds / 60:.0f} min, in {time.monotonic() - began:.0f} s:", dict(total) or "none")


if __name__ == "__main__":
    main()
