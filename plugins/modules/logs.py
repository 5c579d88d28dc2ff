"""The documentation of the action `booty.deploy.logs`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: logs
short_description: Show the lines of all hosts, merged by time
description: Fails when a host gave no answer, unless the hosts are followed next.
author: The Booty authors
options:
  answers:
    type: dict
    required: true
    description: The results of M(booty.deploy.host_program) for the verb V(logs), by host.
  follow:
    type: bool
    description: Whether M(booty.deploy.follow) shows new lines next.
"""

RETURN = """
screen:
  description: The lines.
  returned: success
  type: str
"""
