"""The ASGI app of web.py under a server with shorter times."""

import os

import web

from booty_runner import protocol, server

protocol.HEAD_SECONDS = float(os.environ["TEST_HEAD"])
server.KEEP_ALIVE_SECONDS = int(os.environ["TEST_KEEP_ALIVE"])
asgi = web.asgi
