"""Stores that keep jobs until they are done: SQLite in the state directory, or PostgreSQL."""

import fcntl
import hashlib
import os
import re
import socket
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booty.config import Settings

# A job is parked after its process died this often: the job itself may kill the process.
MAX_LOST = 5
# A job whose process died this often runs alone in its process: another job may have killed the process each time.
SUSPECT_LOST = MAX_LOST - 1
# PostgreSQL: after this time without a renewal, another host takes over a claim. Claims are renewed every second.
LEASE_SECONDS = 60
MACHINE_ID = Path("/etc/machine-id")
# The time limit of a statement: a pooler does not answer while its database is unreachable.
STATEMENT_SECONDS = 10
# After this time, a per-host job that did not run is removed: its host was removed or renamed.
HOST_GONE_SECONDS = 7 * 86400
# A process that gave back its claims ends within this time.
END_SECONDS = 3

# `due`, `since`, `lease` and `failed` are seconds since 1970. Old and new releases share this table: only add columns.
TABLE = """
CREATE TABLE IF NOT EXISTS booty_job (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    arguments TEXT NOT NULL,
    host TEXT,                            -- the only host that may run it; NULL: any
    due DOUBLE PRECISION NOT NULL,
    since DOUBLE PRECISION,               -- when `due` was set
    owner TEXT,                           -- the process that runs it
    lease DOUBLE PRECISION,               -- PostgreSQL: when the claim expires
    failures INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,      -- how often a process died that ran it
    failed DOUBLE PRECISION,              -- when it was parked
    error TEXT
)"""
_SINCE = "ALTER TABLE booty_job ADD COLUMN since DOUBLE PRECISION"  # for tables of earlier releases
_INDEX = "CREATE INDEX IF NOT EXISTS booty_job_due ON booty_job (due)"


class StoreError(RuntimeError):
    """The store can't be reached or fails; the message says why."""


@dataclass(frozen=True)
class Claim:
    """A job that this process, and no other, runs."""

    id: str
    kind: str
    arguments: str
    failures: int
    lost: int


