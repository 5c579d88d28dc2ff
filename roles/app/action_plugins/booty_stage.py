"""Build a release on the controller and put what a host lacks of it there: one step instead of five."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# What is smaller travels with the call instead of in a transfer of its own; a release is usually a few kilobytes.
SMALL = 1_000_000


class ActionModule(ActionBase):
    """Build a release and stage it.

    Takes the arguments of `booty_artifact`'s build; the `layers` that the host has; the address of a `store` with a
    copy of the cache, from which the host fetches what it lacks, or none; and whether the host is `alone`.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what `booty_artifact` does, and as `brought` what is left for the cutover to bring along.

        That is the small release of a lone host, which has no other to wait for.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        wanted = dict(self._task.args)
        layers, store, alone = (wanted.pop(name) for name in ("layers", "store", "alone"))
        built = self._act("booty_artifact", task_vars, **wanted)
        release, layer = built["release"], built["layer"]
        # The layer first: a release that is there has its layer.
        lacks_layer = layer["name"] not in layers
        if lacks_layer:
            self._stage(layer, store, task_vars)
        if alone and not store and release["size"] <= SMALL:
            return {**result, **built, "changed": lacks_layer, "brought": release}
        self._stage(release, store, task_vars)
        return {**result, **built, "changed": True}

    def _stage(self, part: dict[str, Any], store: str, task_vars: dict[str, Any] | None) -> None:
        wanted = {"verb": "stage", "sha256": part["sha256"], "dest": part["dest"]}
        if store:
            # It has the place there that it has in the cache.
            wanted["url"] = "/".join([store.rstrip("/"), *Path(part["file"]).parts[-2:]])
        elif part["size"] <= SMALL:
            wanted["attach"] = part["file"]
        else:
            wanted["archive"] = f"/opt/booty/incoming/{part['sha256']}.tar.gz"
            self._act("ansible.legacy.copy", task_vars, src=part["file"], dest=wanted["archive"], mode="0600")
        self._act("booty_host", task_vars, **wanted)

    def _act(self, name: str, task_vars: dict[str, Any] | None, **arguments: Any) -> dict[str, Any]:
        """Run another action on the same host, and return its result; raise AnsibleActionFail with it if it failed."""
        task = self._task.copy()
        task.args = arguments
        action = self._shared_loader_obj.action_loader.get(
            name,
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
        return result
