"""What Booty does on a host. The controller sends it there with each call; it needs nothing but the host's Python."""
