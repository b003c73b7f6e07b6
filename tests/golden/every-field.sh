#!/bin/bash
#SBATCH --job-name=kit-0123456789ab
#SBATCH --account=project_2000000
#SBATCH --partition=gpumedium
#SBATCH --nodes=2
#SBATCH --ntasks=4
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=72
#SBATCH --mem=200G
#SBATCH --gres=gpu:gh200:2
#SBATCH --time=1-02:30:00
#SBATCH --output=%x-%j.out
#SBATCH --signal=B:TERM@60
#SBATCH --requeue

try='/projappl/project_2000000/a person'"'"'s/kit/tries/0123456789ab'
export SLURM_EXPORT_ENV=ALL PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
umask 077
cd "$try" || exit 98
me=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
ln -sT "$me" owner 2>/dev/null
case "$(readlink owner)" in "$me") ;; "") exit 98 ;; *) exit 99 ;; esac

# commit FILE: publish the try's manifest, once and last; 97: the try was closed before.
commit() {
    local hash
    hash=$(sha256sum <"$1") && hash=${hash%% *} || exit 97
    mv -T "$1" "$try/manifest-$hash" && sync "$try/manifest-$hash" || exit 97
    ln -sT "manifest-$hash" "$try/commit" 2>/dev/null
    [ "$(readlink "$try/commit")" = "manifest-$hash" ] || exit 97
}

source /appl/lmod/init/bash
module use /appl/local/csc/modulefiles
module load python-pytorch/2.7 || exit 96
module load git || exit 96
export KIT_EPOCHS=5
export KIT_TITLE='it'"'"'s $HOME
and `more`'
srun python train.py --epochs "$KIT_EPOCHS" || exit
commit manifest.json
