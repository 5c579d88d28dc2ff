"""Serves an ASGI app on the sockets that systemd passes: `python -m booty_runner MODULE:ATTRIBUTE`.

An app does not need to import this package. It may use the names below, `telemetry.options`, `telemetry.stop`,
`verify.verify`, `verify.directory_flaw`, `target.label_flaw`, `redact.of_environment` and `deadline.end_in`.
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
