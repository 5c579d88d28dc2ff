"""The documentation of the action `booty.deploy.command`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: command
short_description: Run commands of a release in the service's sandbox, and show their output while it comes
author: The Booty authors
options:
  kind:
    type: str
    required: true
    choices: [run, release, post-deploy]
    description: V(run) runs one command on the running release. It ends with the controller, and its failure fails no
      task. The other kinds run the commands of O(release) once, to their end.
  commands:
    type: list
    elements: str
    required: true
    description: The commands, for /bin/sh.
  release:
    type: str
    description: The commit whose commands they are.
  seconds:
    type: int
    description: How long they may take together.
  known:
    type: list
    elements: dict
    description: The records of commands that the hosts of the run have.
  seen:
    type: dict
    description: The state of the host when the release was judged.
  wait:
    type: int
    description: How long to wait for another run on the host.
"""

RETURN = """
status:
  description: The exit status.
  returned: success
  type: int
commands:
  description: The records of the commands that ran.
  returned: if the kind is not V(run)
  type: list
"""
