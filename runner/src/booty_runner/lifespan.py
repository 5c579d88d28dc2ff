"""ASGI's lifespan protocol. Startup and shutdown run in one task, since a cancel scope must not change its task."""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

from booty_runner.transport import Hold

# After it has sent `startup.failed` or `shutdown.failed`, an app has this long to raise the error itself.
RAISE_SECONDS = 1


class LifespanError(RuntimeError):
    """An app's startup or shutdown failed without an exception."""


class Lifespan:
    """Context manager: starts an app, yields the state that each request gets a copy of, shuts the app down.

    An app that returns or raises before it receives `lifespan.startup` has no lifespan, as ASGI defines it. An error
    that the app raises later is raised here.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._state: dict[str, Any] = {}
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answer: asyncio.Future[MutableMapping[str, Any]]
        self._received = False
        self._hold = Hold()
        self._error: BaseException | None = None

    async def __aenter__(self) -> dict[str, Any]:
        self._task = asyncio.create_task(self._run())
        await self._ask("startup")
        return self._state

    async def __aexit__(self, *_: object) -> None:
        if self._received:
            await self._ask("shutdown")

    def on_end(self, function: Callable[[], object]) -> None:
        """Call a function if the app's lifespan ends while the app serves: the app can't go on without it."""
        if self._received:
            self._task.add_done_callback(lambda _: function())

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            with self._hold:
                await self._app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a SystemExit that leaves a task stops the event loop, so _ask() raises it
            self._error = error

    async def _receive(self) -> dict[str, Any]:
        self._received = True
        self._hold.release()
        return await self._events.get()

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if not self._answer.done():
            self._answer.set_result(message)

    async def _ask(self, event: str) -> None:
        self._answer = asyncio.get_running_loop().create_future()
        self._hold.moment = event
        if event == "shutdown" and self._task.done():
            self._answer.set_result({"type": "", "message": "it ended while the app served"})
        self._events.put_nowait({"type": f"lifespan.{event}"})
        either: set[asyncio.Future[Any]] = {self._answer, self._task}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        answer = self._answer.result() if self._answer.done() else {"message": "it ended without an answer"}
        if answer.get("type") == f"lifespan.{event}.complete":
            self._hold.moment = ""
            return
        await asyncio.wait({self._task}, timeout=RAISE_SECONDS)
        if not self._received and (self._error is None or isinstance(self._error, Exception)):
            return
        raise self._error or LifespanError(f"the app's {event} failed: {answer.get('message') or 'it gave no reason'}")
