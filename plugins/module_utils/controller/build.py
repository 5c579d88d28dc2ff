"""Build the artifact of a release on the controller, from the commit and this collection alone.

An artifact has three archives: the release, the app's layer and the runner's layer. A layer holds locked dependencies
for one Python and machine; the runner's layer holds the runner too. A hash of the inputs names each layer. The release
is a virtual environment that holds the app and names its Python and its layers. Its bill of materials (CycloneDX) is
`.cdx.json` in the cache, and `sbom.cdx.json` in the release.
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

from .archive import cached, described, files, key, once, pack, tidy, use, write
from .git import export, listing, normal, objects
from .lock import bill, outdated, pins, project, text
from .process import BuildError
from .uv import build_environment, uv, workplace
from .vendor import vendor

# This number is a part of every key. Raise it when a change of this file changes the bytes of an archive.
RECIPE = "7"
# What the host program may rely on in a release, as a number in its manifest: 2 if the runner's main process takes the
# signals SIGUSR1 and SIGUSR2. A release without a number has the contract 1.
CONTRACT = 2
# The runner, in this checkout or in the installed collection.
RUNNER = Path(__file__).resolve().parents[3] / "runner"
# Debian 12, the oldest supported suite, has glibc 2.36. uv must not choose a wheel that needs a newer glibc.
PLATFORM = "{machine}-manylinux_2_36"
MACHINES = ("x86_64", "aarch64")
LOCK_AGAIN = "uv pip compile --universal --generate-hashes pyproject.toml -o requirements.txt"
NEEDED = f"a release needs a pyproject.toml and a requirements.txt with hashes (`{LOCK_AGAIN}`) in app_path, committed."


def show(repository: Path, sha: str, path: str, name: str) -> bytes:
    """Return the content of a file in the app's folder of a commit; `git cat-file` follows links."""
    try:
        (content,) = objects(repository, [f"{sha}:{posixpath.normpath(f'{path}/{name}')}"], "--follow-symlinks")
        return content
    except BuildError:
        listing(repository, sha, path)  # raises a BuildError of its own if the folder is missing
        raise BuildError(f"Commit {sha[:12]} has no {path}/{name}: {NEEDED}") from None


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
    """Build the artifact of a commit for a host's Python and machine, or take it from the cache.

    Args:
        repository: the git repository.
        path: the app's folder in the repository.
        serve: app_serve, `module:attribute` or `module:factory()`.
        sha: the commit, 40 characters.
        python: the series of the host's Python, such as `3.11`.
        machine: the output of `uname -m` on the host.
        cache: the directory of the cache.
        python_full: the version of the host's Python, such as `3.11.2`; by default the first one of the series.

    Returns:
        `release`, `layer` and `runner`, each with `file`, `sha256`, `size` (bytes) and `dest`, which is relative to the
        app's directory on the host; the layers also with `name`; `notices`, sentences about a release that was built.

    Raises:
        BuildError: a file is missing in the commit, the lock is out of date, or a dependency has no wheel for this
            Python and machine.
    """
    if machine not in MACHINES:
        raise BuildError(f"The host is {machine}; releases are built for {' and '.join(MACHINES)}.")
    path = normal(path)
    of = f"of commit {sha[:12]}"
    lock_file, project_file = (posixpath.normpath(f"{path}/{name}") for name in ("requirements.txt", "pyproject.toml"))
    lock = show(repository, sha, path, "requirements.txt")
    pyproject = text(show(repository, sha, path, "pyproject.toml"), f"{project_file} {of}")
    try:
        table = project(pyproject)
        requires_python = SpecifierSet(table.get("requires-python", ""))
    except (BuildError, InvalidSpecifier) as error:
        raise BuildError(f"{project_file} {of} can't be read: {error}. Fix it, and commit.") from None
    version = python_full or f"{python}.0"
    if not requires_python.contains(version, prereleases=True):
        raise BuildError(
            f'{project_file} {of} has requires-python = "{requires_python}", and the host runs it with Python'
            f" {version}. Take a host with such a Python (Debian 12 has 3.11, Debian 13 has 3.13), or widen"
            " requires-python if the app runs there, lock again, and commit."
        )
    runner_lock = (RUNNER / "requirements.txt").read_text()
    # A checkout has `_vendor` for its own Python.
    sources = [file for file in files(RUNNER / "src") if "_vendor" not in file.parts]
    source = [part for file in sources for part in (str(file.relative_to(RUNNER)), file.read_bytes())]
    layer_name = f"{key(RECIPE, lock, python, machine)}-py{python}-{machine}"
    runner_name = f"runner-{key(RECIPE, runner_lock, python, machine, *source)}-py{python}-{machine}"
    layer, runner = (cache / "layers" / f"{name}.tar.gz" for name in (layer_name, runner_name))
    # All controllers give an archive the same name, so the store of app_artifact_url can hold archives of any of them.
    # The key has no repository, because a SHA has the same content in every repository.
    release = cache / "releases" / f"{sha}-{key(RECIPE, path, serve, layer_name, runner_name)}.tar.gz"
    notices: list[str] = []
    use(cache, layer, runner, release)
    if not all(map(cached, (layer, runner, release))):
        locked_text = text(lock, f"{lock_file} {of}")
        try:
            locked = pins(locked_text, python, machine)
        except BuildError as error:
            raise BuildError(
                f"{lock_file} {of} is no lock with hashes: {error}. Lock again there, and commit: {LOCK_AGAIN}"
            ) from None

        def check(source: str, dependencies: list[str], layer: dict[str, list[str]] | None = None) -> None:
            if problem := outdated(dependencies, locked, python, machine, layer):
                raise BuildError(
                    f"The lock {of} is out of date: {source} {problem} in {lock_file}. Lock again there, and commit:"
                    f" {LOCK_AGAIN}"
                )

        check(project_file, table.get("dependencies", []))
        once(layer, lambda archive: build_layer(archive, locked_text, python, machine))
        once(runner, lambda archive: build_layer(archive, runner_lock, python, machine, RUNNER / "src"))

        def finish(archive: Path) -> None:
            with built_app(repository, path, sha, version) as (target, time):
                # The metadata of the wheel, which the build backend takes from pyproject.toml, setup.py or elsewhere.
                (app,) = distributions(path=[str(target)])
                file = requires_file(layer)
                check("the app", app.requires or [], json.loads(file.read_text()) if file.exists() else None)
                if locked and not app.requires:
                    notices.append(
                        f"The app {of} declares no dependencies to its build backend, so Booty can't check whether"
                        f" {lock_file} locks all packages that it imports. Declare them in {project_file}: [project]"
                        " dependencies."
                    )
                materials = bill(pyproject, locked, pins(runner_lock, python, machine), sha, time)
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


