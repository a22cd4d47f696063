"""Hosts that die or stand still at random moments of short treatments, in real time over a pseudo-terminal.

    python tests/kill_survey.py [--seed N] [--kills 1000] [--stops 200] [--device-stops 0] [--jobs 4] [--only RUN]

Each run is the real command. It gets SIGKILL, or SIGSTOP for a while and then SIGCONT or SIGKILL, at a moment that the
seed and the run's number give: a phase and a time after the host has said that it began. A run whose host ended before
that moment is made again with the next draw. Afterwards, from the device's truth file: no current later than 100 ms
after the last accepted command, the relay open. From the record: a dose that is not below the device's own count, in
the receipt and in the journal, before `recover` and after it; a record that verifies, and replays bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cli_support import COMMAND, HEAD, LEASE_S, Truth, environment, ionto, running, sessions, wait_until
from ionto_rt.journal import Journal, JournalRow
from ionto_rt.record import COULOMB_PER_MAMIN, PHASES, RECEIPT, Record
from ionto_rt.replay import replay
from ionto_rt.verify import verify

NOTHING_A = 1e-6
"""A current that is none: some codes of the largest range are more."""
ATTEMPTS = 20
"""Draws for one run, should its host end before the moment, as hosts that stall do."""
RUN_MOST_S = 90.0
LONGEST_STOP_S = 1.5
SITE = "left elbow"
NOT_ARMED = "not armed"
READING_ERROR = 1e-3
READING_OFFSET_A = 1e-6
"""How far the device's count may be from the truth: of what has flowed, either way, and while nothing does."""

ONE_STEP = '[[steps]]\ncurrent = "1 mA"\ntime = "2.75 s"\nramp = "1.25 s"\n'
TWO_STEPS = """\
[[steps]]
current = "0.6 mA"
time = "1.25 s"
ramp = "0.75 s"
[[steps]]
pause = "1 s"
[[steps]]
current = "0.6 mA"
time = "1.25 s"
ramp = "0.75 s"
"""
TREATMENTS = {
    "one step": HEAD.replace("drug =", f'site = "{SITE}"\ndrug =') + ONE_STEP,
    "with a pause": HEAD.replace("drug =", f'site = "{SITE}"\ndrug =') + TWO_STEPS,
    "two channels": HEAD.partition("drug =")[0]
    + "".join(
        f'[[channels]]\nname = "{name}"\nsite = "{SITE}"\n'
        + ("drug =" + HEAD.partition("drug =")[2] + ONE_STEP)
        .replace("[electrodes", "[channels.electrodes")
        .replace("[[steps", "[[channels.steps")
        for name in ("a", "b")
    ),
}
MOMENTS = {
    "start": 0.9,
    "self-test": 0.5,
    "contact check": 0.8,
    "ramp up": 1.25,
    "treatment": 1.5,
    "pause": 1.5,
    "ramp down": 1.25,
    "complete": 0.1,
}
"""What the host says when a phase begins, and how much later the signal comes at most (s). `start` is the start of its
process.
"""


@dataclass(frozen=True)
class Draw:
    """What one run does, all of it from the seed."""

    seed: int
    run: int
    attempt: int
    act: str
    treatment: str
    moment: str
    after_s: float
    stopped_s: float
    then_kill: bool

    @classmethod
    def of(cls, seed: int, run: int, act: str, attempt: int) -> "Draw":
        rng = random.Random(f"{seed}/{run}/{attempt}")
        treatment = rng.choices(list(TREATMENTS), (5, 3, 2))[0]
        moments = [moment for moment in MOMENTS if moment != "pause" or treatment == "with a pause"]
        if act != "kill":
            moments = [moment for moment in moments if moment not in ("start", "complete")]
        # Where most current flows is where most is to be seen.
        weights = [1 if moment in ("start", "self-test", "complete") else 2 for moment in moments]
        moment = rng.choices(moments, weights)[0]
        after_s = rng.uniform(0.0, MOMENTS[moment])
        # From well below a lease to well above it, each length as likely as another of its order.
        stopped_s = 0.02 * (LONGEST_STOP_S / 0.02) ** rng.random()
        return cls(seed, run, attempt, act, treatment, moment, after_s, stopped_s, rng.random() < 0.5)

    def __str__(self) -> str:
        ending = "kill" if self.then_kill else "go on"
        stop = "" if self.act == "kill" else f" for {self.stopped_s:.3f} s, then {ending}"
        return (
            f"seed {self.seed} run {self.run} attempt {self.attempt}: {self.act}{stop} at {self.moment} "
            f"+ {self.after_s:.3f} s ({self.treatment})"
        )


