"""`journal.sqlite`: the index of sessions in a folder, and the charge that each subject's site has received per day.

A row is one channel of a session: each has its site, its prescription and its charge. A subject's site counts what all
channels of all sessions have given it; the channels of one session begin and end in one commit.

The folders of the sessions are the truth; this is what can be asked quickly and by several processes at once. Before
current flows it reserves charge ahead: a session's `reserved_until_c` is what it may have delivered by now, and until
the session is finished or recovered that counts as delivered. Against a day's cap an unended session counts with all
that it prescribes, so that of two processes that begin at once only one gets what is left.

Subjects and sites are compared by `ionto_rt.names.name_key`, whatever way they were typed; rows hold them as typed.

A simulated patient's charge is nobody else's: sessions on a device that is known to be a simulation are counted apart.

A day is the calendar's where the host is. The clock that says which may be wrong, or be set. A session counts for today
if its date says so, and if its date lies after today: the clock has been set back since. Where the host has not been
restarted since, a clock that was set shows beside the one that nobody sets, and the session counts for the next 24 h;
who opens the journal then notes the time by the clock as it was set, which a restart leaves. A clock that is set
forward while the host is down, or is set and nobody opens the journal before a restart, is not noticed.

A commit is on disk when it returns (write-ahead log, synchronous FULL: 0.2 ms each on the machine it was measured on,
0.25 s in a whole fast run), so neither a killed process nor a power failure takes a reservation back.
"""

import functools
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ionto_rt.events import utc_text
from ionto_rt.names import name_key
from ionto_rt.record import COULOMB_PER_MAMIN, Channel, Record, RecordError, is_running, session_folders, sync_folder
from ionto_rt.vouched import session_problem, stranger

JOURNAL = "journal.sqlite"
APPLICATION_ID = 0x496F6E74
SCHEMA_VERSION = 3
BUSY_S = 5.0
RETRY_S = 0.002
DAY_S = 86400.0
SET_S = 60.0
"""A clock that has gone by more than this more or less than the one that nobody sets has been set."""

_SCHEMA = """
CREATE TABLE sessions (
    session_id       TEXT NOT NULL,
    channel          INTEGER NOT NULL CHECK (channel BETWEEN 0 AND 31),
    folder           TEXT NOT NULL,
    subject          TEXT NOT NULL,
    site             TEXT NOT NULL,
    first_day        TEXT NOT NULL,
    last_day         TEXT NOT NULL,
    begun_utc        TEXT NOT NULL,
    ended_utc        TEXT,
    prescribed_c     REAL NOT NULL CHECK (prescribed_c >= 0),
    reserved_until_c REAL NOT NULL CHECK (reserved_until_c >= 0),
    delivered_net_c  REAL NOT NULL DEFAULT 0,
    delivered_abs_c  REAL NOT NULL DEFAULT 0 CHECK (delivered_abs_c >= 0),
    outcome          TEXT,
    measured         INTEGER NOT NULL DEFAULT 1,
    simulated        INTEGER NOT NULL DEFAULT 0,
    last_utc         TEXT NOT NULL,
    last_boot_id     TEXT NOT NULL DEFAULT '',
    last_boot_s      REAL NOT NULL DEFAULT 0,
    seal             TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (session_id, channel)
) STRICT;
CREATE INDEX sessions_by_site ON sessions (subject, site, last_day);
CREATE TABLE total (one INTEGER PRIMARY KEY CHECK (one = 1), channels INTEGER NOT NULL) STRICT;
INSERT INTO total VALUES (1, 0);
"""
# An open session counts with its reservation, an ended one with what it delivered.
_CHARGE = "CASE WHEN outcome IS NULL THEN max(reserved_until_c, delivered_abs_c) ELSE delivered_abs_c END"
# Both sides by `name_key`: rows hold what was typed.
_SAME_SITE = "name_key(subject) = ? AND name_key(site) = ?"
# Of a row, what a moment later has changed: no day falls, whatever the clock says.
_NOW = "last_day = max(last_day, ?), last_utc = ?, last_boot_id = ?, last_boot_s = ?"


class JournalError(RecordError):
    """The journal cannot be used; the message is one line with what, where and the remedy."""


