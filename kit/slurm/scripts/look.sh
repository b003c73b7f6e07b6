# shellcheck disable=SC2154 # $attempts is set before this text
umask 077
# enter FOLDER: a project folder that is missing is never created: it may be a disk that is not
# mounted, and without the symlinks on it a job could be submitted twice.
enter() {
    if [ -d "${1%/kit/tries*}" ]; then
        { [ -d "$1" ] || mkdir -p "$1"; } && cd "$1" && return
    fi
    echo "cannot use the folder $1" >&2; exit 74
}
# look ID...: print the symlinks and stored replies of the attempts, then the server's time.
look() {
    echo "@attempts"
    (cd "$attempts" && find "$@" -maxdepth 1 \( -type l -o -name reply \) \
        -printf '%h|%f|%T@|%l\n' 2>/dev/null
    # A submission looks at one attempt and waits for this: no process for its reply.
    if [ $# = 1 ] && cd "$attempts" && [ -r "$1/reply" ]; then
        mapfile -t lines <"$1/reply"; printf '%s\n' "${lines[@]/#/$1/reply:}"
    elif [ $# != 1 ]; then
        cd "$attempts" && exec grep -as '' /dev/null "${@/%//reply}"
    fi)
    printf '@now %(%s)T\n' -1
}
