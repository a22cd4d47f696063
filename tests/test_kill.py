"""Twenty hosts killed or stopped at random moments; `make kill` does it to twelve hundred."""

import os
import random
from pathlib import Path

import pytest

from kill_survey import mixed, summary, survey, table

pytestmark = pytest.mark.real_time


@pytest.mark.slow
def test_hosts_that_die_or_stand_still_leave_no_current_and_lose_no_dose(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    acts = mixed(seed, {"kill": 16, "stop": 4})
    results = list(survey(seed, acts, 2 * len(os.sched_getaffinity(0)), tmp_path))
    print(f"{table(results)}\n{summary(results)}")
    failed = [f"{result.draw}: {'; '.join(result.problems)}" for result in results if result.problems]
    assert not failed, "\n".join(failed)
    assert len(results) == 20
    # Two thirds of all draws fall where current flows.
    assert sum(result.flowing for result in results) >= 5