@dataclass(frozen=True)
class JournalRow:
    """One channel of a session. Charges in C; `outcome` is None while it is open; `measured` is False if a bound stands
    for its charge. `last_utc` is the last moment at which its current may have flowed, as far as it was told, and
    `last_boot_s` the same moment in seconds since the host with this `last_boot_id` was started.
    """

    session_id: str
    channel: int
    folder: str
    subject: str
    site: str
    first_day: str
    last_day: str
    begun_utc: str
    ended_utc: str | None
    prescribed_c: float
    reserved_until_c: float
    delivered_net_c: float
    delivered_abs_c: float
    outcome: str | None
    measured: bool
    simulated: bool
    last_utc: str
    last_boot_id: str
    last_boot_s: float

    @property
    def committed_c(self) -> float:
        """What it counts against a day's cap: all that it may deliver while it has not ended."""
        if self.outcome is not None:
            return self.delivered_abs_c
        return max(self.prescribed_c, self.reserved_until_c, self.delivered_abs_c)


@dataclass(frozen=True)
class Moment:
    """Now, by two clocks: the one that people read and set, and the one that only a restart of the host sets."""

    utc: datetime
    boot_id: str
    boot_s: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(datetime.now(UTC), _boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))

    def since(self, row: JournalRow) -> tuple[float, bool]:
        """Seconds since a row's last current, and whether a clock that was set since has been seen through."""
        shown_s = (self.utc - datetime.fromisoformat(row.last_utc)).total_seconds()
        if not self.boot_id or row.last_boot_id != self.boot_id or row.last_boot_s > self.boot_s:
            return max(0.0, shown_s), False
        passed_s = self.boot_s - row.last_boot_s
        return passed_s, abs(shown_s - passed_s) > SET_S

    def same_day(self, row: JournalRow) -> bool:
        """Whether what a session gave counts for today."""
        passed_s, was_set = self.since(row)
        if was_set:
            return passed_s < DAY_S
        today = local_day(self.utc)
        return max(row.last_day, local_day(datetime.fromisoformat(row.last_utc))) >= today


