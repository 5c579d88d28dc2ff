"""The job queue as real processes, in SQLite and in a real PostgreSQL: no job is lost, none runs twice."""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import pytest
from app.tests.postgres import Cluster
from runner.tests.clients import Connection
from runner.tests.conftest import SRC

from booty.queue import Job
from booty.store import HOST_GONE_SECONDS, MAX_LOST, TABLE, SqliteStore, StoreError


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()


class Place:
    """A queue and the services that share it. Each service has its own sockets."""

    def __init__(self, start, directory, make_socket, **settings):
        self.notes = directory / "notes"
        self.directory = directory
        self._start = start
        self._socket = make_socket
        self._settings = {"TEST_NOTES": str(self.notes), "STATE_DIRECTORY": str(directory), **settings}
        self.addresses = {}

    def service(self, **settings):
        sockets = [self._socket(), self._socket("unix")]
        service = self._start(sockets=sockets, **{**self._settings, **settings})
        self.addresses[service] = sockets
        return service.ready()

    def post(self, service, kind, *jobs):
        """Put jobs into the queue through a route, and return their ids."""
        body = json.dumps(jobs).encode()
        with Connection(self.addresses[service][0]) as connection:
            head = f"POST /jobs/{kind} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sock.sendall(head.encode() + body)
            status, _, answer = connection.receive()
        assert status == 200, answer
        return json.loads(answer)

    def ask(self, service, path, method="GET"):
        with Connection(self.addresses[service][1]) as connection:
            return json.loads(connection.ask(path, method)[2])

    def jobs(self, service):
        jobs = self.ask(service, "/jobs")["jobs"]
        return {job["id"]: job for job in jobs if job["kind"] not in {"tick", "verify"}}

    def lines(self):
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def command(self, service, *arguments):
        """Run `serve …` as on the host."""
        socket = self.addresses[service][1].getsockname()
        return subprocess.run(
            [sys.executable, "-m", "booty_runner", "-", *arguments, "--socket", socket],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": SRC},
            timeout=60,
            check=False,
        )


