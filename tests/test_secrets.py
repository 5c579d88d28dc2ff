"""Secrets are placed on a host as docs/new-host.md describes, checked there, and shown nowhere."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import hosts
from tests.conftest import ROOT, Site
from tests.load import Load

pytestmark = pytest.mark.long

PLANTED = "hunter2-in-secrets"
# The scenario molecule/secrets uses the same rows.
ROWS = yaml.safe_load((ROOT / "tests" / "bad_secrets.yml").read_text())
DOCUMENT = ROOT / "docs" / "new-host.md"


@pytest.fixture
def kept(site: Site) -> Iterator[str]:
    """Yield the host's secrets, and restore them after the test."""
    text = site.run("cat /etc/booty/secrets.env") + "\n"
    yield text
    site.run("rm -rf /etc/booty/secrets.env /root/elsewhere")
    site.place_secrets(text)


def planted(site: Site) -> str:
    return f"PLANTED={PLANTED}\nSENTRY_DSN={site.tracker.dsn}"


@pytest.mark.parametrize("row", ROWS, ids=[row["message"] for row in ROWS])
def test_production_refuses_unusable_secrets(site: Site, kept: str, row: dict[str, str]) -> None:
    if not site.host.ssh("systemctl is-active booty.service").stdout.startswith("active"):
        site.deploy()
    pid, pointer = site.pid(), site.run("sha256sum /etc/booty/release.env")
    site.place_secrets(f"{planted(site)}\n")
    site.run(f"file=/etc/booty/secrets.env; {row['command']}")
    played = site.play("deploy.yml", "--diff", app_environment="production")
    assert played.status != 0
    output = " ".join(played.output.split())
    assert row["message"] in output
    assert PLANTED not in output
    assert site.tracker.dsn not in output
    assert (site.pid(), site.run("sha256sum /etc/booty/release.env")) == (pid, pointer)


def test_systemd_reads_all_values_of_accepted_secrets(site: Site, kept: str) -> None:
    """Booty parses secrets.env as systemd does."""
    pem = "-----BEGIN-----\nQUJD=\n-----END-----"
    values = {"PLAIN": "a b$c#d", "SINGLE": 'back\\slash "quoted"', "DOUBLE": "it's", "PEM": pem, "EMPTY": ""}
    lines = [f"SENTRY_DSN={site.tracker.dsn}", "# a comment", "PLAIN=a b$c#d", "SINGLE='back\\slash \"quoted\"'"]
    site.place_secrets("\n".join([*lines, 'DOUBLE="it\'s"', f"PEM='{pem}'", "EMPTY=", ""]))
    played = site.play("bootstrap.yml")
    assert "is ready, with usable secrets" in " ".join(played.output.split())
    read = "import os, json; print(json.dumps(dict(os.environ)))"
    environ = site.run(
        f"systemd-run --quiet --pipe --wait -p EnvironmentFile=/etc/booty/secrets.env python3 -c '{read}'"
    )
    received: dict[str, Any] = yaml.safe_load(environ)
    assert {name: received.get(name, "") for name in values} == values


def command_of(output: str) -> str:
    """Return the command that a playbook printed for placing the secrets."""
    match = re.search(r"(ssh .*? \"(?:sudo )?sh -c '.*?'\")", " ".join(output.split()))
    assert match, output
    return match[1]


def mode(site: Site) -> str:
    return site.run("stat -c '%U:%G %a' /etc/booty/secrets.env; find /etc/booty -name secrets.new")


def test_typed_over_ssh(site: Site, kept: str) -> None:
    site.run("rm /etc/booty/secrets.env")
    command = command_of(site.play("bootstrap.yml").output)
    # The test types into a terminal, as a person does; Ctrl-D ends the file.
    terminal, end = pty.openpty()
    with subprocess.Popen(command, shell=True, stdin=end) as typing:
        for line in planted(site).splitlines():
            os.write(terminal, line.encode() + b"\n")
        os.write(terminal, b"\x04")
        assert typing.wait(30) == 0
    os.close(end)
    os.close(terminal)
    assert "with usable secrets" in " ".join(site.play("bootstrap.yml").output.split())
    assert site.run("cat /etc/booty/secrets.env") == planted(site)
    assert mode(site) == "root:root 600"
    left = site.run("grep -rs hunter2-in-secrets /root /var/log /tmp /home; journalctl -q --grep=hunter2-in || true")
    assert left == ""


