"""Hypothesis for the whole suite: no deadline (hosts stall), a blob to reproduce by, the same cases in every CI run.

Under xdist the tests in real time run one after the other on one worker, and the others stand back for them.
"""

import contextlib
import os

import pytest
from hypothesis import settings

BACKGROUND_NICE = 10

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--in-real-time",
        action="store_true",
        help="tests/hazards: only what runs a session, in real time, held to the limits of an unfit host",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SideBySide(config))


class SideBySide:
    """Groups and priorities of workers of xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.on_worker = hasattr(config, "workerinput")
        # In a run that is all in real time, workers are there to wait at the same time.
        self.alone = not config.getoption("--in-real-time")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if not self.on_worker:
            return
        for item in items:
            if self.alone and item.get_closest_marker("real_time"):
                item.add_marker(pytest.mark.xdist_group("real time"))
            elif self.alone:
                item.add_marker(pytest.mark.xdist_group(str(item.path)))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if not (self.on_worker and self.alone):
            return
        # Who may not raise a priority again keeps the lower one, as do all workers then.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0 if item.get_closest_marker("real_time") else BACKGROUND_NICE)
