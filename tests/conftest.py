"""Hypothesis for the whole suite: no deadline (hosts stall), a blob to reproduce by, the same cases in every CI run.

What fails in real time while the host stood still is run again.
"""

import os
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import settings

from host_watch import HostWatch

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

RUNS_AGAIN = 2
WATCH = pytest.StashKey[HostWatch]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--in-real-time",
        action="store_true",
        help="tests/hazards: only what runs a session, in real time, held to the limits of an unfit host",
    )


def host_was_late(item: pytest.Item) -> bool:
    return WATCH in item.stash and item.stash[WATCH].was_late


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real_time") or config.getoption("--in-real-time"):
            item.add_marker(pytest.mark.flaky(reruns=RUNS_AGAIN, condition=partial(host_was_late, item)))


@pytest.fixture(autouse=True)
def watched_host(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a test that may be run again: whether the host keeps up, until the test's other fixtures are down."""
    if not request.node.get_closest_marker("flaky"):
        yield
        return
    with HostWatch(request.node.funcargs) as request.node.stash[WATCH]:
        yield