def test_a_line_is_added_to_what_is_there(site: Site, kept: str) -> None:
    """The printed command never drops a line."""
    site.run("echo 'DATABASE_URL=postgres://db/shop' >/etc/booty/secrets.env")
    command = command_of(site.play("deploy.yml", app_environment="production").output)
    dsn = f"SENTRY_DSN={site.tracker.dsn}\n"
    assert subprocess.run(command, shell=True, input=dsn, text=True, check=False).returncode == 0
    assert "with usable secrets" in " ".join(site.play("bootstrap.yml").output.split())
    assert site.run("cat /etc/booty/secrets.env") == f"DATABASE_URL=postgres://db/shop\n\n{dsn}".strip()
    assert mode(site) == "root:root 600"
    site.run("echo 'SENTRY_DSN=x' >/etc/booty/secrets.env")
    played = site.play("deploy.yml", app_environment="production")
    assert f"Mend that on {site.host.name}, as root, in an editor." in " ".join(played.output.split())


def documented(language: str, word: str) -> str:
    """Return the code block of the document that has a word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (match,) = (block for block in blocks if word in block)
    return str(match)


def on_host(site: Site, line: str) -> str:
    """Return a command of the document, changed to the test's host."""
    ssh = " ".join(["ssh", *hosts.ssh_options(site.host.instance), f"root@{site.host.address}"])
    return line.replace("ssh deploy@web1.example.com", ssh).replace("sudo ", "")


def test_empty_input_keeps_the_secrets(site: Site, kept: str) -> None:
    typed = re.search(r"^ssh deploy@web1.*$", DOCUMENT.read_text(), re.MULTILINE)
    assert typed
    line = on_host(site, typed[0])
    assert subprocess.run(line, shell=True, stdin=subprocess.DEVNULL, check=False).returncode != 0
    assert site.run("cat /etc/booty/secrets.env") + "\n" == kept


def test_a_line_of_the_secrets_does_not_override_the_unit(site: Site, kept: str) -> None:
    """This holds for an unchecked file too: here secrets.env changes after the deploy, and the service restarts."""
    if not site.host.ssh("systemctl is-active booty.service").stdout.startswith("active"):
        site.deploy()
    stray = {"BOOTY_DRAIN_SECONDS": "300", "BOOTY_UNIT": "x", "BOOTY_CANDIDATE": "true", "PATH": "/x", "TZ": "UTC"}
    site.place_secrets(kept + "".join(f"{name}={value}\n" for name, value in stray.items()))
    site.run("systemctl restart booty.service")
    environ = site.run(f"tr '\\0' '\\n' < /proc/{site.pid()}/environ").splitlines()
    assert {"BOOTY_DRAIN_SECONDS=30", "TZ=UTC", "WEB_CONCURRENCY=1"} <= set(environ)
    assert not {"BOOTY_UNIT=x", "BOOTY_CANDIDATE=true", "PATH=/x"} & set(environ)
    assert site.health()["status"] == "ok"
    played = site.play("deploy.yml")  # app_environment is staging, where a missing DSN is no error
    assert played.status != 0
    assert "sets BOOTY_DRAIN_SECONDS, which the unit sets: remove it, and set app_drain_seconds in" in " ".join(
        played.output.split()
    )
    site.place_secrets(kept)
    assert site.deploy().recap(site.host.name)["changed"] == 0


