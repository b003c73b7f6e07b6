# shellcheck shell=bash disable=SC2154 # $me and $attempt are set by the fence
# Wait for the commands before this text, pass SIGTERM on to them, publish their end if it is 0.
child=$! warned=
trap 'warned=1; kill -TERM "$child" 2>/dev/null' TERM
wait "$child"; code=$?
while [ -n "$warned" ]; do warned=; wait "$child"; code=$?; done
[ "$code" = 0 ] || exit "$code"
printf '{"job": "%s", "exit_code": 0}\n' "$me" >"$attempt/end.$me" || exit 97
commit "$attempt/end.$me"
