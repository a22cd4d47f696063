"""The planted defects are where they say, and change something."""

import pytest

from mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.why)
def test_each_defect_has_one_place(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old


def test_there_are_as_many_as_were_promised() -> None:
    assert len(MUTANTS) >= 20
    assert {mutant.file.rsplit("/")[-1].split(".")[0] for mutant in MUTANTS} >= {
        "guard",
        "ledger",
        "predictive",
        "session",
    }
