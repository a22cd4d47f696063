"""Fixtures of the benches, and their one table: `make bench` prints it and writes build/bench.json."""

import gc
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from bench_support import HERE, build_harness, recorded

RESULT = HERE.parent / "build/bench.json"


@dataclass
class Row:
    """One line of the table. `ratio` is own over beside unless the row says otherwise; `bar` is what it must keep."""

    what: str
    own: str
    beside: str
    beside_own: str
    ratio: float | None
    bar: str
    kept: bool | None
    details: dict[str, Any]


class Table:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self,
        what: str,
        own: str,
        *,
        beside: str = "",
        beside_own: str = "",
        ratio: float | None = None,
        bar: str = "",
        kept: bool | None = None,
        **details: Any,
    ) -> None:
        """Add a line, and fail if its bar is not kept."""
        self.rows.append(Row(what, own, beside, beside_own, ratio, bar, kept, details))
        assert kept is not False, f"{what}: {own} (bar: {bar})"

    def lines(self) -> list[str]:
        head = ("what", "own", "beside", "", "ratio", "bar", "")
        rows = [
            (r.what, r.own, r.beside, r.beside_own, f"{r.ratio:.3g}" if r.ratio is not None else "", r.bar,
             "" if r.kept is None else "kept" if r.kept else "MISSED")
            for r in self.rows
        ]  # fmt: skip
        widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
        right = {1, 3, 4}
        return [
            "  ".join(
                t.rjust(w) if k in right else t.ljust(w) for k, (t, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip() for row in [head, tuple("-" * w for w in widths), *rows]
        ]  # fmt: skip


TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = Table()
    # The table below takes the place of the plugin's.
    config.option.benchmark_quiet = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """From the arithmetic outwards, which is also the order of the table."""
    order = ["tick", "regulator", "loop", "record", "session", "real_time", "latency", "start_up"]
    items.sort(key=lambda item: order.index(item.path.stem.removeprefix("test_")))


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    return request.config.stash[TABLE]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[TABLE].rows
    if not rows:
        return
    host = {"processors": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"host": host, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    terminalreporter.section("ratios")
    for line in config.stash[TABLE].lines():
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"as JSON, with percentiles: {os.path.relpath(RESULT)}")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compiled; gone after the session."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="session")
def harness(built: Path) -> Any:
    return build_harness(built)


@pytest.fixture(scope="session")
def recording(harness: Any) -> Any:
    return recorded(harness)


@pytest.fixture(autouse=True)
def quiet_collector() -> Iterator[None]:
    """Python's garbage collector stays out of the timed rounds."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
