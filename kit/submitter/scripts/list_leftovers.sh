#!/bin/bash
# $1 the kit's folder of a project. Prints what is there, in three parts: `KIB NAME`, then
# `@times` and `SECONDS NAME`, then `@needed` and the inputs of attempts that have not ended.
# An attempt has ended when its symlink `commit` exists; its time is that symlink's.
cd "$1" 2>/dev/null || exit 0
shopt -s nullglob
list() { find tries inputs wheels -mindepth 1 -maxdepth 1 "$@" 2>/dev/null; }
list -print0 | du -sk --files0-from=- 2>/dev/null
echo @times
list -printf '%T@ %p\n'
find tries -mindepth 2 -maxdepth 2 -type l -name commit -printf '%T@ %p\n' 2>/dev/null
echo @needed
for attempt in tries/*; do
    [ -L "$attempt/commit" ] || grep -aoE 'inputs/[0-9a-f]{64}\.(zip|safetensors)' "$attempt/job.sh"
done 2>/dev/null
exit 0
