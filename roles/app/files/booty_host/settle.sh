# Settle which of two processes is the service, after the candidate began to take the service's place.
#
# systemd runs this script as root whenever the candidate's unit stops: at the end of a handover, and when the host
# program dies within one. /run/NAME/handover holds the PIDs of the old main process and of the candidate's. systemd
# decides which one is the service (MainPID of NAME.service); release.env decides which release may be.
#
# Arguments: the app's name, and how long to wait for the end of the other process, in seconds.
app=$1 bound=$2 handover=/run/$1/handover
test -e "$handover" || exit 0 # no handover: this is an ordinary stop of a candidate
read -r old new <"$handover"
test "$old" -gt 1 && test "$new" -gt 1 || exit 1

main_process() { systemctl show --property=MainPID --value "$app.service"; }
group_of() { systemctl show --property=ControlGroup --value "$1"; }
candidate=$(group_of "$app-candidate.service") service=$(group_of "$app.service")

# Whether a process is another one, or descends from it.
belongs() {
    pid=$1
    while test "${pid:-0}" -gt 1; do
        test "$pid" != "$2" || return 0
        parent=0
        while read -r key value; do
            case $key in PPid:) parent=$value && break ;; esac
        done 2>/dev/null <"/proc/$pid/status"
        pid=$parent
    done
    return 1
}

# Move processes to a control group; one that has ended meanwhile is left out.
move() {
    group=/sys/fs/cgroup$1/cgroup.procs && shift
    for pid in "$@"; do echo "$pid" >"$group"; done 2>/dev/null
}

members() { cat "/sys/fs/cgroup$1/cgroup.procs"; }

# The processes in the candidate's group that belong to a process.
family() { for each in $(members "$candidate"); do belongs "$each" "$1" && echo "$each"; done; }

# Whether a process has every assignment of release.env in its environment. sed removes the quotes around a value, which
# parse_pointer() in files.py describes.
serves_pointer() {
    # A process can enlarge its environment beyond what a start can have: ENVIRON in processes.py.
    environment=$(head -c 2097152 2>/dev/null <"/proc/$1/environ" | tr '\0' '\n')
    pointer=$(sed "s/'\"'\"'/\\n/g; s/'//g; s/\\n/'/g" "/etc/$app/release.env") || return 1
    while IFS= read -r line; do
        case $line in '' | '#'* | ';'*) continue ;; esac
        printf '%s\n' "$environment" | grep -qxF -e "$line" || return 1
    done <<END
$pointer
END
}

# Whether a process is alive and belongs to the app: its PID may belong to another program by now.
alive() {
    grep -qs '^State:.[^ZX]' "/proc/$1/status" && grep -qsxF -e "0::$candidate" -e "0::$service" "/proc/$1/cgroup"
}

main=$(main_process)
if test -n "$candidate" && test -n "$service"; then
    if test "$main" = "$new"; then
        # Move the old process and its children first, then the new ones: the two processes change places.
        move "$candidate" $(members "$service")
        move "$service" $(family "$new")
        for pid in $(members "$service"); do echo 0 >"/proc/$pid/oom_score_adj"; done
    elif test "$main" = "$old"; then
        move "$service" $(family "$old")
    fi
fi
if ! serves_pointer "$main"; then
    # The other process answers meanwhile, and drains below.
    systemctl restart "$app.service"
elif test "$main" = "$new" || test "$main" = "$old"; then
    kill -USR2 "$main" # it is the service, and accepts
fi
main=$(main_process)
rm "$handover"
for pid in "$old" "$new"; do
    test "$pid" = "$main" || ! alive "$pid" || kill -TERM "$pid"
done
# When this script ends, systemd kills all processes in the candidate's group.
for pid in "$old" "$new"; do
    while test "$pid" != "$main" && alive "$pid" && test "$bound" -gt 0; do
        timeout 1 tail --pid="$pid" --sleep-interval=0.01 --follow /dev/null # it ends with the process
        bound=$((bound - 1))
    done
done
