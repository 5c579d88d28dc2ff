"""Resolve a release on the controller, and build its artifact: two layers, from the commit and its lock alone.

Beside it lies its bill of materials, `.cdx.json` (CycloneDX), which the release brings along as `sbom.cdx.json`.

The layer holds the locked dependencies for one Python and machine, and is keyed by what it is made from. The release
holds the app and, as a virtual environment of three files does, names its Python and its layer. Both are archives whose
bytes depend on nothing but the commit, so that the same SHA gives the same digest.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from uv import find_uv_bin

# Part of every key: raise it when this file makes other bytes from the same commit.
RECIPE = "4"
# Debian 12, the oldest supported suite, has glibc 2.36: a wheel that needs a newer one must not be chosen.
PLATFORM = "{machine}-manylinux_2_36"
MACHINES = ("x86_64", "aarch64")
# How long an archive stays in the cache after its last use.
KEEP_DAYS = 30
# What an installer notes about this very installation: paths and times of the controller.
NOT_SHIPPED = {
    ".lock",
    "RECORD",
    "INSTALLER",
    "REQUESTED",
    "direct_url.json",
    "uv_cache.json",
    "uv_build.json",
}


class BuildError(Exception):
    """A release can't be resolved or built; the message says what to do."""


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, input: bytes = b"") -> bytes:
    """Run a command with `input` and return its output; raise BuildError with what it said when it fails."""
    try:
        # A fixed umask: modes of files end up in an archive.
        done = subprocess.run(command, cwd=cwd, env=env, input=input, capture_output=True, umask=0o022, check=False)
    except FileNotFoundError:
        raise BuildError(f"This machine has no {command[0]}. Install it first.") from None
    if done.returncode:
        raise BuildError(done.stderr.decode(errors="replace").strip() or f"{command[0]} failed")
    return done.stdout


# Git's own variables that are kept: where its programs and settings lie, and how it reaches a partial clone's remote.
GIT_KEPT = ("GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_SYSTEM", "GIT_EXEC_PATH", "GIT_SS")