def requires_file(layer: Path) -> Path:
    """Return the file beside a layer with the requirements of each of its packages."""
    return layer.with_name(layer.name.replace(".tar.gz", ".requires.json"))


def build_layer(archive: Path, lock: str, python: str, machine: str, package: Path | None = None) -> None:
    """Install the wheels of locked dependencies for a Python and machine, and pack them.

    Args:
        archive: the archive to write.
        lock: the text of the lock.
        python: the host's Python.
        machine: the host's architecture.
        package: the folder with the runner, which is added to its layer; the dependencies get private names.
    """
    with workplace() as directory:
        requirements, target = directory / "requirements.txt", directory / "layer"
        requirements.write_text(lock)
        target.mkdir()
        platform = PLATFORM.format(machine=machine)
        options = ["--require-hashes", "--only-binary=:all:", f"--python-platform={platform}"]
        if package:  # the runner's lock leaves out what the runner does not use of its dependencies
            options.append("--no-deps")
        try:
            install(directory, target, python, *options, "-r", str(requirements))
        except BuildError as error:
            raise BuildError(
                f"The locked dependencies can't be installed for Python {python} on {platform}: {error}"
            ) from None
        if package:
            installed, target = target, directory / "runner"
            shutil.copytree(package, target, ignore=shutil.ignore_patterns("_vendor"))
            vendor(installed, target / "booty_runner/_vendor")
            # The telemetry of an app that brings the SDK still uses these by their public names.
            for name in ("sentry_sdk", "urllib3", "certifi"):
                shutil.copytree(installed / name, target / name)
        requires = {canonicalize_name(each.name): each.requires or [] for each in distributions(path=[str(target)])}
        write(requires_file(archive), json.dumps(requires, sort_keys=True).encode())
        pack(target, archive, mtime=0)


