"""Single keys from a terminal, without Enter and without waiting."""

import atexit
import contextlib
import os
import select
import termios
from types import TracebackType
from typing import Any, Self

SUSPEND = "\x1a"
"""Ctrl-Z arrives as a key: a stopped host would let the device's lease lapse."""


def is_attended(fd: int) -> bool:
    """True if `fd` is a terminal of which this process has the foreground: then there is somebody to press keys."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


class Keyboard:
    """The terminal on `fd` in a mode that gives single keys; the mode before comes back at exit, whatever happens.

    Ctrl-C stays a signal. Ctrl-Z and Ctrl-\\ are keys, and Ctrl-S does not hold the output back: each would stop this
    process with current flowing.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self.fd)
        mode = termios.tcgetattr(self.fd)
        mode[0] &= ~(termios.IXON | termios.IXOFF)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        off = os.fpathconf(self.fd, "PC_VDISABLE")
        for number, value in ((termios.VMIN, 1), (termios.VTIME, 0), (termios.VSUSP, off), (termios.VQUIT, off)):
            mode[6][number] = bytes([value]) if number in (termios.VSUSP, termios.VQUIT) else value
        termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)
        atexit.register(self.restore)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the terminal its mode back, and drop keys that nobody has read."""
        before, self._before = self._before, None
        if before is None:
            return
        atexit.unregister(self.restore)
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self.fd, termios.TCSAFLUSH, before)

    def read(self) -> str:
        """The keys pressed since the last call; empty if none, or if the terminal is gone."""
        try:
            if not select.select([self.fd], [], [], 0.0)[0]:
                return ""
            return os.read(self.fd, 64).decode("utf-8", "ignore")
        except OSError:
            return ""
