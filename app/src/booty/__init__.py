"""The FastAPI service that Booty deploys."""

from pydantic import BaseModel

__version__ = "0.1.0"

# Building FastAPI's OpenAPI models takes a sixth of the start, so pydantic defers that to the first request for the
# docs. The app's own models are not deferred. This is here because any module of this package may import FastAPI first.
BaseModel.model_config["defer_build"] = True
import fastapi  # noqa: E402, F401

del BaseModel.model_config["defer_build"]