def install(directory: Path, target: Path, python: str, *arguments: str) -> None:
    """Install packages into a folder with `uv pip install`, for a version of Python."""
    options = ("--quiet", "--no-compile-bytecode", f"--python-version={python}", f"--target={target}")
    uv(directory, "pip", "install", *options, *arguments)


@contextmanager
def built_app(repository: Path, path: str, sha: str, python: str) -> Iterator[tuple[Path, int]]:
    """Build the app's wheel from the commit and install it; yield the folder with it, and the commit's time."""
    (commit,) = objects(repository, [sha])
    match = re.search(rb"^committer .* (-?\d+) [+-]\d+$", commit, re.MULTILINE)
    time = int(match[1]) if match else 0
    with workplace() as directory:
        source, target = directory / "source", directory / "target"
        source.mkdir()
        target.mkdir()
        export(repository, sha, path, source)
        app = source / path
        # Without build-requirements.txt, the bounds in the app's pyproject.toml choose the build tools.
        tools = app / "build-requirements.txt"
        locked_tools = ["--build-constraints", str(tools), "--require-hashes"] if tools.exists() else []
        command = ("build", "--wheel", f"--out-dir={directory}", *locked_tools, str(app))
        try:
            uv(directory, *command, **build_environment(directory, sha, time))
            (wheel,) = directory.glob("*.whl")
            install(directory, target, python, "--no-deps", str(wheel))
        except BuildError as error:
            output = [line for line in str(error).splitlines() if line != "Building wheel..."][-40:]
            heading = f"The app of commit {sha[:12]} does not build. uv and its build backend said:"
            raise BuildError("\n".join([heading, *output])) from None
        yield target, time


def pack_release(archive: Path, target: Path, manifest: dict[str, Any], materials: bytes, time: int) -> None:
    """Pack an installed app as a virtual environment over its layers."""
    site = f"lib/python{manifest['python']}/site-packages"
    archive.with_name(archive.name.replace(".tar.gz", ".cdx.json")).write_bytes(materials)
    serve = shlex.quote(manifest["serve"])
    extra: dict[str, bytes | Path] = {
        "bin/python": Path("/usr/bin/python3"),
        # The release starts its own app, because the unit stays the same when another release serves.
        "bin/serve": f'#!/bin/sh\nexec "${{0%/*}}/python" -P -m booty_runner {serve} "$@"\n'.encode(),
        "pyvenv.cfg": b"home = /usr/bin\ninclude-system-site-packages = false\n",
        # `site.addsitedir` makes Python read the .pth files of a layer's packages. The order of the layers does not
        # matter: the runner's has one name, booty_runner.
        f"{site}/layer.pth": "".join(
            f"import os, site, sys; site.addsitedir(os.path.normpath(sys.prefix + '/../../layers/{manifest[layer]}'))\n"
            for layer in ("layer", "runner")
        ).encode(),
        "sbom.cdx.json": materials,
        "release.json": json.dumps(manifest, indent=1).encode() + b"\n",
    }
    pack(target, archive, time, extra, prefix=f"{site}/")
