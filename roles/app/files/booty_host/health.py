"""Ask a service `GET /health`."""

from __future__ import annotations

import json
from typing import Any

from booty_host.app import App
from booty_host.files import read
from booty_host.sockets import parse_stream


def ask(address: str, port: int, timeout: float = 5.0) -> dict[str, Any]:
    """Ask `GET /health` on the socket unit's `address` and `port`.

    Args:
        address: a wildcard stands for the loopback.
        port: the socket's.
        timeout: in seconds.

    Returns:
        the HTTP `status` (0 without an answer) and the answer's own fields; `reason` says what went wrong.
    """
    # Loading it takes a third of this program's time to load, and many calls ask no service.
    import http.client  # noqa: PLC0415

    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    connection = http.client.HTTPConnection(reachable, port, timeout=timeout)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return {"status": 0, "reason": f"no answer on {address}:{port}: {error or type(error).__name__}"}
    finally:
        connection.close()
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        fields = {"reason": f"status {response.status}, but the answer is not a JSON object"}
    return {**fields, "status": response.status}


def ask_installed(app: App) -> dict[str, Any]:
    """Ask `GET /health` where the installed socket unit listens; the answer is that of `ask`."""
    path = app.unit_files / app.socket
    try:
        address = parse_stream(read(path))
    except ValueError as error:
        return {"status": 0, "reason": f"{path}: {error}"}
    return ask(*address)
