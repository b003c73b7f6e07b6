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
