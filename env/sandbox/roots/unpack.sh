#!/bin/bash
# unpack.sh ROOT UID GID DEB…: unpack Debian packages into the empty folder ROOT as whoever calls
# it, then make what their maintainer scripts would have made and the services need. No script of a
# package runs, no file gets another owner, none is setuid. SITE_USER, SITE_SHELL, SITE_ZONE and
# SITE_LOCALE: the account that runs jobs, its login shell, the time zone and the locale of the site.
set -euo pipefail
here=$(dirname "$(dirname "$(realpath "$0")")")
root=$1 uid=$2 gid=$3; shift 3
umask 022
mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done

# one DEB…: called by xargs below, two packages at a time. Left out is what nothing of the sandbox
# reads: documents, web pages, repair tools of Ceph and clients of MariaDB, 5 to 20 MB each.
export root
# shellcheck disable=SC2016 # $root and $1 are for the shells that xargs starts
printf '%s\0' "$@" | xargs -0 -n 1 -P 2 bash -c 'set -o pipefail
    dpkg-deb --fsys-tarfile "$1" | tar -C "$root" -x --no-same-owner --no-same-permissions \
        --keep-directory-symlink \
        --exclude="./usr/share/"{doc,man,locale,info,lintian,javascript,nodejs}"/*" \
        --exclude="./usr/bin/"{ceph-{bluestore,kvstore,monstore,objectstore,osdomap}-tool,cephfs-*} \
        --exclude="./usr/bin/"{radosgw-{es,object-expirer},aria_*,innochecksum,myisam*} \
        --exclude="./usr/bin/mariadb-"{binlog,check,conv,dump,import,plugin,show,slap} \
        --exclude="./usr/bin/mariadb-"{tzinfo-to-sql,upgrade}' -

cd "$root"
# base-passwd; the sandbox's own accounts, which have one uid when only one is to be had
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
site_user=${SITE_USER:-hpcuser}
for name in "$site_user" clouduser kit-tunnel; do
    shell=/bin/bash
    [ "$name" != "$site_user" ] || shell=${SITE_SHELL:-$shell}
    # "*": no password, and not locked either (sshd without PAM refuses a locked account)
    echo "$name:*:$uid:$gid::/home/$name:$shell" >>etc/passwd
    echo "$name:x:$gid:" >>etc/group
    mkdir -p "home/$name"
    [ "$(id -u)" != 0 ] || { uid=$((uid + 1)); gid=$((gid + 1)); }
done
echo 'sshd:*:102:65534::/run/sshd:/usr/sbin/nologin' >>etc/passwd # for the separated privileges
sed -i 's/^\(root:\)[^:]*/\1*/' etc/passwd
# base-files
cp usr/share/libc-bin/nsswitch.conf etc/nsswitch.conf
cp usr/share/base-files/profile etc/profile
# alternatives
for name in usr/sbin/slurm{ctld,d,stepd}-wlm; do ln -s "${name##*/}" "${name%-wlm}"; done
link() { [ ! -e "$(dirname "$2")/$1" ] || [ -e "$2" ] || ln -s "$1" "$2"; }
link gawk usr/bin/awk
link mawk usr/bin/awk
link lua5.3 usr/bin/lua
link lua5.4 usr/bin/lua
link which.debianutils usr/bin/which
link bsd-csh usr/bin/csh
link tcsh usr/bin/csh
link tclsh8.6 usr/bin/tclsh
for name in usr/lib/*-linux-gnu/{blas,lapack}; do
    link "${name##*/}/lib${name##*/}.so.3" "${name%/*}/lib${name##*/}.so.3"
done
# ca-certificates; the machine's own bundle is mounted over it when there is one
cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt
# what is mounted over must exist
mkdir -p run/sshd projappl opt/pytorch opt/debian12 opt/kit
touch etc/hosts etc/resolv.conf etc/pip.conf
# tzdata, locales
ln -sf "/usr/share/zoneinfo/${SITE_ZONE:-UTC}" etc/localtime
locale=${SITE_LOCALE:-C.UTF-8}
[ "$locale" = C.UTF-8 ] || "$here/enter.sh" "$PWD" localhost \
    localedef --no-archive -i "${locale%.*}" -f "${locale#*.}" "$locale"
# python3-minimal, libpython3-stdlib: else each program of a job that is no longer the owner of
# these files compiles what it imports again; Ray starts a dozen of them for a job
for name in usr/lib/python3.*; do
    [ ! -d "$name" ] || "$here/enter.sh" "$PWD" localhost python3 -m compileall -q -j 2 "/$name"
done
