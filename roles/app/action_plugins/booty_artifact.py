"""Resolve a release on the controller, and build its artifact: two layers, from the commit and its lock alone.

Beside it lies its bill of materials, `.cdx.json` (CycloneDX), which the release brings along as `sbom.cdx.json`.

The layer holds the locked dependencies for one Python and machine, and is keyed by what it is made from. The release
holds the app and, as a virtual environment of three files does, names its Python and its layer. Both are archives whose
bytes depend on nothing but the commit, so that the same SHA gives the same digest.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

# Part of every key: raise it when this file makes other bytes from the same commit.
RECIPE = "3"
# Debian 12, the oldest supported suite, has glibc 2.36: a wheel that needs a newer one must not be chosen.
PLATFORM = "{machine}-manylinux_2_36"
MACHINES = ("x86_64", "aarch64")
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


class BuildError(Exception):
    """A release can't be resolved or built; the message says what to do."""


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> bytes:
    """Run a command and return its output; raise BuildError with what it said when it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=False)
    if done.returncode:
        raise BuildError(done.stderr.decode(errors="replace").strip() or f"{command[0]} failed")
    return done.stdout


def resolve(repository: Path, release: str) -> str:
    """Return the 40 characters of the commit that a SHA, a short SHA, a tag or a branch names."""
    try:
        # `--` and the leading ^{} keep a name that looks like an option from being one.
        return (
            run("git", "-C", repository, "rev-parse", "--verify", "--end-of-options", f"{release}^{{commit}}")
            .decode()
            .strip()
        )
    except BuildError as error:
        known = (
            run("git", "-C", repository, "log", "-3", "--format=%h %s").decode().strip()
            if is_repository(repository)
            else ""
        )
        latest = f" Its latest commits are:\n{known}" if known else ""
        raise BuildError(
            f"app_release '{release}' names no single commit of {repository}: {error}\n"
            f"Name a SHA, a tag or a branch that it holds, or fetch it first.{latest}"
        ) from None


def is_repository(path: Path) -> bool:
    """Tell whether git can read a repository there with at least one commit."""
    return subprocess.run(["git", "-C", path, "rev-parse", "HEAD"], capture_output=True, check=False).returncode == 0


def dirty(repository: Path, path: str) -> bool:
    """Tell whether the working tree of the app differs from its last commit."""
    return bool(run("git", "-C", repository, "status", "--porcelain", "--", path))


def show(repository: Path, sha: str, name: str) -> bytes:
    """Return a file of a commit."""
    try:
        return run("git", "-C", repository, "show", f"{sha}:{name}")
    except BuildError:
        raise BuildError(f"Commit {sha[:12]} has no {name}: {NEEDED}") from None


NEEDED = (
    "a release needs a pyproject.toml and a requirements.txt with hashes"
    " (`uv pip compile --universal --generate-hashes pyproject.toml -o requirements.txt`) in app_path, committed."
)


@dataclass
class Pin:
    """A locked dependency: its version (none for a URL), and the names of what wants it, as far as the lock says."""

    version: str
    wanted_by: set[str] = field(default_factory=set)


def pins(lock: str, python: str, machine: str) -> dict[str, Pin]:
    """Return what a lock installs on such a host, by its normalized name.

    Raises:
        BuildError: a line is no requirement.
    """
    found: dict[str, Pin] = {}
    pin = None
    for line in lock.splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            try:
                locked = Requirement(re.split(r"\s+(?:\\|--hash)", line)[0])
            except InvalidRequirement as error:
                raise BuildError(f"requirements.txt holds '{line}': {error}") from None
            pin = Pin(next((part.version for part in locked.specifier), ""))
            if applies(locked, python, machine):
                found[canonicalize_name(locked.name)] = pin
        elif pin and (via := re.match(r"\s+# +(?:via )?([\w.-]+)", line)):
            pin.wanted_by.add(canonicalize_name(via[1]))
    return found


LINUX = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


def applies(requirement: Requirement, python: str, machine: str) -> bool:
    """Tell whether a requirement is one on such a host."""
    there = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    return requirement.marker is None or requirement.marker.evaluate({**LINUX, **there})


def outdated(pyproject: str, locked: dict[str, Pin], python: str, machine: str) -> str:
    """Say what a pyproject.toml wants on such a host that the lock does not have; nothing when it has all.

    What its dependencies want in turn is uv's to check, which installs nothing that is not locked.
    """
    for text in tomllib.loads(pyproject).get("project", {}).get("dependencies", []):
        wanted = Requirement(text)
        pin = locked.get(canonicalize_name(wanted.name))
        if not applies(wanted, python, machine):
            continue
        if pin is None:
            return f"wants {wanted}, which is not locked"
        if pin.version and not wanted.specifier.contains(pin.version, prereleases=True):
            return f"wants {wanted}, but {pin.version} is locked"
    return ""


def bill(pyproject: str, locked: dict[str, Pin], sha: str, time: int) -> bytes:
    """Return a release's bill of materials as CycloneDX JSON; the same bytes for the same commit."""
    # Here, since only a build needs it.
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    name = canonicalize_name(tomllib.loads(pyproject).get("project", {}).get("name", "app"))
    app = Component(name=name, version=sha, type=ComponentType.APPLICATION, bom_ref=name)
    components = {
        dependency: Component(
            name=dependency,
            version=pin.version,
            purl=PackageURL("pypi", name=dependency, version=pin.version),
            bom_ref=f"{dependency}@{pin.version}",
        )
        for dependency, pin in locked.items()
    }
    made = Bom(
        components=components.values(),
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{sha} {json.dumps(sorted(locked))}"),
        metadata=BomMetaData(component=app, timestamp=datetime.fromtimestamp(time, UTC)),
    )
    for parent, component in {name: app, **components}.items():
        made.register_dependency(
            component, [components[child] for child, pin in locked.items() if parent in pin.wanted_by]
        )
    return JsonV1Dot6(made).output_as_string(indent=1).encode() + b"\n"


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
            add(name, path.readlink() if path.is_symlink() else path.read_bytes(), os.access(path, os.X_OK))
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


