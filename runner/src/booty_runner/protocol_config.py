"""The parts of uvicorn's Config and ServerState that its protocols read; `_vendor` has only the protocols."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

TRACE_LOG_LEVEL = 5


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a listener; the names, and the defaults below `loaded`, are uvicorn's."""

    loaded_app: Any
    timeout_keep_alive: float  # seconds
    access_log: bool = False  # a line for each request (`access`); the name is uvicorn's
    counted: bool = True  # whether the requests are those of the app's clients
    ws_protocol_class: type[asyncio.Protocol] | None = None
    loaded: bool = True
    root_path: str = ""
    asgi_version: str = "3.0"
    limit_concurrency: int | None = None
    reset_contextvars: bool = False
    ws_max_size: int = 16 * 1024 * 1024  # bytes
    ws_ping_interval: float | None = 20.0  # seconds
    ws_ping_timeout: float | None = 20.0  # seconds
    ws_per_message_deflate: bool = True


@dataclass
class ServerState:
    """State that all connections share."""

    total_requests: int = 0
    connections: set[Any] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    default_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
