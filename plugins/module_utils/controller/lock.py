"""Read what a commit locks, and check that the lock has what the app needs."""

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


def text(content: bytes, what: str) -> str:
    """Return a file's text; raise BuildError unless it is UTF-8.

    Args:
        content: its bytes.
        what: its name, for a message.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        kind = "UTF-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "no UTF-8"
        raise BuildError(f"{what} is {kind} (line {line}). Write it as UTF-8, and commit.") from None


@dataclass
class Pin:
    """A locked dependency: its version (none for a URL), and the names of what wants it, as far as the lock says."""

    version: str
    wanted_by: set[str] = field(default_factory=set)


def pins(lock: str, python: str, machine: str) -> dict[str, Pin]:
    """Return what a lock installs on such a host, by its normalized name.

    Raises:
        BuildError: a line is no locked requirement; the message begins with its number.
    """
    found: dict[str, Pin] = {}
    pin, entry, first = None, "", ""
    for number, line in enumerate(lock.splitlines(), 1):
        if pin and not entry and (via := re.match(r"\s+# +(?:via )?([\w.-]+)", line)):
            pin.wanted_by.add(canonicalize_name(via[1]))
        first = first or f"line {number}, '{line.strip()}'"
        entry += re.sub(r"(^|\s+)#.*", "", line)
        if entry.endswith("\\"):
            entry = f"{entry[:-1]} "
            continue
        if entry.strip() and (pinned := requirement_of(entry.strip(), first)):
            pin = Pin("" if pinned.url else next(iter(pinned.specifier)).version)
            if applies(pinned, python, machine):
                found[canonicalize_name(pinned.name)] = pin
        entry, first = "", ""
    return found


def requirement_of(entry: str, where: str) -> Requirement | None:
    """Return what an entry of a lock pins, None when it is an option; raise BuildError when it can't be installed."""
    if why := unlockable(entry):
        raise BuildError(f"{where}: {why}")
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
    """Say why an entry of a lock can't be installed from an index by its hash; nothing when it can."""
    where = re.sub(r"^[\w.\[\], -]+@\s*", "", entry)
    if re.match(r"(-e|--editable)\b", entry):
        return "the app is built from its commit, and its dependencies are wheels. Leave out what is editable"
    if re.match(r"(-r|--requirement|-c|--constraint)\b", entry):
        return "a lock is one file. Lock what that file names too"
    if re.match(r"(-f|--find-links)(?!.*https?://)", entry) or re.match(r"file:|[./~]|[^\s:@]+\.(whl|gz|zip)\b", where):
        return "a file is in no index. Publish it to one, or put its code into the app"
    if re.match(r"(git|hg|svn|bzr)\+", where):
        return "a repository has no wheel with a hash. Publish one to an index, or put its code into the app"
    if not entry.startswith("-") and not re.search(r"--hash[= ]|#sha\d+=", entry):
        return "it has no --hash"
    return ""


LINUX = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


def applies(requirement: Requirement, python: str, machine: str, extra: str = "") -> bool:
    """Tell whether a requirement is one on such a host, of a package that was asked for with an extra."""
    there = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    return requirement.marker is None or requirement.marker.evaluate({**LINUX, **there, "extra": extra})


def project(pyproject: str) -> dict[str, Any]:
    """Return the table `project` of a pyproject.toml; empty when it has none.

    Raises:
        BuildError: the file can't be read, or lists dependencies that can't be.
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
    """Say what an app wants on such a host that the lock does not have; nothing when it has all.

    What its dependencies want in turn is uv's to check, which installs nothing that is not locked. But uv is not
    told of the app's extras: a lock names a package without them.

    Args:
        dependencies: what the app wants, each as in its metadata.
        locked: what the lock has.
        python: the host's Python, as `3.11`.
        machine: the host's architecture.
        layer: what each package of the layer wants; without it extras are not looked at.
    """
    pending = [(Requirement(dependency), "", "") for dependency in dependencies]
    asked: set[tuple[str, str]] = set()
    for wanted, extra, wanted_by in pending:
        if not applies(wanted, python, machine, extra):
            continue
        name = canonicalize_name(wanted.name)
        pin, what = locked.get(name), f"{wanted_by}wants {str(wanted).partition(';')[0]}"
        if pin is None:
            return f"{what}, which is not locked"
        if pin.version and not wanted.specifier.contains(pin.version, prereleases=True):
            return f"{what}, but {pin.version} is locked"
        for each in wanted.extras - {more for package, more in asked if package == name}:
            asked.add((name, each))
            # `extra` stands in the marker of what only the extra wants.
            more = [Requirement(text) for text in (layer or {}).get(name, []) if "extra" in text]
            pending += [(one, each, f"wants {wanted.name}[{each}], which ") for one in more]
    return ""


def bill(pyproject: str, locked: dict[str, Pin], sha: str, time: int) -> bytes:
    """Return a release's bill of materials as CycloneDX JSON; the same bytes for the same commit."""
    # Here, since only a build needs it.
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    name = canonicalize_name(project(pyproject).get("name", "app"))
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
    with warnings.catch_warnings():
        # A lock need not say what the app itself wants; the library warns of an app that wants nothing.
        warnings.simplefilter("ignore")
        return JsonV1Dot6(made).output_as_string(indent=1).encode() + b"\n"