def build(repository: Path, path: str, module: str, sha: str, python: str, machine: str, cache: Path) -> dict[str, Any]:
    """Build what a host needs to run a commit, or find it in the cache.

    Args:
        repository: the git repository.
        path: the app's folder in it.
        module: what serves, as in `python -m`.
        sha: the commit, all 40 characters.
        python: the host's Python, as `3.11`.
        machine: the host's architecture, as `uname -m` says it.
        cache: where archives are kept.

    Returns:
        `release` and `layer`, each with `file`, `sha256`, `size` (bytes) and `dest` on the host; the layer's `name`.

    Raises:
        BuildError: the commit lacks what it needs, its lock is out of date, or a dependency has no wheel for that
            Python and machine.
    """
    if machine not in MACHINES:
        raise BuildError(f"The host is {machine}; releases are built for {' and '.join(MACHINES)}.")
    lock = show(repository, sha, f"{path}/requirements.txt")
    layer_name = f"{key(RECIPE, lock, python, machine)}-py{python}-{machine}"
    layer = cache / "layers" / f"{layer_name}.tar.gz"
    # Names are the same on every controller, so that a store can hold them: a SHA is one content in all repositories.
    release = cache / "releases" / f"{sha}-{key(RECIPE, path, module, layer_name)}.tar.gz"
    if not (made(layer) and made(release)):
        pyproject = show(repository, sha, f"{path}/pyproject.toml").decode()
        locked = pins(lock.decode(), python, machine)
        if missing := outdated(pyproject, locked, python, machine):
            raise BuildError(
                f"The lock of commit {sha[:12]} is out of date: {path}/pyproject.toml {missing} in"
                f" {path}/requirements.txt. Lock again there, and commit:"
                " uv pip compile --universal --generate-hashes pyproject.toml -o requirements.txt"
            )
        once(layer, lambda archive: build_layer(archive, lock, python, machine))
        once(
            release,
            lambda archive: build_release(
                archive, repository, path, module, sha, python, layer_name, pyproject, locked
            ),
        )
    return {
        "release": described(release, f"/opt/booty/releases/{sha}"),
        "layer": {**described(layer, f"/opt/booty/layers/{layer_name}"), "name": layer_name},
    }


