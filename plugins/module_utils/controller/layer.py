"""Build the layer of an app: its locked dependencies, installed for the Python and the machine of a host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from .archive import installed, pack, write
from .lock import Host, Package
from .locks import PLATFORM, Lock
from .process import BuildError
from .scripts import programs
from .uv import package_environment, uv, workplace

# Dependencies without a wheel are built with the newest build tools of this day, so that the bytes of a layer depend on
# its lock alone. Raise RECIPE with it.
TOOLS = "2026-11-01T00:00:00Z"
# A server in C without wheels. The runner takes its place, and no other Python process can import it.
LEFT_OUT = "uwsgi"


def facts_file(layer: Path) -> Path:
    """Return the file beside a layer with what a build of a release needs to know of its packages."""
    return layer.with_name(layer.name.replace(".tar.gz", ".facts.json"))


def build_layer(archive: Path, lock: Lock, host: Host) -> None:
    """Install locked dependencies, and pack them.

    Beside the archive, `facts_file` gets the requirements of each package, and the programs of the packages.

    Raises:
        BuildError: a dependency can't be installed on the host, or only with a compiler.
    """
    with workplace() as directory:
        target = directory / "layer"
        target.mkdir()
        packages = [package for _, package in sorted(lock.packages.items()) if not package.path]
        packages = [package for package in packages if package.name != LEFT_OUT]
        repositories = [package for package in packages if package.url.startswith("git+")]
        sources = [
            package
            for package in packages
            if package.url and package not in repositories and not re.search(r"\.whl(#|$)", package.url)
        ]
        wheels = [package for package in packages if package not in repositories and package not in sources]
        while absent := install_wheels(directory, target, wheels, lock.options, host):
            sources += [package for package in wheels if package.name == absent]
            wheels = [package for package in wheels if package.name != absent]
        before = {*target.glob("*.dist-info")}
        for group, hashes in ((sources, "--require-hashes"), (repositories, "--no-verify-hashes")):
            if group:
                install_sources(directory, target, group, hashes, lock, host)
        for path in {*target.glob("*.dist-info")} - before:
            demand_pure(Distribution.at(path), lock, host)
        requires = {canonicalize_name(each.name): each.requires or [] for each in distributions(path=[str(target)])}
        made = programs(target)
        facts = {"requires": requires, "programs": made}
        write(facts_file(archive), json.dumps(facts, sort_keys=True).encode())
        pack(archive, 0, {**installed(target), **{f"bin/{name}": target / "bin" / name for name in made["others"]}})


def facts_of(layer: Path) -> dict[str, Any]:
    """Return the facts about a layer that is in the cache."""
    facts: dict[str, Any] = json.loads(facts_file(layer).read_text())
    return facts


def options_for(target: Path, host: Host) -> list[str]:
    """Return the options of `uv pip install` for a folder and a host."""
    return [
        *("pip", "install", "--quiet", "--no-deps", "--no-compile-bytecode", f"--target={target}"),
        *(f"--python-version={host.python_full}", f"--python-platform={PLATFORM.format(machine=host.machine)}"),
    ]


def write_requirements(directory: Path, packages: Iterable[Package], options: list[str]) -> list[str]:
    """Write a requirements file, and return the options of uv that read it.

    Hashes say which file is right, so an index that a lock names may come in any order with the controller's.
    """
    file = directory / "requirements.txt"
    file.write_text("".join(f"{line}\n" for line in (*options, *(package.line() for package in packages))))
    return ["-r", str(file), *(["--index-strategy=unsafe-best-match"] if options else [])]


def install_wheels(directory: Path, target: Path, wheels: list[Package], options: list[str], host: Host) -> str:
    """Install wheels, all or none; return the name of a package that has none for the host, "" for success."""
    files = write_requirements(directory, wheels, options)
    try:
        uv(directory, *options_for(target, host), "--require-hashes", "--only-binary=:all:", *files)
    except BuildError as error:
        absent = re.search(r"Because (?:only )?([\w.-]+)==\S+ has no usable wheels", str(error))
        if absent and any(package.name == canonicalize_name(absent[1]) for package in wheels):
            return canonicalize_name(absent[1])
        platform = PLATFORM.format(machine=host.machine)
        raise BuildError(
            f"The locked dependencies can't be installed for Python {host.python_full} on {platform}: {error}"
        ) from None
    return ""


def install_sources(
    directory: Path, target: Path, packages: list[Package], hashes: str, lock: Lock, host: Host
) -> None:
    """Build wheels from locked sources, in isolation and without a compiler, and install them."""
    names = [f"--no-binary={package.name}" for package in packages]
    dated = [f"--exclude-newer={TOOLS}", *(f"--exclude-newer-package={package.name}=false" for package in packages)]
    files = write_requirements(directory, packages, lock.options)
    # Without a compiler an extension that is optional is left out, and any other one fails. uv's cache may have wheels
    # that were built with a compiler.
    environment = {**package_environment(directory, 0), "CC": "false", "CXX": "false"}
    command = [*options_for(target, host), hashes, "--only-binary=:all:", *names, "--no-cache", *files]
    try:
        try:
            uv(directory, *command, *dated, **environment)
        except BuildError as error:
            if "missing an upload date" not in str(error) and "filtered by `exclude-newer`" not in str(error):
                raise
            uv(directory, *command, **environment)
    except BuildError as error:
        text = str(error)
        name = next((package.name for package in packages if f"`{package.name}" in text), packages[0].name)
        if re.search(r"['\"]false['\"]|compiler|autoconf|cmake|cargo|rustc|gcc|setuptools-rust", text):
            raise BuildError(native(name, lock, host)) from None
        lines = "\n".join(text.splitlines()[-25:])
        raise BuildError(
            f"{name} of {lock.file} has no wheel for Python {host.python_full}, and its source does not build on this"
            f" machine. Lock a version with a wheel, or publish a wheel of it to your index. uv said:\n{lines}"
        ) from None


def demand_pure(distribution: Distribution, lock: Lock, host: Host) -> None:
    """Raise BuildError unless a package that was built here runs on any machine."""
    wheel = distribution.read_text("WHEEL") or ""
    tags = re.findall(r"^Tag: (.+)$", wheel, re.MULTILINE)
    if "Root-Is-Purelib: true" not in wheel or not all(tag.endswith("-none-any") for tag in tags):
        raise BuildError(native(distribution.name, lock, host))


def native(name: str, lock: Lock, host: Host) -> str:
    """Return the sentence about a package that needs a compiler."""
    return (
        f"{name} of {lock.file} has no wheel for Python {host.python_full} on {host.machine}, and its source has native"
        " code, which Booty does not compile. Lock a version with such a wheel, or publish a wheel of it to your index."
    )
