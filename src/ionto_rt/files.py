"""The calls by which a record reaches the disk, in one place.

A test that needs a disk that stalls, fills up or loses power hands over a `Files` of its own; nothing else that writes
a session's telemetry and events opens, writes or syncs a file.
"""

import os
from collections.abc import Sequence
from pathlib import Path


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


DISK = Files()
"""The file system of this host."""
