#!/usr/bin/env bash
# Run the tests of the sandbox and, beside them, the slow ones that do not use it.
# Tests marked `core` are not among them: `make test` runs those.
# usage: sandbox_and_slow.sh PYTHON [PYTEST-ARGUMENT…]
#
# The slow tests give way: those of the sandbox have times to keep (Ray gives up after 30 s).
# The exit code is 0 only if both runs passed. The output of the slow tests follows that of the
# sandbox's whole, so that no line of either is lost. Ctrl-C and TERM end both.
set -uo pipefail
python=$1; shift
output=$(mktemp)
nice -n 5 "$python" -m pytest -m "slow and not sandbox and not core" "$@" >"$output" 2>&1 &
slow=$!
# A shell without job control has its background processes ignore SIGINT: TERM ends the tests.
trap 'kill "$slow" 2>/dev/null; rm -f "$output"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$python" -m pytest -m "sandbox and not core" "$@"
sandbox_code=$?
wait "$slow"
slow_code=$?
cat "$output"
((sandbox_code == 0 && slow_code == 0))
