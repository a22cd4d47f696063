"""The times, and bounds, that the injecting tests measure: held to their row of the hazard table, and kept for `make
hazards`, which reads them as properties of the tests from pytest's --junitxml.

Files of this folder need names that no other folder of tests has.
"""

from collections.abc import Callable

import pytest

from responses import Response


@pytest.fixture
def response(record_property: Callable[[str, object], None], request: pytest.FixtureRequest) -> Response:
    """`response(hazard, injected_s, responded_s)`: what was measured, in a test that is named after its hazard."""
    return Response(record_property, request.node.name)
