"""Several worker processes on the same sockets: ready when all are, replaced when they die, drained together.

uvicorn's own supervisor says neither when all workers are ready nor, by its exit status, that one refused to start; its
workers run uvicorn's server, which cuts idle connections; and it starts them from nothing, each 0.4 s and 60 MB.
"""

import ctypes
import logging
import os
import signal
import time
from dataclasses import dataclass

from booty_runner.deadline import end_in
from booty_runner.server import keep_watch, notify, ping
from booty_runner.tally import Tally

log = logging.getLogger(__name__)

# The signals that a worker sends when it serves, and when it has paused. Real-time signals are queued, so none is lost
# if two come at once.
_STATES = {"serving": signal.SIGRTMIN, "paused": signal.SIGRTMIN + 1}
# The signals that every worker gets, also one that is ready later, each with the state that a worker answers.
_ORDERS: dict[int, int] = {signal.SIGUSR1: _STATES["paused"], signal.SIGUSR2: _STATES["serving"]}
_STOP = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # prctl(2)
# The pauses before another worker is started: the first follows at once, then 1, 2, 4, 8, 16 and 30 s.
_LONGEST_PAUSE = 30
# A worker that dies within this time after it was ready counts as a failed start. After so many failed starts in a row,
# while no other worker serves, the service ends, and systemd starts it again with pauses of its own.
_STABLE_SECONDS = 10
_IN_A_ROW = 5
# How long a replacement may take to be ready. systemd's TimeoutStartSec= bounds the first start alone.
_START_SECONDS = 600


@dataclass(frozen=True)
class Worker:
    """A worker, as it sees itself."""

    supervisor: int
    first: bool
    live: bool  # whether the supervisor is the service, although it started as a candidate

    def report(self, state: str) -> None:
        """Tell the supervisor whether this worker is `serving` or `paused`."""
        end_in("start", None)
        os.kill(self.supervisor, _STATES[state])


