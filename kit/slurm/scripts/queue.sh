# Print the symlinks of attempts, then (later!) what squeue lists under their jobs' names.
# $1 attempts' folder, $2 squeue's format, $3 clusters (may be empty), then attempt ids.
attempts=$1 format=$2 clusters=$3; shift 3
enter "$attempts"
look "$@"
names=$(printf ',kit-%s' "$@")
echo "@queue"
SLURM_TIME_FORMAT=%s squeue --noheader --states=all --user="$(id -un)" --name="${names#,}" \
    ${clusters:+--clusters="$clusters"} --format="$format"
echo "@exit $?"
