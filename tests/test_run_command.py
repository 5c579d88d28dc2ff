"""run.yml: a command in the environment and the sandbox of the running release."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import time
from pathlib import Path

import pytest
from booty_host import secrets
from booty_host.app import App
from booty_host.command import LINE, Output, Sandbox, divide, execute
from booty_host.release import Release

from tests.conftest import Play, Running, Site
from tests.test_telemetry import known, received

UNIT = r"""
[Unit]
Description=Booty: shop

[Service]
Type=notify
# a comment=x
EnvironmentFile=/etc/shop/release.env
ExecStart=/usr/bin/env \
    --unset=BOOTY_CANDIDATE 'A=one two' B=50%% PATH=${BOOTY_RELEASE_DIR}/bin \
    BOOTY_UNIT=abc ${BOOTY_RELEASE_DIR}/bin/serve
TimeoutStartSec=30
Restart=on-failure
RemoveIPC=true
User=web
CapabilityBoundingSet=
RestrictNamespaces=true

[Install]
WantedBy=multi-user.target
"""


def sandbox(tmp_path: Path, unit: str = UNIT) -> Sandbox:
    app = App("shop", tmp_path)
    (app.releases / "a" / "tree/web").mkdir(parents=True)
    (app.releases / "a" / "release.json").write_text('{"layer": "", "python": "", "path": "web"}')
    return Sandbox(app, Release(app, "SENTRY_RELEASE=a\n", {app.service: unit}), app.release_env)


def test_a_command_has_the_sandbox_and_the_environment_of_the_unit(tmp_path: Path) -> None:
    argv = sandbox(tmp_path).command("shop-run.service", "--pipe", ["/bin/sh", "-c", "echo $HOME"])
    properties = [word.removeprefix("--property=") for word in argv if word.startswith("--property=")]
    assert properties == [
        "JoinsNamespaceOf=shop.service",
        "User=web",
        "CapabilityBoundingSet=",
        "RestrictNamespaces=true",
        f"EnvironmentFile=-{tmp_path}/etc/shop/secrets.env",
        f"EnvironmentFile={tmp_path}/etc/shop/release.env",
        f"WorkingDirectory={tmp_path}/opt/shop/releases/a/tree/web",
        "TimeoutStopSec=10",
        "OOMScoreAdjust=500",
    ]
    *_, unset, a, b, path, unit, shell, option, command = argv
    assert [unset, a, b, path, unit] == [
        "--unset=BOOTY_CANDIDATE",
        "A=one two",
        "B=50%",
        "PATH=${BOOTY_RELEASE_DIR}/bin",
        "BOOTY_UNIT=abc",
    ]
    assert [shell, option, command] == ["/bin/sh", "-c", "echo $$HOME"]


def test_secrets_are_left_out_of_the_output(tmp_path: Path) -> None:
    app = App("shop", tmp_path)
    app.etc.mkdir(parents=True)
    app.secrets_env.write_text(
        "DATABASE_URL=postgres://shop:s3cretpass@db/shop\nKEY='line-one-of-it\nline-two-of-it'\nDEBUG=1\n"
    )
    hidden = ["postgres://shop:s3cretpass@db/shop", "line-one-of-it", "line-two-of-it", "s3cretpass"]
    assert sorted(secrets.hidden(app)) == sorted(hidden)
    output = Output(app)
    text = output.text("out", "\n".join([*hidden, "DEBUG=1"]))
    output.file.close()
    assert text == "[Filtered]\n[Filtered]\n[Filtered]\n[Filtered]\nDEBUG=1"


def test_a_line_without_an_end_is_shown_in_pieces() -> None:
    secret = "s3cret" * 20
    for place in range(LINE - 200, LINE + 200, 7):
        text, waiting, shown = "x" * place + secret + "y" * 2 * LINE, "", ""
        for start in range(0, len(text), 1000):
            part, waiting = divide(waiting + text[start : start + 1000], [secret], whole=False)
            assert len(waiting) <= LINE
            shown += secrets.filtered(part, [secret])
        assert shown + waiting == text.replace(secret, secrets.FILTERED)
    assert divide("a\nb", [], whole=False) == ("a\n", "b")
    assert divide("a\nb", [], whole=True) == ("a\nb", "")


def test_a_secret_that_comes_in_parts_waits_for_its_end() -> None:
    hidden = ["hunter2hunter2", "another one"]
    assert divide("the key: hunter2hu", hidden, whole=True) == ("the key: ", "hunter2hu")
    assert divide("the key: hunter2hu", hidden, whole=True, ended=True) == ("the key: hunter2hu", "")
    assert divide("the key: hun", hidden, whole=True) == ("the key: hun", "")
    assert divide("hunter2hunter2", hidden, whole=True) == ("", "hunter2hunter2")


class Shell(Sandbox):
    """A sandbox that runs its commands here."""

    def __init__(self) -> None:
        pass

    def command(self, unit: str, how: str, argv: list[str], *properties: str) -> list[str]:
        return argv


@pytest.mark.parametrize("writes", ["sleep 30", "for i in 1 2 3 4 5 6; do echo more; sleep 0.1; done; sleep 30"])
def test_a_pipe_that_another_process_keeps_open_does_not_keep_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    """A command can pass its output to the service, which is not in its unit. Here a child has it."""
    (tmp_path / "systemd-cat").write_text("#!/bin/sh\nexec cat >/dev/null\n")
    (tmp_path / "systemd-cat").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    output, began = Output(App("shop", tmp_path)), time.monotonic()
    assert execute(App("shop", tmp_path), Shell(), "release", f"({writes}) & printf last; exit 3", 60, output) == 3
    assert time.monotonic() - began < 10
    assert "last" in output.tail
    output.file.close()


@pytest.fixture(scope="module")
def served(site: Site) -> Site:
    site.deploy()
    return site


def run(site: Site, command: str, *arguments: str) -> Play:
    return site.play("run.yml", *arguments, command=command)


def wait_for(running: Running, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in running.so_far():
        assert time.monotonic() < deadline, running.so_far()
        time.sleep(0.05)


def test_a_command_runs_in_the_environment_of_the_release(served: Site) -> None:
    release = served.run("readlink -f /opt/booty/releases/$(sed -n 's/^SENTRY_RELEASE=//p' /etc/booty/release.env)")
    played = run(served, "id -un; echo $HOME; pwd; command -v python; touch /etc/x; touch $HOME/x && rm $HOME/x")
    assert played.output.splitlines() == [
        "booty",
        "/var/lib/booty",
        f"{release}/tree/app",
        f"{release}/bin/python",
        "touch: cannot touch '/etc/x': Read-only file system",
    ]
    assert played.status == 0
    played = run(served, "python -c 'import booty, os; print(os.environ[\"SENTRY_RELEASE\"])'")
    assert (played.status, played.output.strip()) == (0, Path(release).name)


def test_an_error_of_a_command_is_reported_under_the_release(served: Site) -> None:
    before = known(served)
    played = run(served, "python -c 'import os; raise LookupError(os.environ[\"SENTRY_DSN\"])'")
    (event,) = received(served, before, 1)
    release = served.run("sed -n 's/^SENTRY_RELEASE=//p' /etc/booty/release.env")
    labels = (event["release"], event["environment"], event["transaction"])
    assert (played.status, labels) == (1, (release, "staging", "command"))
    (error,) = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("LookupError", "[Filtered]")


def test_the_exit_status_is_that_of_the_command(served: Site) -> None:
    assert [run(served, command).status for command in ("exit 7", "no-such-program")] == [7, 127]


def test_secrets_are_there_and_not_shown(served: Site) -> None:
    dsn = served.run("sed -n 's/^SENTRY_DSN=//p' /etc/booty/secrets.env")
    played = run(served, 'echo "$SENTRY_DSN"; test -n "$SENTRY_DSN"')
    assert (played.status, played.output) == (0, "[Filtered]\n")
    assert dsn not in served.run("journalctl -t booty-run -o cat")


@pytest.mark.parametrize(
    "option",
    [
        """command=printf '%s|' a --b=c "d  e"; exit 3""",
        """command='printf "%s|" a --b=c "d  e"; exit 3'""",
        json.dumps({"command": """printf '%s|' a --b=c "d  e"; exit 3"""}),
    ],
)
def test_the_command_is_what_was_typed(served: Site, option: str) -> None:
    played = served.play("run.yml", "-e", option)
    assert (played.status, played.output) == (3, "a|--b=c|d  e|")


def test_output_comes_while_the_command_runs(served: Site) -> None:
    running = served.start("run.yml", command="echo early; sleep 4; printf late >&2; exit 3")
    wait_for(running, "early")
    assert "late" not in running.so_far()
    played = running.end()
    assert (played.status, played.output) == (3, "early\nlate")
    assert "early\nlate" in served.run("journalctl -t booty-run -o cat")


def test_much_output_is_fast_and_whole(served: Site) -> None:
    began = time.monotonic()
    played = run(served, "seq 200000")
    assert time.monotonic() - began < 20
    assert played.output == "".join(f"{number}\n" for number in range(1, 200001))


@pytest.mark.parametrize("how", ["interrupted", pytest.param("killed", marks=pytest.mark.long)])
def test_the_command_ends_with_its_controller(served: Site, how: str) -> None:
    served.run("rm -f /run/booty/commands/*")
    running = served.start("run.yml", command="trap 'echo bye; exit' TERM; while sleep 0.05; do echo on; done")
    wait_for(running, "on")
    if how == "killed":
        running.kill()
    else:
        os.kill(running.processes()[0], signal.SIGINT)
        assert running.end().status == 99
    served.wait_for("! systemctl --quiet is-active 'booty-run-*'", seconds=15)
    assert "bye" in served.run("journalctl -t booty-run -o cat --lines=2").splitlines()
    served.wait_for("! ls /run/booty/commands/*")


def test_a_command_needs_one_host_and_a_release(served: Site) -> None:
    several = run(served, "true", "--limit", "all")
    assert several.status == 2
    assert "A command runs on one host, and --limit leaves" in several.output
    served.bare.ssh("mv /etc/booty/release.env /root/")  # other tests may have deployed there
    bare = served.play("run.yml", on=served.bare, command="true")
    served.bare.ssh("mv /root/release.env /etc/booty/")
    assert bare.status == 2
    assert "booty has no release on this host." in bare.output


def test_the_printed_command_opens_a_shell_in_the_sandbox(served: Site) -> None:
    played = served.play("run.yml")
    (command,) = re.findall(r"ssh -t .*", played.output)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", command])
    output = b""

    def read_until(text: bytes, seconds: float = 20) -> None:
        nonlocal output
        deadline = time.monotonic() + seconds
        while text not in output:
            assert time.monotonic() < deadline, output
            if select.select([terminal], [], [], 0.1)[0]:
                output += os.read(terminal, 65536)

    try:
        read_until(b"$ ")
        os.write(terminal, b"echo $(id -un) $(tty); touch /etc/x; exit 5\n")
        read_until(b"booty /dev/pts/")
        read_until(b"Read-only file system")
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5
