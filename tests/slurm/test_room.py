"""The room of a folder on the site: what df and the quota tools say."""

import math
import os
import subprocess

import captured
import pytest

from kit.slurm import Room, read_room, room_argv

DF = """@blocks
Filesystem     1024-blocks      Used Available Capacity Mounted on
10.1.2.3@o2ib:/scratch 1000000000 400000000 600000000      40% /scratch
@inodes
Filesystem      Inodes IUsed   IFree IUse% Mounted on
10.1.2.3@o2ib:/scratch 5000000 100000 4900000    2% /scratch
"""


@pytest.mark.parametrize(
    ("name", "kib", "files"),
    [
        ("made/lfs-quota-project.txt", 600_000_000, 4_900_000),  # more than the disk has
        ("made/lfs-quota-wrapped.txt", 600_000_000, 0),
        ("made/lfs-quota-new-names.txt", 52428800 - 2537554, 1_000_000 - 511),
        ("made/quota-raw-grace.txt", 6291456 - 4194304, 4_900_000),
    ],
)
def test_least_room_of_disk_and_quota_counts(name, kib, files):
    assert read_room(f"{DF}@quota\n{captured.read(name)}") == Room(kib, files)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noise of a start file 1 2 3 4 - 5 6 7 -\n",
        "@blocks\n@inodes\n@quota\n",
        "@quota\nDisk quotas for user me (uid 1000): none\n",
        "@quota\n/home 1 2 x - 3 4 5 -\n",
        "@inodes\nFilesystem Inodes IUsed IFree IUse% Mounted on\n/dev/sda1 0 0 0 - /\n",  # btrfs
        "@quota\n/home 100 0 0 - 100 0 0 -\n",  # no limits
    ],
)
def test_what_nobody_says_limits_nothing(text):
    assert read_room(text) == Room(math.inf, math.inf)
    assert str(read_room(text)) == "any size in any number of files"


def test_room_above_the_quota_is_none_and_is_written_so():
    room = read_room("@quota\n/home 300* 100 200 6d 30* 10 20 6d\n")
    assert (room, str(room)) == (Room(-100, -10), "0.00 GiB in 0 files")
    assert not room.holds(Room(0, 0))


def test_script_asks_the_tools_of_this_machine(tmp_path):
    stat = os.statvfs(tmp_path)
    argv = room_argv(str(tmp_path), str(tmp_path))
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:7]) == (0, "@there\n"), done.stderr
    argv = room_argv(str(tmp_path), f"{tmp_path}/gone")
    assert "@there" not in subprocess.run(argv, capture_output=True, text=True).stdout
    room = read_room(done.stdout)
    assert 0 < room.kib <= stat.f_blocks * stat.f_frsize / 1024


def test_quota_of_the_folders_project_is_asked_of_lustre(tmp_path):
    lfs = tmp_path / "lfs"
    lfs.write_text("""#!/bin/sh
echo "$*" >>"${0%/*}/asked"
case "$1 $2" in
"project -d") echo "  200020 P $3" ;;
"quota -p") echo "$4"; echo "    100 0 150 - 7 0 9 -" ;;
"quota -g") echo "Permission denied" >&2; exit 1 ;;
esac
""")
    lfs.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(room_argv("/"), capture_output=True, text=True, env=environ)
    assert read_room(done.stdout) == Room(50, 2)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:2] == ["project -d /", "quota -p 200020 /"]
    assert [line.split()[1] for line in asked[2:]] == ["-u", "-g"]
