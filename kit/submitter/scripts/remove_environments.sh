#!/bin/bash
# $1 project folder, then names: removes these environments, the links to them first.
cd "$1/kit/venvs" || exit
shift
for made; do
    key=${made%%.*}
    [ "$(readlink "$key")" != "$made" ] || rm -f "$key"
    rm -rf "$made" && echo "$made"
done
