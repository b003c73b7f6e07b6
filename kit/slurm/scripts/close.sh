# Close an attempt. $1 attempts' folder, $2 attempt id, $3 mode, $4 clusters (may be empty), then
# names of files that a job removes at its end, and leaves when it is killed.
# `fence` takes the owner symlink and, only where it won that, the commit symlink; `settle` takes
# both (it is known what became of the owner); `cancel` takes both and ends the jobs. Jobs of this
# attempt that still wait are ended by name: they could do no work.
attempts=$1 id=$2 mode=$3 clusters=$4; shift 4
enter "$attempts/$id"
case $mode in cancel) word=cancelled end=cancelled ;; *) word=fenced end=closed ;; esac
ln -sT "$word" owner 2>/dev/null
owner=$(readlink owner) || exit 74
case $mode:$owner in
    fence:fenced | fence:cancelled | settle:* | cancel:*) ln -sT "$end" commit 2>/dev/null ;;
esac
cancel() {
    scancel ${clusters:+--clusters="$clusters"} --user="$(id -un)" "$@"
}
code=0
case $mode:$owner:$(readlink commit) in
    *:manifest-*) ;;
    cancel:[0-9]*)
        cancel --name="kit-$id"; code=$?
        cancel --quiet --name="kit-$id" "${owner%.*}" ;;
    fence:fenced:* | cancel:*) cancel --name="kit-$id"; code=$? ;;
esac
case $mode in settle | cancel) [ $# = 0 ] || rm -f -- "$@" ;; esac
look "$id"
echo "@cancel $code"
