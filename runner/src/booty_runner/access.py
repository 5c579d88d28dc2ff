"""The access log: one line for each request when it has ended, without the query string."""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from booty_runner import logs
from booty_runner.hooks import Scope

PATH_CHARACTERS = 1000
_UNSAFE = re.compile(rb"[^!-~]")


class AccessLog:
    """ASGI middleware that logs each request of an app, once its response or its WebSocket has ended."""

    def __init__(
        self, app: Any, quiet: Callable[[], bool] = lambda: False, aborted: Callable[[], bool] = lambda: False
    ) -> None:
        """Log the requests of an app.

        Args:
            app: the ASGI app.
            quiet: tells at the end whether to log nothing.
            aborted: tells at the end whether the client left before the response was complete.
        """
        self._app, self._quiet, self._aborted = app, quiet, aborted

    async def __call__(
        self, scope: Scope, receive: Any, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
    ) -> None:
        """Answer one request."""
        began, status, size, complete = time.monotonic(), 0, 0, False

        async def count(message: MutableMapping[str, Any]) -> None:
            nonlocal status, size, complete
            match message["type"]:
                case "http.response.body":
                    size += len(message.get("body", b"")) if scope.get("method") != "HEAD" else 0
                    complete = not message.get("more_body")
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                case "websocket.accept":
                    status, complete = 101, True
                case "websocket.close":
                    status = status or 403
                    complete = True
                case "websocket.send":
                    size += len(message.get("bytes") or (message.get("text") or "").encode())
            await send(message)

        try:
            await self._app(scope, receive, count)
        except BaseException:
            status, complete = status or 500, complete or not status  # the answer 500 is complete
            raise
        finally:
            if not self._quiet():
                milliseconds = round((time.monotonic() - began) * 1000, 1)
                _write(scope, status, milliseconds, size, aborted=not complete or self._aborted())


def _write(scope: Scope, status: int, milliseconds: float, size: int, *, aborted: bool) -> None:
    # As the client sent it, so that it has no character of a terminal's or of a line's end.
    path = _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], scope["raw_path"][: PATH_CHARACTERS + 1]).decode()
    if len(path) > PATH_CHARACTERS:
        path = f"{path[:PATH_CHARACTERS]}…"
    fields = {
        "method": scope.get("method", "GET"),
        "path": path,
        "status": status or None,
        "milliseconds": milliseconds,
        "bytes": size,
        "aborted": aborted,
    }
    line = f"{fields['method']} {path} {status or '-'} {milliseconds} ms {size} bytes{' aborted' * aborted}"
    logs.write(__name__, line, fields)
