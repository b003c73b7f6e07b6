#!/bin/bash
#SBATCH --job-name=kit-0123456789ab
#SBATCH --account=project_2000000
#SBATCH --partition=gpumedium
#SBATCH --qos=long
#SBATCH --clusters=roihu
#SBATCH --constraint=gh200&nvme
#SBATCH --licenses=matlab:1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=72
#SBATCH --mem=200G
#SBATCH --gres=gpu:gh200:2
#SBATCH --time=1-02:30:00
#SBATCH --comment=five-epochs
#SBATCH --reservation=course
#SBATCH --mail-type=END,FAIL
#SBATCH --mail-user=a.person@example.org
#SBATCH --output=job-%j.log
#SBATCH --signal=B:TERM@60
#SBATCH --dependency=singleton
#SBATCH --no-requeue

attempt='/projappl/project_2000000/a person'"'"'s/kit/tries/0123456789ab'
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

source /appl/lmod/init/bash
module use /appl/local/csc/modulefiles
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
load_module python-pytorch/2.7
load_module git
export KIT_EPOCHS=5
export KIT_TITLE='it'"'"'s $HOME
and `more`'
cd '/scratch/project 1' || exit 98
srun python train.py --epochs "$KIT_EPOCHS" || exit
commit manifest.json
