"""The other Python programs of a release: their errors arrive once, with the label and without a secret."""

import json
import os
import subprocess
import time

import pytest
from runner.tests.conftest import ROOT
from runner.tests.test_sentry import LABELS, OLD, SDKS, SECRET


@pytest.fixture
def pth(python_with):
    """Return a function that makes a Python with packages which reads the runner's `.pth`, as a release's does."""

    def pth(*requirements):
        python = python_with(*requirements)
        site = next(python.parents[1].glob("lib/python*/site-packages"))
        (site / "layer.pth").write_text(f"import site; site.addsitedir({str(ROOT / 'runner/src')!r})\n")
        return python

    return pth


@pytest.fixture
def environment(tracker, tmp_path):
    labels = {"SENTRY_DSN": tracker.dsn, "SENTRY_RELEASE": "abc", "SENTRY_ENVIRONMENT": "staging"}
    others = {"PLANTED": SECRET, "BOOTY_PROCESS": "worker"}
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **labels, **others}


def run(python, code, environment, **options):
    return subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=False, **options)


FAIL = "raise LookupError('no ' + os.environ['PLANTED'])"
# Programs that fail, each with its exit status.
ENDS = {
    "unhandled": (f"import os; {FAIL}", 1),
    "after it has changed its labels": (
        f"import os; os.environ.update(SENTRY_RELEASE='9.9', SENTRY_DSN='?'); {FAIL}",
        1,
    ),
    "in a thread": (
        f"import os, threading\ndef fail(): {FAIL}\nt = threading.Thread(target=fail); t.start(); t.join()",
        0,
    ),
    "logged": (f"import os, logging\ntry: {FAIL}\nexcept LookupError: logging.exception('it failed')", 0),
    "in a forked child that goes on": (
        f"import os, logging, sys\nif os.fork(): sys.exit(os.wait()[1])\n"
        f"try: {FAIL}\nexcept LookupError: logging.exception('it failed')",
        0,
    ),
}


