"""Files that were made to break their reader: each is refused in one line, soon, and in little memory.

All cases are read by one child process, which may not have more than MEMORY_BYTES beyond what it needs to start.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import HEAD, Truth, environment, ionto, sessions, treatment
from ionto_rt.catalogue import FILES
from ionto_rt.errors import IontoError
from ionto_rt.journal import JOURNAL
from ionto_rt.record import EVENTS, RECEIPT, SESSION, TELEMETRY, TREATMENT, list_sessions
from ionto_rt.recover import recover
from ionto_rt.replay import replay
from ionto_rt.toml_source import MAX_BYTES, MAX_LINE
from ionto_rt.treatment import MAX_STEPS
from ionto_rt.verify import verify

MEMORY_BYTES = 128 << 20
"""What Python makes of the largest file that is read, and pydantic says about it, with half as much to spare."""
LONGEST_S = 1.0
"""Of the processor: the host of a test may stall."""
STEP = '[[steps]]\ncurrent = "1 mA"\ndose = "1 mA*min"\n'
SPARSE_BYTES = 1 << 34

CHILD = """
import json, resource, sys, time
from ionto_rt.catalogue import Catalogue
from ionto_rt.errors import RefusedError
from ionto_rt.treatment import Treatment

Treatment.parse(open(sys.argv[1], "rb").read())
Catalogue.load()
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
read = {"treatment": Treatment.load, "catalogue": Catalogue.load}[sys.argv[3]]
for path in sys.argv[4:]:
    begun_s = time.process_time()
    try:
        read(path)
        said = None
    except RefusedError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}\\n"
    print(json.dumps([path, said, time.process_time() - begun_s]), flush=True)
