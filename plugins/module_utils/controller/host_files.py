"""Compares what a host should have with what it said it has. Works on text alone: the host may have no Python yet."""

from __future__ import annotations

import base64
import difflib
from typing import Any


def seen(text: str) -> dict[str, str]:
    """Read the `name=value` lines of `look.sh`; others, as a login's banner, are passed over."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip() for name, _, value in pairs}


def _difference(path: str, before: str | None, after: str | None) -> str:
    lines = difflib.unified_diff(
        (before or "").splitlines(),
        (after or "").splitlines(),
        path if before is not None else "/dev/null",
        path if after is not None else "/dev/null",
        lineterm="",
    )
    return "\n".join(lines)


def stale(wanted: list[dict[str, Any]], host: dict[str, str]) -> list[dict[str, Any]]:
    """Choose the files and directories that are not as they should be.

    Args:
        wanted: each with `path` and `part`; without a `text` it is a directory. `owner` (root) and `mode` (0755, a file
            0644) have defaults. One that is not `wanted` goes, unless it says `keep`.
        host: what `seen` returned; `file <path>` is "owner mode kind", and the content of a file in base64, or where
            the link leads that stands in the place of a directory.

    Returns:
        those that differ, with their defaults filled in, their `state` (file, directory or absent), and, for a
        person, a line in `summary` and all of it in `difference`.
    """
    found = []
    for entry in wanted:
        path, text = entry["path"], entry.get("text")
        kind = "directory" if text is None else "file"
        full = {"owner": "root", "mode": "0755" if text is None else "0644", "state": kind, **entry}
        there = host.get(f"file {path}")
        owner, mode, is_kind, content = [*(there or "").split(" "), "", "", ""][:4]
        before = base64.b64decode(content).decode(errors="replace") if is_kind == "file" else None
        if not entry.get("wanted", True):
            if there and not entry.get("keep"):
                difference = _difference(path, before or "", None)
                found.append({**full, "state": "absent", "summary": f"remove {path}", "difference": difference})
            continue
        if (owner, mode.zfill(4), is_kind, before) == (full["owner"], full["mode"], kind, text):
            continue
        is_now = "" if there is None else f" (it is {owner}, {mode.zfill(4)})"
        summary = (
            f"{'write' if kind == 'file' else 'make the directory'} {path}: {full['owner']}, {full['mode']}{is_now}"
        )
        difference = "" if text is None else f"\n{_difference(path, before, text)}"
        found.append({**full, "summary": summary, "difference": f"{summary}{difference}".strip()})
    return found


# A service with ProtectHome= and PrivateTmp= does not see what lies there.
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")


def misplaced(wanted: list[dict[str, Any]], host: dict[str, str]) -> list[str]:
    """Say what stands in the place of a file or a directory and can't be made into it; arguments as for `stale`.

    A link to a directory is fine, if that belongs to whom the directory has to belong, and the service sees it.
    """
    found = []
    for entry in (entry for entry in wanted if entry.get("wanted", True)):
        path, owner = entry["path"], entry.get("owner", "root")
        kind = "file" if "text" in entry else "directory"
        is_owner, _, is_kind, target = [*host.get(f"file {path}", "").split(" ", 3), "", "", ""][:4]
        linked = is_kind == "directory" and target
        if linked and is_owner != owner:
            found.append(f"{path} is a link to {target}, which belongs to {is_owner}: chown {owner}: {target}")
        elif linked and kind == "directory" and target.startswith(HIDDEN) and path.startswith("/opt/"):
            found.append(f"{path} is a link to {target}, where the service's sandbox sees nothing: move that elsewhere")
        elif is_kind in {"directory", "file", "link"} and is_kind != kind and (kind, is_kind) != ("file", "link"):
            what = "a link that leads to no directory" if is_kind == "link" else f"a {is_kind}"
            found.append(f"{path} is {what} and not a {kind}: move it away")
    return found


def removed(paths: str, part: str) -> list[dict[str, Any]]:
    """Turn paths, separated by blanks, into entries of files that `stale` wants to be gone."""
    return [{"part": part, "path": path, "wanted": False} for path in paths.split()]
