#!/bin/sh
# The floor: the same deploy as one shell script over one connection. Arguments: ssh's, then --, the archive, the release.
set -eu
ssh_arguments=
while [ "$1" != "--" ]; do ssh_arguments="$ssh_arguments $1"; shift; done
archive=$2 release=$3 pointer=$4 unit=$5 health=$6
# shellcheck disable=SC2086 # they are words
tar -cf - -C / "${archive#/}" "${pointer#/}" "${unit#/}" | ssh $ssh_arguments "
set -eu
work=\$(mktemp -d)
tar -xf - -C \$work
cmp -s \$work$unit /etc/systemd/system/plain.service || reload=1
if [ \"\${reload:-}\" ]; then cp \$work$unit /etc/systemd/system/plain.service; systemctl daemon-reload; fi
if ! cmp -s \$work$pointer /opt/booty/plain/release.env; then
    mkdir -p /opt/booty/plain/$release
    tar -xzf \$work$archive -C /opt/booty/plain/$release
    cp \$work$pointer /opt/booty/plain/release.env
    restart=1
fi
rm -rf \$work
if [ \"\${restart:-}\${reload:-}\" ]; then systemctl restart plain.service; fi
$health
"
