"""Fixtures and helpers of several test files: a repository, playbooks run as a user runs them, sandbox hosts."""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import build, describe, lock

from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from sandbox.tracker import Tracker, find

ROOT = Path(__file__).parent.parent
ROLE = ROOT / "roles" / "app"
# The name of the sandbox instance. Two test runs at once on one machine need different names. So do the processes of
# `make test`: pytest-xdist calls them gw0 and gw1.
INSTANCE = os.environ.get("BOOTY_TEST_INSTANCE", "test") + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
# The directory of the ControlMaster sockets: all playbooks of this test run share their SSH connections.
CONNECTIONS = Path(tempfile.mkdtemp(prefix="booty-ssh-", dir="/tmp"))
atexit.register(shutil.rmtree, CONNECTIONS, ignore_errors=True)
# Remove the developer's SENTRY_ variables, so that no test sends an event to a real tracker, and the variables
# that switch the output to that for a CI.
for name in [name for name in os.environ if name.startswith("SENTRY_") or name in {"GITHUB_ACTIONS", "GITLAB_CI"}]:
    del os.environ[name]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the hosts of an interrupted `make test`: its processes are killed before they remove them."""
    if getattr(session.config.option, "numprocesses", None):
        for name in sandbox.instances():
            if re.match(rf"{INSTANCE}\d(-|$)", name):
                sandbox.down(name)


class Repository:
    """A git repository with a copy of the bundled app, or of another part of this repository.

    With `top` the files of the part lie at the top of the new repository.
    """

    def __init__(self, path: Path, part: str = "app", top: bool = False) -> None:
        self.path = path
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", path], check=True)
        tracked = self.git("-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", part).splitlines()
        for name in (name for name in tracked if (ROOT / name).exists()):
            target = path / (Path(name).relative_to(part) if top else name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                target.symlink_to((ROOT / name).readlink())
            else:
                target.write_bytes((ROOT / name).read_bytes())
        self.commit("The bundled app")

    def git(self, *arguments: str) -> str:
        """Run git in the repository and return its output."""
        done = subprocess.run(
            ["git", "-C", self.path, *arguments], check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        """Write a file of the working tree."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def commit(self, message: str) -> str:
        """Commit the whole working tree and return the SHA."""
        self.git("add", "--all")
        self.git("-c", "user.name=Test", "-c", "user.email=test@example.com", "commit", "--quiet", "-m", message)
        return self.git("rev-parse", "HEAD")

    def variables(self, directory: Path) -> dict[str, str]:
        """Return the variables of a deploy from this repository, which keeps its artifacts in a directory."""
        return {
            "app_environment": "staging",
            "app_repository": str(self.path),
            "app_path": "app",
            "app_cache": str(directory / "artifacts"),
            "app_watch": "off",
        }


PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE = platform.machine()


def names(archive: str) -> list[str]:
    """Return the names of an archive's members."""
    with tarfile.open(archive) as tar:
        return tar.getnames()


def artifact(
    repository: Path, sha: str, cache: Path, path: str = "app", python: str = f"{PYTHON}.0", **inventory: Any
) -> dict[str, Any]:
    """Describe and build a commit for this machine, as a deploy does; `inventory` has variables without `app_`."""
    description = describe.describe(repository, sha, path, inventory)
    return build.build(repository, description, sha, lock.Host(python, MACHINE), cache, "booty")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a new repository with the bundled app, for one test."""
    return Repository(tmp_path / "repository")


# A route for the load: its requests take seconds, so that a cutover happens during some of them.
ROUTES = """
import asyncio
from fastapi import APIRouter
router = APIRouter()
@router.get("/slow")
async def slow(seconds: float = 2.0) -> dict[str, float]:
    await asyncio.sleep(seconds)
    return {"slept": seconds}
"""
# While this file exists, the app of NEEDS fails to start, as if its database were unreachable.
AWAY = "/var/lib/booty/away"
NEEDS = (
    ROUTES
    + f"""
import os, time
from contextlib import asynccontextmanager
@asynccontextmanager
async def lifespan(app):
    if os.path.exists("{AWAY}"):
        raise ConnectionError("the database is away")
    yield
router.lifespan_context = lifespan
@router.get("/hang")
async def hang() -> None:
    time.sleep(60)
@router.get("/exit")
async def leave() -> None:
    os._exit(1)
"""
)


@dataclass
class Play:
    """Exit status and output of a playbook."""

    status: int
    output: str

    def recap(self, host: str) -> dict[str, int]:
        """Return a host's counts in the recap: ok, changed, failed and so on."""
        line = re.search(rf"^{re.escape(host)}\s*: (.+)$", self.output, re.MULTILINE)
        assert line, self.output
        return {name: int(count) for name, _, count in (pair.partition("=") for pair in line[1].split())}


def words(played: Play) -> str:
    """Return a playbook's output on one line, with single blanks, because Ansible wraps messages."""
    return " ".join(played.output.split())


