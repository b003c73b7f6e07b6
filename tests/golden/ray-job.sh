#!/bin/bash
#SBATCH --job-name=kit-0123456789ab
#SBATCH --account=project_2001234
#SBATCH --partition=medium
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=20G
#SBATCH --gres=nvme:10
#SBATCH --time=00:20:00
#SBATCH --output=job-%j.log
#SBATCH --signal=B:TERM@60
#SBATCH --dependency=singleton
#SBATCH --no-requeue

attempt=/projappl/project_2001234/kit/tries/0123456789ab
# shellcheck disable=SC2154 # $attempt, the folder, is set before this text
# The fence: the first start of the job owns the attempt, any other ends here.
# 98: the folder cannot be used, 99: another start is the owner (kit/slurm/status.py has a sentence
# for each exit code).
export SLURM_EXPORT_ENV=ALL PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
export LC_ALL=C.UTF-8 # whatever locale the site's prologs give to a job
export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
umask 077
cd "$attempt" || exit 98
me=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
ln -sT "$me" owner 2>/dev/null
case "$(readlink owner)" in "$me") ;; "") exit 98 ;; *) exit 99 ;; esac

# commit FILE: publish the attempt's manifest, once and last.
# 97: it could not be published: the attempt was closed before, or the disk is full.
commit() {
    local hash
    [ -s "$1" ] || exit 97
    hash=$(sha256sum <"$1") && hash=${hash%% *} || exit 97
    mv -T "$1" "$attempt/manifest-$hash" && sync "$attempt/manifest-$hash" || exit 97
    ln -sT "manifest-$hash" "$attempt/commit" 2>/dev/null
    [ "$(readlink "$attempt/commit")" = "manifest-$hash" ] || exit 97
}

source /usr/share/lmod/lmod/init/bash
module use /appl/modules
# load_module NAME: exit 96 where it cannot be loaded. Modules 3.2 exits 0 all the same: then
# LOADEDMODULES neither has the name nor has changed (an alias is listed under another name).
load_module() {
    local before=${LOADEDMODULES-}
    if ! module load "$1"; then
        echo "the module $1 could not be loaded" >&2
        exit 96
    fi
    case :${LOADEDMODULES-}: in *":$1:"* | *":$1/"*) return ;; esac
    if [ "${LOADEDMODULES-}" = "$before" ]; then
        echo "the module $1 could not be loaded: it is not in LOADEDMODULES" >&2
        exit 96
    fi
}
load_module pytorch/2.13
export KIT_TASK='{"attempt_id": "0123456789ab", "continued": [], "data": "/projappl/project_2001234/kit/inputs/dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd.zip", "data_hash": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd", "earlier": ["/projappl/project_2001234/kit/tries/ba9876543210"], "hyperparameters": {"batch_size": 4, "device": "cpu", "epochs": 3, "fast_step": true, "learning_rate": 0.001, "momentum": 0.9, "seed": 42, "threads": 1}, "model": "FMNIST-CNN", "module": "kit.experiments.fashion_mnist", "number": 2, "ray": "2.60.0", "run": "cloud-hpc-0123456789ab-1", "sweep": null, "tunnel": {"address": "10.1.2.3", "alias": "vm", "host": "vm.example", "port": 22, "ports": [8280, 8281, 8282, 8283, 8284, 8285, 8286, 8287, 8288, 8289], "user": "kit-tunnel"}, "workers": 1}'
export KIT_CODE=/projappl/project_2001234/kit/inputs/cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc.zip
export KIT_CODE_HASH=cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc
# shellcheck shell=bash disable=SC2154 # $attempt is set by the fence
# The code is named by its hash; it is compared before it is executed. Exit codes below 96 are
# those of kit/onsite/names.py; 88: CODE_CHANGED.
private=
trap '[ -z "$private" ] || rm -rf "$private" "${private%/*}/attempt-${attempt##*/}"' EXIT
if ! echo "$KIT_CODE_HASH  $KIT_CODE" | sha256sum --check --status; then
    echo "$KIT_CODE is not the code that was staged: remove it, then run again" >&2
    exit 88
fi

image=
project=
image_options=()
# shellcheck shell=bash disable=SC2154
# become PROGRAM WORD…: become a program of the job's Python; inside …: run it and come back.
# Where the profile names an $image it runs in that, unprivileged. It then sees of the site the
# $project's folder and /tmp, what the site's own configuration adds, and what $image_options say.
# Of the environment the variables below go in, by APPTAINERENV_NAME: everybody can read the words
# of a command. Tried with Apptainer 1.4.5. 95: ENVIRONMENT_FAILED.
become() {
    [ -n "${image:-}" ] || exec "$@"
    local name prefix=APPTAINERENV_ runtime
    export PATH HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
    if ! runtime=$(command -v apptainer || command -v singularity); then
        echo "neither apptainer nor singularity is in PATH; name its module in [hpc] modules" >&2
        exit 95
    fi
    if [ ! -e "$image" ]; then
        echo "the image $image does not exist" >&2
        exit 95
    fi
    [ "${runtime##*/}" = apptainer ] || prefix=SINGULARITYENV_
    for name in $(compgen -e); do
        case $name in
        KIT_* | RAY_* | PYTHONPATH | PYTHONNOUSERSITE | PYTHONUNBUFFERED | TMPDIR | LC_ALL | LANG | \
            SLURM_JOB_ID | SLURM_JOB_NODELIST | SLURM_CPUS_PER_TASK | SLURMD_NODENAME | \
            DASHBOARD_METRIC_PORT | AUTOSCALER_METRIC_PORT | OMP_NUM_THREADS | \
            CUDA_VISIBLE_DEVICES | ROCR_VISIBLE_DEVICES | HIP_VISIBLE_DEVICES | \
            [Hh][Tt][Tt][Pp]_[Pp][Rr][Oo][Xx][Yy] | [Hh][Tt][Tt][Pp][Ss]_[Pp][Rr][Oo][Xx][Yy] | \
            [Nn][Oo]_[Pp][Rr][Oo][Xx][Yy] | PIP_*)
            export "$prefix$name=${!name}"
            ;;
        esac
    done
    [ ! -d "${KIT_ATTEMPT:-/nowhere}/outside" ] ||
        export "${prefix}PREPEND_PATH=$KIT_ATTEMPT/outside"
    exec "$runtime" --quiet exec --cleanenv --no-home --pwd "${KIT_ATTEMPT:-$project}" \
        --bind "$project" --bind /tmp "${image_options[@]}" "$image" "$@"
}
inside() (become "$@")
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

environment /projappl/project_2001234 eeeeeeeeeeee 111111111111 /usr/bin/python3 0123456789ab yes || exit 95
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