def wait_for(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


@pytest.fixture
def make_socket(tmp_path):
    import socket

    sockets, number = [], itertools.count()

    def make(kind="tcp"):
        sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        sock.bind(str(tmp_path / f"s{next(number)}") if kind == "unix" else ("127.0.0.1", 0))
        sock.listen(64)
        sockets.append(sock)
        return sock

    yield make
    for sock in sockets:
        sock.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def place(request, start, tmp_path, make_socket):
    if request.param == "sqlite":
        return Place(start, tmp_path, make_socket)
    cluster = request.getfixturevalue("cluster")
    cluster.clear()
    # Two services stand for two hosts: they share the database and nothing else.
    return Place(start, tmp_path, make_socket, BOOTY_QUEUE_URL=cluster.url, TEST_LEASE="6")


def kill(service):
    service.process.kill()
    service.process.wait()


def test_a_job_runs_once_async_or_not_and_one_may_begin_another(place):
    service = place.service()
    ids = [*place.post(service, "work", {"name": "a"}), *place.post(service, "toil", {"name": "b"}, {"name": "c"})]
    ids += place.post(service, "chain", {"name": "d"})
    assert len({*ids}) == 4
    wait_for(lambda: {"end a", "end b", "end c", "end d"} <= {*place.lines()} and not place.jobs(service))
    service.stop()
    assert service.wait()[0] == 0
    assert Counter(place.lines()) == Counter(f"{when} {name}" for when in ("begin", "end") for name in "abcd")


def test_a_job_accepted_by_a_sync_route(place):
    service = place.service()
    with Connection(place.addresses[service][0]) as connection:
        assert connection.ask("/jobs/work/sync?name=a", "POST")[0] == 200
    wait_for(lambda: "end a" in place.lines())


@pytest.mark.parametrize("kind", ["work", "toil"])
def test_a_job_survives_the_death_of_its_process(place, kind):
    service = place.service()
    place.post(service, kind, {"name": "long", "seconds": 3}, {"name": "short"}, {"name": "late", "seconds": 0.1})
    wait_for(lambda: "begin long" in place.lines())
    kill(service)
    service = place.service()
    wait_for(lambda: {"end long", "end short", "end late"} <= {*place.lines()} and not place.jobs(service))
    counts = Counter(place.lines())
    assert counts["begin long"] == 2
    assert counts["end long"] == 1


def test_what_was_accepted_before_anybody_ran_jobs_is_kept(place):
    service = place.service(BOOTY_QUEUE_JOBS="0")
    place.post(service, "work", {"name": "a"})
    kill(service)
    assert place.lines() == []
    place.service()
    wait_for(lambda: "end a" in place.lines())


def test_two_processes_run_each_job_once(place):
    services = [place.service(), place.service()]
    for number, service in zip(range(40), itertools.cycle(services), strict=False):
        place.post(service, "work" if number % 3 else "toil", {"name": number, "seconds": 0.05})
    wait_for(lambda: not place.jobs(services[0]))
    for service in services:
        service.stop()
        assert service.wait()[0] == 0
    assert Counter(place.lines()) == Counter(f"{when} {n}" for when in ("begin", "end") for n in range(40))


def test_a_release_on_trial_accepts_jobs_and_runs_none(place):
    candidate = place.service(BOOTY_CANDIDATE="true")
    place.post(candidate, "work", {"name": "a"})
    service = place.service()
    wait_for(lambda: "end a" in place.lines() and not place.jobs(service))
    kill(service)
    place.post(candidate, "work", {"name": "b"})
    time.sleep(1)
    assert place.lines() == ["begin a", "end a"]
    candidate.process.send_signal(signal.SIGUSR2)  # the signal of a handover: the candidate becomes the service
    wait_for(lambda: "end b" in place.lines())
    candidate.process.send_signal(signal.SIGUSR2)
    candidate.stop()
    assert candidate.wait()[0] == 0
    assert Counter(place.lines()) == Counter(f"{when} {name}" for when in ("begin", "end") for name in "ab")


def test_a_failing_job_is_reported_tried_again_and_parked(place, tracker):
    service = place.service(SENTRY_DSN=tracker.dsn, SENTRY_RELEASE="abc", PLANTED="hunter2-planted")
    (parked,) = place.post(service, "falter", {"name": "always", "times": 9})
    (mended,) = place.post(service, "falter", {"name": "once", "times": 1})
    wait_for(lambda: [job["state"] for job in place.jobs(service).values()] == ["failed"])
    (job,) = place.jobs(service).values()
    assert job["id"] == parked
    assert job["failures"] == 3
    assert job["error"] == "LookupError: always in attempt 3, with [Filtered]"
    assert place.ask(service, "/status")["jobs"]["failed"] == 1
    at = [float(line.split()[1]) for line in place.lines() if line.startswith("always")]
    assert at[1] - at[0] >= 0.2
    assert at[2] - at[1] >= 0.4
    wait_for(lambda: len(tracker.events) == 4)
    seen = {(e["tags"]["job_id"], e["tags"]["job_kind"], e["tags"]["job_attempt"]) for e in tracker.events}
    assert seen == {(parked, "falter", "1"), (parked, "falter", "2"), (parked, "falter", "3"), (mended, "falter", "1")}
    for event in tracker.events:
        assert event["transaction"] == "falter"
        assert event["release"] == "abc"
        assert event["exception"]["values"][-1]["type"] == "LookupError"
        assert "hunter2" not in json.dumps(event)
    shown = place.command(service, "jobs")
    assert shown.returncode == 0, shown.stderr
    line = next(line for line in shown.stdout.splitlines() if line.startswith(parked))
    assert line.split()[1:4] == ["falter", "failed", "3"]
    assert place.command(service, "jobs", "--retry", mended).stderr == f"booty: no job {mended} has failed\n"
    assert place.command(service, "jobs", "--retry", parked).returncode == 0
    wait_for(lambda: len([line for line in place.lines() if line.startswith("always")]) == 6)
    wait_for(lambda: place.jobs(service)[parked]["state"] == "failed")
    assert place.command(service, "jobs", "--drop", parked, "--json").returncode == 0
    assert place.jobs(service) == {}
    service.stop()
    status, journal = service.wait()
    assert status == 0
    assert f"job {parked} (falter) failed in attempt 3, parked" in journal
    assert "hunter2" not in journal


def test_sys_exit_in_a_job_ends_the_job_alone(place):
    service = place.service()
    (left,) = place.post(service, "leave", {})
    wait_for(lambda: place.jobs(service)[left]["state"] == "failed")
    assert place.jobs(service)[left]["error"] == "SystemExit: from a job"
    assert service.process.poll() is None


@pytest.mark.long
def test_a_job_that_kills_its_process_is_parked_at_last(place, tracker):
    service = place.service(SENTRY_DSN=tracker.dsn)
    (beside,) = place.post(service, "work", {"name": "a", "seconds": 0.5})
    (deadly,) = place.post(service, "kill", {"name": "deadly"})
    for _ in range(MAX_LOST - 1):
        service.process.wait(40)
        service = place.service(SENTRY_DSN=tracker.dsn)
    service.process.wait(40)
    service = place.service(SENTRY_DSN=tracker.dsn)
    wait_for(lambda: place.jobs(service)[deadly]["state"] == "failed")
    # The job that ran beside it each time had to run alone the last time, and could end.
    assert place.lines() == [*["begin a", "deadly"] * (MAX_LOST - 1), "begin a", "end a", "deadly"]
    assert beside not in place.jobs(service)
    (event,) = wait_for(lambda: [event for event in tracker.events if event["tags"]["job_id"] == deadly])
    assert "its process died each time" in (event.get("message") or event["logentry"]["message"])


@pytest.mark.parametrize("kind", ["work", "toil"])
def test_the_stop_waits_for_jobs_within_the_drain(place, kind):
    service = place.service()
    place.post(service, kind, {"name": "a", "seconds": 1.5})
    wait_for(lambda: "begin a" in place.lines())
    service.stop()
    assert service.wait()[0] == 0
    assert place.lines() == ["begin a", "end a"]


@pytest.mark.parametrize("kind", ["work", "toil"])
def test_a_job_longer_than_the_drain_goes_back_and_loses_no_attempt(place, kind):
    service = place.service(BOOTY_DRAIN_SECONDS="0.5")
    (long,) = place.post(service, kind, {"name": "a", "seconds": 60})
    wait_for(place.lines)
    service.stop()
    status, journal = service.wait(15)
    assert status == 0
    assert "1 jobs go back to the queue" in journal
    service = place.service()
    wait_for(lambda: len(place.lines()) == 2)
    job = place.jobs(service)[long]
    assert (job["state"], job["failures"], job["error"]) == ("running", 0, None)


def test_a_kind_that_a_release_does_not_know_waits_for_one_that_does(place):
    old = place.service(TEST_WITHOUT="work")
    new = place.service(BOOTY_QUEUE_JOBS="0")
    (waiting,) = place.post(new, "work", {"name": "a"})
    place.post(new, "toil", {"name": "b"})
    wait_for(lambda: "end b" in place.lines())
    time.sleep(1.2)  # long enough for the old service to take the job
    assert place.jobs(old)[waiting]["state"] == "waiting"
    place.service()
    wait_for(lambda: "end a" in place.lines())


def test_what_runs_by_itself_is_one_job_for_all_processes(place):
    services = [place.service(TEST_TICK="1"), place.service(TEST_TICK="1")]
    wait_for(lambda: len(place.lines()) >= 3)
    kinds = Counter(job["kind"] for job in place.ask(services[0], "/jobs")["jobs"])
    assert kinds == {"tick": 1, "verify": 1}
    for service in services:
        kill(service)
    service = place.service(TEST_TICK="1")
    seen = len(place.lines())
    wait_for(lambda: len(place.lines()) > seen)


def test_postgresql_may_restart(start, tmp_path, make_socket, cluster):
    cluster.clear()
    place = Place(start, tmp_path, make_socket, BOOTY_QUEUE_URL=cluster.url)
    service = place.service()
    place.post(service, "work", {"name": "a", "seconds": 2})
    wait_for(lambda: "begin a" in place.lines())
    cluster.stop()
    wait_for(lambda: "the job queue can't be reached" in service.stderr_path.read_text())
    with Connection(place.addresses[service][0]) as connection:
        assert connection.ask("/jobs/work/sync?name=b", "POST")[0] == 500  # the client gets to know
    with Connection(place.addresses[service][0]) as connection:
        assert connection.ask("/health")[0] == 200
    wait_for(lambda: "end a" in place.lines())
    cluster.start()
    wait_for(lambda: place.jobs(service) == {})
    place.post(service, "work", {"name": "c"})
    wait_for(lambda: "end c" in place.lines())
    service.stop()
    status, journal = service.wait()
    assert status == 0
    assert Counter(place.lines()) == Counter(["begin a", "end a", "begin c", "end c"])
    assert journal.count("the job queue can't be reached") == 1
    assert journal.count("the job queue can be reached again") == 1
    assert "pw-of-queue" not in journal


@pytest.mark.long
def test_another_host_takes_over_when_a_claim_is_no_longer_renewed(start, tmp_path, make_socket, cluster):
    cluster.clear()
    place = Place(start, tmp_path, make_socket, BOOTY_QUEUE_URL=cluster.url, TEST_LEASE="6")
    lost, other = place.service(), place.service(BOOTY_QUEUE_JOBS="0")
    place.post(other, "work", {"name": "a", "seconds": 1})
    wait_for(lambda: "begin a" in place.lines())
    lost.process.send_signal(signal.SIGSTOP)  # a stopped process stands for a host that can't be reached
    place.service()
    wait_for(lambda: "end a" in place.lines())
    lost.process.send_signal(signal.SIGCONT)
    assert lost.process.wait(10) == -signal.SIGALRM  # it is killed, because another host has begun its job anew
    assert Counter(place.lines()) == {"begin a": 2, "end a": 1}


@pytest.mark.long
def test_a_job_that_blocks_the_loop_keeps_its_claim(start, tmp_path, make_socket, cluster):
    cluster.clear()
    place = Place(start, tmp_path, make_socket, BOOTY_QUEUE_URL=cluster.url, TEST_LEASE="6")
    place.service()
    # Another process accepts the job, because the process that runs it can't answer meanwhile.
    place.post(place.service(BOOTY_QUEUE_JOBS="0"), "block", {"name": "a", "seconds": 15})
    wait_for(lambda: "begin a" in place.lines())
    other = place.service()
    wait_for(lambda: "end a" in place.lines())
    wait_for(lambda: place.jobs(other) == {})
    assert place.lines() == ["begin a", "end a"]


@pytest.mark.long
def test_a_job_that_holds_the_interpreter_ends_with_its_process_before_another_begins(
    start, tmp_path, make_socket, cluster
):
    cluster.clear()
    place = Place(start, tmp_path, make_socket, BOOTY_QUEUE_URL=cluster.url, TEST_LEASE="6")
    first = place.service()
    place.post(place.service(BOOTY_QUEUE_JOBS="0"), "grip", {"name": "a", "seconds": 30})
    wait_for(lambda: "begin a" in place.lines())
    other = place.service()
    assert first.process.wait(10) == -signal.SIGALRM
    assert place.lines() == ["begin a"]
    wait_for(lambda: place.lines() == ["begin a", "begin a"])
    kill(other)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cling", "heed"])
def test_a_job_is_told_that_it_lost_its_claim_before_another_begins(start, tmp_path, make_socket, cluster, kind):
    """The pooler of one host hangs for longer than the lease, but still accepts TCP connections."""
    cluster.clear()
    pooler = cluster.pool()
    try:
        place = Place(start, tmp_path, make_socket, BOOTY_QUEUE_URL=pooler.url, TEST_LEASE="6")
        cut_off = place.service()
        place.post(cut_off, kind, {"name": "a", "seconds": 25})
        wait_for(lambda: "begin a" in place.lines())
        other = place.service(BOOTY_QUEUE_URL=cluster.url)
        pooler.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: place.lines().count("begin a") == 2)
        assert place.lines() == ["begin a", "told a", "begin a"]
        pooler.process.send_signal(signal.SIGCONT)
        wait_for(lambda: "end a" in place.lines())
        wait_for(lambda: place.jobs(cut_off) == {})
        assert place.lines() == ["begin a", "told a", "begin a", "end a"]
        assert "lost its claim" in cut_off.stderr_path.read_text()
        for service in (cut_off, other):
            service.stop()
            assert service.wait()[0] == 0
    finally:
        pooler.close()


