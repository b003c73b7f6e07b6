#!/bin/sh
# $1 the file of authorized keys, $2 a submitter's mark, $3 its attempts whose lines go; new lines
# on stdin. $0 is this text: it is run again by sudo where the file belongs to the tunnel's user.
# The file is replaced whole, under a lock, and only when something changes. Prints its user.
folder=${1%/*}
user=$(stat -c %U "${1%/*/*}") || exit
[ -w "$folder" ] || [ "$(id -un)" = "$user" ] || exec sudo -n -u "$user" sh -c "$0" "$0" "$@"
umask 022
exec 9<"$folder" && flock -w 10 9 && touch "$1" && new=$(mktemp "$1.XXXXXX") || exit
trap 'rm -f "$new"' EXIT
awk -v mark="$2-" -v gone=" $3 " '
    index($NF, mark) == 1 && index(gone, " " substr($NF, length(mark) + 1) " ") { next }
    { print }' "$1" >"$new" && cat >>"$new" && chmod 644 "$new" || exit
{ cmp -s "$new" "$1" || mv -f "$new" "$1"; } && echo "$user"
