"""Set up the clients of a Sentry SDK: with the release's labels, the runner's defaults, and a watched transport.

Each client of an SDK, by whatever call it is made, calls `get_options` and `make_transport` of `sentry_sdk.client`: in
0.20 as in 2.75. Both functions are replaced when that module has been imported; see `hook`.
"""

import logging
import os
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

from booty_runner.settings import Refusal, current, labels
from booty_runner.transport import Watch

log = logging.getLogger("booty_runner.telemetry")

# The options of a client that the app does not set. Each SDK has only some of them.
_DEFAULTS: dict[str, Any] = {
    # Not sent, because they may contain secrets: local variables, bodies. Trace headers would send the DSN's public key
    # to every host that the service calls.
    "include_local_variables": False,
    "with_locals": False,
    "max_request_body_size": "never",
    "request_bodies": "never",
    "trace_propagation_targets": [],
    # The SDK reads the whole file of each frame, which takes milliseconds; events.py uses a cache.
    "include_source_context": False,
    "auto_session_tracking": False,
    "spotlight": False,
}
# With these options, an app asks for what _DEFAULTS leaves out.
_BODIES = ("max_request_body_size", "request_bodies", "data_collection")
_TRACING = ("traces_sample_rate", "traces_sampler", "enable_tracing")
# Keep the chained causes in the journal's traceback. Compression level 9 takes ten times the CPU of level 3 and saves a
# tenth of the size.
_EXPERIMENTS = {"suppress_asgi_chained_exceptions": False, "transport_compression_level": 3}
# uvicorn logs each unhandled error again; the SDK would build a second event only to drop it. The supervisor of workers
# must send nothing: it forks, so it must not have the SDK's thread.
_IGNORED_LOGGERS = ("uvicorn.error", "booty", "booty_runner.workers")
# These transports are not used: the delivery of their events can't be seen.
_OTHER_TRANSPORTS = ("transport_async", "transport_http2")


class Options(dict[str, Any]):
    """A client's options, with what is known of the client.

    Attributes:
        place: where the client was made: a file and a line, or "the runner".
        overruled: the names of the options that the app sets and the runner overrules.
        own_dsn: whether the DSN is the app's, and not that of SENTRY_DSN.
        bodies: whether the app asks for the bodies of requests.
        before_send: the app's own function.
    """

    place = ""
    overruled: tuple[str, ...] = ()
    own_dsn = False
    bodies = False
    before_send: Callable[..., Any] | None = None


watches: WeakSet[Watch] = WeakSet()


def cover(client: ModuleType) -> None:
    """Replace the functions of a `sentry_sdk.client` by which clients are made.

    Raises:
        Refusal: the SDK is older than all that are supported.
    """
    if not hasattr(client, "get_options") or not hasattr(client, "make_transport"):
        raise Refusal(
            "the app's sentry-sdk is not supported: write sentry-sdk>=0.20 into the dependencies and lock them"
        )
    sdk = client.__name__.rpartition(".")[0]
    known = client.DEFAULT_OPTIONS.keys()
    client.get_options = partial(_get_options, sdk, known, client.get_options)  # type: ignore[attr-defined]
    client.make_transport = partial(_make_transport, sdk, client.make_transport)  # type: ignore[attr-defined]


def _get_options(sdk: str, known: Any, original: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> Options:
    """Return the options of a client that is made with these arguments; the first one may be the DSN, or a dict."""
    given: dict[str, Any] = {}
    for argument in args:
        given |= argument if isinstance(argument, dict) else {"dsn": argument}
    given |= {name: value for name, value in kwargs.items() if name != "dsn" or value}
    our_dsn = os.environ.get("SENTRY_DSN", "").strip()
    experiments = given.get("_experiments") or {}
    ours = {
        # Without a release, the SDK guesses one from git or CI variables. clean() removes the empty one.
        "release": given.get("release") or "",
        "dsn": given.get("dsn") or our_dsn or None,
        "_experiments": {**_EXPERIMENTS, **experiments, **dict.fromkeys(_OTHER_TRANSPORTS, False)},
        **labels(),
    }
    defaults = {name: value for name, value in _defaults(sdk, given).items() if name in known}
    options = Options(original(**{**defaults, **given, **ours}))
    options.overruled = (
        *(name for name, label in labels().items() if given.get(name) not in {None, label}),
        *(name for name in _OTHER_TRANSPORTS if experiments.get(name)),
    )
    options.own_dsn = options["dsn"] not in {None, our_dsn}
    options.bodies = any(given.get(name) for name in _BODIES)
    options.before_send = options["before_send"]
    options["before_send"] = partial(_before_send, options.before_send)
    options.place = _caller()
    for logger in _IGNORED_LOGGERS:
        import_module(f"{sdk}.integrations.logging").ignore_logger(logger)
    return options


def _defaults(sdk: str, given: dict[str, Any]) -> dict[str, Any]:
    defaults = {**_DEFAULTS, "ca_certs": _ca_certs(), "environment": current().sentry_environment}
    if given.get("data_collection"):
        return defaults  # the SDK then takes no scrubber
    if any(given.get(name) is not None for name in _TRACING):
        del defaults["trace_propagation_targets"]
    with suppress(ImportError, TypeError):  # older than 1.13, or than 1.35
        defaults["event_scrubber"] = import_module(f"{sdk}.scrubber").EventScrubber(recursive=True)
    return defaults


def _ca_certs() -> str | None:
    """Return a file of the CAs that the host trusts, or that a variable names; the SDK's own default is certifi's."""
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    return named or ssl.get_default_verify_paths().cafile


def _caller() -> str:
    """Return the file and line that makes the client, relative to the working directory, or "" for the runner."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in {"sentry_sdk", "booty_runner"}:
        if frame.f_globals["__name__"] == "booty_runner.telemetry" or not frame.f_back:
            return ""
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{frame.f_lineno}"


def _before_send(own: Callable[..., Any] | None, event: Any, hint: Any) -> Any:
    """Mark the error as reported, and call the app's own function."""
    if exc_info := hint.get("exc_info"):
        mark(exc_info[1])
    return own(event, hint) if own else event


def mark(error: BaseException) -> None:
    """Note that an error was reported."""
    with suppress(AttributeError, TypeError):  # a few kinds of exceptions take no attribute
        error.__booty_reported__ = True  # type: ignore[attr-defined]


def is_marked(error: BaseException) -> bool:
    """Whether an error was reported."""
    return hasattr(error, "__booty_reported__")


def _make_transport(sdk: str, original: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return the transport of a client that is made with these options, watched."""
    try:
        transport = original(options)
    except ValueError as error:
        variables = [name for name in ("HTTPS_PROXY", "HTTP_PROXY") if {name, name.lower()} & os.environ.keys()]
        if not variables:
            raise
        log.error("refusing to serve: %s must be a URL: http://HOST:PORT", variables[0])
        raise SystemExit(1) from error
    if transport is not None and not hasattr(transport, "booty_watch"):
        kept = options if isinstance(options, Options) else Options(options)
        watches.add(Watch(transport, sdk, "the app's own DSN" if kept.own_dsn else "SENTRY_DSN", kept.bodies))
    return transport
