"""The action `booty.deploy.stage`; its documentation is plugins/modules/stage.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.stage import StageAction as ActionModule

__all__ = ["ActionModule"]
