"""A disk that fails: full, read-only, slow, and without power at any of its operations.

`FaultyFiles` is the file layer of a session (`ionto_rt.files`) over a real folder, in which everything happens as
elsewhere. Beside it, it keeps a trace of what was asked of the disk, and so each moment of one run is a power cut that
can be looked at: `after_power_cut` makes the folder as the disk may then have had it. With `sqlite()` the journal's
files are of the same disk.

What survives a power cut is what POSIX promises and no more: the contents of a file up to its last sync; its name, once
its folder was synced. What was not synced may be lost, whole or in sectors, in any order; of the names in a folder some
of the latest changes are lost. A rename is all or nothing.
"""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ionto_rt.files import Files

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""

Survivors = Literal["nothing", "everything", "some"]
"""Of what was not synced: nothing, as of a disk that writes when it must; everything, as where the process alone was
killed; or some of it, drawn by lot."""
Kind = Literal["write", "truncate", "sync", "name", "rename", "remove", "sync-folder"]


@dataclass(frozen=True)
class Operation:
    """One call that changes what a power cut leaves.

    node     number of the file; of the folder, where names change or are synced
    names    in the folder: the one that is made or removed; old and new of a rename
    into     folder of a rename's new name
    child    node that is named
    data     bytes written, at `offset`; `offset` is the size of a truncation
    mark     what `FaultyFiles.mark` said when it was asked
    """

    kind: Kind
    node: int
    names: tuple[str, ...] = ()
    into: int = 0
    child: int = 0
    offset: int = 0
    data: bytes = b""
    mark: Any = None


@dataclass
class _Node:
    """A file's bytes, or a folder's names, as they are on disk; and what is not there yet."""

    folder: bool
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)
    waiting: list[Operation] = field(default_factory=list)


