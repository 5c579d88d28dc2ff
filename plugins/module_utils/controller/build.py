"""Build the artifact of a release on the controller, from the commit and this collection alone.

An artifact has three archives: the release, the app's layer and the runner's layer. A layer holds locked dependencies
for one Python and machine; the runner's layer holds the runner too. A hash of the inputs names each layer. The release
is a virtual environment that holds the app and names its Python and its layers. Its bill of materials (CycloneDX) is
`.cdx.json` in the cache, and `sbom.cdx.json` in the release.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shlex
import shutil
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from . import locks
from .archive import Link, cached, described, files, installed, key, once, pack, tidy, use
from .git import Tree, objects, source_of
from .layer import build_layer, facts_of, options_for
from .lock import Host, bill, incomplete, outdated, packages_in, project
from .locks import PLATFORM, Lock, Work
from .process import BuildError
from .scripts import Programs, programs
from .static import demand_there
from .uv import build_environment, uv, workplace
from .vendor import vendor

# This number is a part of every key. Raise it when a change of this file changes the bytes of an archive.
RECIPE = "8"
# What the host program may rely on in a release, as a number in its manifest. From 2 on the runner's main process takes
# the signals SIGUSR1 and SIGUSR2. From 3 on the release has the commit's files in `tree/`, and the runner reads the
# manifest and answers the question who serves. A release without a number has the contract 1.
CONTRACT = 3
# The runner, in this checkout or in the installed collection.
RUNNER = Path(__file__).resolve().parents[3] / "runner"
MACHINES = ("x86_64", "aarch64")


def build(
    repository: Path, description: Mapping[str, Any], sha: str, host: Host, cache: Path, app_name: str
) -> dict[str, Any]:
    """Build the artifact of a commit for a host's Python and machine, or take it from the cache.

    Args:
        repository: the git repository.
        description: what `describe` returned for this commit.
        sha: the commit, 40 characters.
        host: the host's Python and machine.
        cache: the directory of the cache.
        app_name: app_name, which names the state directory.

    Returns:
        `release`, `layer` and `runner`, each with `file`, `sha256`, `size` (bytes) and `dest`, which is relative to the
        app's directory on the host; the layers also with `name`; `notices`, sentences about a release that was built.

    Raises:
        BuildError: a file is missing in the commit, the lock is out of date, or a dependency can't be installed for
            this Python and machine.
    """
    if host.machine not in MACHINES:
        raise BuildError(f"The host is {host.machine}; releases are built for {' and '.join(MACHINES)}.")
    (commit,) = objects(repository, [sha])
    match = re.search(rb"^committer .* (-?\d+) [+-]\d+$", commit, re.MULTILINE)
    with workplace() as directory:
        tree, path = Tree(repository, sha), description["path"]
        tree.demand(path)
        work = Work(tree, path, directory, cache, int(match[1]) if match else 0, description["dotenv"])
        return artifact(work, description, host, app_name)


def artifact(work: Work, description: Mapping[str, Any], host: Host, app_name: str) -> dict[str, Any]:
    """Build the artifact of a commit whose files are at hand; see `build`."""
    sha, cache, of = work.tree.sha, work.cache, work.of
    project_file = posixpath.normpath(f"{work.path}/pyproject.toml")
    demand_python(work, description, project_file, host)
    lock = locks.read(work, description, host)
    locked_text, where = lock.text(), f"py{host.python}-{host.machine}"
    runner_lock = (RUNNER / "requirements.txt").read_text()
    # A checkout has `_vendor` for its own Python.
    sources = [file for file in files(RUNNER / "src") if "_vendor" not in file.parts]
    source = [part for file in sources for part in (str(file.relative_to(RUNNER)), file.read_bytes())]
    layer_name = f"{key(RECIPE, locked_text, host.python, host.machine)}-{where}"
    runner_name = f"runner-{key(RECIPE, runner_lock, host.python, host.machine, *source)}-{where}"
    layer, runner = (cache / "layers" / f"{name}.tar.gz" for name in (layer_name, runner_name))
    names = {"release": sha, "layer": layer_name, "runner": runner_name, "python": host.python}
    manifest = {**names, "contract": CONTRACT, **description}
    # All controllers give an archive the same name, so the store of app_artifact_url can hold archives of any of them.
    # The key has no repository, because a SHA has the same content in every repository.
    state = app_name if description["state_paths"] else ""
    release = cache / "releases" / f"{sha}-{key(RECIPE, json.dumps(manifest, sort_keys=True), state)}.tar.gz"
    use(cache, layer, runner, release)
    if not all(map(cached, (layer, runner, release))):
        pyproject = work.toml(project_file)
        declared = project(pyproject).get("dependencies", [])

        def check(source: str, problem: str) -> None:
            if problem:
                raise BuildError(
                    f"The lock {of} is out of date: {source} {problem} in {lock.file}. Lock again there, and commit:"
                    f" {lock.again}"
                )

        # Dependencies that were resolved for the commit are never out of date, and neither is an app without a lock.
        if lock.again:
            check(project_file, outdated(declared, lock.packages, host))
        once(layer, lambda archive: build_layer(archive, lock, host))
        once(runner, lambda archive: build_runner(archive, runner_lock, host))
        facts = facts_of(layer)
        if lock.complete:
            check("its package", incomplete(lock.packages, facts["requires"], host))

        def finish(archive: Path) -> None:
            target = install_projects(work, lock, pyproject, host)
            name = canonicalize_name(project(pyproject).get("name", app_name))
            # The metadata of the wheel, which the build backend takes from pyproject.toml, setup.py or elsewhere.
            apps = [
                app for app in distributions(path=[str(target)]) if canonicalize_name(app.name) not in lock.packages
            ]
            for app in apps:
                if lock.again:
                    check("the app", outdated(app.requires or [], lock.packages, host, facts["requires"]))
                if lock.packages and lock.again and not app.requires:
                    work.notices.append(
                        f"The app {of} declares no dependencies to its build backend, so Booty can't check whether"
                        f" {lock.file} locks all packages that it imports. Declare them in {project_file}: [project]"
                        " dependencies."
                    )
            materials = bill(name, lock.packages, packages_in(runner_lock, host, "."), sha, work.time)
            pack_release(archive, work, target, manifest, materials, facts["programs"], app_name)

        once(release, finish)
        tidy(cache)
    return {
        "release": described(release, f"releases/{sha}"),
        "layer": {**described(layer, f"layers/{layer_name}"), "name": layer_name},
        "runner": {**described(runner, f"layers/{runner_name}"), "name": runner_name},
        "notices": work.notices,
    }


def demand_python(work: Work, description: Mapping[str, Any], project_file: str, host: Host) -> None:
    """Raise BuildError if the app wants another Python than the host's."""
    lock_file = posixpath.normpath(f"{work.path}/{description['lock']}") if description["lock"] else ""
    file, wanted = locks.requires_python(work, lock_file, project_file)
    if not wanted.contains(host.python_full, prereleases=True):
        raise BuildError(
            f'{file} {work.of} has requires-python = "{wanted}", and the host runs it with Python {host.python_full}.'
            " Take a host with such a Python (Debian 12 has 3.11, Debian 13 has 3.13), or widen requires-python if the"
            " app runs there, lock again, and commit."
        )


