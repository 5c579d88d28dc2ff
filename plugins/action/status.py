"""The action `booty.deploy.status`; its documentation is plugins/modules/status.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.view import StatusAction as ActionModule

__all__ = ["ActionModule"]
