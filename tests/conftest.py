"""Hypothesis for the whole suite: no deadline (hosts stall), a blob to reproduce by, the same cases in every CI run."""

import os

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--in-real-time",
        action="store_true",
        help="tests/hazards: only what runs a session, in real time, held to the limits of an unfit host",
    )
