"""Read a git repository on the controller: which commit a name means, and the files of that commit."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from .process import BuildError, run

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


def descends(repository: str, *commits: str) -> bool:
    """Tell whether each commit descends from the one before it, or is the same, as far as a repository knows."""
    try:
        for older, newer in pairwise(commits):
            git(Path(repository), "merge-base", "--is-ancestor", older, newer)
    except BuildError:
        return False
    return True


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
