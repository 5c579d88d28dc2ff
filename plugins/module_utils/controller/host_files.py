"""Compare the files that a host has with those that it should have, from the output of a shell script on the host.

The host may have no Python yet, so no module of Ansible can read its files.
"""

from __future__ import annotations

import base64
import difflib
from typing import Any


def host_values(text: str) -> dict[str, str]:
    """Return the `name=value` lines in the output of `look.sh`; other lines, such as a login banner, are ignored."""
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


def stale(entries: list[dict[str, Any]], host: dict[str, str]) -> list[dict[str, Any]]:
    """Return the files and directories that a bootstrap has to write or remove.

    Args:
        entries: the files and directories of the role, each with `path` and `part`. An entry without `text` is a
            directory. The default of `owner` is root, that of `mode` is 0755 for a directory and 0644 for a file.
            `present: false` removes a file, unless the entry has `keep: true`.
        host: the result of `host_values`. Its value for `file <path>` is "owner mode kind", then the content of a file
            in base64, or the target of a link to a directory.

    Returns:
        the entries that differ, with their defaults, their `state` (file, directory or absent), and the texts for
        messages: a line as `summary`, a diff as `difference`.
    """
    differing = []
    for entry in entries:
        path, text = entry["path"], entry.get("text")
        kind = "directory" if text is None else "file"
        full = {"owner": "root", "mode": "0755" if text is None else "0644", "state": kind, **entry}
        value = host.get(f"file {path}")
        owner, mode, host_kind, content = [*(value or "").split(" "), "", "", ""][:4]
        before = base64.b64decode(content).decode(errors="replace") if host_kind == "file" else None
        if not entry.get("present", True):
            if value and not entry.get("keep"):
                difference = _difference(path, before or "", None)
                differing.append({**full, "state": "absent", "summary": f"remove {path}", "difference": difference})
            continue
        if (owner, mode.zfill(4), host_kind, before) == (full["owner"], full["mode"], kind, text):
            continue
        is_now = "" if value is None else f" (it is {owner}, {mode.zfill(4)})"
        summary = (
            f"{'write' if kind == 'file' else 'make the directory'} {path}: {full['owner']}, {full['mode']}{is_now}"
        )
        difference = "" if text is None else f"\n{_difference(path, before, text)}"
        differing.append({**full, "summary": summary, "difference": f"{summary}{difference}".strip()})
    return differing


# ProtectHome= and PrivateTmp= hide these directories from the service.
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")


def misplaced(entries: list[dict[str, Any]], host: dict[str, str]) -> list[str]:
    """Return a problem for each path that has the wrong file type on the host; the arguments are those of `stale`.

    A link to a directory may replace a directory, if the target has the right owner and the service's sandbox shows it.
    """
    problems = []
    for entry in (entry for entry in entries if entry.get("present", True)):
        path, owner = entry["path"], entry.get("owner", "root")
        kind = "file" if "text" in entry else "directory"
        host_owner, _, host_kind, target = [*host.get(f"file {path}", "").split(" ", 3), "", "", ""][:4]
        linked = host_kind == "directory" and target
        if linked and host_owner != owner:
            problems.append(f"{path} is a link to {target}, which belongs to {host_owner}: chown {owner}: {target}")
        elif linked and kind == "directory" and target.startswith(HIDDEN) and path.startswith("/opt/"):
            problems.append(f"{path} is a link to {target}, which the service's sandbox hides: move that elsewhere")
        elif host_kind in {"directory", "file", "link"} and host_kind != kind and (kind, host_kind) != ("file", "link"):
            name = "a link that leads to no directory" if host_kind == "link" else f"a {host_kind}"
            problems.append(f"{path} is {name} and not a {kind}: move it away")
    return problems


def removed(paths: str, part: str) -> list[dict[str, Any]]:
    """Return an entry for `stale` for each path, separated by blanks, so that the file is removed."""
    return [{"part": part, "path": path, "present": False} for path in paths.split()]
