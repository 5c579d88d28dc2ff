"""Settings and files of the inventory on a real host, and what a deploy says of an app that can't start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROUTES, Site, words
from tests.host_program.test_files import AWKWARD

PLANTED = "hunter2-in-secrets"


def environ(site: Site) -> dict[str, str]:
    """Return the environment of the service's main process."""
    text = site.run("tr '\\0' '\\n' </proc/$(systemctl show booty.service --property=MainPID --value)/environ")
    return dict(line.split("=", 1) for line in text.splitlines())


def test_settings_reach_the_process_as_they_are_written(site: Site) -> None:
    """systemd, a shell and Booty read the same values; a changed setting alone is a cutover."""
    settings = json.dumps({**AWKWARD, "DEBUG": False, "LIMIT": 7})
    expected = {**AWKWARD, "DEBUG": "false", "LIMIT": "7"}
    sha = site.release()
    site.deploy(app_settings=settings)
    variables = environ(site)
    assert {name: variables.get(name) for name in expected} == expected
    assert variables["BOOTY_SETTINGS"] == ",".join(sorted(expected))
    read = site.run("set -a; . /etc/booty/release.env; env --null | tr '\\0' '\\n'")
    assert {f"{name}={value}" for name, value in expected.items()} <= {*read.splitlines()}
    assert (variables["PORT"], variables["HOME"], variables["WEB_CONCURRENCY"]) == ("8000", "/var/lib/booty", "1")
    assert variables["PATH"].startswith(f"/opt/booty/releases/{sha}/bin:/usr/local/sbin:")

    pid = site.pid()
    assert site.deploy(app_settings=settings).recap(site.host.name)["changed"] == 0
    assert site.pid() == pid
    (row,) = json.loads(site.play("status.yml", app_settings=settings, status_format="json").output)["hosts"]
    assert row["memory"]["settings"] == row["disk"]["settings"] == expected

    changed = json.dumps({"DEBUG": True})
    played = site.play("deploy.yml", "--check", "--diff", app_settings=changed)
    assert ("-LIMIT=7" in played.output, "+DEBUG=true" in played.output) == (True, True), played.output
    drift = site.play("status.yml", app_settings=changed, app_drift="true")
    assert "setting DEBUG false → true" in words(drift), drift.output
    site.deploy(app_settings=changed)
    after = environ(site)
    assert (after["SENTRY_RELEASE"], after["DEBUG"], "LIMIT" in after) == (sha, "true", False)
    assert site.pid() != pid
    site.deploy()
    assert "DEBUG" not in environ(site)


def test_a_name_in_both_places_is_refused_before_anything_is_touched(site: Site) -> None:
    site.deploy()
    secrets, pid = site.run("cat /etc/booty/secrets.env"), site.pid()
    site.place_secrets(f"{secrets}\nLIMIT={PLANTED}\n")
    try:
        played = site.play("deploy.yml", "-vvv", "--diff", app_settings='{"LIMIT": 7, "API_KEY": "x"}')
        assert played.status != 0
        assert f"LIMIT is in app_settings and in /etc/booty/secrets.env of {site.host.name}." in words(played)
        assert PLANTED not in played.output
        assert site.pid() == pid
    finally:
        site.place_secrets(f"{secrets}\n")
    played = site.deploy("--check", app_settings='{"LIMIT": 7, "API_KEY": "x"}')
    assert words(played).count("app_settings: API_KEY looks like a secret") == 1


def test_files_of_the_controller_come_and_go_with_the_release(site: Site, tmp_path: Path) -> None:
    def deploy(text: str) -> str:
        (tmp_path / "certs").mkdir(exist_ok=True)
        (tmp_path / "certs/ca.pem").write_text(text)
        site.deploy(app_config_dir=str(tmp_path))
        return environ(site)["BOOTY_CONFIG_DIR"]

    site.deploy()
    (tmp_path / "local_settings.py").write_text("DEBUG = False\n")
    first = deploy("one")
    assert site.run(f"cd {first} && stat -c '%A %U:%G %n' . certs certs/ca.pem local_settings.py").splitlines() == [
        "drwxr-x--- root:booty .",
        "drwxr-x--- root:booty certs",
        "-rw-r----- root:booty certs/ca.pem",
        "-rw-r----- root:booty local_settings.py",
    ]
    reads = f"setpriv --reuid=booty --regid=booty --clear-groups cat {first}/certs/ca.pem"
    assert site.run(reads) == "one"
    assert site.host.ssh(f"setpriv --reuid=nobody --clear-groups cat {first}/certs/ca.pem").returncode
    (tmp_path / "certs/ca.pem").write_text("two")
    played = site.play("deploy.yml", "--check", "--diff", app_config_dir=str(tmp_path))
    assert (f"--- before: {first}" in played.output, "+certs/ca.pem " in played.output) == (True, True), played.output
    assert "local_settings.py" in played.output
    second = deploy("two")
    assert {first, second} == {*site.run("ls -d /opt/booty/config/*").split()}
    third = deploy("three")
    assert {second, third} == {*site.run("ls -d /opt/booty/config/*").split()}
    site.release()
    site.deploy(app_config_dir=str(tmp_path))
    played = site.play("rollback.yml", app_config_dir=str(tmp_path))
    assert played.status == 0, played.output
    assert environ(site)["BOOTY_CONFIG_DIR"] == third
    site.deploy()
    assert environ(site)["BOOTY_CONFIG_DIR"] == ""


@pytest.mark.parametrize(
    ("code", "shown", "step"),
    [
        (
            'import os\nos.environ["DATABASE_URL"]\n',
            "KeyError: 'DATABASE_URL'",
            "The app needs the setting DATABASE_URL: add it to app_settings, or to secrets.env on the host",
        ),
        ("import nowhere_to_be_found\n", "No module named", "The release has no module nowhere_to_be_found: add its"),
        (
            'open("/var/log/shop.log", "w")\n',
            "Read-only file system: '/var/log/shop.log'",
            "The app writes /var/log/shop.log, and may write only in /var/lib/booty (its HOME)",
        ),
        (
            'import socket\nsocket.create_connection(("127.0.0.1", 5432))\n',
            "ConnectionRefusedError: [Errno 111] Connection refused",
            "Nothing listens where the app looks for its database",
        ),
    ],
)
def test_a_failed_start_names_the_next_step(site: Site, code: str, shown: str, step: str) -> None:
    site.release()
    site.deploy()
    pid, sha = site.pid(), site.release(text=f"{code}{ROUTES}")
    played = site.play("deploy.yml")
    assert played.status != 0
    assert f"{sha} does not serve" in words(played)
    assert shown in words(played), played.output
    assert words(played).count(step) == 1, played.output
    assert site.pid() == pid
    site.release()
