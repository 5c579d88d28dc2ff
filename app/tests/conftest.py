"""The fixtures of the runner's tests, because the runner serves the app here too."""

from runner.tests.conftest import clean_environment, other_host, start, tcp, tracker, unix

__all__ = ["clean_environment", "other_host", "start", "tcp", "tracker", "unix"]