"""


def read_in_little_memory(folder: Path, kind: str, paths: list[Path]) -> dict[str, tuple[str | None, float]]:
    """What a child process says of each path, and how long it took; the good file is read first, without bounds."""
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer needs more address space than the bound leaves")
    good = folder / "good.toml"
    good.write_text(HEAD + STEP)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(good), str(MEMORY_BYTES), kind, *map(str, paths)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return {path: (said, took_s) for path, said, took_s in map(json.loads, done.stdout.splitlines())}


def sparse(path: Path, size_bytes: int = SPARSE_BYTES) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)


def filled(line: str, head: str = HEAD, tail: str = "") -> bytes:
    """As often the line as the largest file holds."""
    count = (MAX_BYTES - len(head.encode()) - len(tail.encode())) // len(line.encode())
    return (head + line * count + tail).encode()


def numbered(pattern: str, head: str = HEAD) -> bytes:
    """Lines of a pattern with a number in it, as many as the largest file holds."""
    lines, size, number = [head], len(head), 0
    while size + len(pattern) + 8 < MAX_BYTES:
        lines.append(pattern.format(number))
        size += len(lines[-1].encode())
        number += 1
    return "".join(lines).encode()


def with_current(text: str) -> bytes:
    return (HEAD + STEP.replace("1 mA", text, 1)).encode()


SPECIAL: dict[str, Callable[[Path], None]] = {
    "sparse": sparse,
    "link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "link to noise": lambda path: path.symlink_to("/dev/urandom"),
    "link to memory": lambda path: path.symlink_to("/proc/self/mem"),
    "link to nowhere": lambda path: path.symlink_to(path.parent / "nothing"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to a folder": lambda path: path.symlink_to(path.parent),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "link to a terminal": lambda path: path.symlink_to("/dev/ptmx"),
}
CONTENTS: dict[str, bytes] = {
    "lists in lists": b"a = " + b"[\n" * 500_000,
    "tables in tables": b"a = " + b"{b=" * 600,
    "lists in lists, closed": b"a = " + b"[\n" * 200_000 + b"]\n" * 200_000,
    "deep headers": filled("[" + ".".join("a" * 50) + "]\n", ""),
    "deep headers of their own": numbered("[a{}" + ".b" * 50 + "]\n", ""),
    "dotted keys": numbered("a" + ".b" * 49 + "{} = 1\n", ""),
    "most steps that fit": filled('[[steps]]\npause="1s"\n'),
    "most steps in a list": filled('{pause="1s"},\n', HEAD.partition("[")[0] + "steps = [\n", "]\n"),
    "most tables": numbered("[[x{}]]\n", ""),
    "most unknown keys": numbered("k{} = 1\n", ""),
    "most blocks": numbered("[[blocks.b{}]]\npause = '1 s'\n"),
    "most lists": filled("[],\n", "a = [\n", "]\n"),
    "most wrong steps": filled("[[steps]]\nx=1\n"),
    "steps that multiply": (
        HEAD + "[[blocks.b]]\npause = '1 s'\n" + '[[steps]]\nrepeat = "b"\ntimes = 4094\n' * 9000
    ).encode(),
    "a block that multiplies": (
        HEAD + STEP + '[[steps]]\nrepeat = "b"\ntimes = 4094\n' + "[[blocks.b]]\npause = '1 s'\n" * 4000
    ).encode(),
    "a block that repeats itself": (
        HEAD + '[[steps]]\nrepeat = "b"\ntimes = 2\n[[blocks.b]]\nrepeat = "b"\ntimes = 2\n'
    ).encode(),
    "long line": b"title = '" + b"x" * (MAX_LINE + 1) + b"'\n",
    "long text": filled("x" * 99 + "\n", 'format = 1\ntitle = """\n', '"""\n'),
    "long text without an end": filled("x" * 99 + "\n", 'format = 1\ntitle = """\n'),
    "backslashes": filled("\\\\" * 40 + "\n", 'format = 1\ntitle = """\n', '"""\n'),
    "quotes": filled('""\n', 'format = 1\ntitle = """\n', '"""\n'),
    "long comment": filled("#" * 99 + "\n", "", "format = 2\n"),
    "blank": b"\n" * MAX_BYTES,
    "one byte too many": b"#" + b"\n" * MAX_BYTES,
    "zero bytes": HEAD.encode() + b"\0" * 1000,
    "not UTF-8": HEAD.encode() + b"# \xff\xfe\n",
    "UTF-16": HEAD.encode("utf-16"),
    "surrogate": HEAD.encode() + b"# \xed\xa0\x80\n",
    "long number": (HEAD + STEP + f"format2 = {'9' * (MAX_LINE - 20)}\n").encode(),
    "long times": (HEAD + f'[[steps]]\nrepeat = "b"\ntimes = {"9" * (MAX_LINE - 20)}\n').encode(),
    "no times": (HEAD + STEP + "[[blocks.b]]\npause = '1 s'\n[[steps]]\nrepeat = 'b'\ntimes = 0\n").encode(),
    "times below zero": (HEAD + STEP + "[[blocks.b]]\npause = '1 s'\n[[steps]]\nrepeat = 'b'\ntimes = -1\n").encode(),
    "times that are no number": (HEAD + "[[steps]]\nrepeat = 'b'\ntimes = nan\n").encode(),
    "one more step than allowed": (
        HEAD + STEP + "[[blocks.b]]\npause = '1 s'\n" + f"[[steps]]\nrepeat = 'b'\ntimes = {MAX_STEPS}\n"
    ).encode(),
    "infinite": with_current("inf mA"),
    "beyond floats": with_current("1e999 mA"),
    "beyond reason": with_current("1e99 mA"),
    "below zero": with_current("-1 mA"),
    "a minus of print": with_current("\N{MINUS SIGN}1 mA"),
    "digits of another script": with_current("\N{ARABIC-INDIC DIGIT ONE} mA"),
    "wide digits": with_current("\N{FULLWIDTH DIGIT ONE} mA"),
    "Cyrillic unit": with_current("1 m\N{CYRILLIC CAPITAL LETTER A}"),
    "Greek unit": with_current("1 m\N{GREEK CAPITAL LETTER ALPHA}"),
    "unit in one sign": with_current("1 \N{SQUARE MA}"),
    "a space that is none": with_current("1\N{ZERO WIDTH SPACE}mA"),
    "a mark on the unit": with_current("1 mA\N{COMBINING ACUTE ACCENT}"),
    "decimal comma": with_current("1,5 mA"),
    "underscores": with_current("1_0 mA"),
    "sum": with_current("1+1 mA"),
    "title from right to left": (HEAD + STEP).replace('"short"', '"\N{RIGHT-TO-LEFT OVERRIDE}trohs"').encode(),
    "key with a line break": (HEAD + STEP + '"a\\nb\\u001b[2J" = 1\n').encode(),
    "date for text": (HEAD + STEP).replace('"short"', "1979-05-27").encode(),
}