def git_environment() -> dict[str, str]:
    """Return the environment of a program that reads a git repository.

    A hook of git sets GIT_DIR and more: they name another repository than app_repository. Replacements and grafts give
    a commit other contents and ancestors than its SHA stands for.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith(GIT_KEPT)}
    own = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_GRAFT_FILE": f"{os.devnull}/none"}
    return {**kept, **own, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def git(repository: Path | str, *arguments: str, input: bytes = b"") -> bytes:
    """Run git in a repository and return its output; raise BuildError with git's words when it fails.

    The user's settings stay in force, since safe.directory is one of them. So call nothing whose output a setting
    changes: plumbing, or an option that overrules the setting.
    """
    # safe.bareRepository=explicit refuses a bare repository that nobody named; app_repository names it.
    command = ("git", "-c", "safe.bareRepository=all", "-C", repository, *arguments)
    return run(*command, env=git_environment(), input=input)


def is_top(repository: Path, path: str) -> bool:
    """Tell whether a repository has a working tree; raise BuildError unless this is its top folder, or a git directory.

    Args:
        repository: app_repository.
        path: app_path, which is relative to that top.
    """
    question = ("rev-parse", "--is-inside-work-tree", "--show-prefix", "--absolute-git-dir")
    try:
        inside, prefix, directory = git(repository, *question).decode().splitlines()
    except BuildError as error:
        raise BuildError(f"app_repository {repository} can't be read: {error}") from None
    if prefix:
        top, path = repository.parents[prefix.count("/") - 1], posixpath.normpath(prefix + path)
        raise BuildError(
            f"app_repository {repository} is a folder of the repository {top}. Name the repository, and the app's"
            f" folder in it: app_repository: {top}, app_path: {path}"
        )
    if inside == "false" and Path(directory).resolve() != repository:
        raise BuildError(
            f"app_repository {repository} lies within the git directory {directory}. Name that: app_repository:"
            f" {directory}"
        )
    return inside == "true"


def normal(path: str) -> str:
    """Return app_path without what makes no difference, as a slash at its end; `.` is the repository itself.

    Raises:
        BuildError: it leads out of the repository.
    """
    plain = posixpath.normpath(path or ".")
    if plain.startswith("/") or plain.split("/")[0] == "..":
        raise BuildError(
            f"app_path '{path}' leads out of app_repository. Name the app's folder relative to the repository's top:"
            " app_path: services/shop, or app_path: . when the app is the repository itself."
        )
    return plain


def resolve(repository: Path, release: str) -> str:
    """Return the 40 characters of the commit that a SHA, a short SHA, a tag or a branch names."""
    try:
        # `--` and the leading ^{} keep a name that looks like an option from being one.
        return git(repository, "rev-parse", "--verify", "--end-of-options", f"{release}^{{commit}}").decode().strip()
    except BuildError as error:
        try:
            known = git(repository, "-c", "log.showSignature=false", "log", "-3", "--format=%h %s", "--encoding=UTF-8")
        except BuildError:
            known = b""
        latest = f" Its latest commits are:\n{known.decode(errors='replace').strip()}" if known else ""
        raise BuildError(
            f"app_release '{release}' names no single commit of {repository}: {error}\n"
            f"Name a SHA, a tag or a branch that it holds, or fetch it first.{latest}"
        ) from None


def dirty(repository: Path, path: str) -> bool:
    """Tell whether the working tree of the app differs from its last commit."""
    return bool(git(repository, "status", "--porcelain", "--untracked-files=normal", "--", f":(literal){path}"))


def objects(repository: Path, names: list[str], *options: str) -> Iterator[bytes]:
    """Return the contents of what names name, as git keeps it; raise BuildError when one is not there."""
    told = git(repository, "cat-file", "--batch", *options, input="".join(f"{name}\n" for name in names).encode())
    at = 0
    for name in names:
        end = told.index(b"\n", at)
        found = re.fullmatch(rb"[0-9a-f]+ \w+ (\d+)", told[at:end])
        if not found:
            raise BuildError(f"{repository} has no {name}")
        at = end + 1 + int(found[1]) + 1
        yield told[end + 1 : at - 1]


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


def listing(repository: Path, sha: str, path: str) -> dict[str, tuple[str, str]]:
    """Return all that lies below a folder of a commit: each one's mode and object, by its path in the repository.

    Raises:
        BuildError: the commit has no such folder.
    """
    prefix = "" if path == "." else f"{path}/"
    try:
        listed = git(repository, "ls-tree", "-r", "-z", "--full-tree", f"{sha}:{prefix.rstrip('/')}")
    except BuildError:
        if path == ".":
            raise
        raise BuildError(no_folder(repository, sha, path)) from None
    entries = (line.partition("\t") for line in os.fsdecode(listed).split("\0")[:-1])
    return {prefix + name: (about.split()[0], about.split()[2]) for about, _, name in entries}


LINK, SUBMODULE = "120000", "160000"


def no_folder(repository: Path, sha: str, path: str) -> str:
    """Say why a commit has no such folder, and which ones it could be."""
    entries = listing(repository, sha, ".")
    for above in (path, *map(str, Path(path).parents)):
        if above in entries:
            mode, link = entries[above]
            if mode == SUBMODULE:
                return f"{above} is a submodule in commit {sha[:12]}. Set app_repository to a clone of its repository."
            if mode == LINK:
                (target,) = objects(repository, [link])
                return (
                    f"{above} is a link to {os.fsdecode(target)} in commit {sha[:12]}. Set app_path to the folder that"
                    " it leads to."
                )
            return f"{above} is a file in commit {sha[:12]}. Set app_path to the app's folder."
    apps = sorted(posixpath.dirname(name) or "." for name in entries if posixpath.basename(name) == "pyproject.toml")
    those = f" Folders with a pyproject.toml: {', '.join(apps[:5])}." if apps else ""
    return f"Commit {sha[:12]} has no folder {path}. Set app_path to the app's folder.{those}"


def export(repository: Path, sha: str, path: str, top: Path) -> None:
    """Write a folder of a commit below `top`, at its path there, with what its links lead to in their place.

    Contents are those that git keeps: attributes and settings, which make other bytes of them, have no say. Build
    backends differ in how they follow links, so they get none, but for those that lead to a folder around them.

    Raises:
        BuildError: the commit does not have the content of a file.
    """
    roots = [top / path]
    whole: dict[str, tuple[str, str]] = {}
    pending = place(repository, sha, listing(repository, sha, path), top)
    for link in pending:
        target = Path(os.path.realpath(top / link))
        if any(target.is_relative_to(root) for root in roots):
            if target.exists():
                continue
            below = {}
        else:
            # Not in the app's folder: shared code of a repository of several apps.
            whole = whole or listing(repository, sha, ".")
            name = str(target.relative_to(top)) if target.is_relative_to(top) else "/"
            below = {
                each: entry
                for each, entry in whole.items()
                # A link or a submodule above it is what leads on, or does not.
                if name in {".", each} or each.startswith(f"{name}/") or name.startswith(f"{each}/")
            }
            roots.append(target)
        if not below:
            raise BuildError(
                f"{link} of commit {sha[:12]} is a link to {(top / link).readlink()}, which is not in the commit. A"
                " release has nothing but its commit: commit the file instead of the link, or remove the link."
            )
        new = {each: entry for each, entry in below.items() if not os.path.lexists(top / each)}
        pending += [*place(repository, sha, new, top), link]
    for link in {link for link in pending if (top / link).is_relative_to(top / path)}:
        follow(top / link)


def follow(link: Path) -> None:
    """Put what a link leads to in its place, unless that is around it."""

    def around(folder: str, names: list[str]) -> list[str]:
        real = Path(os.path.realpath(folder))
        return [name for name in names if real.is_relative_to(os.path.realpath(real / name))]

    if around(str(link.parent), [link.name]):
        return
    target = Path(os.path.realpath(link))
    link.unlink()
    if target.is_dir():
        shutil.copytree(target, link, ignore=around)
    else:
        shutil.copy(target, link)


def place(repository: Path, sha: str, entries: dict[str, tuple[str, str]], top: Path) -> list[str]:
    """Write files and links of a commit below `top`, and return the links."""
    for name, (mode, _) in entries.items():
        if mode == SUBMODULE:
            raise BuildError(
                f"{name} is a submodule, whose content is not in commit {sha[:12]}. Commit its files instead of it"
                " (git subtree add), or lock it as a dependency."
            )
    contents = objects(repository, [found for _, found in entries.values()])
    links = {}
    for (name, (mode, _)), content in zip(entries.items(), contents, strict=True):
        if mode == LINK:
            links[name] = os.fsdecode(content)
            continue
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("xb") as opened:
                opened.write(lfs_content(repository, sha, name, content))
        except FileExistsError:
            raise BuildError(
                f"{name} of commit {sha[:12]} and another file are one on this machine, whose file system does not"
                " tell capitals apart. Rename one of them."
            ) from None
        file.chmod(0o755 if mode == "100755" else 0o644)
    for name, target in links.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).symlink_to(target)
    return list(links)


POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\n")


def lfs_content(repository: Path, sha: str, name: str, content: bytes) -> bytes:
    """Return what a pointer of Git LFS stands for, by its digest; any other content as it is."""
    pointer = POINTER.match(content) if len(content) < 1024 else None
    if not pointer:
        return content
    oid = pointer[1].decode()
    common = repository / git(repository, "rev-parse", "--git-common-dir").decode().strip()
    try:
        whole = (common / "lfs/objects" / oid[:2] / oid[2:4] / oid).read_bytes()
    except FileNotFoundError:
        whole = b""
    if hashlib.sha256(whole).hexdigest() != oid:
        raise BuildError(
            f"{name} of commit {sha[:12]} lies in Git LFS, and {repository} does not have its content. Fetch it first:"
            f" git -C {repository} lfs fetch origin {sha}"
        )
    return whole


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


def files(tree: Path) -> Iterator[Path]:
    """Return the files and links of a tree that are shipped, in the order of their names."""
    for path in sorted(tree.rglob("*")):
        relative = path.relative_to(tree)
        # `bin/` at the top of an installation holds scripts that name the controller's Python.
        if path.name in NOT_SHIPPED or relative.parts[0] == "bin" or (path.is_dir() and not path.is_symlink()):
            continue
        if "__pycache__" not in relative.parts:
            yield path


def pack(tree: Path, archive: Path, mtime: int, extra: dict[str, bytes | Path] | None = None, prefix: str = "") -> None:
    """Write a tree as a `.tar.gz` whose bytes depend only on its files' names, contents and executable bits.

    Args:
        tree: what is packed.
        archive: where to; it appears whole or not at all.
        mtime: the time, in seconds since 1970, that every entry carries.
        extra: more entries by name: a file's bytes, or where a link points to.
        prefix: what the tree's names begin with in the archive.
    """
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):

        def add(name: str, content: bytes | Path, executable: bool = False) -> None:
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode = mtime, 0o755 if executable else 0o644
            if isinstance(content, Path):
                entry.type, entry.linkname = tarfile.SYMTYPE, str(content)
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

        for name, content in sorted((extra or {}).items()):
            add(name, content, executable=name.startswith("bin/"))
        for path in files(tree):
            name = prefix + str(path.relative_to(tree))
            add(
                name,
                path.readlink() if path.is_symlink() else path.read_bytes(),
                bool(path.lstat().st_mode & stat.S_IXUSR),
            )
    write(archive, buffer.getvalue())
    # Last: an archive that has its digest is whole.
    write(digest_of(archive), hashlib.sha256(buffer.getvalue()).hexdigest().encode())


def write(path: Path, content: bytes) -> None:
    """Make a file that appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def digest_of(archive: Path) -> Path:
    """Return where an archive's SHA-256 is noted when it is built: a host finds out if it is another one later."""
    return archive.with_name(f"{archive.name}.sha256")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let one process at a time build: a host's fork that comes second finds what the first one made."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(archive: Path) -> bool:
    """Tell whether the cache has an archive."""
    return archive.exists() and digest_of(archive).exists()


