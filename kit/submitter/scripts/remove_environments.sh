#!/bin/bash
# $1 project folder, then names: removes these environments, the symlinks to them first.
cd "$1/kit/venvs" || exit
shift
for made; do
    key=${made%%.*}
    [ "$(readlink "$key")" != "$made" ] || rm -f "$key"
    find . -mindepth 1 -maxdepth 1 -type l -name 'attempt-*' -lname "$made" -delete
    rm -rf "$made" && echo "$made"
done
