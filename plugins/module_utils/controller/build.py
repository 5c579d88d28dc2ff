"""Build the artifact of a release on the controller: from the commit, its lock and the runner alone.

Beside it lies its bill of materials, `.cdx.json` (CycloneDX), which the release brings along as `sbom.cdx.json`.

Two layers hold locked dependencies for one Python and machine, and are keyed by what they are made from: the app's, and
the runner's with the runner itself. The release holds the app and, as a virtual environment of three files does, names
its Python and its layers. All are archives whose bytes depend on nothing but the commit and this collection.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from .archive import described, files, key, made, once, pack, tidy, use, write
from .git import export, listing, normal, objects
from .lock import bill, outdated, pins, project, text
from .process import BuildError
from .uv import build_environment, uv, workplace

# Part of every key: raise it when this file makes other bytes from the same commit.
RECIPE = "6"
# What the host program may rely on in a release, as a number in its manifest: 2 if the runner's main process takes the
# signals SIGUSR1 and SIGUSR2. A release without a number is of the contract 1.
CONTRACT = 2
# The runner's folder: that of this checkout, or of the installed collection.
RUNNER = Path(__file__).resolve().parents[3] / "runner"
# Debian 12, the oldest supported suite, has glibc 2.36: a wheel that needs a newer one must not be chosen.
PLATFORM = "{machine}-manylinux_2_36"
MACHINES = ("x86_64", "aarch64")
LOCK_AGAIN = "uv pip compile --universal --generate-hashes pyproject.toml -o requirements.txt"
NEEDED = f"a release needs a pyproject.toml and a requirements.txt with hashes (`{LOCK_AGAIN}`) in app_path, committed."


def show(repository: Path, sha: str, path: str, name: str) -> bytes:
    """Return a file of the app's folder in a commit, links followed."""
    try:
        (content,) = objects(repository, [f"{sha}:{posixpath.normpath(f'{path}/{name}')}"], "--follow-symlinks")
        return content
    except BuildError:
        listing(repository, sha, path)
        raise BuildError(f"Commit {sha[:12]} has no {path}/{name}: {NEEDED}") from None


LOCK_AGAIN = "uv pip compile --universal --generate-hashes pyproject.toml -o requirements.txt"
NEEDED = f"a release needs a pyproject.toml and a requirements.txt with hashes (`{LOCK_AGAIN}`) in app_path, committed."


def build(
    repository: Path,
    path: str,
    serve: str,
    sha: str,
    python: str,
    machine: str,
    cache: Path,
    python_full: str = "",
) -> dict[str, Any]:
    """Build what a host needs to run a commit, or find it in the cache.

    Args:
        repository: the git repository.
        path: the app's folder in it.
        serve: what the runner serves: `module:attribute` or `module:factory()`.
        sha: the commit, all 40 characters.
        python: the host's Python, as `3.11`.
        machine: the host's architecture, as `uname -m` says it.
        cache: where archives are kept.
        python_full: the host's Python, as `3.11.2`; without it the first one of its series.

    Returns:
        `release`, `layer` (the app's) and `runner` (its layer), each with `file`, `sha256`, `size` (bytes) and `dest`,
        which is relative to the app's directory on the host; the layers with their `name`; `notices`, what a person
        should know of a release that was built now.

    Raises:
        BuildError: the commit lacks what it needs, its lock is out of date, or a dependency has no wheel for that
            Python and machine.
    """
    if machine not in MACHINES:
        raise BuildError(f"The host is {machine}; releases are built for {' and '.join(MACHINES)}.")
    path = normal(path)
    of = f"of commit {sha[:12]}"
    named_lock, named_project = (
        posixpath.normpath(f"{path}/{name}") for name in ("requirements.txt", "pyproject.toml")
    )
    lock = show(repository, sha, path, "requirements.txt")
    pyproject = text(show(repository, sha, path, "pyproject.toml"), f"{named_project} {of}")
    try:
        table = project(pyproject)
        wants = SpecifierSet(table.get("requires-python", ""))
    except (BuildError, InvalidSpecifier) as error:
        raise BuildError(f"{named_project} {of} can't be read: {error}. Mend it, and commit.") from None
    runs = python_full or f"{python}.0"
    if not wants.contains(runs, prereleases=True):
        raise BuildError(
            f'{named_project} {of} has requires-python = "{wants}", and the host runs it with Python {runs}. Take a'
            " host with such a Python (Debian 12 has 3.11, Debian 13 has 3.13), or widen requires-python if the app"
            " runs there, lock again, and commit."
        )
    runner_lock = (RUNNER / "requirements.txt").read_text()
    source = [part for file in files(RUNNER / "src") for part in (str(file.relative_to(RUNNER)), file.read_bytes())]
    layer_name = f"{key(RECIPE, lock, python, machine)}-py{python}-{machine}"
    runner_name = f"runner-{key(RECIPE, runner_lock, python, machine, *source)}-py{python}-{machine}"
    layer, runner = (cache / "layers" / f"{name}.tar.gz" for name in (layer_name, runner_name))
    # Names are the same on every controller, so that a store can hold them: a SHA is one content in all repositories.
    release = cache / "releases" / f"{sha}-{key(RECIPE, path, serve, layer_name, runner_name)}.tar.gz"
    notices: list[str] = []
    use(cache, layer, runner, release)
    if not all(map(made, (layer, runner, release))):
        locked_text = text(lock, f"{named_lock} {of}")
        try:
            locked = pins(locked_text, python, machine)
        except BuildError as error:
            raise BuildError(
                f"{named_lock} {of} is no lock with hashes: {error}. Lock again there, and commit: {LOCK_AGAIN}"
            ) from None

        def check(what: str, dependencies: list[str], layer: dict[str, list[str]] | None = None) -> None:
            if missing := outdated(dependencies, locked, python, machine, layer):
                raise BuildError(
                    f"The lock {of} is out of date: {what} {missing} in {named_lock}. Lock again there, and commit:"
                    f" {LOCK_AGAIN}"
                )

        check(named_project, table.get("dependencies", []))
        once(layer, lambda archive: build_layer(archive, locked_text, python, machine))
        once(runner, lambda archive: build_layer(archive, runner_lock, python, machine, RUNNER / "src"))

        def finish(archive: Path) -> None:
            with built_app(repository, path, sha, runs) as (target, time):
                # What the build backend made of pyproject.toml, setup.py or its own tables.
                (app,) = distributions(path=[str(target)])
                noted = requires_of(layer)
                check("the app", app.requires or [], json.loads(noted.read_text()) if noted.exists() else None)
                if locked and not app.requires:
                    notices.append(
                        f"The app {of} declares no dependencies to its build backend, so it can't be told whether"
                        f" {named_lock} locks all that it imports. They belong into {named_project}: [project]"
                        " dependencies."
                    )
                # The app's version of a package goes before the runner's.
                materials = bill(pyproject, {**pins(runner_lock, python, machine), **locked}, sha, time)
                manifest = {"release": sha, "layer": layer_name, "runner": runner_name, "python": python, "path": path}
                pack_release(archive, target, {**manifest, "serve": serve, "contract": CONTRACT}, materials, time)

        once(release, finish)
        tidy(cache)
    return {
        "release": described(release, f"releases/{sha}"),
        "layer": {**described(layer, f"layers/{layer_name}"), "name": layer_name},
        "runner": {**described(runner, f"layers/{runner_name}"), "name": runner_name},
        "notices": notices,
    }


