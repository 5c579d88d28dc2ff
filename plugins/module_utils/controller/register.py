"""Register a release and its deploy in Sentry, from the controller, through the official sentry-cli.

sentry-cli finds its token, organization, project and server in the controller's environment by itself: nothing of them
is an argument, and of the environment it sends the token alone.
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

from .git import git, git_environment
from .process import BuildError

SENTRY_CLI = Path(sysconfig.get_path("scripts"), "sentry-cli")
# No `.env` of whoever calls, no debug log, no backtrace, no look for a newer version.
QUIET = {
    "SENTRY_LOAD_DOTENV": "0",
    "SENTRY_LOG_LEVEL": "error",
    "RUST_BACKTRACE": "0",
    "SENTRY_DISABLE_UPDATE_CHECK": "1",
}


class RegistrationError(Exception):
    """Sentry was not told; the message says why."""


def sentry_cli(seconds: int) -> Callable[..., str]:
    """Return a function that runs sentry-cli and returns what it printed; all calls together have `seconds`."""
    deadline = time.monotonic() + seconds

    def call(*arguments: str, **environment: str) -> str:
        try:
            done = subprocess.run(
                [SENTRY_CLI, *arguments],
                # It reads a .sentryclirc of the working directory and those above: none that others can write.
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
            raise RegistrationError(reason(done.stderr))
        return done.stdout

    return call


def reason(stderr: str) -> str:
    """Return why sentry-cli failed, in one line, without its advice on debug logs."""
    lines = takewhile(lambda line: not line.startswith(("Add --log-level", "Stack backtrace")), stderr.splitlines())
    said = [re.sub(r"^(error|\d+): ", "", line.strip()) for line in lines]
    text = ": ".join(dict.fromkeys(line for line in said if line not in {"", "Caused by:"}))
    # An answer that repeats what it was sent stays out of the run's output.
    return text.replace(os.environ["SENTRY_AUTH_TOKEN"], "[Filtered]") or "sentry-cli failed"


@contextmanager
def commit_as_head(repository: str, sha: str) -> Iterator[str]:
    """Give a git directory whose HEAD is the commit: sentry-cli lists the commits up to HEAD, whatever is deployed.

    It is what `git worktree` makes, a HEAD over the repository's own objects, but outside of it.
    """
    try:
        common = Path(repository, git(repository, "rev-parse", "--git-common-dir").decode().strip())
    except BuildError as error:
        raise RegistrationError(str(error)) from None
    common = common.resolve()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "HEAD").write_text(f"{sha}\n")
        Path(directory, "commondir").write_text(f"{common}\n")
        # sentry-cli's libgit2 looks for a shallow clone's end beside HEAD alone.
        if (common / "shallow").exists():
            Path(directory, "shallow").write_bytes((common / "shallow").read_bytes())
        yield directory


def is_deployed(deploys: str, environment: str) -> bool:
    """Tell whether the table of `sentry-cli deploys list` has a deploy to the environment."""
    return bool(re.search(rf"^\| {re.escape(environment)} +\|", deploys, re.MULTILINE))


def register(sha: str, environments: list[str], changed: list[str], repository: str | None, seconds: int) -> list[str]:
    """Create the release, its commits and its deploys.

    Args:
        sha: the release, as the processes report it.
        environments: those it serves in.
        changed: those among them where this run changed a host. For the others Sentry is asked first, so that a run
            that changed nothing registers only what an earlier one could not.
        repository: where its commits are; None leaves the commits alone.
        seconds: how long all of it may take.

    Returns:
        the environments whose deploy was registered.

    Raises:
        RegistrationError: Sentry was not told, or not all.
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
                # From the repository's integration if Sentry has one, else from here; the latest 20 if the commit of
                # the release before is not there.
                call("releases", "set-commits", "--auto", "--ignore-missing", sha, GIT_DIR=directory)
        for environment in missing:
            call("deploys", "new", f"--release={sha}", f"--env={environment}")
    return missing


class RegisterAction(ActionBase):
    """Register what this run deployed, or say why not."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `registration` (registered, not configured, failed; skipped in check mode) and `msg`, in words."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, wanted = self.validate_argument_spec(
            {
                "release": {"type": "str", "required": True},
                "environments": {"type": "list", "elements": "str", "required": True},
                "changed": {"type": "list", "elements": "str", "required": True},
                "repository": {"type": "path"},
                "seconds": {"type": "int", "required": True},
                "required": {"type": "bool", "required": True},
            }
        )
        sha, where = wanted["release"], ", ".join(wanted["environments"])
        result["_ansible_verbose_always"] = True  # the message is for whoever runs this
        if not os.environ.get("SENTRY_AUTH_TOKEN"):
            return {
                **result,
                "registration": "not configured",
                "msg": "Registration in Sentry is not configured: there is no SENTRY_AUTH_TOKEN in the environment of"
                " ansible-playbook.",
            }
        if self._task.check_mode:
            would = f"Would register in Sentry: {sha}, with its deploy to {where}."
            return {**result, "registration": "skipped", "msg": would}
        try:
            new = register(sha, wanted["environments"], wanted["changed"], wanted["repository"], wanted["seconds"])
        except RegistrationError as error:
            why = f"Registration in Sentry failed: {error}\n{sha} serves all the same. Fix that, then deploy again."
            if wanted["required"]:
                raise AnsibleActionFail(why) from None
            return {**result, "registration": "failed", "msg": why}
        what = f"{sha}, with its deploy to {', '.join(new)}" if new else f"{sha} and its deploy to {where} already were"
        return {**result, "changed": bool(new), "registration": "registered", "msg": f"Registered in Sentry: {what}."}
