"""The action `booty.deploy.rollback`; its documentation is plugins/modules/rollback.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.rollback import RollbackAction as ActionModule

__all__ = ["ActionModule"]
