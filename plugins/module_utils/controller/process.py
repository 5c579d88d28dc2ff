"""Run a program on the controller."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .screen import plain


class BuildError(Exception):
    """A release can't be resolved or built. The message names the next step.

    It may quote the commit: the name of a file, the subject, the output of a build.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, input: bytes = b"") -> bytes:
    """Run a command with `input` and return its output; raise BuildError with its standard error when it fails."""
    try:
        # The umask is fixed, because archives contain the modes of the files.
        done = subprocess.run(command, cwd=cwd, env=env, input=input, capture_output=True, umask=0o022, check=False)
    except FileNotFoundError:
        raise BuildError(f"This machine has no {command[0]}. Install it first.") from None
    if done.returncode:
        raise BuildError(done.stderr.decode(errors="replace").strip() or f"{command[0]} failed")
    return done.stdout
