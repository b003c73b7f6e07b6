"""What sandboxes of earlier versions left: accounts, packages, software, an address."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from kit.base import KitError
from kit_sandbox.folders import check_owner
from kit_sandbox.roots import LINK

ACCOUNT_MARK = "Cloud-HPC kit sandbox"  # the comment of the accounts that it created
# what it installed, without programs that people use for other things as well
PACKAGES = (
    *("ceph-common", "ceph-mon", "ceph-osd", "lmod", "mariadb-server", "munge", "prometheus"),
    *("radosgw", "redis-server", "slurm-client", "slurm-wlm", "slurmdbd"),
)
LENT_ADDRESS = "192.0.2.1/32"


def is_old(folder: Path) -> bool:
    """Report whether a state folder is that of an earlier version, which had no Debian root."""
    return (folder / "etc" / "sandbox.env").exists() and not os.path.lexists(folder / LINK)


def accounts() -> list[str]:
    """List the accounts on this machine that an earlier version created."""
    return [row.pw_name for row in pwd.getpwall() if row.pw_gecos == ACCOUNT_MARK]


def software() -> list[Path]:
    """List the folder of Python software that an earlier version made for this user."""
    folder = Path(f"/var/tmp/kit-{os.getuid()}-apps")  # noqa: S108 - only to be removed
    return [folder] if os.path.lexists(folder) else []


def packages() -> list[str]:
    """List its packages that are installed; none without its accounts, which came with them."""
    if not accounts():
        return []
    argv = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *PACKAGES]
    done = subprocess.run(argv, capture_output=True, text=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")]


def left() -> str:
    """Return in words what is left of an earlier version; empty if nothing is."""
    parts = {
        "accounts": accounts(),
        "packages": packages(),
        "software": [str(path) for path in software()],
    }
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in parts.items() if names)


def remove(with_packages: bool, report: Callable[[str], None]) -> None:
    """Remove what is left; packages only if that is wanted. Accounts and packages need root."""
    commands = [["userdel", name] for name in accounts()]
    purge, names = ["apt-get", "-q", "-y", "purge"], packages()
    if names and with_packages:
        commands.append([*purge, *names])
    if os.getuid() == 0 and accounts():
        # it is there only while such a sandbox runs without a network, or after a crash
        subprocess.run(["ip", "address", "del", LENT_ADDRESS, "dev", "lo"], capture_output=True)
    for argv in commands:
        if os.getuid() != 0:
            report(f"left for root: sudo {' '.join(argv)}")
            continue
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode != 0:
            raise KitError(" ".join(argv), done.stderr.strip(), "repeat it by hand")
        report(f"done: {' '.join(argv)}")
    if names and not with_packages:
        report(f"its packages stay; to remove them as well: sudo {' '.join([*purge, *names])}")
    for folder in software():
        check_owner(folder, os.getuid(), "have it removed by its owner")
        shutil.rmtree(folder)
        report(f"removed {folder}")
