"""SQLite's files on a faulty disk: a layer between SQLite and its own file system, in this process.

SQLite calls the disk by a table of functions (https://www.sqlite.org/vfs.html). A copy of the table in use, with two
functions replaced, becomes the default: opened files get copies of theirs, in which writing, truncating and syncing go
by the faulty disk. The shared memory of a write-ahead log is not on disk: after a power cut SQLite makes it anew.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ionto_rt.testing.disk import FaultyFiles

_OK, _READONLY, _FULL, _CANTOPEN = 0, 8, 13, 14
_IO_WRITE, _IO_FSYNC, _IO_TRUNCATE, _IO_DELETE = 778, 1034, 1546, 2570
_MAIN_JOURNAL, _WAL = 0x800, 0x80000

_Close = CFUNCTYPE(c_int, c_void_p)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)


class _Methods(ctypes.Structure):
    """struct sqlite3_io_methods, version 3."""

    _fields_ = [
        ("version", c_int),
        ("close", _Close),
        ("read", c_void_p),
        ("write", _Write),
        ("truncate", _Truncate),
        ("sync", _Sync),
        *[(f"other_{number}", c_void_p) for number in range(13)],
    ]


class _Vfs(ctypes.Structure):
    """struct sqlite3_vfs, version 3."""

    _fields_ = [
        ("version", c_int),
        ("file_bytes", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _Open),
        ("delete", _Delete),
        *[(f"other_{number}", c_void_p) for number in range(14)],
    ]


class _File(ctypes.Structure):
    """struct sqlite3_file."""

    _fields_ = [("methods", POINTER(_Methods))]


class _OpenFile:
    """A file that SQLite has open, and the functions that it would be called by."""

    def __init__(self, methods: _Methods, path: Path, node: int, unnamed: bool) -> None:
        self.methods = methods
        self.path = path
        self.node = node
        self.unnamed = unnamed


class _Layer:
    def __init__(self, disk: "FaultyFiles") -> None:
        import _sqlite3

        self.disk = disk
        self.library = ctypes.CDLL(_sqlite3.__file__)
        self.library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self.library.sqlite3_vfs_find.argtypes = [c_char_p]
        self.library.sqlite3_vfs_register.argtypes = [POINTER(_Vfs), c_int]
        self.library.sqlite3_vfs_unregister.argtypes = [POINTER(_Vfs)]
        self.below = self.library.sqlite3_vfs_find(None)
        self.files: dict[int, _OpenFile] = {}
        self.tables: dict[int, _Methods] = {}
        self.vfs = _Vfs.from_buffer_copy(self.below.contents)
        self.vfs.name = b"ionto-faulty"
        self.calls = {
            "open": _Open(self.open),
            "delete": _Delete(self.delete),
            "close": _Close(self.close),
            "write": _Write(self.write),
            "truncate": _Truncate(self.truncate),
            "sync": _Sync(self.sync),
        }
        self.vfs.open, self.vfs.delete = self.calls["open"], self.calls["delete"]

    def _try(self, otherwise: int, act: Callable[[], int]) -> int:
        """SQLite's result code of `act`; an error of the disk as SQLite would report it."""
        try:
            return act()
        except OSError as error:
            return {errno.ENOSPC: _FULL, errno.EROFS: _READONLY}.get(error.errno or 0, otherwise)

    def open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        # SQLite's file system keeps the pointer to the name.
        path = None if name is None else Path(os.fsdecode(ctypes.string_at(name))).absolute()
        ours = path is not None and self.disk.root in path.parents
        new = ours and path is not None and not path.exists()
        if new and self._try(_CANTOPEN, lambda: self.disk._before("name") and 0) != _OK:
            return _CANTOPEN
        code = int(self.below.contents.open(ctypes.cast(self.below, c_void_p), name, file, flags, out))
        if code != _OK or not ours or path is None:
            return code
        node = self.disk._made(path, False) if new else self.disk._names[path]
        opened = _File.from_address(file)
        # The name of a new log is synced together with its first contents (SQLite's os_unix.c, unixSync).
        methods = _Methods.from_address(ctypes.addressof(opened.methods.contents))
        self.files[file] = _OpenFile(methods, path, node, new and bool(flags & (_MAIN_JOURNAL | _WAL)))
        opened.methods = ctypes.pointer(self._table(methods))
        return _OK

    def _table(self, methods: _Methods) -> _Methods:
        address = ctypes.addressof(methods)
        if address not in self.tables:
            table = _Methods.from_buffer_copy(methods)
            for name in ("close", "write", "truncate", "sync"):
                setattr(table, name, self.calls[name])
            self.tables[address] = table
        return self.tables[address]

    def close(self, file: int) -> int:
        return int(self.files.pop(file).methods.close(file))

    def write(self, file: int, data: int, count: int, offset: int) -> int:
        known, disk = self.files[file], self.disk

        def act() -> int:
            grows = max(0, offset + count - known.path.stat().st_size)
            if disk._before("write", grows) < grows:
                return _FULL
            code = int(known.methods.write(file, data, count, offset))
            if code == _OK:
                disk._wrote(known.node, offset, ctypes.string_at(data, count), grows)
            return code

        return self._try(_IO_WRITE, act)

    def truncate(self, file: int, size: int) -> int:
        known, disk = self.files[file], self.disk

        def act() -> int:
            disk._before("truncate")
            code = int(known.methods.truncate(file, size))
            disk._did("truncate", known.node, offset=size)
            return code

        return self._try(_IO_TRUNCATE, act)

    def sync(self, file: int, flags: int) -> int:
        known, disk = self.files[file], self.disk

        def act() -> int:
            disk._before("sync")
            code = int(known.methods.sync(file, flags))
            disk._did("sync", known.node)
            if known.unnamed:
                known.unnamed = False
                disk._did("sync-folder", disk._names[known.path.parent])
            return code

        return self._try(_IO_FSYNC, act)

    def delete(self, vfs: int, name: bytes, sync: int) -> int:
        path, disk = Path(os.fsdecode(name)).absolute(), self.disk

        def act() -> int:
            ours = path in disk._names
            if ours:
                disk._before("remove")
            code = int(self.below.contents.delete(ctypes.cast(self.below, c_void_p), name, sync))
            if ours and code == _OK:
                disk._gone(path)
                if sync:
                    disk._did("sync-folder", disk._names[path.parent])
            return code

        return self._try(_IO_DELETE, act)


@contextmanager
def on_disk(disk: "FaultyFiles") -> Iterator[None]:
    """Databases opened below the disk's root are its files."""
    layer = _Layer(disk)
    if layer.library.sqlite3_vfs_register(ctypes.byref(layer.vfs), 1) != _OK:
        raise RuntimeError("SQLite takes no other file system")
    try:
        yield
    finally:
        layer.library.sqlite3_vfs_unregister(ctypes.byref(layer.vfs))
        layer.library.sqlite3_vfs_register(layer.below, 1)
        # Whoever still has a database open goes on by the functions that it was opened with.
        if layer.files:
            _kept.append(layer)


_kept: list[_Layer] = []
