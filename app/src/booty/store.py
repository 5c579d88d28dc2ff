"""Where jobs are kept until they are done: SQLite in the state directory, or PostgreSQL."""

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

# A job whose process dies this often is parked: it may be what kills it.
MAX_LOST = 5
# PostgreSQL: another host takes over a claim that was not renewed for so long. Claims are renewed every second.
LEASE_SECONDS = 60
MACHINE_ID = Path("/etc/machine-id")
# How long a statement may take. A pooler keeps a client waiting while its database is away.
STATEMENT_SECONDS = 10
# A per-host job that no host ran for so long is removed: its host is gone, or has another name.
HOST_GONE_SECONDS = 7 * 86400
# After a claim was given back, its process ends within this time.
END_SECONDS = 3

# `due`, `since`, `lease` and `failed` are seconds since 1970. Old and new releases share this table: only add columns.
TABLE = """
CREATE TABLE IF NOT EXISTS booty_job (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    arguments TEXT NOT NULL,
    host TEXT,                            -- that alone may run it
    due DOUBLE PRECISION NOT NULL,
    since DOUBLE PRECISION,               -- when `due` was set
    owner TEXT,                           -- the process that runs it
    lease DOUBLE PRECISION,               -- of a claim in PostgreSQL: until when it holds
    failures INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,      -- how often its process died
    failed DOUBLE PRECISION,              -- when it was parked
    error TEXT
)"""
_SINCE = "ALTER TABLE booty_job ADD COLUMN since DOUBLE PRECISION"  # a table that an earlier release made
_INDEX = "CREATE INDEX IF NOT EXISTS booty_job_due ON booty_job (due)"


class StoreError(RuntimeError):
    """The store can't be reached or fails; the message says why."""


@dataclass(frozen=True)
class Claim:
    """A job that this process runs and nobody else."""

    id: str
    kind: str
    arguments: str
    failures: int


class Store(ABC):
    """Jobs in one table. Each step of a job's life is one statement, so that it happens or does not.

    The connection is made when it is first needed, and again after a failure. All methods may be called from any
    thread, block for as long as the database does, and raise StoreError.
    """

    now: str  # the database's clock: one for all who share it
    lease: float | None = (
        None  # seconds that a claim holds without being renewed; None: for as long as its process lives
    )
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
                    # A connection that idled may be gone. What it was asked may be done already; each statement here is
                    # one that can be said twice.

    def _disconnect(self) -> None:
        with suppress(*self._errors(), AttributeError):
            self._connection.close()
        self._connection = None

    def put(self, identity: str, kind: str, arguments: str, *, wait: float = 0, host: str | None = None) -> None:
        """Keep a job for good, unless there is one of this id already; it may run in `wait` seconds."""
        self._execute(
            "INSERT INTO booty_job (id, kind, arguments, host, due, since)"
            " VALUES (:id, :kind, :arguments, :host, {now} + :wait, {now}) ON CONFLICT (id) DO NOTHING",
            id=identity,
            kind=kind,
            arguments=arguments,
            host=host,
            wait=wait,
        )

    def claim(self, kinds: Collection[str]) -> Claim | None:
        """Take the job that is due for the longest time, of these kinds: another release may have others."""
        names, values = _list("kind", kinds)
        rows = self._execute(
            f"UPDATE booty_job SET owner = :owner, lease = {{now}} + {LEASE_SECONDS} WHERE id ="
            " (SELECT id FROM booty_job WHERE owner IS NULL AND failed IS NULL AND due <= {now}"
            f" AND (host IS NULL OR host = :host) AND kind IN ({names}) ORDER BY due LIMIT 1 {self.skip_locked})"
            " RETURNING id, kind, arguments, failures",
            owner=self.owner,
            host=self.host,
            **values,
        )
        return Claim(*rows[0]) if rows else None

    def finish(self, identity: str, every: float | None) -> bool:
        """Remove a job that is done, or put it off if it is one that runs every so many seconds.

        Returns:
            Whether it was this process's to finish.
        """
        if every is None:
            sql = "DELETE FROM booty_job"
        else:
            sql = "UPDATE booty_job SET owner = NULL, due = {now} + :every, since = {now}"
            sql += ", failures = 0, lost = 0, error = NULL"
        values = {} if every is None else {"every": every}
        sql += " WHERE id = :id AND owner = :owner RETURNING id"
        return bool(self._execute(sql, id=identity, owner=self.owner, **values))

    def fail(self, identity: str, error: str, wait: float | None, every: float | None) -> None:
        """Note that a job failed: it runs again in `wait` seconds, or else not before somebody says so.

        One that runs every so many seconds has its next turn instead.
        """
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
        """Free the jobs of processes that died, and those whose time a wrong clock put off.

        Args:
            running: the ids of the jobs that this process runs.

        Returns:
            The jobs that are parked now, since their process died too often.
        """
        # The clock was put back since: the wait begins anew, instead of lasting until the wrong time comes.
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
        # A claim whose answer got lost is nobody's.
        self._execute(
            "UPDATE booty_job SET owner = NULL WHERE owner = :owner" + (f" AND id NOT IN ({names})" if names else ""),
            owner=self.owner,
            **values,
        )
        self._free_dead()
        parked = self._execute(
            "UPDATE booty_job SET failed = {now}, error = :error"
            " WHERE failed IS NULL AND owner IS NULL AND lost >= :lost RETURNING id, kind, arguments, failures",
            error=f"its process died {MAX_LOST} times while it ran",
            lost=MAX_LOST,
        )
        return [Claim(*row) for row in parked]

    def give_back(self) -> None:
        """Let others have the jobs that this process could not end, as soon as it is gone; it counts as no failure."""
        self._execute(
            f"UPDATE booty_job SET lost = lost - 1, lease = {{now}} + {END_SECONDS} WHERE owner = :owner",
            owner=self.owner,
        )

    def retry(self, identity: str) -> bool:
        """Have a parked job run again, and return whether there is such a one."""
        return bool(
            self._execute(
                "UPDATE booty_job SET failed = NULL, failures = 0, lost = 0, due = {now}"
                " WHERE id = :id AND failed IS NOT NULL RETURNING id",
                id=identity,
            )
        )

    def drop(self, identity: str) -> bool:
        """Remove a parked job, and return whether there was such a one."""
        return bool(
            self._execute("DELETE FROM booty_job WHERE id = :id AND failed IS NOT NULL RETURNING id", id=identity)
        )

    def jobs(self, limit: int = 100) -> list[dict[str, Any]]:
        """Tell of the jobs that are there, parked ones first, without their arguments."""
        rows = self._execute(
            f"SELECT id, kind, {_STATE}, failures, due, host, failed, error FROM booty_job"
            " ORDER BY failed IS NULL, failed DESC, owner IS NULL, due LIMIT :limit",
            limit=limit,
        )
        names = ("id", "kind", "state", "failures", "due", "host", "failed", "error")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def counts(self) -> dict[str, int]:
        """Tell how many jobs wait, run and are parked."""
        rows = self._execute(f"SELECT {_STATE}, count(*) FROM booty_job GROUP BY 1")
        return {"waiting": 0, "running": 0, "failed": 0, **dict(rows)}

    def close(self) -> None:
        """Let go of the database, unless a thread waits for it: a stop must not."""
        if self._lock.acquire(timeout=0.1):
            self._disconnect()
            self._lock.release()


