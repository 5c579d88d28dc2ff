"""Several worker processes on the same sockets: ready when all are, replaced when they die, drained together.

uvicorn's own supervisor says neither when all workers are ready nor, by its exit status, that one refused to start; its
workers run uvicorn's server, which cuts idle connections; and it starts them from nothing, each 0.4 s and 60 MB.
"""

import ctypes
import logging
import os
import signal
from dataclasses import dataclass

from booty.server import notify

log = logging.getLogger(__name__)

# What a worker sends to say that it is ready. Unlike SIGUSR1 it is queued: of two at once none is lost.
_READY = signal.SIGRTMIN
_STOP = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Worker:
    """What a worker knows of itself."""

    supervisor: int
    first: bool

    def ready(self) -> None:
        """Tell the supervisor that this worker serves."""
        os.kill(self.supervisor, _READY)


class Supervisor:
    """Forks workers, from code that is imported, by a process that has neither threads nor an event loop.

    The first one starts alone: what it refuses all would refuse, and so one line says it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._ready: dict[int, bool] = {}  # of each worker, by its PID
        self._stopped_by = 0  # the signal, once there was one
        self._status = 0

    def run(self) -> Worker | int:
        """Run the workers until SIGTERM or SIGINT, or until one does not get ready.

        Returns:
            As fork(2) does twice: to each worker what it is, and to the supervisor, once all have ended, its exit
            status: 0 after a stop, else that of the worker that failed, or 3 if a signal killed it.
        """
        waited_for = {*_STOP, signal.SIGCHLD, _READY}
        # Only waited for, never handled: nothing can happen between two lines of this.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
        missing = 1
        while True:
            for _ in range(missing):
                supervisor, first = os.getpid(), not self._ready
                if not (pid := os.fork()):
                    _become_worker(supervisor, mask)
                    return Worker(supervisor, first)
                self._ready[pid] = False
            missing = 0
            if not self._ready:
                return self._status
            came = signal.sigwaitinfo(waited_for)
            if came.si_signo in _STOP:
                self._stop(came.si_signo)
            elif came.si_signo == signal.SIGCHLD:
                missing = self._bury()
            elif came.si_pid in self._ready:
                missing = self._welcome(came.si_pid)

    def _stop(self, number: int) -> None:
        if self._stopped_by:
            # Of two alike that come at once, a worker would see one: the second, which cuts, is the other kind.
            number = next(other for other in _STOP if other != self._stopped_by)
        else:
            self._stopped_by = number
            notify("STOPPING=1", f"STATUS=stopping {len(self._ready)} workers")
        for pid in self._ready:
            os.kill(pid, number)

    def _welcome(self, pid: int) -> int:
        """Note that a worker is ready and return how many more to start."""
        self._ready[pid] = True
        if len(self._ready) == self._count and all(self._ready.values()) and not self._stopped_by:
            notify("READY=1", f"STATUS=serving with {self._count} workers")
        return 0 if self._stopped_by else self._count - len(self._ready)

    def _bury(self) -> int:
        """Take leave of the workers that ended and return how many to start in their place."""
        lost = 0
        while self._ready and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended[0], os.waitstatus_to_exitcode(ended[1])
            was_ready = self._ready.pop(pid)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            if self._stopped_by:
                # A worker that is told to stop before it can listen to signals dies of it, as any process does.
                self._status = max(self._status, 0 if -status in _STOP else 3 if status < 0 else status)
            elif was_ready:
                log.error("worker %d %s; another one takes its place", pid, how)
                lost += 1
            else:
                # Nor would the next one: it has said why, unless it was killed.
                self._status = status if status > 0 else 3
                if status <= 0:
                    log.error("worker %d %s before it was ready", pid, how)
                self._stop(signal.SIGTERM)
        return 0 if self._stopped_by else lost


def _become_worker(supervisor: int, mask: set[int]) -> None:
    os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to pass on, or each worker would see two
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os._exit(3)  # it died before that
    os.environ.pop("NOTIFY_SOCKET", None)  # systemd listens to the main process alone
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
