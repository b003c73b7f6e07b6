#!/bin/bash
# $1 the kit's folder of a project, names in it on stdin. Removes them; prints each that is gone.
# An attempt that has not ended stays, whatever was asked for.
cd "$1" || exit
while read -r name; do
    case $name in tries/*) [ -L "$name/commit" ] || continue ;; esac
    case $name in
    venvs/*) find venvs -mindepth 1 -maxdepth 1 -type l -lname "${name#venvs/}" -delete ;;
    esac
    rm -rf -- "$name" && echo "$name"
done
