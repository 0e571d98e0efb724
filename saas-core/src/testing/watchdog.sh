# Runs one PostgreSQL server for as long as its standard input stays open, then removes every trace of it.
#
# The only write end of standard input belongs to the process that wants the server. However that process ends, the
# kernel closes it, so this script needs no signal, no timer and no help from its owner to notice.
#
# Arguments: home directory, path of initdb, its options as one word list, path of postgres, then the server's settings.
# Input: one port per line; a line starts the server on that port (another one follows when the port was taken).
# Files in the home directory: log, pid (of the server), exited (the server, or initdb, has ended).
trap '' HUP INT TERM
umask 077
home=$1 initdb=$2 initdb_options=$3 postgres=$4
shift 4
started=

start() {
    rm -f pid exited
    # shellcheck disable=SC2016 # expanded by the inner shell
    { sh -c 'echo $$ >pid; exec "$@"' sh "$postgres" -D "$home/data" -h 127.0.0.1 -p "$@" </dev/null; echo $? >exited; } &
    started=yes
}

# Fast shutdown for 5 s, immediate shutdown for 5 s, then the kernel's.
stop() {
    tries=0
    while [ ! -e exited ] && [ -d "$home" ] && [ "$tries" -lt 240 ]; do
        if [ "$tries" -lt 100 ]; then signal=INT; elif [ "$tries" -lt 200 ]; then signal=QUIT; else signal=KILL; fi
        [ -e pid ] && kill -s "$signal" "$(cat pid)" 2>/dev/null
        sleep 0.05 2>/dev/null || sleep 1
        tries=$((tries + 1))
    done
}

# shellcheck disable=SC2086 # a word list
if "$initdb" $initdb_options -D "$home/data" </dev/null; then
    while read -r port; do start "$port" "$@"; done
else
    echo initdb >exited
    while read -r _; do :; done
fi
[ -n "$started" ] && stop
cd / && rm -rf "$home"
