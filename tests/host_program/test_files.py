"""Files are written whole, and read as they are."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from booty_host import files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SENTRY_RELEASE=abc\nBOOTY_RELEASE_DIR=/x\n", {"SENTRY_RELEASE": "abc", "BOOTY_RELEASE_DIR": "/x"}),
        ("# A=1\n; B=2\n\nno assignment\nC=3=4\n", {"C": "3=4"}),
        ("MainPID=12\nResult=\n", {"MainPID": "12", "Result": ""}),
        # An app writes its own status.
        *[
            (
                f"MainPID=12\nStatusText=serving{end}MainPID=1\n",
                {"MainPID": "12", "StatusText": f"serving{end}MainPID=1"},
            )
            for end in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
        ],
        ("", {}),
    ],
)
def test_parse_assignments(text: str, expected: dict[str, str]) -> None:
    assert files.parse_assignments(text) == expected


AWKWARD = {
    "BARE": "a/b:c@d%e+f=g,h.i-j_k", "EMPTY": "", "BLANKS": "  two  words ", "SINGLE": "it's", "QUOTED": "'a' \"b\" '",
    "DOUBLE": 'say "hi"', "BACKSLASH": r"C:\new\table\ ", "DOLLAR": "$HOME ${X} $(reboot) `id`", "COMMENT": "a # b; c",
    "UNICODE": "Grüße, 日本 🎉", "PERCENT": "100% %h", "EQUALS": "a=b=c", "NUMBER": "007", "TILDE": "~/x",
    "GLOB": "*?[a]", "JSON": '{"a": ["b", 1]}', "BANG": "!x", "END": "\\", "QUOTES": "''", "MIXED": "'\"'\"'",
    "TAB": "a\tb\t", "JOINED": "👩\u200d🚒\u00a0x\u00a0",
}  # fmt: skip


def test_parse_pointer_reads_what_was_quoted() -> None:
    text = "# a comment\n" + "".join(f"{name}={shlex.quote(value)}\n" for name, value in AWKWARD.items())
    assert files.parse_pointer(text) == AWKWARD


def test_settle_reads_the_same(tmp_path: Path) -> None:
    """The script compares release.env with a process; a shell and its own sed read the values."""
    script = (files_of_program() / "settle.sh").read_text()
    function = script[script.index("serves_pointer() {") : script.index("# Whether a process is alive and belongs")]
    (tmp_path / "release.env").write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in AWKWARD.items()))
    function = function.replace("/etc/$app/", f"{tmp_path}/")

    def serves(environment: dict[str, str]) -> bool:
        command = ["/bin/sh", "-c", f"{function}\nserves_pointer $$"]
        done = subprocess.run(command, env={**environment, "PATH": os.environ["PATH"]}, check=False)
        return done.returncode == 0

    assert serves(AWKWARD)
    for name, value in AWKWARD.items():
        assert not serves({**AWKWARD, name: f"{value}x"}), name
    (tmp_path / "release.env").unlink()
    assert not serves(AWKWARD)


def files_of_program() -> Path:
    return Path(str(files.__file__)).parent


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