@dataclass
class Result:
    """One run as it was seen afterwards."""

    draw: Draw
    device_s: float | None = None
    """The device's clock at the signal, to 0.1 s; None before it was armed."""
    phase: str = NOT_ARMED
    """In which the signal came."""
    flowing: bool = False
    """Current flowed then: of a host that was killed, when its last command was accepted."""
    lapsed: bool = False
    """The lease ran out."""
    to_zero_s: float = 0.0
    """From the last accepted command to the last current, on the device's clock."""
    tripped: bool = False
    """A trip was latched when the record ends."""
    problems: list[str] = field(default_factory=list)


def treatment_file(folder: Path, name: str) -> Path:
    path = folder / "short.toml"
    path.write_text(TREATMENTS[name])
    return path


def processes_of(folder: Path) -> list[int]:
    """Virtual devices that write their truth into `folder`: no other process has that path in its command."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if b"ionto_rt.virtual_device" in words and f"{folder}/truth.csv".encode() in words:
            found.append(int(entry.parent.name))
    return found


@contextmanager
def host(folder: Path, draw: Draw) -> Iterator["subprocess.Popen[str]"]:
    """The command, running in `folder`; killed if it has not ended after RUN_MOST_S, which is a failure elsewhere."""
    uri = f"virtual:?truth={folder}/truth.csv&seed={1 + draw.run}"
    words = ["run", treatment_file(folder, draw.treatment), "--device", uri, "--speed", "real", "--json"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(RUN_MOST_S, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


def reached(process: "subprocess.Popen[str]", moment: str, after_s: float) -> bool:
    """Wait for the moment; False if the host ends before it."""
    if moment != "start":
        assert process.stderr is not None
        if not any(moment in line for line in process.stderr):
            return False
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        return True
    return False


def send(processes: Sequence[int], number: signal.Signals) -> None:
    for process_id in processes:
        try:
            os.kill(process_id, number)
        except ProcessLookupError:
            continue


def device_clock_s(folder: Path) -> float | None:
    """Device time of the last row of the truth file; None without any."""
    try:
        rows = (folder / "truth.csv").read_bytes().rsplit(b"\n", 2)
        head = (folder / "truth.csv").open().readline().split(",")
        return float(rows[-2].split(b",")[head.index("device_time_s")])
    except (OSError, ValueError, IndexError):
        return None


def act(result: Result, folder: Path) -> bool:
    """Run the command and do to it what was drawn; False if it had ended before."""
    draw = result.draw
    with host(folder, draw) as process:
        if not reached(process, draw.moment, draw.after_s):
            return False
        if draw.act == "kill":
            process.kill()
            process.wait()
            return True
        device = processes_of(folder)
        stopped = {"stop": [process.pid], "stop device": device, "stop both": [process.pid, *device]}[draw.act]
        result.device_s = device_clock_s(folder)
        send(stopped, signal.SIGSTOP)
        # A stop is a length of time: there is no event to wait for.
        time.sleep(draw.stopped_s)
        if draw.then_kill:
            process.kill()
        send(stopped, signal.SIGCONT)
        # What it says must not fill the pipe.
        process.communicate(timeout=RUN_MOST_S)
    return True


def check_truth(result: Result, truth: Truth) -> None:
    """No current later than a lease after the last accepted command, and the relay open at the end."""
    for number, channel in enumerate(truth.of_channels()):
        if not len(channel):
            continue
        on = np.flatnonzero(np.abs(channel["current_peak_a"]) > NOTHING_A)
        if not channel.commanded:
            if len(on):
                result.problems.append(f"channel {number}: current without any command")
            continue
        last_s = channel.last_command_s
        moment_s = last_s if result.device_s is None else result.device_s
        moment = min(int(np.searchsorted(channel["device_time_s"], moment_s)), len(channel) - 1)
        result.flowing |= bool(np.abs(channel["current_a"][moment]) > NOTHING_A)
        result.lapsed |= bool(np.any(channel["lapsed"]))
        late_s = float(channel["device_time_s"][on[-1]]) - last_s if len(on) else 0.0
        result.to_zero_s = max(result.to_zero_s, late_s)
        if late_s > LEASE_S:
            result.problems.append(f"channel {number}: current {late_s * 1e3:.1f} ms after the last accepted command")
        if channel["current_a"][-1] != 0.0 or channel["relay_closed"][-1] != 0:
            result.problems.append(f"channel {number}: on at the end")


def counted_by_device(folder: Path, token: int) -> list[tuple[int, int]] | None:
    """(net, absolute) of each channel in 1/65536 code, from the device's memory of the session with this token."""
    path = folder / "sessions" / "virtual-device-state.json"
    if not path.exists():
        return None
    state = json.loads(path.read_text())
    if state["token"] != token:
        return None
    return [(state["net_codes"], state["absolute_codes"]), *map(tuple, state.get("further_channels", []))]


def flowed(truth: Truth) -> bool:
    return bool(np.any(truth["current_peak_a"]))


