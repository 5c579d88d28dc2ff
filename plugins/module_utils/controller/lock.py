"""Read the lock of a commit, and check that it has the dependencies that the app requires."""

from __future__ import annotations

import json
import re
import tomllib
import uuid
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from .process import BuildError


def text(content: bytes, name: str) -> str:
    """Return the text of a file; raise BuildError, which has the file's name, unless it is UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        kind = "UTF-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "no UTF-8"
        raise BuildError(f"{name} is {kind} (line {line}). Write it as UTF-8, and commit.") from None


@dataclass
class Pin:
    """A locked dependency: its version ("" for a URL), and the packages that require it (`via` comments)."""

    version: str
    required_by: set[str] = field(default_factory=set)


def pins(lock: str, python: str, machine: str) -> dict[str, Pin]:
    """Return the dependencies that a lock installs for a Python and machine, by their normalized names.

    Raises:
        BuildError: a line is no locked requirement; the message begins with its number.
    """
    locked: dict[str, Pin] = {}
    pin, entry, first = None, "", ""
    for number, line in enumerate(lock.splitlines(), 1):
        if pin and not entry and (via := re.match(r"\s+# +(?:via )?([\w.-]+)", line)):
            pin.required_by.add(canonicalize_name(via[1]))
        first = first or f"line {number}, '{line.strip()}'"
        entry += re.sub(r"(^|\s+)#.*", "", line)
        if entry.endswith("\\"):
            entry = f"{entry[:-1]} "
            continue
        if entry.strip() and (requirement := requirement_of(entry.strip(), first)):
            pin = Pin("" if requirement.url else next(iter(requirement.specifier)).version)
            if applies(requirement, python, machine):
                locked[canonicalize_name(requirement.name)] = pin
        entry, first = "", ""
    return locked


def requirement_of(entry: str, where: str) -> Requirement | None:
    """Return the requirement in an entry of a lock, None for an option; raise BuildError when it can't be installed."""
    if problem := unlockable(entry):
        raise BuildError(f"{where}: {problem}")
    if entry.startswith("-"):
        return None
    try:
        requirement = Requirement(re.split(r"\s+--hash\b", entry)[0])
    except InvalidRequirement as error:
        raise BuildError(f"{where}: {str(error).splitlines()[0]}") from None
    if not requirement.url and {part.operator for part in requirement.specifier} not in ({"=="}, {"==="}):
        raise BuildError(f"{where}: it has no single version, as {requirement.name}==1.0")
    return requirement


def unlockable(entry: str) -> str:
    """Return the problem that keeps uv from installing an entry of a lock from an index by its hash; "" for none."""
    url = re.sub(r"^[\w.\[\], -]+@\s*", "", entry)
    if re.match(r"(-e|--editable)\b", entry):
        return "the app is built from its commit, and its dependencies are wheels. Remove the editable requirement"
    if re.match(r"(-r|--requirement|-c|--constraint)\b", entry):
        return "a lock is one file. Lock what that file names too"
    if re.match(r"(-f|--find-links)(?!.*https?://)", entry) or re.match(r"file:|[./~]|[^\s:@]+\.(whl|gz|zip)\b", url):
        return "a file is in no index. Publish it to one, or put its code into the app"
    if re.match(r"(git|hg|svn|bzr)\+", url):
        return "a repository has no wheel with a hash. Publish one to an index, or put its code into the app"
    if not entry.startswith("-") and not re.search(r"--hash[= ]|#sha\d+=", entry):
        return "it has no --hash"
    return ""


RUNNER = "booty-runner"
LINUX = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


def applies(requirement: Requirement, python: str, machine: str, extra: str = "") -> bool:
    """Return whether the marker of a requirement holds for a Python, a machine and an extra."""
    host = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    return requirement.marker is None or requirement.marker.evaluate({**LINUX, **host, "extra": extra})


