"""Responses through the proxy of the host: a stream is passed on as it comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from booty_runner.proxies import Proxied


def start_of(headers: list[tuple[bytes, bytes]], always: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers that a response starts with."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Proxied(app, [], always)({"type": "http", "client": None, "headers": []}, None, send))
    return list(sent[0]["headers"])


@pytest.mark.parametrize(
    ("headers", "always", "added"),
    [
        ([(b"Content-Type", b"text/event-stream")], True, [(b"x-accel-buffering", b"no")]),
        ([(b"Content-Length", b"3")], True, []),
        ([(b"X-Accel-Buffering", b"yes")], True, []),
        ([(b"content-type", b"text/event-stream")], False, []),
    ],
)
def test_a_stream_is_not_kept_back(headers: Any, always: bool, added: Any) -> None:
    assert start_of(headers, always) == [*headers, *added]