def open_rows(rows: list[JournalRow]) -> bool:
    return any(row.outcome is None for row in rows)


def check_record(result: Result, folder: Path, session: Path, truth: Truth) -> None:
    """Receipt and journal, before and after `recover`, beside what the device has counted."""
    record = Record.open(session)
    counted = counted_by_device(folder, record.channels[0].token)
    charges = [
        (channel.polarity * net * channel.coulombs_per_code, absolute * channel.coulombs_per_code)
        for channel, (net, absolute) in zip(record.channels, counted or [(0, 0)] * len(record.channels), strict=True)
    ]
    if counted is None and flowed(truth):
        result.problems.append("the device has no count of a session in which current flowed")
    with Journal(folder / "sessions") as journal:
        rows = journal.get(session.name)
        reserved_c = journal.charge_today("", SITE)
    if rows:
        if reserved_c < sum(absolute for _, absolute in charges):
            result.problems.append(f"journal counts {reserved_c} C, the device {charges}")
    elif any(absolute for _, absolute in charges):
        result.problems.append("current flowed, and the journal does not know the session")
    # The receipt comes before the end in the journal: a host killed between them leaves its row to `recover`.
    ended_itself = (session / RECEIPT).exists()
    if not ended_itself or open_rows(rows):
        recovered = ionto("recover", session, "--json", cwd=folder)
        if recovered.code != 0:
            result.problems.append(f"recover: {recovered.err}")
            return
        if recovered.receipt != json.loads((session / RECEIPT).read_text()):
            result.problems.append("recover says another thing than it writes")
    record = Record.open(session)
    receipt = record.receipt
    assert receipt is not None
    if not ended_itself and receipt["outcome"] != "recovered":
        result.problems.append(f"outcome {receipt['outcome']} of a host that was killed")
    if counted is not None and not ended_itself and not receipt["dose_measured"]:
        result.problems.append("the device's count was not used")
    with Journal(folder / "sessions") as journal:
        rows_after = journal.get(session.name)
        day_c = journal.charge_today("", SITE)
    # `recover` enters a session that died before it was in the journal.
    if len(rows_after) != max(len(rows), len(record.channels)) or open_rows(rows_after):
        result.problems.append("the journal still has the session open")
    tolerance_c = 1e-12
    if rows and day_c < sum(absolute for _, absolute in charges) - tolerance_c:
        result.problems.append(f"journal after recovery counts {day_c} C, the device {charges}")
    for channel, (net_c, absolute_c) in zip(record.channels, charges, strict=True):
        own = channel.receipt
        assert own is not None
        if own["delivered_net_c"] < net_c - tolerance_c:
            result.problems.append(f"{channel.name}: dose {own['delivered_net_c']} C on record, the device's {net_c} C")
        if own["delivered_abs_c"] < absolute_c - tolerance_c:
            result.problems.append(f"{channel.name}: {own['delivered_abs_c']} C on record, the device's {absolute_c} C")
    true_c = -sum(float(part["charge_c"][-1]) for part in truth.of_channels() if len(part))
    flowed_c = sum(float(part["absolute_charge_c"][-1]) for part in truth.of_channels() if len(part))
    # A host that dies early enough leaves a device that has not taken a sample.
    lasted_s = float(truth["device_time_s"][-1]) if len(truth) else 0.0
    error_c = READING_ERROR * flowed_c + READING_OFFSET_A * lasted_s
    if receipt["dose_delivered_mamin"] * COULOMB_PER_MAMIN < true_c - error_c:
        result.problems.append(f"dose {receipt['dose_delivered_mamin']} mA*min, truly {true_c / COULOMB_PER_MAMIN}")
    found = verify(session)
    if not found.ok:
        result.problems.append(f"verify: {found.problems}")
    if record.has_telemetry and len(record.telemetry()):
        if not replay(session).identical:
            result.problems.append("replay differs")
        look_at_telemetry(result, record)
    elif len(truth):
        result.phase = "armed"


def look_at_telemetry(result: Result, record: Record) -> None:
    """In which phase the signal came, and whether a trip had come before or came of it."""
    telemetry = record.telemetry()
    row = len(telemetry) - 1
    if result.device_s is not None:
        row = min(row, int(np.searchsorted(telemetry["index"], result.device_s / record.tick_s)))
    result.phase = PHASES[int(telemetry["phase"][row])]
    result.tripped = bool(np.any(telemetry["trip"]))


def check(result: Result, folder: Path) -> None:
    wait_until(lambda: not any(running(each) for each in processes_of(folder)), "the virtual device to end")
    path = folder / "truth.csv"
    # A host that was killed before it had a device.
    if not path.exists() or not path.read_text():
        return
    truth = Truth(path)
    check_truth(result, truth)
    found = sessions(folder / "sessions")
    if len(found) > 1:
        result.problems.append(f"{len(found)} sessions")
    elif found:
        check_record(result, folder, found[0], truth)
    elif flowed(truth):
        result.problems.append("current flowed, and there is no session")


