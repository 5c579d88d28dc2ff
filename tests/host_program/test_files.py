"""Files are written whole, and read as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from booty_host import files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SENTRY_RELEASE=abc\nBOOTY_RELEASE_DIR=/x\n", {"SENTRY_RELEASE": "abc", "BOOTY_RELEASE_DIR": "/x"}),
        ("# A=1\n; B=2\n\nno assignment\nC=3=4\n", {"C": "3=4"}),
        ("MainPID=12\nResult=\n", {"MainPID": "12", "Result": ""}),
        ("", {}),
    ],
)
def test_parse_assignments(text: str, expected: dict[str, str]) -> None:
    assert files.parse_assignments(text) == expected


def test_write_atomically_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "release.env"
    for text in ("one\n", "two\n"):
        files.write_atomically(path, text)
        assert path.read_text() == text
        assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "release.env"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
