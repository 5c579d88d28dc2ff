"""What tests of several files share: a repository, playbooks as a user runs them, and a host to run them on."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from sandbox.tracker import Tracker, find

ROOT = Path(__file__).parent.parent
ROLE = ROOT / "roles" / "app"
# Two runs at once on one machine need two names.
INSTANCE = os.environ.get("BOOTY_TEST_INSTANCE", "test")
# The sockets of the SSH connections that this test run shares between its playbooks.
CONNECTIONS = Path(tempfile.mkdtemp(prefix="booty-ssh-", dir="/tmp"))
atexit.register(shutil.rmtree, CONNECTIONS, ignore_errors=True)
# Nobody's own Sentry hears of a test.
for name in [name for name in os.environ if name.startswith("SENTRY_")]:
    del os.environ[name]


class Repository:
    """A git repository that holds a copy of the bundled app, or of all of this one."""

    def __init__(self, path: Path, what: str = "app") -> None:
        self.path = path
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", path], check=True)
        tracked = self.git("-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", what).splitlines()
        for name in (name for name in tracked if (ROOT / name).exists()):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (path / name).symlink_to((ROOT / name).readlink())
            else:
                (path / name).write_bytes((ROOT / name).read_bytes())
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


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository of its own to the test."""
    return Repository(tmp_path / "repository")


# What the load asks besides /health: a request that a cutover meets half-way.
ROUTES = """
import asyncio
from fastapi import APIRouter
router = APIRouter()
@router.get("/slow")
async def slow(seconds: float = 2.0) -> dict[str, float]:
    await asyncio.sleep(seconds)
    return {"slept": seconds}
"""
# The app needs what is away as long as this file is there.
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
"""
)


@dataclass
class Play:
    """How a playbook ended."""

    status: int
    output: str

    def recap(self, host: str) -> dict[str, int]:
        """Return the host's line of the recap."""
        line = re.search(rf"^{re.escape(host)}\s*: (.+)$", self.output, re.MULTILINE)
        assert line, self.output
        return {name: int(count) for name, _, count in (pair.partition("=") for pair in line[1].split())}


class Running:
    """A playbook under way. An environment variable marks all its processes, so that a test can kill them together."""

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

    def end(self) -> Play:
        """Wait for its end."""
        status = self._process.wait(timeout=300)
        with self._output:
            self._output.seek(0)
            return Play(status, self._output.read())

    def processes(self) -> list[int]:
        """Return the PIDs of the controller, its workers, its ssh clients, and the connections that these share.

        ansible-core's workers call `setsid`, so a process group does not have them. A shared connection (ssh's
        ControlMaster) is a daemon: it overwrites its environment and is found by the title that it gives itself.
        """
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended meanwhile, or another user's
                title, environ = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
                if title.startswith(f"ssh: {CONNECTIONS}/".encode()) or self._mark.encode() in environ.split(b"\0"):
                    found.append(int(path.name))
        # The controller first: it must not see how its workers end.
        return sorted(found, key=lambda pid: pid != self._process.pid)

    def kill(self) -> None:
        """Kill the controller at once, with its workers and its SSH connections."""
        while alive := [pid for pid in self.processes() if pid != self._process.pid or self._process.poll() is None]:
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.end()


def start(playbook: str, inventory: Path, variables: dict[str, str], *arguments: str) -> Running:
    """Start a playbook as a user would, to be ended or killed by the test."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", str(inventory)]
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "COLUMNS": "200"}
    return Running([*command, "-e", json.dumps(variables), *arguments], environment)


class Site:
    """A sandbox host with a tracker, a repository to deploy to it, and the playbooks as a user runs them."""

    def __init__(self, hosts: list[Host], tracker: Tracker, repository: Repository, directory: Path) -> None:
        self.host, self.bare = hosts
        self.tracker = tracker
        self.repository = repository
        self.inventory = directory / "inventory"
        self.pair: tuple[str, str] | None = None
        self.variables = {
            "app_environment": "staging",
            "app_repository": str(repository.path),
            "app_cache": str(directory / "artifacts"),
        }

    def play(self, playbook: str, *arguments: str, on: Host | None = None, **variables: str) -> Play:
        """Run a playbook to its end on one host, by default the one that is deployed to."""
        return self.start(playbook, *arguments, on=on, **variables).end()

    def start(self, playbook: str, *arguments: str, on: Host | None = None, **variables: str) -> Running:
        """Start a playbook, to be ended or killed by the test."""
        limit = ["--limit", (on or self.host).name]
        return start(playbook, self.inventory, {**self.variables, **variables}, *limit, *arguments)

    def deploy(self, *arguments: str, **variables: str) -> Play:
        """Deploy, and fail the test unless that went well."""
        played = self.play("deploy.yml", *arguments, on=None, **variables)
        assert played.status == 0, played.output
        return played

    def release(self, name: str = "routes.py", text: str = "") -> str:
        """Commit a change of the app, by default one that changes nothing, and return the SHA."""
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
        """Give the messages that the host's journal gets in the next 60 seconds, each as soon as it is there."""
        address, options = f"root@{self.host.address}", sandbox.ssh_options(self.host.instance)
        follow = ["ssh", "-F", "none", *options, address, "timeout 60 journalctl --follow --lines=1 --output=cat"]
        with subprocess.Popen(follow, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            # The last one that is there already: from now on none is missed.
            process.stdout.readline()
            yield iter(process.stdout.readline, "")
            process.kill()

    def place_secrets(self, text: str) -> None:
        """Put `secrets.env` on the host as an operator does."""
        demo.place_secrets(self.host, text)

    def health(self) -> dict[str, str | None]:
        """Ask the service, from outside the host."""
        return demo.health(self.host)

    def pid(self) -> str:
        """Return the main PID of the service."""
        return self.run("systemctl show booty.service --property=MainPID --value")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return the one host that all tests of deploys share: bootstrapped, with secrets, and a bare one beside it."""
    directory = tmp_path_factory.mktemp("site")
    repository = Repository(directory / "repository")
    inventory = directory / "inventory" / "hosts.yml"
    try:
        found = sandbox.up(INSTANCE, 2, with_tracker=True, inventory=inventory)
        tracker = find(sandbox.INSTANCES / INSTANCE / "tracker")
        assert tracker
        made = Site(found, tracker, repository, directory)
        played = made.play("bootstrap.yml")
        assert played.status == 0, played.output
        made.place_secrets(f"SENTRY_DSN={tracker.dsn}\n")
        yield made
    finally:
        sandbox.down(INSTANCE)
