"""Several workers as processes: ready together, refused together, replaced one by one, drained together."""

import json
import os
import re
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from runner.tests.clients import Connection, Load, ask


def alive(pid):
    """Return whether a process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def pair(start, tcp, unix):
    """Start the service with two workers and return it once it is ready."""
    return lambda **settings: start(sockets=[tcp, unix], BOOTY_WORKERS="2", **settings).ready()


def test_one_worker_is_the_main_process(start, tcp):
    service = start(sockets=[tcp]).ready()
    assert service.children() == []
    assert ask(tcp, "/")[0] == 200


def test_any_worker_answers_on_both_sockets(pair, tcp, unix):
    service = pair(SENTRY_RELEASE="abc")
    workers = set(service.children())
    assert len(workers) == 2
    seen = set()
    wait_for(lambda: seen.add(json.loads(ask(unix, "/status")[2])["pid"]) or seen == workers)
    assert json.loads(ask(tcp, "/health")[2])["release"] == "abc"
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert stderr.count("serving release abc") == 2
    assert "ERROR" not in stderr


def test_the_workers_count_their_requests_together(pair, tcp, unix):
    service = pair()
    for _ in range(10):
        assert ask(tcp, "/health")[0] == 200
    os.kill(service.children()[0], signal.SIGKILL)
    wait_for(lambda: len(service.children()) == 2)
    assert ask(tcp, "/health")[0] == 200
    answers = []
    wait_for(lambda: answers.append(json.loads(ask(unix, "/status")[2])) or len({each["pid"] for each in answers}) == 2)
    assert {answer["requests"] for answer in answers} == {11}


def test_the_last_event_of_any_worker_counts_for_the_service(pair, tcp, unix, tracker):
    """The gate of the first worker, and then each failure and its end, whichever worker answers."""
    service = pair(SENTRY_DSN=tracker.dsn, BOOTY_TELEMETRY_GATE="true")

    def statuses():
        """Return what both workers say."""
        said = {}
        wait_for(
            lambda: (
                said.update({(answer := json.loads(ask(unix, "/status")[2]))["pid"]: answer["telemetry"]["status"]})
                or len(said) == 2
            )
        )
        return {*said.values()}

    assert statuses() == {200}
    for status in (500, 403, 200):
        tracker.status = status
        assert ask(tcp, "/fail/1")[0] == 500
        wait_for(lambda status=status: statuses() == {status})
    service.stop()
    assert service.wait()[0] == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"SENTRY_ENVIRONMENT": "production"}, "SENTRY_DSN is not set, and production does not run without it"),
        ({"STATE_DIRECTORY": "/nowhere"}, "/nowhere is not writable: No such file or directory"),
        ({"BOOTY_TELEMETRY_GATE": "true"}, "SENTRY_DSN is not set, so no error would be reported"),
        ({"BOOTY_WORKERS": "0"}, "BOOTY_WORKERS must be the number of processes that serve, 1 or more"),
        ({"BOOTY_WORKERS": "two"}, "BOOTY_WORKERS must be the number of processes that serve, 1 or more"),
    ],
)
def test_refusal_is_one_line_and_status_1(start, tcp, settings, line):
    status, stderr = start(sockets=[tcp], **{"BOOTY_WORKERS": "3", **settings}).wait()
    assert status == 1
    assert line in stderr
    assert stderr.count(" ERROR ") == 1
    assert "serving release" not in stderr


def test_ready_means_that_all_are(start, tcp, tracker):
    """If the second worker fails, the first one is stopped, and the service was never ready."""
    service = start(sockets=[tcp], BOOTY_WORKERS="2", SENTRY_DSN=tracker.dsn, TEST_BROKEN="second startup")
    status, stderr = service.wait()
    assert status == 3
    assert stderr.count("serving release") == 1
    assert stderr.count("the service failed\nTraceback") == 1
    service.notifications.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        service.notifications.expect("READY=1")
    (event,) = tracker.events
    assert event["transaction"] == "startup"


def test_the_tracker_is_asked_once(pair, tracker):
    service = pair(SENTRY_DSN=tracker.dsn, BOOTY_TELEMETRY_GATE="true")
    assert [event["fingerprint"] for event in tracker.events] == [["booty-telemetry-gate"]]
    service.stop()
    assert service.wait()[0] == 0
    assert len(tracker.events) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_is_replaced_by_its_like(pair, tcp, tracker, number):
    service = pair(SENTRY_DSN=tracker.dsn, SENTRY_RELEASE="abc")
    labels = Path(f"/proc/{service.process.pid}/environ").read_bytes()
    for _ in range(2):
        victim, other = service.children()
        os.kill(victim, number)
        wait_for(lambda: len(new := service.children()) == 2 and victim not in new)  # noqa: B023
        (successor,) = set(service.children()) - {other}
        assert Path(f"/proc/{successor}/environ").read_bytes() == labels
    wait_for(lambda: service.stderr_path.read_text().count("serving release") == 4)
    for _ in range(10):
        assert ask(tcp, "/fail/1")[0] == 500
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    how = "was killed by SIGKILL" if number == signal.SIGKILL else "ended with status 0"
    assert stderr.count(f"{how}; another one takes its place") == 2
    assert [event["release"] for event in tracker.events] == ["abc"] * 10


def test_a_worker_that_can_t_be_replaced_leaves_the_others_serving(pair, tcp, tmp_path):
    """The supervisor tries again with growing pauses until the dependency is back."""
    service = pair()
    (tmp_path / "away").touch()
    victim, other = service.children()
    os.kill(victim, signal.SIGKILL)
    service.notifications.expect("STATUS=serving with 1 of 2 workers, 2 failed in a row")
    wait_for(lambda: "before it was ready; another one takes its place in 2 s" in service.stderr_path.read_text())
    assert service.children() == [other]
    for _ in range(5):
        assert ask(tcp, "/")[0] == 200
    (tmp_path / "away").unlink()
    service.notifications.expect("STATUS=serving with 2 workers")
    assert len(service.children()) == 2
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert stderr.count("the service failed\nTraceback") == 2


@pytest.mark.parametrize(("away", "status"), [("away", 3), ("state", 1)])
def test_a_service_without_a_worker_ends(pair, tcp, tmp_path, away, status):
    """It ends with the worker's status, as a single process does: systemd restarts it, but not after 1."""
    state = tmp_path / "state"
    state.mkdir()
    service = pair(STATE_DIRECTORY=str(state))
    if away == "away":
        (tmp_path / "away").touch()
    else:
        shutil.rmtree(state)
    for worker in service.children():
        os.kill(worker, signal.SIGKILL)
    assert service.wait()[0] == status


