"""Private Debian roots: made from real packages, here a few of them, and what may go wrong."""

import hashlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from kit_sandbox import roots

from kit.base import ROOT, DataError, KitError, UsageError

# What a root needs to be entered, and what its last step copies from.
NAMES = """
base-files base-passwd bash ca-certificates coreutils dash findutils gcc-12-base grep hostname
libacl1 libattr1 libc-bin libc6 libcap-ng0 libgcc-s1 libgmp10 libpcre2-8-0 libselinux1 libssl3
libtinfo6 sed util-linux
"""
FEW = NAMES.split()
MAKE = """\
import sys
from pathlib import Path
from kit_sandbox import roots
roots.SOURCE, roots.ENTER = Path(sys.argv[1]), Path(sys.argv[1], "enter.sh")
print(roots.make(Path(sys.argv[2]), "bookworm", print))
"""


def few(folder):
    """A copy of the sandbox's folder whose lock has only a few of the packages."""
    source = folder / "source"
    (source / "roots").mkdir(parents=True)
    shutil.copy(roots.SOURCE / "enter.sh", source)
    shutil.copy(roots.SOURCE / "roots" / "unpack.sh", source / "roots")
    lines = (roots.SOURCE / "roots" / "bookworm.lock").read_text().splitlines(keepends=True)
    wanted = [line for line in lines if line[0] == "#" or line.split()[1].split("_")[0] in FEW]
    assert len(wanted) == len(FEW) + 2
    (source / "roots" / "bookworm.lock").write_text("".join(wanted))
    return source


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache whose packages were downloaded and checked by apt."""
    cache, patch = tmp_path_factory.mktemp("cache") / "c", pytest.MonkeyPatch()
    patch.setattr(roots, "SOURCE", few(tmp_path_factory.mktemp("few")))
    try:
        roots.make(cache, "bookworm", print)
    finally:
        patch.undo()
    shutil.rmtree(cache / "roots")
    return cache


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(roots, "SOURCE", few(tmp_path))
    return roots.SOURCE


@pytest.fixture
def cache(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "cache", copy_function=os.link)


@pytest.fixture
def no_apt(tmp_path, monkeypatch):
    """A machine whose apt-get reaches nothing."""
    program(tmp_path, monkeypatch, "apt-get", "echo 'Could not resolve host' >&2; exit 100")


def program(folder, monkeypatch, name, text):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)


def inside(root, *argv):
    argv = [roots.ENTER, root, "c1", *argv]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_kept_packages_make_a_root_offline_that_can_be_entered(source, cache, no_apt):
    root = roots.make(cache, "bookworm", print)
    name = inside(root, "bash", "-c", "hostname; id -un; grep VERSION_ID /etc/os-release").split()
    user = "root" if os.getuid() == 0 else "hpcuser"
    assert name == ["c1", user, 'VERSION_ID="12"']
    assert inside(root, "find", "/usr", "-perm", "/6000") == "", "a program with more rights"
    assert {path.stat().st_mode & 0o777 for path in (cache, cache / "roots")} == {0o700}


@pytest.mark.slow
def test_other_accounts_reach_the_state_in_the_root_whatever_the_umask(source, cache, no_apt):
    root, state = roots.make(cache, "bookworm", print), cache.with_name("state")
    for name in ("tmp", "home", "etc", "run", "state", "projappl", "log"):
        (state / name).mkdir(parents=True)
    (state / "etc" / "hosts").touch()
    state.chmod(0o700)
    script = f"umask 077; SBX={state} {roots.ENTER} {root} c1 stat -c %a {state} {state}/projappl"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert (done.stderr, done.stdout.split()) == ("", ["755", "755"])


@pytest.mark.slow
def test_root_is_made_once_and_again_when_its_lock_has_changed(source, cache, no_apt):
    root = roots.make(cache, "bookworm", print)
    (root / "mark").touch()
    assert roots.make(cache, "bookworm", print) == root
    assert (root / "mark").exists()
    lock = source / "roots" / "bookworm.lock"
    lock.write_text(lock.read_text() + "# another one\n")
    assert not (roots.make(cache, "bookworm", print) / "mark").exists()


@pytest.mark.slow
def test_kept_package_that_was_changed_is_downloaded_again(source, cache):
    package = next(cache.glob("packages/hostname_*.deb"))
    good = package.read_bytes()
    package.unlink()  # the fixture links to it
    package.write_bytes(good[:-1] + b"?")
    said = []
    roots.make(cache, "bookworm", said.append)
    assert said[0] == "downloading 1 Debian packages for bookworm …"
    assert package.read_bytes() == good


@pytest.mark.slow
def test_package_with_another_hash_than_the_lock_is_refused(source, cache):
    package = next(cache.glob("packages/hostname_*.deb"))
    lock = source / "roots" / "bookworm.lock"
    text = lock.read_text()
    lock.write_text(text.replace(hashlib.sha256(package.read_bytes()).hexdigest(), "0" * 64))
    package.unlink()
    with pytest.raises(DataError, match="1 packages are not those of bookworm.lock") as caught:
        roots.make(cache, "bookworm", print)
    assert caught.value.got == package.name
    assert not package.exists(), "it would be trusted the next time"
    assert not (cache / "roots" / "bookworm").exists()


@pytest.mark.slow
def test_mirror_that_is_away_is_reported_and_the_next_call_goes_on(source, cache, monkeypatch):
    next(cache.glob("packages/hostname_*.deb")).unlink()
    monkeypatch.setenv("KIT_SANDBOX_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(KitError, match="127.0.0.1") as caught:
        roots.make(cache, "bookworm", print)
    assert "network, mirror" in caught.value.next_step
    monkeypatch.delenv("KIT_SANDBOX_MIRROR")
    assert roots.make(cache, "bookworm", print).exists()


class MirrorThatGoesAway:
    """A mirror on this machine that passes on, breaks off in a package and answers no more."""

    def __init__(self, whole):
        self.upstream = next(
            row.split()[2] for row in roots._sources("bookworm").splitlines() if "/debian " in row
        )
        mirror, self.whole = self, whole

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.answer(self)

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/debian"

    def answer(self, handler):
        package = handler.path.endswith(".deb")
        if package and self.whole < 0:
            return handler.send_error(503)
        url = self.upstream + handler.path.removeprefix("/debian")
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                data = answer.read()
        except urllib.error.HTTPError as err:
            return handler.send_error(err.code)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if package:
            self.whole -= 1
        handler.wfile.write(data[: len(data) // 2] if self.whole < 0 else data)
        handler.close_connection = True


@pytest.mark.slow
def test_mirror_that_goes_away_in_the_middle_leaves_what_is_whole(source, cache, monkeypatch):
    kept = sorted(cache.glob("packages/*.deb"))
    for package in kept:
        package.unlink()
    mirror, said = MirrorThatGoesAway(whole=5), []
    monkeypatch.setenv("KIT_SANDBOX_MIRROR", mirror.url)
    with pytest.raises(KitError, match="download the packages of bookworm") as caught:
        roots.make(cache, "bookworm", said.append)
    mirror.server.shutdown()
    assert "127.0.0.1" in caught.value.got
    assert "repeat the command" in caught.value.next_step
    assert not (cache / "roots" / "bookworm").exists()
    whole = sorted(cache.glob("packages/*.deb"))
    assert len(whole) == 5
    monkeypatch.delenv("KIT_SANDBOX_MIRROR")
    assert roots.make(cache, "bookworm", said.append).exists()
    assert said[:2] == [
        f"downloading {len(kept)} Debian packages for bookworm …",
        f"downloading {len(kept) - 5} Debian packages for bookworm …",
    ]


STALE = """\
apt=$(command -v -p apt-get)
case "$*" in *download*) grep -q snapshot "$(dirname "$2")/sources.list" || {
    echo "E: Version '3.23' for 'hostname' was not found" >&2; exit 100; };;
