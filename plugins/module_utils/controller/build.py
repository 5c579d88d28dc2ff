"""Build the artifact of a release on the controller, only from the commit and this collection.

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
import tarfile
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from . import describe, locks
from .archive import Link, cached, described, files, installed, key, once, pack, tidy, use
from .git import Tree, objects, source_of
from .layer import LEFT_OUT, build_layer, facts_of, options_for
from .lock import Host, bill, incomplete, outdated, packages_in, project
from .locks import PLATFORM, Lock, Work
from .process import BuildError
from .scripts import Programs, programs
from .static import demand_there
from .steps import Steps, failed_before, note_failure, note_misfit, products, python_for, run_commands, walk
from .uv import build_environment, uv, workplace
from .vendor import vendor

# This number is a part of every key. Raise it when a change of this file changes the bytes of an archive.
RECIPE = "10"
# The version of the contract between a release and the host program, in the release's manifest. From 2 on the runner's
# main process takes the signals SIGUSR1 and SIGUSR2. From 3 on the release has the commit's files in `tree/`, and the
# runner reads the manifest and answers `X-Booty-Ask`. A release without a number has the contract 1.
CONTRACT = 3
# The runner, in this checkout or in the installed collection.
RUNNER = Path(__file__).resolve().parents[3] / "runner"
MACHINES = ("x86_64", "aarch64")


def build(
    repository: Path,
    description: Mapping[str, Any],
    sha: str,
    host: Host,
    cache: Path,
    app_name: str,
    steps: Steps | None = None,
) -> dict[str, Any]:
    """Build the artifact of a commit for a host's Python and machine, or take it from the cache.

    Args:
        repository: the git repository.
        description: what `describe` returned for this commit.
        sha: the commit, 40 characters.
        host: the host's Python and machine.
        cache: the directory of the cache.
        app_name: app_name, which names the state directory.
        steps: what the inventory gives to the commands of the build.

    Returns:
        `release`, `layer` and `runner`, each with `file`, `sha256`, `size` (bytes) and `dest`, which is relative to the
        app's directory on the host; the layers also with `name`; `notices`, sentences about a release that was built.
        The release is None if commands of the build would have to run, and `steps.check` says that they must not.

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
        return artifact(work, description, host, app_name, steps or Steps())


def artifact(work: Work, description: Mapping[str, Any], host: Host, app_name: str, steps: Steps) -> dict[str, Any]:
    """Build the artifact of a commit whose files are at hand; see `build`."""
    sha, cache, of = work.tree.sha, work.cache, work.of
    project_file = posixpath.normpath(f"{work.path}/pyproject.toml")
    wanted = demand_python(work, description, project_file, host)
    lock = locks.read(work, description, host)
    names = names_of_layers(lock, host)
    layer, runner = (layer_file(cache, name) for name in names.values())
    manifest = {"release": sha, **names, "python": host.python, "contract": CONTRACT, **description}
    # All controllers give an archive the same name, so the store of app_artifact_url can hold archives of any of them.
    # The key has no repository, because a SHA has the same content in every repository.
    state = app_name if description["state_paths"] else ""
    inputs = [state, *(steps.inputs() if description["build"] else ())]
    release = cache / "releases" / f"{sha}-{key(RECIPE, json.dumps(manifest, sort_keys=True), *inputs)}.tar.gz"
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

        # `lock.again` is empty for a lock without hashes, which was resolved for this commit, and for an app without a
        # lock. Neither can be out of date.
        if lock.again:
            check(project_file, outdated(declared, lock.packages, host))
        build_layers(cache, names, lock, host)
        facts = facts_of(layer)
        if lock.complete:
            check("its package", incomplete(lock.packages, facts["requires"], host))

        def finish(archive: Path) -> None:
            if message := failed_before(archive, steps.run):
                raise BuildError(message)
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
            locked = {name: package for name, package in lock.packages.items() if name != LEFT_OUT}
            if locked != lock.packages:
                work.notices.append(f"Leaves out {LEFT_OUT} of {lock.file}: Booty's runner serves the app.")
            tree: Mapping[str, Path | Link] = dict(walk(work.top()))
            materials = bill(name, locked, packages_in(runner_lock(), host, "."), sha, work.time)
            try:
                if description["build"]:
                    tree = run_build(work, target, manifest, wanted, host, steps)
                pack_release(archive, work, target, manifest, materials, facts["programs"], app_name, tree)
            except BuildError as error:
                note_failure(archive, steps.run, str(error))
                raise

        if not (steps.check and description["build"]):
            once(release, finish)
        tidy(cache)
    return {
        "release": described(release, f"releases/{sha}") if cached(release) else None,
        **{
            part: {**described(layer_file(cache, name), f"layers/{name}"), "name": name} for part, name in names.items()
        },
        "notices": work.notices,
    }