_STATE = "CASE WHEN failed IS NOT NULL THEN 'failed' WHEN owner IS NOT NULL THEN 'running' ELSE 'waiting' END"


def host_id() -> str:
    """Return a name for this host that another host of the same host name does not have; see machine-id(5)."""
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
    """Jobs of one host. A process lives for as long as it holds the lock on its file: no clock decides that.

    So the lock is never let go: a job that was given back may still run in a thread until the process ends.
    """

    now = "((julianday('now') - 2440587.5) * 86400.0)"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._file: int | None = None

    def _lock_of(self, owner: str) -> Path:
        return self._directory / f"jobs-{owner}.lock"

    def _connect(self) -> Any:
        import sqlite3  # noqa: PLC0415 - not needed by who uses PostgreSQL

        if self._file is None:
            # In place only once it is locked, so that nobody ever finds it free.
            new = self._directory / f".jobs-{self.owner}.lock"
            self._file = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            new.rename(self._lock_of(self.owner))
            for path in self._directory.glob("jobs-*.lock"):
                self._is_dead(path)
        connection = sqlite3.connect(
            self._directory / "jobs.sqlite3", timeout=5, isolation_level=None, check_same_thread=False
        )
        # Readers and a writer at once; and what is committed is on disk.
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
        # Whoever owns a job held its lock before, so one that is free now is a dead process's.
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
    """Jobs that several hosts share. A process lives for as long as it renews its claims, by the database's clock."""

    now = "extract(epoch FROM now())"
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.lease = LEASE_SECONDS

    def _connect(self) -> Any:
        import psycopg  # noqa: PLC0415 - 60 ms that a start with SQLite does not need

        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=5,
            tcp_user_timeout=5000,
            application_name="booty",
            prepare_threshold=None,  # so that a pooler may sit between
        )
        known = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('booty_job') AND attname = 'since'"
        if not connection.execute(known).fetchone():
            with connection.transaction():
                # IF NOT EXISTS alone fails when two do it at once.
                connection.execute("SELECT pg_advisory_xact_lock(hashtext('booty_job'))")
                connection.execute(TABLE)
                connection.execute(_INDEX)
                connection.execute(_SINCE.replace("ADD COLUMN", "ADD COLUMN IF NOT EXISTS"))
        return connection

    def _query(self, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        # libpq waits for an answer without end, as long as somebody keeps the connection. An end of file ends the wait.
        with socket.socket(fileno=os.dup(self._connection.fileno())) as wire:
            limit = threading.Timer(STATEMENT_SECONDS, wire.shutdown, [socket.SHUT_RDWR])
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
        """Renew the claims of this process for `lease` seconds, and return the ids of the jobs that it still holds."""
        rows = self._execute(
            "UPDATE booty_job SET lease = {now} + :lease WHERE owner = :owner RETURNING id",
            lease=self.lease,
            owner=self.owner,
        )
        return [identity for (identity,) in rows]

    def _free_dead(self) -> None:
        # Once the database is up again after a restart, all have as long as ever to renew.
        self._execute(
            "UPDATE booty_job SET owner = NULL, lost = lost + 1 WHERE owner <> :owner AND lease < {now}"
            f" AND extract(epoch FROM pg_postmaster_start_time()) < {{now}} - {LEASE_SECONDS}",
            owner=self.owner,
        )


def open_store(settings: Settings) -> Store | None:
    """Choose the store that the settings say; none without a state directory and a URL. Nothing is touched yet."""
    if settings.booty_queue_url:
        return PostgresStore(settings.booty_queue_url.get_secret_value())
    return SqliteStore(settings.state_directory) if settings.state_directory else None
