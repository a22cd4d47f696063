"""The journal: what a site has received today, reservations included, whoever died when."""

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.journal import JOURNAL, Ending, Journal, JournalError, Moment, Reservation, local_day, rebuild
from ionto_rt.record import Record
from record_support import finished_channels, make_channels, make_session, receipt_of, steady_rows, ticked

HERE = Path(__file__).parent.parent


def run_python(code: str) -> "subprocess.Popen[str]":
    text = "import os, signal, sys; sys.path.insert(0, 'tests'); from pathlib import Path\n"
    text += "from ionto_rt.journal import Journal, JournalError, Reservation\n" + code
    return subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE, text=True
    )


def test_a_running_session_counts_with_its_reservation_and_an_ended_one_with_its_charge(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", tmp_path / "a", "S-07", [Reservation("left knee", 2.4, 0.004)])
        assert journal.charge_today("S-07", "left knee") == 0.004
        journal.extend("a", [(0.5, 0.504)])
        assert journal.charge_today("S-07", "left knee") == 0.504
        assert [row.session_id for row in journal.open_sessions()] == ["a"]
        journal.finish("a", [Ending("complete", 0.51, 0.52)])
        assert journal.charge_today("S-07", "left knee") == 0.52
        assert journal.charge_today("S-07", "right knee") == journal.charge_today("S-08", "left knee") == 0
        assert journal.open_sessions() == []
        (row,) = journal.sessions()
        assert (row.outcome, row.delivered_net_c, row.folder, row.measured) == ("complete", 0.51, "a", True)


def test_a_reservation_never_falls_while_the_session_is_open(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "", [Reservation("", 2.4, 0.01)])
        journal.extend("a", [(0.5, 0.504)])
        journal.extend("a", [(0.4, 0.1)])
        assert journal.charge_today("", "") == 0.504


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xy"), st.floats(0, 5), st.floats(0, 5)), max_size=12))
def test_the_charge_of_a_site_is_the_sum_over_its_sessions(sessions: list[tuple[str, float, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        expected = {"x": 0.0, "y": 0.0}
        for number, (site, reserved, delivered) in enumerate(sessions):
            journal.begin(str(number), str(number), "S", [Reservation(site, 1.0, reserved)])
            if number % 2:
                journal.finish(str(number), [Ending("complete", delivered, delivered)])
            expected[site] += delivered if number % 2 else reserved
        for site, charge in expected.items():
            assert journal.charge_today("S", site) == pytest.approx(charge, abs=1e-12)


def test_a_session_counts_on_the_days_on_which_it_ran(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "S", [Reservation("x", 1.0, 0.5)])
        today = datetime.now(UTC).astimezone().date()
        assert journal.charge_today("S", "x", today) == 0.5
        assert journal.charge_today("S", "x", today - timedelta(days=1)) == 0
        assert journal.charge_today("S", "x", today + timedelta(days=1)) == 0
        assert local_day() == today.isoformat()


def test_a_daily_cap_holds_against_two_processes_that_begin_at_once(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    code = (
        f"journal = Journal(Path({str(tmp_path)!r}))\n"
        "print('ready', flush=True); name = sys.stdin.readline().strip()\n"
        "try:\n"
        "    journal.begin(name, name, 'S', [Reservation('x', 2.4, 2.4, cap_c=4.0)]); print('begun')\n"
        "except JournalError as error: print(error)\n"
    )
    processes = [run_python(code) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for number, process in enumerate(processes):
        assert process.stdin is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    answers = [process.communicate()[0].strip() for process in processes]
    assert answers.count("begun") == 1
    refused = [answer for answer in answers if answer != "begun"]
    assert all("40.00 mA*min today and 40.00 mA*min prescribed exceed 66.67 mA*min" in answer for answer in refused)


def test_two_processes_make_and_write_one_journal(tmp_path: Path) -> None:
    code = (
        "name = sys.stdin.readline().strip()\n"
        f"with Journal(Path({str(tmp_path)!r})) as journal:\n"
        "    journal.begin(name, name, 'S', [Reservation('x', 1.0, 0.0)])\n"
        "    for step in range(1, 101): journal.extend(name, [(step / 100, step / 100)])\n"
    )
    processes = [run_python(code) for _ in range(3)]
    for number, process in enumerate(processes):
        assert process.stdin is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    with Journal(tmp_path) as journal:
        assert journal.charge_today("S", "x") == 3.0


def test_a_site_counts_what_all_channels_of_all_sessions_gave_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        sites = (("x", 0.1), ("y", 0.2), ("x", 0.3))
        journal.begin("a", "a", "S", [Reservation(site, 1.0, reserved) for site, reserved in sites])
        assert journal.charge_today("S", "x") == pytest.approx(0.4) and journal.charge_today("S", "y") == 0.2
        journal.extend("a", [(0.5, 0.6), (0.1, 0.1), (0.0, 0.3)])
        assert journal.charge_today("S", "x") == pytest.approx(0.9) and journal.charge_today("S", "y") == 0.2
        journal.begin("b", "b", "S", [Reservation("x", 1.0, 0.05)])
        journal.finish("a", [Ending("complete", 0.9, 1.0), Ending("faulted", 0.3, 0.3), Ending("aborted", -0.1, 0.2)])
        assert journal.charge_today("S", "x") == pytest.approx(1.25) and journal.charge_today("S", "y") == 0.3
        assert [(row.session_id, row.channel, row.outcome) for row in journal.sessions()] == [
            ("a", 0, "complete"), ("a", 1, "faulted"), ("a", 2, "aborted"), ("b", 0, None),
        ]  # fmt: skip
        assert [row.site for row in journal.get("a")] == ["x", "y", "x"] and journal.get("c") == []


def test_a_daily_cap_holds_for_what_all_channels_prescribe_for_a_site(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        pair = [Reservation("x", 2.0, 0.1, cap_c=3.0), Reservation("x", 1.5, 0.1, cap_c=3.0)]
        with pytest.raises(JournalError, match=r"0.00 mA\*min today and 58.33 mA\*min prescribed exceed 50.00"):
            journal.begin("a", "a", "S", pair)
        assert journal.sessions() == []
        apart = [Reservation("x", 2.0, 0.1, cap_c=3.0), Reservation("y", 1.5, 0.1, cap_c=3.0)]
        journal.begin("a", "a", "S", apart)
        journal.finish("a", [Ending("complete", 2.0, 2.0), Ending("complete", 1.5, 1.5)])
        with pytest.raises(JournalError, match=r"S, y: 25\.00"):
            journal.begin("b", "b", "S", [Reservation("z", 2.0, 0.1, cap_c=3.0), Reservation("y", 1.6, 0.1, cap_c=3.0)])
        journal.begin("b", "b", "S", [Reservation("y", 1.5, 0.1, cap_c=3.0)])


def test_the_channels_of_a_session_change_together_or_not_at_all(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "S", [Reservation("x", 1.0, 0.1), Reservation("y", 1.0, 0.1)])
        for charges in ([(0.5, 0.6)], [(0.5, 0.6)] * 3):
            with pytest.raises(JournalError, match=f"not an open session of {len(charges)} channels"):
                journal.extend("a", charges)
        with pytest.raises(JournalError, match="not an open session of 1 channels"):
            journal.finish("a", [Ending("complete", 1.0, 1.0)])
        assert [(row.delivered_abs_c, row.outcome) for row in journal.get("a")] == [(0.0, None)] * 2
        journal.withdraw("a")
        assert journal.get("a") == []


def test_the_channels_are_rebuilt_from_the_folder(tmp_path: Path) -> None:
    known = ticked(3)
    ended, open_one = finished_channels(tmp_path, known), make_channels(tmp_path, known)
    open_one.close()
    done = rebuild(tmp_path)
    assert (done.sessions, done.unreadable) == (2, [])
    with Journal(tmp_path) as journal:
        for channel, row in enumerate(journal.get(ended.name)):
            assert (row.channel, row.outcome, row.site) == (channel, "complete", f"place {channel}")
            absolute = int(known.of(channel)["absolute_codes"][-1]) * known.unit_c(channel)
            assert row.delivered_abs_c == pytest.approx(absolute, rel=1e-12)
        for channel, row in enumerate(journal.get(open_one.session_id)):
            own = Record.open(open_one.path).channels[channel]
            assert (row.channel, row.outcome) == (channel, None)
            assert row.reserved_until_c == own.counted().absolute_c + own.unreserved_c


def test_a_journal_of_an_earlier_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / JOURNAL)) as db:
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(JournalError, match=r"not a journal of this version \(version 1, known 3\); rebuild it"):
        Journal(tmp_path)
    assert rebuild(tmp_path).kept_as is not None


def test_what_was_reserved_before_a_kill_still_counts(tmp_path: Path) -> None:
    code = (
        f"journal = Journal(Path({str(tmp_path)!r}))\n"
        "journal.begin('a', 'a', 'S', [Reservation('x', 2.4, 0.004)])\n"
        "for step in range(1, 200): journal.extend('a', [(step * 0.004, step * 0.004 + 0.004)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = run_python(code)
    process.communicate()
    assert process.returncode == -9
    with Journal(tmp_path) as journal:
        assert journal.charge_today("S", "x") == 200 * 0.004
        assert journal.recovered("a", [Ending("recovered", 0.797, 0.797)])
        assert not journal.recovered("a", [Ending("recovered", 5.0, 5.0)])
        assert journal.charge_today("S", "x") == 0.797


def test_a_session_without_current_is_withdrawn(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "S", [Reservation("x", 1.0, 0.5)])
        journal.withdraw("a")
        journal.withdraw("never begun")
        assert journal.sessions() == [] and journal.charge_today("S", "x") == 0


def test_ending_what_is_not_open_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "S", [Reservation("x", 1.0, 0.0)])
        journal.finish("a", [Ending("complete", 1.0, 1.0)])
        with pytest.raises(JournalError, match="not an open session"):
            journal.finish("a", [Ending("complete", 1.0, 1.0)])
        with pytest.raises(JournalError, match="not an open session"):
            journal.extend("b", [(1.0, 1.0)])
        with pytest.raises(JournalError, match="UNIQUE"):
            journal.begin("a", "a", "S", [Reservation("x", 1.0, 0.0)])


@pytest.mark.parametrize("damage", ["noise", "text", "empty tables", "other program", "cut", "missing"])
def test_a_damaged_journal_is_refused_with_the_remedy_and_rebuilt_from_the_folders(tmp_path: Path, damage: str) -> None:
    rows = steady_rows(3000)
    with Journal(tmp_path) as journal:
        folder = make_session(tmp_path, rows)
        journal.begin(folder.session_id, folder.path, "S-07", [Reservation("left knee", 2.4, 0.004)])
        receipt = folder.finish(receipt_of(rows))
        delivered = float(rows["delivered_c"][-1])
        journal.finish(folder.session_id, [Ending(receipt["outcome"], delivered, delivered)])
    path = tmp_path / JOURNAL
    if damage == "noise":
        path.write_bytes(path.read_bytes()[:100] + bytes(range(256)) * 50)
    elif damage == "text":
        path.write_text("journal of sessions, nothing to see here\n" * 50)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "missing":
        path.unlink()
    elif damage == "other program":
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA application_id = 1")
        db.close()
    else:
        path.unlink()
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE other (x)")
        db.close()
    with pytest.raises(JournalError) as caught:
        Journal(tmp_path)
    assert "rebuild" in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)
    done = rebuild(tmp_path)
    assert (done.sessions, done.unreadable, done.kept_as is None) == (1, [], damage == "missing")
    with Journal(tmp_path) as journal:
        (row,) = journal.sessions()
        assert (row.session_id, row.outcome, row.subject) == (folder.session_id, "complete", "S-07")
        assert journal.charge_today("S-07", "left knee") == pytest.approx(delivered, rel=1e-12)


def given_today(out_dir: Path, subject: str, count: int) -> str:
    """The name of a session's folder that gave `count` rows of 4 mA, and is in the journal."""
    rows = steady_rows(count)
    with Journal(out_dir) as journal:
        folder = make_session(out_dir, rows, subject=subject)
        journal.begin(folder.session_id, folder.path, subject, [Reservation("left knee", 2.4, 0.004)])
        folder.finish(receipt_of(rows))
        delivered = float(rows["delivered_c"][-1])
        journal.finish(folder.session_id, [Ending("complete", delivered, delivered)])
    return folder.session_id


@pytest.mark.parametrize("damage", ["another session's files", "another subject", "another scale", "no JSON"])
def test_a_rebuilt_journal_forgets_no_charge_of_a_folder_that_cannot_be_believed(tmp_path: Path, damage: str) -> None:
    own, other = given_today(tmp_path, "Anna", 2000), given_today(tmp_path, "Berta", 500)
    charge_c = {"Anna": 2000 * 4e-6, "Berta": 500 * 4e-6}
    session = tmp_path / own / "session.json"
    if damage == "another session's files":
        shutil.rmtree(tmp_path / own)
        shutil.copytree(tmp_path / other, tmp_path / own)
    elif damage == "no JSON":
        session.write_bytes(b"{")
    else:
        old, new = (b"Anna", b"Bnna") if damage == "another subject" else (b"e-07", b"e-17")
        session.write_bytes(session.read_bytes().replace(old, new))
    done = rebuild(tmp_path)
    assert done.sessions == 1 and len(done.unreadable) == 1 and own in done.unreadable[0]
    with Journal(tmp_path) as journal:
        for subject, given_c in charge_c.items():
            assert journal.charge_today(subject, "left knee") == pytest.approx(given_c, rel=1e-9)
    (tmp_path / JOURNAL).unlink()
    rebuild(tmp_path)
    with Journal(tmp_path) as journal, pytest.raises(JournalError, match=f"does not know the session {own}"):
        journal.begin("b", "b", "Anna", [cap("left knee")])


def test_a_rebuilt_journal_keeps_the_clock_that_nobody_sets(tmp_path: Path) -> None:
    name = given_today(tmp_path, "Anna", 500)
    with Journal(tmp_path) as journal:
        before = journal.get(name)[0]
    assert rebuild(tmp_path).unreadable == []
    with Journal(tmp_path) as journal:
        after = journal.get(name)[0]
    assert before.last_boot_id and before.last_boot_s > 0.0
    assert (after.last_utc, after.last_boot_id, after.last_boot_s) == (
        before.last_utc,
        before.last_boot_id,
        before.last_boot_s,
    )


def test_a_rebuilt_journal_counts_an_unended_session_with_the_most_it_can_have_delivered(tmp_path: Path) -> None:
    rows = steady_rows(12000)
    folder = make_session(tmp_path, rows)
    folder.close()
    assert rebuild(tmp_path).sessions == 1
    absolute = int(rows["absolute_codes"][-1]) * (4e-3 / 30000) * 1e-3 / 65536
    with Journal(tmp_path) as journal:
        (row,) = journal.open_sessions()
        # The reservation is lost with the journal: the disk may have stalled for 30 s, a second after it was renewed.
        unseen = 4e-3 * (30.0 + 1.0 + 0.1 + 2.0 + 0.1) + 4e-3**2 / (2 * 1e-3)
        assert row.reserved_until_c == pytest.approx(absolute + unseen, rel=1e-12)
        assert journal.charge_today("S-07", "left knee") == row.reserved_until_c


def test_a_journal_is_not_rebuilt_under_a_running_session(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    with pytest.raises(JournalError, match="running"):
        rebuild(tmp_path)
    folder.close()
    (folder.path / "session.json").write_text("[]")
    done = rebuild(tmp_path)
    assert done.sessions == 0 and len(done.unreadable) == 1


def test_a_new_journal_may_be_opened_by_two_at_once(tmp_path: Path) -> None:
    for round_ in range(50):
        both = threading.Barrier(2)

        def opened(folder: Path, both: threading.Barrier = both) -> None:
            both.wait()
            Journal(folder).close()

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(opened, [tmp_path / str(round_)] * 2))


def cap(site: str = "x", prescribed_c: float = 2.4, cap_c: float = 4.9, **more: float) -> Reservation:
    return Reservation(site, prescribed_c, 0.14, cap_c=cap_c, cap_text="a day's 80 mA·min (catalogue: d)", **more)


def test_what_has_begun_counts_against_the_day_with_all_that_it_prescribes(tmp_path: Path) -> None:
    """Its reservation is a second's worth of it: a second session would pass beside it."""
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "S", [cap()])
        assert journal.charge_today("S", "x") == 0.14 and journal.received_today("S", "x") == 2.4
        journal.begin("b", "b", "S", [cap()])
        with pytest.raises(JournalError) as caught:
            journal.begin("c", "c", "S", [cap(prescribed_c=0.2)])
        assert str(caught.value) == (
            f"{tmp_path / JOURNAL}: S, x: 80.00 mA*min today and 3.33 mA*min prescribed exceed a day's 80 mA·min "
            "(catalogue: d) (a has not ended: wait for it, or recover it); wait, or take another site"
        )
        journal.finish("a", [Ending("aborted", 0.5, 0.6)])
        assert journal.received_today("S", "x") == 3.0
        journal.begin("c", "c", "S", [cap(prescribed_c=1.9)])


def test_the_day_holds_exactly_the_cap(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "S", [cap(prescribed_c=2.5, cap_c=4.0)])
        with pytest.raises(JournalError):
            journal.begin("b", "b", "S", [cap(prescribed_c=1.5 + 1e-9, cap_c=4.0)])
        journal.begin("b", "b", "S", [cap(prescribed_c=1.5, cap_c=4.0)])


TYPED = {
    ("Anna", "left arm"): ["Left arm", "left  arm", " left arm\t", "LEFT ARM", "left\u00a0arm", "\uff4ceft arm"],
    ("Zo\u00eb", "stra\u00dfe"): ["STRASSE", "Stra\u00dfe"],
}


@pytest.mark.parametrize(
    ("subject", "site", "again"), [(*who, again) for who, typed in TYPED.items() for again in typed]
)
def test_a_site_is_the_same_however_it_is_typed(tmp_path: Path, subject: str, site: str, again: str) -> None:
    other = unicodedata.normalize("NFD", subject).upper()
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", subject, [cap(site, rest_s=60.0)])
        assert journal.received_today(other, again) == 2.4 and journal.charge_today(other, again) > 0.0
        with pytest.raises(JournalError, match="exceed"):
            journal.begin("b", "b", other, [cap(again, prescribed_c=3.0)])
        with pytest.raises(JournalError, match="since the last current"):
            journal.begin("b", "b", other, [cap(again, prescribed_c=0.1, rest_s=60.0)])
        with pytest.raises(JournalError, match="exceed"):
            journal.begin("b", "b", "Berta", [cap(site, prescribed_c=2.5), cap(again, prescribed_c=2.5)])
        (row,) = journal.sessions()
        assert (row.subject, row.site) == (subject, site), "on record as it was typed"
        journal.begin("b", "b", subject, [cap(f"{site} 2")])


def test_a_simulated_patient_s_charge_is_nobody_else_s(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("a", "a", "S", [cap(prescribed_c=4.0)], simulated=True)
        assert (journal.received_today("S", "x"), journal.received_today("S", "x", simulated=True)) == (0.0, 4.0)
        journal.begin("b", "b", "S", [cap(prescribed_c=4.0)])
        with pytest.raises(JournalError, match=r"66\.67 mA\*min today"):
            journal.begin("c", "c", "S", [cap(prescribed_c=4.0)], simulated=True)


def test_limits_that_were_made_for_less_received_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, Journal(tmp_path) as other:
        received_c = journal.received_today("S", "x")
        other.begin("a", "a", "S", [cap(prescribed_c=1.0)])
        with pytest.raises(JournalError, match="another session has begun there at this moment; run again"):
            journal.begin("b", "b", "S", [cap(prescribed_c=1.0, received_c=received_c)])
        journal.begin("b", "b", "S", [cap(prescribed_c=1.0, received_c=journal.received_today("S", "x"))])


def test_limits_that_were_made_while_a_session_ran_that_has_ended_are_refused(tmp_path: Path) -> None:
    """They leave the whole day where too little seemed to be left."""
    with Journal(tmp_path) as journal, Journal(tmp_path) as other:
        other.begin("a", "a", "S", [cap(prescribed_c=2.4)])
        received_c = journal.received_today("S", "x")
        other.finish("a", [Ending("aborted", 1.0, 1.0)])
        with pytest.raises(JournalError, match="another session has ended there at this moment; run again"):
            journal.begin("b", "b", "S", [cap(prescribed_c=3.0, received_c=received_c)])


class Clock:
    """Two clocks: `shown` is set by whoever likes to, `passed` goes on by itself."""

    def __init__(self) -> None:
        self.shown = datetime(2026, 3, 17, 10, 0).astimezone(UTC)  # ten o'clock where this host is
        self.passed_s = 1000.0
        self.boot = "first"

    def __call__(self) -> Moment:
        return Moment(self.shown, self.boot, self.passed_s)

    def wait(self, **time: float) -> None:
        self.shown += timedelta(**time)
        self.passed_s += timedelta(**time).total_seconds()

    def set(self, **by: float) -> None:
        self.shown += timedelta(**by)

    def restart(self) -> None:
        self.boot, self.passed_s = "second", 5.0


def received(folder: Path, clock: Clock) -> float:
    with Journal(folder, clock) as journal:
        return journal.received_today("S", "x")


def treated(folder: Path, clock: Clock) -> None:
    with Journal(folder, clock) as journal:
        journal.begin("a", "a", "S", [cap()])
        journal.finish("a", [Ending("complete", 2.4, 2.4)])


def test_h27_a_clock_that_is_set_does_not_free_a_day(tmp_path: Path) -> None:
    for hours in (-8760, -24, -1, 1, 24, 8760):
        clock, folder = Clock(), tmp_path / str(hours)
        treated(folder, clock)
        clock.wait(hours=1)
        clock.set(hours=hours)
        assert received(folder, clock) == 2.4
        clock.wait(hours=22)
        assert received(folder, clock) == 2.4, "23 h are no day"
        clock.wait(hours=1)
        assert received(folder, clock) == 0.0, "24 h have passed by the clock that nobody sets"


def test_h27_a_clock_that_was_set_right_before_a_restart_does_not_free_a_day(tmp_path: Path) -> None:
    """As on a host whose clock has no battery: a time server sets it while it is up."""
    for days in (-9000, -9, -1, 1, 9):
        clock, folder = Clock(), tmp_path / str(days)
        clock.set(days=days)
        treated(folder, clock)
        clock.wait(minutes=2)
        clock.set(days=-days)
        assert received(folder, clock) == 2.4
        clock.restart()
        clock.wait(minutes=10)
        assert received(folder, clock) == 2.4
        with Journal(folder, clock) as journal, pytest.raises(JournalError, match="30 min are the least"):
            journal.begin("b", "b", "S", [cap(prescribed_c=0.1, rest_s=1800.0)])
        if days < 0:
            clock.wait(hours=24)
            assert received(folder, clock) == 0.0


def test_opening_a_journal_changes_nothing_where_the_clock_is_right(tmp_path: Path) -> None:
    clock = Clock()
    treated(tmp_path, clock)
    with Journal(tmp_path, clock) as journal:
        before = journal.sessions()
    for _ in range(3):
        clock.wait(hours=1)
        clock.set(seconds=10)
        with Journal(tmp_path, clock) as journal:
            assert journal.sessions() == before


def test_a_clock_that_was_set_is_followed_once(tmp_path: Path) -> None:
    clock = Clock()
    treated(tmp_path, clock)
    clock.set(days=3)
    followed = []
    for _ in range(3):
        with Journal(tmp_path, clock) as journal:
            followed.append(journal.sessions())
        clock.wait(minutes=7)
    assert followed[0] == followed[1] == followed[2]
    assert followed[0][0].last_day == local_day(clock.shown)


def test_h27_a_clock_that_was_set_back_while_the_host_was_down_does_not_free_a_day(tmp_path: Path) -> None:
    clock = Clock()
    treated(tmp_path, clock)
    clock.restart()
    clock.set(days=-40)
    assert received(tmp_path, clock) == 2.4, "a session dated in the future counts"
    with Journal(tmp_path, clock) as journal, pytest.raises(JournalError, match="of this host has been set since"):
        journal.begin("b", "b", "S", [cap(prescribed_c=3.0)])
    clock.set(days=41)
    assert received(tmp_path, clock) == 0.0


def test_a_clock_that_is_right_counts_by_the_calendar(tmp_path: Path) -> None:
    clock = Clock()
    treated(tmp_path, clock)
    clock.set(seconds=59)  # as a time server does it
    clock.wait(hours=13, minutes=58)
    assert received(tmp_path, clock) == 2.4
    clock.wait(minutes=2)
    assert received(tmp_path, clock) == 0.0, "midnight"
    treated(tmp_path / "again", clock)
    clock.restart()
    clock.wait(hours=20)
    assert received(tmp_path / "again", clock) == 2.4
    clock.wait(hours=5)
    assert received(tmp_path / "again", clock) == 0.0


def test_a_day_never_falls_while_a_session_runs(tmp_path: Path) -> None:
    clock = Clock()
    with Journal(tmp_path, clock) as journal:
        journal.begin("a", "a", "S", [cap()])
        begun = journal.get("a")[0].last_day
        clock.set(days=-3)
        journal.extend("a", [(0.5, 0.7)])
        journal.finish("a", [Ending("complete", 0.5, 0.5)])
        assert (journal.get("a")[0].first_day, journal.get("a")[0].last_day) == (begun, begun)


def test_a_site_rests_by_the_clock_that_nobody_sets(tmp_path: Path) -> None:
    clock = Clock()
    treated(tmp_path, clock)
    with Journal(tmp_path, clock) as journal:
        clock.wait(minutes=29, seconds=59.9)
        clock.set(hours=1)
        with pytest.raises(JournalError, match=r"since the last current, 30 min are the least; wait 0\.0 min"):
            journal.begin("b", "b", "S", [cap(prescribed_c=1.0, rest_s=1800.0)])
        journal.begin("b", "b", "S", [cap("y", rest_s=1800.0)])
        clock.wait(seconds=0.1)
        journal.begin("c", "c", "S", [cap(prescribed_c=1.0, rest_s=1800.0), cap(prescribed_c=0.5, rest_s=1800.0)])
        with pytest.raises(JournalError, match=r"0\.0 min since the last current"):
            journal.begin("d", "d", "S", [cap(prescribed_c=0.1, rest_s=1800.0)])


@pytest.mark.parametrize("content", [b"", b"x", bytes(100)])
def test_h37_an_empty_journal_beside_sessions_is_not_taken_for_a_new_one(tmp_path: Path, content: bytes) -> None:
    make_session(tmp_path).close()
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(JournalError, match=r"--rebuild$"):
        Journal(tmp_path)
    assert rebuild(tmp_path).sessions == 1


def damaged_copies(source: Path, folder: Path, seed: int, count: int) -> Iterator[tuple[str, Path]]:
    """Copies of a sessions' folder in each of which some bytes of the journal's files are others."""
    random = Random(seed)
    for number in range(count):
        copy = folder / str(number)
        shutil.copytree(source, copy)
        path = random.choice(sorted(copy.glob(f"{JOURNAL}*")))
        data = bytearray(path.read_bytes())
        kind = random.choice(["a bit", "a byte", "a hole", "cut"])
        at = random.randrange(len(data))
        if kind == "a bit":
            data[at] ^= 1 << random.randrange(8)
        elif kind == "a byte":
            data[at] = random.randrange(256)
        elif kind == "a hole":
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        else:
            del data[at:]
        path.write_bytes(data)
        yield f"{kind} of {path.name} at {at}", copy
        shutil.rmtree(copy)


@pytest.mark.parametrize("logged", [False, True], ids=["in the file", "in its log"])
def test_h37_a_journal_damaged_anywhere_is_refused_or_tells_the_truth(tmp_path: Path, logged: bool) -> None:
    """What counts against a day never comes out less: the file is refused by name, or a session that a damaged log has
    lost is missed, or nothing that matters was hit. Rebuilt it counts at least as much again.
    """
    source, seed, rows = tmp_path / "source", 20261126, steady_rows(100)
    journal = Journal(source)
    try:
        for number in range(6):
            folder = make_session(source, rows)
            entry = Reservation(f"site {number % 3}", 2.4, 0.14)
            journal.begin(folder.session_id, folder.path, "S-07", [entry])
            journal.extend(folder.session_id, [(0.5, 0.7)])
            receipt = folder.finish(receipt_of(rows, delivered_abs_c=1.0))
            journal.finish(folder.session_id, [Ending(receipt["outcome"], 1.0, 1.0)])
        if not logged:
            journal.close()
        refused = missed = true = 0
        for what, copy in damaged_copies(source, tmp_path / "damaged", seed, 200):
            for rest in copy.glob("*-shm"):
                rest.unlink()
            try:
                with Journal(copy) as found:
                    received = [found.received_today("S-07", f"site {number}") for number in range(3)]
                    try:
                        found.begin("next", "next", "S-07", [cap("site 0", 1.0, 100.0)])
                    except JournalError as error:
                        assert "does not know the session" in str(error) and str(error).endswith("--rebuild"), what
                        missed += 1
                        continue
                assert min(received) >= 2.0, what
                true += 1
            except JournalError as error:
                assert str(copy / JOURNAL) in str(error) and str(error).endswith("--rebuild"), (what, str(error))
                refused += 1
                if refused % 10 == 1:
                    assert rebuild(copy).sessions == 6
                    with Journal(copy) as again:
                        assert again.received_today("S-07", "left knee") >= 6.0
    finally:
        journal.close()
    print(f"seed {seed}: {refused} refused, {missed} missed a session, {true} unharmed")
    assert refused + missed > 20 and true > 0 and (missed > 0) == logged
