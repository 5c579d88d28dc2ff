"""Write archives whose bytes depend only on what they hold, and keep them in a cache."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# How long an archive stays in the cache after its last use.
KEEP_DAYS = 30
# What an installer notes about this very installation: paths and times of the controller.
NOT_SHIPPED = {
    ".lock",
    "RECORD",
    "INSTALLER",
    "REQUESTED",
    "direct_url.json",
    "uv_cache.json",
    "uv_build.json",
}


def files(tree: Path) -> Iterator[Path]:
    """Return the files and links of a tree that are shipped, in the order of their names."""
    for path in sorted(tree.rglob("*")):
        relative = path.relative_to(tree)
        # `bin/` at the top of an installation holds scripts that name the controller's Python.
        if path.name in NOT_SHIPPED or relative.parts[0] == "bin" or (path.is_dir() and not path.is_symlink()):
            continue
        if "__pycache__" not in relative.parts:
            yield path


def pack(tree: Path, archive: Path, mtime: int, extra: dict[str, bytes | Path] | None = None, prefix: str = "") -> None:
    """Write a tree as a `.tar.gz` whose bytes depend only on its files' names, contents and executable bits.

    Args:
        tree: what is packed.
        archive: where to; it appears whole or not at all.
        mtime: the time, in seconds since 1970, that every entry carries.
        extra: more entries by name: a file's bytes, or where a link points to.
        prefix: what the tree's names begin with in the archive.
    """
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):

        def add(name: str, content: bytes | Path, executable: bool = False) -> None:
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode = mtime, 0o755 if executable else 0o644
            if isinstance(content, Path):
                entry.type, entry.linkname = tarfile.SYMTYPE, str(content)
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

        for name, content in sorted((extra or {}).items()):
            add(name, content, executable=name.startswith("bin/"))
        for path in files(tree):
            name = prefix + str(path.relative_to(tree))
            add(
                name,
                path.readlink() if path.is_symlink() else path.read_bytes(),
                bool(path.lstat().st_mode & stat.S_IXUSR),
            )
    write(archive, buffer.getvalue())
    # Last: an archive that has its digest is whole.
    write(digest_of(archive), hashlib.sha256(buffer.getvalue()).hexdigest().encode())


def write(path: Path, content: bytes) -> None:
    """Make a file that appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def digest_of(archive: Path) -> Path:
    """Return where an archive's SHA-256 is noted when it is built: a host finds out if it is another one later."""
    return archive.with_name(f"{archive.name}.sha256")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let one process at a time build: a host's fork that comes second finds what the first one made."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(archive: Path) -> bool:
    """Tell whether the cache has an archive."""
    return archive.exists() and digest_of(archive).exists()


def once(archive: Path, build: Callable[[Path], None]) -> None:
    """Build an archive unless the cache has it."""
    if not made(archive):
        with locked(archive.parent):
            if not made(archive):
                build(archive)


def use(cache: Path, *archives: Path) -> None:
    """Note in the cache that archives are in use, so that `tidy` of another deploy leaves them."""
    # A cache that can't be written to is used as it is.
    with suppress(OSError), locked(cache):
        for archive in filter(made, archives):
            # Not the archive's own time: `aws s3 sync` would take it for another one.
            os.utime(digest_of(archive))


def tidy(cache: Path) -> None:
    """Remove what belongs to archives that no deploy has used for KEEP_DAYS."""
    before = datetime.now(UTC).timestamp() - KEEP_DAYS * 86400
    with locked(cache):
        old = []
        for path in (path for path in cache.glob("*/*") if path.name != "lock"):
            digest = path.with_name(re.sub(r"\.(tar\.gz|cdx\.json|requires\.json).*", ".tar.gz.sha256", path.name))
            # Without a digest it is what a killed build left.
            if (digest if digest.exists() else path).stat().st_mtime < before:
                old.append(path)
        for path in old:
            path.unlink()


def described(archive: Path, dest: str) -> dict[str, Any]:
    """Describe an archive that the cache has, and where it belongs on a host."""
    return {
        "file": str(archive),
        "sha256": digest_of(archive).read_text(),
        "size": archive.stat().st_size,
        "dest": dest,
    }


def key(*parts: str | bytes) -> str:
    """Return a short name for what something is made from."""
    return hashlib.sha256(b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)).hexdigest()[
        :20
    ]