def build_layer(archive: Path, lock: bytes, python: str, machine: str) -> None:
    """Install the locked dependencies, wheels only, for the host's Python and machine, and pack them."""
    with tempfile.TemporaryDirectory() as directory:
        requirements, target = Path(directory, "requirements.txt"), Path(directory, "layer")
        requirements.write_bytes(lock)
        target.mkdir()
        platform = PLATFORM.format(machine=machine)
        install = [
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--only-binary=:all:",
            "--no-compile-bytecode",
        ]
        try:
            uv(
                *install,
                f"--python-version={python}",
                f"--python-platform={platform}",
                f"--target={target}",
                "-r",
                str(requirements),
                cwd=Path(directory),
            )
        except BuildError as error:
            raise BuildError(
                f"The locked dependencies can't be had for Python {python} on {platform}: {error}"
            ) from None
        pack(target, archive, mtime=0)


def build_release(
    archive: Path,
    repository: Path,
    path: str,
    module: str,
    sha: str,
    python: str,
    layer: str,
    pyproject: str,
    locked: dict[str, Pin],
) -> None:
    """Build the app's wheel from the commit, and pack it as a virtual environment over its layer."""
    time = run("git", "-C", repository, "show", "--no-patch", "--format=%ct", sha).decode().strip()
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        source.mkdir()
        target.mkdir()
        with tarfile.open(fileobj=io.BytesIO(run("git", "-C", repository, "archive", sha, "--", path))) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # absent before Python 3.11.4
            tar.extractall(source)
        app = source / path
        # Locked build tools, where the app has any of its own; its pyproject.toml's bounds otherwise.
        tools = app / "build-requirements.txt"
        locked_tools = ["--build-constraints", str(tools), "--require-hashes"] if tools.exists() else []
        try:
            uv(
                "build",
                "--quiet",
                "--wheel",
                f"--out-dir={directory}",
                *locked_tools,
                str(app),
                SOURCE_DATE_EPOCH=time,
            )
            (wheel,) = Path(directory).glob("*.whl")
            uv(
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--no-compile-bytecode",
                f"--python-version={python}",
                f"--target={target}",
                str(wheel),
            )
        except BuildError as error:
            raise BuildError(f"The app of commit {sha[:12]} does not build: {error}") from None
        site = f"lib/python{python}/site-packages"
        manifest = {"release": sha, "layer": layer, "python": python, "path": path, "module": module}
        materials = bill(pyproject, locked, sha, int(time))
        archive.with_name(archive.name.replace(".tar.gz", ".cdx.json")).write_bytes(materials)
        extra: dict[str, bytes | Path] = {
            "bin/python": Path("/usr/bin/python3"),
            # The release itself knows what serves in it: a unit would be another release's before and after.
            "bin/serve": f'#!/bin/sh\nexec "${{0%/*}}/python" -P -m {module} "$@"\n'.encode(),
            "pyvenv.cfg": b"home = /usr/bin\ninclude-system-site-packages = false\n",
            f"{site}/layer.pth": f"/opt/booty/layers/{layer}\n".encode(),
            "sbom.cdx.json": materials,
            "release.json": json.dumps(manifest, indent=1).encode() + b"\n",
        }
        pack(target, archive, int(time), extra, prefix=f"{site}/")


def uv(*arguments: str, cwd: Path | None = None, **environment: str) -> None:
    """Run the locked uv."""
    run(find_uv_bin(), *arguments, cwd=cwd, env={**os.environ, **environment})


class ActionModule(ActionBase):
    """Resolve a release."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `release`, all 40 characters."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, wanted = self.validate_argument_spec(
            {
                "repository": {"type": "path", "required": True},
                "path": {"type": "str", "required": True},
                "release": {"type": "str", "required": True},
            },
        )
        repository = Path(wanted["repository"]).resolve()
        try:
            sha = resolve(repository, wanted["release"])
            if wanted["release"] == "HEAD" and dirty(repository, wanted["path"]):
                result["warnings"] = [
                    f"{repository / wanted['path']} has changes that are not committed;"
                    f" commit {sha[:12]} is deployed without them."
                ]
        except BuildError as error:
            raise AnsibleActionFail(str(error)) from None
        return {**result, "release": sha, "changed": False}
