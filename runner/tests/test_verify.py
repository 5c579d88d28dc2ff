"""The faults that the verifier reports."""

import asyncio

import pytest

from booty_runner import hooks, target, verify
from booty_runner.settings import current


def flaws(**settings):
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name.upper(), str(value))
        current.cache_clear()
        report = asyncio.run(verify.verify())
    assert report.json["ok"] == (report.flaw is None)
    return {check.name: check.detail for check in report.checks if not check.ok}


def test_all_is_well(tmp_path):
    assert flaws(state_directory=tmp_path) == {}


def test_nothing_is_needed_in_development():
    assert flaws() == {}


def test_a_state_directory_that_is_not_there(tmp_path):
    missing = tmp_path / "missing"
    reported = flaws(state_directory=missing)
    assert reported["state"] == f"{missing} is not writable: No such file or directory"
    assert reported["disk"] == f"{missing} can't be read: No such file or directory"
    assert len(reported) == 2


def test_the_checks_of_an_app_come_last(monkeypatch):
    async def stock():
        return "sold out", ""

    monkeypatch.setitem(hooks.checks, "stock", stock)
    assert flaws() == {"stock": "sold out"}


def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "LOW_DISK_BYTES", 2**60)
    assert f"{tmp_path} has only " in flaws(state_directory=tmp_path)["disk"]


def test_code_that_is_not_what_the_label_says(tmp_path, monkeypatch):
    code = tmp_path / "shop" / "releases" / "abc" / "shop.py"
    code.parent.mkdir(parents=True)
    code.touch()
    monkeypatch.setattr(target, "code", code)
    pointer = tmp_path / "shop" / "release.env"
    monkeypatch.setattr(verify, "ETC", tmp_path)
    settings = {"sentry_release": "abc", "booty_release_dir": code.parent}
    assert flaws(**settings) == {}
    pointer.write_text("SENTRY_RELEASE=abc\n")
    assert flaws(**settings) == {}
    pointer.write_text("SENTRY_RELEASE=def\n")
    assert flaws(**settings) == {"release": f"abc runs, and {pointer} names def"}
    assert flaws(**settings, booty_candidate="true") == {}  # the service runs another release
    code.unlink()
    assert flaws(**settings) == {"release": f"the running code is gone from {code.parent}"}


@pytest.mark.parametrize(("seconds", "words"), [(-3600, "ahead of the tracker's"), (3600, "behind the tracker's")])
def test_a_candidate_refuses_to_start_with_a_clock_that_is_off(start, tcp, tmp_path, tracker, seconds, words):
    tracker.clock = seconds
    settings = {"SENTRY_DSN": tracker.dsn, "STATE_DIRECTORY": str(tmp_path), "BOOTY_TELEMETRY_GATE": "true"}
    service = start(sockets=[tcp], BOOTY_CANDIDATE="true", **settings)
    status, journal = service.wait()
    assert status == 1
    assert "refusing to serve: clock: it is 36" in journal or "refusing to serve: clock: it is 35" in journal
    assert words in journal
