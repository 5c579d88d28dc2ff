"""The documentation of the action `booty.deploy.stage`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: stage
short_description: Build a release on the controller, and send the archives that a host lacks
description:
  - >-
    An artifact that the cache has is not built again, and a layer that the host has is not sent again.
author: The Booty authors
options:
  release:
    type: str
    required: true
    description:
      - >-
        The commit.
  host:
    type: dict
    required: true
    description:
      - >-
        The RV(booty.deploy.preflight#module:host) that preflight returned.
"""

RETURN = """
brought:
  description:
    - >-
      The archive that the cutover is to bring along.
  returned: success
  type: raw
"""