def build_runner(archive: Path, lock: str, host: Host) -> None:
    """Pack the runner, with its locked dependencies under private names.

    The lock leaves out what the runner does not use of its dependencies.
    """
    with workplace() as directory:
        requirements, packages, target = directory / "requirements.txt", directory / "packages", directory / "runner"
        requirements.write_text(lock)
        packages.mkdir()
        options = ("--require-hashes", "--only-binary=:all:", "-r", str(requirements))
        try:
            uv(directory, *options_for(packages, host), *options)
        except BuildError as error:
            platform = PLATFORM.format(machine=host.machine)
            raise BuildError(f"The runner can't be installed for Python {host.python} on {platform}: {error}") from None
        shutil.copytree(RUNNER / "src", target, ignore=shutil.ignore_patterns("_vendor"))
        vendor(packages, target / "booty_runner/_vendor")
        pack(archive, 0, installed(target))


def install_projects(work: Work, lock: Lock, pyproject: Mapping[str, Any], host: Host) -> Path:
    """Build the app, if it is a package, and the folders that its lock names; return the folder with the result."""
    target = work.directory / "target"
    target.mkdir()
    folders = [package.path for _, package in sorted(lock.packages.items()) if package.path]
    if locks.installable(work.tree, work.path, pyproject):
        folders.append(work.path)
    for number, folder in enumerate(folders):
        try:
            install_project(work, folder, work.directory / f"build{number}", target, host)
        except BuildError as error:
            output = [line for line in str(error).splitlines() if line != "Building wheel..."][-40:]
            if folder == work.path and "Multiple top-level" in str(error):
                # setuptools refuses such a folder, and the modules are in the tree all the same.
                work.notices.append(
                    f"The app {work.of} is not installed as a package, because setuptools found several packages at"
                    " its top. Its modules are imported from its folder. To install it, name its packages in"
                    " pyproject.toml; to end this notice, remove [build-system]."
                )
                continue
            what = "The app" if folder == work.path else folder
            heading = f"{what} {work.of} does not build. uv and its build backend said:"
            raise BuildError("\n".join([heading, *output, *version_hint(str(error))])) from None
    return target


def version_hint(output: str) -> list[str]:
    """Return the next step if a build failed because it wants a version from git's tags."""
    if re.search(
        r"git (describe|tag|rev-parse)|not a git repository|No git repository|version.*VCS", output, re.IGNORECASE
    ):
        return ["A build has no git repository. Write a version in pyproject.toml, or take it from setuptools-scm."]
    return []


