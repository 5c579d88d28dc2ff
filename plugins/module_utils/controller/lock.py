"""The dependencies that a lock names for a host, and the check that a lock has all that the app requires."""

from __future__ import annotations

import json
import posixpath
import re
import uuid
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from .process import BuildError

RUNNER = "booty-runner"


@dataclass
class Package:
    """A locked dependency.

    Attributes:
        name: its normalized name.
        version: its version; "" for a URL or a folder.
        hashes: the digests of its files, such as `sha256:…`.
        url: the address of its archive, or of its git repository with the commit (`git+https://…@…`).
        path: its folder in the repository of the app.
        required_by: the packages that require it, as far as the lock says so.
    """

    name: str
    version: str = ""
    hashes: tuple[str, ...] = ()
    url: str = ""
    path: str = ""
    required_by: set[str] = field(default_factory=set)

    def line(self) -> str:
        """Return the package as a line of a requirements file."""
        what = f"{self.name} @ {self.url}" if self.url else f"{self.name}=={self.version}"
        return " ".join([what, *(f"--hash={each}" for each in sorted(self.hashes))])


@dataclass
class Host:
    """The Python and the machine for which a lock is read, such as `3.11.2` and `x86_64`."""

    python_full: str
    machine: str

    @property
    def python(self) -> str:
        """Return the series of the host's Python, such as `3.11`."""
        return ".".join(self.python_full.split(".")[:2])

    @property
    def markers(self) -> dict[str, str]:
        """Return the values of the markers on this host."""
        return {
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "implementation_name": "cpython",
            "implementation_version": self.python_full,
            "platform_python_implementation": "CPython",
            "python_version": self.python,
            "python_full_version": self.python_full,
            "platform_machine": self.machine,
        }


def packages_in(lock: str, host: Host, base: str) -> dict[str, Package]:
    """Return the dependencies that a requirements file with hashes installs on a host, by their normalized names.

    Args:
        lock: the text of the file.
        host: the host.
        base: the folder of the repository from which paths in the file are relative.

    Raises:
        BuildError: a line is no locked requirement; the message begins with its number.
    """
    locked: dict[str, Package] = {}
    package: Package | None = None
    for number, entry, comments in entries(lock):
        if package:
            package.required_by |= {canonicalize_name(name) for name in comments}
        if not entry:
            continue
        package, marker = package_of(entry, f"line {number}, '{entry.split('  ')[0].strip()}'", base)
        if package and (marker is None or marker.evaluate({**host.markers, "extra": ""})):
            locked[package.name] = package
    return locked


def entries(text: str) -> list[tuple[int, str, list[str]]]:
    """Return the entries of a requirements file, each with its line number, and the names in `via` comments before it.

    An entry may have several lines. Comments are an entry "" of their own at the end of the file.
    """
    found: list[tuple[int, str, list[str]]] = []
    first, entry, names = 0, "", []
    for number, line in enumerate(text.splitlines(), 1):
        if not entry and (via := re.match(r"\s+# +(?:via )?([\w.-]+)", line)):
            names.append(via[1])
        first = first or number
        entry += re.sub(r"(^|\s+)#.*", "", line)
        if entry.endswith("\\"):
            entry = f"{entry[:-1]}  "
            continue
        if entry.strip():
            found.append((first, entry.strip(), names))
            names = []
        first, entry = 0, ""
    return [*found, (0, "", names)]


def package_of(entry: str, where: str, base: str) -> tuple[Package | None, Any]:
    """Return the package in an entry of a lock and its marker, None for an option.

    Raises:
        BuildError: the entry is not locked.
    """
    if path := local(entry, base):
        return Package(canonicalize_name(path), path=path), None
    if problem := unlockable(entry):
        raise BuildError(f"{where}: {problem}")
    if entry.startswith("-"):
        return None, None
    text, *hashes = re.split(r"\s+--hash[= ]\s*", entry)
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise BuildError(f"{where}: {str(error).splitlines()[0]}") from None
    name = canonicalize_name(requirement.name)
    digests = tuple(each.strip() for each in hashes)
    if requirement.url:
        return Package(name, hashes=digests, url=requirement.url), requirement.marker
    if {part.operator for part in requirement.specifier} not in ({"=="}, {"==="}):
        raise BuildError(f"{where}: it has no single version, as {requirement.name}==1.0")
    return Package(name, next(iter(requirement.specifier)).version, digests), requirement.marker


def local(entry: str, base: str) -> str:
    """Return the folder of the repository that an entry of a requirements file names; "" for another entry."""
    match = re.fullmatch(
        r"(?:(?:-e|--editable)[= ]\s*)?(?:file:)?(\.{1,2}(?:/[^\s\[;#]*)?)(?:\[.*\])?(?:\s*;.*)?", entry
    )
    path = posixpath.normpath(posixpath.join(base, match[1])) if match else ".."
    return "" if path.startswith("..") or path.endswith((".whl", ".gz", ".zip")) else path


