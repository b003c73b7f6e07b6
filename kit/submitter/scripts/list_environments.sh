#!/bin/bash
# $1 project folder. Prints each environment as one JSON object a line.
cd "$1/kit/venvs" 2>/dev/null || exit 0
for made in *.*; do
    [ -d "$made" ] || continue
    published=false
    [ "$(readlink "${made%%.*}")" = "$made" ] && published=true
    attempt=$(tr -cd 0-9a-f <"$made/.try" 2>/dev/null)
    printf '{"name": "%s", "published": %s, "megabytes": %d, "made": %d, "attempt": "%s"}\n' \
        "$made" "$published" "$(du -sm "$made" | cut -f1)" "$(stat -c %Y "$made")" "$attempt"
done
