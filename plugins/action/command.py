"""The action `booty.deploy.command`; its documentation is plugins/modules/command.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.command import CommandAction as ActionModule

__all__ = ["ActionModule"]