class Running:
    """A running playbook. An environment variable marks all its processes, so that a test can kill them together."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._mark = f"BOOTY_TEST_RUN={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        with tempfile.TemporaryFile("w+") as output:
            self._output = os.fdopen(os.dup(output.fileno()), "r")
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, name: value, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(CONNECTIONS)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def so_far(self) -> str:
        """Return the output until now."""
        return os.pread(self._output.fileno(), 10_000_000, 0).decode()

    def end(self) -> Play:
        """Wait until the playbook ends, and return its result."""
        status = self._process.wait(timeout=300)
        with self._output:
            self._output.seek(0)
            return Play(status, self._output.read())

    def processes(self) -> list[int]:
        """Return the PIDs of ansible-playbook, its workers, its ssh clients and their shared connections.

        ansible-core's workers call `setsid`, so they are not in the process group. A shared connection (ssh's
        ControlMaster) is a daemon that overwrites its environment, so this method finds it by its process title.
        """
        pids = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended, or belongs to another user
                title, environ = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
                if title.startswith(f"ssh: {CONNECTIONS}/".encode()) or self._mark.encode() in environ.split(b"\0"):
                    pids.append(int(path.name))
        # ansible-playbook comes first: it must be killed before it can react to the end of its workers.
        return sorted(pids, key=lambda pid: pid != self._process.pid)

    def kill(self) -> None:
        """Kill ansible-playbook with its workers and its SSH connections."""
        while alive := [pid for pid in self.processes() if pid != self._process.pid or self._process.poll() is None]:
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.end()


def start(playbook: str, inventory: Path, variables: dict[str, str], *arguments: str) -> Running:
    """Start a playbook as a user does. The test waits for its end or kills it."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", str(inventory)]
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "COLUMNS": "200"}
    return Running([*command, "-e", json.dumps(variables), *arguments], environment)


class Site:
    """Two sandbox hosts, one of them bare, with a tracker, a repository, and methods that run playbooks on them."""

    def __init__(self, hosts: list[Host], tracker: Tracker, repository: Repository, directory: Path) -> None:
        self.host, self.bare = hosts
        self.tracker = tracker
        self.repository = repository
        self.inventory = directory / "inventory"
        self.pair: tuple[str, str] | None = None
        self.variables = repository.variables(directory)

    def play(self, playbook: str, *arguments: str, on: Host | None = None, **variables: str) -> Play:
        """Run a playbook to its end on one host, by default on `self.host`."""
        return self.start(playbook, *arguments, on=on, **variables).end()

    def start(self, playbook: str, *arguments: str, on: Host | None = None, **variables: str) -> Running:
        """Start a playbook. The test waits for its end or kills it."""
        limit = ["--limit", (on or self.host).name]
        return start(playbook, self.inventory, {**self.variables, **variables}, *limit, *arguments)

    def deploy(self, *arguments: str, **variables: str) -> Play:
        """Deploy; fail the test if the exit status is not 0."""
        played = self.play("deploy.yml", *arguments, on=None, **variables)
        assert played.status == 0, played.output
        return played

    def release(self, name: str = "routes.py", text: str = "") -> str:
        """Commit a change of the app, by default routes.py with a new comment, and return the SHA."""
        self.repository.write(f"app/src/booty/{name}", text or ROUTES + f"# {time.monotonic()}\n")
        return self.repository.commit(f"Change {name}")

    def run(self, command: str, input: str | None = None) -> str:
        """Run a shell command on the host as root and return its output; fail the test when it fails."""
        done = self.host.ssh(command, input=input or "")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def wait_for(self, command: str, seconds: float = 20, pause: float = 0.1) -> None:
        """Wait until a shell command succeeds on the host."""
        deadline = time.monotonic() + seconds
        while self.host.ssh(command).returncode:
            assert time.monotonic() < deadline, f"{command} did not succeed within {seconds} s"
            time.sleep(pause)

    @contextmanager
    def journal(self) -> Iterator[Iterator[str]]:
        """Yield an iterator over new messages of the host's journal, for at most 60 seconds."""
        address, options = f"root@{self.host.address}", sandbox.ssh_options(self.host.instance)
        follow = ["ssh", "-F", "none", *options, address, "timeout 60 journalctl --follow --lines=1 --output=cat"]
        with subprocess.Popen(follow, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            # `--lines=1` prints the newest old message first. From then on journalctl misses no new one.
            process.stdout.readline()
            yield iter(process.stdout.readline, "")
            process.kill()

    def place_secrets(self, text: str) -> None:
        """Put `secrets.env` on the host as an operator does."""
        demo.place_secrets(self.host, text)

    def health(self) -> dict[str, str | None]:
        """Return the answer of /health, requested from outside the host."""
        return demo.health(self.host)

    def pid(self) -> str:
        """Return the main PID of the service."""
        return self.run("systemctl show booty.service --property=MainPID --value")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Boot the hosts that all tests of deploys share: one bootstrapped and with secrets, one bare."""
    directory = tmp_path_factory.mktemp("site")
    repository = Repository(directory / "repository")
    inventory = directory / "inventory" / "hosts.yml"
    try:
        hosts = sandbox.up(INSTANCE, 2, with_tracker=True, inventory=inventory)
        tracker = find(sandbox.INSTANCES / INSTANCE / "tracker")
        assert tracker
        shared = Site(hosts, tracker, repository, directory)
        played = shared.play("bootstrap.yml")
        assert played.status == 0, played.output
        shared.place_secrets(f"SENTRY_DSN={tracker.dsn}\n")
        yield shared
    finally:
        sandbox.down(INSTANCE)
