"""Writes the seeds of the corpora: one or a few valid inputs of each reader, as small as they can be.

python fuzz/seeds.py [FOLDER]       FOLDER is fuzz/corpus by default
"""

import json
import sqlite3
import struct
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
from readers import DEVICE, HERE, SPLIT, whole_session

from ionto_rt.calibration_file import RangeCalibration, measured_now, write_calibration
from ionto_rt.catalogue import FILES
from ionto_rt.core.clock import LatencyHistogram, bucket_ends
from ionto_rt.core.wire import encode_frame, pack_command, pack_sample
from ionto_rt.hdr_log import write_log
from ionto_rt.journal import JOURNAL, Ending, Journal, Reservation
from ionto_rt.record import EVENTS, RECEIPT, SESSION, TELEMETRY, TelemetryWriter
from ionto_rt.recover import recover

EXAMPLES = HERE.parent / "examples"


def treatments() -> dict[str, bytes]:
    found = {path.stem: path.read_bytes() for path in EXAMPLES.glob("*.toml")}
    blocks = (HERE / "short.toml").read_text()
    blocks += '[[steps]]\nrepeat = "p"\ntimes = 3\n[[blocks.p]]\npause = "1 s"\n'
    blocks += '[[blocks.p]]\ncurrent = "1 mA"\ndose = "1 mC"\n'
    return found | {"short": (HERE / "short.toml").read_bytes(), "blocks": blocks.encode()}


def catalogue() -> dict[str, bytes]:
    drugs, electrodes = (resources.files("ionto_rt.catalogue").joinpath(name).read_text() for name in FILES)

    def first(text: str) -> str:
        """The head and the first entry, without comments."""
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        tables = [number for number, line in enumerate(lines) if line.startswith("[")]
        return "\n".join(lines[: tables[1]]) + "\n"

    return {"first": first(drugs).encode() + SPLIT + first(electrodes).encode()}


def telemetry(folder: Path) -> dict[str, bytes]:
    """Two columns and three; two batches of one length, and a shorter one."""
    found = {}
    for name, fields in {
        "two": [("index", "<u4"), ("channel", "u1")],
        "three": [("index", "<u4"), ("channel", "u1"), ("current_a", "<f8")],
    }.items():
        rows = np.zeros(9, np.dtype(fields))
        rows["index"] = np.arange(9)
        rows["channel"] = np.arange(9) % 2
        path = folder / f"{name}.arrows"
        with TelemetryWriter(path, rows.dtype, {"format": "2"}, 40.0) as writer:
            writer.append(rows)
        found[name] = path.read_bytes()
        found[f"{name}-cut"] = found[name][:-40]
    return found


