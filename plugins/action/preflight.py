"""The action `booty.deploy.preflight`; its documentation is plugins/modules/preflight.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.judge import PreflightAction as ActionModule

__all__ = ["ActionModule"]
