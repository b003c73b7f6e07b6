# shellcheck shell=bash disable=SC2034
# environment PROJECT KEY PINS PYTHON ATTEMPT CONFIGURED: puts the folder of the environment into
# $venv; builds one where there is none, or where CONFIGURED is not yes. $private is $venv when
# only this attempt uses it. Two submitters may build one for the same attempt: the symlink
# `attempt-ATTEMPT` decides which of them is used, and the other one is removed.
# Wheels of several Pythons and machines share a folder: `complete` names those that it has all
# packages for; an empty one was made by hand, for every Python.
# Python runs by `inside` (container.sh), in an image where the profile names one.
# A module's PYTHONPATH would come before the venv's own packages: `module.pth` puts it behind.
say() { printf '%(%T)T %s\n' -1 "$*"; }
# An environment is executed: it must be our own, and nobody else may write into it.
trusted() { [ -O "$1" ] && [ -z "$(find "$1/" -maxdepth 0 -perm /022)" ]; }
environment() {
    local root=$1/kit key=$2 python=$4 attempt=$5 configured=$6 made other platform
    local link=$root/venvs/$key wheels=$root/wheels/$3 pins=$root/wheels/$3.txt
    local own=$root/venvs/attempt-$attempt
    private=
    umask 077
    [ -z "${image:-}" ] || unset PYTHONPATH # the folders of a module are not in the image
    if [ "$configured" = yes ] && venv=$(readlink -e "$link") && trusted "$venv" &&
        inside "$venv/bin/python" -c ''; then
        say "environment: found $venv"
        return
    fi
    # One that was built for this attempt before a submitter was interrupted.
    if venv=$(readlink -e "$own") && trusted "$venv" && [[ $venv == */"$key".* ]]; then
        [ "$(readlink "$link")" = "${venv##*/}" ] || private=$venv
        say "environment: found this attempt's own $venv"
        return
    fi
    [ -d "$1" ] || { echo "no folder $1" >&2; return 1; }
    made=$key.$(cat /proc/sys/kernel/random/uuid)
    venv=$root/venvs/$made
    private=$venv
    mkdir -p "$root/venvs" || return
    say "environment: building $venv"
    inside "$python" -m venv --system-site-packages --without-pip "$venv" || return
    echo "$attempt" >"$venv/.try"
    tr : '\n' <<<"${PYTHONPATH:-}" >"$(echo "$venv"/lib/python3*/site-packages)/module.pth"
    unset PYTHONPATH
    mkdir -p "$wheels" || return
    if ! trusted "$wheels"; then # another member of the project could have put a package there
        say "environment: not using $wheels, into which others may write"
        wheels=$venv/wheels
    fi
    platform=$(inside "$python" -c 'import sys, sysconfig
print(sys.implementation.cache_tag, sysconfig.get_platform())') || return
    if [ ! -e "$wheels/complete" ] ||
        { [ -s "$wheels/complete" ] && ! grep -qxF "$platform" "$wheels/complete"; }; then
        say "environment: downloading packages"
        inside "$python" -m pip --disable-pip-version-check --quiet download --no-deps \
            --only-binary :all: --dest "$venv/download" --requirement "$pins" || return
        mkdir -p "$wheels" && mv -n "$venv"/download/* "$wheels" &&
            echo "$platform" >>"$wheels/complete" || return
        rm -rf "$venv/download"
    fi
    say "environment: installing $(grep -c == "$pins") packages"
    inside "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check --quiet \
        install --no-deps --no-compile --no-index --find-links "$wheels" \
        --requirement "$pins" || return
    inside "$venv/bin/python" -c 'import ray, torch' || return
    if ! ln -sT "$made" "$own" 2>/dev/null && other=$(readlink -e "$own") && trusted "$other"; then
        rm -rf "$venv"
        venv=$other private=$other made=${other##*/}
    fi
    ln -sT "$made" "$link" 2>/dev/null
    if [ "$(readlink "$link")" = "$made" ]; then
        private=
    elif [ "$configured" = yes ] && trusted "$(readlink -e "$link")"; then
        rm -rf "$venv" "$own"
        private=
        venv=$(readlink -e "$link") || return
    fi
    say "environment: ready $venv"
}
