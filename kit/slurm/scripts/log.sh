# Print a part of a file as base64, at most 1 MB. $1 attempts' folder, $2 attempt id, $3 bytes as
# `tail -c` takes them (`+1`: from the beginning, `4000`: the end), $4 file ("": the owner's log).
cd "$1/$2" || exit 74
owner=$(readlink owner)
tail -c "$3" "${4:-job-${owner%.*}.log}" 2>/dev/null | head -c 1000000 | base64 -w0
