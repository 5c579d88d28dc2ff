"""The job queue: an accepted job runs even if processes or hosts die, and in one process at a time.

No library does this with both databases. huey removes a job from its queue before it runs, so that a killed worker
loses it. Libraries that keep a job until it is done, in SQLite and in PostgreSQL, import SQLAlchemy, which takes a
third of this app's start.
"""

import asyncio
import inspect
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

import sentry_sdk
from booty_runner import Drain, redact
from booty_runner.deadline import end_in

from booty.config import Settings
from booty.store import SUSPECT_LOST, Claim, Store, StoreError, open_store

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# The queue is polled this often for jobs of other processes and jobs that have become due.
POLL_SECONDS = 1.0
# The longest wait between two attempts of a job.
MAX_WAIT = 86400.0
# If a lease is not renewed, the job loses its claim after the first share of it. If the process could not stop the job,
# the kernel ends the process after the second share. Another host begins the job after the whole lease.
LOST_SHARE = 5 / 6
END_SHARE = 19 / 20
# Time for cut jobs to end; to give them back, the same time again. With the flush of telemetry, a stop stays within 2 s
# of the end of the drain.
CUT_SECONDS = 0.2


@dataclass(frozen=True)
class Job(Generic[P]):
    """A kind of job: a function, with its retries and schedule. Calling it calls the function."""

    function: Callable[P, Any]
    retries: int
    wait: float
    growth: float
    every: float | None
    on_each_host: bool

    @property
    def kind(self) -> str:
        """The function's name, which identifies the kind in the queue."""
        return self.function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the function immediately, without the queue."""
        return self.function(*args, **kwargs)

    def wait_after(self, failures: int) -> float | None:
        """Return the seconds from a failure to the next attempt, or None if there is no further attempt."""
        if failures > self.retries:
            return None
        return float(min(self.wait * self.growth ** (failures - 1), MAX_WAIT))


KINDS: dict[str, Job[Any]] = {}


def job(
    *,
    retries: int = 3,
    wait: float = 10.0,
    growth: float = 3.0,
    every: float | None = None,
    on_each_host: bool = False,
) -> Callable[[Callable[P, Any]], Job[P]]:
    """Declare a function, async or not, as a kind of job. Its arguments must be JSON values.

    Args:
        retries: the number of further attempts after a failure, before the job is parked.
        wait: the seconds from the first failure to the second attempt.
        growth: the factor by which each further wait is longer.
        every: the seconds from the end of a run to the next one, for a periodic job without arguments.
        on_each_host: whether a periodic job runs on each host, or once for all hosts that share the queue.
    """

    def declare(function: Callable[P, Any]) -> Job[P]:
        declared = Job(function, retries, wait, growth, every, on_each_host)
        if declared.kind in KINDS:
            raise ValueError(f"there are two kinds of job named {declared.kind}")
        KINDS[declared.kind] = declared
        return declared

    return declare


@dataclass(frozen=True)
class Running:
    """A job that runs, as the job itself sees it; see `current`."""

    id: str
    kind: str
    attempt: int
    settings: Settings
    queue: "Queue"
    state: dict[str, Any] = field(repr=False)  # the lifespan's state, as in `request.state`
    lost: threading.Event = field(default_factory=threading.Event, repr=False)  # set when another host may run the job


@dataclass
class _Run:
    """A job that this process runs, as the queue sees it."""

    running: Running
    task: asyncio.Task[None]
    renewed: float  # time of the claim or its last renewal, on the monotonic clock
    suspect: bool  # whether it has to run alone


_running: ContextVar[Running] = ContextVar("_running")


def current() -> Running:
    """Return the job that calls this.

    Raises:
        LookupError: the caller is not a job.
    """
    return _running.get()


class Queue:
    """Accepts jobs from the start, and runs them from `begin` to `end`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: Store | None = open_store(settings)
        self._redactor = redact.of_environment()
        self._state: dict[str, Any] = {}
        self._runs: dict[str, _Run] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._claiming: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ending = False
        self._cut = False
        self._ended = threading.Event()  # set when claims are no longer renewed
        self._unreachable = False  # whether the log says that the store can't be reached

    @property
    def store(self) -> Store:
        """The store that keeps the jobs.

        Raises:
            StoreError: no store is configured.
        """
        if self._store is None:
            raise StoreError("there is no job queue: neither STATE_DIRECTORY nor BOOTY_QUEUE_URL is set")
        return self._store

    def put(self, kind: Job[P], *args: P.args, **kwargs: P.kwargs) -> str:
        """Store a job durably and return its id. Blocks on disk or network; async code calls `enqueue` instead.

        Raises:
            StoreError: the job was not accepted.
            TypeError: the arguments don't fit the function, or are not JSON values.
        """
        bound = inspect.signature(kind.function).bind(*args, **kwargs)
        identity = uuid.uuid4().hex
        self.store.put(identity, kind.kind, json.dumps([bound.args, bound.kwargs]))
        if self._loop:
            self._loop.call_soon_threadsafe(self._wake.set)
        return identity

    async def enqueue(self, kind: Job[P], *args: P.args, **kwargs: P.kwargs) -> str:
        """Store a job durably and return its id; raises the same errors as `put`."""
        return await in_thread(self.put, kind, *args, **kwargs)

    def begin(self, state: dict[str, Any]) -> None:
        """Start to run jobs. The runner calls this once the process is the service.

        Args:
            state: the lifespan's state.
        """
        if self._store is None:
            log.info("no job queue: neither STATE_DIRECTORY nor BOOTY_QUEUE_URL is set")
        elif self._settings.booty_queue_jobs:
            self._state, self._loop = state, asyncio.get_running_loop()
            self._claiming = self._loop.create_task(self._claim_jobs())
            if self._store.lease:
                self._watching = self._loop.create_task(self._watch(self._store.lease))
                threading.Thread(target=self._renew, args=(self._store.lease,), name="booty-renew", daemon=True).start()

    def _renew(self, lease: float) -> None:
        """Renew the claims, in a thread, so that a job that blocks the event loop keeps its claim."""
        while not self._ended.wait(POLL_SECONDS):
            began = time.monotonic()
            # `_claim_jobs` logs that the store can't be reached; `_watch` gives up the claims.
            with suppress(StoreError):
                for identity in self.store.renew():
                    if run := self._runs.get(identity):
                        run.renewed = began
            self._set_deadline(lease)

    def _set_deadline(self, lease: float) -> None:
        """Set the time at which the kernel ends this process, unless claims are renewed or given up before.

        A job that holds the interpreter's lock stops both the thread that renews and the event loop that gives up.
        """
        renewed = [run.renewed for run in list(self._runs.values()) if not run.running.lost.is_set()]
        end_in("claims", min(renewed) + END_SHARE * lease - time.monotonic() if renewed else None)

    async def _watch(self, lease: float) -> None:
        """Give up the claims that were not renewed in time: set `lost` of each job, and cancel async jobs."""
        while True:
            await asyncio.sleep(POLL_SECONDS / 4)
            for run in self._runs.values():
                if not run.running.lost.is_set() and time.monotonic() - run.renewed > LOST_SHARE * lease:
                    run.running.lost.set()
                    line = "job %s (%s) lost its claim: the job queue can't be reached"
                    log.error(line, run.running.id, run.running.kind)
                    if inspect.iscoroutinefunction(KINDS[run.running.kind].function):
                        run.task.cancel()
                    self._set_deadline(lease)

    async def _claim_jobs(self) -> None:
        scheduled, tended_at = False, 0.0
        while not self._ending:
            self._wake.clear()
            try:
                if not scheduled:
                    await in_thread(self._schedule)
                    scheduled = True
                if time.monotonic() - tended_at >= POLL_SECONDS:
                    for parked in await in_thread(self.store.tend, list(self._runs)):
                        _report_parked(parked)
                    tended_at = time.monotonic()
                while not self._ending and len(self._runs) < self._settings.booty_queue_jobs:
                    if any(run.suspect for run in self._runs.values()):
                        break
                    began = time.monotonic()
                    claim = await in_thread(self.store.claim, list(KINDS), not self._runs)
                    if claim is None:
                        break
                    self._start(claim, began)
                self._note_store(None)
            except Exception as error:  # of any kind: if this loop ended, waiting jobs would never run
                self._note_store(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)

    def _schedule(self) -> None:
        """Store the periodic jobs, unless they are there already."""
        for kind in KINDS.values():
            if kind.every is not None:
                host = self.store.host if kind.on_each_host else None
                self.store.put(f"{kind.kind}@{host}" if host else kind.kind, kind.kind, "[[], {}]", host=host)

    def _start(self, claim: Claim, began: float) -> None:
        running = Running(claim.id, claim.kind, claim.failures + 1, self._settings, self, self._state)
        task = asyncio.ensure_future(self._run(claim, running))
        self._runs[claim.id] = _Run(running, task, began, claim.lost >= SUSPECT_LOST)
        if self.store.lease:
            self._set_deadline(self.store.lease)

        def ended(_: object) -> None:
            del self._runs[claim.id]
            self._wake.set()

        task.add_done_callback(ended)

    async def _run(self, claim: Claim, running: Running) -> None:
        kind, attempt = KINDS[claim.kind], running.attempt
        _running.set(running)
        with sentry_sdk.isolation_scope() as scope:
            _label(scope, claim)
            try:
                args, kwargs = json.loads(claim.arguments)
                if inspect.iscoroutinefunction(kind.function):
                    await kind.function(*args, **kwargs)
                else:
                    await in_thread(kind.function, *args, **kwargs)
            except BaseException as error:  # includes SystemExit: a job must not end the service
                if self._cut or (running.lost.is_set() and isinstance(error, asyncio.CancelledError)):
                    raise
                sentry_sdk.capture_exception(error)
                text = self._redactor.text(f"{type(error).__name__}: {error}")
                wait = kind.wait_after(attempt)
                next_step = "parked" if kind.every is None else "not again before its next run"
                next_step = next_step if wait is None else f"again in {wait:g} s"
                line = "job %s (%s) failed in attempt %d, %s"
                log.warning(line, claim.id, claim.kind, attempt, next_step, exc_info=error)
                await self._settle(self.store.fail, claim.id, text, wait, kind.every)
            else:
                if not await self._settle(self.store.finish, claim.id, kind.every):
                    log.warning("job %s (%s) lost its claim and was given to another process", claim.id, claim.kind)

    async def _settle(self, step: Callable[..., T], *args: Any) -> T:
        """Record the end of a job in the store; repeat that until the store can be reached."""
        while True:
            try:
                return await in_thread(step, *args)
            except Exception as error:
                self._note_store(error)
            await asyncio.sleep(POLL_SECONDS)

    def _note_store(self, error: Exception | None) -> None:
        """Log when the store can no longer be reached, and when it can be again."""
        if error and not self._unreachable:
            log.error("the job queue can't be reached: %s", error)
        elif not error and self._unreachable:
            log.warning("the job queue can be reached again")
        self._unreachable = error is not None

    async def end(self, drain: Drain) -> None:
        """Claim no more jobs, wait within the drain for those that run, and give back the rest."""
        self._ending = True
        self._wake.set()
        if self._claiming is None:
            return
        cut, began = asyncio.ensure_future(drain.cut.wait()), time.monotonic()
        while working := {
            task for task in (self._claiming, *(run.task for run in self._runs.values())) if not task.done()
        }:
            left = drain.by - time.monotonic()
            if drain.cut.is_set() or left <= 0:
                break
            await asyncio.wait({*working, cut}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        self._ended.set()
        if self._watching:
            self._watching.cancel()
        if working:
            log.warning("%d jobs go back to the queue after %.1f s", len(self._runs), time.monotonic() - began)
            self._cut = True
            for task in working:
                task.cancel()
            await asyncio.wait(working, timeout=CUT_SECONDS)
            # Gives back all claims of this process, even one made just now. The jobs keep their owner until the process
            # ends, because a job in a thread can't be cut and may still run.
            await asyncio.wait({asyncio.ensure_future(in_thread(self._give_back))}, timeout=CUT_SECONDS)

    def close(self) -> None:
        """Close the store."""
        if self._store:
            self._store.close()

    def _give_back(self) -> None:
        try:
            self.store.give_back()
        except StoreError as error:
            log.warning("jobs go back to the queue only when this process has ended: %s", error)


def _label(scope: sentry_sdk.Scope, claim: Claim) -> None:
    scope.set_transaction_name(claim.kind, "task")
    scope.set_tags({"job_id": claim.id, "job_kind": claim.kind, "job_attempt": str(claim.failures + 1)})


def _report_parked(claim: Claim) -> None:
    with sentry_sdk.new_scope() as scope:
        _label(scope, claim)
        sentry_sdk.capture_message(f"A job is parked: its process died each time that {claim.kind} ran", "error")
    log.warning("job %s (%s) is parked: its process died too often while it ran", claim.id, claim.kind)


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run a function in this context, in a new daemon thread: such a thread does not delay the process's exit."""
    context, future = copy_context(), Future[T]()
    future.set_running_or_notify_cancel()  # the thread can't be cancelled, so neither can its future

    def run() -> None:
        try:
            future.set_result(context.run(function, *args, **kwargs))
        except StopIteration as error:  # asyncio's futures refuse StopIteration
            future.set_exception(RuntimeError(f"StopIteration: {error}"))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"booty-{getattr(function, '__name__', '')}", daemon=True).start()
    return await asyncio.wrap_future(future)
