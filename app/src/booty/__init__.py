"""The FastAPI service that Booty deploys."""

__version__ = "0.1.0"
