"""Serves an ASGI app on the sockets that systemd passes: `python -m booty_runner MODULE:ATTRIBUTE`.

An app needs nothing of this package. What it may use are the names below, `telemetry.options` and `telemetry.stop`,
`verify.verify`, `verify.directory_flaw` and `target.label_flaw`, `redact.of_environment` and `deadline.end_in`.
"""

from booty_runner.hooks import (
    CommandError,
    Drain,
    add_check,
    add_command,
    add_status,
    name_requests,
    on_drain,
    on_ready,
    table,
)

__version__ = "0.1.0"

__all__ = [
    "CommandError",
    "Drain",
    "add_check",
    "add_command",
    "add_status",
    "name_requests",
    "on_drain",
    "on_ready",
    "table",
]
