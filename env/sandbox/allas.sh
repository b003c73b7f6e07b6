# The part of `svc` that is Allas: Keystone, and Ceph's monitor, OSD and RADOS gateway.
# Read by svc. Everything listens on a loopback address and wants a credential: Keystone's tokens
# and EC2 keys from users, cephx between the Ceph daemons.
# shellcheck disable=SC2154 # svc sets $here

svc_keystone() {
    local url=http://$ADDR_KEYSTONE:$PORT_KEYSTONE/v3
    export OS_BOOTSTRAP_PASSWORD=$KEYSTONE_ADMIN_PASSWORD OS_BOOTSTRAP_REGION_ID=regionOne
    export OS_BOOTSTRAP_{PUBLIC,INTERNAL,ADMIN}_URL="$url"
    export SBX PROJECTS CSC_PASSWORD RGW_SERVICE_PASSWORD PLATFORM_PASSWORD ADDR_RGW PORT_RGW
    exec "$KEYSTONE" "$here/keystone_serve.py" "$SBX/etc/keystone.conf" \
        "$SBX/state/keystone" "$ADDR_KEYSTONE" "$PORT_KEYSTONE"
}
token() { # print a token of the platform's user
    local body='{"auth": {"identity": {"methods": ["password"], "password": {"user": {"name":
        "platform", "domain": {"id": "default"}, "password": "'$PLATFORM_PASSWORD'"}}},
        "scope": {"project": {"name": "platform", "domain": {"id": "default"}}}}}'
    curl -sf -m 5 -o /dev/null -D - -H 'Content-Type: application/json' -d @- \
        "http://$ADDR_KEYSTONE:$PORT_KEYSTONE/v3/auth/tokens" <<<"$body" |
        tr -d '\r' | sed -n 's/^x-subject-token: *//Ip' | grep .
}
check_keystone() { test -s "$SBX/etc/.env" && test -n "$(token)" && echo "a token"; }

ceph_() { ceph -c "$SBX/etc/ceph.conf" --connect-timeout 20 "$@"; }
asok() { # asok NAME COMMAND: ask a daemon on its socket; the `ceph` command takes ten times as long
    /usr/bin/python3 -ISc 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(5)
s.connect(sys.argv[1])
s.sendall(b"{\"prefix\": \"%s\"}\0" % sys.argv[2].encode())
print(s.makefile("rb").read()[4:].decode())' "$SBX/run/$1.asok" "$2"
}
ceph_keyring() { # made once, before anything else of Ceph
    local ring=$SBX/state/ceph/keyring any='allow *'
    [ ! -s "$ring" ] || return 0
    mkdir -p "$SBX/state/ceph/rgw"
    ceph-authtool -C "$ring.new" -n mon. --gen-key --cap mon "$any"
    ceph-authtool "$ring.new" -n client.admin --gen-key --cap mon "$any" --cap osd "$any"
    ceph-authtool "$ring.new" -n osd.0 --gen-key --cap mon 'allow profile osd' --cap osd "$any"
    ceph-authtool "$ring.new" -n client.rgw --gen-key --cap mon 'allow rw' --cap osd 'allow rwx'
    mv -T "$ring.new" "$ring"
}

svc_ceph_mon() {
    local data=$SBX/state/ceph/mon conf=$SBX/etc/ceph.conf
    ceph_keyring
    if [ ! -d "$data" ]; then
        rm -rf "$data.new"
        monmaptool --create --clobber --fsid "$(ceph-conf -c "$conf" fsid)" \
            --addv a "[v2:$ADDR_CEPH_MON:$PORT_CEPH_MON]" "$data.map"
        ceph-mon --mkfs -i a -c "$conf" --monmap "$data.map" --keyring "$SBX/state/ceph/keyring" \
            --mon-data "$data.new"
        mv -T "$data.new" "$data"
    fi
    exec ceph-mon -f -i a -c "$conf"
}
check_ceph_mon() { asok mon.a mon_status | grep -o '"state": "leader"'; }

svc_ceph_osd() {
    local data=$SBX/state/ceph/osd conf=$SBX/etc/ceph.conf uuid
    wait_for test -S "$SBX/run/mon.a.asok"
    wait_for check_ceph_mon
    if [ ! -d "$data" ]; then
        rm -rf "$data.new"
        [ -s "$data.uuid" ] || cat /proc/sys/kernel/random/uuid >"$data.uuid"
        uuid=$(<"$data.uuid")
        ceph_ osd new "$uuid"
        mkdir "$data.new" # that one command does not make it
        ceph-osd --mkfs -i 0 -c "$conf" --osd-uuid "$uuid" --osd-data "$data.new"
        mv -T "$data.new" "$data"
    fi
    exec ceph-osd -f -i 0 -c "$conf"
}
check_ceph_osd() { asok osd.0 status | grep -o '"state": "active"'; }

svc_rgw() {
    wait_for test -S "$SBX/run/osd.0.asok"
    wait_for check_ceph_osd # a gateway that meets the OSD of yesterday loses five seconds
    exec radosgw -f -n client.rgw -c "$SBX/etc/ceph.conf"
}
swift() { # swift TOKEN CONTAINER[/KEY] CURL-ARGUMENT…
    local token=$1 path=$2; shift 2
    curl -K <(printf 'header = "X-Auth-Token: %s"\n' "$token") -sf -m 5 \
        --cacert "$SBX/etc/ca.crt" "$@" "$OS_STORAGE_URL/$path"
}
check_rgw() { # an object put by Swift is read by S3
    local word="ping $$" held
    . "$SBX/etc/mlflow-s3.env"
    . "$SBX/etc/mlflow-swift.env"
    held=$(token)
    swift "$held" health/ping -o /dev/null -X PUT --data-binary "$word" ||
        { swift "$held" health -X PUT; return 1; } # the first time
    [ "$(s3 health/ping)" = "$word" ] && echo "Swift PUT, S3 GET"
}