class Store(ABC):
    """Jobs in one table. Each step of a job's life is one statement, so that the step is atomic.

    The store connects when first used, and again after a failure. All methods may be called from any thread, block as
    long as the database does, and raise StoreError.
    """

    now: str  # the SQL for the database's clock, which all processes share
    lease: float | None = None  # seconds that a claim holds without a renewal; None: as long as its process lives
    skip_locked = ""

    def __init__(self) -> None:
        self.owner = uuid.uuid4().hex
        self.host = host_id()
        self._lock = threading.Lock()
        self._connection: Any = None

    @abstractmethod
    def _connect(self) -> Any: ...

    @abstractmethod
    def _query(self, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def _errors(self) -> tuple[type[Exception], ...]: ...

    def renew(self) -> list[str]:
        """Renew the claims of this process, where claims have a `lease`."""
        return []

    @abstractmethod
    def _free_dead(self) -> None: ...

    def _execute(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            while True:
                fresh = self._connection is None
                try:
                    if fresh:
                        self._connection = self._connect()
                    return self._query(sql.replace("{now}", self.now), values)
                except self._errors() as error:
                    self._disconnect()
                    if fresh:
                        raise StoreError(" ".join(str(error).split()) or type(error).__name__) from error
                    # An idle connection may have been closed, so connect again and repeat the statement. The first try
                    # may have taken effect: every statement here may be executed twice.

    def _disconnect(self) -> None:
        with suppress(*self._errors(), AttributeError):
            self._connection.close()
        self._connection = None

    def put(self, identity: str, kind: str, arguments: str, *, wait: float = 0, host: str | None = None) -> None:
        """Store a job durably, unless there is one with this id. It becomes due in `wait` seconds."""
        sql = "INSERT INTO booty_job (id, kind, arguments, host, due, since)"
        sql += " VALUES (:id, :kind, :arguments, :host, {now} + :wait, {now}) ON CONFLICT (id) DO NOTHING"
        self._execute(sql, id=identity, kind=kind, arguments=arguments, host=host, wait=wait)

    def claim(self, kinds: Collection[str], alone: bool = True) -> Claim | None:
        """Claim the job that has been due the longest, among the kinds that this release has.

        Unless this process runs no other job (`alone`), a suspect is left, and the jobs after it wait for it.
        """
        names, values = _list("kind", kinds)
        rows = self._execute(
            f"UPDATE booty_job SET owner = :owner, lease = {{now}} + {LEASE_SECONDS} WHERE id ="
            " (SELECT id FROM booty_job WHERE owner IS NULL AND failed IS NULL AND due <= {now}"
            f" AND (host IS NULL OR host = :host) AND kind IN ({names}) ORDER BY due LIMIT 1 {self.skip_locked})"
            + ("" if alone else f" AND lost < {SUSPECT_LOST}")
            + " RETURNING id, kind, arguments, failures, lost",
            owner=self.owner,
            host=self.host,
            **values,
        )
        return Claim(*rows[0]) if rows else None

    def finish(self, identity: str, every: float | None) -> bool:
        """Remove a job that is done. A periodic one becomes due again in `every` seconds instead.

        Returns:
            Whether this process still owned the job.
        """
        sql = "DELETE FROM booty_job"
        values = {}
        if every is not None:
            sql = "UPDATE booty_job SET owner = NULL, due = {now} + :every, since = {now}"
            sql += ", failures = 0, lost = 0, error = NULL"
            values = {"every": every}
        sql += " WHERE id = :id AND owner = :owner RETURNING id"
        return bool(self._execute(sql, id=identity, owner=self.owner, **values))

    def fail(self, identity: str, error: str, wait: float | None, every: float | None) -> None:
        """Record a job's failure. It is due again in `wait` seconds; without `wait`, in `every`; else it is parked."""
        parked = wait is None and every is None
        self._execute(
            "UPDATE booty_job SET owner = NULL, error = :error, failures = "
            + ("0" if wait is None and every is not None else "failures + 1")
            + (", failed = {now}" if parked else ", due = {now} + :wait, since = {now}")
            + " WHERE id = :id AND owner = :owner",
            id=identity,
            owner=self.owner,
            error=error,
            **({} if parked else {"wait": every if wait is None else wait}),
        )

    def tend(self, running: Collection[str]) -> list[Claim]:
        """Free the jobs of dead processes, and correct the due time of jobs that were stored while the clock was wrong.

        Args:
            running: the ids of the jobs that this process runs.

        Returns:
            The jobs that this call parked because their process died too often.
        """
        # `since` is in the future only if the clock was set back. Then the same wait begins again now.
        self._execute(
            "UPDATE booty_job SET due = due - since + {now}, since = {now}"
            " WHERE since > {now} + 1 AND owner IS NULL AND failed IS NULL"
        )
        self._execute(
            "DELETE FROM booty_job WHERE host <> :host AND owner IS NULL AND due < {now} - :gone",
            host=self.host,
            gone=HOST_GONE_SECONDS,
        )
        names, values = _list("id", running)
        # If the answer to a claim was lost, this process owns a job that it does not run.
        sql = "UPDATE booty_job SET owner = NULL WHERE owner = :owner" + (f" AND id NOT IN ({names})" if names else "")
        self._execute(sql, owner=self.owner, **values)
        self._free_dead()
        parked = self._execute(
            "UPDATE booty_job SET failed = {now}, error = :error"
            " WHERE failed IS NULL AND owner IS NULL AND lost >= :lost RETURNING id, kind, arguments, failures, lost",
            error=f"its process died {MAX_LOST} times while it ran",
            lost=MAX_LOST,
        )
        return [Claim(*row) for row in parked]

    def give_back(self) -> None:
        """Let other processes claim the unfinished jobs of this one once it has ended, without counting its death."""
        sql = f"UPDATE booty_job SET lost = lost - 1, lease = {{now}} + {END_SECONDS} WHERE owner = :owner"
        self._execute(sql, owner=self.owner)

    def retry(self, identity: str) -> bool:
        """Make a parked job due now, and return whether the job exists and is parked."""
        sql = "UPDATE booty_job SET failed = NULL, failures = 0, lost = 0, due = {now}"
        return bool(self._execute(f"{sql} WHERE id = :id AND failed IS NOT NULL RETURNING id", id=identity))

    def drop(self, identity: str) -> bool:
        """Remove a parked job, and return whether it existed and was parked."""
        sql = "DELETE FROM booty_job WHERE id = :id AND failed IS NOT NULL RETURNING id"
        return bool(self._execute(sql, id=identity))

    def jobs(self, limit: int = 100) -> list[dict[str, Any]]:
        """List the jobs, parked ones first, without their arguments."""
        rows = self._execute(
            f"SELECT id, kind, {_STATE}, failures, due, host, failed, error FROM booty_job"
            " ORDER BY failed IS NULL, failed DESC, owner IS NULL, due LIMIT :limit",
            limit=limit,
        )
        names = ("id", "kind", "state", "failures", "due", "host", "failed", "error")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def counts(self) -> dict[str, int]:
        """Count the jobs that wait, run and are parked."""
        rows = self._execute(f"SELECT {_STATE}, count(*) FROM booty_job GROUP BY 1")
        return {"waiting": 0, "running": 0, "failed": 0, **dict(rows)}

    def close(self) -> None:
        """Disconnect, unless a thread is waiting for the database: a stop must not wait for it too."""
        if self._lock.acquire(timeout=0.1):
            self._disconnect()
            self._lock.release()


_STATE = "CASE WHEN failed IS NOT NULL THEN 'failed' WHEN owner IS NOT NULL THEN 'running' ELSE 'waiting' END"


def host_id() -> str:
    """Return a unique name for this host: its host name and a hash of its machine id."""
    try:
        machine = MACHINE_ID.read_bytes().strip()
    except OSError:
        machine = b""
    # machine-id(5): the id itself is confidential, a keyed hash of it is not.
    return f"{socket.gethostname()}-{hashlib.sha256(b'booty ' + machine).hexdigest()[:8]}"


def _list(name: str, values: Iterable[str]) -> tuple[str, dict[str, str]]:
    named = {f"{name}{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{key}" for key in named), named


class SqliteStore(Store):
    """Jobs of one host. Each process holds a lock on a file of its own; when the lock is free, the process is dead.

    The process never releases the lock itself: a job that it gave back may still run in a thread until it exits.
    """

    now = "((julianday('now') - 2440587.5) * 86400.0)"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._lock_fd: int | None = None

    def _lock_of(self, owner: str) -> Path:
        return self._directory / f"jobs-{owner}.lock"

    def _connect(self) -> Any:
        import sqlite3  # noqa: PLC0415 - not needed with PostgreSQL

        if self._lock_fd is None:
            # Lock the file, then rename it: under its final name it is never free while this process lives.
            new = self._directory / f".jobs-{self.owner}.lock"
            self._lock_fd = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            new.rename(self._lock_of(self.owner))
            for path in self._directory.glob("jobs-*.lock"):
                self._is_dead(path)
        connection = sqlite3.connect(
            self._directory / "jobs.sqlite3", timeout=5, isolation_level=None, check_same_thread=False
        )
        # WAL lets readers and a writer work at once; FULL writes each commit to disk.
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA synchronous = full")
        connection.execute(TABLE)
        connection.execute(_INDEX)
        if "since" not in {column[1] for column in connection.execute("PRAGMA table_info(booty_job)")}:
            with suppress(sqlite3.OperationalError):  # another process has just added it
                connection.execute(_SINCE)
        return connection

    def _query(self, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, values).fetchall()
        return rows

    def _errors(self) -> tuple[type[Exception], ...]:
        import sqlite3  # noqa: PLC0415 - as above

        return sqlite3.Error, OSError

    def _free_dead(self) -> None:
        # A process takes its lock before it claims a job, so the owner of a job is dead if its lock is free.
        for (owner,) in self._execute(
            "SELECT DISTINCT owner FROM booty_job WHERE owner IS NOT NULL AND owner <> :owner", owner=self.owner
        ):
            if self._is_dead(self._lock_of(owner)):
                self._execute("UPDATE booty_job SET owner = NULL, lost = lost + 1 WHERE owner = :owner", owner=owner)

    @staticmethod
    def _is_dead(lock: Path) -> bool:
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.unlink()
        except BlockingIOError:
            return False
        except FileNotFoundError:
            pass
        return True


class PostgresStore(Store):
    """Jobs that several hosts share. A process that does not renew its claims in time counts as dead."""

    now = "extract(epoch FROM now())"
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.lease = LEASE_SECONDS

    def _connect(self) -> Any:
        import psycopg  # noqa: PLC0415 - takes 60 ms; not needed with SQLite

        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=5,
            tcp_user_timeout=5000,
            application_name="booty",
            prepare_threshold=None,  # poolers in transaction mode lose prepared statements
        )
        has_since = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('booty_job') AND attname = 'since'"
        if not connection.execute(has_since).fetchone():
            with connection.transaction():
                # The lock is needed because IF NOT EXISTS fails when two processes execute it at once.
                connection.execute("SELECT pg_advisory_xact_lock(hashtext('booty_job'))")
                connection.execute(TABLE)
                connection.execute(_INDEX)
                connection.execute(_SINCE.replace("ADD COLUMN", "ADD COLUMN IF NOT EXISTS"))
        return connection

    def _query(self, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        # libpq has no time limit for an answer while the connection stays open. The timer shuts the connection down,
        # which ends the wait with an error.
        with socket.socket(fileno=os.dup(self._connection.fileno())) as connection:
            limit = threading.Timer(STATEMENT_SECONDS, connection.shutdown, [socket.SHUT_RDWR])
            limit.start()
            try:
                cursor = self._connection.execute(re.sub(r":(\w+)", r"%(\1)s", sql), values)
                return cursor.fetchall() if cursor.description else []
            finally:
                limit.cancel()

    def _errors(self) -> tuple[type[Exception], ...]:
        import psycopg  # noqa: PLC0415 - as above

        return (psycopg.Error,)

    def renew(self) -> list[str]:
        """Renew the claims of this process for `lease` seconds, and return the ids of the jobs that it still owns."""
        sql = "UPDATE booty_job SET lease = {now} + :lease WHERE owner = :owner RETURNING id"
        rows = self._execute(sql, lease=self.lease, owner=self.owner)
        return [identity for (identity,) in rows]

    def _free_dead(self) -> None:
        # After a restart of the database, all processes have the full lease to renew their claims.
        self._execute(
            "UPDATE booty_job SET owner = NULL, lost = lost + 1 WHERE owner <> :owner AND lease < {now}"
            f" AND extract(epoch FROM pg_postmaster_start_time()) < {{now}} - {LEASE_SECONDS}",
            owner=self.owner,
        )


def open_store(settings: Settings) -> Store | None:
    """Return the store for the settings, not yet connected; None without BOOTY_QUEUE_URL and STATE_DIRECTORY."""
    if settings.booty_queue_url:
        return PostgresStore(settings.booty_queue_url.get_secret_value())
    return SqliteStore(settings.state_directory) if settings.state_directory else None