@pytest.mark.long
def test_a_pooler_that_hangs_for_less_than_the_lease_costs_nothing(start, tmp_path, make_socket, cluster):
    cluster.clear()
    pooler = cluster.pool()
    try:
        place = Place(start, tmp_path, make_socket, BOOTY_QUEUE_URL=pooler.url, TEST_LEASE="30")
        first, other = place.service(), place.service(BOOTY_QUEUE_URL=cluster.url)
        place.post(first, "cling", {"name": "a", "seconds": 20})
        wait_for(lambda: "begin a" in place.lines())
        pooler.process.send_signal(signal.SIGSTOP)
        time.sleep(12)
        pooler.process.send_signal(signal.SIGCONT)
        wait_for(lambda: place.jobs(other) == {})
        assert place.lines() == ["begin a", "end a"]
    finally:
        pooler.close()


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path)
    yield store
    store.close()


def test_a_claim_is_one_process_s(store, tmp_path):
    other = SqliteStore(tmp_path)
    store.put("1", "work", "[[], {}]")
    assert store.claim(["toil"]) is None
    assert store.claim(["work"]).id == "1"
    assert other.claim(["work"]) is None
    assert other.tend([]) == []
    assert other.claim(["work"]) is None
    assert not other.finish("1", None)
    assert store.finish("1", None)
    assert store.counts() == {"waiting": 0, "running": 0, "failed": 0}
    other.close()


