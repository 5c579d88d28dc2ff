"""A temporary PostgreSQL cluster, from Debian's packages."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

BINARIES = "/usr/lib/postgresql/*/bin"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def binaries() -> Path:
    """Return the directory of the server's programs; as root, install them if they are missing."""
    postgres = sorted(Path("/").glob(f"{BINARIES[1:]}/postgres"))
    if not postgres and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"], check=True)
        postgres = sorted(Path("/").glob(f"{BINARIES[1:]}/postgres"))
    if not postgres:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return postgres[-1].parent


def answers(url: str, log: Path) -> None:
    """Wait until a server answers; fail with its log if it does not."""
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


class Cluster:
    """A PostgreSQL server with one database. It does not run as root.

    Args:
        address: the address that it listens on.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address
        self._binaries = binaries()
        self._user: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
        self._directory = Path(tempfile.mkdtemp(prefix="booty-postgres-"))
        if self._user:
            shutil.chown(self._directory, "postgres")
        with socket.create_server((address, 0)) as sock:
            self.port = sock.getsockname()[1]
        self.url = f"postgresql://booty:pw-of-queue@{address}:{self.port}/booty"
        self._admin = f"host={self._directory} port={self.port} user=booty dbname=postgres"
        self._process: subprocess.Popen[bytes] | None = None
        password = self._directory / "password"
        password.write_text("pw-of-queue\n")
        password.chmod(0o644)
        self._run("initdb", "--username=booty", f"--pwfile={password}", "--auth-host=scram-sha-256", "--no-sync")
        with (self._directory / "data/pg_hba.conf").open("a") as clients:
            clients.write(f"host all all {address}/16 scram-sha-256\n")
        self.start()
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute("CREATE DATABASE booty")

    def _run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self._binaries / program, "-D", self._directory / "data", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **self._user)

    def start(self) -> None:
        """Start the server and return once it answers."""
        command: list[str | Path] = [self._binaries / "postgres", "-D", self._directory / "data", "-h", self._address]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-p", str(self.port), "-k", self._directory], stdout=log, stderr=log, cwd="/", **self._user
            )
        answers(self._admin, self._directory / "log")

    def stop(self) -> None:
        """Stop the server, which cuts its clients' connections."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
        self._process = None

    def close(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self._directory)

    def pool(self) -> "Pooler":
        """Start a pooler before the server."""
        return Pooler(self.port, self._user)

    def clear(self) -> None:
        """Remove all jobs."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS booty_job")


class Pooler:
    """A pgbouncer in front of a server. It gives a client a connection for one transaction at a time.

    Args:
        port: the server's.
        user: what `subprocess.run` takes to be somebody else than root.
    """

    def __init__(self, port: int, user: dict[str, Any]) -> None:
        if not shutil.which("pgbouncer", path=PATH):
            if os.geteuid():
                pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
            subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", "pgbouncer"], check=True)
        self._directory = Path(tempfile.mkdtemp(prefix="booty-pgbouncer-"))
        with socket.create_server(("127.0.0.1", 0)) as sock:
            own = sock.getsockname()[1]
        self.url = f"postgresql://booty:pw-of-queue@127.0.0.1:{own}/booty"
        (self._directory / "users").write_text('"booty" "pw-of-queue"\n')
        (self._directory / "pgbouncer.ini").write_text(
            f"[databases]\nbooty = host=127.0.0.1 port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {own}\nunix_socket_dir =\nauth_type = plain\nauth_file = {self._directory}/users\n"
            "pool_mode = transaction\n"
        )
        for path in (self._directory, *self._directory.iterdir()):
            if user:
                shutil.chown(path, user["user"])
        program = shutil.which("pgbouncer", path=PATH)
        assert program
        with (self._directory / "log").open("ab") as log:
            command = [program, str(self._directory / "pgbouncer.ini")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **user)
        answers(self.url, self._directory / "log")

    def close(self) -> None:
        """Kill the pooler, even if SIGSTOP stopped it, and remove its files."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._directory)
