"""The hooks: what an app may give to the runner. All are optional; an app registers them in its lifespan."""

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
        by: when it is over at the latest, on the monotonic clock.
        cut: is set when the drain is cut short.
    """

    by: float
    cut: asyncio.Event


class CommandError(Exception):
    """A command refuses; `serve NAME` prints the message and ends with status 1."""


def _no_route(_: Scope) -> str | None:
    return None


ready: list[Callable[[dict[str, Any]], object]] = []
drain: list[Callable[[Drain], Awaitable[object]]] = []
checks: dict[str, Check] = {}
status: dict[str, Callable[[], Awaitable[Any]]] = {}
commands: dict[str, Command] = {}
route: Callable[[Scope], str | None] = _no_route
departures: tuple[type[Exception], ...] = ()
# Whether this process is the service; a candidate is not, until it takes the service's place.
live = False
# When the drain is over at the latest, on the monotonic clock; 0 where none has begun.
drain_ends = 0.0


def on_ready(function: Callable[[dict[str, Any]], object]) -> None:
    """Call a function once this process is the service, with the state that the lifespan gave to the requests.

    In a candidate that is when it takes the service's place.
    """
    ready.append(function)


def on_drain(function: Callable[[Drain], Awaitable[object]]) -> None:
    """Call an async function when the drain begins, and wait for its end beside the requests in flight.

    The lifespan's shutdown follows when the function and the requests have ended.
    """
    drain.append(function)


def add_check(name: str, function: Check) -> None:
    """Add a check to those of `serve verify`, which a candidate must pass before it is ready.

    Args:
        name: how reports name it.
        function: returns what is wrong, or None, and what is well.
    """
    checks[name] = function


def add_status(name: str, function: Callable[[], Awaitable[Any]]) -> None:
    """Add a member, whose value JSON can hold, to what the internal socket answers at `/status`."""
    status[name] = function


def add_command(name: str, function: Command) -> None:
    """Add a command: `serve NAME --OPTION VALUE` calls the function in the running service, with `OPTION=VALUE`.

    Args:
        name: of the command.
        function: takes options as keyword arguments, all texts, and returns what `--json` prints. A member `text` of
            it is printed without `--json`, and a member `ok` that is False makes the exit status 1. May raise
            CommandError.
    """
    commands[name] = function


def name_requests(function: Callable[[Scope], str | None], client_left: Sequence[type[Exception]] = ()) -> None:
    """Name requests in log lines and events.

    Args:
        function: returns the route that a request's ASGI scope leads to, with its parameters' names and not their
            values, or None.
        client_left: exceptions with which the app ends when a client leaves within its request: no errors.
    """
    global route, departures
    route, departures = function, tuple(client_left)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as the text of a command: in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
