"""Load the variables of an app, which `-e app=NAME` chooses, from `apps/NAME.yml` beside the inventory's hosts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ansible import context as command_line
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from jinja2.runtime import Context


def described() -> dict[str, Path]:
    """Return the `apps/NAME.yml` files of the run's inventories, by the app's name."""
    sources = [Path(source) for source in command_line.CLIARGS.get("inventory") or () if "," not in source]
    folders = [(source if source.is_dir() else source.parent) / "apps" for source in sources]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yml"))}


def chosen(context: Context) -> str | None:
    """Return NAME of `-e app=NAME`; None without this option."""
    name = context.get("app")
    return None if name is None else str(name)


def load(context: Context, hosts: list[str], known: set[str]) -> Iterator[str]:
    """Set the variables of the chosen app on all hosts, or yield the problems.

    The variables have the precedence of `set_fact`: they override the inventory, and `-e` overrides them.
    `vars_files:` of a play can't replace this function: `hostvars` and `serial:` do not see the variables of a play.

    Args:
        context: the variables of the play.
        hosts: the hosts of the run.
        known: the names of all variables that the roles have.
    """
    name, files = chosen(context), described()
    names = ", ".join(sorted(files))
    if name is None:
        if files and not context.get("__app_every"):
            yield f"The inventory describes several apps: {names}. Choose one: -e app={min(files)}"
        return
    if name not in files:
        others = f"; there are: {names}" if files else ""
        yield f"-e app={name}: no inventory of this run has a file apps/{name}.yml beside its hosts{others}."
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
    """Yield a problem for each unknown variable in an app's file, and for an app_name that is not the file's name."""
    for variable in variables:
        if variable.startswith(("app_", "host_")) and variable not in known:
            hint = similar(variable, known) or " See: ansible-doc -t role booty.deploy.app"
            yield f"{file}: Booty has no variable {variable}.{hint}"
    if variables.get("app_name", name) != name:
        yield f"{file}: app_name is {variables['app_name']}, and the file says {name}. Remove the line."


def similar(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the known name that a name resembles; "" if there is none."""
    found = get_close_matches(name, known, n=1, cutoff=0.8)
    return f" Did you mean {found[0]}?" if found else ""


def clashing(context: Context, ports: set[int]) -> Iterator[str]:
    """Yield a problem for each other app of the inventory that has the port of the chosen one.

    With --limit there is none: the apps may be on different hosts. Each host finds who has its port in any case.

    Args:
        context: the variables of the play.
        ports: the ports that the chosen app has on the hosts of the run.
    """
    name, files = chosen(context), described()
    if name not in files or context.get("ansible_limit"):
        return
    set_here = {*context["hostvars"]._variable_manager.extra_vars, *_read(files[name])}
    for other, file in files.items():
        # Two apps without a port of their own have that of the inventory.
        port = _read(file).get("app_port", None if "app_port" in set_here else min(ports, default=None))
        if other != name and str(port) in {*map(str, ports)}:
            yield (
                f"{name} and {other} both have app_port {port}, and each run of an app works on all hosts. Write"
                f" another one in {files[name]}, or choose hosts that {other} is not on: --limit"
            )


def _read(file: Path) -> dict[str, Any]:
    """Return the variables of an app's file; none if it can't be read, which a run of that app says."""
    try:
        variables = DataLoader().load_from_file(str(file), trusted_as_template=True)
    except AnsibleError:
        return {}
    return variables if isinstance(variables, dict) else {}
