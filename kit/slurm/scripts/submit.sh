# Submit an attempt, unless that was done before.
# $1 attempts' folder, $2 attempt id, $3 seconds to wait for sbatch, $4 pattern of limits that
# pass, $5 pattern of lost connections, $6 job script, then sbatch's argv.
# The value of `submit` is made here, in every call: a call that is sent twice is two callers.
# sbatch runs detached: it outlives this shell, ssh and the client, and its reply appears at once.
# A line on a pipe then wakes this shell; another caller, who has no pipe, looks every 20 ms.
attempts=$1 id=$2 wait_s=$3 limits=$4 no_answer=$5 job=$6 replied=; shift 6
enter "$attempts/$id"
me=$HOSTNAME.$$.${EPOCHREALTIME:-$(date +%s.%N)}.$RANDOM$RANDOM
# True where sbatch failed, printed no job id, and named a limit on the number of jobs.
# A message about a limit beside an accepted job (a job_submit plugin may print one) is no refusal.
# Nor is a limit beside a lost connection: that request may have been accepted.
limited() {
    grep -qx 'exit 1' reply && ! grep -qE '^out .*[0-9]' reply &&
        ! grep -qiE "^err .*($no_answer)" reply && grep -qE "^err .*$limits" reply
}
# Such a limit refused it before: submit again. The caller that renames the reply may release
# `submit`: sbatch has accepted nothing, so no job can exist.
if [ -e reply ] && [ ! -L owner ] && limited && mv -T reply "limited.$me" 2>/dev/null; then
    rm -f submit
fi
if [ ! -L submit ] && [ ! -L owner ]; then
    printf %s "$job" >"job.$me" || { rm -f "job.$me"; exit 74; }
    ln -sT "$me" submit 2>/dev/null
    if [ "$(readlink submit)" = "$me" ]; then
        mv -T "job.$me" job.sh
        # The inner shell expands its own variables.
        # shellcheck disable=SC2016
        exec {replied}< <(exec setsid bash -c '
            timeout 300 "$@" >"out.$0" 2>"err.$0"; code=$?
            mapfile -tn 60 out <"out.$0"; mapfile -tn 60 err <"err.$0"
            { echo "exit $code"; printf "out %s\n" "${out[@]}"
              printf "err %s\n" "${err[@]}"; } >"reply.$0"
            mv -T "reply.$0" reply; echo' "$me" "$@" </dev/null 2>/dev/null)
    else
        rm -f "job.$me"; [ -L submit ] || exit 74
    fi
fi
turns=$((wait_s * 50))
while [ ! -e reply ] && [ ! -L owner ] && [ "$turns" -gt 0 ]; do
    read -r -t 0.02 -u "$replied" 2>/dev/null
    [ $? != 1 ] || sleep 0.02  # no pipe, or its end without a line; more than 128 is the time-out
    turns=$((turns - 1))
done
look "$id"
