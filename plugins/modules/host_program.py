"""The documentation of the action `booty.deploy.host_program`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: host_program
short_description: Call the host program on a host
description: Sends the program and the call over standard input. A cutover continues when the connection ends.
author: The Booty authors
options:
  verb:
    type: str
    required: true
    description: V(info), V(cutover), V(status), V(remove) or V(take_back). Each has options of its own.
"""

RETURN = """
state:
  description: The state of the host after a cutover.
  returned: success
  type: raw
"""
