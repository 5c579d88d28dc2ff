"""Build a release on the controller, and send the archives that a host lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from . import screen
from .build import build
from .command import INDENT
from .host_program import RUN, HostProgramAction
from .lock import Host
from .process import BuildError
from .steps import Steps

# An archive of at most this many bytes is sent with the call, without a transfer of its own. Most releases are smaller.
SMALL = 1_000_000


class StageAction(HostProgramAction):
    """Build a `release` for the Python and machine in the answer of a `host`, and stage it on the host."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the archive that the cutover has to bring as `brought`, if any.

        With a single host, a release under 1 MB is sent with the cutover call and not staged here, unless `at_once`.
        """
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "release": {"type": "str", "required": True},
                "description": {"type": "dict", "required": True},
                "host": {"type": "dict", "required": True},
                "at_once": {"type": "bool", "default": False},
            }
        )
        host, options = arguments["host"], self.options(task_vars)
        try:
            built = build(
                Path(options["app_repository"]).resolve(),
                arguments["description"],
                arguments["release"],
                Host(host["python_full"], host["machine"]),
                Path(options["app_cache"]),
                options["app_name"],
                Steps(
                    options["app_settings"],
                    options["app_build_settings"],
                    options["app_config_dir"],
                    RUN,
                    lambda line: screen.write(f"{screen.CLEAR}{INDENT}{screen.harmless(line)}"),
                    self._task.check_mode,
                ),
            )
        except BuildError as error:
            raise AnsibleActionFail(str(error)) from None
        release = built["release"]
        if built["notices"]:
            result["warnings"] = [screen.harmless(notice) for notice in built["notices"]]
        if not release:
            return {**result, "changed": True}
        store = options["app_artifact_url"]
        # The layers are staged first, so every release on a host has its layers.
        lacking = [layer for layer in (built["layer"], built["runner"]) if layer["name"] not in host["layers"]]
        for layer in lacking:
            self._stage(layer, store, task_vars)
        alone = len((task_vars or {})["ansible_play_hosts_all"]) == 1
        if alone and not arguments["at_once"] and not store and release["size"] <= SMALL:
            return {**result, "changed": bool(lacking), "brought": release}
        self._stage(release, store, task_vars)
        return {**result, "changed": True}

    def _stage(self, part: dict[str, Any], store: str, task_vars: dict[str, Any] | None) -> None:
        arguments, attached = {"sha256": part["sha256"], "dest": part["dest"], "archive": "", "url": ""}, b""
        if store:
            # The store has the same folders as the cache.
            arguments["size"] = part["size"]
            arguments["url"] = "/".join([store.rstrip("/"), *Path(part["file"]).parts[-2:]])
        elif part["size"] <= SMALL:
            attached = Path(part["file"]).read_bytes()
        else:
            app = (task_vars or {})["app_name"]
            arguments["archive"] = f"/opt/{app}/incoming/{part['sha256']}.tar.gz"
            self._copy(part["file"], arguments["archive"], task_vars)
        answer = self.call("stage", arguments, attached)
        if answer.get("failed"):
            raise AnsibleActionFail(answer["msg"], result=answer)

    def _copy(self, source: str, dest: str, task_vars: dict[str, Any] | None) -> None:
        """Send a file to the host with the action ansible.builtin.copy; raise AnsibleActionFail when it failed."""
        task = self._task.copy()
        task.args = {"src": source, "dest": dest, "mode": "0600"}
        action = self._shared_loader_obj.action_loader.get(
            "ansible.legacy.copy",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        result: dict[str, Any] = action.run(task_vars=task_vars)
        if result.get("failed"):
            raise AnsibleActionFail(result["msg"], result=result)