def one_run(seed: int, run: int, kind: str, place: Path) -> Result:
    """Run number `run` of the survey, with as many draws as it takes to meet a host that still runs."""
    for attempt in range(ATTEMPTS):
        result = Result(Draw.of(seed, run, kind, attempt))
        folder = place / f"{run:04d}-{attempt}"
        folder.mkdir(parents=True)
        try:
            met = act(result, folder)
            check(result, folder)
        except Exception as error:
            result.problems.append(f"{type(error).__name__}: {error}")
        if result.problems:
            return result
        shutil.rmtree(folder)
        if met:
            return result
    result.problems.append(f"its host ended before the moment {ATTEMPTS} times")
    return result


def survey(seed: int, acts: Sequence[str], jobs: int, place: Path, only: int | None = None) -> Iterator[Result]:
    """Results in the order in which runs end; folders of failures stay in `place`."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [
            pool.submit(one_run, seed, run, kind, place) for run, kind in enumerate(acts) if only is None or run == only
        ]
        for future in as_completed(waiting):
            yield future.result()


def mixed(seed: int, counts: dict[str, int]) -> list[str]:
    """The acts of all runs, mixed, so that the first hundred say what the thousand will."""
    acts = [act for act, count in counts.items() for _ in range(count)]
    random.Random(seed).shuffle(acts)
    return acts


def table(results: Sequence[Result]) -> str:
    """Runs by act and phase: how many had current, lost their lease, and the worst time to zero."""
    phases = [NOT_ARMED, "armed", *PHASES]
    lines = [f"{'act':12} {'phase':14} {'runs':>5} {'current':>8} {'lapsed':>7} {'worst to zero':>14} {'failed':>7}"]
    for kind in sorted({result.draw.act for result in results}):
        of_kind = [result for result in results if result.draw.act == kind]
        for phase in sorted({result.phase for result in of_kind}, key=phases.index):
            lines.append(_row(kind, phase, [result for result in of_kind if result.phase == phase]))
        lines.append(_row(kind, "all", of_kind))
    return "\n".join(lines)


def _row(kind: str, phase: str, results: Sequence[Result]) -> str:
    worst_ms = 1e3 * max(result.to_zero_s for result in results)
    flowing, lapsed = sum(result.flowing for result in results), sum(result.lapsed for result in results)
    failed = sum(bool(result.problems) for result in results)
    return f"{kind:12} {phase:14} {len(results):5} {flowing:8} {lapsed:7} {worst_ms:11.1f} ms {failed:7}"


def summary(results: Sequence[Result]) -> str:
    """One line for all of them."""
    killed = [result for result in results if result.draw.act == "kill"]
    return (
        f"{len(results)} runs, {sum(bool(result.problems) for result in results)} failed; "
        f"{sum(result.flowing for result in killed)} of {len(killed)} killed with current flowing; "
        f"{sum(result.tripped for result in results)} with a trip; "
        f"{sum(result.draw.attempt for result in results)} drawn again, their host having ended before"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--stops", type=int, default=200)
    parser.add_argument("--device-stops", type=int, default=0, help="of the device's process, and as many of both")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--only", type=int, help="repeat this run alone")
    parser.add_argument("--place", type=Path, help="folder for what runs leave; those of failures stay")
    given = parser.parse_args(arguments)
    counts = {
        "kill": given.kills,
        "stop": given.stops,
        "stop device": given.device_stops,
        "stop both": given.device_stops,
    }
    acts = mixed(given.seed, counts)
    place = Path(tempfile.mkdtemp(prefix="kill-", dir=given.place))
    print(f"seed {given.seed}, {len(acts)} runs, {given.jobs} at once", flush=True)
    options = ("seed", "kills", "stops", "device-stops")
    again = " ".join(f"--{name} {getattr(given, name.replace('-', '_'))}" for name in options)
    results: list[Result] = []
    begun_s = time.monotonic()
    for result in survey(given.seed, acts, given.jobs, place, given.only):
        results.append(result)
        if result.problems:
            print(f"FAILED {result.draw}\n  {'; '.join(result.problems)}\n  left in {place}", flush=True)
            print(f"  repeat: python tests/kill_survey.py {again} --only {result.draw.run}", flush=True)
        if len(results) % 100 == 0:
            print(f"{len(results)} runs in {time.monotonic() - begun_s:.0f} s", flush=True)
    print(f"{table(results)}\n{summary(results)}\n{time.monotonic() - begun_s:.0f} s")
    if any(result.problems for result in results):
        return 1
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
