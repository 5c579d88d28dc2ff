"""The job queue: what was accepted runs, whatever dies meanwhile, and by nobody else at the same time.

No library fits both databases: huey takes a job off its queue before it runs, and says that a killed worker loses it;
what keeps it until it is done, in SQLite as in PostgreSQL, imports SQLAlchemy, a third of this app's time to start.
"""

import asyncio
import inspect
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

import sentry_sdk
from booty_runner import Drain, redact
from booty_runner.deadline import end_in

from booty.config import Settings
from booty.store import Claim, Store, StoreError, open_store

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# How soon a job is seen that another process accepted, or whose time has come.
POLL_SECONDS = 1.0
# No job waits longer than this for its next attempt.
MAX_WAIT = 86400.0
# Shares of a lease that is not renewed: when a job is told that it lost its claim, and when the kernel ends a process
# that could not tell it. Another host begins the job after the whole lease.
TELL_SHARE = 5 / 6
END_SHARE = 19 / 20
# How long a job that is cut may take to end, and giving it back; with the flush of telemetry 2 s beyond the drain.
CUT_SECONDS = 0.2


@dataclass(frozen=True)
class Job(Generic[P]):
    """A kind of job: a function, and what to do when it fails. Called, it is that function."""

    function: Callable[P, Any]
    retries: int
    wait: float
    growth: float
    every: float | None
    on_each_host: bool

    @property
    def kind(self) -> str:
        """The function's name, under which the queue keeps jobs."""
        return self.function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the function here and now."""
        return self.function(*args, **kwargs)

    def wait_after(self, failures: int) -> float | None:
        """Give the seconds from a failure to the next attempt, or None when there is none."""
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
    """Make a function, async or not, a kind of job. Its arguments must be what JSON can hold.

    Args:
        retries: how often a job that fails is tried again, before it is parked.
        wait: the seconds from the first failure to the second attempt.
        growth: by how much each further wait is longer.
        every: the seconds from the end of one job to the next, for a kind that runs by itself and takes no arguments.
        on_each_host: whether it does so on each host, where several share the work.
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
    """What a job may know of itself and its service."""

    id: str
    kind: str
    attempt: int
    settings: Settings
    queue: "Queue"
    state: dict[str, Any] = field(repr=False)  # what the lifespans yielded, as in `request.state`
    lost: threading.Event = field(default_factory=threading.Event, repr=False)  # set when another host may run it


@dataclass
class _Run:
    """A job that this process runs."""

    running: Running
    task: asyncio.Task[None]
    renewed: float  # on the monotonic clock: when its claim was made or last renewed


_running: ContextVar[Running] = ContextVar("_running")


