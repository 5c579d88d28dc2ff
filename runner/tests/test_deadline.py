"""Several deadlines share the process's one kernel timer."""

import signal
import subprocess
import sys
import time

import pytest
from runner.tests.conftest import SRC

from booty_runner.deadline import end_in


@pytest.fixture(autouse=True)
def _no_deadline():
    yield
    for what in ("a", "b"):
        end_in(what, None)


def left():
    return signal.getitimer(signal.ITIMER_REAL)[0]


def test_the_earliest_deadline_counts():
    end_in("a", 60)
    end_in("b", 30)
    assert left() == pytest.approx(30, abs=5)
    end_in("b", 90)  # the second deadline replaces the first
    assert left() == pytest.approx(60, abs=5)
    end_in("a", None)
    assert left() == pytest.approx(90, abs=5)
    end_in("b", None)
    assert left() == 0


def test_the_kernel_ends_a_process_that_holds_the_interpreter():
    program = "import ctypes; from booty_runner.deadline import end_in; end_in('a', 0.2); ctypes.PyDLL(None).sleep(30)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": SRC}, timeout=20, check=False)
    assert done.returncode == -signal.SIGALRM
    assert time.monotonic() - began < 15
