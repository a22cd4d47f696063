"""Exclusive use of a device (H51): one program at a time, and in it one session at a time.

A lock is a file in a folder of the user's own, held by flock. The kernel lets go of it when its process ends, however
it ends, so there are no stale ones; the file stays, and holds the number of the process that had it last. There is one
for each port, under the device's number, which is the same by whatever name or link the port is opened; and while a
session runs one for the device itself, under model and serial number, which are the same on whatever port it is. A
virtual device needs no second one: it has one port.

A file can be removed while it is held, and each user has a folder of their own. So the name itself is held too: as the
address of an abstract socket of Linux, which is in no folder and ends with its process. It is shared by all programs
and users of one network namespace, and the files by all programs of one user, whatever their environment, unless
IONTO_RT_LOCKS names another folder: that is for containers that share a device, between which the files alone hold; a
named folder has names of its own. Between two users in two network namespaces nothing of this holds.
Below it the port has a lock of pyserial's, and the device the session's token.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ionto_rt.errors import RefusedError

if TYPE_CHECKING:
    from ionto_rt.device import SessionDevice

FOLDER = "IONTO_RT_LOCKS"
"""Environment variable for another folder of locks."""
_REMEDY = f"name a folder in {FOLDER}"
PLACES = ("/run/lock", "/tmp")
PTY_MAJORS = range(136, 144)
"""Of pseudo-terminals: their numbers are those of one mount of /dev/pts."""
SHOWN_CHARACTERS = 40


class Lock:
    """A lock that this process holds until `release`, or its end: the descriptors of its file and of its name."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds
        _held.add(self)

    def release(self) -> None:
        """Let go; twice does nothing."""
        _held.discard(self)
        for fd in self._fds:
            os.close(fd)
        self._fds = ()

    def forget(self, null: int) -> None:
        """In a forked child: the lock is the parent's, and ends with it."""
        for fd in self._fds:
            os.dup2(null, fd, inheritable=False)


_held: set[Lock] = set()
_in_session: set[int] = set()
_guard = threading.Lock()


def _leave_to_parent() -> None:
    if not _held:
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for lock in _held:
        lock.forget(null)
    os.close(null)


os.register_at_fork(after_in_child=_leave_to_parent)


def locks_folder() -> Path:
    """The folder of this user's locks, made if it is not there. RefusedError if it is somebody else's."""
    named = os.environ.get(FOLDER)
    base = next((place for place in PLACES if os.access(place, os.W_OK | os.X_OK)), PLACES[-1])
    folder = Path(named) if named else Path(base, f"ionto-rt-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=bool(named), exist_ok=True)
        found = folder.stat(follow_symlinks=bool(named))
    except OSError as error:
        raise RefusedError(
            f"locks of devices cannot be kept there ({error.strerror})", file=folder, remedy=_REMEDY
        ) from None
    if not stat.S_ISDIR(found.st_mode) or (not named and found.st_uid != os.getuid()):
        raise RefusedError("is not this user's own folder", file=folder, remedy="remove it")
    return folder


def lock_port(path: str, key: str) -> Lock | None:
    """Lock the port at `path`; None if nothing is there. RefusedError, of `key`, naming the process that has it."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    if stat.S_ISCHR(found.st_mode):
        number = f"{os.major(found.st_rdev)}-{os.minor(found.st_rdev)}"
        name = f"{found.st_dev}-{number}" if os.major(found.st_rdev) in PTY_MAJORS else number
    else:
        name = f"file-{found.st_dev}-{found.st_ino}"
    return _take(f"port-{name}", "the port", key)


@contextmanager
def one_session(device: "SessionDevice") -> Iterator[None]:
    """Hold a device for a session. RefusedError if one runs on it already, here or in another program."""
    with _guard:
        if id(device) in _in_session:
            raise RefusedError("a session runs on this device already", key=device.uri, remedy="wait for its end")
        _in_session.add(id(device))
    lock = None
    try:
        if device.hardware and device.hello.serial:
            name = device.hello.name
            short = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
            number = hashlib.sha256(name.encode()).hexdigest()[:16]
            what = f"{name} (each device needs a serial number of its own)"
            lock = _take(f"device-{short}-{number}", what, device.uri)
        yield
    finally:
        if lock is not None:
            lock.release()
        with _guard:
            _in_session.discard(id(device))


def _take(name: str, what: str, key: str) -> Lock:
    path = locks_folder() / f"{name}.lock"
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RefusedError(
                f"cannot be locked ({error.strerror})", file=path, remedy=_REMEDY
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # What is locked must be what stands there: somebody may clean up.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    claimed = _claim(path)
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                    return Lock(fd, *claimed)
        except _HeldError:
            os.close(fd)
            raise RefusedError(
                f"{what} is in use by another program", key=key, remedy="close it first"
            ) from None
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise RefusedError(
                f"{what} is in use by another program{_named(holder)}", key=key, remedy="close it first"
            ) from None
        os.close(fd)


class _HeldError(Exception):
    """The name of a lock is held, though its file is free: that was removed, or is another user's."""


def _claim(path: Path) -> list[int]:
    """Hold the name of a lock; the descriptor, none where the system has no such names."""
    scope = str(path.parent.resolve()) if os.environ.get(FOLDER) else ""
    name = hashlib.sha256(f"{scope}/{path.name}".encode("utf-8", "surrogateescape")).hexdigest()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as held:
            held.bind(f"\0ionto-rt/{name}")
            return [held.detach()]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _HeldError from None
        return []


def _named(holder: str) -> str:
    """The process that holds a lock, as people find it."""
    if not holder.isdecimal():
        return ""
    if int(holder) == os.getpid():
        return f", this one: process {holder}"
    try:
        words = Path(f"/proc/{holder}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return f": process {holder}"
    return f": process {holder} ({words[:SHOWN_CHARACTERS]})"
