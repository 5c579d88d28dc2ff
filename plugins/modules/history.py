"""The documentation of the action `booty.deploy.history`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: history
short_description: Show the last deploys of all hosts as one screen
description: Fails when a host gave no answer.
author: The Booty authors
options:
  answers:
    type: dict
    required: true
    description: The results of M(booty.deploy.host_program) for the verb V(history), by host.
  lines:
    type: int
    required: true
    description: The largest number of runs.
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