def written(folder: Path) -> list[Path]:
    paths = []
    for number, (name, content) in enumerate(CONTENTS.items()):
        path = folder / f"{number:02d} {name}.toml"
        path.write_bytes(content)
        paths.append(path)
    for name, make in SPECIAL.items():
        path = folder / f"{name}.toml"
        make(path)
        paths.append(path)
    return paths


def assert_refused(path: str, said: str | None, took_s: float) -> None:
    assert said is not None, f"{path}: was read"
    assert said.startswith(path) and said.isprintable() and len(said) < len(path) + 400, f"{path}: {said!r}"
    assert took_s < LONGEST_S, f"{path}: {took_s:.2f} s"


def test_a_hostile_treatment_is_refused_in_one_line_at_once_and_in_little_memory(tmp_path: Path) -> None:
    found = read_in_little_memory(tmp_path, "treatment", written(tmp_path))
    assert len(found) == len(CONTENTS) + len(SPECIAL)
    for path, (said, took_s) in found.items():
        assert_refused(path, said, took_s)


def test_a_hostile_catalogue_is_refused_in_one_line_at_once_and_in_little_memory(tmp_path: Path) -> None:
    """Each case as either of the two files; the other is the package's own."""
    own = {name: resources.files("ionto_rt.catalogue").joinpath(name).read_bytes() for name in FILES}
    files = tmp_path / "files"
    files.mkdir()
    folders = []
    for path in written(files):
        for name in FILES:
            folder = tmp_path / f"{path.stem} as {name}"
            folder.mkdir()
            for other, content in own.items():
                if other != name:
                    (folder / other).write_bytes(content)
            (folder / name).symlink_to(path)
            folders.append(folder)
    found = read_in_little_memory(tmp_path, "catalogue", folders)
    assert len(found) == 2 * (len(CONTENTS) + len(SPECIAL))
    for folder, (said, took_s) in found.items():
        assert said is not None and said.startswith(folder) and said.isprintable(), f"{folder}: {said!r}"
        assert len(said) < len(folder) + 400 and took_s < LONGEST_S, f"{folder}: {took_s:.2f} s, {said}"


