"""The commands that messages name: a playbook with the inventory and the app of this run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ansible import constants as C
from ansible import context
from jinja2 import pass_context

# A pattern for `hosts:` that matches no host and gives no warning.
NO_HOST = "localhost:!localhost"
# A command without the options of a run.
COMMAND = re.compile(r"ansible-playbook (\w+)\.yml(?! -i | -e app=)")


@pass_context
def playbook(variables: Mapping[str, Any], verb: str) -> str:
    """Return the command that runs a verb as this run was started, with `-i` and `-e app=NAME`.

    Args:
        variables: Ansible's variables, of which `app` counts.
        verb: the name of a playbook, without its extension.
    """
    this, *_ = context.CLIARGS.get("args") or ("",)
    collection, dot, name = this.rpartition(".")
    # Another name is that of a playbook of the collection: `ansible-playbook booty.deploy.deploy`.
    is_file = not dot or name == "yml"
    words = [os.path.join(os.path.dirname(this), f"{verb}.yml") if is_file else f"{collection}.{verb}"]
    sources = [*(context.CLIARGS.get("inventory") or ())]
    if sources != [*C.DEFAULT_HOST_LIST]:
        words += [word for source in sources for word in ("-i", _shown(source))]
    if variables.get("app") is not None:
        words += ["-e", f"app={variables['app']}"]
    return shlex.join(["ansible-playbook", *words])


def completed(text: str, variables: Mapping[str, Any]) -> str:
    """Return a message with the options of this run in each command."""
    return COMMAND.sub(lambda match: playbook(variables, match[1]), text)


def _shown(source: str) -> str:
    """Return the name of an inventory for a command that is typed in this folder; Ansible has made it absolute."""
    relative = os.path.relpath(source)
    return source if "," in source or relative.startswith("..") else relative
