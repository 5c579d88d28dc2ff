"""Booty's program on a host. The controller sends it with each call; it needs only the host's Python."""


class HostError(Exception):
    """The host can't do what the call asks for; the message says why, and what to do next."""
