"""Run the runner's command with its sockets at the descriptors where systemd puts them."""

import fcntl
import json
import logging
import os

from booty_runner.__main__ import main

fds = json.loads(os.environ.pop("TEST_FDS"))
for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds], start=3):
    os.dup2(fd, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
status = main()
logging.shutdown()
os._exit(status)  # the end of booty_runner.__main__
