"""Read locks that are no requirements files: pylock.toml, poetry.lock, pdm.lock and Pipfile.lock.

Each reader gets the parsed lock, the parsed pyproject.toml beside it, the chosen extras and groups, and the host. It
yields the packages for that host, with folders relative to the lock, and raises ValueError, KeyError, TypeError or
AttributeError for a lock that it can't read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .lock import Host, Package


def digests(files: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the digests in the list of a package's files."""
    return tuple(sorted({each["hash"] for each in files}))


def holds(marker: str | None, host: Host, extras: list[str], groups: list[str]) -> bool:
    """Return whether a marker of a lock file holds on a host."""
    if not marker:
        return True
    values: dict[str, Any] = {**host.markers, "extras": {*extras}, "dependency_groups": {*groups}}
    if re.search(r"\bextra\b", marker):
        return any(Marker(marker).evaluate({**host.markers, "extra": extra}) for extra in extras or [""])
    return Marker(marker).evaluate(values, context="lock_file")


def pylock(
    document: dict[str, Any], _: dict[str, Any], extras: list[str], groups: list[str], host: Host
) -> Iterator[Package]:
    """Yield the packages of a pylock.toml (PEP 751)."""
    for each in document["packages"]:
        if not holds(each.get("marker"), host, extras, groups or document.get("default-groups", [])):
            continue
        name = canonicalize_name(each["name"])
        files = [*each.get("wheels", []), *([each["sdist"]] if "sdist" in each else [])]
        package = Package(name, each.get("version", ""))
        package.hashes = tuple(sorted(f"{kind}:{digest}" for file in files for kind, digest in file["hashes"].items()))
        if "vcs" in each:
            vcs = each["vcs"]
            below = f"#subdirectory={vcs['subdirectory']}" if "subdirectory" in vcs else ""
            package.version, package.url = "", f"{vcs['type']}+{vcs['url']}@{vcs['commit-id']}{below}"
        elif "archive" in each:
            package.version, package.url = "", each["archive"]["url"]
            package.hashes = tuple(f"{kind}:{digest}" for kind, digest in each["archive"]["hashes"].items())
        elif "directory" in each:
            package.version, package.path = "", each["directory"]["path"]
        yield package


def pdm(
    document: dict[str, Any], _: dict[str, Any], extras: list[str], groups: list[str], host: Host
) -> Iterator[Package]:
    """Yield the packages of a pdm.lock; each names its groups, and an extra of the project is a group too."""
    if any("groups" not in each for each in document["package"]):
        raise ValueError("its packages have no groups: pdm lock --strategy inherit_metadata")
    merged: dict[str, Package] = {}
    for each in document["package"]:
        if not {"default", *extras, *groups} & {*each["groups"]} or not holds(each.get("marker"), host, [], []):
            continue
        name = canonicalize_name(each["name"])
        # A package with extras has a second entry with the same files.
        package = merged.setdefault(name, Package(name, each.get("version", ""), digests(each.get("files", []))))
        if "git" in each:
            package.version, package.url = "", f"git+{each['git']}@{each['revision']}"
        elif "path" in each:
            package.version, package.path = "", each["path"]
    yield from merged.values()


def pipfile(
    document: dict[str, Any], _: dict[str, Any], extras: list[str], groups: list[str], host: Host
) -> Iterator[Package]:
    """Yield the packages of a Pipfile.lock; a category is a group."""
    for category in ("default", *groups):
        for name, each in document[category].items():
            if not holds(each.get("markers"), host, extras, groups):
                continue
            package = Package(
                canonicalize_name(name), each.get("version", "").lstrip("="), tuple(each.get("hashes", []))
            )
            if "git" in each:
                package.version, package.url = "", f"git+{each['git']}@{each['ref']}"
            elif "path" in each:
                package.version, package.path = "", each["path"]
            yield package


def poetry(
    document: dict[str, Any], pyproject: dict[str, Any], extras: list[str], groups: list[str], host: Host
) -> Iterator[Package]:
    """Yield the packages of a poetry.lock.

    Since version 2.1 each package names its groups and its marker. In older locks the packages are found from the
    dependencies in pyproject.toml.
    """
    locked: dict[str, list[dict[str, Any]]] = {}
    for each in document.get("package", []):
        locked.setdefault(canonicalize_name(each["name"]), []).append(each)
    old_files = document.get("metadata", {}).get("files", {})
    if locked and all("groups" in each for each in document["package"]):
        for name, versions in locked.items():
            yield from (of_poetry(name, each, {}) for each in versions if grouped(each, extras, groups, host))
        return
    pending = [*poetry_roots(pyproject, extras, groups)]
    done: dict[str, set[str]] = {}
    for name, wish in pending:
        for each in wish if isinstance(wish, list) else [wish]:
            details = each if isinstance(each, dict) else {"version": each}
            if not wanted_by(details, host):
                continue
            versions = locked.get(name, [])
            entry = next((one for one in versions if within(details.get("version", "*"), one["version"])), None)
            if not entry:
                raise ValueError(f"{name} is not locked")
            new = {"", *details.get("extras", [])} - done.get(name, set())
            done.setdefault(name, set()).update(new)
            if "" in new:
                yield of_poetry(name, entry, old_files)
            listed = {canonicalize_name(one): value for one, value in entry.get("dependencies", {}).items()}
            of_extras = {
                canonicalize_name(Requirement(re.sub(r"\s*\(.*\)", "", one)).name)
                for extra in new
                for one in entry.get("extras", {}).get(extra, [])
            }
            for child, value in listed.items():
                optional = isinstance(value, dict) and value.get("optional")
                if (not optional and "" in new) or child in of_extras:
                    pending.append((child, value))


