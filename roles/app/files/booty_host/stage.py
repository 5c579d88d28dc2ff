"""Make a directory of a release or a layer out of its archive: whole, or not at all."""

from __future__ import annotations

import compileall
import hashlib
import io
import py_compile
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from booty_host import host


def stage(dest: str, sha256: str, archive: str, check: bool) -> dict[str, Any]:
    """Check an archive's digest, unpack it beside the destination, compile its bytecode, and rename it.

    Args:
        dest: the directory that appears; under its own name it is whole.
        sha256: the digest that the controller computed, in hexadecimal.
        archive: a `.tar.gz` of files and links, on the host, which is removed afterwards; none when it came along.
        check: only say whether the directory is missing.

    Raises:
        host.HostError: the archive is damaged, or the disk is full or read-only.
    """
    directory = Path(dest)
    missing = not directory.is_dir()
    if not check:
        try:
            with open(archive, "rb") if archive else io.BytesIO(sys.stdin.buffer.read()) as file:
                unpack(file, sha256, directory)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise host.HostError(f"{dest} can't be made: {error}") from error
        if archive:
            Path(archive).unlink(missing_ok=True)
    return {"changed": missing}


def unpack(archive: io.BufferedIOBase, sha256: str, dest: Path) -> None:
    """Make the directory out of an archive that arrived whole; raise ValueError when that is damaged."""
    found = hashlib.file_digest(archive, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"the archive arrived damaged: its SHA-256 is {found}, not {sha256}. Deploy again.")
    archive.seek(0)
    # Another deploy of the same release may be at it as well. The lock ends with the process.
    with host.locked(dest.parent):
        if not dest.is_dir():
            make(archive, dest)


def make(archive: io.BufferedIOBase, dest: Path) -> None:
    """Make the directory; nobody else does at the same time."""
    for abandoned in dest.parent.glob(f".{dest.name}.*"):
        shutil.rmtree(abandoned)
    partial = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}."))
    try:
        with tarfile.open(fileobj=archive) as tar:
            # As it is, link to the host's Python and all: the digest says that it is ours. Debian 12's Python has no
            # `filter=` yet, and newer ones refuse such a link without one.
            tar.extraction_filter = lambda member, _: member
            tar.extractall(partial)
        # The tree is read-only to the service and never changes: its bytecode needs no check against the source.
        compileall.compile_dir(
            partial,
            quiet=2,
            stripdir=str(partial),
            prependdir=str(dest),
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        for path in (
            partial,
            *(path for path in partial.rglob("*") if path.is_dir() and not path.is_symlink()),
        ):
            path.chmod(0o755)
        host.run("sync", "--file-system", str(partial))
        partial.rename(dest)
        host.sync_directory(dest.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