MEDDLES = {
    "starts a child": "import subprocess\nchild = subprocess.Popen(['/bin/sleep', '0.5'])\n",
    "leaves a child": "import subprocess, time\nchild = subprocess.Popen(['/bin/true'])\ntime.sleep(0.3)\n",
    "ignores its children": "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n",
}


@pytest.mark.parametrize("what", MEDDLES)
def test_an_app_that_meddles_with_children_at_its_import(start, tcp, tmp_path, what):
    """The supervisor ignores other children, and replaces each worker that ends."""
    (tmp_path / "meddling.py").write_text(f"{MEDDLES[what]}from service import create_app\napp = create_app()\n")
    service = start(sockets=[tcp], app="meddling:app", BOOTY_WORKERS="2").ready()
    wait_for(lambda: len(service.children()) == 2)  # the child has ended
    workers = service.children()
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: len(new := service.children()) == 2 and workers[0] not in new)
    assert ask(tcp, "/")[0] == 200
    service.stop()
    assert service.wait()[0] == 0


def test_workers_that_die_once_they_are_ready_end_the_service(start, tcp):
    began = time.monotonic()
    service = start(sockets=[tcp], BOOTY_WORKERS="2", TEST_BROKEN="after startup").ready()
    status, stderr = service.wait()
    assert status == 3
    assert re.search(r"worker \d+ ended with status 9, as \d in a row did, and no other one serves", stderr)
    assert stderr.count("serving release") <= 7
    assert time.monotonic() - began > 3


def test_a_worker_whose_event_loop_hangs_is_replaced(pair, tcp):
    """The other workers serve meanwhile, and stderr has the line where the worker hangs."""
    service = pair(BOOTY_WATCHDOG_SECONDS="0.8")
    service.notifications.expect("WATCHDOG_USEC=800000")
    workers = set(service.children())
    with Connection(tcp) as connection:
        connection.send("/hang?seconds=30")
        wait_for(lambda: "another one takes its place" in service.stderr_path.read_text())
        assert not connection.sock.recv(1)
    wait_for(lambda: len(service.children()) == 2)
    assert len(workers & set(service.children())) == 1
    assert ask(tcp, "/")[0] == 200
    service.notifications.expect("WATCHDOG=1")
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert "was killed by SIGALRM; another one takes its place" in stderr
    assert "service.py" in stderr
    assert "in hang" in stderr


