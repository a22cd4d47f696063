"""Single keys from a terminal, without Enter and without waiting."""

import atexit
import contextlib
import os
import select
import termios
import time
from types import TracebackType
from typing import Any, Self

SUSPEND = "\x1a"
"""Ctrl-Z arrives as a key: a stopped host would let the device's lease lapse."""

ESCAPE = "\x1b"
SEQUENCE_S = 0.25
"""A sequence that has not gone on for so long is over: behind a lone Escape the next key is a key again."""
PASTE_BEGINS, PASTE_ENDS = "[200~", "[201~"


def is_attended(fd: int) -> bool:
    """True if `fd` is a terminal of which this process has the foreground: then there is somebody to press keys."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


class KeyReader:
    """Keys out of what a terminal sends. Sequences (arrows, F1, Alt with a key, a bracketed paste) give none: their
    letters are no keys, for nobody has pressed them.
    """

    def __init__(self) -> None:
        self._sequence: str | None = None
        self._pasting = False
        self._last_s = 0.0

    def feed(self, text: str, now_s: float) -> str:
        """The keys in `text`; a sequence may go on in the next one."""
        if now_s - self._last_s > SEQUENCE_S:
            self._sequence, self._pasting = None, False
        if text:
            self._last_s = now_s
        return "".join(character for character in text if self._is_key(character))

    def _is_key(self, character: str) -> bool:
        if character == ESCAPE:
            self._sequence = ""
            return False
        if self._sequence is None:
            return not self._pasting
        self._sequence += character
        if _is_whole(self._sequence):
            if self._sequence in (PASTE_BEGINS, PASTE_ENDS):
                self._pasting = self._sequence == PASTE_BEGINS
            self._sequence = None
        return False


def _is_whole(sequence: str) -> bool:
    """Whether nothing follows what has come behind Escape (ECMA-48: CSI is `[`, SS3 is `O`)."""
    head, last = sequence[0], sequence[-1]
    if head not in "[O":
        return True
    # `[[A` is F1 of the Linux console.
    return len(sequence) > 1 and not " " <= last <= "?" and sequence != "[["


class Keyboard:
    """The terminal on `fd` in a mode that gives single keys; the mode before comes back at exit, whatever happens.

    Ctrl-C stays a signal. Ctrl-Z and Ctrl-\\ are keys, and Ctrl-S does not hold the output back: each would stop this
    process with current flowing.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._before: list[Any] | None = None
        self._reader = KeyReader()

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
            return self._reader.feed(os.read(self.fd, 64).decode("utf-8", "ignore"), time.monotonic())
        except OSError:
            return ""
