"""The documentation of the action `booty.deploy.stage`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: stage
short_description: Build a release on the controller, and send the archives that a host lacks
description: Uses an artifact in the cache without a build, and sends no layer that the host has.
author: The Booty authors
options:
  release:
    type: str
    required: true
    description: The commit.
  at_once:
    type: bool
    description: Whether the release must be on the host before the cutover.
  description:
    type: dict
    required: true
    description: The RV(booty.deploy.resolve#module:description) that resolve returned.
  host:
    type: dict
    required: true
    description: The RV(booty.deploy.preflight#module:host) that preflight returned.
"""

RETURN = """
brought:
  description: The archive that the cutover has to send.
  returned: success
  type: raw
"""
