"""The documentation of the action `booty.deploy.place`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: place
short_description: Choose the host of the processes and timers that one host alone has
description: They stay on the host that has them. A new one goes to the first host of the group.
author: The Booty authors
options:
  answers:
    type: dict
    required: true
    description: The results of M(booty.deploy.preflight), by host.
  description:
    type: dict
    description: The description of the app in the commit. Without it, the manifest of each host's release counts.
"""
