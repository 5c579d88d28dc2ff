"""The action `booty.deploy.register`; its documentation is plugins/modules/register.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.register import RegisterAction as ActionModule

__all__ = ["ActionModule"]
