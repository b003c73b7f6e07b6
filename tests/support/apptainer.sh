#!/bin/bash
# A stand-in for `apptainer exec` of a folder, by the same means: a user namespace, no privilege.
# Debian's stable releases have neither Apptainer nor SingularityCE. Knows the options that the kit
# uses and refuses every other; the environment is that of APPTAINERENV_NAME alone.
set -euo pipefail
unknown() { echo "unknown: $*" >&2; exit 255; }
if [ "$1" != --inside ]; then
    [ "$1 $2" = "--quiet exec" ] || unknown "$@"
    exec unshare --user --map-current-user --keep-caps --mount --propagation private \
        /bin/bash "$0" --inside "${@:3}"
fi
shift
PATH=/usr/sbin:/usr/bin:/sbin:/bin
binds=() folder=/ names=(PATH="${APPTAINERENV_PREPEND_PATH:-/usr/bin}:/usr/bin:/bin" HOME="$HOME")
while [[ $1 == --* ]]; do
    case $1 in
    --cleanenv | --no-home) ;;
    --pwd) folder=$2; shift ;;
    --bind) binds+=("$2"); shift ;;
    --bind=*) binds+=("${1#*=}") ;;
    *) unknown "$1" ;;
    esac
    shift
done
image=$1 root=/mnt; shift
for name in $(compgen -e APPTAINERENV_); do names+=("${name#APPTAINERENV_}=${!name}"); done
mount -t tmpfs tmpfs "$root"
cp -a "$image/." "$root"
for bind in /dev /proc /sys /etc/hosts /etc/resolv.conf "${binds[@]}"; do
    from=${bind%%:*} to=$root${bind##*:}
    if [ -d "$from" ]; then mkdir -p "$to"; else mkdir -p "${to%/*}"; touch "$to"; fi
    mount --rbind "$from" "$to"
done
cd "$root"
exec chroot "$root" setpriv --ambient-caps=-all --inh-caps=-all env -i "${names[@]}" \
    /bin/sh -c 'cd "$1" && shift && exec "$@"' - "$folder" "$@"
