"""Telemetry: starts Sentry for an app, reports errors of any app, and sends what is queued at the stop."""

import logging
import math
import sys
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from booty_runner import hook, hooks
from booty_runner.clients import Options, is_marked, mark, watches
from booty_runner.settings import Refusal, Settings
from booty_runner.transport import Watch, transaction

log = logging.getLogger(__name__)

# At the stop, queued events get this long to be sent. While the drain lasts, each event that the tracker accepts starts
# this time again. A stop may take 2 s beyond the drain; the other 0.5 s are for requests that are cut and for exiting.
FLUSH_SECONDS = 1.5

# The integrations that report errors, by the framework's module. Those of databases, HTTP clients and the like only add
# spans, which the runner's own client does not send.
_REPORTING = frozenset(
    (
        *("aiohttp", "ariadne", "arq", "bottle", "celery", "chalice", "django", "falcon", "fastapi", "flask"),
        *("graphene", "huey", "litestar", "loguru", "pyramid", "quart", "rq", "sanic", "starlette", "starlite"),
        *("strawberry", "tornado"),
    )
)
# A framework that answers an error by itself and does not even log it: without its integration the error is lost.
_SILENT = "litestar"


def start(settings: Settings) -> None:
    """Start Sentry before the app is imported, with the app's own SDK, or else with the runner's private one.

    Integrations of frameworks follow as the app imports these: most of them must patch a framework before the app's
    modules use it, and the SDK's own way would import every framework that is installed.

    Raises:
        Refusal: there is no DSN in production.
    """
    if settings.sentry_dsn is None:
        if settings.is_production:
            raise Refusal(
                f"SENTRY_DSN is not set, and {settings.sentry_environment} does not run without it: write it into"
                " secrets.env, also if the app has a DSN in its code"
            )
        return
    spec = find_spec(hook.SDKS[0])
    sdk = import_module(hook.SDKS[0] if spec and spec.origin else hook.SDKS[1])
    # Django's integration imports modules that need Django's settings. It works after the app's import as well.
    hook.after.update({framework: partial(enable, framework) for framework in _REPORTING - {"django"}})
    sdk.init(dsn=settings.sentry_dsn, environment=settings.sentry_environment, auto_enabling_integrations=False)


def fit(app: Any) -> None:
    """Enable the integrations of the frameworks that the app has imported, as far as they are not enabled."""
    global _framework  # noqa: PLW0603 - a process runs one app
    _framework = type(app).__module__.partition(".")[0]
    for framework in _REPORTING & sys.modules.keys():
        enable(framework)


# The framework of the app that this process runs.
_framework = ""


def enable(framework: str, _: ModuleType | None = None) -> None:
    """Enable an integration in the runner's own client; a client of the app has the integrations that the app chose."""
    client = in_force()
    if client is None or client.options.place or framework in client.integrations:
        return
    integrations = f"{sdk_in_use().__name__}.integrations"
    try:
        members = vars(import_module(f"{integrations}.{framework}")).values()
        classes = [one for one in members if isinstance(one, type)]
        integration: Any = next(one for one in classes if getattr(one, "identifier", None) == framework)
        try:
            # Without tracing a transaction is never sent, yet takes a third of a request's time.
            one = integration(http_methods_to_capture=())
        except TypeError:
            one = integration()
        client.integrations |= import_module(integrations).setup_integrations([one], with_defaults=False)
    except Exception as error:  # the SDK and the framework are any versions, which may not fit together
        log.debug("the integration of %s is not enabled: %r", framework, error)


def framework_flaw() -> str | None:
    """Return why the errors of the app would not be reported although the tracker accepts events, or None."""
    client = in_force()
    if _framework != _SILENT or client is None or _framework in client.integrations:
        return None
    return (
        f"{_framework} answers errors by itself, and Sentry's client has no integration of it, so no error would be"
        " reported: lock sentry-sdk 2.18 or newer"
    )


def sdk_in_use() -> Any:
    """Return the module of the SDK that this process has imported, or None."""
    return next((sys.modules[name] for name in hook.SDKS if f"{name}.client" in sys.modules), None)


def in_force() -> Any:
    """Return the client that reports errors in this context, or None."""
    if (sdk := sdk_in_use()) is None:
        return None
    client = sdk.get_client() if hasattr(sdk, "get_client") else sdk.Hub.current.client
    return client if isinstance(getattr(client, "options", None), Options) else None


def watch() -> Watch | None:
    """Return what watches the transport of the client in force, or None if no errors are reported."""
    return getattr(getattr(in_force(), "transport", None), "booty_watch", None)


def client_in_words() -> str:
    """Return which client is in force, and what of its options is overruled, for a report."""
    client = in_force()
    if client is None or not client.options.place:
        return "the runner's client"
    overruled = (
        f", whose {' and '.join(client.options.overruled)} the runner overrules" if client.options.overruled else ""
    )
    return f"the app's client (made in {client.options.place}{overruled})"


def status() -> dict[str, Any] | None:
    """Return what became of the events of the client in force, and where it was made; None without a client."""
    own = watch()
    return {**own.deliveries.status, "client": client_in_words()} if own else None


def report(error: BaseException, name: str) -> None:
    """Report an error, unless it was reported already.

    Args:
        error: what was raised.
        name: the transaction of the event.
    """
    if (sdk := sdk_in_use()) is None or is_marked(error):
        return
    token = transaction.set(name)
    try:
        sdk.capture_exception(error)
    finally:
        transaction.reset(token)
        mark(error)


def stop() -> None:
    """Send the queued events and unbind the client from the process. Blocks the event loop; uses no thread.

    The wait lasts `FLUSH_SECONDS`. It goes on until the end of the drain while the tracker accepts events. It never
    lasts longer than `FLUSH_SECONDS` after the drain.
    """
    sdk, client = sdk_in_use(), in_force()
    if sdk is None or client is None:
        return
    with suppress(Exception):  # an SDK's own defect must not keep the process from its end
        client.flush(timeout=0)  # logs and metrics join the queue
        _finish(hooks.drain_ends)
        own = watch()
        client.close(timeout=0 if own and own.traceable else FLUSH_SECONDS)
        if hasattr(sdk, "get_global_scope"):
            sdk.get_global_scope().set_client(None)
        else:
            sdk.Hub.main.bind_client(None)


def _finish(by: float) -> None:
    """Wait until the queues of all transports are empty, or the time is up; see `stop`."""

    def accepted() -> int:
        return sum(one.accepted for one in watches)

    accepted_before, deadline = accepted(), min(time.monotonic(), by or math.inf) + FLUSH_SECONDS
    while any(one.waiting for one in watches) and time.monotonic() < deadline:
        time.sleep(0.01)
        if accepted() > accepted_before:
            accepted_before, deadline = accepted(), max(deadline, min(by, time.monotonic() + FLUSH_SECONDS))
