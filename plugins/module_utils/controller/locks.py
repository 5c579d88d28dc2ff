"""Choose the lock of an app, and read the dependencies that it names for a host, from the lock of any known tool.

A lock without hashes is resolved once for its commit, and the result is kept in the cache beside the artifacts.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from . import formats
from .archive import key, write
from .git import LINK, Tree, export
from .lock import Host, Package, entries, local, packages_in, project
from .process import BuildError
from .uv import package_environment, uv

# The locks that are searched, each with the command that writes it again.
LOCKS = {
    "uv.lock": "uv lock",
    "pylock.toml": "uv export --format pylock.toml -o pylock.toml",
    "poetry.lock": "poetry lock",
    "pdm.lock": "pdm lock",
    "Pipfile.lock": "pipenv lock",
    "requirements.txt": "uv pip compile --universal --generate-hashes pyproject.toml -o requirements.txt",
}
# Files that declare dependencies without a lock, each with the words for it.
DECLARED = {"Pipfile": "pipenv lock", "environment.yml": "", "environment.yaml": ""}
# Windows writes requirements files in UTF-16, with one of these marks.
UTF16 = {b"\xff\xfe", b"\xfe\xff"}
RANGES = ("pyproject.toml", "setup.py", "setup.cfg")
# uv chooses no wheel that needs a newer glibc than Debian 12's, the oldest supported suite.
PLATFORM = "{machine}-manylinux_2_36"


def text(content: bytes, name: str) -> str:
    """Return the text of a file; raise BuildError, which has the file's name, unless it is UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        kind = "UTF-16" if content[:2] in UTF16 else "no UTF-8"
        raise BuildError(f"{name} is {kind} (line {line}). Write it as UTF-8, and commit.") from None


def installable(tree: Tree, path: str, pyproject: Mapping[str, Any]) -> bool:
    """Return whether the project in a folder is a package that can be installed.

    A setup.py beside a requirements.txt is left alone, as `pip install -r requirements.txt` leaves it: many need the
    app's dependencies to be there already, and so do not build in isolation.
    """
    tool = pyproject.get("tool", {})
    off = (("uv", "package"), ("poetry", "package-mode"), ("pdm", "distribution"))
    if any(tool.get(name, {}).get(switch, True) is False for name, switch in off):
        return False
    setup, requirements = (
        posixpath.normpath(f"{path}/{name}") in tree.entries for name in ("setup.py", "requirements.txt")
    )
    return "build-system" in pyproject or (setup and not requirements)


