"""The hooks: functions that an app may give to the runner, all of them optional. The app's lifespan registers them."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Check = Callable[[], Awaitable[tuple[str | None, str]]]
Command = Callable[..., Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Drain:
    """A drain that has begun.

    Attributes:
        by: the latest end of the drain, on the monotonic clock.
        cut: set when the drain is cut short.
    """

    by: float
    cut: asyncio.Event


class CommandError(Exception):
    """A command refuses: `serve NAME` prints the message and exits with status 1."""


def _route_of_framework(scope: Scope) -> str | None:
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else None


ready: list[Callable[[dict[str, Any]], object]] = []
drain: list[Callable[[Drain], Awaitable[object]]] = []
checks: dict[str, Check] = {}
status: dict[str, Callable[[], Awaitable[Any]]] = {}
commands: dict[str, Command] = {}
route: Callable[[Scope], str | None] = _route_of_framework
departures: tuple[type[Exception], ...] = ()
# Whether this process is the service; a candidate is not, until it takes the service's place.
live = False
# The latest end of the drain, on the monotonic clock; 0 before a drain begins.
drain_ends = 0.0


def on_ready(function: Callable[[dict[str, Any]], object]) -> None:
    """Call a function once this process is the service. Its argument is the lifespan's state.

    In a candidate that is when it takes the service's place.
    """
    ready.append(function)


def on_drain(function: Callable[[Drain], Awaitable[object]]) -> None:
    """Call an async function when the drain begins, while requests in flight finish.

    The lifespan's shutdown starts when both the function and the requests have ended.
    """
    drain.append(function)


def add_check(name: str, function: Check) -> None:
    """Add a check to `serve verify`. A candidate must pass it before it is ready.

    Args:
        name: the check's name in reports.
        function: returns a flaw or None, and a detail to report when there is no flaw.
    """
    checks[name] = function


def add_status(name: str, function: Callable[[], Awaitable[Any]]) -> None:
    """Add a member to the JSON object that the internal socket answers at `/status`."""
    status[name] = function


def add_command(name: str, function: Command) -> None:
    """Add a command: `serve NAME --OPTION VALUE` calls the function with `OPTION=VALUE` in the running service.

    Args:
        name: the command's name.
        function: takes its options as keyword arguments, all strings. Returns the object that `--json` prints. Without
            `--json`, its member `text` is printed. If its member `ok` is False, the exit status is 1. To refuse, it
            raises CommandError.
    """
    commands[name] = function


def name_requests(function: Callable[[Scope], str | None], client_left: Sequence[type[Exception]] = ()) -> None:
    """Name requests in log lines and events.

    Args:
        function: returns the route of a request's ASGI scope, such as `/items/{id}`, or None.
        client_left: exceptions that the app raises when a client disconnects; they are not reported as errors.
    """
    global route, departures
    route, departures = function, tuple(client_left)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows aligned in columns, for the `text` of a command."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