def unlockable(entry: str) -> str:
    """Return the problem that keeps uv from installing an entry of a lock from an index by its hash; "" for none."""
    url = re.sub(r"^[\w.\[\], -]+@\s*", "", entry)
    if re.match(r"(-e|--editable)\b", entry):
        return "an editable requirement has to be a folder of the repository. Write its path, such as ./libs/prices"
    if re.match(r"(-f|--find-links)(?!.*https?://)", entry) or re.match(r"file:|[./~]|[^\s:@]+\.(whl|gz|zip)\b", url):
        return "a file is in no index. Publish it to one, or put its code into the app"
    if re.match(r"(git|hg|svn|bzr)\+", url):
        if re.match(r"git\+\S+@[0-9a-f]{40}(\s|#|$)", url):
            return "" if re.match(r"[\w.\[\], -]+@", entry) else "it has no name. Write name @ git+https://…@commit"
        return "a repository has to be pinned to a commit of 40 characters, as in name @ git+https://…@commit"
    if not entry.startswith("-") and not re.search(r"--hash[= ]|#sha\d+=", entry):
        return "it has no --hash"
    return ""


def project(pyproject: dict[str, Any]) -> dict[str, Any]:
    """Return the table `project` of a pyproject.toml; empty when the file has none.

    Raises:
        BuildError: the table or one of its dependencies can't be parsed.
    """
    table = pyproject.get("project", {})
    if not isinstance(table, dict):
        raise BuildError("`project` is no table")
    dependencies = table.get("dependencies", [])
    if not isinstance(dependencies, list):
        raise BuildError("`dependencies` is no list")
    try:
        for dependency in dependencies:
            Requirement(str(dependency))
    except InvalidRequirement as error:
        raise BuildError(str(error).replace("\n", " ")) from None
    return table


def outdated(
    dependencies: list[str], locked: dict[str, Package], host: Host, layer: dict[str, list[str]] | None = None
) -> str:
    """Return the first requirement of an app that the lock does not meet, as the end of a sentence; "" for none.

    Args:
        dependencies: the requirements in the app's metadata.
        locked: the dependencies that the lock installs.
        host: the host.
        layer: the requirements of each package of the layer; without them the extras are not checked, because a lock
            names a package without its extras.
    """
    pending = [(Requirement(dependency), "", "") for dependency in dependencies]
    checked: set[tuple[str, str]] = set()
    for requirement, extra, parent in pending:
        if requirement.marker and not requirement.marker.evaluate({**host.markers, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        package, clause = locked.get(name), f"{parent}wants {str(requirement).partition(';')[0]}"
        if package is None:
            return f"{clause}, which is not locked"
        if package.version and not requirement.specifier.contains(package.version, prereleases=True):
            return f"{clause}, but {package.version} is locked"
        for each in sorted(requirement.extras):
            if (name, each) not in checked:
                checked.add((name, each))
                # The marker of a requirement that belongs to an extra contains the word `extra`.
                of_extras = [Requirement(text) for text in (layer or {}).get(name, []) if "extra" in text]
                pending += [(one, each, f"wants {requirement.name}[{each}], which ") for one in of_extras]
    return ""


def incomplete(locked: dict[str, Package], layer: dict[str, list[str]], host: Host) -> str:
    """Return the first requirement of a locked package that the lock does not meet; "" for none."""
    for name in sorted(locked):
        if problem := outdated([text for text in layer.get(name, []) if "extra" not in text], locked, host):
            return f"{name} {problem}"
    return ""


def coordinates(package: Package) -> dict[str, Any]:
    """Return the version of a package for its package URL, and the place that is no index."""
    if not package.url:
        return {"version": package.version}
    return {"qualifiers": {"vcs_url" if package.url.startswith("git+") else "download_url": package.url}}


def bill(name: str, locked: dict[str, Package], runner: dict[str, Package], sha: str, time: int) -> bytes:
    """Return a release's bill of materials as CycloneDX JSON; `name` is the app's.

    The dependencies of the runner have names of their own in a release, so a package may be there in two versions.
    """
    # These imports are slow, and only a build needs them.
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    app = Component(name=name, version=sha, type=ComponentType.APPLICATION, bom_ref=name)
    part = Component(name=RUNNER, type=ComponentType.APPLICATION, bom_ref=f"{RUNNER}/")
    document = Bom(
        components=[part],
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{sha} {json.dumps([sorted(locked), sorted(runner)])}"),
        metadata=BomMetaData(component=app, timestamp=datetime.fromtimestamp(time, UTC)),
    )
    for packages, root, top, prefix in ((locked, name, app, ""), (runner, RUNNER, part, f"{RUNNER}/")):
        components = {
            dependency: Component(
                name=dependency,
                version=package.version or package.url.rpartition("@")[2],
                # A folder of the app's own repository is in no index.
                purl=None if package.path else PackageURL("pypi", name=dependency, **coordinates(package)),
                bom_ref=f"{prefix}{dependency}@{package.version or package.url}",
            )
            for dependency, package in packages.items()
        }
        document.components.update(components.values())
        for parent, component in {root: top, **components}.items():
            children = [components[child] for child, package in packages.items() if parent in package.required_by]
            document.register_dependency(component, children)
    document.register_dependency(app, [part])
    with warnings.catch_warnings():
        # The library warns of an app without dependencies; a lock without `via` comments makes such an app.
        warnings.simplefilter("ignore")
        return JsonV1Dot6(document).output_as_string(indent=1).encode() + b"\n"
