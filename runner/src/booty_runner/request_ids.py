"""Request ids: each request has one, which its response, its log lines and its events carry."""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from booty_runner import events, hooks, telemetry
from booty_runner._vendor.uvicorn.protocols.utils import ClientDisconnected
from booty_runner.hooks import Scope
from booty_runner.logs import request_id

log = logging.getLogger("booty_runner.telemetry")
_server_log = logging.getLogger("uvicorn.error")

_PLAIN_ID = re.compile(rb"[\w.-]{8,64}", re.ASCII)


class RequestIds:
    """ASGI middleware that gives each request an id: the client's `X-Request-ID` if that is a plain one, or a new one.

    It reports each error that the app raises, unless the app's SDK has. An error after a complete response (also after
    the response of status 500) is logged here, so that uvicorn leaves the connection open. Two exceptions are not
    reported: a client that disconnects during its request, and a response without `Content-Length` that the stop cuts.
    """

    def __init__(self, app: Any, route: Callable[[Scope], str | None]) -> None:
        self._app = app
        self._route = route

    async def __call__(
        self, scope: Scope, receive: Any, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
    ) -> None:
        """Answer one request."""
        identity = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _PLAIN_ID.fullmatch(value):
                identity = value
        text = identity.decode() or os.urandom(16).hex()
        identity = identity or text.encode()

        def request() -> events.Request:
            host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
            url = f"{scope.get('scheme', 'http')}://{host}"
            return events.Request(text, self._route(scope), scope.get("method"), url)

        # Not reset afterwards: uvicorn runs each request in its own context, and logs its errors there.
        request_id.set(text)
        events.current_request.set(request)

        headers: Sequence[tuple[bytes, bytes]] | None = None
        answered = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal answered, headers
            if message["type"] == "http.response.start":
                message["headers"] = headers = [*message.get("headers", ()), (b"x-request-id", identity)]
                await send(message)
            else:
                await send(message)
                answered = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError as error:  # cut at the stop; the SDK does not report a BaseException by itself
            if headers and not answered and not any(name.lower() == b"content-length" for name, _ in headers):
                return
            telemetry.report(error, self._route(scope) or "(no route)")
            raise
        except (ClientDisconnected, *hooks.departures):  # type: ignore[misc]  # the private packages have no types
            log.info("the client left within its request to %s", self._route(scope) or "(no route)")
        except Exception as error:
            telemetry.report(error, self._route(scope) or "(no route)")
            if not answered:
                raise
            # uvicorn would log the same and close the connection, though the response announced keep-alive.
            _server_log.error("Exception in ASGI application\n", exc_info=error)
