#!/bin/bash
# as_person.sh FOLDER [CLOSED…] -- [NEEDED…] -- COMMAND…
#
# Become COMMAND as an ordinary user without any right, in mounts of its own (called by root in
# `unshare --mount`): FOLDER/passwd is /etc/passwd, and of the folders CLOSED, which only root may
# enter, those NEEDED below them are there and nothing else.
set -euo pipefail
folder=$1 closed=() needed=(); shift
while [ "$1" != -- ]; do closed+=("$1"); shift; done; shift
while [ "$1" != -- ]; do needed+=("$1"); shift; done; shift
mount --bind "$folder/passwd" /etc/passwd
mkdir -m 700 "$folder/kept"
for n in "${!needed[@]}"; do
    mkdir "$folder/kept/$n"
    mount --bind "${needed[n]}" "$folder/kept/$n"
done
for path in "${closed[@]}"; do mount -t tmpfs -o mode=755 tmpfs "$path"; done
for n in "${!needed[@]}"; do
    mkdir -p "${needed[n]}"
    mount --bind "$folder/kept/$n" "${needed[n]}"
done
user=$(stat -c %u "$folder/home")
exec setpriv --reuid="$user" --regid="$user" --clear-groups --inh-caps=-all --bounding-set=-all "$@"
