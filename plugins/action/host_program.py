"""The action `booty.deploy.host_program`; its documentation is plugins/modules/host_program.py."""

from ansible_collections.booty.deploy.plugins.module_utils.controller.host_program import (
    HostProgramAction as ActionModule,
)

__all__ = ["ActionModule"]
