#!/bin/bash
# enter.sh ROOT HOST COMMAND…   become COMMAND in a private Debian root, on a host of that name
# enter.sh --try                see whether this user may do that; the reason on stderr
#
# Mounts and host name are of the command's own; processes and network are those of the machine.
# An ordinary user gets the right to mount by a user namespace, and gives it up before COMMAND
# starts; root needs none. The sandbox's folder SBX is there under its own name, so that paths are
# the same inside and outside. Folders of other people above it do not matter inside.
set -euo pipefail
if [ "$1" != --inside ]; then
    own=(--mount --uts --propagation private)
    [ "$(id -u)" = 0 ] || own+=(--user --map-current-user --keep-caps)
    exec unshare "${own[@]}" /bin/bash "$0" --inside "$@"
fi
shift
if [ "$1" = --try ]; then
    mount -t tmpfs tmpfs /proc
    exit
fi
root=$(realpath "$1") host=$2; shift 2
mount --rbind "$root" "$root" # a root that can take the place of the machine's
here=$(dirname "$(realpath "$0")")
for name in dev proc sys; do mount --rbind "/$name" "$root/$name"; done
mount --bind "$here" "$root/opt/kit"
# how this machine reaches the network, also its package index
for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    [ ! -e "$file" ] || mount --bind "$(realpath "$file")" "$root$file"
done
if [ -n "${SBX:-}" ]; then
    mount --bind "$SBX/tmp" "$root/tmp"
    mount --bind "$SBX/home" "$root/home"
    mount --bind "$SBX/etc/hosts" "$root/etc/hosts"
    # the Python of the jobs, the same one on every site: what they compute is the same as well
    python=${root%/*}/bookworm
    [ ! -d "$python.pytorch" ] || mount --bind "$python.pytorch" "$root/opt/pytorch"
    [ "$python" = "$root" ] || mount --bind "$python/usr" "$root/opt/debian12"
    # not the folder itself: it is closed to everybody else, the other accounts inside among them.
    # install gives the mode whatever the umask: the services' own is 077
    install -d -m 755 "$root$SBX"
    for name in etc run state home projappl log; do
        install -d -m 755 "$root$SBX/$name"
        mount --bind "$SBX/$name" "$root$SBX/$name"
    done
fi
# hostname, setpriv and the rest are the root's. Not chroot: who is in one may not make user
# namespaces, as the containers of jobs do. Where the machine's root cannot be moved away (an
# initramfs), it is chroot. perl: umount2("/mnt", MNT_DETACH), as not every root has umount.
# shellcheck disable=SC2016 # expanded by that shell
become='hostname "$1" && shift && cd / &&
    exec setpriv --ambient-caps=-all --inh-caps=-all "$@"'
leave='my $old = "/mnt"; exit(syscall(166, $old, 2) != 0)'
cd "$root"
install -d -m 755 mnt
if [ -x usr/bin/perl ] && pivot_root . mnt 2>/dev/null; then
    exec /bin/sh -c "perl -e '$leave' && $become" - "$host" "$@"
fi
exec chroot "$root" /bin/sh -c "$become" - "$host" "$@"
