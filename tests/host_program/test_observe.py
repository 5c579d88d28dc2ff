"""The answers of a service on its internal socket: the app runs in the same process, and can answer anything."""

from __future__ import annotations

from typing import Any

import pytest
from booty_host import observe, status
from booty_host.app import App


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"telemetry": None}, None),
        ({"telemetry": {"status": 200, "since": "2026-11-28T10:00:00+00:00", "dropped": 0}}, 200),
        ({"telemetry": {"status": None}}, None),
        ({"telemetry": {"status": [1]}}, "the service gives no status: status is [1]"),
        ({"telemetry": {"status": 200, "since": {}}}, "the service gives no status: since is {}"),
        ({"telemetry": {"status": 200, "dropped": "x"}}, "the service gives no status: dropped is 'x'"),
        ({"telemetry": {"status": 10**4000}}, "the service gives no status: status is 1000"),
        ({"telemetry": "x"}, "the service gives no status: 'str' object has no attribute 'get'"),
        ({}, "the service gives no status: 'telemetry'"),
    ],
)
def test_a_status_of_another_form_is_no_status(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], reason: str | int | None
) -> None:
    monkeypatch.setattr(status, "ask_internal", lambda *_: answer)
    found = status.tracker(App())
    said = found and found["status"]
    assert str(said).startswith(str(reason))


@pytest.mark.parametrize("number", [None, 0, 5, 0.5])
def test_numbers_of_the_runner(number: float | None) -> None:
    assert observe.values({"requests": number}, "requests", "lost", lost=0) == {"requests": number, "lost": 0}


@pytest.mark.parametrize("number", ["5", [5], {}, -1, 2**63, float("nan"), float("inf")])
def test_a_number_of_another_form_is_refused(number: Any) -> None:
    with pytest.raises(TypeError, match="requests is"):
        observe.values({"requests": number}, "requests")
