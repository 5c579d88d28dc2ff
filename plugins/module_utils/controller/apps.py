"""Several apps in one inventory: `apps/NAME.yml` beside its hosts describes an app, and `-e app=NAME` chooses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import context as command_line
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from jinja2.runtime import Context


def described() -> dict[str, Path]:
    """Return the file of each app that the inventories of the run describe, by the app's name."""
    sources = [Path(source) for source in command_line.CLIARGS.get("inventory") or () if "," not in source]
    folders = [(source if source.is_dir() else source.parent) / "apps" for source in sources]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yml"))}


def chosen(context: Context) -> str | None:
    """Return the app that `-e app=NAME` chooses; None without it."""
    name = context.get("app")
    return None if name is None else str(name)


def load(context: Context, hosts: list[str], known: set[str]) -> Iterator[str]:
    """Set the variables of the chosen app on all hosts, or say why that can't be done.

    The variables have the precedence of `set_fact`: they go before everything in the inventory, and `-e` goes before
    them. No play could say `vars_files:` for that, since `hostvars` and `serial:` do not see the variables of a play.

    Args:
        context: the variables of the play.
        hosts: the hosts of the run.
        known: the names of all variables of the roles.
    """
    name, files = chosen(context), described()
    names = ", ".join(sorted(files))
    if name is None:
        if files and not context.get("__app_every"):
            yield f"The inventory describes several apps: {names}. Choose one: -e app={min(files)}"
        return
    if name not in files:
        where = f"; there are: {names}" if files else ""
        yield f"-e app={name}: no inventory of this run has a file apps/{name}.yml beside its hosts{where}."
        return
    try:
        variables = DataLoader().load_from_file(str(files[name]), trusted_as_template=True)
    except AnsibleError as error:
        yield f"{files[name]} can't be read: {error.message}"
        return
    if not isinstance(variables, dict):
        yield f"{files[name]} is no mapping: write variables, such as app_port: 8001"
        return
    yield from misplaced(files[name], name, variables, known)
    for host in hosts:
        context["hostvars"]._variable_manager.set_nonpersistent_facts(host, {"app_name": name, **variables})


def misplaced(file: Path, name: str, variables: dict[str, Any], known: set[str]) -> Iterator[str]:
    """Say which variables of an app's file Booty does not know, and that the app has another name than its file."""
    for variable in variables:
        if variable.startswith(("app_", "host_")) and variable not in known:
            yield f"{file}: Booty has no variable {variable}. See: ansible-doc -t role booty.deploy.app"
    if variables.get("app_name", name) != name:
        yield f"{file}: app_name is {variables['app_name']}, and the file says {name}. Remove the line."
