# shellcheck shell=bash disable=SC2154
# A container has neither the site's Slurm nor its ssh: `srun`, `scontrol` and `ssh` in
# $attempt/outside ask this side of the job to run them. A call is a folder with its words, a pipe
# each for stdin, stdout, stderr and the exit code, and one that the caller holds open: when the
# caller ends, in whatever way, so does its program. The container needs bash and coreutils.
ask_outside() {
    local call code input output errors
    call=$(mktemp -d "${0%/*}/call.XXXXXXXX") && mkfifo "$call"/{in,out,err,held,code} || exit 126
    printf '%s\0' "${0##*/}" "$@" >"$call/words"
    exec 3<&0
    cat <&3 >"$call/in" & input=$!
    cat <"$call/out" & output=$!
    cat <"$call/err" >&2 & errors=$!
    exec 4<>"$call/held" 7<>"$call/code" # opened for both, a pipe does not wait for the other side
    echo "${call##*/}" >"${0%/*}/calls"
    read -r code <&7
    wait "$output" "$errors"
    kill "$input" 2>/dev/null
    rm -rf "$call"
    exit "$code"
}
answer_call() {
    local code program watch words
    mapfile -d '' -t words <"$1/words"
    case ${words[0]} in srun | scontrol | ssh) ;; *) words=(false) ;; esac
    exec 6<"$1/held" # before the program: its caller may end at any time
    "${words[@]}" <"$1/in" >"$1/out" 2>"$1/err" 6<&- & program=$!
    { read -r _ <&6; rm -rf "$1"; kill "$program"; } 2>/dev/null & watch=$!
    wait "$program"; code=$?
    kill "$watch" 2>/dev/null
    { echo "$code" 1<>"$1/code"; } 2>/dev/null
}
answer_calls() {
    local call
    exec 5<>"$1/calls"
    while read -r call <&5; do answer_call "$1/$call" 5<&- & done
}
# open_outside: the folder, and $KIT_CONTAINER, by which the steps on the nodes become a program.
open_outside() {
    local folder=$attempt/outside name
    mkdir "$folder" && mkfifo "$folder/calls" || exit 89
    { echo '#!/usr/bin/env bash'; declare -f ask_outside; echo 'ask_outside "$@"'; } >"$folder/srun"
    chmod 700 "$folder/srun"
    for name in scontrol ssh; do ln -s srun "$folder/$name"; done
    { declare -p image image_options project; declare -f become; echo 'become "$@"'; } \
        >"$folder/become"
    export KIT_CONTAINER=$folder/become
    answer_calls "$folder" & outside=$!
}
close_outside() {
    kill "$outside" 2>/dev/null
    rm -rf "$attempt/outside"
}