def runner_lock() -> str:
    """Return the lock of the runner."""
    return (RUNNER / "requirements.txt").read_text()


def names_of_layers(lock: Lock, host: Host) -> dict[str, str]:
    """Return the names of the `layer` of an app and of the `runner`."""
    # A checkout has `_vendor` for its own Python.
    sources = [file for file in files(RUNNER / "src") if "_vendor" not in file.parts]
    source = [part for file in sources for part in (str(file.relative_to(RUNNER)), file.read_bytes())]
    where = f"py{host.python}-{host.machine}"
    return {
        "layer": f"{key(RECIPE, lock.text(), host.python, host.machine)}-{where}",
        "runner": f"runner-{key(RECIPE, runner_lock(), host.python, host.machine, *source)}-{where}",
    }


def layer_file(cache: Path, name: str) -> Path:
    """Return the archive of a layer in the cache."""
    return cache / "layers" / f"{name}.tar.gz"


def build_layers(cache: Path, names: Mapping[str, str], lock: Lock, host: Host) -> None:
    """Build the layer of an app and that of the runner, unless the cache has them."""
    once(layer_file(cache, names["layer"]), lambda archive: build_layer(archive, lock, host))
    once(layer_file(cache, names["runner"]), lambda archive: build_runner(archive, runner_lock(), host))


