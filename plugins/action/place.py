"""The action `booty.deploy.place`; its documentation is plugins/modules/place.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.places import PlaceAction as ActionModule

__all__ = ["ActionModule"]