def test_all_workers_finish_what_is_in_flight(pair, tcp):
    service = pair()
    with ExitStack() as stack:
        slow, idle = ([stack.enter_context(Connection(tcp)) for _ in range(10)] for _ in range(2))
        for connection in slow:
            connection.send("/slow?seconds=1")
        for connection in idle:
            assert connection.ask("/")[1]["connection"] is None
        service.stop()
        wait_for(lambda: service.stderr_path.read_text().count("stopping: draining") == 2)
        for connection in idle:
            connection.send("/")
        for connection in idle + slow:
            status, headers, _ = connection.receive()
            assert (status, headers["connection"]) == (200, "close")
            assert connection.ended()
    status, stderr = service.wait()
    assert status == 0
    assert "cutting" not in stderr


def test_the_drain_is_bounded(pair, tcp):
    service = pair(BOOTY_DRAIN_SECONDS="0.5")
    with ExitStack() as stack:
        slow = [stack.enter_context(Connection(tcp)) for _ in range(10)]
        for connection in slow:
            connection.send("/slow?seconds=30")
        time.sleep(0.2)
        began = time.monotonic()
        service.stop()
        assert {connection.receive()[0] for connection in slow} == {500}
        assert service.wait()[0] == 0
        assert 0.4 < time.monotonic() - began < 2


def test_a_terminal_s_ctrl_c_is_one_signal_to_each(pair, tcp):
    service = pair()
    with Connection(tcp) as connection:
        connection.send("/slow?seconds=1")
        time.sleep(0.2)
        assert {os.getpgid(pid) for pid in service.children()} == set(service.children())
        service.stop(signal.SIGINT)
        assert connection.receive()[0] == 200
    assert service.wait()[0] == 0


def test_a_second_signal_cuts(pair, tcp):
    service = pair()
    with Connection(tcp) as connection:
        connection.send("/slow?seconds=30")
        time.sleep(0.2)
        service.stop()
        service.process.send_signal(signal.SIGTERM)
        assert service.wait(3)[0] == 0


def test_workers_do_not_outlive_a_supervisor_that_is_killed(pair, tcp):
    service = pair()
    workers = service.children()
    with Connection(tcp) as connection:
        connection.send("/slow?seconds=0.5")
        time.sleep(0.2)
        service.process.kill()
        assert connection.receive()[0] == 200
    wait_for(lambda: not any(map(alive, workers)))


@pytest.mark.parametrize("moment", ["during the start", "right after it"])
def test_a_stop_at_any_moment_leaves_nobody(start, tcp, moment):
    service = start(sockets=[tcp], BOOTY_WORKERS="4")
    if moment == "right after it":
        service.ready()
    wait_for(service.children)
    workers = service.children()
    service.process.send_signal(signal.SIGTERM)
    assert service.wait()[0] == 0
    assert not any(map(alive, workers))


def test_handing_over_under_load_loses_nothing(pair, tcp):
    serving = pair()
    with Load(tcp, keep_alive=10, fresh=6, slow=4) as load:
        for _ in range(2):
            successor = pair()
            time.sleep(0.3)
            serving.stop()
            assert serving.wait()[0] == 0
            serving = successor
    assert load.failures == []
    assert load.answers > 200


def test_workers_share_what_the_app_makes_by_chance_when_it_is_imported(start, tcp, tmp_path):
    """An app with a random default key logs its users out if each worker imports it anew."""
    (tmp_path / "shop.py").write_text(
        "import os, secrets\nKEY = secrets.token_hex()\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [f'{os.getpid()} {KEY}'.encode()]\n"
    )
    service = start(sockets=[tcp], app="shop:app", BOOTY_WORKERS="2").ready()
    seen = set()
    wait_for(lambda: seen.add(tuple(ask(tcp, "/")[2].split())) or len({pid for pid, _ in seen}) == 2)
    assert {int(pid) for pid, _ in seen} == set(service.children())
    assert len({key for _, key in seen}) == 1
