"""Read, write, lock and remove files, so that a crash never leaves half of one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read(path: Path) -> str:
    """Return a file's text, with a mark in place of each byte that is not UTF-8; "" if the file is missing."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def parse_assignments(text: str) -> dict[str, str]:
    """Return the `NAME=value` lines of a file or of `systemctl show`, with quotes; skip comments and other lines.

    Only a line feed ends a line, as for systemd. An app may write the others that Python knows into its status.
    """
    lines = (line.strip() for line in text.split("\n"))
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith(("#", ";")))
    return {name.strip(): value.strip() for name, _, value in pairs}


def parse_pointer(text: str) -> dict[str, str]:
    """Return the assignments of a release.env, without quotes.

    A value that needs quotes has those of `shlex.quote`, which systemd and a shell read alike: single quotes, and
    `'"'"'` for a single quote inside. settle.sh removes them in the same way.
    """
    return {
        name: value.replace("'\"'\"'", "\n").replace("'", "").replace("\n", "'")
        for name, value in parse_assignments(text).items()
    }


def directories(parent: Path) -> list[Path]:
    """Return the complete releases or layers. The name of a partial or partly removed one begins with a dot."""
    return sorted(path for path in parent.glob("[!.]*") if path.is_dir() and not path.is_symlink())


def write_atomically(path: Path, content: str, mode: int = 0o644) -> None:
    """Write a new file, sync it, and rename it to `path`, so that a crash leaves the old text or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    sync_directory(path.parent)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the `flock` of a directory until the block or the process ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove(directory: Path) -> None:
    """Rename, then delete, so that an interrupted removal is never taken for a release."""
    doomed = directory.with_name(f".{directory.name}.removed")
    directory.rename(doomed)
    shutil.rmtree(doomed)


def sync_directory(path: Path) -> None:
    """Put a directory's own entries on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
