"""Register a release and its deploy in Sentry, from the controller, through the official sentry-cli.

sentry-cli reads its token, organization, project and server from the controller's environment. So none of them is an
argument, which the process list would show. sentry-cli sends only the token.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from . import trackers
from .git import git, git_environment
from .process import BuildError
from .screen import plain

SENTRY_CLI = Path(sysconfig.get_path("scripts"), "sentry-cli")
# sentry-cli reads no `.env`, writes no debug log and no backtrace, and does not ask for a newer version.
QUIET = {
    "SENTRY_LOAD_DOTENV": "0",
    "SENTRY_LOG_LEVEL": "error",
    "RUST_BACKTRACE": "0",
    "SENTRY_DISABLE_UPDATE_CHECK": "1",
}


class RegistrationError(Exception):
    """The registration in Sentry failed; the message has the reason."""


def sentry_cli(seconds: int) -> Callable[..., str]:
    """Return a function that runs sentry-cli and returns its output; all calls together may take `seconds`."""
    deadline = time.monotonic() + seconds

    def call(*arguments: str, **environment: str) -> str:
        try:
            done = subprocess.run(
                [SENTRY_CLI, *arguments],
                # sentry-cli reads .sentryclirc in the working directory and its parents. Only root can write to `/`.
                cwd="/",
                env={**git_environment(), **QUIET, **environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=max(deadline - time.monotonic(), 0.1),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RegistrationError(f"no answer within {seconds} s") from None
        except OSError as error:
            raise RegistrationError(f"{SENTRY_CLI}: {error.strerror}; the Python package sentry-cli has it") from None
        if done.returncode:
            raise RegistrationError(problem(done.stderr))
        return done.stdout

    return call


def problem(stderr: str) -> str:
    """Return the error of sentry-cli in one line, without its advice on debug logs."""
    lines = takewhile(lambda line: not line.startswith(("Add --log-level", "Stack backtrace")), stderr.splitlines())
    causes = [re.sub(r"^(error|\d+): ", "", line.strip()) for line in lines]
    text = ": ".join(dict.fromkeys(line for line in causes if line not in {"", "Caused by:"}))
    # The answer of a server may repeat the token.
    return plain(text.replace(os.environ["SENTRY_AUTH_TOKEN"], "[Filtered]")) or "sentry-cli failed"


@contextmanager
def commit_as_head(repository: str, sha: str) -> Iterator[str]:
    """Make a git directory whose HEAD is the commit, because sentry-cli lists the commits up to HEAD.

    As `git worktree` does, the directory has a HEAD of its own and shares the objects of the repository. But it lies
    outside the repository.
    """
    try:
        common = Path(repository, git(repository, "rev-parse", "--git-common-dir").decode().strip())
    except BuildError as error:
        raise RegistrationError(str(error)) from None
    common = common.resolve()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "HEAD").write_text(f"{sha}\n")
        Path(directory, "commondir").write_text(f"{common}\n")
        # libgit2 in sentry-cli reads the list of a shallow clone's last commits only beside HEAD.
        if (common / "shallow").exists():
            Path(directory, "shallow").write_bytes((common / "shallow").read_bytes())
        yield directory


def is_deployed(deploys: str, environment: str) -> bool:
    """Return whether the table of `sentry-cli deploys list` has a deploy to the environment."""
    return bool(re.search(rf"^\| {re.escape(environment)} +\|", deploys, re.MULTILINE))


def register(sha: str, environments: list[str], changed: list[str], repository: str | None, seconds: int) -> list[str]:
    """Create the release, its commits and its deploys.

    Args:
        sha: the commit.
        environments: the environments in which the release serves.
        changed: the environments in which this run changed a host. In the others, a deploy is registered only if Sentry
            does not have it, as after an earlier registration that failed.
        repository: the repository with the commits; None registers no commits.
        seconds: the time limit for all calls.

    Returns:
        the environments whose deploy was registered.

    Raises:
        RegistrationError: a call of sentry-cli failed.
    """
    call = sentry_cli(seconds)

    def known(environment: str) -> bool:
        try:
            return is_deployed(call("deploys", "list", f"--release={sha}"), environment)
        except RegistrationError as error:
            if "Release not found" in str(error):
                return False
            raise

    missing = [environment for environment in environments if environment in changed or not known(environment)]
    if missing:
        call("releases", "new", sha)
        if repository:
            with commit_as_head(repository, sha) as directory:
                # --auto takes the commits from Sentry's integration of the repository, or else from this directory. If
                # the commit of the previous release is missing, --ignore-missing takes the latest 20.
                call("releases", "set-commits", "--auto", "--ignore-missing", sha, GIT_DIR=directory)
        for environment in missing:
            call("deploys", "new", f"--release={sha}", f"--env={environment}")
    return missing


class RegisterAction(ActionBase):
    """Register the release that this run deployed, or return the reason why it was not registered."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `registration` (registered, not configured, failed; skipped in check mode) and the message `msg`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "release": {"type": "str", "required": True},
                "environments": {"type": "list", "elements": "str", "required": True},
                "changed": {"type": "list", "elements": "str", "required": True},
                "repository": {"type": "path"},
                "seconds": {"type": "int", "required": True},
                "required": {"type": "bool", "required": True},
            }
        )
        sha, environments = arguments["release"], ", ".join(arguments["environments"])
        result["_ansible_verbose_always"] = True  # shows the message without -v
        reason = trackers.why_not(os.environ)
        unwatched = f"\nNew errors are not watched: {reason}" if reason else ""
        if not os.environ.get("SENTRY_AUTH_TOKEN"):
            return {
                **result,
                "registration": "not configured",
                "msg": "Registration in Sentry is not configured: there is no SENTRY_AUTH_TOKEN in the environment of"
                " ansible-playbook." + unwatched,
            }
        if self._task.check_mode:
            message = f"Would register in Sentry: {sha}, with its deploy to {environments}."
            return {**result, "registration": "skipped", "msg": message}
        try:
            new = register(
                sha,
                arguments["environments"],
                arguments["changed"],
                arguments["repository"],
                arguments["seconds"],
            )
        except RegistrationError as error:
            message = f"Registration in Sentry failed: {error}\n{sha} serves all the same. Fix it, then deploy again."
            if arguments["required"]:
                raise AnsibleActionFail(message) from None
            return {**result, "registration": "failed", "msg": message}
        if new:
            message = f"Registered in Sentry: {sha}, with its deploy to {', '.join(new)}.{unwatched}"
        else:
            message = f"Sentry has {sha} and its deploy to {environments} already."
        return {**result, "changed": bool(new), "registration": "registered", "msg": message}
