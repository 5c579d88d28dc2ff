"""The action `booty.deploy.history`; its documentation is plugins/modules/history.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.history import HistoryAction as ActionModule

__all__ = ["ActionModule"]