def test_the_service_starts_with_the_largest_accepted_secrets(site: Site, kept: str) -> None:
    """Booty's limits for secrets.env are the kernel's limits for the environment of the unit's process."""
    big = f"BIG={'x' * (131_071 - len('BIG='))}\n"
    site.place_secrets(kept + big + "".join(f"V{number:02}={'x' * 129_000}\n" for number in range(14)))
    site.deploy(app_restart="true")
    assert site.run(f"tr '\\0' '\\n' < /proc/{site.pid()}/environ | grep -c '^BIG=x*$\\|^V[0-9]*=x*$'") == "15"
    site.place_secrets(kept + big.replace("=", "=x"))
    assert site.host.ssh("systemctl restart booty.service").returncode != 0
    site.place_secrets(kept)
    site.run("systemctl reset-failed booty.service; systemctl restart booty.service")


PASSWORD = {
    "ansible-vault": ("encrypt --output web1.secrets plain", "--vault-password-file password"),
    "gpg": ("-o web1.secrets -c plain", "--batch --passphrase-file password"),
}


@pytest.mark.parametrize("tool", PASSWORD)
def test_decrypted_here_and_piped(site: Site, kept: str, tmp_path: Path, tool: str) -> None:
    """Runs the command of the document, but with the test's host and with the password in a file."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if not shutil.which(tool, path=path):
        pytest.skip(f"{tool} is not installed here")
    (tmp_path / "plain").write_text(f"{planted(site)}\n")
    (tmp_path / "password").write_text("a password\n")
    (tmp_path / "gnupg").mkdir(mode=0o700)
    environment = {**os.environ, "PATH": path, "GNUPGHOME": str(tmp_path / "gnupg")}
    encrypt, password = PASSWORD[tool]

    def shell(command: str) -> None:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    shell(f"{tool} {password} {encrypt}" if tool == "gpg" else f"{tool} {encrypt} {password}")
    (tmp_path / "plain").unlink()
    site.run("rm /etc/booty/secrets.env")
    (line,) = (line for line in documented("sh", f"{tool} ").splitlines() if line.startswith(tool))
    line = on_host(site, line)
    try:
        shell(
            line.replace(f"{tool} ", f"{tool} {password} ")
            if tool == "gpg"
            else line.replace("decrypt ", f"decrypt {password} ")
        )
    finally:
        if tool == "gpg":
            shell("gpgconf --kill all")
    assert site.run("cat /etc/booty/secrets.env") == planted(site)
    assert mode(site) == "root:root 600"
    assert PLANTED not in "".join(file.read_text(errors="replace") for file in tmp_path.iterdir() if file.is_file())


def test_written_by_a_provisioner_before_the_first_bootstrap(site: Site) -> None:
    """cloud-init's write_files places the secrets before Booty has run on the host."""
    (file,) = yaml.safe_load(documented("yaml", "write_files"))["write_files"]
    content = file["content"].replace("https://KEY@HOST/PROJECT", site.tracker.dsn)
    site.bare.ssh("rm -rf /etc/booty")
    done = site.bare.ssh(
        f"umask 022; mkdir -p $(dirname {file['path']}); cat > {file['path']}; "
        f"chown {file['owner']} {file['path']}; chmod {file['permissions']} {file['path']}",
        input=content,
    )
    assert done.returncode == 0
    played = site.play("bootstrap.yml", on=site.bare)
    assert "is ready, with usable secrets" in " ".join(played.output.split())


def test_rotation(site: Site, kept: str) -> None:
    old, new = "old-hunter2", "new-hunter2"
    site.release()
    site.place_secrets(f"{kept}ROTATED={old}\n")
    site.deploy(app_restart="true")
    find = "grep -lsz '^ROTATED={}$' /proc/[0-9]*/environ | wc -l"
    assert site.run(find.format(old)) != "0"
    with Load(site.host.address) as load:
        site.place_secrets(f"{kept}ROTATED={new}\n")
        site.deploy(app_restart="true")
    assert site.run(find.format(old)) == "0"
    assert site.run(find.format(new)) != "0"
    assert load.report["failures"] == []
