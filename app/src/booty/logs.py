"""Logging: one line an event on stderr, fit for whoever reads it."""

import json
import logging
import os
import sys
from typing import Literal

# sd-daemon(3): a leading <N> gives the line its syslog priority in the journal.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _TextFormatter(logging.Formatter):
    """For a terminal: with a time, and a traceback below the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; `time` is in seconds since the epoch."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


class _JournalFormatter(logging.Formatter):
    """For the journal, which knows the time itself: a priority, and everything in one line."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        text = " | ".join(self._inner.format(record).splitlines())
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}"


def configure(log_format: Literal["text", "json"] = "text", level: str = "info") -> None:
    """Send all logging to stderr as text or JSON, in the journal's form if stderr is the journal."""
    journal = _is_journal()
    formatter: logging.Formatter
    if log_format == "json":
        formatter = _JsonFormatter()
    elif journal:
        formatter = logging.Formatter("%(name)s: %(message)s")
    else:
        formatter = _TextFormatter()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter(formatter) if journal else formatter)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)


def _is_journal() -> bool:
    """Whether stderr is the stream that systemd connected to the journal; the check is systemd.exec(5)'s."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # stderr is closed or not a file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
