"""Faults of secrets.env are found and named, and no value of it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from booty_host import secrets
from booty_host.app import App

DSN = "https://0123456789abcdef@sentry.internal/42"
PLANTED = "hunter2hunter2"


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App("shop", tmp_path)
    app.etc.mkdir(parents=True)
    return app


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"SENTRY_DSN={DSN}\n", None),
        (f"# a comment\n\nOTHER={PLANTED}\nSENTRY_DSN='{DSN}'\n", None),
        (f'SENTRY_DSN="{DSN}"', None),
        (f"SENTRY_DSN={DSN} \n", None),
        ("SENTRY_DSN=http://0a1b@10.0.0.1:8000/1", None),
        ("SENTRY_DSN=https://0a1b:secret@10.0.0.1/a/path/1", None),
        (f"SENTRY_DSN={DSN}\nPEM='-----BEGIN-----\nQUJD=\n-----END-----'\n", None),
        (f'SENTRY_DSN={DSN}\nJSON="{{\\"a\\": 1}}"\n', None),
        (f"SENTRY_DSN={DSN}\nOTHER='{PLANTED}\\'\n", None),
        (f"SENTRY_DSN={DSN}\nEMPTY=\n", None),
        ("", "it is empty"),
        (" \n\n", "it is empty"),
        (f"\ufeffSENTRY_DSN={DSN}\n", "byte order mark"),
        (f"SENTRY_DSN={DSN}\r\n", "Windows line ends (CRLF)"),
        (f"SENTRY_DSN={DSN}\0\n", "a NUL byte"),
        ("# nothing yet\n", "SENTRY_DSN is not set"),
        ("SENTRY_DSN=\n", "SENTRY_DSN is not set"),
        ("SENTRY_DSN=''\n", "SENTRY_DSN is not set"),
        (f"#SENTRY_DSN={DSN}\n", "SENTRY_DSN is not set"),
        (f"OTHER={PLANTED}\n", "SENTRY_DSN is not set"),
        (f"{PLANTED}\nSENTRY_DSN={DSN}\n", "line 1 is not NAME=value"),
        (f"2ND={PLANTED}\nSENTRY_DSN={DSN}\n", "line 1 is not NAME=value"),
        (f"export SENTRY_DSN={DSN}\n", "line 1 begins with export"),
        (f"SENTRY_DSN = {DSN}\n", "line 1 has blanks around its ="),
        (f"SENTRY_DSN= {DSN}\n", "line 1 has blanks around its ="),
        (f"SENTRY_DSN ={DSN}\n", "line 1 has blanks around its ="),
        (f"SENTRY_DSN='{DSN}\n", "line 1 has an unbalanced quote"),
        (f"SENTRY_DSN={DSN}'\n", "line 1 has an unbalanced quote"),
        (f"OTHER='{PLANTED}\nSENTRY_DSN='{DSN}'\n", "line 1 has an unbalanced quote"),
        (f"SENTRY_DSN={DSN}\nOTHER='{PLANTED}'s'\n", "line 2 goes on after its closing quote"),
        (f"SENTRY_DSN={DSN}\nPEM='-----BEGIN-----\nQUJD=\n-----END-----'\nA=b c\nA=\n", "lines 5 and 6"),
        (f'SENTRY_DSN={DSN}\nOTHER="{PLANTED}\\"\n', "line 2 has an unbalanced quote"),
        ("SENTRY_DSN='\n", "line 1 has an unbalanced quote"),
        (f"SENTRY_DSN='{DSN}' # ours\n", "line 1 goes on after its closing quote"),
        (f"SENTRY_DSN={DSN}\nOTHER=a\\{PLANTED}\n", "line 2 has a backslash"),
        (f"SENTRY_DSN={DSN}\nSENTRY_DSN={DSN}\n", "lines 1 and 2 set the same name"),
        (f"SENTRY_DSN={DSN}\nA={PLANTED}\n\nA=\n", "lines 2 and 4 set the same name"),
        (f"SENTRY_DSN={DSN}\nSENTRY_RELEASE={PLANTED}\n", "line 2 sets SENTRY_RELEASE, which is release.env's to say"),
        (f"SENTRY_ENVIRONMENT=x\nSENTRY_DSN={DSN}\n", "line 1 sets SENTRY_ENVIRONMENT"),
        (f"SENTRY_DSN={DSN}\nBOOTY_RELEASE_DIR=/x\n", "line 2 sets BOOTY_RELEASE_DIR"),
        (f"SENTRY_DSN={PLANTED}", "does not begin with http"),
        ("SENTRY_DSN=https://sentry.internal/42", "has no public key"),
        ("SENTRY_DSN=https://0a1b@/42", "has no usable host"),
        ("SENTRY_DSN=https://0a1b@sentry internal/42", "has no usable host"),
        ("SENTRY_DSN=https://0a1b@[2001:db8::1]/42", "an IPv6 address"),
        ("SENTRY_DSN=https://0a1b@sentry.internal/", "has no project id"),
        ("SENTRY_DSN=https://0a1b@sentry.internal", "has no project id"),
        ("SENTRY_DSN=https://0a1b@sentry.internal/project", "project id that is not a number"),
        ("SENTRY_DSN=https://0a1b@[sentry/42", "is not a URL"),
        ("SENTRY_DSN=https://0a1b@sentry.internal:port/42", "is not a URL"),
        ("SENTRY_DSN=CHANGEME", "is a placeholder"),
        ("SENTRY_DSN=<your DSN>", "is a placeholder"),
        ("SENTRY_DSN=https://public@example.com/1", "is a placeholder"),
        ("SENTRY_DSN=https://0a1b@sentry.example.com/1", "is a placeholder"),
        ("SENTRY_DSN=https://examplePublicKey@o0.ingest.sentry.io/0", "is a placeholder"),
        ("SENTRY_DSN=https://your-key@sentry.internal/1", "is a placeholder"),
        ("SENTRY_DSN=https://xxxxxxxx@sentry.internal/1", "is a placeholder"),
        ("SENTRY_DSN={{ sentry_dsn }}", "is a placeholder"),
    ],
)
def test_judge_content(text: str, fault: str | None) -> None:
    _, found = secrets.judge_content(text.encode())
    if fault is None:
        assert found is None
    else:
        assert found is not None
        assert fault in found
        assert PLANTED not in found
        assert "0a1b" not in found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # systemd reads these as they are written
        (f"A=b#{PLANTED};c\nB='c # d'\nC=\"e ; f\"\nD=#g\nPEM='a\nb # c\n'\n", None),
        ("A=b\tc\nLD_SDK_KEY=x\nPYTHONWARNINGS=error\nPORTAL=1\n", None),
        (f"A={'x' * 131_069}\n", None),
        (f"SENTRY_RELEASE={PLANTED}\nBOOTY_QUEUE_JOBS=1\n", None),
        ("", None),
        # and these not
        (f"A=1\nB={PLANTED} # ours\n", "line 2 has a comment after its value"),
        (f"B={PLANTED}\t#\n", "line 1 has a comment after its value"),
        (f"B={PLANTED} ; ours\n", "line 1 has a comment after its value"),
        (f"# ours \\\nB={PLANTED}\n", "line 1 is a comment that ends with a backslash"),
        (f"A=\x1b[200~{PLANTED}\n", "line 1 holds a control character"),
        (f"A='\n{PLANTED}\x7f\n'\n", "line 1 holds a control character"),
        (f"A={'x' * 131_070}\n", "line 1 has 131,072 bytes, and Linux takes 131,071"),
        (f"A='{'ü' * 65_535}'\n", "line 1 has 131,072 bytes"),
        ("".join(f"A{number}={'x' * 130_000}\n" for number in range(16)), "its values have 2,080,"),
        (
            "BOOTY_DRAIN_SECONDS=300\n",
            "line 1 sets BOOTY_DRAIN_SECONDS, which the unit sets: remove it, and set app_drain",
        ),
        ("BOOTY_UNIT=x\n", "line 1 sets BOOTY_UNIT, which the unit sets: remove it"),
        ("PATH=/usr/bin\n", "line 1 sets PATH, which the unit sets: remove it"),
        ("PORT=5000\n", "line 1 sets PORT, which the unit sets: remove it, and set app_port in the inventory"),
        ("WEB_CONCURRENCY=auto\n", "line 1 sets WEB_CONCURRENCY, which the unit sets: remove it, and set app_workers"),
        ("BOOTY_HEALTH_PATH=/\n", "line 1 sets BOOTY_HEALTH_PATH, which the unit sets: remove it, and set app_health_"),
        ("BOOTY_SETTINGS=SENTRY_DSN\n", "line 1 sets BOOTY_SETTINGS, which release.env sets: remove it"),
        ("A=1\nNOTIFY_SOCKET=\n", "line 2 sets NOTIFY_SOCKET, which systemd sets"),
        ("LISTEN_FDS=0\n", "line 1 sets LISTEN_FDS"),
        ("STATE_DIRECTORY=/tmp\n", "line 1 sets STATE_DIRECTORY"),
        (f"PYTHONPATH={PLANTED}\n", "line 1 sets PYTHONPATH, which makes the process load code from outside"),
        (f"LD_PRELOAD={PLANTED}\n", "line 1 sets LD_PRELOAD"),
    ],
)
def test_what_would_not_reach_the_service_as_it_is_written(text: str, fault: str | None) -> None:
    readable, usable = secrets.judge_content(text.encode())
    assert (fault in str(readable)) if fault else readable is None
    assert usable == readable or readable is None
    assert PLANTED not in str(usable)


@pytest.mark.parametrize(
    ("mode", "text", "closed", "usable"),
    [
        (0o600, f"SENTRY_DSN={DSN}", None, None),
        (0o400, f"SENTRY_DSN={DSN}", None, None),
        (0o640, f"SENTRY_DSN={DSN}", "is open to others (mode 0640", "is open to others"),
        (0o604, f"SENTRY_DSN={DSN}", "is open to others (mode 0604", "is open to others"),
        (0o600, "", None, "it is empty"),
        (0o600, f"SENTRY_DSN={DSN}\r\n", None, "CRLF"),
        (None, "", None, "is missing"),
    ],
)
def test_secrets_are_judged_where_they_lie(
    app: App, mode: int | None, text: str, closed: str | None, usable: str | None
) -> None:
    path = app.secrets_env
    if mode is not None:
        path.write_bytes(text.encode())
        path.chmod(mode)
        if path.stat().st_uid:
            closed = usable = "is not owned by root"
    verdict = secrets.judge(app)
    for found, expected in ((verdict["closed"], closed), (verdict["usable"], usable)):
        assert (expected in str(found)) if expected else found is None


def test_secrets_that_are_a_link_are_refused(app: App) -> None:
    elsewhere = app.etc / "elsewhere"
    elsewhere.write_text(f"SENTRY_DSN={DSN}")
    app.secrets_env.symlink_to(elsewhere)
    assert secrets.judge(app)["closed"].startswith(f"{app.secrets_env} is a symbolic link")
    app.secrets_env.unlink()
    app.secrets_env.mkdir()
    assert "is not a regular file" in str(secrets.judge(app)["closed"])
