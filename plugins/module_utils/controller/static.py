"""Check `app_static`: the folders of a release that the proxy serves, by their prefix in URLs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any

from .process import BuildError

# nginx looks for folders under the first part, and under the first two parts, of a URL's path.
PREFIX = r"/([A-Za-z0-9_~-][A-Za-z0-9_.~-]*/){1,2}"


def typed_static(value: Any) -> dict[str, str]:
    """Return the folders in their normal form, by their prefixes, sorted.

    Raises:
        ValueError: an entry is wrong; the message completes the sentence "write …".
    """
    if not isinstance(value, dict):
        raise ValueError('URL prefixes with folders, such as {"/static/": "static"}')
    for prefix, folder in value.items():
        if not isinstance(prefix, str) or not re.fullmatch(PREFIX, prefix):
            raise ValueError(
                f"a path of one or two parts with a slash at both ends, such as /static/, in place of {str(prefix)!r}"
            )
        if not isinstance(folder, str) or not is_below(folder):
            raise ValueError(f"a folder below the app's folder, such as static, for {prefix} in place of {folder!r}")
    for prefix in value:
        if inner := next((each for each in value if each != prefix and each.startswith(prefix)), ""):
            raise ValueError(f"one of {prefix} and {inner}, which lies in it")
    return {prefix: posixpath.normpath(value[prefix]) for prefix in sorted(value)}


def is_below(folder: str) -> bool:
    """Return whether a text is the path of a folder below the app's folder."""
    parts = posixpath.normpath(folder).split("/")
    return bool(folder) and folder.isprintable() and not folder.startswith("/") and parts[0] not in {".", ".."}


def demand_lasting(static: Mapping[str, str], state_paths: Collection[str]) -> None:
    """Raise BuildError if a folder has a state path: the proxy serves copies of what a release has."""
    for prefix, folder in static.items():
        for path in (path.rstrip("/") for path in state_paths):
            if f"{path}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{path}/"):
                raise BuildError(
                    f"app_static: {folder} ({prefix}) can't have {path}, which app_state_paths keeps in the state"
                    " directory: the proxy serves files of a release alone. Move them, or let the app serve them."
                )


def demand_there(static: Mapping[str, str], names: Collection[str], path: str, of: str) -> None:
    """Raise BuildError if a release lacks a folder.

    Args:
        static: the folders, by their prefixes.
        names: the names of files and links in the release, relative to its tree.
        path: the app's folder.
        of: the words for the commit.
    """
    for prefix, folder in static.items():
        place = posixpath.normpath(f"{path}/{folder}")
        if not any(name == place or name.startswith(f"{place}/") for name in names):
            raise BuildError(
                f"app_static: {place} {of} is missing, and the commands of app_build don't make it. Write for {prefix}"
                " a folder that is there after the build, relative to app_path."
            )
