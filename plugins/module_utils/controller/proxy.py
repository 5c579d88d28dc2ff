"""The proxy of a host: what an app asks of it, and the calls of the host program's second package."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from . import host_program
from .domains import normal
from .host_program import HostProgramAction

ROLE = Path(__file__).parents[3] / "roles" / "proxy"
# The variables of an app that its `Site` on the host has, without `app_`.
FIELDS = (
    *("domains", "domain_redirects", "certificate", "acme_url", "acme_email", "hsts_seconds", "body_max"),
    *("client_connections", "trusted_proxies", "maintenance_allow"),
)
MAIN = "from booty_proxy.__main__ import main\nraise SystemExit(main())\n"


def program() -> bytes:
    """Return the host program's both packages as a zip archive, which Python can also run as a file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in (host_program.ROLE / "files/booty_host", ROLE / "files/booty_proxy"):
            for path in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"):
                archive.write(path, str(path.relative_to(package.parent)))
        archive.writestr("__main__.py", MAIN)
    return buffer.getvalue()


def site(options: dict[str, Any], peers: list[str]) -> dict[str, Any]:
    """Return the fields of an app's `Site` on the host.

    Args:
        options: the options of the role app, in their types.
        peers: the addresses of the other hosts with the same names.

    Raises:
        AnsibleActionFail: the page for maintenance can't be read.
    """
    fields = {name: options[f"app_{name}"] for name in FIELDS if f"app_{name}" in options}
    for name in ("domains", "domain_redirects"):
        fields[name] = [*map(normal, fields[name])]
    page = options["app_maintenance_page"]
    try:
        text = Path(page).read_text() if page else ""
    except (OSError, UnicodeError) as error:
        raise AnsibleActionFail(f"app_maintenance_page: {page} can't be read: {error}") from error
    return {**fields, "name": options["app_name"], "maintenance_page": text, "peers": peers}


def sentences(answer: dict[str, Any]) -> list[str]:
    """Return what a person should know of an answer: after a change the names and their certificates; the notices."""
    ends = answer.get("until", {}) if answer.get("changed") else {}
    names = ", ".join(f"{name} (certificate until {end})" for name, end in ends.items())
    return [*([f"HTTPS for {names}"] if names else []), *answer.get("notices", [])]


class ProxyAction(HostProgramAction):
    """Bring the proxy of a host to what its apps ask for, or close an app for maintenance."""

    package = "booty_proxy"
    code = program()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the host's answer; `msg` has its sentences."""
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "state": {"type": "str", "choices": ["present", "absent", "closed", "open"], "default": "present"},
            }
        )
        state, options = arguments["state"], self.options(task_vars, complete=False)
        name = options["app_name"]
        if state in {"closed", "open"}:
            return {**result, **self.call("maintenance", {"name": name, "on": state == "closed"})}
        wanted = site(options, self.peers(task_vars or {})) if state == "present" else None
        answer = self.call("apply", {"site": wanted, "remove": "" if wanted else name})
        result |= answer
        if found := sentences(answer):
            where = (task_vars or {})["inventory_hostname"]
            result["msg"] = "\n".join(f"{where}: {sentence}" for sentence in found)
            result["_ansible_verbose_always"] = True
        return result

    @staticmethod
    def peers(task_vars: dict[str, Any]) -> list[str]:
        """Return the addresses of the other hosts of the group."""
        own = task_vars["inventory_hostname"]
        others = [host for host in task_vars["groups"].get("booty", []) if host != own]
        return [str(task_vars["hostvars"][host].get("ansible_host", host)) for host in others]