def once(archive: Path, build: Callable[[Path], None]) -> None:
    """Build an archive unless the cache has it."""
    if not made(archive):
        with locked(archive.parent):
            if not made(archive):
                build(archive)


def use(cache: Path, *archives: Path) -> None:
    """Note in the cache that archives are in use, so that `tidy` of another deploy leaves them."""
    # A cache that can't be written to is used as it is.
    with suppress(OSError), locked(cache):
        for archive in filter(made, archives):
            # Not the archive's own time: `aws s3 sync` would take it for another one.
            os.utime(digest_of(archive))


def tidy(cache: Path) -> None:
    """Remove what belongs to archives that no deploy has used for KEEP_DAYS."""
    before = datetime.now(UTC).timestamp() - KEEP_DAYS * 86400
    with locked(cache):
        old = []
        for path in (path for path in cache.glob("*/*") if path.name != "lock"):
            digest = path.with_name(re.sub(r"\.(tar\.gz|cdx\.json|requires\.json).*", ".tar.gz.sha256", path.name))
            # Without a digest it is what a killed build left.
            if (digest if digest.exists() else path).stat().st_mtime < before:
                old.append(path)
        for path in old:
            path.unlink()


def described(archive: Path, dest: str) -> dict[str, Any]:
    """Describe an archive that the cache has, and where it belongs on a host."""
    return {
        "file": str(archive),
        "sha256": digest_of(archive).read_text(),
        "size": archive.stat().st_size,
        "dest": dest,
    }