@functools.cache
def _boot_id() -> str:
    """Of the host's present run; empty if the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Reservation:
    """What a channel begins with. Charges in C.

    site          where its pads lie; may be empty
    prescribed_c  by its treatment
    reserve_c     reserved first
    cap_c         what the site may have received in a day, all channels together; None: no cap
    cap_text      that cap as a person knows it, and its source
    received_c    what `received_today` said, for which the limits of guard and device were made; None: for nothing
    rest_s        least time since the last current at the site
    """

    site: str
    prescribed_c: float
    reserve_c: float
    cap_c: float | None = None
    cap_text: str = ""
    received_c: float | None = None
    rest_s: float = 0.0


@dataclass(frozen=True)
class Ending:
    """What a channel ended with: charges in C, `measured` False if a bound stands for them."""

    outcome: str
    delivered_net_c: float
    delivered_abs_c: float
    measured: bool = True


_COLUMNS = ", ".join(JournalRow.__dataclass_fields__)


def _insert(db: sqlite3.Connection, row: Mapping[str, Any]) -> None:
    marks = ", ".join(f":{name}" for name in row)
    db.execute(f"INSERT INTO sessions ({', '.join(row)}) VALUES ({marks})", row)


def _seal_of(facts: Sequence[Any]) -> str:
    """What a row must hold for these values: SQLite keeps what a disk makes of them."""
    return hashlib.sha256(repr(tuple(facts)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _seal(db: sqlite3.Connection) -> None:
    """Seal the rows that were made or changed in this transaction, and count all."""
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'total'").fetchone():
        return
    for number, *facts in db.execute(f"SELECT rowid, {_COLUMNS} FROM sessions WHERE seal = ''").fetchall():
        db.execute("UPDATE sessions SET seal = ? WHERE rowid = ?", (_seal_of(facts), number))
    db.execute("UPDATE total SET channels = (SELECT count(*) FROM sessions)")


def _journal_row(values: tuple[Any, ...]) -> JournalRow:
    facts = dict(zip(JournalRow.__dataclass_fields__, values, strict=True))
    return JournalRow(**facts | {name: bool(facts[name]) for name in ("measured", "simulated")})


def local_day(moment: datetime | None = None) -> str:
    """The calendar day where this host is, as `2026-03-17`."""
    return (moment or datetime.now(UTC)).astimezone().date().isoformat()


class Journal:
    """The journal of the sessions' folder `out_dir`; made there if there are no sessions yet, so open it first.

    A journal that is missing beside sessions, damaged, or of another version raises `JournalError` naming the remedy
    (`rebuild`): a new empty one would forget charge. Use from one thread at a time; any number of processes may hold it
    open. `clock` says what time it is.
    """

    def __init__(self, out_dir: Path, clock: Callable[[], Moment] = Moment.now) -> None:
        self.out_dir = out_dir
        self._clock = clock
        self.path = out_dir / JOURNAL
        if not self.path.exists() and session_folders(out_dir):
            raise JournalError(f"{self.path}: missing, though {out_dir} holds sessions; {_remedy(out_dir)}")
        out_dir.mkdir(parents=True, exist_ok=True)
        with _named_errors(self.path):
            self._db = _connect(self.path)
            try:
                with self._transaction():
                    # What SQLite takes for an empty file may have been a journal.
                    if self._db.execute("PRAGMA user_version").fetchone() == (0,) and not self._tables():
                        if session_folders(out_dir):
                            problem = f"empty, though {out_dir} holds sessions"
                            raise JournalError(f"{self.path}: {problem}; {_remedy(out_dir)}")
                        _make_tables(self._db)
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                (application,) = self._db.execute("PRAGMA application_id").fetchone()
                if application != APPLICATION_ID or version != SCHEMA_VERSION:
                    raise JournalError(
                        f"{self.path}: not a journal of this version (version {version}, known {SCHEMA_VERSION}); "
                        + _remedy(out_dir)
                    )
                found = self._damage()
                if found is not None:
                    raise JournalError(f"{self.path}: damaged ({_short(found)}); {_remedy(out_dir)}")
                self._follow_clock()
                known = len(self._rows(""))
                (total,) = self._db.execute("SELECT channels FROM total").fetchone() or (0,)
                if known != total:
                    raise JournalError(f"{self.path}: damaged ({known} rows of {total}); {_remedy(out_dir)}")
            except BaseException:
                self._db.close()
                raise

    def _follow_clock(self) -> None:
        """Where a clock that was set forward shows, times of before are raised to what it would have shown then: after
        a restart nothing else tells. By more than SET_S beyond, so that on this boot it shows as before.
        """
        moment = self._clock()

        def raised(row: JournalRow) -> datetime | None:
            passed_s, was_set = moment.since(row)
            at = moment.utc - timedelta(seconds=passed_s)
            forward = was_set and at > datetime.fromisoformat(row.last_utc)
            return at + timedelta(seconds=2.0 * SET_S) if forward else None

        if not any(raised(row) for row in self._rows("")):
            return
        with self._transaction():
            for row in self._rows(""):
                at = raised(row)
                if at is not None:
                    self._db.execute(
                        "UPDATE sessions SET last_utc = ?, last_day = max(last_day, ?), seal = ''"
                        " WHERE session_id = ? AND channel = ?",
                        (utc_text(at), local_day(at), row.session_id, row.channel),
                    )

    def _damage(self) -> str | None:
        """What is wrong with the file. An index that lacks a row would forget its charge: indexes are compared too."""
        tables = {sql for (sql,) in self._db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
        if tables != {made.strip() for made in _SCHEMA.split(";") if made.strip().startswith("CREATE ")}:
            return "its tables are not a journal's"
        found = str(self._db.execute("PRAGMA integrity_check(1)").fetchone()[0])
        return None if found == "ok" else found

    def _tables(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _named_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                _seal(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def begin(
        self,
        session_id: str,
        folder: Path | str,
        subject: str,
        channels: Sequence[Reservation],
        *,
        simulated: bool = False,
    ) -> None:
        """Enter a session with all its channels, from 0, and reserve the first charge of each.

        Refuses (`JournalError`) where a `cap_c` is given, and what the site has received today and all that this
        session prescribes for it exceed it; where the site has not had its `rest_s`; and where another session has come
        in between since `received_today` was asked. Two processes cannot both pass. Only the folder's name is kept, so
        that the sessions' folder can be moved.
        """
        moment = self._clock()
        now, day = utc_text(moment.utc), local_day(moment.utc)
        with self._transaction():
            if any(channel.cap_c is not None for channel in channels):
                self._miss_nothing(Path(folder).name)
            for channel in channels:
                self._hold_cap(subject, channel, channels, simulated, moment)
            for number, channel in enumerate(channels):
                self._db.execute(
                    "INSERT INTO sessions (session_id, channel, folder, subject, site, first_day, last_day, begun_utc,"
                    " prescribed_c, reserved_until_c, simulated, last_utc, last_boot_id, last_boot_s)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        session_id,
                        number,
                        Path(folder).name,
                        subject,
                        channel.site,
                        day,
                        day,
                        now,
                        channel.prescribed_c,
                        channel.reserve_c,
                        int(simulated),
                        now,
                        moment.boot_id,
                        moment.boot_s,
                    ),
                )

    def _hold_cap(
        self, subject: str, channel: Reservation, channels: Sequence[Reservation], simulated: bool, moment: Moment
    ) -> None:
        known = self.at_site(subject, channel.site, simulated=simulated)
        where = f"{self.path}: {subject or 'unnamed subject'}, {channel.site or 'unnamed site'}: "
        if known and channel.rest_s > 0.0:
            rested_s = min(moment.since(row)[0] for row in known)
            if rested_s < channel.rest_s:
                raise JournalError(
                    f"{where}{rested_s / 60.0:.1f} min since the last current, {channel.rest_s / 60.0:g} min are the "
                    f"least; wait {(channel.rest_s - rested_s) / 60.0:.1f} min, or take another site"
                )
        if channel.cap_c is None:
            return
        today = [row for row in known if moment.same_day(row)]
        received_c = sum(row.committed_c for row in today)
        prescribed_c = sum(other.prescribed_c for other in channels if name_key(other.site) == name_key(channel.site))
        if received_c + prescribed_c > channel.cap_c:
            cap = channel.cap_text or f"{_mamin(channel.cap_c)} mA*min"
            raise JournalError(
                f"{where}{_mamin(received_c)} mA*min today and {_mamin(prescribed_c)} mA*min prescribed exceed {cap}"
                f"{_why(today, moment)}; wait, or take another site"
            )
        if channel.received_c is not None and received_c != channel.received_c:
            # With less received than before, guard and device may have been told no rest of the day at all.
            what = "begun" if received_c > channel.received_c else "ended"
            raise JournalError(f"{where}another session has {what} there at this moment; run again")

    def _miss_nothing(self, but: str) -> None:
        """Each session's folder must be known here: what a damaged log or a copied folder left out is charge too."""
        known = {folder for (folder,) in self._db.execute("SELECT folder FROM sessions")}
        for folder in session_folders(self.out_dir):
            if folder.name not in known and folder.name != but and not is_running(folder):
                raise JournalError(f"{self.path}: does not know the session {folder.name}; {_remedy(self.out_dir)}")

    def received_today(self, subject: str, site: str, *, simulated: bool = False) -> float:
        """Absolute charge (C) that counts against today's cap of a subject's site: what ended sessions gave it, and of
        the others the most that they may.
        """
        moment = self._clock()
        with _named_errors(self.path):
            known = self.at_site(subject, site, simulated=simulated)
            return sum(row.committed_c for row in known if moment.same_day(row))

    def at_site(self, subject: str, site: str, *, simulated: bool = False) -> list[JournalRow]:
        """Channels of sessions at a subject's site, in the order in which they were entered: no clock tells it."""
        values = (name_key(subject), name_key(site), int(simulated))
        return self._rows(f"WHERE {_SAME_SITE} AND simulated = ?", values, order="rowid")

    def extend(self, session_id: str, charges: Sequence[tuple[float, float]]) -> None:
        """Renew a running session's reservations: of each channel the absolute charge delivered, and the charge
        reserved until (C). No number ever falls. On disk when it returns.
        """
        with self._transaction():
            self._change(
                session_id,
                f"delivered_abs_c = max(delivered_abs_c, ?), reserved_until_c = max(reserved_until_c, ?), {_NOW}",
                [(*charge, *self._now()) for charge in charges],
            )

    def finish(self, session_id: str, endings: Sequence[Ending]) -> None:
        """End a session with what each channel delivered; the reservations no longer count."""
        with self._transaction():
            self._change(session_id, _NOW, [self._now()] * len(endings))
            self._end(session_id, endings)

    def _now(self) -> tuple[str, str, str, float]:
        """The values of `_NOW`."""
        moment = self._clock()
        return local_day(moment.utc), utc_text(moment.utc), moment.boot_id, moment.boot_s

    def recovered(self, session_id: str, endings: Sequence[Ending]) -> bool:
        """End a session that its own process could not end; False, and no change, if it has an outcome already."""
        with self._transaction():
            (open_channels,) = self._db.execute(
                "SELECT count(*) FROM sessions WHERE session_id = ? AND outcome IS NULL", (session_id,)
            ).fetchone()
            if not open_channels:
                return False
            # The day of the last extension stands: no current flowed after it but what was reserved.
            self._end(session_id, endings)
            return True

    def enter(self, folder: Path) -> None:
        """Enter a session that is not here, as its folder tells of it; nothing happens to one that is."""
        with self._transaction():
            if not self.get(folder.name):
                for row in _rows_of(folder):
                    _insert(self._db, row)

    def withdraw(self, session_id: str) -> None:
        """Take back a session in which no current has flowed; nothing happens if it is not in the journal."""
        with self._transaction():
            self._db.execute("DELETE FROM sessions WHERE session_id = ? AND outcome IS NULL", (session_id,))

    def _end(self, session_id: str, endings: Sequence[Ending]) -> None:
        self._change(
            session_id,
            "outcome = ?, ended_utc = ?, delivered_net_c = ?, delivered_abs_c = ?, measured = ?",
            [
                (end.outcome, utc_text(self._clock().utc), end.delivered_net_c, end.delivered_abs_c, int(end.measured))
                for end in endings
            ],
        )

    def _change(self, session_id: str, assignments: str, values: Sequence[tuple[Any, ...]]) -> None:
        """Change the open channels of a session, all of them, with the values of each."""
        self._rows("WHERE session_id = ?", (session_id,))
        changed = sum(
            self._db.execute(
                f"UPDATE sessions SET {assignments}, seal = ''"
                " WHERE session_id = ? AND channel = ? AND outcome IS NULL",
                (*value, session_id, channel),
            ).rowcount
            for channel, value in enumerate(values)
        )
        _seal(self._db)
        (left,) = self._db.execute("SELECT count(*) FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        if changed != len(values) or left != changed:
            raise JournalError(
                f"{self.path}: {session_id} is not an open session of {len(values)} channels; see `ionto-rt sessions`"
            )

    def open_sessions(self) -> list[JournalRow]:
        """Channels of sessions without an outcome, oldest first: running, or waiting for `recover`."""
        return self._rows("WHERE outcome IS NULL")

    def sessions(self) -> list[JournalRow]:
        """All sessions, oldest first, and of each its channels in their order."""
        return self._rows("")

    def get(self, session_id: str) -> list[JournalRow]:
        """The channels of one session in their order; empty if it is not in the journal."""
        return self._rows("WHERE session_id = ?", (session_id,))

    def _rows(
        self, condition: str, values: tuple[Any, ...] = (), *, order: str = "begun_utc, session_id, channel"
    ) -> list[JournalRow]:
        with _named_errors(self.path):
            found = self._db.execute(
                f"SELECT {_COLUMNS}, seal FROM sessions {condition} ORDER BY {order}", values
            )
            rows = []
            for *facts, seal in found:
                if seal != _seal_of(facts):
                    raise JournalError(f"{self.path}: damaged (a row of {facts[0]}); {_remedy(self.out_dir)}")
                rows.append(_journal_row(tuple(facts)))
            return rows

    def charge_today(self, subject: str, site: str, day: date | str | None = None) -> float:
        """Absolute charge (C) of a subject's site on a calendar day (today where this host is, if None).

        Reservations of open sessions count as delivered. A session that ran past midnight counts on both days.
        """
        with _named_errors(self.path):
            return self._charge(subject, site, local_day() if day is None else str(day))

    def _charge(self, subject: str, site: str, day: str) -> float:
        (total,) = self._db.execute(
            f"SELECT total({_CHARGE}) FROM sessions WHERE {_SAME_SITE} AND ? BETWEEN first_day AND last_day",
            (name_key(subject), name_key(site), day),
        ).fetchone()
        return float(total)

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mamin(charge_c: float) -> str:
    """A charge in mA*min for people: two decimals, or three digits of what is small."""
    mamin = charge_c / COULOMB_PER_MAMIN
    return f"{mamin:.2f}" if mamin == 0.0 or mamin >= 1.0 else f"{mamin:.3g}"


def _why(today: Sequence[JournalRow], moment: Moment) -> str:
    """What of a day's charge a person may not expect."""
    notes = []
    waiting = list(dict.fromkeys(row.session_id for row in today if row.outcome is None))
    if waiting:
        notes.append(f"{waiting[0]} has not ended: wait for it, or recover it")
    if any(moment.since(row)[1] or row.last_day > local_day(moment.utc) for row in today):
        notes.append("the clock of this host has been set since")
    return f" ({'; '.join(notes)})" if notes else ""


def _remedy(out_dir: Path) -> str:
    return f"rebuild it from the sessions' folders: ionto-rt sessions {out_dir} --rebuild"


def _short(said: object) -> str:
    """What SQLite says, in one line: of a damaged file it may repeat a page."""
    return " ".join(str(said).split())[:120]


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as one line with the remedy."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # A text that is not UTF-8 is refused by the module, without a code of SQLite's.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            raise JournalError(
                f"{path}: held by another process for more than {BUSY_S:.0f} s; end it, or wait"
            ) from None
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL):
            remedy = "check permissions and disk space"
            raise JournalError(f"{path}: cannot be written ({_short(error)}); {remedy}") from None
        raise JournalError(f"{path}: unusable ({_short(error)}); {_remedy(path.parent)}") from None
    except MemoryError:
        # SQLite's code of an allocation that failed; it also gives that for some damaged headers.
        raise JournalError(f"{path}: unusable (no memory, or a damaged file); {_remedy(path.parent)}") from None
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        # A row whose time is none; and what SQLite says of a damaged file may be bytes of that file.
        raise JournalError(f"{path}: unusable ({_short(error)}); {_remedy(path.parent)}") from None


