"""The documentation of the action `booty.deploy.follow`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: follow
short_description: Show the new lines of a host until the run is ended
description: Asks the host again after each answer. A host that can't be reached any more is asked every five seconds.
author: The Booty authors
options:
  after:
    type: str
    required: true
    description: The place of the last line that was shown, from an answer to the verb V(logs).
  process:
    type: str
    description: The process whose lines are shown; all processes without it.
"""