def choose(tree: Tree, path: str, pyproject: Mapping[str, Any], explicit: str, of: str) -> tuple[str, str]:
    """Return the lock of an app, relative to its folder, and the sentence about it; "" for an app without dependencies.

    Raises:
        BuildError: the lock is not there, or there are several, or only something that is no lock.
    """
    here = {name: posixpath.normpath(f"{path}/{name}") for name in (*LOCKS, *DECLARED, *RANGES)}
    present = [name for name, file in here.items() if file in tree.entries]
    if explicit:
        file = posixpath.normpath(f"{path}/{explicit}")
        if file not in tree.entries or not (kind(file) or posixpath.basename(file) in RANGES):
            there = ", ".join(name for name in present if name not in DECLARED) or "none"
            reason = "is no lock that Booty reads" if file in tree.entries else "is not there"
            raise BuildError(f"app_lock: {explicit} {reason}: {file} of {of}. Locks in the app's folder: {there}.")
        return explicit, sentence_of(tree, path, explicit)
    locks = [name for name in present if name in LOCKS]
    if len(locks) > 1:
        raise BuildError(
            f"{of} has more than one lock: {' and '.join(locks)}. Say which one counts: app_lock: {locks[0]} in the"
            f' inventory, or lock = "{locks[0]}" under [tool.booty] in its pyproject.toml.'
        )
    if locks:
        return locks[0], sentence_of(tree, path, locks[0])
    for parent in parents(path):
        if posixpath.normpath(f"{parent}/uv.lock") in tree.entries:
            above = posixpath.relpath(posixpath.normpath(f"{parent}/uv.lock"), path)
            return above, f"lock: {above}"
    declared = [name for name in present if name in DECLARED]
    if "poetry" in pyproject.get("tool", {}) and not pyproject.get("project", {}).get("dependencies"):
        if [*pyproject["tool"]["poetry"].get("dependencies", {})] not in ([], ["python"]):
            raise BuildError(f"{of} has dependencies of Poetry without a lock. Lock them, and commit: poetry lock")
    elif declared and not project(dict(pyproject)).get("dependencies"):
        command = DECLARED[declared[0]]
        how = (
            f"Lock it, and commit: {command}" if command else "Conda's packages are no wheels: write requirements.txt."
        )
        raise BuildError(f"{of} has {declared[0]}, which is no lock. {how}")
    table = project(dict(pyproject))
    if table.get("dependencies") or "dependencies" in table.get("dynamic", []):
        return "pyproject.toml", sentence_of(tree, path, "pyproject.toml")
    if legacy := [name for name in ("setup.py", "setup.cfg") if name in present]:
        return legacy[0], sentence_of(tree, path, legacy[0])
    prefix = "" if path == "." else f"{path}/"
    below = [name.removeprefix(prefix) for name in tree.entries if name.startswith(prefix)]
    above_too = [
        f"../{each}" for each in LOCKS if path != "." and posixpath.normpath(f"{path}/../{each}") in tree.entries
    ]
    others = [name for name in below if re.fullmatch(r"(.*/)?[\w.-]*requirements?[\w.-]*(/[\w.-]+)?\.(txt|in)", name)]
    others += [name for name in below if posixpath.basename(name) in LOCKS and name not in others]
    if others := sorted(others, key=lambda name: (name.count("/"), name)) + above_too:
        raise BuildError(
            f"{of} has no lock in the app's folder, and others elsewhere: {', '.join(others[:6])}. Say which one"
            f' counts: app_lock: {others[0]} in the inventory, or lock = "{others[0]}" under [tool.booty] in its'
            " pyproject.toml."
        )
    return "", "lock: none, so only Python's standard library and the app's own modules are there"


def parents(path: str) -> Iterator[str]:
    """Yield the parent folders of the app's folder, up to the top of the repository."""
    while path not in {".", ""}:
        path = posixpath.dirname(path)
        yield path or "."


def kind(file: str) -> str:
    """Return the kind of a lock by its file's name; "" for a file that is no lock."""
    name = posixpath.basename(file)
    if re.fullmatch(r"pylock(\..+)?\.toml", name):
        return "pylock.toml"
    return name if name in LOCKS else "requirements.txt" if name.endswith((".txt", ".in")) else ""


def sentence_of(tree: Tree, path: str, lock: str) -> str:
    """Return the sentence about a lock: its name, and whether the build resolves it."""
    file = posixpath.normpath(f"{path}/{lock}")
    if kind(file) == "requirements.txt":
        if hashed(parts_of(tree, file)):
            return f"lock: {lock}, with hashes"
    elif posixpath.basename(file) not in RANGES:
        return f"lock: {lock}"
    return f"lock: {lock} has no hashes; the build resolves it once for this commit"


class Part(NamedTuple):
    """A requirements file: its name, its text, and whether it only limits versions, as by `-c`."""

    name: str
    text: str
    limits: bool = False


def parts_of(tree: Tree, file: str, limits: bool = False, seen: tuple[str, ...] = ()) -> list[Part]:
    """Return a requirements file and all that it includes by `-r` or `-c`.

    Raises:
        BuildError: a file is missing, or is no text.
    """
    of = f"of commit {tree.sha[:12]}"
    content = tree.read(file)
    if content is None:
        by = f", which {seen[-1]} includes," if seen else ""
        raise BuildError(f"{file}{by} is not in commit {tree.sha[:12]}. Commit it, or remove the line.")
    if content[:2] in UTF16:
        content = content.decode("utf-16", errors="replace").encode()
    parts = [Part(file, text(content, f"{file} {of}"), limits)]
    for _, entry, _ in entries(parts[0].text):
        if include := included(entry):
            if "://" in include:
                raise BuildError(f"{file} {of} includes {include}, which is not in the commit. Commit that file.")
            name = posixpath.normpath(posixpath.join(posixpath.dirname(file), include))
            if name not in (*seen, file):
                parts += parts_of(tree, name, limits or entry.startswith(("-c", "--c")), (*seen, file))
    return parts


