"""The fixtures of the runner's tests: the app is served by the runner here as anywhere."""

from runner.tests.conftest import clean_environment, other_host, start, tcp, tracker, unix

__all__ = ["clean_environment", "other_host", "start", "tcp", "tracker", "unix"]
