"""What the fuzzers have found worth keeping, through the same targets again: no clang and no atheris is needed."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "fuzz"
CORPUS = FUZZ / "corpus"
PROGRAMS = ("wire", "device")
MOST_CORPUS_BYTES = 300_000
LONGEST_S = 1.0
"""Of the processor, for one input."""


@pytest.fixture(scope="module")
def fuzz() -> Iterator[None]:
    sys.path.insert(0, str(FUZZ))
    yield
    sys.path.remove(str(FUZZ))


@pytest.fixture(scope="module")
def readers(fuzz: None) -> Iterator[ModuleType]:
    import readers

    yield readers
    readers.tidy()


@pytest.fixture(scope="module")
def targets(fuzz: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The targets in Cython, built for this interpreter."""
    import build

    folder = tmp_path_factory.mktemp("targets")
    build.build_targets(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def inputs(target: str) -> list[Path]:
    found = sorted((CORPUS / target).iterdir())
    assert found, f"no corpus of {target}"
    return found


def test_every_target_has_a_corpus_and_all_together_are_small(readers: ModuleType) -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*PROGRAMS, *readers.READERS}
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_CORPUS_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("target", PROGRAMS)
def test_no_bytes_on_the_wire_break_a_property(target: str, targets: Path) -> None:
    module = __import__(f"{target}_target")
    for path in inputs(target):
        begun_s = time.process_time()
        assert module.replay(path.read_bytes()) == 0, path
        assert time.process_time() - begun_s < LONGEST_S, path


@pytest.mark.parametrize("target", sorted({path.name for path in CORPUS.iterdir()} - set(PROGRAMS)))
def test_a_reader_takes_any_bytes_or_refuses_them_in_one_line(target: str, readers: ModuleType) -> None:
    for path in inputs(target):
        begun_s = time.process_time()
        try:
            readers.READERS[target](path.read_bytes())
        except Exception as error:
            error.add_note(str(path))
            raise
        assert time.process_time() - begun_s < LONGEST_S, path
