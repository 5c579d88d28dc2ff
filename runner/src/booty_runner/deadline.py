"""Deadlines after which the kernel ends this process, whatever the interpreter does.

No thread can end a process in which a library holds the interpreter's lock. The kernel can, by SIGALRM, for
which no handler is set. A process has one such timer, so the deadlines of its parts share it.
"""

import signal
import threading
import time

_deadlines: dict[str, float] = {}  # on the monotonic clock, by what they are for
_lock = threading.Lock()


def end_in(what: str, seconds: float | None) -> None:
    """Make the kernel end this process after so many seconds, unless the function is called again before.

    Args:
        what: what the deadline is for; each has one.
        seconds: None takes the deadline back.
    """
    with _lock:
        _deadlines.pop(what, None)
        if seconds is not None:
            _deadlines[what] = time.monotonic() + seconds
        left = min(_deadlines.values()) - time.monotonic() if _deadlines else 0
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001) if _deadlines else 0)
