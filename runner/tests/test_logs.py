import json
import logging
import os
import re
import threading

import pytest

from booty_runner import logs


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Log a warning and an error with a traceback to a file, and return its text."""
    root, path = logging.getLogger(), tmp_path / "stderr"
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("threading.excepthook", threading.excepthook)

    def record(log_format, journal):
        with path.open("w") as stderr:
            if journal:
                stat = os.fstat(stderr.fileno())
                monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
            monkeypatch.setattr("sys.stderr", stderr)
            root.handlers.clear()
            logs.configure(log_format, "info")
            logging.getLogger("shop").debug("unseen")
            logging.getLogger("shop").warning("stock is %s", "low")
            try:
                raise KeyError("till")
            except KeyError:
                logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
        return path.read_text().splitlines()

    yield record
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_terminal(record):
    warning, error, *traceback = record("text", journal=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ WARNING shop: stock is low", warning)
    assert error.endswith("ERROR   uvicorn.error: Exception in ASGI application")
    assert traceback[-1] == "KeyError: 'till'"


def test_journal_has_a_priority_and_one_line_an_event(record):
    warning, error = record("text", journal=True)
    assert warning == "<4>shop: stock is low"
    assert error.startswith("<3>uvicorn.error: Exception in ASGI application | Traceback")
    assert error.endswith("| KeyError: 'till'")


def test_json(record):
    warning, error = map(json.loads, record("json", journal=False))
    assert warning.pop("time") > 1_700_000_000
    assert warning == {"level": "warning", "logger": "shop", "message": "stock is low"}
    assert error["exception"].splitlines()[-1] == "KeyError: 'till'"


def test_json_in_the_journal(record):
    lines = record("json", journal=True)
    assert [line[:3] for line in lines] == ["<4>", "<3>"]
    assert json.loads(lines[0][3:])["message"] == "stock is low"


def test_journal_stream_of_somebody_else_is_not_ours(record, monkeypatch):
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not record("text", journal=False)[0].startswith("<")
