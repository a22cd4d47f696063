"""Hypothesis for the whole suite: no deadline (hosts stall), a blob to reproduce by, the same cases in every CI run."""

import os

from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