OUT: dict[str, Callable[[Path], str]] = {
    "a file": lambda folder: _made(folder / "out", lambda path: path.write_text("x")),
    "nothing": lambda folder: "",
    "a link to itself": lambda folder: _made(folder / "out", lambda path: path.symlink_to(path)),
    "a link to a file": lambda folder: _made(folder / "out", lambda path: path.symlink_to("/dev/null")),
    "a pipe": lambda folder: _made(folder / "out", os.mkfifo),
    "below a file": lambda folder: _made(folder / "out", lambda path: path.write_text("x")) + "/sessions",
    "a long name": lambda folder: str(folder / ("x" * 300)),
    "a long path": lambda folder: str(folder) + "/x" * 5000,
    "a system's folder": lambda folder: "/proc/ionto",
    "a journal that is a folder": lambda folder: _journal(folder, lambda path: path.mkdir()),
    "a journal that is a pipe": lambda folder: _journal(folder, os.mkfifo),
    "a journal of zeros": lambda folder: _journal(folder, lambda path: path.symlink_to("/dev/zero")),
    "a journal of noise": lambda folder: _journal(folder, lambda path: path.write_bytes(bytes(range(256)) * 64)),
    "a huge journal": lambda folder: _journal(folder, sparse),
    "a device's memory that is a pipe": lambda folder: _in_out(folder, "virtual-device-state.json", os.mkfifo),
    "a device's memory that is deep": lambda folder: _in_out(
        folder, "virtual-device-state.json", lambda path: path.write_text("[" * 100_000)
    ),
    "a device's memory beyond numbers": lambda folder: _in_out(
        folder,
        "virtual-device-state.json",
        lambda path: path.write_text(
            '{"format": 1, "serial": "VIRTUAL-0001", "token": 1, "range": 0, "samples": 0, '
            f'"net_codes": {10**30}, "absolute_codes": 0}}'
        ),
    ),
    "a calibration that is a pipe": lambda folder: _in_out(
        folder, "calibration-ionto-virtual-virtual-0001.toml", os.mkfifo
    ),
    "a huge calibration": lambda folder: _in_out(folder, "calibration-ionto-virtual-virtual-0001.toml", sparse),
}


def _made(path: Path, make: Callable[[Path], Any]) -> str:
    make(path)
    return str(path)


def _in_out(folder: Path, name: str, make: Callable[[Path], Any]) -> str:
    out = folder / "out"
    out.mkdir()
    make(out / name)
    return str(out)


def _journal(folder: Path, make: Callable[[Path], Any]) -> str:
    return _in_out(folder, JOURNAL, make)


@pytest.mark.parametrize("case", OUT)
def test_a_folder_of_sessions_that_is_none_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    given = OUT[case](tmp_path)
    truth = tmp_path / "truth.csv"
    words = ["run", treatment(tmp_path), "--out", given, "--speed", "max", "--device", f"virtual:?truth={truth}"]
    done = ionto(*words, cwd=tmp_path, timeout_s=20)
    assert len(done.refusal) < 600 + len(given)
    assert not truth.exists() or not truth.read_text() or not np.any(Truth(truth)["current_peak_a"])
    assert not sessions(tmp_path / "out")


RECORDS: dict[str, Callable[[Path], None]] = {
    "pipe": lambda path: os.mkfifo(path),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "huge": lambda path: sparse(path, 1 << 30),
    "folder": lambda path: path.mkdir(),
    "deep": lambda path: path.write_bytes(b"[" * 1_000_000) and None,
    "long number": lambda path: path.write_bytes(b'{"format": ' + b"9" * 1_000_000 + b"}") and None,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 4000) and None,
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sessions' folder with one whole session."""
    folder = tmp_path_factory.mktemp("recorded")
    done = ionto("run", treatment(folder, hold="1 s", ramp="0.5 s", current="0.4 mA"), "--speed", "max", cwd=folder)
    assert done.code == 0, done.err
    return folder / "sessions"


@pytest.mark.parametrize("name", [SESSION, RECEIPT, EVENTS, TELEMETRY, TREATMENT])
def test_a_record_s_file_that_is_something_else_is_told_in_one_line(tmp_path: Path, recorded: Path, name: str) -> None:
    for case, make in RECORDS.items():
        out = tmp_path / case
        shutil.copytree(recorded, out)
        (session,) = sessions(out)
        (session / name).unlink()
        make(session / name)
        for read, place in ((list_sessions, out), (verify, session), (replay, session), (recover, session)):
            if read is recover and name != RECEIPT:
                (session / RECEIPT).unlink()
            begun_s = time.process_time()
            try:
                read(place)  # type: ignore[operator]
            except IontoError as error:
                assert str(error).isprintable() and len(str(error)) < 600, (case, str(error))
            assert time.process_time() - begun_s < 5 * LONGEST_S, case
