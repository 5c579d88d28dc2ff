"""Read a git repository on the controller: resolve a name to its commit, and export the files of a commit."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

from .process import BuildError, run
from .screen import one_line

# Prefixes of git's variables that are kept: they locate its programs and settings, and the remote of a partial clone.
GIT_KEPT = ("GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_SYSTEM", "GIT_EXEC_PATH", "GIT_SS")


def git_environment() -> dict[str, str]:
    """Return the environment of a program that reads a git repository.

    It drops GIT_DIR and similar variables, which a git hook sets: they name another repository than app_repository. It
    disables replacements and grafts, which change the content and the ancestors of a commit under the same SHA.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith(GIT_KEPT)}
    own = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_GRAFT_FILE": f"{os.devnull}/none"}
    return {**kept, **own, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def git(repository: Path | str, *arguments: str, input: bytes = b"") -> bytes:
    """Run git in a repository and return its output; raise BuildError with git's error message when it fails.

    Git reads the user's settings, because safe.directory is one of them. So callers use plumbing commands, or options
    that override the settings which change the output.
    """
    # safe.bareRepository=explicit would refuse a bare app_repository, since git finds it by -C and not by --git-dir.
    command = ("git", "-c", "safe.bareRepository=all", "-C", repository, *arguments)
    return run(*command, env=git_environment(), input=input)


def is_top(repository: Path, path: str) -> bool:
    """Return whether a repository has a working tree; raise BuildError unless it is the top folder or a git directory.

    Args:
        repository: app_repository.
        path: app_path, relative to the top folder.
    """
    command = ("rev-parse", "--is-inside-work-tree", "--show-prefix", "--absolute-git-dir")
    try:
        inside, prefix, directory = git(repository, *command).decode().splitlines()
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
    """Return app_path in its normal form, such as without a slash at its end; `.` is the repository itself.

    Raises:
        BuildError: the path leads out of the repository.
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
        # --end-of-options stops git from reading a name such as `--all` as an option.
        return git(repository, "rev-parse", "--verify", "--end-of-options", f"{release}^{{commit}}").decode().strip()
    except BuildError as error:
        try:
            log = git(repository, "-c", "log.showSignature=false", "log", "-3", "--format=%h %s", "--encoding=UTF-8")
        except BuildError:
            log = b""
        latest = f" Its latest commits are:\n{log.decode(errors='replace').strip()}" if log else ""
        raise BuildError(
            f"app_release '{release}' names no single commit of {repository}: {error}\n"
            f"Name a SHA, a tag or a branch that it holds, or fetch it first.{latest}"
        ) from None


def descends(repository: str, *commits: str) -> bool:
    """Return whether each commit is the one before it or a descendant of it; False if the repository lacks one."""
    try:
        for older, newer in pairwise(commits):
            git(Path(repository), "merge-base", "--is-ancestor", older, newer)
    except BuildError:
        return False
    return True


def subject(repository: Path, sha: str) -> str:
    """Return a commit in one line: its short SHA, its author and its subject, and whether a remote lacks it."""
    command = ("log", "-1", "--format=%an: %s", "--encoding=UTF-8", sha)
    text = git(repository, "-c", "log.showSignature=false", *command).decode(errors="replace")
    line = f"commit {sha[:9]} {one_line(text)}"
    if git(repository, "for-each-ref", "--count=1", "refs/remotes"):
        # A pipeline for a tag may have fetched that alone.
        refs = ("refs/remotes", "refs/tags")
        if not git(repository, "for-each-ref", "--count=1", f"--contains={sha}", *refs):
            line += " (not pushed: no branch of the remote has it)"
    return line


def dirty(repository: Path, path: str) -> bool:
    """Return whether the app's folder in the working tree differs from the last commit."""
    return bool(git(repository, "status", "--porcelain", "--untracked-files=normal", "--", f":(literal){path}"))


def objects(repository: Path, names: list[str], *options: str) -> Iterator[bytes]:
    """Yield the contents of git's objects by their names; raise BuildError when one is missing."""
    output = git(repository, "cat-file", "--batch", *options, input="".join(f"{name}\n" for name in names).encode())
    start = 0
    for name in names:
        end = output.index(b"\n", start)
        header = re.fullmatch(rb"[0-9a-f]+ \w+ (\d+)", output[start:end])
        if not header:
            raise BuildError(f"{repository} has no {name}")
        start = end + 1 + int(header[1]) + 1
        yield output[end + 1 : start - 1]


def listing(repository: Path, sha: str, path: str) -> dict[str, tuple[str, str]]:
    """Return the mode and the object of each entry below a folder of a commit, by its path in the repository.

    Raises:
        BuildError: the commit has no such folder.
    """
    prefix = "" if path == "." else f"{path}/"
    try:
        output = git(repository, "ls-tree", "-r", "-z", "--full-tree", f"{sha}:{prefix.rstrip('/')}")
    except BuildError:
        if path == ".":
            raise
        raise BuildError(no_folder(repository, sha, path)) from None
    entries = [line.partition("\t") for line in os.fsdecode(output).split("\0")[:-1]]
    names = [name for _, _, name in entries]
    unique = {*names}
    for name in names:
        # git's own commands make no such entry, and a file would be written outside of the build's folder: also below a
        # link with the same name as a folder.
        odd = {part.lower() for part in name.split("/")} & {"", ".", "..", ".git"}
        if odd or len(unique) < len(names) or any(str(parent) in unique for parent in PurePosixPath(name).parents):
            raise BuildError(
                f"commit {sha[:12]} is damaged or hostile: it has a file {name!r}. See what git finds: git fsck"
            )
    return {prefix + name: (fields.split()[0], fields.split()[2]) for fields, _, name in entries}


LINK, SUBMODULE = "120000", "160000"
# An attribute in a .gitattributes of the commit: hosts do not get these files. `export-ignore` would leave them out of
# the archives of a repository too, which have other readers.
IGNORED = "booty-ignore"
SAMPLES = (".example", ".sample", ".template")


def is_dotenv(name: str) -> bool:
    """Return whether a file holds variables for a program's environment, which may be secrets."""
    base = posixpath.basename(name)
    return base == ".env" or (base.startswith(".env.") and not base.endswith(SAMPLES))


class Tree:
    """The files of a commit, without those with the attribute `booty-ignore`.

    Attributes:
        repository: the git repository.
        sha: the commit.
        entries: the mode and the object of each file, by its path.
    """

    def __init__(self, repository: Path, sha: str) -> None:
        self.repository, self.sha = repository, sha
        entries = listing(repository, sha, ".")
        self._patterns = [*patterns_of(repository, entries)]
        self.entries = {name: entry for name, entry in entries.items() if self.ships(name)}

    def ships(self, name: str, default: bool = True) -> bool:
        """Return whether hosts get a file: as in git, the last pattern that matches counts, or else the default."""
        return next((not ignores for pattern, ignores in reversed(self._patterns) if pattern.match(name)), default)

    def demand(self, path: str) -> None:
        """Raise BuildError unless the commit has a folder."""
        if path != "." and not any(name.startswith(f"{path}/") for name in self.entries):
            raise BuildError(no_folder(self.repository, self.sha, path))

    def below(self, folder: str) -> set[str]:
        """Return the files below a folder, relative to it."""
        prefix = "" if folder == "." else f"{folder}/"
        return {name.removeprefix(prefix) for name in self.entries if name.startswith(prefix)}

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, also by a link to it; None if there is none."""
        if self.entries.get(name, (SUBMODULE,))[0] == SUBMODULE:
            return None
        try:
            (content,) = objects(self.repository, [f"{self.sha}:{name}"], "--follow-symlinks")
        except BuildError:
            return None
        return content


class Pattern:
    """A pattern of a .gitattributes: `*` and `?` stand for characters of a name, `**` for any folders.

    The names are matched one after the other. One regular expression for the whole path would take hours for some
    patterns of a few characters.
    """

    def __init__(self, folder: str, pattern: str) -> None:
        """Read a pattern.

        Args:
            folder: the folder of the .gitattributes, "" or with a slash at its end.
            pattern: as it is written there; without a slash inside, it holds for the folders below as well.
        """
        anywhere = [] if "/" in pattern.rstrip("/") else ["**"]
        *inner, last = [*anywhere, *pattern.strip("/").split("/")]
        self._folder = folder
        # `**` at the end is what lies in a folder, and so is `*`.
        self._parts = [*(None if part == "**" else self._name(part) for part in inner), self._name(last)]

    @staticmethod
    def _name(part: str) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(part.replace("[", "[[]")))

    def match(self, name: str) -> bool:
        """Return whether the pattern matches a path of the repository, or a folder above it."""
        if not name.startswith(self._folder):
            return False
        # The numbers of the parts that may be the next one.
        nexts = self._with_folders({0})
        for each in name.removeprefix(self._folder).split("/"):
            after = set()
            for number in nexts:
                part = self._parts[number]
                if part is None:
                    after.add(number)
                elif part.match(each):
                    after.add(number + 1)
            if len(self._parts) in after:
                return True
            nexts = self._with_folders(after)
        return False

    def _with_folders(self, numbers: set[int]) -> set[int]:
        """Return numbers with those behind each `**`, which may stand for no folder."""
        found = {*numbers}
        for number in sorted(numbers):
            while self._parts[number] is None:
                number += 1  # noqa: PLW2901
                found.add(number)
        return found


def patterns_of(repository: Path, entries: dict[str, tuple[str, str]]) -> Iterator[tuple[Pattern, bool]]:
    """Yield the patterns in the commit's .gitattributes that set `booty-ignore`, or unset it as `-booty-ignore`.

    git itself would also read the attributes of the clone and of the user, which differ between controllers.
    """
    names = [name for name in entries if posixpath.basename(name) == ".gitattributes" and entries[name][0] != LINK]
    names.sort(key=lambda name: name.count("/"))
    contents = objects(repository, [entries[name][1] for name in names]) if names else ()
    for name, content in zip(names, contents, strict=True):
        for line in content.decode(errors="replace").splitlines():
            pattern, *attributes = line.split() or [""]
            if {IGNORED, f"-{IGNORED}"} & {*attributes}:
                yield Pattern(name.removesuffix(".gitattributes"), pattern), IGNORED in attributes


def no_folder(repository: Path, sha: str, path: str) -> str:
    """Return the reason why a commit has no such folder, and the next step."""
    entries = listing(repository, sha, ".")
    for part in (path, *map(str, Path(path).parents)):
        if part in entries:
            mode, link = entries[part]
            if mode == SUBMODULE:
                return f"{part} is a submodule in commit {sha[:12]}. Set app_repository to a clone of its repository."
            if mode == LINK:
                (target,) = objects(repository, [link])
                return (
                    f"{part} is a link to {os.fsdecode(target)} in commit {sha[:12]}. Set app_path to the folder that"
                    " it leads to."
                )
            return f"{part} is a file in commit {sha[:12]}. Set app_path to the app's folder."
    apps = sorted(posixpath.dirname(name) or "." for name in entries if posixpath.basename(name) == "pyproject.toml")
    folders = f" Folders with a pyproject.toml: {', '.join(apps[:5])}." if apps else ""
    return f"Commit {sha[:12]} has no folder {path}. Set app_path to the app's folder.{folders}"


def export(tree: Tree, path: str, top: Path, dotenv: bool = False) -> None:
    """Write the files of a commit below `top`, byte for byte: git attributes and settings are not applied.

    Args:
        tree: the files of the commit.
        path: the app's folder in the repository.
        top: an empty folder.
        dotenv: whether to write `.env` files too.

    Raises:
        BuildError: the commit does not have the content of a file that the app's folder holds or links to.
    """
    top = Path(os.path.realpath(top))
    entries = {name: entry for name, entry in tree.entries.items() if dotenv or not is_dotenv(name)}
    links, missing = place(tree.repository, tree.sha, entries, top)
    roots = [top / path]
    for root in roots:
        for name, sentence in missing.items():
            if (top / name).is_relative_to(root) or root.is_relative_to(top / name):
                raise BuildError(sentence)
        for link in (link for link in links if (top / link).is_relative_to(root)):
            target = Path(os.path.realpath(top / link))
            absent = not target.is_relative_to(top) or not target.exists()
            if absent and not any(target.is_relative_to(top / name) for name in missing):
                raise BuildError(
                    f"{link} of commit {tree.sha[:12]} is a link to {(top / link).readlink()}, which is not in the"
                    " commit. A release has nothing but its commit: commit the file instead of the link, or remove the"
                    " link."
                )
            if not any(target.is_relative_to(each) for each in roots):
                # The target is outside the app's folder, such as code that several apps of the repository share.
                roots.append(target)


def source_of(top: Path, path: str, source: Path) -> Path:
    """Copy a commit's files for a build, and return the copy of a folder, with each link in it replaced by its target.

    Build backends follow links differently; a link to one of its own parent folders stays a link.
    """
    shutil.copytree(top, source, symlinks=True)
    for link in [each for each in (source / path).rglob("*") if each.is_symlink()]:
        if link.is_symlink():
            follow(link)
    return source / path


def follow(link: Path) -> None:
    """Replace a link by a copy of its target, unless the target is one of its parent folders."""

    def recursive(folder: str, names: list[str]) -> list[str]:
        """Return the links in a folder to the folder itself or a parent of it."""
        real = Path(os.path.realpath(folder))
        return [name for name in names if real.is_relative_to(os.path.realpath(real / name))]

    if recursive(str(link.parent), [link.name]):
        return
    target = Path(os.path.realpath(link))
    link.unlink()
    if target.is_dir():
        shutil.copytree(target, link, ignore=recursive)
    else:
        shutil.copy(target, link)


def place(
    repository: Path, sha: str, entries: dict[str, tuple[str, str]], top: Path
) -> tuple[list[str], dict[str, str]]:
    """Write files and links of a commit below `top`.

    Returns:
        The links; and a sentence for each submodule and each Git LFS file without its content, which keeps its pointer.
    """
    missing = {
        name: f"{name} is a submodule, whose content is not in commit {sha[:12]}. Commit its files instead of it (git"
        " subtree add), or lock it as a dependency."
        for name, (mode, _) in entries.items()
        if mode == SUBMODULE
    }
    entries = {name: entry for name, entry in entries.items() if name not in missing}
    contents = objects(repository, [name for _, name in entries.values()])
    links = {}
    for (name, (mode, _)), content in zip(entries.items(), contents, strict=True):
        if mode == LINK:
            links[name] = os.fsdecode(content)
            continue
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            large = lfs_content(repository, sha, name, content)
        except BuildError as error:
            missing[name], large = str(error), content
        try:
            with file.open("xb") as stream:
                stream.write(large)
        except FileExistsError:
            raise BuildError(
                f"{name} of commit {sha[:12]} and another file are one on this machine, whose file system does not"
                " tell capitals apart. Rename one of them."
            ) from None
        file.chmod(0o755 if mode == "100755" else 0o644)
    for name, target in links.items():
        parent = (top / name).parent
        parent.mkdir(parents=True, exist_ok=True)
        if parent.resolve() != parent:
            raise BuildError(
                f"{name} of commit {sha[:12]} would lie below a link, since the file system of this machine does not"
                " tell capitals apart. Rename one of the two."
            )
        (top / name).symlink_to(target)
    return list(links), missing


POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\n")


def lfs_content(repository: Path, sha: str, name: str, content: bytes) -> bytes:
    """Return the file that a Git LFS pointer names by its digest; return any other content unchanged."""
    pointer = POINTER.match(content) if len(content) < 1024 else None
    if not pointer:
        return content
    oid = pointer[1].decode()
    common = repository / git(repository, "rev-parse", "--git-common-dir").decode().strip()
    try:
        file = (common / "lfs/objects" / oid[:2] / oid[2:4] / oid).read_bytes()
    except FileNotFoundError:
        file = b""
    if hashlib.sha256(file).hexdigest() != oid:
        raise BuildError(
            f"{name} of commit {sha[:12]} lies in Git LFS, and {repository} does not have its content. Fetch it first:"
            f" git -C {repository} lfs fetch origin {sha}"
        )
    return file
