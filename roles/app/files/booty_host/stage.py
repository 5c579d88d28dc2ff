"""Make the directory of a release or a layer from its archive, complete or not at all."""

from __future__ import annotations

import compileall
import hashlib
import io
import os
import py_compile
import resource
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from booty_host import HostError
from booty_host.app import App
from booty_host.files import locked, sync_directory
from booty_host.health import within
from booty_host.processes import run

# How long a store may send nothing before the fetch fails, in seconds: at the connection, and between two bytes.
SILENCE = 20
# How many bytes a second a store must send, beside a minute.
SLOW = 10_000
# Limits of the compilation: its memory in bytes, its CPU time in seconds, and how many bytes it must compile in each
# further second. A file without bytecode is compiled at each import.
MEMORY, CPU_SECONDS, SLOWEST = 2**29, 10, 50_000


def stage(app: App, dest: str, sha256: str, archive: str, url: str, check: bool, size: int = 0) -> dict[str, Any]:
    """Check an archive's digest, unpack it beside the destination, compile its bytecode, and rename it.

    Args:
        app: the app.
        dest: the directory, relative to `App.opt`. It gets this name only once it is complete.
        sha256: the digest that the controller computed, in hexadecimal.
        archive: a `.tar.gz` of files and links, on the host, which is removed afterwards; "" if it came with the call.
        url: the address that the host fetches it from instead, by HTTP or HTTPS.
        check: only say whether the directory is missing.
        size: the archive's, in bytes, if the host fetches it.

    Raises:
        HostError: the archive is damaged or can't be fetched, or the disk is full or read-only.
    """
    directory = app.opt / dest
    missing = not directory.is_dir()
    if not check:
        try:
            with source(app, archive, url) as file:
                if url:
                    file.writelines(fetched(url, size))
                    file.seek(0)
                unpack(file, sha256, directory, url)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise HostError(f"{directory} can't be made: {error}") from error
        if archive:
            Path(archive).unlink(missing_ok=True)
    return {"changed": missing}


def source(app: App, archive: str, url: str) -> io.BufferedIOBase:
    """Return an archive's file: an empty one to fetch into, one that is on the host, or the one in the call."""
    if url:
        # The file has no name, so the kernel removes it when the process ends in any way.
        return tempfile.TemporaryFile(dir=app.incoming)
    return open(archive, "rb") if archive else io.BytesIO(sys.stdin.buffer.read())


def fetched(url: str, size: int) -> Iterator[bytes]:
    """Return a store's answer in pieces; raise ValueError if there is none, or if it is not as long as the archive.

    Args:
        url: the archive's.
        size: its size in bytes.
    """
    # These modules take 15 ms to load, and most calls fetch nothing.
    import http.client  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    seconds, length = 3 * SILENCE + size // SLOW, 0
    late = f"{url} did not send it within {seconds} seconds. {advice(url)}"
    try:
        with within(seconds, late), urllib.request.urlopen(url, timeout=SILENCE) as answer:
            while piece := answer.read(1 << 20):
                length += len(piece)
                if length > size:
                    raise ValueError(f"{url} is longer than what was built ({size} bytes). {advice(url)}")
                yield piece
            if answer.length:
                raise ValueError(f"{url} ended {answer.length} bytes early. {advice(url)}")
    except urllib.error.HTTPError as error:
        # The address that a redirection led to may be a secret, so the message leaves it out. A bucket that is not
        # listed publicly answers 403 for a missing file too.
        hint = ": it is not there, or hosts may not read it without a secret" if error.code in {401, 403} else ""
        raise ValueError(f"{url} answers {error.code}{hint}. {advice(url)}") from None
    except TimeoutError as error:
        silent = f"{url} sent nothing for {SILENCE} seconds. {advice(url)}"
        raise ValueError(late if str(error) == late else silent) from None
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{url} can't be fetched: {getattr(error, 'reason', error)}. {advice(url)}") from None


def advice(url: str) -> str:
    """Return the next step when a store lacks an archive."""
    name = "/".join(url.split("/")[-2:])
    return f"Publish it: copy {name} of app_cache there. Or let the controller send it: -e app_artifact_url="


def unpack(archive: io.BufferedIOBase, sha256: str, dest: Path, url: str = "") -> None:
    """Make the directory from an archive; raise ValueError if the archive is damaged."""
    digest = hashlib.file_digest(archive, "sha256").hexdigest()
    if digest != sha256:
        problem = f"{url} is not what was built" if url else "the archive arrived damaged"
        next_step = advice(url) if url else "Remove it from app_cache, and deploy again."
        raise ValueError(f"{problem}: its SHA-256 is {digest}, not {sha256}. {next_step}")
    archive.seek(0)
    # Another deploy may stage the same release at the same time. The kernel releases the lock when the process ends.
    with locked(dest.parent):
        if not dest.is_dir():
            make(archive, dest)


@contextmanager
def appearing(dest: Path) -> Iterator[Path]:
    """Yield an empty directory to fill. If the block succeeds and the disk has it, rename the directory to `dest`."""
    for abandoned in dest.parent.glob(f".{dest.name}.*"):
        shutil.rmtree(abandoned, ignore_errors=True)  # the new directory gets another random suffix
    partial = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}."))
    try:
        yield partial
        run("sync", "--file-system", str(partial))
        partial.rename(dest)
        sync_directory(dest.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def inside(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive. Raise HostError for one that root would write somewhere else, as by a link."""
    links: set[str] = set()
    for member in tar:
        parts = member.name.split("/")
        parents = {"/".join(parts[: index + 1]) for index in range(len(parts))}
        if {"", ".", ".."} & {*parts} or parents & links or not (member.isreg() or member.issym() or member.isdir()):
            raise HostError(f"the archive has {member.name}, which is no file or link in a folder of its own")
        if member.issym():
            links.add(member.name)
        yield member


def compile_all(files: list[Path], top: Path, dest: Path) -> None:
    """Compile files in a process whose memory and time are bounded; a file that needs more has no bytecode.

    A few lines of Python can need any amount of both: each `finally:` within another one doubles the code.

    Args:
        files: the files.
        top: the folder that they are in.
        dest: the folder that they will be in.
    """
    size = sum(path.stat().st_size for path in files)
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        seconds = CPU_SECONDS + size // SLOWEST
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        for path in files:
            compileall.compile_file(
                path,
                quiet=2,
                stripdir=str(top),
                prependdir=str(dest),
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
    finally:
        os._exit(0)


def make(archive: io.BufferedIOBase, dest: Path) -> None:
    """Make the directory, under the lock of its parent."""
    with appearing(dest) as partial:
        with tarfile.open(fileobj=archive) as tar:
            # The digest proves where the archive comes from, so it is extracted unchanged, with its link to the host's
            # Python. Newer Pythons refuse such a link without a filter; Debian 12's Python has no `filter=` yet.
            tar.extraction_filter = lambda member, _: member
            tar.extractall(partial, members=inside(tar))
        # The service can't write the tree and it never changes, so Python need not compare bytecode with its source. A
        # link can lead to a state path, whose content belongs to the app: root neither reads nor writes through it.
        for path in partial.rglob("__pycache__"):
            if path.is_symlink():
                path.unlink()
        compile_all([path for path in partial.rglob("*.py") if not path.is_symlink()], partial, dest)
        for path in (
            partial,
            *(path for path in partial.rglob("*") if path.is_dir() and not path.is_symlink()),
        ):
            path.chmod(0o755)
