"""What the Python readers do with any bytes: they read them, or refuse them in one line.

Each reader is a function of bytes. It returns if the bytes were read or refused as documented, and lets through
whatever else is raised. The tests replay the corpora through them; `make fuzz` lets atheris look for more.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np

from ionto_rt.calibration_file import calibration_in_force, calibration_path
from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import FrontEnd
from ionto_rt.core.wire import FrameReader, unpack_command, unpack_sample
from ionto_rt.device import Hello, Range, parse_hello
from ionto_rt.errors import IontoError, RefusedError
from ionto_rt.events import EventError, EventLog, check_events
from ionto_rt.hdr_log import read_log
from ionto_rt.journal import JOURNAL, Journal, JournalError, Reservation, rebuild
from ionto_rt.plan import compile_plan, format_plans
from ionto_rt.record import (
    EVENTS,
    RECEIPT,
    SESSION,
    TELEMETRY,
    Record,
    RecordError,
    Telemetry,
    TelemetryWriter,
    list_sessions,
)
from ionto_rt.recover import recover
from ionto_rt.replay import replay
from ionto_rt.safety import OperatorLimits, resolve_channels
from ionto_rt.toml_source import TomlDocument
from ionto_rt.treatment import Treatment
from ionto_rt.verify import verify

HERE = Path(__file__).resolve().parent
SPLIT = b"\n#====\n"
"""Between the parts of an input that stands for several files."""
LONGEST_LINE = 1000
"""Of an error, in characters."""
DEVICE = Hello(
    1, 1, 5, FrontEnd.CURRENT_SOURCE, 100, 65536, 1e-3, 60.0, 2e-3, 0, 32767, "fuzz", "1", 0, 0, 0, 0, 0,
    (Range(5e-3, 1.6e-7, 0, 1.6e-7, 0, 1.6e-7, -32000, 32000, 0.0),),
)  # fmt: skip


def said(error: IontoError) -> None:
    """An error must be one line of readable length."""
    text = str(error)
    assert text and text.isprintable() and len(text) <= LONGEST_LINE, (type(error), text[:200])


@cache
def place() -> Path:
    """A folder of this process in memory, if the host has such."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="ionto-fuzz-", dir=memory if memory.is_dir() else None))


def parts(data: bytes, count: int) -> list[bytes]:
    """The files that an input stands for."""
    found = data.split(SPLIT, count - 1)
    return found + [b""] * (count - len(found))


@cache
def own_catalogue() -> Catalogue:
    return Catalogue.load()


def read_treatment(data: bytes) -> None:
    """As `check` does it: parsed, held against the catalogue, planned, printed."""
    try:
        treatment = Treatment.parse(data)
        limits = resolve_channels(treatment, own_catalogue(), None, OperatorLimits())
        plans = [compile_plan(each, limit, 1e-3) for each, limit in zip(treatment.channels, limits, strict=True)]
    except RefusedError as error:
        said(error)
        return
    assert format_plans(plans, treatment.on_channel_trip)
    assert all(np.isfinite(plan.prescribed_c) and plan.prescribed_c > 0.0 for plan in plans)


def read_catalogue(data: bytes) -> None:
    drugs, electrodes = parts(data, 2)
    try:
        found = Catalogue((TomlDocument.parse(drugs, "drugs.toml"), TomlDocument.parse(electrodes, "electrodes.toml")))
    except RefusedError as error:
        said(error)
        return
    for drug in found.drugs.values():
        drug.mass_interval_kg(1.0)


def read_telemetry(data: bytes) -> None:
    path = place() / TELEMETRY
    path.write_bytes(data)
    try:
        telemetry = Telemetry(path)
    except RecordError as error:
        said(error)
        return
    rows = telemetry.rows()
    assert len(rows) == len(telemetry)
    assert sum(map(len, telemetry.batches())) == len(telemetry)
    assert 0 <= telemetry.dropped_bytes <= len(data)
    for name in telemetry.names:
        assert len(telemetry[name]) == len(rows)
    telemetry.last()
    try:
        telemetry.of_channel(0)
        telemetry.last(1)
    except RecordError as error:
        said(error)


def read_events(data: bytes) -> None:
    chain = check_events(data)
    assert check_events(data, chain.head).head == chain.head
    assert not chain.intact or len(chain.events) <= data.count(b"\n") + 1
    path = place() / EVENTS
    path.write_bytes(data)
    try:
        with EventLog(path) as log:
            log.write("fuzz", 1)
    except EventError as error:
        said(error)
        return
    if not chain.torn_tail:
        after = check_events(path.read_bytes())
        assert after.intact and after.events[-1].kind == "fuzz" and len(after.events) == len(chain.events) + 1