def _connect(path: Path) -> sqlite3.Connection:
    # The session hands its journal from thread to thread; two never use it at once.
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _write_ahead(db)
        db.execute("PRAGMA synchronous = FULL")
        db.create_function("name_key", 1, name_key, deterministic=True)
    except BaseException:
        db.close()
        raise
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to a write-ahead log. SQLite does not wait for whoever else does that to a new file at this moment."""
    until_s = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                raise
            time.sleep(RETRY_S)


def _make_tables(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _rows_of(folder: Path) -> list[dict[str, Any]]:
    """What the folder of a session says about each channel; an unended one counts with the most that it can have
    delivered.
    """
    record = Record.open(folder)
    wrong = session_problem(record) or stranger(record)
    if wrong is not None:
        raise RecordError(f"{folder}: {wrong}")
    session, receipt = record.session, record.receipt
    begun = datetime.fromisoformat(str(session.get("created_utc")))
    ended = str(receipt.get("ended_utc", "")) if receipt is not None else None
    last = datetime.fromisoformat(ended) if ended else datetime.fromtimestamp(newest_change(folder), UTC)
    of_session = {
        "session_id": folder.name,
        "folder": folder.name,
        "subject": str(session.get("subject", "")),
        "first_day": local_day(begun),
        "last_day": max(local_day(begun), local_day(last)),
        "begun_utc": utc_text(begun),
        "ended_utc": ended,
        "simulated": int(record.simulated),
        "last_utc": utc_text(max(begun, last)),
    }
    return [of_session | _charge_of(channel) for channel in record.channels]


def _charge_of(channel: Channel) -> dict[str, Any]:
    """A channel's columns of the journal, from its record."""
    counted, receipt = channel.counted(), channel.receipt
    outcome, measured = None, True
    net_c, absolute_c = counted.net_c, counted.absolute_c
    if receipt is not None:
        outcome = str(receipt.get("outcome"))
        net_c = float(receipt.get("delivered_net_c", _dose_c(receipt, counted.net_c)))
        absolute_c = max(float(receipt.get("delivered_abs_c", 0.0)), absolute_c, abs(net_c))
        measured = bool(receipt.get("dose_measured", True))
    return {
        "channel": channel.number,
        "site": channel.site,
        "prescribed_c": channel.prescribed_c,
        "reserved_until_c": counted.absolute_c + channel.unreserved_c,
        "delivered_net_c": net_c,
        "delivered_abs_c": absolute_c,
        "outcome": outcome,
        "measured": int(measured),
    }