esac
exec "$apt" "$@"
"""


@pytest.mark.slow
def test_package_that_the_mirror_has_no_more_comes_from_the_snapshot_of_the_locks_date(
    source, cache, tmp_path, monkeypatch
):
    """The mirror of this machine plays the archive of that date."""
    package = next(cache.glob("packages/hostname_*.deb"))
    package.unlink()
    (line,) = [row for row in roots._sources("bookworm").splitlines() if "bookworm main" in row]
    mirror = line.split()[2]

    def lines(main, security, name, options):
        assert re.search(r"/snapshot/debian/2026\d{4}T\d{6}Z$", main), main
        assert security.replace("-security/", "/") == main
        return f"# snapshot\ndeb [{options}] {mirror} {name} main\n"

    usual = roots._source_lines
    choose = lambda main, *a: (lines if "snapshot" in main else usual)(main, *a)  # noqa: E731
    monkeypatch.setattr(roots, "_source_lines", choose)
    monkeypatch.setenv("KIT_SANDBOX_SNAPSHOT", "http://127.0.0.1/snapshot")
    program(tmp_path, monkeypatch, "apt-get", STALE)
    said = []
    assert roots.make(cache, "bookworm", said.append).exists()
    assert "newer packages than the lock" in said[1]
    assert package.exists()


@pytest.mark.slow
def test_without_that_snapshot_a_new_lock_is_the_next_step(source, cache, tmp_path, monkeypatch):
    next(cache.glob("packages/hostname_*.deb")).unlink()
    monkeypatch.setenv("KIT_SANDBOX_SNAPSHOT", "http://127.0.0.1:9/snapshot")
    program(tmp_path, monkeypatch, "apt-get", STALE)
    with pytest.raises(KitError, match=r"3\.23[\s\S]*127\.0\.0\.1") as caught:
        roots.make(cache, "bookworm", print)
    assert "kit sandbox lock bookworm" in caught.value.next_step
    lock = source / "roots" / "bookworm.lock"
    lock.write_text(re.sub("# As of .*\n", "", lock.read_text()))
    with pytest.raises(DataError, match="it has none"):
        roots.make(cache, "bookworm", print)


def start_and_wait_for(source, cache, path):
    """Start making a root in another process; return it when a file of the root is there."""
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/env/sandbox"}
    argv = [sys.executable, "-c", MAKE, str(source), str(cache)]
    process = subprocess.Popen(argv, env=environ, start_new_session=True)
    end = time.monotonic() + 30
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_root_whose_making_was_killed_is_not_used_and_made_again(source, cache, no_apt):
    new = cache / "roots" / "bookworm.new"
    with start_and_wait_for(source, cache, new / "usr" / "bin" / "bash") as process:
        os.killpg(process.pid, signal.SIGKILL)
    assert new.exists()
    assert not (cache / "roots" / "bookworm").exists()
    root = roots.make(cache, "bookworm", print)
    assert inside(root, "hostname") == "c1\n"
    assert not new.exists()


@pytest.mark.slow
def test_after_a_kill_of_the_command_alone_the_next_waits_for_what_it_started(
    source, cache, no_apt
):
    """Its `unpack.sh` is still writing, and must not write into the next root."""
    new, said = cache / "roots" / "bookworm.new", []
    with start_and_wait_for(source, cache, new / "usr" / "bin") as process:
        process.kill()
    root = roots.make(cache, "bookworm", said.append)
    assert said[0] == "another process is making it; waiting …"
    lines = (root / "etc" / "passwd").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines].count("hpcuser") == 1
    assert inside(root, "hostname") == "c1\n"


def in_a_mount(options, source, kept, folder):
    """Make a root below a tmpfs that is mounted with these options; return the process."""
    script = f"""mount -t tmpfs -o {options} tmpfs "$1" && mkdir -m 700 "$1/c" &&
        cp -r "$2/packages" "$1/c" && exec "$3" -c "$4" "$5" "$1/c" """
    own = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
    folder.mkdir()
    words = [folder, kept, sys.executable, MAKE, source]
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/env/sandbox"}
    argv = [*own, "sh", "-c", script, "-", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, env=environ)


@pytest.mark.slow
def test_full_disk_is_reported_as_such(source, kept, tmp_path):
    done = in_a_mount("size=30M", source, kept, tmp_path / "disk")
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
    assert "free space" in done.stderr


@pytest.mark.slow
def test_folder_where_no_program_may_run_is_refused_by_name(source, kept, tmp_path):
    done = in_a_mount("noexec", source, kept, tmp_path / "disk")
    assert f"mounted noexec ({tmp_path}/disk)" in done.stderr
    assert "set KIT_CACHE_DIR" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="the other tests are those of an ordinary user")
def test_ordinary_user_without_any_rights_makes_and_enters_a_root(source, kept, short_folder):
    shutil.copytree(kept, short_folder / "kept")
    shutil.copytree(source, short_folder / "source")
    for path in (short_folder, *short_folder.rglob("*")):
        os.chown(path, 59777, 59777)
    script = """roots/unpack.sh "$1/root" 59777 59777 "$1"/kept/packages/*.deb &&
        ./enter.sh "$1/root" login sh -c 'hostname; id -un; grep CapEff /proc/self/status'"""
    user = ["setpriv", "--reuid=59777", "--regid=59777", "--clear-groups", "--inh-caps=-all"]
    argv = [*user, "bash", "-c", script, "-", str(short_folder)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=short_folder / "source")
    assert done.stderr == ""
    assert done.stdout.split() == ["login", "hpcuser", "CapEff:", "0" * 16]


@pytest.mark.slow
def test_what_nothing_of_the_sandbox_reads_is_not_unpacked(kept, tmp_path):
    stay = ["usr/bin/mariadb-install-db", "usr/bin/mariadb-admin", "usr/bin/ceph-osd"]
    go = ["usr/share/javascript/moment.js", "usr/share/doc/a", "usr/bin/ceph-objectstore-tool"]
    go += ["usr/bin/mariadb-dump", "usr/bin/myisampack", "usr/bin/cephfs-data-scan"]
    control = tmp_path / "deb" / "DEBIAN" / "control"
    for name in (*stay, *go, "DEBIAN/control"):
        (tmp_path / "deb" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "deb" / name).touch()
    control.write_text("Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n")
    subprocess.run(["dpkg-deb", "--build", "deb", "a.deb"], cwd=tmp_path, check=True)
    packages = [tmp_path / "a.deb", *(kept / "packages").glob("*.deb")]
    argv = [roots.SOURCE / "roots" / "unpack.sh", tmp_path / "root", os.getuid(), os.getgid()]
    subprocess.run([str(word) for word in (*argv, *packages)], check=True)
    assert [name for name in (*stay, *go) if (tmp_path / "root" / name).exists()] == stay


@pytest.fixture
def short_folder():
    """A folder that other users reach."""
    folder = Path(f"/tmp/kit-roots-{os.getpid()}")
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def test_folder_that_somebody_else_could_have_filled_is_refused(tmp_path):
    (tmp_path / "cache").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="it is a symlink"):
        roots.make(tmp_path / "cache", "bookworm", print)