def requires_of(layer: Path) -> Path:
    """Return where it is noted what each package of a layer requires."""
    return layer.with_name(layer.name.replace(".tar.gz", ".requires.json"))


def build_layer(archive: Path, lock: str, python: str, machine: str, package: Path | None = None) -> None:
    """Install locked dependencies, wheels only, for the host's Python and machine, and pack them.

    Args:
        archive: what is made.
        lock: the text of the lock.
        python: the host's Python.
        machine: the host's architecture.
        package: a folder whose packages are put beside them.
    """
    with workplace() as directory:
        requirements, target = directory / "requirements.txt", directory / "layer"
        requirements.write_text(lock)
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
                directory,
                *install,
                f"--python-version={python}",
                f"--python-platform={platform}",
                f"--target={target}",
                "-r",
                str(requirements),
            )
        except BuildError as error:
            raise BuildError(
                f"The locked dependencies can't be had for Python {python} on {platform}: {error}"
            ) from None
        if package:
            shutil.copytree(package, target, dirs_exist_ok=True)
        requires = {canonicalize_name(each.name): each.requires or [] for each in distributions(path=[str(target)])}
        write(requires_of(archive), json.dumps(requires, sort_keys=True).encode())
        pack(target, archive, mtime=0)


@contextmanager
def built_app(repository: Path, path: str, sha: str, python: str) -> Iterator[tuple[Path, int]]:
    """Build the app's wheel from the commit and install it; give where to, and the commit's time."""
    (commit,) = objects(repository, [sha])
    found = re.search(rb"^committer .* (-?\d+) [+-]\d+$", commit, re.MULTILINE)
    time = int(found[1]) if found else 0
    with workplace() as directory:
        source, target = directory / "source", directory / "target"
        source.mkdir()
        target.mkdir()
        export(repository, sha, path, source)
        app = source / path
        # Locked build tools, where the app has any of its own; its pyproject.toml's bounds otherwise.
        tools = app / "build-requirements.txt"
        locked_tools = ["--build-constraints", str(tools), "--require-hashes"] if tools.exists() else []
        try:
            uv(
                directory,
                "build",
                "--wheel",
                f"--out-dir={directory}",
                *locked_tools,
                str(app),
                **build_environment(directory, sha, time),
            )
            (wheel,) = directory.glob("*.whl")
            uv(
                directory,
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
            said = [line for line in str(error).splitlines() if line != "Building wheel..."]
            raise BuildError(
                "\n".join([f"The app of commit {sha[:12]} does not build. uv and its build backend said:", *said[-40:]])
            ) from None
        yield target, time


def pack_release(archive: Path, target: Path, manifest: dict[str, Any], materials: bytes, time: int) -> None:
    """Pack an installed app as a virtual environment over its layers."""
    site = f"lib/python{manifest['python']}/site-packages"
    archive.with_name(archive.name.replace(".tar.gz", ".cdx.json")).write_bytes(materials)
    serve = shlex.quote(manifest["serve"])
    extra: dict[str, bytes | Path] = {
        "bin/python": Path("/usr/bin/python3"),
        # The release itself knows what serves in it: a unit would be another release's before and after.
        "bin/serve": f'#!/bin/sh\nexec "${{0%/*}}/python" -P -m booty_runner {serve} "$@"\n'.encode(),
        "pyvenv.cfg": b"home = /usr/bin\ninclude-system-site-packages = false\n",
        # Python reads the .pth files of a layer's packages only in a folder that `site` added. The runner's layer is
        # the last on the import path, so the app's own versions win.
        f"{site}/layer.pth": "".join(
            f"import os, site, sys; site.addsitedir(os.path.normpath(sys.prefix + '/../../layers/{manifest[layer]}'))\n"
            for layer in ("layer", "runner")
        ).encode(),
        "sbom.cdx.json": materials,
        "release.json": json.dumps(manifest, indent=1).encode() + b"\n",
    }
    pack(target, archive, time, extra, prefix=f"{site}/")
