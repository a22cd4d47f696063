"""What guards and device are told of a site's day before a session begins."""

from pathlib import Path

import pytest

from cli_support import HEAD
from ionto_rt.device import open_device
from ionto_rt.journal import Ending, Journal, JournalError, Reservation
from ionto_rt.record import session_folders
from ionto_rt.session import Session
from ionto_rt.treatment import Treatment
from treatments import together

MAMIN_C = 0.06
DAY_C = 10.25 * MAMIN_C
"""10 mA*min, and what a guard allows beyond."""
TEXT = HEAD.replace("drug =", 'subject = "S-07"\nsite = "{site}"\ndrug =') + """\
[limits]
day_dose = "10 mA*min"
[[steps]]
current = "2 mA"
dose = "{dose} mA*min"
ramp = "4 s"
"""


def of(*channels: tuple[str, float]) -> Treatment:
    texts = [TEXT.format(site=site, dose=dose) for site, dose in channels]
    return Treatment.parse((together(texts) if len(texts) > 1 else texts[0]).encode(), "t.toml")


def told_c(out_dir: Path, received_c: float, *channels: tuple[str, float]) -> list[float]:
    """The charge caps of the channels' guards, where the left knee has received so much today."""
    with Journal(out_dir) as journal, open_device(f"sim:?channels={len(channels)}") as device:
        journal.begin("before", "before", "S-07", [Reservation("left knee", 9.0, 0.1)], simulated=True)
        journal.finish("before", [Ending("complete", received_c, received_c)])
        session = Session(of(*channels), device, out_dir=out_dir, speed="max")
        session._admission.keep_within_day(journal)
        return [channel.limits.charge_cap_c for channel in session.channels]


@pytest.mark.parametrize("received_mamin", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("doses", [(2.0, 3.0), (1.0, 1.0, 1.0)])
def test_the_guards_of_a_site_together_hold_its_day_and_each_its_prescription(
    tmp_path: Path, received_mamin: float, doses: tuple[float, ...]
) -> None:
    sites = ("left knee", "Left  knee", "LEFT KNEE")
    channels = list(zip(sites, doses, strict=False))
    caps_c = told_c(tmp_path, received_mamin * MAMIN_C, *channels)
    assert sum(caps_c) <= (DAY_C - received_mamin * MAMIN_C) * (1.0 + 1e-9)
    for cap_c, dose in zip(caps_c, doses, strict=True):
        assert cap_c >= dose * MAMIN_C


def test_another_site_s_day_is_its_own(tmp_path: Path) -> None:
    left_c, right_c = told_c(tmp_path, 4.0 * MAMIN_C, ("left knee", 2.0), ("right knee", 2.0))
    assert left_c == pytest.approx(DAY_C - 4.0 * MAMIN_C) and right_c == pytest.approx(DAY_C)


def test_a_session_that_ends_between_question_and_entry_leaves_no_limits_too_wide(tmp_path: Path) -> None:
    """While it ran too little was left, so guard and device were told nothing of the day."""
    with Journal(tmp_path) as journal, open_device("sim:") as device:
        journal.begin("before", "before", "S-07", [Reservation("left knee", 9.0 * MAMIN_C, 0.1)], simulated=True)
        session = Session(of(("left knee", 5.0)), device, out_dir=tmp_path, speed="max")
        begin = session._admission.begin

        def later(*words: object) -> None:
            journal.finish("before", [Ending("aborted", 4.0 * MAMIN_C, 4.0 * MAMIN_C)])
            begin(*words)  # type: ignore[arg-type]

        session._admission.begin = later  # type: ignore[method-assign]
        session._admission.recall_stops = lambda *_, **__: {}  # type: ignore[method-assign]
        with pytest.raises(JournalError, match="another session has ended there at this moment; run again"):
            session.run()
        assert session_folders(tmp_path) == []