def test_a_suspect_is_claimed_alone_and_others_wait_for_it(store):
    store.put("1", "work", "[[], {}]")
    store.put("2", "work", "[[], {}]", wait=-1)
    store._execute("UPDATE booty_job SET lost = 4 WHERE id = '2'")
    assert store.claim(["work"], alone=False) is None
    assert (store.claim(["work"]).id, store.claim(["work"], alone=False).id) == ("2", "1")


def test_a_claim_whose_answer_got_lost_is_freed(store):
    store.put("1", "work", "[[], {}]")
    store.claim(["work"])
    store.tend(["1"])
    assert store.claim(["work"]) is None
    store.tend([])
    assert store.claim(["work"]).id == "1"


@pytest.mark.parametrize("hours", [3, -3])
def test_a_clock_that_is_put_right_puts_off_no_job(store, monkeypatch, hours):
    right = SqliteStore.now
    monkeypatch.setattr(SqliteStore, "now", f"({right} + {hours * 3600})")
    for identity in "123":
        store.put(identity, "work", "[[], {}]")
    failed, every = store.claim(["work"]).id, store.claim(["work"]).id
    store.fail(failed, "LookupError", 10, None)
    store.finish(every, 600)
    monkeypatch.setattr(SqliteStore, "now", right)
    store.tend([])
    waits = sorted(max(job["due"] - time.time(), 0) for job in store.jobs())
    assert waits == pytest.approx([0, 10, 600] if hours > 0 else [0, 0, 0], abs=5)