@pytest.mark.parametrize(("code", "status"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("packages", [[], ["sentry-sdk==2.75.0"]], ids=["no SDK", "an SDK that is not started"])
def test_an_error_of_a_program_is_reported_once(pth, environment, tracker, code, status, packages):
    done = run(pth(*packages), code, environment)
    assert done.returncode == status, done.stderr
    (event,) = tracker.events
    assert (event["release"], event["environment"], event["transaction"]) == ("abc", "staging", "worker")
    assert event["exception"]["values"][-1]["value"] == "no [Filtered]"
    assert SECRET not in json.dumps(event)
    assert "LookupError" in done.stderr


def test_a_program_without_an_error_sends_nothing_and_does_not_start_sentry(pth, environment, tracker):
    code = (
        "import sys, logging; logging.warning('all is well'); print([name for name in sys.modules if 'sentry' in name])"
    )
    done = run(pth(), code, environment)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "WARNING:root:all is well\n", 0)
    assert run(pth(), "raise SystemExit(3)", environment).returncode == 3
    run(pth(), "import code; code.interact()", environment, input="1 / 0\n")
    assert not tracker.events


def test_without_the_variable_a_program_imports_nothing_of_the_runner(pth, environment):
    del environment["BOOTY_PROCESS"]
    code = "import sys; print([name for name in sys.modules if 'booty' in name])"
    assert run(pth(), code, environment).stdout == "[]\n"


def test_in_production_a_process_does_not_start_without_a_dsn_and_a_command_does(pth, environment, tracker):
    environment |= {"SENTRY_ENVIRONMENT": "production", "SENTRY_DSN": ""}
    done = run(pth(), "print('started')", environment)
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    assert done.stderr == (
        "booty: worker refuses to start: SENTRY_DSN is not set, and production does not run without it: write it into"
        " secrets.env\n"
    )
    done = run(pth(), "print('started')", {**environment, "BOOTY_PROCESS": "command"})
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert done.stderr.startswith("booty: errors of this command are not reported: SENTRY_DSN is not set")
    done = run(pth(), "print('started')", {**environment, "SENTRY_ENVIRONMENT": "staging"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_a_program_ends_as_it_would_when_no_tracker_answers(pth, environment, tracker):
    tracker.ready.clear()
    began = time.monotonic()
    done = run(pth(), "raise LookupError('late')", environment)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "LookupError: late")
    assert time.monotonic() - began < 5
    environment["HTTP_PROXY"] = "no url:"
    done = run(pth(), "raise LookupError('late')", environment)
    assert done.returncode == 1
    assert "booty: errors of worker are not reported" in done.stderr


SCRIPT = f"import sentry_sdk\nsentry_sdk.init({LABELS})\nimport os\nraise LookupError('no ' + os.environ['PLANTED'])\n"


@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=() if sdk == "1.5.12" else OLD) for sdk in SDKS])
def test_a_script_s_errors_have_the_label_and_no_secret(pth, environment, tracker, sdk):
    done = subprocess.run([pth(f"sentry-sdk=={sdk}"), "-c", SCRIPT], env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    (event,) = tracker.events
    assert (event["release"], event["environment"], event["sdk"]["version"]) == ("abc", "staging", sdk)
    assert event["exception"]["values"][-1]["value"] == "no [Filtered]"
    assert SECRET not in json.dumps(event)


def test_a_script_without_labels_in_its_environment_keeps_its_own(pth, environment, tracker):
    del environment["SENTRY_RELEASE"], environment["SENTRY_ENVIRONMENT"]
    subprocess.run([pth("sentry-sdk==2.75.0"), "-c", SCRIPT], env=environment, capture_output=True, check=False)
    (event,) = tracker.events
    assert (event["release"], event["environment"]) == ("9.9", "theirs")
    assert SECRET not in json.dumps(event)


# --- libraries that run jobs ------------------------------------------------------------------------------

INIT = f"import sentry_sdk\nsentry_sdk.init({LABELS})\n"
CELERY = """
import os
from celery import Celery
app = Celery("tasks", broker="filesystem://", broker_transport_options={
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"})

@app.task
def fail():
    raise LookupError("no " + os.environ["PLANTED"])
"""


HUEY = """
import os
from huey import SqliteHuey
huey = SqliteHuey(filename="huey.db")

@huey.task()
def fail():
    raise LookupError("no " + os.environ["PLANTED"])
"""


def wait_for_events(tracker, worker, number=1):
    deadline = time.monotonic() + 30
    while len(tracker.events) < number and time.monotonic() < deadline:
        time.sleep(0.1)
    worker.terminate()
    worker.wait()


@pytest.mark.long
@pytest.mark.parametrize(
    ("sdk", "init"), [("1.45.1", INIT), ("2.75.0", INIT), ("1.45.1", ""), ("2.75.0", ""), (None, "")]
)
def test_a_celery_worker_s_errors_have_the_label_and_no_secret(pth, environment, tracker, tmp_path, sdk, init):
    (tmp_path / "tasks.py").write_text(f"{init}{CELERY}")
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    celery = [pth("celery==5.5.3", *([f"sentry-sdk=={sdk}"] if sdk else [])), "-m", "celery", "-A", "tasks"]
    subprocess.run([*celery, "call", "tasks.fail"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        [*celery, "worker", "-c", "2"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as worker:
        wait_for_events(tracker, worker)
    (event,) = tracker.events
    assert (event["release"], event["environment"], event["transaction"]) == ("abc", "staging", "tasks.fail")
    assert event["exception"]["values"][-1]["value"] == "no [Filtered]"
    assert SECRET not in json.dumps(event)


@pytest.mark.long
def test_a_huey_consumer_s_errors_have_the_label_and_no_secret(pth, environment, tracker, tmp_path):
    (tmp_path / "tasks.py").write_text(HUEY)
    python, options = pth("huey==2.5.3"), {"cwd": tmp_path, "env": environment}
    subprocess.run([python, "-c", "import tasks; tasks.fail()"], check=True, **options)
    command = [python, python.with_name("huey_consumer.py"), "tasks.huey", "--worker-type=process"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **options) as worker:
        wait_for_events(tracker, worker)
    (event,) = tracker.events
    assert (event["release"], event["environment"], event["transaction"]) == ("abc", "staging", "fail")
    assert event["exception"]["values"][-1]["value"] == "no [Filtered]"
    assert SECRET not in json.dumps(event)
