"""The action `booty.deploy.watch`; its documentation is plugins/modules/watch.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.watch import WatchAction as ActionModule

__all__ = ["ActionModule"]
