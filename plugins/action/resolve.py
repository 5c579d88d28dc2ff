"""The action `booty.deploy.resolve`; its documentation is plugins/modules/resolve.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.resolve import ResolveAction as ActionModule

__all__ = ["ActionModule"]
