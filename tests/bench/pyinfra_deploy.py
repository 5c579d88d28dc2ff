"""The plainest deploy in pyinfra: ship, write two files, restart, check health. Its inputs are the data of a host."""

from pyinfra import host
from pyinfra.operations import files, server, systemd

data = host.data
release = f"/opt/booty/plain/{data.release}"

files.put(src=data.archive, dest=f"/opt/booty/plain/{data.release}.tar.gz")
server.shell(
    commands=[
        f"test -d {release} || (mkdir -p {release} && tar -xzf /opt/booty/plain/{data.release}.tar.gz -C {release})"
    ]
)
pointer = files.put(src=data.pointer, dest="/opt/booty/plain/release.env", mode="644")
unit = files.put(src=data.unit, dest="/etc/systemd/system/plain.service", mode="644")
systemd.service(
    service="plain.service",
    running=True,
    enabled=True,
    restarted=pointer.will_change or unit.will_change,
    daemon_reload=unit.will_change,
)
server.shell(commands=[data.health])