def run_build(
    work: Work, target: Path, manifest: Mapping[str, Any], wanted: SpecifierSet, host: Host, steps: Steps
) -> dict[str, Path | Link]:
    """Run the commands of the build in the release, laid out on this machine; return the files of its tree then."""
    python, builder = python_for(work, wanted, host)
    names = {part: manifest[part] for part in ("layer", "runner")}
    if (builder.python, builder.machine) != (host.python, host.machine):
        try:
            lock = locks.read(work, manifest, builder)
            names = names_of_layers(lock, builder)
            build_layers(work.cache, names, lock, builder)
        except BuildError as error:
            raise BuildError(
                f"The commands of the build {work.of} run with Python {builder.python_full}, since this machine has no"
                f" Python {host.python}, and need the app's dependencies for it. Install Python {host.python} here. The"
                f" reason: {error}"
            ) from None
    place = work.directory / "build"
    release = place / "releases" / work.tree.sha
    release.mkdir(parents=True)
    of_builder = {**manifest, **names, "python": builder.python}
    of_layer = facts_of(layer_file(work.cache, names["layer"]))["programs"]
    entries = {
        **environment_entries(target, of_builder, of_layer, python),
        **{f"tree/{name}": file for name, file in walk(work.top())},
        "bin/python3": Link("python"),
    }
    # Packed and unpacked, the files have the modes and times that they have on a host.
    pack(place / "release.tar.gz", work.time, entries)
    unpack(place / "release.tar.gz", release)
    for name in names.values():
        unpack(layer_file(work.cache, name), place / "layers" / name)
    own, _ = describe.own(
        work.tree, work.path, work.toml(posixpath.normpath(f"{work.path}/pyproject.toml")), work.tree.sha
    )
    settings = describe.build_settings({"build_settings": steps.build_settings}, own)
    run_commands(work, manifest["build"], release, manifest["state_paths"], settings, steps)
    files = products(work, release / "tree")
    note_misfit(work, files, builder, host)
    return files


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive that this controller made."""
    with tarfile.open(archive) as tar:
        # Newer Pythons refuse links out of the folder without a filter; Python 3.11.2 has no argument for it.
        tar.extraction_filter = lambda member, _: member
        tar.extractall(folder)


def demand_python(work: Work, description: Mapping[str, Any], project_file: str, host: Host) -> SpecifierSet:
    """Return the Pythons that the app wants; raise BuildError if the host's is none of them."""
    lock_file = posixpath.normpath(f"{work.path}/{description['lock']}") if description["lock"] else ""
    file, wanted = locks.requires_python(work, lock_file, project_file)
    if not wanted.contains(host.python_full, prereleases=True):
        raise BuildError(
            f'{file} {work.of} has requires-python = "{wanted}", and the host runs it with Python {host.python_full}.'
            " Take a host with such a Python (Debian 12 has 3.11, Debian 13 has 3.13), or widen requires-python if the"
            " app runs there, lock again, and commit."
        )
    return wanted


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
                # setuptools refuses such a folder. The app can still be imported, because its modules are in the tree.
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
    tree: Mapping[str, Path | Link],
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
        tree: the files of the tree, by their names in it.
    """
    demand_there(manifest["static"], tree, work.path, work.of)
    archive.with_name(archive.name.replace(".tar.gz", ".cdx.json")).write_bytes(materials)
    entries = {
        **tree_entries(work, tree, manifest["state_paths"], app_name),
        **environment_entries(target, manifest, of_layer),
        "sbom.cdx.json": materials,
        "release.json": json.dumps(manifest, indent=1).encode() + b"\n",
    }
    pack(archive, work.time, entries)


def environment_entries(
    target: Path, manifest: Mapping[str, Any], of_layer: Programs, python: str = "/usr/bin/python3"
) -> dict[str, bytes | Path | Link]:
    """Return the virtual environment of a release without its tree: its programs, and the installed app."""
    site = f"lib/python{manifest['python']}/site-packages"
    of_app, serve = programs(target), shlex.quote(manifest["serve"])
    binaries = {name: Link(f"../../../layers/{manifest['layer']}/bin/{name}") for name in of_layer["others"]}
    scripts = {**of_layer["scripts"], **of_app["scripts"]}
    bin_files: dict[str, bytes | Path | Link] = {
        **binaries,
        **{name: target / "bin" / name for name in of_app["others"]},
        **{name: text.encode(errors="surrogateescape") for name, text in scripts.items()},
        "python": Link(python),
        # The release starts its own app, because the unit stays the same when another release serves.
        "serve": f'#!/bin/sh\nexec "${{0%/*}}/python" -P -m booty_runner {serve} "$@"\n'.encode(),
    }
    return {
        **installed(target, f"{site}/"),
        **{f"bin/{name}": content for name, content in bin_files.items()},
        "pyvenv.cfg": f"home = {posixpath.dirname(python)}\ninclude-system-site-packages = false\n".encode(),
        # For import_path, which makes this folder sys.prefix.
        **{f"venv/{name}": Link(f"../{name}") for name in ("bin", "lib", "pyvenv.cfg")},
        f"{site}/layer.pth": import_path(manifest).encode(),
    }


def import_path(manifest: Mapping[str, Any]) -> str:
    """Return the text of layer.pth, each of whose lines Python runs at its start.

    It appends app_config_dir, the app's folders and the layers to the import path. The standard library stays in front.
    `site.addsitedir` makes Python read the .pth files of a layer's packages. The order of the layers does not matter:
    the runner's has one name, booty_runner.

    The first line makes the folder `venv/` of the release sys.prefix. Flask and Quart take an app below sys.prefix for
    an installed package, and make its instance folder in `var/` there, so `tree/` must lie outside.
    """
    folders = [posixpath.normpath(f"tree/{manifest['path']}/{each}") for each in (".", *manifest["import_paths"])]
    lines = ["import sys; sys.prefix = sys.exec_prefix = sys.prefix.removesuffix('/venv') + '/venv'"]
    lines += ["import os, sys; sys.path += filter(None, [os.environ.get('BOOTY_CONFIG_DIR')])"]
    lines += [f"import os, sys; sys.path.append(os.path.dirname(sys.prefix) + {f'/{folder}'!a})" for folder in folders]
    for layer in ("layer", "runner"):
        folder = f"os.path.normpath(sys.prefix + '/../../../layers/{manifest[layer]}')"
        lines.append(f"import os, site, sys; site.addsitedir({folder})")
    return "".join(f"{line}\n" for line in lines)


def tree_entries(
    work: Work, tree: Mapping[str, Path | Link], state_paths: list[str], app_name: str
) -> dict[str, bytes | Path | Link]:
    """Return the files by their names in the release: in `tree/`, and in `seed/` the commit's files at a state path.

    Each state path is a link in `tree/` to the state directory of the app. The first release on a host fills that, so a
    file of a build there would stay for all releases: it is left out.
    """
    prefix = "" if work.path == "." else f"{work.path}/"
    states = tuple(f"{prefix}{path.rstrip('/')}/" for path in state_paths)
    entries: dict[str, bytes | Path | Link] = {}
    for name, file in tree.items():
        if not f"{name}/".startswith(states):
            entries[f"tree/{name}"] = file
    for name, file in walk(work.top()):
        if f"{name}/".startswith(states):
            entries[f"seed/{name.removeprefix(prefix)}"] = file
    for path in (path.rstrip("/") for path in state_paths):
        entries[f"tree/{prefix}{path}"] = Link(f"/var/lib/{app_name}/{path}")
    return entries