def _dose_c(receipt: dict[str, Any], otherwise_c: float) -> float:
    dose = receipt.get("dose_delivered_mamin")
    return dose * COULOMB_PER_MAMIN if isinstance(dose, (int, float)) else otherwise_c


def newest_change(folder: Path) -> float:
    """When any file of the folder was last written (seconds since the epoch)."""
    return max((path.stat().st_mtime for path in folder.iterdir()), default=folder.stat().st_mtime)


def _known_before(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of a journal that is to be made anew, by session, as far as they can be read and their seals hold."""
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            for *facts, seal in db.execute(f"SELECT {_COLUMNS}, seal FROM sessions NOT INDEXED"):
                if seal == _seal_of(facts):
                    row = dict(zip(JournalRow.__dataclass_fields__, facts, strict=True))
                    found.setdefault(row["session_id"], []).append(row)
    except (sqlite3.Error, MemoryError, ValueError, TypeError):
        # What was read before the damage holds: each row has a seal of its own.
        pass
    return found


def _at_its_time(row: dict[str, Any], before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row from a folder, with the clocks that the old journal had of it: no folder tells when the host started."""
    for known in before:
        if known["channel"] == row["channel"]:
            clocks = {name: known[name] for name in ("last_utc", "last_boot_id", "last_boot_s")}
            return row | clocks | {"last_day": max(row["last_day"], known["last_day"])}
    return row


@dataclass(frozen=True)
class Rebuilt:
    """Sessions entered, folders that could not be read (with why), and where an old journal was put."""

    sessions: int
    unreadable: list[str]
    kept_as: Path | None


def rebuild(out_dir: Path) -> Rebuilt:
    """Make the journal anew from the folders of the sessions; the old one is kept under another name.

    Refused while a session runs there. An unended session is entered as open, with what its telemetry shows and the
    most that can have flowed after it reserved. Of a folder that cannot be read, what the old journal says is kept.
    """
    folders = session_folders(out_dir)
    for folder in folders:
        if is_running(folder):
            raise JournalError(f"{folder}: the session is running; rebuild the journal when it has ended")
    path = out_dir / JOURNAL
    before = _known_before(path)
    sessions: list[list[dict[str, Any]]] = []
    kept_rows: list[dict[str, Any]] = []
    unreadable = []
    for folder in folders:
        known = before.get(folder.name, [])
        try:
            sessions.append([_at_its_time(row, known) for row in _rows_of(folder)])
        except (RecordError, ValueError, TypeError) as error:
            kept_rows += known
            unreadable.append(f"{folder.name}: {error}" + ("; its rows of the old journal were kept" if known else ""))
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    fresh = out_dir / f".{JOURNAL}.{stamp}"
    with _named_errors(path):
        try:
            with closing(_connect(fresh)) as db:
                db.execute("PRAGMA journal_mode = DELETE")
                db.execute("BEGIN IMMEDIATE")
                _make_tables(db)
                for row in [row for session in sessions for row in session] + kept_rows:
                    _insert(db, row)
                _seal(db)
                db.execute("COMMIT")
            kept = None
            if path.exists():
                kept = out_dir / f"{JOURNAL}.{stamp}.old"
                for end in ("-wal", "-shm", ""):
                    old = path.with_name(path.name + end)
                    if old.exists():
                        old.rename(kept.with_name(kept.name + end))
            fresh.rename(path)
            sync_folder(out_dir)
        except OSError as error:
            raise JournalError(f"{path}: cannot be rebuilt ({error.strerror}); check permissions") from None
        finally:
            fresh.unlink(missing_ok=True)
    return Rebuilt(len(sessions), unreadable, kept)
