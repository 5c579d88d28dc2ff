"""The gate, with a tracker that answers whatever it is told to."""

import socket
import threading
import time

import pytest

KEY = "0123456789abcdef"


@pytest.fixture
def prove(start, tcp, tracker):
    """Start the service with the gate; return its exit status and its last line."""

    def prove(**settings):
        service = start(sockets=[tcp], **{"SENTRY_DSN": tracker.dsn, "BOOTY_TELEMETRY_GATE": "true", **settings})
        status, stderr = service.wait()
        assert "serving release" not in stderr
        assert KEY not in stderr
        assert "Traceback" not in stderr
        assert len([line for line in stderr.splitlines() if " ERROR " in line]) == 1
        return status, stderr.splitlines()[-1]

    return prove


def place(dsn):
    return dsn.partition("@")[2].partition("/")[0]


def test_gate_is_passed_by_an_event_that_the_tracker_accepts(start, tcp, tracker):
    service = start(
        sockets=[tcp],
        SENTRY_DSN=tracker.dsn,
        SENTRY_RELEASE="abc",
        SENTRY_SAMPLE_RATE="0",
        BOOTY_TELEMETRY_GATE="true",
    ).ready()
    (event,) = tracker.events
    service.stop()
    assert service.wait()[0] == 0
    assert tracker.events == [event]
    assert (event["level"], event["release"], event["fingerprint"]) == ("info", "abc", ["booty-telemetry-gate"])
    assert event["message"] == "Booty release is being proven"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (401, "refuses the key in SENTRY_DSN (401)"),
        (403, "refuses the key in SENTRY_DSN (403)"),
        (404, "has no such project as SENTRY_DSN names (404)"),
        (413, "finds the event too large (413)"),
        (429, "takes no more events for now (429)"),
        (500, "fails (500)"),
        (503, "fails (503)"),
        (302, "does not accept the event (302)"),
    ],
)
def test_gate_names_the_answer_that_is_no_acceptance(prove, tracker, answer, reason):
    tracker.status = answer
    if answer == 302:
        tracker.headers = {"location": tracker.url}  # where a GET would be answered 200
    status, line = prove()
    assert status == 1
    assert line.endswith(f"refusing to serve: the tracker at {place(tracker.dsn)} {reason}")
    assert tracker.events[0]["fingerprint"] == ["booty-telemetry-gate"]
    assert tracker.requests == []


def test_gate_without_a_dsn(prove):
    status, line = prove(SENTRY_DSN="")
    assert status == 1
    assert line.endswith("refusing to serve: SENTRY_DSN is not set, so no error would be reported")


def test_gate_does_not_wait_for_ever(prove, tracker):
    tracker.ready.clear()
    began = time.monotonic()
    status, line = prove()
    assert status == 1
    assert line.endswith(f"the tracker at {place(tracker.dsn)} is not reached: no answer within 5 s")
    assert 5 < time.monotonic() - began < 9


def test_gate_at_a_port_where_nobody_listens(prove):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        dsn = f"http://{KEY}@127.0.0.1:{sock.getsockname()[1]}/1"
    status, line = prove(SENTRY_DSN=dsn)
    assert status == 1
    assert line.endswith(f"the tracker at {place(dsn)} is not reached: Connection refused")


def test_gate_with_a_name_that_does_not_exist(prove):
    status, line = prove(SENTRY_DSN=f"http://{KEY}@tracker.invalid/1")
    assert status == 1
    assert "the tracker at tracker.invalid:80 is not reached: " in line


def test_gate_with_a_connection_that_is_closed_unanswered(prove):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        dsn = f"http://{KEY}@127.0.0.1:{sock.getsockname()[1]}/1"

        def close_each():
            for _ in range(2):
                sock.accept()[0].close()

        thread = threading.Thread(target=close_each)
        thread.start()
        status, line = prove(SENTRY_DSN=dsn)
        thread.join()
    assert status == 1
    assert f"the tracker at {place(dsn)} is not reached: " in line