def project(pyproject: str) -> dict[str, Any]:
    """Return the table `project` of a pyproject.toml; empty when the file has none.

    Raises:
        BuildError: the file or one of its dependencies can't be parsed.
    """
    try:
        table = tomllib.loads(pyproject).get("project", {})
        if not isinstance(table, dict):
            raise BuildError("`project` is no table")
        dependencies = table.get("dependencies", [])
        if not isinstance(dependencies, list):
            raise BuildError("`dependencies` is no list")
        for dependency in dependencies:
            Requirement(str(dependency))
    except (tomllib.TOMLDecodeError, InvalidRequirement) as error:
        raise BuildError(str(error).replace("\n", " ")) from None
    return table


def outdated(
    dependencies: list[str],
    locked: dict[str, Pin],
    python: str,
    machine: str,
    layer: dict[str, list[str]] | None = None,
) -> str:
    """Return the first requirement of an app that the lock does not meet, as the end of a sentence; "" for none.

    uv checks the requirements of the dependencies: it installs only locked packages. But uv can't check the app's
    extras, because a lock names a package without its extras.

    Args:
        dependencies: the requirements in the app's metadata.
        locked: the dependencies that the lock installs.
        python: the host's Python, such as `3.11`.
        machine: the host's architecture.
        layer: the requirements of each package of the layer; without them the extras are not checked.
    """
    pending = [(Requirement(dependency), "", "") for dependency in dependencies]
    checked: set[tuple[str, str]] = set()
    for requirement, extra, parent in pending:
        if not applies(requirement, python, machine, extra):
            continue
        name = canonicalize_name(requirement.name)
        pin, clause = locked.get(name), f"{parent}wants {str(requirement).partition(';')[0]}"
        if pin is None:
            return f"{clause}, which is not locked"
        if pin.version and not requirement.specifier.contains(pin.version, prereleases=True):
            return f"{clause}, but {pin.version} is locked"
        for each in sorted(requirement.extras):
            if (name, each) not in checked:
                checked.add((name, each))
                # The marker of a requirement that belongs to an extra contains the word `extra`.
                of_extras = [Requirement(text) for text in (layer or {}).get(name, []) if "extra" in text]
                pending += [(one, each, f"wants {requirement.name}[{each}], which ") for one in of_extras]
    return ""


def bill(pyproject: str, locked: dict[str, Pin], runner: dict[str, Pin], sha: str, time: int) -> bytes:
    """Return a release's bill of materials as CycloneDX JSON; the same bytes for the same commit.

    The dependencies of the runner have names of their own in a release, so a package may be there in two versions.
    """
    # These imports are slow, and only a build needs them.
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    name = canonicalize_name(project(pyproject).get("name", "app"))
    app = Component(name=name, version=sha, type=ComponentType.APPLICATION, bom_ref=name)
    part = Component(name=RUNNER, type=ComponentType.APPLICATION, bom_ref=f"{RUNNER}/")
    document = Bom(
        components=[part],
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{sha} {json.dumps([sorted(locked), sorted(runner)])}"),
        metadata=BomMetaData(component=app, timestamp=datetime.fromtimestamp(time, UTC)),
    )
    for pins_of, root, top, prefix in ((locked, name, app, ""), (runner, RUNNER, part, f"{RUNNER}/")):
        components = {
            dependency: Component(
                name=dependency,
                version=pin.version,
                purl=PackageURL("pypi", name=dependency, version=pin.version),
                bom_ref=f"{prefix}{dependency}@{pin.version}",
            )
            for dependency, pin in pins_of.items()
        }
        document.components.update(components.values())
        for parent, component in {root: top, **components}.items():
            children = [components[child] for child, pin in pins_of.items() if parent in pin.required_by]
            document.register_dependency(component, children)
    document.register_dependency(app, [part])
    with warnings.catch_warnings():
        # The library warns of an app without dependencies; a lock without `via` comments makes such an app.
        warnings.simplefilter("ignore")
        return JsonV1Dot6(document).output_as_string(indent=1).encode() + b"\n"
