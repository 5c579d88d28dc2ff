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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from booty_host import host

# How long a store may say nothing before it counts as gone, in seconds: at the connection, and between two bytes.
SILENCE = 20


def stage(dest: str, sha256: str, archive: str, url: str, check: bool) -> dict[str, Any]:
    """Check an archive's digest, unpack it beside the destination, compile its bytecode, and rename it.

    Args:
        dest: the directory that appears; under its own name it is whole.
        sha256: the digest that the controller computed, in hexadecimal.
        archive: a `.tar.gz` of files and links, on the host, which is removed afterwards; none when it came along.
        url: where the host fetches it instead, by HTTP or HTTPS.
        check: only say whether the directory is missing.

    Raises:
        host.HostError: the archive is damaged or can't be fetched, or the disk is full or read-only.
    """
    directory = Path(dest)
    missing = not directory.is_dir()
    if not check:
        try:
            with source(archive, url) as file:
                if url:
                    file.writelines(fetched(url))
                    file.seek(0)
                unpack(file, sha256, directory, url)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise host.HostError(f"{dest} can't be made: {error}") from error
        if archive:
            Path(archive).unlink(missing_ok=True)
    return {"changed": missing}


def source(archive: str, url: str) -> io.BufferedIOBase:
    """Return an archive's file: an empty one for what is fetched, the host's own, or what came along with the call."""
    if url:
        # Without a name: it is gone with the process, however that ends.
        return tempfile.TemporaryFile(dir=host.INCOMING)
    return open(archive, "rb") if archive else io.BytesIO(sys.stdin.buffer.read())


def fetched(url: str) -> Iterator[bytes]:
    """Return what a store answers, in pieces; raise ValueError when it does not, or stops in the middle."""
    # They take 15 ms to load, and most calls fetch nothing.
    import http.client  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer:
            while piece := answer.read(1 << 20):
                yield piece
            if answer.length:
                raise ValueError(f"{url} ended {answer.length} bytes early. {advice(url)}")
    except urllib.error.HTTPError as error:
        # Nothing more of it: where a redirection led may be a secret. A bucket that not everybody may list answers 403
        # also for what is not there.
        why = ": it is not there, or hosts may not read it without a secret" if error.code in {401, 403} else ""
        raise ValueError(f"{url} answers {error.code}{why}. {advice(url)}") from None
    except TimeoutError:
        raise ValueError(f"{url} said nothing for {SILENCE} seconds. {advice(url)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{url} can't be fetched: {getattr(error, 'reason', error)}. {advice(url)}") from None


def advice(url: str) -> str:
    """Return what helps when a store does not have what it should."""
    name = "/".join(url.split("/")[-2:])
    return f"Publish it: copy {name} of app_cache there. Or let the controller send it: -e app_artifact_url="


def unpack(archive: io.BufferedIOBase, sha256: str, dest: Path, url: str = "") -> None:
    """Make the directory out of an archive that arrived whole; raise ValueError when that is damaged."""
    found = hashlib.file_digest(archive, "sha256").hexdigest()
    if found != sha256:
        what = f"{url} is not what was built" if url else "the archive arrived damaged"
        next_step = advice(url) if url else "Remove it from app_cache, and deploy again."
        raise ValueError(f"{what}: its SHA-256 is {found}, not {sha256}. {next_step}")
    archive.seek(0)
    # Another deploy of the same release may be at it as well. The lock ends with the process.
    with host.locked(dest.parent):
        if not dest.is_dir():
            make(archive, dest)


def make(archive: io.BufferedIOBase, dest: Path) -> None:
    """Make the directory; nobody else does at the same time."""
    for abandoned in dest.parent.glob(f".{dest.name}.*"):
        shutil.rmtree(abandoned, ignore_errors=True)  # it is in nobody's way: the new one has a name of its own
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
