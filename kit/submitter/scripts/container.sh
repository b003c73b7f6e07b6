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
