"""The internal app: answers root on this host, over a Unix socket that the network can't reach."""

import inspect
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from booty_runner import hooks, tally, telemetry, verify
from booty_runner.hooks import CommandError, Scope
from booty_runner.settings import Settings

_FIXED = {("POST", "/raise"), ("GET", "/status")}


class DeliberateError(RuntimeError):
    """Raised by `POST /raise`, to prove that an error in a route reaches the tracker."""


class InternalApp:
    """The ASGI app behind the internal socket: raises an error, reports the status, runs commands."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._commands: dict[str, hooks.Command] = {"verify": self._verify}

    @staticmethod
    def route(scope: Scope) -> str | None:
        """Return the path of a request if this app has a route for it, else None."""
        path: str = scope["path"]
        return path if (scope["method"], path) in _FIXED or path[1:] in {"verify", *hooks.commands} else None

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request with JSON."""
        failure = None
        try:
            status, answer = 200, await self._answer(scope)
        except CommandError as error:
            status, answer = 404, {"detail": str(error)}
        except Exception as error:
            telemetry.report(error, scope["path"])
            failure, status, answer = error, 500, {"detail": "the command failed; the journal has its traceback"}
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if failure:
            raise failure

    async def _answer(self, scope: Scope) -> dict[str, Any]:
        match scope["method"], scope["path"]:
            case "POST", "/raise":
                raise DeliberateError("raised on purpose through the internal socket")
            case "GET", "/status":
                return {
                    "release": self._settings.sentry_release,
                    "environment": self._settings.sentry_environment,
                    "pid": os.getpid(),
                    "telemetry": telemetry.status(),
                    "requests": tally.requests.total,
                    "lost": tally.lost.total,
                    **{name: await function() for name, function in hooks.status.items()},
                }
        commands = {**self._commands, **hooks.commands}
        if (command := commands.get(name := scope["path"][1:])) is None:
            raise CommandError(f"there is no command {name}, but {', '.join(sorted(commands))}")
        options = dict(parse_qsl(scope["query_string"].decode()))
        signature = inspect.signature(command)
        try:
            signature.bind(**options)
        except TypeError:
            accepted = ", ".join(f"--{option}" for option in signature.parameters) or "no option"
            raise CommandError(f"{name} takes {accepted}") from None
        return await command(**options)

    async def _verify(self) -> dict[str, Any]:
        report = await verify.verify(ask_tracker=True)
        rows = [(check.name, "ok" if check.ok else "FAILED", check.detail) for check in report.checks]
        return {**report.json, "text": hooks.table([*rows, ("process", "", str(report.pid))])}
