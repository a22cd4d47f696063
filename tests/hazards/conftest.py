"""The times, and bounds, that the injecting tests measure: held to their row of the hazard table, and kept for `make
hazards`, which reads them as properties of the tests from pytest's --junitxml.

Files of this folder need names that no other folder of tests has.
"""

from collections.abc import Callable
from types import CodeType, FunctionType

import pytest

import injection
from responses import Response


@pytest.fixture
def response(record_property: Callable[[str, object], None], request: pytest.FixtureRequest) -> Response:
    """`response(hazard, injected_s, responded_s)`: what was measured, in a test that is named after its hazard."""
    injection.clock.sessions = 0
    return Response(record_property, request.node.name, lambda: injection.clock.sessions > 0)


@pytest.fixture(scope="session", autouse=True)
def clock(request: pytest.FixtureRequest) -> None:
    injection.clock.real = request.config.getoption("--in-real-time")


def runs_session(function: FunctionType) -> bool:
    """Whether a test calls `injection.session`, itself or through functions of its module."""
    codes = [function.__code__]
    seen: set[CodeType] = set()
    while codes:
        code = codes.pop()
        seen.add(code)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in code.co_names:
            found = function.__globals__.get(name)
            if found is injection.session:
                return True
            if isinstance(found, FunctionType) and found.__code__ not in seen:
                codes.append(found.__code__)
    return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In real time nothing is gained by what runs no session on a device, or does so in real time anyway."""
    if not config.getoption("--in-real-time"):
        return
    kept = [
        item
        for item in items
        if isinstance(item, pytest.Function)
        and "in_real_time" not in item.name
        and not item.get_closest_marker("virtual_clock")
        and runs_session(item.function)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