def included(entry: str) -> str:
    """Return the file that an entry of a requirements file includes; "" for another entry."""
    match = re.fullmatch(r"(?:-r|--requirement|-c|--constraint)[= ]?\s*(\S+)", entry)
    return match[1] if match else ""


def hashed(parts: list[Part]) -> bool:
    """Return whether requirements files are a lock with hashes."""
    return any(re.search(r"--hash[= ]", part.text) for part in parts)


@dataclass
class Work:
    """A build under way: a commit, the app's folder in it, a workplace, and the controller's cache.

    Attributes:
        tree: the files of the commit.
        path: the app's folder.
        directory: the workplace.
        cache: the cache of artifacts.
        time: the commit's time, in seconds since 1970.
        dotenv: whether the release gets `.env` files.
        notices: sentences about the release.
    """

    tree: Tree
    path: str
    directory: Path
    cache: Path
    time: int
    dotenv: bool = False
    notices: list[str] = field(default_factory=list)

    @property
    def of(self) -> str:
        """Return the words that name the commit in a sentence."""
        return f"of commit {self.tree.sha[:12]}"

    def top(self) -> Path:
        """Return the folder with the commit's files, which the first call writes."""
        top = self.directory / "tree"
        if not top.exists():
            top.mkdir()
            export(self.tree, self.path, top, self.dotenv)
        return top

    def toml(self, file: str) -> dict[str, Any]:
        """Return the content of a TOML file of the commit; empty if there is none."""
        content = self.tree.read(file)
        try:
            return tomllib.loads(text(content, f"{file} {self.of}")) if content is not None else {}
        except tomllib.TOMLDecodeError as error:
            raise BuildError(f"{file} {self.of} can't be read: {error}. Fix it, and commit.") from None


@dataclass
class Lock:
    """The dependencies of an app on a host.

    Attributes:
        packages: the dependencies, by name; folders of the repository among them.
        options: lines for a requirements file that say where packages are.
        file: the lock in the repository; "" without one.
        again: the command that writes the lock again.
        complete: whether the lock must have all requirements of its packages. The tools that write other locks can be
            told to leave some out.
    """

    packages: dict[str, Package]
    options: list[str] = field(default_factory=list)
    file: str = ""
    again: str = ""
    complete: bool = False

    def text(self) -> str:
        """Return the lock as a requirements file for the host, without the folders of the repository."""
        lines = [package.line() for _, package in sorted(self.packages.items()) if not package.path]
        return "".join(f"{line}\n" for line in (*self.options, *lines))


def read(work: Work, description: Mapping[str, Any], host: Host) -> Lock:
    """Return the dependencies of a described app on a host.

    Raises:
        BuildError: the lock can't be read or resolved.
    """
    extras, groups = description["extras"], description["groups"]
    if not description["lock"]:
        return Lock({})
    file = posixpath.normpath(f"{work.path}/{description['lock']}")
    which = kind(file)
    again = LOCKS.get(which, "").replace("requirements.txt", posixpath.basename(file))
    lock = Lock({}, file=file, again=again)
    if which == "requirements.txt" or file.endswith(RANGES):
        requirements(work, lock, file, extras, groups, host)
    elif which == "uv.lock":
        uv_lock(work, lock, file, extras, groups, host)
    else:
        for package in foreign(work, file, which, again, extras, groups, host):
            lock.packages[package.name] = package
    lock.packages = {package.name: package for package in lock.packages.values() if package.path != work.path}
    for package in [*lock.packages.values()]:
        if package.path:
            del lock.packages[package.name]
            package.name = name_of(work, file, package)
            lock.packages[package.name] = package
        elif re.match(r"(git|hg|svn|bzr)\+", package.url):
            if not re.match(r"git\+.*@[0-9a-f]{40}(#|$)", package.url):
                raise BuildError(f"{file} {work.of} does not pin {package.name} to a commit: {package.url}.")
        elif not package.hashes and "#sha" not in package.url:
            raise BuildError(f"{file} {work.of} has no hashes for {package.name}. Lock again, and commit: {again}")
    return lock