class Supervisor:
    """Forks workers, from code that is imported, by a process that has neither threads nor an event loop.

    The first worker starts alone, so that a bad setting is logged once. Until all are ready, a worker that fails ends
    the start. From then on it is replaced, with growing pauses, while the others serve.
    """

    def __init__(self, count: int, watchdog_seconds: float = 0) -> None:
        self._count = count
        self._watchdog_seconds = watchdog_seconds
        self._ready: dict[int, float | None] = {}  # when each worker was ready, on the monotonic clock, by its PID
        self._proven = False  # whether any worker was ready yet
        self._served = False  # whether all were
        self._failures = 0  # in a row
        self._next_start = 0.0  # on the monotonic clock
        self._order = 0  # the last one of _ORDERS
        self._obeyed: set[int] = set()  # the workers that have answered it
        self._live = False  # whether SIGUSR2 came
        self._stopped_by = 0  # the signal, once there was one
        self._status = 0

    def run(self) -> Worker | int:
        """Run the workers until SIGTERM or SIGINT, or until none can serve.

        Returns:
            As fork(2) does twice: to each worker what it is, and to the supervisor, once all have ended, its exit
            status: 0 after a stop, else that of the worker that failed, or 3 if a signal killed it.
        """
        waited_for = {*_STOP, *_ORDERS, *_STATES.values(), signal.SIGCHLD}
        # An app may have ignored it at its import; the kernel then keeps no worker that ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Only waited for, never handled: nothing can happen between two lines of this.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
        while True:
            # At each signal: a child of the app's import may have ended before SIGCHLD was waited for.
            self._bury()
            now = time.monotonic()
            missing = 0 if self._stopped_by else (self._count if self._proven else 1) - len(self._ready)
            if missing and now >= self._next_start:
                for _ in range(missing):
                    supervisor, first, served = os.getpid(), not self._proven, self._served
                    Tally.take_slot()
                    if not (pid := os.fork()):
                        _become_worker(supervisor, mask, _START_SECONDS if served else 0)
                        return Worker(supervisor, first, self._live)
                    self._ready[pid] = None
                missing = 0
            if not self._ready and not missing:
                return self._status
            pauses = [self._next_start - now] if missing else []
            if self._watchdog_seconds:
                ping()
                pauses.append(self._watchdog_seconds / 4)
            came = signal.sigtimedwait(waited_for, min(pauses)) if pauses else signal.sigwaitinfo(waited_for)
            if came is None:
                continue
            if came.si_signo in _STOP:
                self._stop(came.si_signo)
            elif came.si_signo in _ORDERS:
                self._pass_on(came.si_signo)
            elif came.si_signo != signal.SIGCHLD and came.si_pid in self._ready:
                self._hear(came.si_pid, came.si_signo)

    def _stop(self, number: int) -> None:
        if self._stopped_by:
            # Of two alike that come at once, a worker would see one: the second, which cuts, is the other kind.
            number = next(other for other in _STOP if other != self._stopped_by)
        else:
            self._stopped_by = number
            notify("STOPPING=1", f"STATUS=stopping {len(self._ready)} workers")
        for pid in self._ready:
            os.kill(pid, number)

    def _pass_on(self, order: int) -> None:
        """Send an order to the workers that are ready."""
        if self._stopped_by:
            return
        self._order, self._obeyed = order, set()
        self._live |= order == signal.SIGUSR2
        for pid in self._serving():
            os.kill(pid, order)

    def _hear(self, pid: int, state: int) -> None:
        """Note that a worker is ready, or that it has obeyed an order; tell systemd when all have."""
        if self._ready[pid] is None:
            self._ready[pid] = time.monotonic()
            self._proven = True
            if self._order and not self._stopped_by:
                os.kill(pid, self._order)
        elif self._order and state == _ORDERS[self._order]:
            self._obeyed.add(pid)
        if self._stopped_by:
            return
        if self._order == signal.SIGUSR1 and self._obeyed >= self._serving():
            notify("STATUS=paused")
            return
        if self._order == signal.SIGUSR2 and self._obeyed >= self._serving():
            # systemd took the candidate's WATCHDOG_USEC= for the candidate's unit.
            keep_watch(self._watchdog_seconds)
        self._tell()

    def _serving(self) -> set[int]:
        return {pid for pid, ready_at in self._ready.items() if ready_at is not None}

    def _tell(self) -> None:
        """Tell systemd how many workers serve, and the first time when all do."""
        serving = len(self._serving())
        if serving == self._count:
            notify("READY=1", f"STATUS=serving with {serving} workers")
            if not self._served and self._watchdog_seconds:
                keep_watch(self._watchdog_seconds)
            self._served = True
        elif self._served:
            notify(f"STATUS=serving with {serving} of {self._count} workers, {self._failures} failed in a row")

    def _bury(self) -> None:
        """Take leave of the workers that ended, and settle when others take their place, or that the service ends."""
        while self._ready and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended[0], os.waitstatus_to_exitcode(ended[1])
            if pid not in self._ready:  # a process that the app started when it was imported
                continue
            ready_at = self._ready.pop(pid)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            if ready_at is None:
                how += " before it was ready"
            if self._stopped_by:
                # A worker that gets SIGTERM before it has set its handlers dies of the signal, like any process.
                self._status = max(self._status, 0 if -status in _STOP else 3 if status < 0 else status)
                continue
            pause = self._pause(ready_at)
            others = bool(self._serving())
            if ready_at is None and not (self._served and others):
                # The next worker would fail too. This one has logged the reason, unless it was killed.
                self._status = status if status > 0 else 3
                if status <= 0:
                    log.error("worker %d %s", pid, how)
                self._stop(signal.SIGTERM)
            elif self._failures >= _IN_A_ROW and not others:
                self._status = 3
                log.error("worker %d %s, as %d in a row did, and no other one serves", pid, how, self._failures)
                self._stop(signal.SIGTERM)
            else:
                log.error("worker %d %s; another one takes its place%s", pid, how, f" in {pause} s" if pause else "")
                self._tell()

    def _pause(self, ready_at: float | None) -> int:
        """Return the seconds until another worker takes the place of one that ended, and note when they are over."""
        now, pause = time.monotonic(), 0
        if ready_at is not None and now - ready_at >= _STABLE_SECONDS:
            if len(self._ready) == self._count - 1:  # no other one is missing
                self._failures = 0
        else:
            self._failures += 1
            pause = min(2**self._failures // 4, _LONGEST_PAUSE)
        self._next_start = now + pause
        return pause


def _become_worker(supervisor: int, mask: set[int], start_seconds: float) -> None:
    os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to pass on, or each worker would see two
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os._exit(3)  # it died before that
    os.environ.pop("NOTIFY_SOCKET", None)  # systemd listens to the main process alone
    end_in("start", start_seconds or None)  # a start that hangs is killed
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
