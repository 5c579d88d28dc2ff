"""The FastAPI service that Booty deploys."""

from pydantic import BaseModel

__version__ = "0.1.0"

# FastAPI's models of OpenAPI are a sixth of the start: built when the docs are asked for. Not so the app's own. Here,
# since any module of this package may be the first that imports FastAPI.
BaseModel.model_config["defer_build"] = True
import fastapi  # noqa: E402, F401

del BaseModel.model_config["defer_build"]