def current() -> Running:
    """Tell a job what it is.

    Raises:
        LookupError: no job runs here.
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
        self._looping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ending = False
        self._cut = False
        self._ended = threading.Event()  # no claim is renewed any more
        self._away = False  # whether a line of the log said that the store is

    @property
    def store(self) -> Store:
        """Where the jobs are.

        Raises:
            StoreError: nowhere.
        """
        if self._store is None:
            raise StoreError("there is no job queue: neither STATE_DIRECTORY nor BOOTY_QUEUE_URL is set")
        return self._store

    def put(self, kind: Job[P], *args: P.args, **kwargs: P.kwargs) -> str:
        """Accept a job for good, and return its id. It waits for a disk or a network: async code has `enqueue`.

        Raises:
            StoreError: it was not accepted.
            TypeError: the arguments are not the function's, or not what JSON can hold.
        """
        bound = inspect.signature(kind.function).bind(*args, **kwargs)
        identity = uuid.uuid4().hex
        self.store.put(identity, kind.kind, json.dumps([bound.args, bound.kwargs]))
        if self._loop:
            self._loop.call_soon_threadsafe(self._wake.set)
        return identity

    async def enqueue(self, kind: Job[P], *args: P.args, **kwargs: P.kwargs) -> str:
        """Accept a job for good, and return its id; raises what `put` raises."""
        return await in_thread(self.put, kind, *args, **kwargs)

    def begin(self, state: dict[str, Any]) -> None:
        """Start to run jobs, with what the lifespans yielded. The runner calls this once the process is the service."""
        if self._store is None:
            log.info("no job queue: neither STATE_DIRECTORY nor BOOTY_QUEUE_URL is set")
        elif self._settings.booty_queue_jobs:
            self._state, self._loop = state, asyncio.get_running_loop()
            self._looping = self._loop.create_task(self._take())
            if self._store.lease:
                self._watching = self._loop.create_task(self._watch(self._store.lease))
                threading.Thread(target=self._renew, args=(self._store.lease,), name="booty-renew", daemon=True).start()

    def _renew(self, lease: float) -> None:
        """Renew the claims, in a thread: a job that blocks the loop keeps its claim."""
        while not self._ended.wait(POLL_SECONDS):
            began = time.monotonic()
            # A failure is said by `_take`, and told by `_watch`.
            with suppress(StoreError):
                for identity in self.store.renew():
                    if run := self._runs.get(identity):
                        run.renewed = began
            self._arm(lease)

    def _arm(self, lease: float) -> None:
        """Set the deadline at which the kernel ends this process, when it can't give up a job in time.

        A job that holds the interpreter's lock stops the thread that renews its claim, and the loop that would tell it.
        """
        renewed = [run.renewed for run in list(self._runs.values()) if not run.running.lost.is_set()]
        end_in("claims", min(renewed) + END_SHARE * lease - time.monotonic() if renewed else None)

    async def _watch(self, lease: float) -> None:
        """Tell each job whose claim was not renewed that another host may begin it; async ones end by that."""
        while True:
            await asyncio.sleep(POLL_SECONDS / 4)
            for run in self._runs.values():
                if not run.running.lost.is_set() and time.monotonic() - run.renewed > TELL_SHARE * lease:
                    run.running.lost.set()
                    log.error("job %s (%s) lost its claim: the queue is away", run.running.id, run.running.kind)
                    if inspect.iscoroutinefunction(KINDS[run.running.kind].function):
                        run.task.cancel()
                    self._arm(lease)

    async def _take(self) -> None:
        seeded, tended = False, 0.0
        while not self._ending:
            self._wake.clear()
            try:
                if not seeded:
                    await in_thread(self._seed)
                    seeded = True
                if time.monotonic() - tended >= POLL_SECONDS:
                    for lost in await in_thread(self.store.tend, list(self._runs)):
                        _report(lost)
                    tended = time.monotonic()
                while not self._ending and len(self._runs) < self._settings.booty_queue_jobs:
                    began = time.monotonic()
                    claim = await in_thread(self.store.claim, list(KINDS))
                    if claim is None:
                        break
                    self._start(claim, began)
                self._back()
            except Exception as error:  # whatever it is, jobs that wait must not wait for ever
                self._gone(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)

    def _seed(self) -> None:
        for kind in KINDS.values():
            if kind.every is not None:
                host = self.store.host if kind.on_each_host else None
                self.store.put(f"{kind.kind}@{host}" if host else kind.kind, kind.kind, "[[], {}]", host=host)

    def _start(self, claim: Claim, began: float) -> None:
        running = Running(claim.id, claim.kind, claim.failures + 1, self._settings, self, self._state)
        task = asyncio.ensure_future(self._run(claim, running))
        self._runs[claim.id] = _Run(running, task, began)
        if self.store.lease:
            self._arm(self.store.lease)

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
            except BaseException as error:  # also sys.exit(), which would end the service
                if self._cut or (running.lost.is_set() and isinstance(error, asyncio.CancelledError)):
                    raise
                sentry_sdk.capture_exception(error)
                text = self._redactor.text(f"{type(error).__name__}: {error}")
                wait = kind.wait_after(attempt)
                then = "parked" if kind.every is None else "not again before its next turn"
                then = then if wait is None else f"again in {wait:g} s"
                log.warning("job %s (%s) failed in attempt %d, %s", claim.id, claim.kind, attempt, then, exc_info=error)
                await self._settle(self.store.fail, claim.id, text, wait, kind.every)
            else:
                if not await self._settle(self.store.finish, claim.id, kind.every):
                    log.warning("job %s (%s) was taken for lost and given to another process", claim.id, claim.kind)

    async def _settle(self, step: Callable[..., T], *args: Any) -> T:
        """Note what became of a job, however long the store is away."""
        while True:
            try:
                return await in_thread(step, *args)
            except Exception as error:
                self._gone(error)
            await asyncio.sleep(POLL_SECONDS)

    def _gone(self, error: Exception) -> None:
        if not self._away:
            log.error("the job queue is away: %s", error)
        self._away = True

    def _back(self) -> None:
        if self._away:
            log.warning("the job queue is back")
        self._away = False

    async def end(self, drain: Drain) -> None:
        """Take no more jobs, let those that run end within the drain, and give back what does not."""
        self._ending = True
        self._wake.set()
        if self._looping is None:
            return
        cutting, began = asyncio.ensure_future(drain.cut.wait()), time.monotonic()
        while working := {
            task for task in (self._looping, *(run.task for run in self._runs.values())) if not task.done()
        }:
            left = drain.by - time.monotonic()
            if drain.cut.is_set() or left <= 0:
                break
            await asyncio.wait({*working, cutting}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        cutting.cancel()
        self._ended.set()
        if self._watching:
            self._watching.cancel()
        if working:
            log.warning("%d jobs go back to the queue after %.1f s", len(self._runs), time.monotonic() - began)
            self._cut = True
            for task in working:
                task.cancel()
            await asyncio.wait(working, timeout=CUT_SECONDS)
            # Also what was claimed just now. The owner stays until the process ends: a thread can't be cut.
            await asyncio.wait({asyncio.ensure_future(in_thread(self._give_back))}, timeout=CUT_SECONDS)

    def close(self) -> None:
        """Let go of the store."""
        if self._store:
            self._store.close()

    def _give_back(self) -> None:
        try:
            self.store.give_back()
        except StoreError as error:
            log.warning("jobs are given back once this process has ended: %s", error)


def _label(scope: sentry_sdk.Scope, claim: Claim) -> None:
    scope.set_transaction_name(claim.kind, "task")
    scope.set_tags({"job_id": claim.id, "job_kind": claim.kind, "job_attempt": str(claim.failures + 1)})


def _report(lost: Claim) -> None:
    with sentry_sdk.new_scope() as scope:
        _label(scope, lost)
        sentry_sdk.capture_message(f"A job is parked: its process died each time that {lost.kind} ran", "error")
    log.warning("job %s (%s) is parked: its process died too often while it ran", lost.id, lost.kind)


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run a function in a thread of its own, in this context. Unlike a pool's, it holds up no end of the process."""
    loop, context = asyncio.get_running_loop(), copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(function, *args, **kwargs)
        except StopIteration as raised:  # which no future takes
            error = RuntimeError(f"StopIteration: {raised}")
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=f"booty-{getattr(function, '__name__', '')}", daemon=True).start()
    return await future
