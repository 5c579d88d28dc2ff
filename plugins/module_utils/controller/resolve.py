"""Resolve a release to its commit, and describe the app in it, on the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from . import variables
from .describe import DESCRIBED, describe, unserved
from .git import dirty, is_top, normal, resolve, subject
from .process import BuildError

# Their names count for a description, and their values for a cutover.
PROGRAMS = ("app_processes", "app_timers")


class ResolveAction(ActionBase):
    """The action `booty.deploy.resolve`."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `release`, the 40 characters of the commit; with `describe` also `description`, and a message."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "repository": {"type": "path", "required": True},
                "path": {"type": "str", "required": True},
                "release": {"type": "str", "required": True},
                "describe": {"type": "bool", "default": False},
                "quiet": {"type": "bool", "default": False},
            },
        )
        repository = Path(arguments["repository"]).resolve()
        try:
            path = normal(arguments["path"])
            has_work_tree = is_top(repository, path)
            sha = resolve(repository, arguments["release"])
            if arguments["release"] == "HEAD" and has_work_tree and dirty(repository, path):
                result["warnings"] = [
                    f"{repository / path} has changes that are not committed;"
                    f" commit {sha[:12]} is deployed without them."
                ]
            if arguments["describe"]:
                result["description"] = describe(repository, sha, path, self._inventory(task_vars or {}))
                if not arguments["quiet"]:
                    lines = [subject(repository, sha), *result["description"]["found"]]
                    result["msg"] = "\n".join(lines)
                    domains = self._templar.template((task_vars or {}).get("app_domains", []))
                    if sentence := unserved(repository, sha, result["description"], domains):
                        result["warnings"] = [*result.get("warnings", []), sentence]
                    result["_ansible_verbose_always"] = True
        except BuildError as error:
            raise AnsibleActionFail(str(error)) from None
        return {**result, "release": sha, "changed": False}

    def _inventory(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the keys of a description that the inventory or the command line sets, in their types."""
        names = [name for name in (*DESCRIBED, *PROGRAMS) if name in task_vars]
        templated = self._templar.template({name: task_vars[name] for name in names})
        values = {name: variables.convert(name, value) for name, value in templated.items()}
        starts = [name for variable in PROGRAMS for name in values.pop(variable, ())]
        return {**{name.removeprefix("app_"): value for name, value in values.items()}, "starts": starts}