@cache
def whole_session() -> Path:
    """A sessions' folder with one session: a real one, of which the record keeps the first 100 ms."""
    from ionto_rt.device import open_device
    from ionto_rt.session import Session

    out = place() / "whole"
    treatment = Treatment.parse((HERE / "short.toml").read_bytes(), "short.toml")
    with open_device("sim:", defaults={"load": (600.0, 2000.0, 240e-9)}) as device:
        Session(treatment, device, out_dir=out, speed="max").run()
    (folder,) = (path.parent for path in out.glob(f"*/{TELEMETRY}"))
    telemetry = Telemetry(folder / TELEMETRY)
    first = next(telemetry.batches())[:100]
    (folder / TELEMETRY).unlink()
    with TelemetryWriter(folder / TELEMETRY, first.dtype, telemetry.metadata, 1000.0) as writer:
        writer.append(first)
    (folder / RECEIPT).unlink()
    return out


def attempt(reader: Callable[[], object]) -> None:
    try:
        reader()
    except IontoError as error:
        said(error)


def read_session(data: bytes) -> None:
    """`session.json`, `receipt.json` and the event log of a session whose other files are whole, as every command that
    reads a record does it.
    """
    session, receipt, events = parts(data, 3)
    out = place() / "sessions"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole_session(), out)
    (folder,) = (path.parent for path in out.glob(f"*/{TELEMETRY}"))
    (folder / SESSION).write_bytes(session)
    if receipt:
        (folder / RECEIPT).write_bytes(receipt)
    if events:
        (folder / EVENTS).write_bytes(events)
    attempt(lambda: list_sessions(out))
    attempt(lambda: verify(folder))
    attempt(lambda: replay(folder))
    attempt(lambda: [channel.counted() for channel in Record.open(folder).channels])
    attempt(lambda: recover(folder))
    attempt(lambda: verify(folder))
    attempt(lambda: rebuild(out))


def read_journal(data: bytes) -> None:
    out = place() / "journal"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / JOURNAL).write_bytes(data)
    try:
        with Journal(out) as journal:
            journal.sessions()
            journal.open_sessions()
            journal.charge_today("a", "left")
            journal.begin("new", out / "new", "a", [Reservation("left", 1.0, 0.1, cap_c=10.0)])
            journal.extend("new", [(0.1, 0.2)])
            assert journal.charge_today("a", "left") >= 0.2
            journal.get("new")
    except JournalError as error:
        said(error)


def read_calibration(data: bytes) -> None:
    path = calibration_path(place(), DEVICE)
    path.write_bytes(data)
    try:
        found = calibration_in_force(place(), DEVICE, 0)
    except RefusedError as error:
        said(error)
        return
    if found is not None:
        assert np.isfinite(found.skew_s) and "\n" not in found.text


def read_histograms(data: bytes) -> None:
    path = place() / "latency.hlog"
    path.write_bytes(data)
    try:
        log = read_log(path)
    except RefusedError as error:
        said(error)
        return
    for histogram in log.histograms.values():
        assert histogram.percentile(0.99) >= 0
    assert log.duration_s >= 0.0


def read_hello(data: bytes) -> None:
    try:
        hello = parse_hello(data)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert hello.name.isprintable()
    capabilities = hello.capabilities
    assert all(np.isfinite(one.full_scale_a) and one.full_scale_a > 0.0 for one in capabilities.ranges)
    for index in range(len(hello.ranges)):
        assert all(np.isfinite(value) for value in hello.calibration(index).values())


def read_frames(data: bytes) -> None:
    """Bytes of a port through the reader of the talk before and after the loop."""
    reader = FrameReader()
    found: Iterable[bytes] = [*reader.feed(data[: len(data) // 2]), *reader.feed(data[len(data) // 2 :]), data]
    assert reader.frames + reader.bad_frames <= data.count(b"\0")
    for payload in found:
        for sentinel in (False, True):
            try:
                unpack_sample(payload, sentinel)
            except ValueError:
                continue
        for channels in (1, 2, 32, 33):
            try:
                unpack_command(payload, channels)
            except ValueError:
                continue
        if payload:
            read_hello(payload)


READERS: dict[str, Callable[[bytes], None]] = {
    "treatment": read_treatment,
    "catalogue": read_catalogue,
    "telemetry": read_telemetry,
    "events": read_events,
    "session": read_session,
    "journal": read_journal,
    "calibration": read_calibration,
    "histograms": read_histograms,
    "hello": read_hello,
    "frames": read_frames,
}


def tidy() -> None:
    """Remove what the readers have written."""
    shutil.rmtree(place(), ignore_errors=True)
    place.cache_clear()
    whole_session.cache_clear()
