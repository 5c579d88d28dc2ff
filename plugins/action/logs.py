"""The action `booty.deploy.logs`; its documentation is plugins/modules/logs.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.logs import LogsAction as ActionModule

__all__ = ["ActionModule"]
