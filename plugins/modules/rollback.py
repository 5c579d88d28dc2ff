"""The documentation of the action `booty.deploy.rollback`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: rollback
short_description: Plan a rollback, and report the hosts that did not go back
description: Fails before a change if no host can go back, or if hosts would go back to different releases.
author: The Booty authors
options:
  answers:
    type: dict
    required: true
    description: The results of M(booty.deploy.preflight), by host.
  cutovers:
    type: dict
    description: The results of M(booty.deploy.host_program) for the verb V(cutover), by host.
"""
