"""The documentation of the action `booty.deploy.host_program`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: host_program
short_description: Call the host program on a host
description: Sends the program and the call over standard input. A cutover goes on when the connection ends.
author: The Booty authors
options:
  verb:
    type: str
    required: true
    description: V(info), V(cutover), V(status) or V(take_back). Each has options of its own.
"""

RETURN = """
state:
  description: The state that the host is in, after a cutover.
  returned: success
  type: raw
"""
