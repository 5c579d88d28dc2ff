"""Serves an app on the sockets that systemd passes: `python -m booty_runner MODULE:ATTRIBUTE`.

An app does not need to import this package. It may use the names below, `verify.verify`, `verify.directory_flaw`,
`target.label_flaw`, `redact.of_environment` and `deadline.end_in`.
"""

TYPE_CHECKING = False  # typing's own would be an import, which costs more than all of `booty_runner.hook`
if TYPE_CHECKING:
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


def __getattr__(name: str) -> object:
    """Import the hooks when one is used: `booty_runner.hook` must not wait for asyncio."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from booty_runner import hooks  # noqa: PLC0415 - slow

    return getattr(hooks, name)
