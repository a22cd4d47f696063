"""The lock across sessions (H47): neither damage of a record nor a clock that is set takes a stop away."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.errors import RefusedError
from ionto_rt.journal import Ending, Journal, Moment, Reservation, rebuild
from ionto_rt.record import EVENTS, RECEIPT, SESSION, session_folders
from ionto_rt.recover import recover
from ionto_rt.repeats import LOCK_RESET, locked_causes, recent_stops, refuse_locked
from record_support import make_session, receipt_of, steady_rows

ROWS = steady_rows(50)
BEGAN = datetime(2026, 3, 17, 10, 0, tzinfo=UTC)


class Site:
    """Sessions at one site, by a clock that is set and one that is not."""

    def __init__(self, out_dir: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.out_dir = out_dir
        self.shown = BEGAN
        self.passed_s = 1000.0
        self.boot = "first"
        if monkeypatch is not None:
            monkeypatch.setattr(Moment, "now", staticmethod(self.moment))

    def moment(self) -> Moment:
        return Moment(self.shown, self.boot, self.passed_s)

    def wait(self, seconds: float) -> None:
        self.shown += timedelta(seconds=seconds)
        self.passed_s += seconds

    def session(self, *stops: str, resets: list[str] | None = None, ends: bool = True, site: str = "left knee") -> Path:
        """One whose locks are reset at its start, that is then stopped by these causes, and ends, or is killed."""
        with Journal(self.out_dir, self.moment) as journal:
            folder = make_session(self.out_dir, ROWS)
            journal.begin(folder.session_id, folder.path, "S-07", [Reservation(site, 2.4, 0.004)])
            if resets is not None:
                folder.events.write(LOCK_RESET, None, safety=True, at=self.shown, causes=resets)
            for cause in stops:
                self.wait(1.0)
                told = {"cause": cause, "title": "Lead open", "stops": True}
                folder.events.write("trip", 7, safety=True, at=self.shown, **told)
            self.wait(1.0)
            if ends:
                folder.finish(receipt_of(ROWS))
                journal.finish(folder.session_id, [Ending("faulted", 0.1, 0.1)])
            else:
                folder.close()
        return folder.path

    def locked(self, site: str = "left knee") -> list[str]:
        """As the next session finds it, whatever boot this is."""
        return locked_causes(recent_stops(self.out_dir, "S-07", site))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_between_lines(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another_session(path: Path) -> None:
    shutil.copy(session_folders(path.parent.parent)[0] / path.name, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda folder: cut(folder / EVENTS),
    "cut between lines": lambda folder: cut_between_lines(folder / EVENTS),
    "a byte": lambda folder: flip(folder / EVENTS),
    "empty": lambda folder: (folder / EVENTS).write_bytes(b""),
    "removed": lambda folder: (folder / EVENTS).unlink(),
    "another's": lambda folder: of_another_session(folder / EVENTS),
    "receipt": lambda folder: (folder / RECEIPT).write_bytes(b"{"),
    "receipt removed": lambda folder: (folder / RECEIPT).unlink(),
    "folder removed": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_h47_a_record_that_cannot_be_believed_locks_its_site_until_its_time_is_over(site: Site, damage: str) -> None:
    site.session("H05")
    folder = site.session("H05")
    assert site.locked() == []
    DAMAGES[damage](folder)
    unknown = f"record of {folder.name}"
    assert site.locked() == [unknown]
    with pytest.raises(RefusedError) as refused:
        refuse_locked("S-07", "left knee", recent_stops(site.out_dir, "S-07", "left knee"))
    said = str(refused.value)
    assert folder.name in said and "--reset-lock" in said and "wait 10 min" in said and "\n" not in said
    assert site.locked("right knee") == []
    site.wait(599.0)
    assert site.locked() == [unknown]
    site.wait(62.0)
    assert site.locked() == []


def test_h47_a_reset_lifts_what_it_names_and_that_alone(site: Site) -> None:
    for _ in range(3):
        site.session("H05")
    (site.session("H39") / EVENTS).unlink()
    unknown = f"record of {session_folders(site.out_dir)[-1].name}"
    assert sorted(site.locked()) == sorted(["H05", unknown])
    site.session(resets=[unknown])
    assert site.locked() == ["H05"]
    site.session("H05", resets=["H05"])
    assert site.locked() == [], "and the count begins anew"
    site.session("H05", "H05")
    assert site.locked() == ["H05"]


def test_h47_a_damaged_session_json_and_a_file_s_time_take_no_stop_away(site: Site) -> None:
    folders = [site.session("H05") for _ in range(3)]
    (folders[2] / SESSION).write_bytes(b"{")
    flip(folders[1] / SESSION)
    assert site.locked() == ["H05"]
    rebuild(site.out_dir)
    assert site.locked() == ["H05"], "the journal keeps what it knew of them"


def test_h47_a_session_that_was_killed_counts_recovered_or_not(site: Site) -> None:
    for _ in range(2):
        site.session("H05")
    folder = site.session("H05", ends=False)
    assert site.locked() == ["H05"]
    with (folder / EVENTS).open("ab") as file:
        file.write(b'{"fields":')
    assert site.locked() == ["H05"], "half a line at the end is what a kill leaves"
    recover(folder)
    assert site.locked() == ["H05"]


def played(site: Site, acts: list[tuple[str, int]]) -> Iterator[int]:
    """After each act how many stops count: a session that is stopped, one that resets and is stopped, a clock that is
    set, or set back while the host is down.
    """
    count = 0
    for act, by_s in acts:
        if act == "stop":
            site.session("H05")
            count += 1
        elif act == "reset":
            site.session("H05", resets=["H05"])
            count = 1
        elif act == "set":
            site.shown += timedelta(seconds=by_s)
        else:
            site.shown -= timedelta(seconds=by_s)
            site.boot, site.passed_s = f"{site.boot}'", 5.0
        yield count


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["stop", "reset", "set"]), st.integers(-7200, 7200)), max_size=6))
def test_h47_a_clock_that_is_set_between_sessions_changes_nothing(acts: list[tuple[str, int]]) -> None:
    """Beside the same acts by a clock that nobody sets."""
    with tempfile.TemporaryDirectory() as out, pytest.MonkeyPatch.context() as monkeypatch:
        site = Site(Path(out), monkeypatch)
        for count in played(site, acts):
            assert len(recent_stops(site.out_dir, "S-07", "left knee")) == count


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["stop", "reset", "back"]), st.integers(1, 7200)), max_size=6))
def test_h47_a_clock_that_was_set_back_while_the_host_was_down_forgets_no_stop(acts: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as out, pytest.MonkeyPatch.context() as monkeypatch:
        site = Site(Path(out), monkeypatch)
        for count in played(site, acts):
            assert len(recent_stops(site.out_dir, "S-07", "left knee")) >= count


def test_h47_a_reset_beside_a_session_that_goes_on_takes_none_of_its_later_stops(site: Site) -> None:
    with Journal(site.out_dir, site.moment) as journal:
        running = make_session(site.out_dir, ROWS)
        journal.begin(running.session_id, running.path, "S-07", [Reservation("left knee", 2.4, 0.004)])
        site.wait(1.0)
        site.session(resets=["H05"])
        for _ in range(3):
            site.wait(1.0)
            running.events.write("trip", 7, safety=True, at=site.shown, cause="H05", title="Lead open", stops=True)
        running.close()
    assert site.locked() == ["H05"]
