# Run Ray on one node, as one job step, until stdin ends.
# $1 the job's private folder on the node, then `ray start …`, whose --temp-dir is inside it.
#
# The folder has a name that nobody can guess and mode 700: Ray makes its own files writable for
# everybody. Nodes may share a file system, so a folder of the same name is accepted when it is a
# folder of this user with that mode (`stat` does not follow symlinks).
#
# Ray may take half a minute to end by itself, and its workers outlive a killed one: after three
# seconds everything that this step has started is ended. On sites with `proctrack/cgroup` Slurm
# does that; the sweep over /proc is for sites without it. It finds processes by the step's session
# and by a mark in their environment (Ray's own processes overwrite their environment, the driver
# has another session). A Ray that was lost leaves the folder alone: nodes may share it.
# (`wait -n` of bash 5.2 misses a process that ended before it.)
exec 3<&0
umask 077
private=$1 mark=KIT_STEP=$SLURM_JOB_ID.$SLURM_STEP_ID; shift
mkdir -m 700 "$private" 2>/dev/null
if [ "$(stat -c '%F %u %a' "$private")" != "directory $(id -u) 700" ]; then
    echo "the folder $private on $(hostname) is not a private folder of this user" >&2; exit 1
fi
export TMPDIR=$private/tmp
mkdir -p "$TMPDIR"
leader=$(ps -o sid= -p $$ | tr -d ' ')
sweep() {
    local process
    for process in $(grep -lsz "^$mark\$" /proc/[0-9]*/environ | cut -d/ -f3) $(pgrep -s 0); do
        [ "$process" = $$ ] || [ "$process" = "$leader" ] || kill -KILL "$process"
    done 2>/dev/null
}
# Ray's metrics would be served to everybody, on fixed ports too; -1 is not a port, so that those
# servers are not started (observed with Ray 2.60).
env "$mark" RAY_enable_metrics_collection=0 DASHBOARD_METRIC_PORT=-1 AUTOSCALER_METRIC_PORT=-1 \
    "$@" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    </dev/null & ray=$!
trap 'sweep; rm -rf "$private"; exit 1' TERM
cat <&3 >/dev/null & stdin=$!
while kill -0 "$ray" && kill -0 "$stdin"; do sleep 0.1; done 2>/dev/null
if kill -0 "$ray" 2>/dev/null; then
    kill -TERM "$ray"
    for _ in {1..30}; do kill -0 "$ray" 2>/dev/null || break; sleep 0.1; done
    sweep; rm -rf "$private"; exit 0
fi
wait "$ray"; code=$?
# At the end of a job the head ends, and this Ray with it, maybe just before the end of this stdin:
# then the step has done its work. (The sweep would end the process that waits for stdin.)
for _ in {1..20}; do kill -0 "$stdin" || break; sleep 0.1; done 2>/dev/null
if ! kill -0 "$stdin" 2>/dev/null; then sweep; rm -rf "$private"; exit 0; fi
kill "$stdin"; sweep; exit $((code ? code : 1))
