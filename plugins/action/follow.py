"""The action `booty.deploy.follow`; its documentation is plugins/modules/follow.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.logs import FollowAction as ActionModule

__all__ = ["ActionModule"]