def key(*parts: str | bytes) -> str:
    """Return a short name for what something is made from."""
    return hashlib.sha256(b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)).hexdigest()[
        :20
    ]


def build(
    repository: Path,
    path: str,
    module: str,
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
        module: what serves, as in `python -m`.
        sha: the commit, all 40 characters.
        python: the host's Python, as `3.11`.
        machine: the host's architecture, as `uname -m` says it.
        cache: where archives are kept.
        python_full: the host's Python, as `3.11.2`; without it the first one of its series.

    Returns:
        `release` and `layer`, each with `file`, `sha256`, `size` (bytes) and `dest` on the host; the layer's `name`;
        `notices`, what a person should know of a release that was built now.

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
    layer_name = f"{key(RECIPE, lock, python, machine)}-py{python}-{machine}"
    layer = cache / "layers" / f"{layer_name}.tar.gz"
    # Names are the same on every controller, so that a store can hold them: a SHA is one content in all repositories.
    release = cache / "releases" / f"{sha}-{key(RECIPE, path, module, layer_name)}.tar.gz"
    notices: list[str] = []
    use(cache, layer, release)
    if not (made(layer) and made(release)):
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
                pack_release(
                    archive, target, path, module, sha, python, layer_name, bill(pyproject, locked, sha, time), time
                )

        once(release, finish)
        tidy(cache)
    return {
        "release": described(release, f"/opt/booty/releases/{sha}"),
        "layer": {**described(layer, f"/opt/booty/layers/{layer_name}"), "name": layer_name},
        "notices": notices,
    }


def requires_of(layer: Path) -> Path:
    """Return where it is noted what each package of a layer requires."""
    return layer.with_name(layer.name.replace(".tar.gz", ".requires.json"))


def build_layer(archive: Path, lock: str, python: str, machine: str) -> None:
    """Install the locked dependencies, wheels only, for the host's Python and machine, and pack them."""
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


def pack_release(
    archive: Path,
    target: Path,
    path: str,
    module: str,
    sha: str,
    python: str,
    layer: str,
    materials: bytes,
    time: int,
) -> None:
    """Pack an installed app as a virtual environment over its layer."""
    site = f"lib/python{python}/site-packages"
    manifest = {"release": sha, "layer": layer, "python": python, "path": path, "module": module}
    archive.with_name(archive.name.replace(".tar.gz", ".cdx.json")).write_bytes(materials)
    extra: dict[str, bytes | Path] = {
        "bin/python": Path("/usr/bin/python3"),
        # The release itself knows what serves in it: a unit would be another release's before and after.
        "bin/serve": f'#!/bin/sh\nexec "${{0%/*}}/python" -P -m {module} "$@"\n'.encode(),
        "pyvenv.cfg": b"home = /usr/bin\ninclude-system-site-packages = false\n",
        # Python reads the .pth files of a layer's packages only in a folder that `site` added.
        f"{site}/layer.pth": f"import site; site.addsitedir('/opt/booty/layers/{layer}')\n".encode(),
        "sbom.cdx.json": materials,
        "release.json": json.dumps(manifest, indent=1).encode() + b"\n",
    }
    pack(target, archive, time, extra, prefix=f"{site}/")


# What of uv's settings counts: where packages come from, and how they are reached. Each as a variable and in uv.toml.
UV_KEPT = (
    "allow-insecure-host",
    "cache-dir",
    "concurrent-downloads",
    "credentials-dir",
    "default-index",
    "extra-index-url",
    "find-links",
    "http-",
    "https-",
    "index",
    "insecure-host",
    "keyring-provider",
    "native-tls",
    "no-index",
    "no-proxy",
    "offline",
    "system-certs",
)
# Read by uv and build backends in the folder of an app and in all above it.
BARRIERS = {"uv.toml": "", ".gitignore": "", ".hgignore": "", "pyproject.toml": "[tool.uv.workspace]\n"}


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a folder to build in, whose Python, build backend and uv see nothing of the controller's settings."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        for barrier, content in BARRIERS.items():
            (directory / barrier).write_text(content)
        home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        systems = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
        system = [file for each in systems if (file := Path(each, "uv/uv.toml")).is_file()]
        settings = {"home": home / "uv/uv.toml", "system": next(iter(system), Path("/etc/uv/uv.toml"))}
        if os.environ.get("UV_CONFIG_FILE"):
            settings = {"home": Path(os.environ["UV_CONFIG_FILE"]), "system": Path(os.devnull)}
        for whose, file in settings.items():
            (directory / whose / "uv").mkdir(parents=True)
            (directory / whose / "uv/uv.toml").write_text(sources(file))
        yield directory


def sources(file: Path) -> str:
    """Return what a uv.toml says of where packages come from, as a uv.toml; raise BuildError when it can't be read."""

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return f"{{{', '.join(f'{json.dumps(name)} = {toml(each)}' for name, each in value.items())}}}"
        if isinstance(value, list):
            return f"[{', '.join(map(toml, value))}]"
        return json.dumps(value, ensure_ascii=False)

    def kept(table: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in table.items() if name.startswith(UV_KEPT)}

    try:
        table = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise BuildError(f"{file}, uv's configuration, can't be read: {error}") from None
    table = {**kept(table), "pip": kept(table.get("pip", {}))}
    return "".join(f"{name} = {toml(value)}\n" for name, value in table.items())


def uv(directory: Path, *arguments: str, **environment: str) -> None:
    """Run the locked uv in a workplace, with the controller's environment or another one.

    Without another one no code of a package runs: only uv's own variables and settings can change what it makes.
    """
    passed = environment or {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    chosen = tuple(f"UV_{name.upper().replace('-', '_')}" for name in UV_KEPT)
    passed |= {name: value for name, value in os.environ.items() if name.startswith(chosen)}
    # This Python, so that none is searched for or downloaded.
    passed |= {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    passed |= {"XDG_CONFIG_HOME": str(directory / "home"), "XDG_CONFIG_DIRS": str(directory / "system")}
    run(find_uv_bin(), *arguments, cwd=directory, env=passed)


# Variables of the controller that a build backend gets, since it could not run or reach an index without them.
BACKEND = {"PATH", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


def build_environment(directory: Path, sha: str, time: int) -> dict[str, str]:
    """Return the environment of a build backend: the same on every controller, but for where things lie."""
    home = Path.home()
    return {
        **{name: value for name, value in os.environ.items() if name in BACKEND or name.lower() in PROXIES},
        # Not the user's: setuptools reads ~/.pydistutils.cfg. uv finds its cache, passwords and Pythons all the same.
        "HOME": str(directory / "home"),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(home / ".cache"),
        "XDG_DATA_HOME": os.environ.get("XDG_DATA_HOME") or str(home / ".local/share"),
        "NETRC": os.environ.get("NETRC") or str(home / ".netrc"),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        # The first time that a zip archive can hold.
        "SOURCE_DATE_EPOCH": str(max(time, 315532800)),
        # A version that comes from git's tags is not in the commit: a clone may lack them.
        "SETUPTOOLS_SCM_PRETEND_VERSION": f"0+{sha}",
        "PDM_BUILD_SCM_VERSION": f"0+{sha}",
    }


class ActionModule(ActionBase):
    """Resolve a release."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `release`, all 40 characters."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, wanted = self.validate_argument_spec(
            {
                "repository": {"type": "path", "required": True},
                "path": {"type": "str", "required": True},
                "release": {"type": "str", "required": True},
            },
        )
        repository = Path(wanted["repository"]).resolve()
        try:
            path = normal(wanted["path"])
            has_work_tree = is_top(repository, path)
            sha = resolve(repository, wanted["release"])
            if wanted["release"] == "HEAD" and has_work_tree and dirty(repository, path):
                result["warnings"] = [
                    f"{repository / path} has changes that are not committed;"
                    f" commit {sha[:12]} is deployed without them."
                ]
        except BuildError as error:
            raise AnsibleActionFail(str(error)) from None
        return {**result, "release": sha, "changed": False}
