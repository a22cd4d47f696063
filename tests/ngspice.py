"""ngspice as an oracle: a netlist in, vectors out. Loads libngspice into this process when it is first used."""

import ctypes
import ctypes.util
from collections.abc import Iterable
from functools import cache

import numpy as np

LIBRARIES = ("ngspice", "libngspice.so.0", "libngspice.so")


class _Complex(ctypes.Structure):
    _fields_ = (("re", ctypes.c_double), ("im", ctypes.c_double))


class _Vector(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("flags", ctypes.c_short),
        ("real", ctypes.POINTER(ctypes.c_double)),
        ("complex", ctypes.POINTER(_Complex)),
        ("length", ctypes.c_int),
    )


_TEXT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)
_EXIT = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_bool, ctypes.c_bool, ctypes.c_int, ctypes.c_void_p
)  # fmt: skip


class Ngspice:
    """The simulator of this process; there can be one only.

    Raises:
        OSError: libngspice is not installed.
    """

    def __init__(self) -> None:
        found = [name for name in (ctypes.util.find_library(LIBRARIES[0]), *LIBRARIES[1:]) if name]
        for name in found:
            try:
                self.library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise OSError("libngspice is not installed (Debian package libngspice0)")
        self.said: list[str] = []
        # Kept here: the library calls them as long as it lives.
        self._text = _TEXT(self._hear)
        self._exit = _EXIT(self._leave)
        self.library.ngGet_Vec_Info.restype = ctypes.POINTER(_Vector)
        self.library.ngSpice_Init(self._text, None, self._exit, None, None, None, None)

    def _hear(self, text: bytes, _id: int, _context: int) -> int:
        self.said.append(text.decode(errors="replace"))
        return 0

    def _leave(self, status: int, *_: object) -> int:
        self.said.append(f"ngspice gave up with status {status}")
        return 0

    def transient(self, netlist: Iterable[str], wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """Run a netlist (title first; .tran among its lines) and return "time" and the wanted vectors.

        Raises:
            RuntimeError: ngspice refuses the netlist, or does not reach the end.
        """
        self.said.clear()
        lines = [line.encode() for line in [*netlist, f".save {' '.join(wanted)}", ".end"]]
        circuit = (ctypes.c_char_p * (len(lines) + 1))(*lines, None)
        refused = self.library.ngSpice_Circ(circuit) or self.library.ngSpice_Command(b"run")
        if refused or any("aborted" in text or "gave up" in text for text in self.said):
            raise RuntimeError("\n".join(self.said[-10:]))
        vectors = {name: self._vector(name) for name in ("time", *wanted)}
        self.library.ngSpice_Command(b"destroy all")
        self.library.ngSpice_Command(b"remcirc")
        return vectors

    def _vector(self, name: str) -> np.ndarray:
        found = self.library.ngGet_Vec_Info(name.encode())
        if not found:
            raise RuntimeError("\n".join([f"ngspice has no vector {name}", *self.said[-10:]]))
        # The library keeps one description only and frees the numbers with the plot.
        return np.ctypeslib.as_array(found.contents.real, (found.contents.length,)).copy()


@cache
def ngspice() -> Ngspice:
    """The one simulator of this process. OSError if libngspice is not installed."""
    return Ngspice()
