"""Logging: one line per event on stderr, as text or JSON, for a terminal or the journal, without secrets."""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Literal

from booty_runner import redact
from booty_runner.redact import Redactor

# The id of the request that is being answered. Log lines and events of that request carry it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# sd-daemon(3): a leading <N> gives the line its syslog priority in the journal.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

# The runner's handler, and the loggers that need it: the runner's, and uvicorn's.
_handlers: list[logging.Handler] = []
_OURS = re.compile(r"booty(_runner)?(\.|$)|uvicorn\.error$")


class _TextFormatter(logging.Formatter):
    """A line, with a traceback below it. On a terminal it starts with the time; the journal records that itself."""

    def __init__(self, redactor: Redactor, time: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s" if time else "%(name)s: %(message)s")
        self._redactor = redactor

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line above the traceback."""
        request = request_id.get()
        return super().formatMessage(record) + (f" (request {request})" if request else "")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line and its traceback."""
        return self._redactor.text(super().format(record))


class _JsonFormatter(logging.Formatter):
    """One JSON object per line; `time` is in seconds since the epoch."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object."""
        event: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := request_id.get():
            event["request_id"] = request
        event |= getattr(record, "fields", {})  # of the access log
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: self._redactor.value(value) for name, value in event.items()}, ensure_ascii=False)


class _JournalFormatter(logging.Formatter):
    """For the journal: a priority, and the whole text of another formatter in one line."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = " | ".join(self._inner.format(record).splitlines())
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # not generic at run time in Python 3.11
    def handleError(self, record: logging.LogRecord) -> None:
        """Report a line that can't be written by its place in the code: logging's own report shows its arguments."""
        error, place = sys.exc_info()[0], f"{record.pathname}:{record.lineno}"
        print(f"booty_runner.logs: no line from {place}: {error.__name__ if error else ''}", file=sys.stderr)


def configure(log_format: Literal["text", "json"] = "text", level: str = "info") -> None:
    """Send all logging to stderr as text or JSON, with the journal's priorities if stderr is the journal.

    Also log Python's warnings, and errors that end a thread. Redact the secrets that the environment holds now.
    """
    journal, redactor = _is_journal(), redact.of_environment()
    formatter = _JsonFormatter(redactor) if log_format == "json" else _TextFormatter(redactor, time=not journal)
    handler = _Handler(sys.stderr)
    handler.setFormatter(_JournalFormatter(formatter) if journal else formatter)
    _handlers[:] = [handler]
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_error


def write(name: str, line: str, fields: Mapping[str, object]) -> None:
    """Write a line at the level info, with fields for JSON, straight to the handler.

    That takes half as long as a logger, which looks for its caller and its parents' handlers, and Sentry does not keep
    the line for its next event.
    """
    record = logging.makeLogRecord(
        {"name": name, "levelno": logging.INFO, "levelname": "INFO", "msg": line, "fields": fields}
    )
    for handler in _handlers:
        handler.handle(record)


def keep() -> None:
    """Give the runner's loggers their handler again, if the app's own configuration of logging has taken it away."""
    for name in [name for name in logging.root.manager.loggerDict if _OURS.match(name)]:
        logging.getLogger(name).disabled = False
    if not set(_handlers) <= set(logging.root.handlers):
        for logger in map(logging.getLogger, ("booty", "booty_runner", "uvicorn.error")):
            logger.handlers, logger.propagate = [*_handlers], False


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value:
        name = args.thread.name if args.thread else "(unknown)"
        logging.getLogger("threading").error("the thread %s failed", name, exc_info=args.exc_value)


def _is_journal() -> bool:
    """Whether stderr is the stream that systemd connected to the journal; the check is systemd.exec(5)'s."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # stderr is closed or not a file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