class Fault(OSError):
    """The disk refuses."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


class FaultyFiles(Files):
    """The files below `root`, a folder that is there, on a disk that fails as it is told.

    full_after_bytes  the disk is full once so many have been written; None: it never is. May be changed in a run.
    read_only         every change is refused
    delay_s           each change takes so long
    fails             asked before each operation, with its number and kind: an errno, or 0
    mark              called with each operation; what it returns is kept with it, as a device's count
    seed              of the lots in `after_power_cut`
    """

    def __init__(
        self,
        root: Path,
        *,
        seed: int = 0,
        full_after_bytes: int | None = None,
        read_only: bool = False,
        delay_s: float = 0.0,
        fails: Callable[[int, Kind], int] | None = None,
        mark: Callable[[], Any] | None = None,
    ) -> None:
        self.root = root.resolve()
        self.seed = seed
        self.full_after_bytes = full_after_bytes
        self.read_only = read_only
        self.delay_s = delay_s
        self.fails = fails
        self.mark = mark
        self.written_bytes = 0
        self.trace: list[Operation] = []
        self._kinds: list[bool] = []
        self._first: list[_Node] = []
        self._names: dict[Path, int] = {}
        self._of_fd: dict[int, int] = {}
        self._known(self.root)

    def _known(self, path: Path) -> int:
        """What is there at the beginning is on disk."""
        node = self._new(path, path.is_dir())
        found = _Node(path.is_dir())
        self._first.append(found)
        if found.folder:
            for child in sorted(path.iterdir()):
                found.names[child.name] = self._known(child)
        else:
            found.data += path.read_bytes()
        return node

    def _new(self, path: Path, folder: bool) -> int:
        self._kinds.append(folder)
        self._names[path] = len(self._kinds) - 1
        return len(self._kinds) - 1

    def _before(self, kind: Kind, grows: int = 0) -> int:
        """Bytes of `grows` that the disk takes; raises where it takes nothing."""
        if self.delay_s:
            time.sleep(self.delay_s)
        number = self.fails(len(self.trace), kind) if self.fails is not None else 0
        if number or (self.read_only and kind not in ("sync", "sync-folder")):
            raise Fault(number or errno.EROFS)
        if self.full_after_bytes is None or kind != "write":
            return grows
        room = max(0, self.full_after_bytes - self.written_bytes)
        if grows and not room:
            raise Fault(errno.ENOSPC)
        return min(grows, room)

    def _did(self, kind: Kind, node: int, **more: Any) -> None:
        self.trace.append(Operation(kind, node, mark=self.mark() if self.mark is not None else None, **more))

    def _made(self, path: Path, folder: bool) -> int:
        node = self._new(path, folder)
        self._did("name", self._names[path.parent], names=(path.name,), child=node)
        return node

    def open(self, path: Path, flags: int) -> int:
        path = path.absolute()
        new = bool(flags & os.O_CREAT) and not path.exists()
        if new:
            self._before("name")
        fd = super().open(path, flags)
        node = self._made(path, False) if new else self._names[path]
        self._of_fd[fd] = node
        if flags & os.O_TRUNC and not new:
            self._did("truncate", node, offset=0)
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        room = self._before("write", len(data))
        at = self.size(fd)
        if not os.get_blocking(fd):
            raise ValueError("a file that does not block")
        if not self._appends(fd):
            at = os.lseek(fd, 0, os.SEEK_CUR)
        done = super().write(fd, data[:room])
        self._wrote(self._of_fd[fd], at, bytes(data[:done]))
        return done

    @staticmethod
    def _appends(fd: int) -> bool:
        import fcntl

        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)

    def write_at(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        data = b"".join(parts)
        inside = max(0, min(len(data), self.size(fd) - offset))
        room = inside + self._before("write", len(data) - inside)
        done = super().write_at(fd, [data[:room]], offset) if room else 0
        if not room:
            raise Fault(errno.ENOSPC)
        self._wrote(self._of_fd[fd], offset, data[:done], done - inside)
        return done

    def _wrote(self, node: int, offset: int, data: bytes, grown: int | None = None) -> None:
        self.written_bytes += len(data) if grown is None else max(0, grown)
        self._did("write", node, offset=offset, data=data)

    def truncate(self, fd: int, size: int) -> None:
        self._before("truncate")
        super().truncate(fd, size)
        self._did("truncate", self._of_fd[fd], offset=size)

    def sync(self, fd: int) -> None:
        self._before("sync")
        super().sync(fd)
        self._did("sync", self._of_fd[fd])

    def close(self, fd: int) -> None:
        super().close(fd)
        self._of_fd.pop(fd, None)

    def make_folder(self, path: Path) -> None:
        self._before("name")
        super().make_folder(path)
        self._made(path.absolute(), True)

    def replace(self, source: Path, target: Path) -> None:
        self._before("rename")
        super().replace(source, target)
        source, target = source.absolute(), target.absolute()
        parents = self._names[source.parent], self._names[target.parent]
        for path in [path for path in self._names if path == source or source in path.parents]:
            self._names[target / path.relative_to(source)] = self._names.pop(path)
        self._did("rename", parents[0], names=(source.name, target.name), into=parents[1])

    def remove(self, path: Path) -> None:
        if not path.exists():
            return
        self._before("remove")
        super().remove(path)
        self._gone(path.absolute())

    def remove_folder(self, path: Path) -> None:
        self._before("remove")
        super().remove_folder(path)
        self._gone(path.absolute())

    def _gone(self, path: Path) -> None:
        for known in [known for known in self._names if known == path or path in known.parents]:
            del self._names[known]
        self._did("remove", self._names[path.parent], names=(path.name,))

    def sync_folder(self, path: Path) -> None:
        self._before("sync-folder")
        super().sync_folder(path)
        self._did("sync-folder", self._names[path.absolute()])

    @contextmanager
    def sqlite(self) -> Iterator[None]:
        """While this is open, databases that are opened below `root` are files of this disk. One at a time."""
        from ionto_rt.testing.sqlite_disk import on_disk

        with on_disk(self):
            yield

    def after_power_cut(self, at: int, target: Path, survivors: Survivors = "some") -> None:
        """Make the folder `target`, which must not exist, as `root` may have been when the power failed.

        at         operations of `trace` that had been called; the last of them may have been under way
        survivors  of what was not synced
        """
        lot = random.Random(f"{self.seed} {at} {survivors}")
        nodes = [_Node(node.folder, bytearray(node.data), dict(node.names)) for node in self._first]
        nodes += [_Node(folder) for folder in self._kinds[len(nodes) :]]
        for operation in self.trace[:at]:
            node = nodes[operation.node]
            if operation.kind == "sync":
                _settle(node, node.waiting)
                node.waiting = []
            elif operation.kind == "sync-folder":
                _settle_names(nodes, node.waiting)
                node.waiting = []
            else:
                node.waiting.append(operation)
        for node in nodes:
            if survivors == "nothing":
                continue
            if node.folder:
                kept = node.waiting if survivors == "everything" else node.waiting[: lot.randint(0, len(node.waiting))]
                _settle_names(nodes, kept)
            else:
                _settle(node, node.waiting if survivors == "everything" else list(_drawn(node.waiting, lot)))
        _make(nodes, 0, target)


def _settle(node: _Node, operations: Sequence[Operation]) -> None:
    for operation in operations:
        end = operation.offset + len(operation.data)
        if operation.kind == "truncate":
            del node.data[operation.offset :]
        if len(node.data) < end:
            node.data += bytes(end - len(node.data))
        node.data[operation.offset : end] = operation.data


def _settle_names(nodes: list[_Node], operations: Sequence[Operation]) -> None:
    for operation in operations:
        names = nodes[operation.node].names
        if operation.kind == "name":
            names[operation.names[0]] = operation.child
        elif operation.kind == "remove":
            names.pop(operation.names[0], None)
        elif operation.names[0] in names:
            nodes[operation.into].names[operation.names[1]] = names.pop(operation.names[0])


def _drawn(operations: Sequence[Operation], lot: random.Random) -> Iterator[Operation]:
    """Some of the operations on a file, and of some writes their beginning, or any sectors."""
    for operation in operations:
        fate = lot.random()
        if fate < 0.3:
            continue
        if operation.kind != "write" or fate < 0.6:
            yield operation
            continue
        start, end = operation.offset, operation.offset + len(operation.data)
        sectors = range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES))
        beginning = lot.randint(0, len(sectors)) if fate < 0.8 else len(sectors)
        for sector in sectors[:beginning]:
            if fate < 0.8 or lot.random() < 0.5:
                first, last = max(start, sector * SECTOR_BYTES), min(end, (sector + 1) * SECTOR_BYTES)
                data = operation.data[first - start : last - start]
                yield Operation("write", operation.node, offset=first, data=data)


def _make(nodes: list[_Node], number: int, path: Path) -> None:
    node = nodes[number]
    if not node.folder:
        path.write_bytes(node.data)
        return
    path.mkdir()
    for name, child in node.names.items():
        _make(nodes, child, path / name)
