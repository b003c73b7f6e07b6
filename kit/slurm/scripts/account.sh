# Print what sacct lists of the attempts' jobs, then the symlinks.
# $1 attempts' folder, $2 columns, $3 clusters (may be empty), $4 ids of known jobs, $5 names of
# jobs without a known id (both with commas, either may be empty), then attempt ids.
# Known jobs are asked for by id, whenever they were submitted, and by name too: sites use ids
# again. Steps are left out: slurmdbd looks them up job by job.
# The symlinks come last: a job that sacct knows to have ended has had its chance to commit.
attempts=$1 columns=$2 clusters=$3 ids=$4 names=$5; shift 5
account() {
    echo "@account"
    SLURM_TIME_FORMAT=%s sacct --parsable2 --duplicates --allocations --format="$columns" \
        ${clusters:+--clusters="$clusters"} "$@"
    echo "@exit $?"
}
known=$(printf ',kit-%s' "$@")
[ -z "$ids" ] || account --jobs="$ids" --name="${known#,}"
[ -z "$names" ] || account --name="$names" --user="$(id -un)" --starttime=now-30days
enter "$attempts"
look "$@"