def install_project(work: Work, folder: str, build: Path, target: Path, host: Host) -> None:
    """Build the wheel of a folder of the commit, and install it."""
    app = source_of(work.top(), folder, build / "source")
    # Without build-requirements.txt, the bounds in the app's pyproject.toml choose the build tools.
    tools = app / "build-requirements.txt"
    locked_tools = ["--build-constraints", str(tools), "--require-hashes"] if tools.exists() else []
    # These end the search of build backends for the settings of a parent folder.
    command = ("build", "--wheel", f"--out-dir={build}", *locked_tools, str(app))
    uv(work.directory, *command, **build_environment(work.directory, work.tree.sha, work.time))
    (wheel,) = build.glob("*.whl")
    uv(work.directory, *options_for(target, host), str(wheel))


def pack_release(
    archive: Path,
    work: Work,
    target: Path,
    manifest: Mapping[str, Any],
    materials: bytes,
    of_layer: Programs,
    app_name: str,
) -> None:
    """Pack the commit's files and the installed app as a virtual environment over its layers.

    Args:
        archive: the file to write.
        work: the build.
        target: the folder with the installed app.
        manifest: the content of release.json.
        materials: the bill of materials.
        of_layer: the programs of the app's layer.
        app_name: app_name.
    """
    site = f"lib/python{manifest['python']}/site-packages"
    archive.with_name(archive.name.replace(".tar.gz", ".cdx.json")).write_bytes(materials)
    of_app, serve = programs(target), shlex.quote(manifest["serve"])
    binaries = {name: Link(f"../../../layers/{manifest['layer']}/bin/{name}") for name in of_layer["others"]}
    scripts = {**of_layer["scripts"], **of_app["scripts"]}
    bin_files: dict[str, bytes | Path | Link] = {
        **binaries,
        **{name: target / "bin" / name for name in of_app["others"]},
        **{name: text.encode(errors="surrogateescape") for name, text in scripts.items()},
        "python": Link("/usr/bin/python3"),
        # The release starts its own app, because the unit stays the same when another release serves.
        "serve": f'#!/bin/sh\nexec "${{0%/*}}/python" -P -m booty_runner {serve} "$@"\n'.encode(),
    }
    entries: dict[str, bytes | Path | Link] = {
        **tree_entries(work, manifest["state_paths"], app_name),
        **installed(target, f"{site}/"),
        **{f"bin/{name}": content for name, content in bin_files.items()},
        "pyvenv.cfg": b"home = /usr/bin\ninclude-system-site-packages = false\n",
        f"{site}/layer.pth": import_path(manifest).encode(),
        "sbom.cdx.json": materials,
        "release.json": json.dumps(manifest, indent=1).encode() + b"\n",
    }
    in_tree = [name.removeprefix("tree/") for name in entries if name.startswith("tree/")]
    demand_there(manifest["static"], in_tree, work.path, work.of)
    pack(archive, work.time, entries)


def import_path(manifest: Mapping[str, Any]) -> str:
    """Return the text of layer.pth, each of whose lines Python runs at its start.

    It appends app_config_dir, the app's folders and the layers to the import path. The standard library stays in front.
    `site.addsitedir` makes Python read the .pth files of a layer's packages. The order of the layers does not matter:
    the runner's has one name, booty_runner.
    """
    folders = [posixpath.normpath(f"tree/{manifest['path']}/{each}") for each in (".", *manifest["import_paths"])]
    lines = ["import os, sys; sys.path += filter(None, [os.environ.get('BOOTY_CONFIG_DIR')])"]
    lines += [f"import os, sys; sys.path.append(os.path.join(sys.prefix, {folder!a}))" for folder in folders]
    for layer in ("layer", "runner"):
        folder = f"os.path.normpath(sys.prefix + '/../../layers/{manifest[layer]}')"
        lines.append(f"import os, site, sys; site.addsitedir({folder})")
    return "".join(f"{line}\n" for line in lines)


def tree_entries(work: Work, state_paths: list[str], app_name: str) -> dict[str, bytes | Path | Link]:
    """Return the commit's files by their names in the release: in `tree/`, and in `seed/` those at a state path.

    Each state path is a link in `tree/` to the state directory of the app.
    """
    top, prefix = work.top(), "" if work.path == "." else f"{work.path}/"
    entries: dict[str, bytes | Path | Link] = {}
    for folder, folders, names in os.walk(top):
        for name in (*names, *(each for each in folders if Path(folder, each).is_symlink())):
            file = Path(folder, name)
            relative = str(file.relative_to(top))
            inner = relative.removeprefix(prefix) if relative.startswith(prefix) else ""
            persists = any(
                inner == path.rstrip("/") or inner.startswith(f"{path.rstrip('/')}/") for path in state_paths
            )
            entries[f"seed/{inner}" if persists else f"tree/{relative}"] = file
    for path in (path.rstrip("/") for path in state_paths):
        entries[f"tree/{prefix}{path}"] = Link(f"/var/lib/{app_name}/{path}")
    return entries