def sessions() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Of the readers of a session and of its events."""
    out = whole_session()
    (folder,) = (path.parent for path in out.glob(f"*/{TELEMETRY}"))
    events = (folder / EVENTS).read_bytes()
    facts = json.loads((folder / SESSION).read_bytes())
    kept = {key: facts[key] for key in ("format", "session_id", "name", "created_utc", "subject")}
    keys = ("name", "site", "prescribed_c", "max_current_a", "controller", "segments")
    channel = {key: facts["channels"][0][key] for key in keys}
    session = json.dumps(kept | {"channels": [channel]}, separators=(",", ":")).encode()
    few = b"\n".join(events.split(b"\n")[:3]) + b"\n"
    recover(folder)
    receipt = json.loads((folder / RECEIPT).read_bytes())
    receipt = json.dumps({key: value for key, value in receipt.items() if key != "events"}).encode()
    torn = few + events.split(b"\n")[3][:40]
    both = {"channels": session + SPLIT + receipt, "running": session, "torn": session + SPLIT + SPLIT + torn}
    return both, {"few": few, "torn": torn, "all": b"\n".join(events.split(b"\n")[:8]) + b"\n"}


def journal(folder: Path) -> dict[str, bytes]:
    out = folder / "journal"
    with Journal(out) as found:
        for number in range(3):
            found.begin(f"s{number}", out / f"s{number}", "a", [Reservation("left", 1.0, 0.1)])
            found.extend(f"s{number}", [(0.2, 0.3)])
        found.finish("s0", [Ending("complete", 0.5, 0.5)])
    # One small page for each table: what is mutated is then content.
    with closing(sqlite3.connect(out / JOURNAL, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA page_size = 512")
        db.execute("VACUUM")
    return {"three": (out / JOURNAL).read_bytes()}


def calibration(folder: Path) -> dict[str, bytes]:
    values = RangeCalibration(measured_now(), "600 ohm, 2 kohm, 240 nF", 0.01, 1e-5, 1e-7, *[0.001] * 14)
    return {"one": write_calibration(folder, DEVICE, {0: values}).read_bytes()}


def histograms(folder: Path) -> dict[str, bytes]:
    counts = np.zeros(len(bucket_ends()), np.uint64)
    counts[[3, 100, 700]] = 5, 1000, 1
    path = folder / "latency.hlog"
    one = LatencyHistogram.of_counts(counts, int(bucket_ends()[700]))
    write_log(path, {"tick": one, "wait": one}, datetime(2026, 3, 17, tzinfo=UTC), 5.0)
    return {"two": path.read_bytes()}


def hellos() -> dict[str, bytes]:
    head = struct.Struct("<BBBBBBHIIIIii16s16sIqqIB7x")
    one_range = struct.pack("<IIiIiIhhI", 5_000_000, 160_000_000, 0, 160_000_000, 0, 160_000_000, -32_000, 32_000, 0)

    def hello(channels: int, behind: bytes) -> bytes:
        said = (
            0x81,
            1,
            channels,
            5,
            0,
            1,
            100,
            1,
            1_000_000,
            60_000,
            2_000_000,
            0,
            32_000,
            b"fuzz",
            b"1",
            0,
            0,
            0,
            0,
            0,
        )
        return head.pack(*said) + one_range + behind

    features = struct.pack("<B3xIi", 3, 2_000_000, 0)
    return {"one": hello(1, b""), "three": hello(3, features + struct.pack("<qqqq", 1, 2, -3, 4))}


def frames() -> dict[str, bytes]:
    sample = dict.fromkeys(
        ("index", "device_time_us", "applied_index", "nonce", "status", "current_code", "redundant_code",
         "voltage_code", "applied_code", "charge_codes", "sentinel_code"), 1,
    )  # fmt: skip
    command = dict.fromkeys(("index", "token", "nonce", "lease_ticks", "flags", "code"), 1)
    payloads = [
        pack_sample([sample]),
        pack_sample([sample] * 3, True),
        pack_command([command]),
        pack_command([command] * 2),
    ]
    return {
        "frames": b"".join(encode_frame(payload) for payload in payloads),
        "hello": encode_frame(hellos()["three"]),
        "sample": payloads[1],
        "command": payloads[3],
    }


def seeds(folder: Path) -> dict[str, dict[str, bytes]]:
    of_session, of_events = sessions()
    return {
        "treatment": treatments(),
        "catalogue": catalogue(),
        "telemetry": telemetry(folder),
        "events": of_events,
        "session": of_session,
        "journal": journal(folder),
        "calibration": calibration(folder),
        "histograms": histograms(folder),
        "hello": hellos(),
        "frames": frames(),
    }


def main(arguments: list[str]) -> None:
    corpus = Path(arguments[0]) if arguments else HERE / "corpus"
    with tempfile.TemporaryDirectory() as folder:
        for target, inputs in seeds(Path(folder)).items():
            (corpus / target).mkdir(parents=True, exist_ok=True)
            for name, data in inputs.items():
                (corpus / target / name).write_bytes(data)
                print(f"{target}/{name}: {len(data)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
