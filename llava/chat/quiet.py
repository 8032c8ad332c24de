"""A terminal that does not echo what is typed while an answer or a spinner is drawn on it."""

import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# After these the shell, or whoever comes next, must find the terminal as it was.
_LEAVING = (signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Turns the echo of the terminal on stdin off, and back on whatever happens, also when the process is suspended.

    What is typed meanwhile is kept for who reads next, the prompt or the shell; Ctrl-C drops it, as everywhere. Does
    nothing where stdin is no terminal, in the background, or within another such block.
    """
    try:
        descriptor = sys.stdin.fileno() if sys.stdin is not None else -1
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # closed, a file, an object without a descriptor
        yield
        return
    if not _in_foreground(descriptor) or not before[3] & termios.ECHO:
        yield
        return
    quiet = list(before)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)  # ICANON: what is typed waits as keys, not as a line that is edited
    settings = {True: quiet, False: before}

    def turn(on: bool) -> None:
        if _in_foreground(descriptor):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, settings[on])

    def leave(number: int, frame: FrameType | None) -> None:
        turn(False)
        ours = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, ours)  # here again: it was suspended
        turn(True)

    handlers = {}
    try:
        for number in _LEAVING:
            if signal.getsignal(number) == signal.SIG_DFL:
                handlers[number] = signal.signal(number, leave)
        turn(True)
        yield
    finally:
        turn(False)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _in_foreground(descriptor: int) -> bool:
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