def test_a_table_of_an_earlier_release_is_kept(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as earlier:
        earlier.execute(TABLE.replace("since DOUBLE PRECISION,", ""))
        earlier.execute("INSERT INTO booty_job (id, kind, arguments, due) VALUES ('1', 'work', '[[], {}]', 5)")
        earlier.commit()
    store = SqliteStore(tmp_path)
    store.tend([])
    assert store.claim(["work"]).id == "1"
    store.fail("1", "LookupError", 10, None)
    assert store.jobs()[0]["due"] > time.time()
    store.close()


def test_hosts_of_one_name_have_jobs_of_their_own(tmp_path, monkeypatch):
    def host(machine):
        monkeypatch.setattr("booty.store.MACHINE_ID", tmp_path / machine)
        (tmp_path / machine).write_text(f"{machine * 32}\n")
        store = SqliteStore(tmp_path)
        store.put(f"verify@{store.host}", "verify", "[[], {}]", host=store.host)
        return store

    stores = [host("a"), host("b")]
    assert [store.claim(["verify"]).id for store in stores] == [f"verify@{store.host}" for store in stores]
    assert stores[0].host != stores[1].host
    for store in stores:
        store.close()


def test_a_job_of_a_host_that_is_gone_goes_at_last(store):
    store.put("verify@gone", "verify", "[[], {}]", host="gone")
    store.tend([])
    assert len(store.jobs()) == 1
    store.put("verify@long gone", "verify", "[[], {}]", host="gone", wait=-HOST_GONE_SECONDS - 1)
    store.tend([])
    assert [job["id"] for job in store.jobs()] == ["verify@gone"]


def test_what_is_given_back_counts_as_no_death(store, tmp_path):
    store.put("1", "work", "[[], {}]")
    for _ in range(MAX_LOST + 1):
        other = SqliteStore(tmp_path)
        assert other.claim(["work"]).id == "1"
        other.give_back()
        other.close()
        os.close(other._lock_fd)  # the end of a process closes its lock
        assert store.tend([]) == []


def test_an_accepted_job_is_on_disk(store):
    store.put("1", "work", "[[], {}]")
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: each commit is synced
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_store_that_cannot_be_opened(tmp_path):
    with pytest.raises(StoreError, match="No such file or directory"):
        SqliteStore(tmp_path / "missing").counts()


def test_waits_grow_and_end():
    job = Job(print, retries=3, wait=10, growth=3, every=None, on_each_host=False)
    assert [job.wait_after(failures) for failures in (1, 2, 3, 4)] == [10, 30, 90, None]


CHECKS = ["settings", "tracker", "release", "state", "disk", "clock", "queue"]


def test_booty_verify(place, tracker):
    service = place.service(SENTRY_DSN=tracker.dsn, SENTRY_RELEASE="abc")
    shown = place.command(service, "verify")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [row[:2] for row in rows] == [*([name, "ok"] for name in CHECKS), ["process", str(service.process.pid)]]
    (event,) = tracker.events
    assert event["release"] == "abc"
    tracker.status = 403
    shown = place.command(service, "verify", "--json")
    assert shown.returncode == 1
    report = json.loads(shown.stdout)
    assert (report["ok"], report["release"], report["pid"]) == (False, "abc", service.process.pid)
    assert [check["name"] for check in report["checks"] if not check["ok"]] == ["tracker"]


def test_booty_verify_without_a_service(tmp_path):
    from booty_runner import ask

    assert ask.main(["verify", "--socket", str(tmp_path / "none")]) == 2


def test_a_release_on_trial_checks_its_queue(start, tcp, tmp_path):
    service = start(
        sockets=[tcp],
        BOOTY_CANDIDATE="true",
        STATE_DIRECTORY=str(tmp_path),
        BOOTY_QUEUE_URL="postgresql://booty:hunter2-planted@127.0.0.1:1/booty",
    )
    status, journal = service.wait()
    assert status == 1
    assert "refusing to serve: queue: connection failed" in journal
    assert "hunter2" not in journal
