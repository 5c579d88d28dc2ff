"""The action `booty.deploy.proxy`; its documentation is plugins/modules/proxy.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.proxy import ProxyAction as ActionModule

__all__ = ["ActionModule"]
