# shellcheck shell=bash disable=SC2154 # $attempt is set by the fence
# The code is named by its hash; it is compared before it is executed. Exit codes below 96 are
# those of kit/onsite/names.py; 88: CODE_CHANGED.
private=
trap '[ -z "$private" ] || rm -rf "$private" "${private%/*}/attempt-${attempt##*/}"' EXIT
if ! echo "$KIT_CODE_HASH  $KIT_CODE" | sha256sum --check --status; then
    echo "$KIT_CODE is not the code that was staged: remove it, then run again" >&2
    exit 88
fi