def foreign(
    work: Work, file: str, which: str, again: str, extras: list[str], groups: list[str], host: Host
) -> list[Package]:
    """Return the packages of a lock that is no requirements file, with folders relative to the repository's top."""
    parse = json.loads if which == "Pipfile.lock" else tomllib.loads
    pyproject = work.toml(posixpath.normpath(f"{work.path}/pyproject.toml"))
    try:
        document = parse(text(work.tree.read(file) or b"", f"{file} {work.of}"))
        packages = [*formats.READERS[which](document, pyproject, extras, groups, host)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise BuildError(f"{file} {work.of} can't be read: {reason}. Lock again, and commit: {again}") from None
    for package in packages:
        if package.path:
            package.path = posixpath.normpath(posixpath.join(posixpath.dirname(file), package.path))
    return packages


def name_of(work: Work, file: str, package: Package) -> str:
    """Return the name of a project in a folder of the repository; raise BuildError if there is no such folder."""
    if package.path.startswith("..") or not work.tree.below(package.path):
        raise BuildError(f"{file} {work.of} names the folder {package.path}, which is not in the commit.")
    project_file = posixpath.normpath(f"{package.path}/pyproject.toml")
    return canonicalize_name(work.toml(project_file).get("project", {}).get("name", package.name))


def requirements(work: Work, lock: Lock, file: str, extras: list[str], groups: list[str], host: Host) -> None:
    """Read requirements files, or the dependencies of a project file; resolve those without hashes."""
    parts: list[Part] = []
    if file.endswith(RANGES):
        lock.options = indexes(work, file)
    else:
        parts = parts_of(work.tree, file)
        if extras or groups:
            raise BuildError(f"{file} {work.of} has no extras or groups. Remove app_lock_extras and app_lock_groups.")
        options = r"(-i|--index-url|--extra-index-url|-f|--find-links)[= ].*"
        every = [entry for part in parts for _, entry, _ in entries(part.text)]
        lock.options = [entry for entry in every if re.fullmatch(options, entry)]
    if hashed(parts):
        lock.complete = True
        for part in (part for part in parts if not part.limits):
            try:
                lock.packages |= packages_in(part.text, host, work.path)
            except BuildError as error:
                raise BuildError(
                    f"{part.name} {work.of} is no lock with hashes: {error}. Lock again there, and commit: {lock.again}"
                ) from None
        return
    lock.again = ""
    # The same commit gets the cached result, also after a newer release of a dependency.
    inputs = [work.path, file, *extras, "", *groups, host.python_full, host.machine]
    kept = work.cache / "locks" / f"{work.tree.sha}-{key(*inputs)}.txt"
    if kept.exists():
        os.utime(kept)
    else:
        resolved = resolve(work, file, parts, extras, groups, host)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write(kept, resolved.encode())
    if remark := re.match(r"# (The index .*)\n", kept.read_text()):
        work.notices.append(remark[1])
    lock.packages = packages_in(kept.read_text(), host, ".")


def resolve(work: Work, file: str, parts: list[Part], extras: list[str], groups: list[str], host: Host) -> str:
    """Resolve dependencies with `uv pip compile` to packages of the commit's day, and return them with hashes."""
    sources: list[str] = []
    for part in parts:
        source = work.directory / f"{len(sources)}.in"
        lines = [entry for _, entry, _ in entries(part.text) if entry and not included(entry)]
        folders = [local(entry, work.path) for entry in lines]
        pairs = zip(lines, folders, strict=True)
        source.write_text("".join(f"{work.top() / folder if folder else line}\n" for line, folder in pairs))
        sources.append(f"--constraints={source}" if part.limits else str(source))
    if not parts:
        project_file = work.top() / file
        sources = [str(project_file), *(f"--extra={each}" for each in extras)]
        sources += [f"--group={project_file}:{each}" for each in groups]
    date = datetime.fromtimestamp(work.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    platform = PLATFORM.format(machine=host.machine)
    options = ["--generate-hashes", "--no-header", f"--python-version={host.python_full}"]
    command = ["pip", "compile", *options, f"--python-platform={platform}", *sources]
    environment = package_environment(work.directory, work.time)
    remark = ""
    try:
        try:
            output = uv(work.directory, *command, f"--exclude-newer={date}", **environment)
        except BuildError as error:
            if "missing an upload date" not in str(error):
                raise
            output = uv(work.directory, *command, **environment)
            remark = (
                f"# The index gives no upload dates, so {file} was resolved to its newest packages of today, and not to"
                f" those of {date[:10]}. Another controller may choose others: commit a lock with hashes.\n"
            )
    except BuildError as error:
        where = f"Python {host.python_full} on {platform}"
        raise BuildError(f"The dependencies in {file} {work.of} can't be resolved for {where}: {error}") from None
    # Write folders of the repository relative to its top.
    top = re.escape(str(work.top()))
    return remark + re.sub(rf"^(?:[\w.-]+ @ )?(?:-e )?(?:file://)?{top}/?", "./", output.decode(), flags=re.MULTILINE)


def indexes(work: Work, *files: str) -> list[str]:
    """Return the lines of a requirements file for the indexes in `[[tool.uv.index]]` of pyproject.toml files."""
    tables = [work.toml(file).get("tool", {}).get("uv", {}) for file in files if file.endswith(".toml")]
    urls = [each["url"] for table in tables for each in table.get("index", []) if "url" in each]
    return [f"--extra-index-url {url}" for url in dict.fromkeys(urls)]


def uv_lock(work: Work, lock: Lock, file: str, extras: list[str], groups: list[str], host: Host) -> None:
    """Read a uv.lock with `uv export`, which needs the pyproject.toml of each member of the workspace."""
    own = work.toml(posixpath.normpath(f"{work.path}/pyproject.toml")).get("project", {}).get("name", "")
    member = own and posixpath.dirname(file) != ("" if work.path == "." else work.path)
    chosen = [*(f"--extra={each}" for each in extras), *(f"--group={each}" for each in groups)]
    if member:
        chosen.append(f"--package={own}")
    inputs = [
        f"{name} {entry[1]}"
        for name, entry in sorted(work.tree.entries.items())
        if name == file or (posixpath.basename(name) == "pyproject.toml" and entry[0] != LINK)
    ]
    kept = work.cache / "locks" / f"uv-{key(*chosen, *inputs)}.txt"
    if kept.exists():
        os.utime(kept)
    else:
        folder = work.top() / posixpath.dirname(file)
        options = ["--frozen", "--offline", "--no-default-groups", "--no-emit-project", "--no-header", *chosen]
        try:
            output = uv(work.directory, "export", f"--project={folder}", *options)
        except BuildError as error:
            raise BuildError(f"{file} {work.of} can't be read: {error}. Lock again, and commit: {lock.again}") from None
        kept.parent.mkdir(parents=True, exist_ok=True)
        write(kept, output)
    lock.packages = packages_in(kept.read_text(), host, posixpath.dirname(file))
    folders = dict.fromkeys((work.path, posixpath.dirname(file) or "."))
    locked = (work.tree.read(file) or b"").decode()
    options = indexes(work, *(posixpath.normpath(f"{folder}/pyproject.toml") for folder in folders))
    lock.options = [option for option in options if f'"{option.split()[1]}"' in locked]


def requires_python(work: Work, lock: str, file: str) -> tuple[str, SpecifierSet]:
    """Return the Pythons that an app wants, and the file that says so.

    Raises:
        BuildError: the file can't be read.
    """
    pyproject = work.toml(file)
    try:
        table = project(pyproject)
        if "requires-python" in table:
            return file, SpecifierSet(table["requires-python"])
        dependencies = pyproject.get("tool", {}).get("poetry", {}).get("dependencies", {})
        if isinstance(wish := dependencies.get("python"), str) and "|" not in wish:
            return file, formats.specifier(wish)
    except (BuildError, InvalidSpecifier) as error:
        raise BuildError(f"{file} {work.of} can't be read: {error}. Fix it, and commit.") from None
    content = work.tree.read(lock) if lock.endswith("uv.lock") else None
    match = re.search(r'^requires-python = "(.+)"$', text(content, lock), re.MULTILINE) if content else None
    return (lock, SpecifierSet(match[1])) if match else (file, SpecifierSet())
