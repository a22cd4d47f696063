"""The calls by which a record reaches the disk, in one place.

A test that needs a disk that stalls, fills up or loses power hands over a `Files` of its own (`ionto_rt.testing.disk`);
nothing else makes, writes, renames or syncs what belongs to a session's folder. The journal is SQLite's, which has a
seam of its own.
"""

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

MOST_FILE_BYTES = 1 << 28
"""Of a record's files that are read whole: far beyond what a session writes there."""


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, to read from. OSError for anything else: a pipe would keep its reader waiting."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "is not a regular file", str(path))


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The bytes of a regular file. OSError if it is none, is larger, or cannot be read."""
    too_large = OSError(errno.EFBIG, f"is larger than {most_bytes >> 20} MiB", str(path))
    with os.fdopen(open_regular(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            raise too_large
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise too_large
    return data


class Files:
    """A file system. All but `size` may take as long as the disk takes; each raises OSError if the disk refuses."""

    def open(self, path: Path, flags: int) -> int:
        """A descriptor that no child process inherits."""
        return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Bytes written, at the end of a file opened for appending."""
        return os.write(fd, data)

    def write_at(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        """Bytes written from `offset` on, perhaps fewer than `parts` hold together."""
        return os.pwritev(fd, parts, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return when everything written is on disk."""
        os.fsync(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def close(self, fd: int) -> None:
        os.close(fd)

    def make_folder(self, path: Path) -> None:
        """A new folder; its parent must be there."""
        path.mkdir()

    def replace(self, source: Path, target: Path) -> None:
        """Give a file or folder another name; a file that has it is replaced."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder and all in it, as far as that goes."""
        shutil.rmtree(path, ignore_errors=True)

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder are on disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


DISK = Files()
"""The file system of this host."""
