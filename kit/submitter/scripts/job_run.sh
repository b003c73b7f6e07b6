# shellcheck shell=bash disable=SC2154
unset PYTHONPATH
export KIT_ATTEMPT=$attempt PYTHONPATH=$KIT_CODE PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$attempt/ray.token RAY_USAGE_STATS_ENABLED=0
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >ray.token
[ -z "${image:-}" ] || open_outside
become "$venv/bin/python" -m kit.onsite.main &
main=$!
trap 'kill -TERM "$main"' TERM
while
    wait "$main"
    code=$?
    kill -0 "$main" 2>/dev/null
do :; done
rm -f ray.token tunnel.key
[ -z "${image:-}" ] || close_outside
[ "$code" -lt 128 ] || exit 93 # KILLED: ended by a signal
[ "$code" = 0 ] || exit "$code"
commit manifest.json
