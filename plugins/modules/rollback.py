"""The documentation of the action `booty.deploy.rollback`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: rollback
short_description: Plan a rollback, and report the hosts that did not go back
description:
  - >-
    Fails before any host is changed when no host can go back, or when hosts would go back to different releases.
author: The Booty authors
options:
  answers:
    type: dict
    required: true
    description:
      - >-
        What M(booty.deploy.preflight) returned, by host.
  cutovers:
    type: dict
    description:
      - >-
        What M(booty.deploy.host_program) returned to the verb V(cutover), by host.
"""
