"""Describe the app of a commit: what it serves, by which lock, and what else a release of it needs.

The inventory's variables override `[tool.booty]` in pyproject.toml or booty.toml, which override what is detected.
Nothing of the app is run.
"""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import detect, locks
from .archive import key
from .git import LINK, Tree, is_dotenv, normal
from .process import BuildError
from .static import demand_lasting
from .variables import convert

# The keys of `[tool.booty]`, each with an empty value of its type. An inventory has them with the prefix `app_`.
KEYS: dict[str, Any] = {
    "serve": "",
    "lock": "",
    "lock_extras": [],
    "lock_groups": [],
    "state_paths": [],
    "dotenv": False,
    "health_path": "",
    "health_host": "",
    "release_command": [],
    "post_deploy_command": [],
    "packages": [],
    "build": [],
    "build_settings": {},
    "static": {},
    "processes": {},
    "timers": {},
}
COMMANDS = ("release_command", "post_deploy_command")
PROGRAMS = ("processes", "timers")
# The inventory overrides these when they are used, so that a change of the inventory needs no other build.
LATE = (*COMMANDS, *PROGRAMS, "packages")
# The value of `build` that stands for what the next source says. An empty list is a value of it: no steps.
AUTO = ["auto"]
# The variables of the inventory that are the same for all hosts of a run.
DESCRIBED = [f"app_{name}" for name in KEYS if not name.startswith("health") and name not in LATE]
HEALTH = {
    "health_path": (r"/[^\s#]*", "a path that begins with a slash, such as /health"),
    "health_host": (r"[\w.:\[\]-]+", "a host name, such as shop.example.com"),
}


