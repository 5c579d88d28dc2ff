"""Several controllers: the playbooks under ansible-runner, as AWX runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from tests.conftest import INSTANCE, Repository

pytestmark = pytest.mark.long

BIN = Path(sys.executable).parent
NAME = f"{INSTANCE}-runner"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Host], Path]]:
    """Return two new hosts and a private data directory of ansible-runner."""
    directory = tmp_path_factory.mktemp("runner")
    try:
        hosts = sandbox.up(NAME, 2, with_tracker=False, inventory=directory / "inventory" / "hosts.yml")
        Repository(directory / "project", ".")
        (directory / "env").mkdir()
        (directory / "env/extravars").write_text(json.dumps({"app_environment": "staging"}))
        yield hosts, directory
    finally:
        sandbox.down(NAME)


class Worker:
    """A worker of ansible-runner, which shares only downloaded packages with other workers."""

    def __init__(self, directory: Path, name: str) -> None:
        self.home = directory.parent / f"{directory.name}-{name}"
        self.results = self.home / "results"
        self.home.mkdir(exist_ok=True)
        downloads = os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache/uv"
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "UV_CACHE_DIR": str(downloads),
        }

    def start(self, job: Path) -> subprocess.Popen[bytes]:
        """Start the worker with the output of `transmit`; nothing else of the controller reaches it."""
        with job.open("rb") as stdin, self.results.open("wb") as stdout:
            return subprocess.Popen(
                [BIN / "ansible-runner", "worker", "--private-data-dir", self.home / "job", "--delete"],
                env=self.environment,
                stdin=stdin,
                stdout=stdout,
            )

    def digests(self) -> list[str]:
        """Return the SHA-256 digests of the archives that the worker built."""
        built = (self.home / "cache/booty/artifacts").rglob("*.tar.gz")
        return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in built)


def sliced(directory: Path, playbook: str, slices: dict[Worker, str]) -> list[tuple[int, str]]:
    """Run a playbook in parallel slices, one for each worker; return the exit status and output of each slice."""
    under_way = []
    for number, (worker, limit) in enumerate(slices.items()):
        job = worker.home / "transmitted"
        with job.open("wb") as stdout:
            transmit = ["transmit", str(directory), "--playbook", playbook, "--limit", limit]
            subprocess.run([BIN / "ansible-runner", *transmit], stdout=stdout, check=True, timeout=60)
        under_way.append((f"{playbook}-{number}", worker, worker.start(job)))
    ended = []
    for ident, worker, process in under_way:
        assert process.wait(timeout=300) == 0
        with worker.results.open("rb") as stdin:
            subprocess.run(
                [BIN / "ansible-runner", "process", "--ident", ident, str(directory)],
                stdin=stdin,
                capture_output=True,
                check=False,
                timeout=60,
            )
        artifacts = directory / "artifacts" / ident
        ended.append((int((artifacts / "rc").read_text()), (artifacts / "stdout").read_text()))
    return ended


def test_a_deploy_in_two_slices(fleet: tuple[list[Host], Path]) -> None:
    hosts, directory = fleet
    workers = {Worker(directory, host.name): host.name for host in hosts}
    for status, output in sliced(directory, "bootstrap.yml", workers):
        assert status == 0, output
    for host in hosts:
        demo.place_secrets(host, "# no tracker\n")

    for status, output in sliced(directory, "deploy.yml", workers):
        assert status == 0, output
    sha = subprocess.run(
        ["git", "-C", directory / "project", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    for host in hosts:
        assert demo.health(host) == {"status": "ok", "release": sha, "environment": "staging"}

    # Both workers built the same bytes of a release and its two layers, independently of each other.
    first, second = (worker.digests() for worker in workers)
    assert len(first) == 3
    assert first == second

    for status, output in sliced(directory, "deploy.yml", workers):
        assert status == 0, output
        assert "changed=0" in output