def grouped(entry: dict[str, Any], extras: list[str], groups: list[str], host: Host) -> bool:
    """Return whether a package of a poetry.lock since version 2.1 is wanted: its markers may differ by group."""
    markers = entry.get("markers")
    if not markers and entry.get("optional") and not extras:
        return False
    return any(
        holds(markers.get(group) if isinstance(markers, dict) else markers, host, extras, groups)
        for group in entry["groups"]
        if group in {"main", *groups}
    )


def poetry_roots(pyproject: dict[str, Any], extras: list[str], groups: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the dependencies of a pyproject.toml of Poetry."""
    tool = pyproject.get("tool", {}).get("poetry", {})
    table = pyproject.get("project", {})
    for group in groups:
        if group not in {*tool.get("group", {}), *pyproject.get("dependency-groups", {})}:
            raise KeyError(f"group {group}")
    of_extras = [name for extra in extras for name in tool.get("extras", {}).get(extra, [])]
    declared = [*table.get("dependencies", [])]
    declared += [each for extra in extras for each in table.get("optional-dependencies", {}).get(extra, [])]
    declared += [each for group in groups for each in pyproject.get("dependency-groups", {}).get(group, [])]
    for each in map(Requirement, declared):
        marker = {"markers": str(each.marker)} if each.marker else {}
        yield canonicalize_name(each.name), {"version": str(each.specifier), "extras": [*each.extras], **marker}
    tables = [
        tool.get("dependencies", {}),
        *(tool.get("group", {})[group]["dependencies"] for group in groups if group in tool.get("group", {})),
    ]
    for dependencies in tables:
        for name, value in dependencies.items():
            optional = isinstance(value, dict) and value.get("optional") and name not in of_extras
            if name != "python" and not optional:
                yield canonicalize_name(name), value


def wanted_by(details: dict[str, Any], host: Host) -> bool:
    """Return whether a dependency of Poetry applies on a host."""
    platform = details.get("platform", "linux")
    return (
        platform == "linux"
        and within(details.get("python", "*"), host.python_full)
        and holds(details.get("markers"), host, [], [])
    )


def of_poetry(name: str, entry: dict[str, Any], old_files: dict[str, Any]) -> Package:
    """Return a package of a poetry.lock."""
    files = entry.get("files") or old_files.get(entry["name"], [])
    package, source = Package(name, entry["version"], digests(files)), entry.get("source", {})
    if source.get("type") == "git":
        below = f"#subdirectory={source['subdirectory']}" if "subdirectory" in source else ""
        package.version, package.hashes = "", ()
        package.url = f"git+{source['url']}@{source['resolved_reference']}{below}"
    elif source.get("type") in {"directory", "file"}:
        package.version, package.path = "", source["url"]
    elif source.get("type") == "url":
        package.version, package.url = "", source["url"]
    return package


def within(constraint: str, version: str) -> bool:
    """Return whether a version meets a constraint of Poetry, such as `^1.2` or `~3.11 || ^4`."""
    return any(specifier(part).contains(version, prereleases=True) for part in re.split(r"\|\|?", constraint))


def specifier(constraint: str) -> SpecifierSet:
    """Return a constraint of Poetry as a specifier: `^1.2` is >=1.2,<2, and `~1.2` is >=1.2,<1.3."""
    parts = []
    for part in re.split(r"\s*,\s*|\s+(?=[<>=!~^])", constraint.strip()):
        match = re.fullmatch(r"(\^|~)\s*v?(\d+(?:\.\d+)*)(\S*)", part)
        if part in {"", "*"}:
            continue
        if not match:
            exact = re.fullmatch(r"v?[\d][\w.*+!-]*", part)
            parts.append(f"=={part}" if exact else re.sub(r"^=(?!=)", "==", part.replace(" ", "")))
            continue
        numbers = [*map(int, match[2].split("."))]
        place = next((index for index, number in enumerate(numbers) if number), len(numbers) - 1)
        if match[1] == "~":
            place = min(1, len(numbers) - 1)
        upper = ".".join(map(str, [*numbers[:place], numbers[place] + 1]))
        parts.append(f">={match[2]}{match[3]},<{upper}")
    return SpecifierSet(",".join(parts))


READERS: dict[str, Callable[..., Iterator[Package]]] = {
    "pylock.toml": pylock,
    "poetry.lock": poetry,
    "pdm.lock": pdm,
    "Pipfile.lock": pipfile,
}
