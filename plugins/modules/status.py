"""The documentation of the action `booty.deploy.status`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: status
short_description: Show the answers of all hosts as one screen
description: Fails when a host is broken, drifts, or when the hosts of an environment serve several releases.
author: The Booty authors
options:
  answers:
    type: dict
    required: true
    description: The results of M(booty.deploy.host_program) for the verb V(status), by host.
  format:
    type: str
    description: V(table), V(json) or V(html).
  file:
    type: path
    description: The file that the screen is written to. Without it, the standard output.
"""

RETURN = """
screen:
  description: The text of the screen.
  returned: success
  type: raw
"""