def describe(repository: Path, sha: str, path: str, inventory: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the app in a folder of a commit.

    Args:
        repository: the git repository.
        sha: the commit, 40 characters.
        path: app_path.
        inventory: the values of the variables in DESCRIBED, without the prefix; an empty value is not set. And
            `starts`, the names in app_processes and app_timers.

    Returns:
        `path`, `serve`, `import_paths`, `health` (`path` and `host`), `state_paths`, `static`, `lock` (relative to the
        app's folder; "" without one), `extras`, `groups`, `dotenv`, the lists `release_command`, `post_deploy_command`
        and `packages`, `build`, the commands of the build; `build_settings`, the names of their settings;
        `build_settings_hash`, a hash of the values, which may be secrets; `processes` and `timers` as `programs.table`
        returns them; and `found`, a sentence for each detection.

    Raises:
        BuildError: the description can't be made; the message has the line to write.
    """
    path = normal(path)
    tree = Tree(repository, sha)
    tree.demand(path)
    of = f"{'The repository' if path == '.' else path} at commit {sha[:12]}"
    pyproject = table(tree, path, "pyproject.toml", sha)
    committed, source = own(tree, path, pyproject, sha)
    values = {name: inventory.get(name) or committed.get(name) or empty for name, empty in KEYS.items()}
    found = []
    folder = detect.Folder(tree, path)
    if values["serve"]:
        target = values["serve"]
        place = folder.find(target.partition(":")[0])
        served = detect.Served(target, [source if not inventory.get("serve") else "app_serve"])
        served.import_paths = [place[1]] if place and place[1] else []
    else:
        served = detect.served(folder, pyproject, of)
    if served.import_paths == ["src"] and locks.installable(tree, path, pyproject):
        served.import_paths = []
    found.append(f"serves {served.target} ({', '.join(served.sources)})")
    if served.remark:
        found.append(served.remark)
    if served.import_paths:
        found.append(f"import path: {', '.join(served.import_paths)}")
    lock, sentence = locks.choose(tree, path, pyproject, values["lock"], of)
    found.append(sentence)
    states = state_paths(folder, values["state_paths"])
    found += [f"keeps {each} in the state directory" for each in states]
    demand_lasting(values["static"], states)
    found += [f"the proxy serves {prefix} from {each}" for prefix, each in values["static"].items()]
    if left_out := [name for name in tree.entries if is_dotenv(name)]:
        names = ", ".join(left_out[:5]) + (" …" if left_out[5:] else "")
        found.append(f"{'ships' if values['dotenv'] else 'leaves out'} {names} (app_dotenv)")
    released = [] if values["release_command"] else detect.release_line(folder)
    for name, commands in (("release", values["release_command"]), ("post-deploy", values["post_deploy_command"])):
        found += [f"{name} command: {each} ({source})" for each in commands]
    found += [f"release command: {each} (Procfile)" for each in released]
    commands, origin = build_commands(folder, inventory, committed, source)
    found += [f"build: {each} ({origin})" for each in commands]
    settings = build_settings(inventory, committed) if commands else {}
    if settings:
        found.append(f"settings of the build: {', '.join(sorted(settings))}")
    if values["packages"]:
        found.append(f"needs {', '.join(values['packages'])} of Debian ({source})")
    for kind, noun in zip(PROGRAMS, ("process", "timer"), strict=True):
        found += [f"{noun} {name}: {each['command']} ({source})" for name, each in values[kind].items()]
    started = {*values["processes"], *values["timers"], *inventory.get("starts", ())}
    if others := [name for name in detect.other_lines(folder) if name not in started]:
        found.append(f"does not start {', '.join(others)} (Procfile)")
    return {
        "path": path,
        "serve": served.target,
        "import_paths": served.import_paths,
        "health": {"path": values["health_path"], "host": values["health_host"]},
        "state_paths": states,
        "static": values["static"],
        "lock": lock,
        "extras": values["lock_extras"],
        "groups": values["lock_groups"],
        "dotenv": values["dotenv"],
        "release_command": values["release_command"] or released,
        "post_deploy_command": values["post_deploy_command"],
        "packages": values["packages"],
        "build": commands,
        "build_settings": sorted(settings),
        "build_settings_hash": key(json.dumps(settings, sort_keys=True)) if settings else "",
        "processes": values["processes"],
        "timers": values["timers"],
        "found": found,
    }


def unserved(repository: Path, sha: str, description: Mapping[str, Any], domains: Any) -> str:
    """Return the sentence on a Django app whose static files nothing serves; "" for others."""
    if not domains or description["static"] or not any("collectstatic" in each for each in description["build"]):
        return ""
    if not (line := detect.unserved(detect.Folder(Tree(repository, sha), description["path"]))):
        return ""
    return (
        f"The build collects static files, and the proxy serves none of them. Unless the app does it itself, write:"
        f" {line} (docs/your-app.md)"
    )


def build_commands(
    folder: detect.Folder, inventory: Mapping[str, Any], committed: Mapping[str, Any], source: str
) -> tuple[list[str], str]:
    """Return the commands of the build, and the words for their source."""
    for values, origin in ((inventory, "app_build"), (committed, source)):
        if (commands := values.get("build", AUTO)) != AUTO:
            return commands, origin
    return detect.collectstatic(folder), "Django with STATIC_ROOT"


def build_settings(inventory: Mapping[str, Any], committed: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables that only the commands of the build get."""
    return inventory.get("build_settings") or committed.get("build_settings") or {}


def table(tree: Tree, path: str, name: str, sha: str) -> dict[str, Any]:
    """Return the content of a TOML file of the app's folder; empty if there is none."""
    file = posixpath.normpath(f"{path}/{name}")
    content = tree.read(file)
    if content is None:
        return {}
    try:
        return tomllib.loads(locks.text(content, f"{file} of commit {sha[:12]}"))
    except tomllib.TOMLDecodeError as error:
        raise BuildError(f"{file} of commit {sha[:12]} can't be read: {error}. Fix it, and commit.") from None


def own(tree: Tree, path: str, pyproject: Mapping[str, Any], sha: str) -> tuple[dict[str, Any], str]:
    """Return the app's own settings, `[tool.booty]` or booty.toml, and the name of their place.

    Raises:
        BuildError: both places have settings, a key is unknown, or a value is wrong.
    """
    tool = pyproject.get("tool", {})
    committed, source = tool.get("booty") if isinstance(tool, dict) else None, "[tool.booty] in pyproject.toml"
    if tree.read(posixpath.normpath(f"{path}/booty.toml")) is not None:
        if committed is not None:
            both = "booty.toml and [tool.booty] in pyproject.toml"
            raise BuildError(f"Commit {sha[:12]} has both {both}. Keep one of them, and commit.")
        committed, source = table(tree, path, "booty.toml", sha), "booty.toml"
    of = f"of commit {sha[:12]}"
    if not isinstance(committed, dict):
        if committed is not None:
            raise BuildError(f"tool.booty in pyproject.toml {of} is no table. Write [tool.booty], and keys below it.")
        return {}, source
    for name, value in committed.items():
        if name not in KEYS:
            raise BuildError(f"{source} {of} has the unknown key {name}. Booty reads {', '.join(KEYS)}.")
        if name in (*COMMANDS, "build") and isinstance(value, str):
            value = committed[name] = [value]  # noqa: PLW2901
        empty = KEYS[name]
        kind = {str: "a text", bool: "true or false", list: "a list of texts", dict: "a table"}[type(empty)]
        right = type(value) is type(empty) and (
            not isinstance(value, list) or all(isinstance(each, str) for each in value)
        )
        if not right:
            raise BuildError(f"{source} {of}: {name} is {value!r}. Write {kind}.")
        if name in HEALTH:
            pattern, write = HEALTH[name]
            if value and not re.fullmatch(pattern, value):
                raise BuildError(f"{source} {of}: {name} is {value!r}. Write {write}.")
            continue
        try:
            committed[name] = convert(f"app_{name}", value)
        except ValueError as error:
            shown = "has a wrong entry" if isinstance(value, dict) else f"is {value!r}"
            raise BuildError(f"{source} {of}: {name} {shown}. Write {error}.") from None
    return committed, source


def state_paths(folder: detect.Folder, paths: list[str]) -> list[str]:
    """Return the state paths in their normal form: a slash at the end marks a folder.

    Raises:
        BuildError: a path leads out of the app's folder, through a link, or into another one.
    """
    states: list[str] = []
    for path in paths:
        plain = posixpath.normpath(path)
        parts = plain.split("/")
        if path.startswith("/") or parts[0] in {"..", "."} or not plain.isprintable():
            raise BuildError(
                f"app_state_paths: '{path}' is no path below the app's folder. Write one such as media/ or db.sqlite3."
            )
        if "__pycache__" in parts:
            raise BuildError(
                f"app_state_paths: '{path}' would hold bytecode, which belongs to a release. Leave it out."
            )
        for parent in ("/".join(parts[: index + 1]) for index in range(len(parts))):
            entry = folder.tree.entries.get(posixpath.normpath(f"{folder.path}/{parent}"))
            if entry and entry[0] == LINK:
                raise BuildError(f"app_state_paths: '{path}' leads through the link {parent}. Name its target instead.")
            if entry and parent != plain:
                raise BuildError(f"app_state_paths: '{path}' leads through {parent}, which is a file in the commit.")
        is_folder = any(name.startswith(f"{plain}/") for name in folder.files)
        if path.endswith("/") and plain in folder.files:
            raise BuildError(f"app_state_paths: '{path}' is a file in the commit. Write it without the slash: {plain}")
        code = sorted(name for name in folder.files if f"{name}/".startswith(f"{plain}/") and name.endswith(".py"))
        if code:
            raise BuildError(
                f"app_state_paths: '{path}' has code in the commit, {code[0]}: the code of the first release would stay"
                " for all. Name the files that the app writes."
            )
        states.append(f"{plain}/" if is_folder or path.endswith("/") else plain)
    for one in states:
        for other in states:
            if one is not other and f"{other.rstrip('/')}/".startswith(f"{one.rstrip('/')}/"):
                raise BuildError(f"app_state_paths has both {one} and {other}, which lies in it. Remove one of them.")
    return states
