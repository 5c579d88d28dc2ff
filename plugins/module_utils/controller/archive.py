"""Write reproducible archives, and keep them in the controller's cache."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .process import BuildError

# Days that an archive stays in the cache after its last use.
KEEP_DAYS = 30
# Files in which an installer records paths and times of the controller.
NOT_SHIPPED = {
    ".lock",
    "RECORD",
    "INSTALLER",
    "REQUESTED",
    "direct_url.json",
    "uv_cache.json",
    "uv_build.json",
}


class Link(NamedTuple):
    """A link in an archive."""

    target: str


def files(tree: Path) -> Iterator[Path]:
    """Yield the files and links of an installation that an archive gets, sorted by name."""
    for path in sorted(tree.rglob("*")):
        relative = path.relative_to(tree)
        # The scripts in the top-level `bin/` of an installation start the controller's Python.
        if path.name in NOT_SHIPPED or relative.parts[0] == "bin" or (path.is_dir() and not path.is_symlink()):
            continue
        if "__pycache__" not in relative.parts:
            yield path


def installed(tree: Path, prefix: str = "") -> dict[str, Path]:
    """Return the files and links of an installation, by their names in an archive."""
    return {f"{prefix}{path.relative_to(tree)}": path for path in files(tree)}


def pack(archive: Path, mtime: int, entries: Mapping[str, bytes | Path | Link]) -> None:
    """Write a `.tar.gz` whose bytes depend only on its files' names, contents and executable bits.

    Args:
        archive: the file to write, in one rename.
        mtime: the modification time of every entry, in seconds since 1970.
        entries: by name a link, a file or link of this machine, or the bytes of a file, which is executable in `bin/`.

    Raises:
        BuildError: an entry lies below a link, so that a host would write it somewhere else.
    """
    links = {name for name, at in entries.items() if isinstance(at, Link) or (isinstance(at, Path) and at.is_symlink())}
    for name in entries:
        if link := next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in links), ""):
            raise BuildError(
                f"{name} would lie below {link}, which is a link. Let the build make a folder in its place, or name"
                " another path in app_state_paths."
            )
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, source in sorted(entries.items()):
            entry = tarfile.TarInfo(name)
            content, executable = source, name.startswith("bin/")
            if isinstance(source, Path):
                executable = bool(source.lstat().st_mode & stat.S_IXUSR)
                content = Link(str(source.readlink())) if source.is_symlink() else source.read_bytes()
            entry.mtime, entry.mode = mtime, 0o755 if executable else 0o644
            if isinstance(content, Link):
                entry.type, entry.linkname = tarfile.SYMTYPE, content.target
                tar.addfile(entry)
            elif isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    write(archive, buffer.getvalue())
    # The digest is written last, so an archive with a digest is complete.
    write(digest_of(archive), hashlib.sha256(buffer.getvalue()).hexdigest().encode())


def write(path: Path, content: bytes) -> None:
    """Write a file in one rename, so that no other process reads a part of it."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def digest_of(archive: Path) -> Path:
    """Return the file with an archive's SHA-256, against which a host checks its copy."""
    return archive.with_name(f"{archive.name}.sha256")


@contextmanager
def locked(directory: Path, name: str = "lock") -> Iterator[None]:
    """Hold an flock in a directory of the cache: one process builds, the others wait for its archive."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(archive: Path) -> bool:
    """Return whether the cache has an archive."""
    return archive.exists() and digest_of(archive).exists()


def once(archive: Path, build: Callable[[Path], None]) -> None:
    """Build an archive unless the cache has it."""
    if not cached(archive):
        # A build of another archive, whose commands may take minutes, is no reason to wait.
        with locked(archive.parent, f"{archive.name}.lock"):
            if not cached(archive):
                build(archive)


def use(cache: Path, *archives: Path) -> None:
    """Record in the cache that archives are in use, so that `tidy` of another deploy keeps them."""
    # The cache may be read-only; then its archives are used without this record.
    with suppress(OSError), locked(cache):
        for archive in filter(cached, archives):
            # The digest's time is set, because `aws s3 sync` uploads an archive whose own time changed.
            os.utime(digest_of(archive))


def tidy(cache: Path) -> None:
    """Remove the archives that no deploy has used for KEEP_DAYS, and the files beside them."""
    oldest = datetime.now(UTC).timestamp() - KEEP_DAYS * 86400
    with locked(cache):
        old = []
        for path in (path for path in cache.glob("*/*") if path.name != "lock"):
            digest = path.with_name(re.sub(r"\.(tar\.gz|cdx\.json|facts\.json).*", ".tar.gz.sha256", path.name))
            # A killed build leaves a file without a digest.
            if (digest if digest.exists() else path).stat().st_mtime < oldest:
                old.append(path)
        for path in old:
            path.unlink()


def described(archive: Path, dest: str) -> dict[str, Any]:
    """Return the file, digest and size of a cached archive, and its place on a host."""
    return {
        "file": str(archive),
        "sha256": digest_of(archive).read_text(),
        "size": archive.stat().st_size,
        "dest": dest,
    }


def key(*parts: str | bytes) -> str:
    """Return a short hash of the inputs of an archive."""
    inputs = b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    return hashlib.sha256(inputs).hexdigest()[:20]
