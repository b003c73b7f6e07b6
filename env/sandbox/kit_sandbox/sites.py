"""The Slurm sites of the sandbox, and how they differ for the people who use them.

The second one is different on purpose, as centres are: what works on both is not an accident of
one machine. Its configuration files are below `env/sandbox/etc_second`.
"""

import os
from typing import NamedTuple

VM_ACCOUNTS = ("clouduser", "kit-tunnel")  # who administers the VM, who opens tunnels
FIRST_UID = 59001  # of the accounts that root makes: outside the ranges that systems give out


class SandboxSite(NamedTuple):
    """A site: its Debian root and what is made in it.

    `user` runs the jobs and has `login_shell`; sessions and jobs have `locale`, clocks
    show `zone`. `takes_keys`: a key alone logs in, without a certificate. `controller` is added to
    the slurm.conf of slurmctld.
    """

    root: str
    user: str
    login_shell: str
    zone: str
    locale: str
    takes_keys: bool
    controller: str = ""


SITES = {
    "sandbox": SandboxSite("bookworm", "hpcuser", "/bin/bash", "UTC", "C.UTF-8", takes_keys=True),
    "sandbox-trixie": SandboxSite(
        root="trixie",
        user="mvirtane",
        login_shell="/bin/tcsh",
        zone="Europe/Helsinki",
        locale="fi_FI.UTF-8",
        takes_keys=False,
        controller="JobSubmitPlugins=lua",
    ),
}
PROFILES = tuple(SITES)


def site_in(root: str) -> SandboxSite:
    """Return the site whose Debian root has this name."""
    return next(site for site in SITES.values() if site.root == root)


def account_uid(name: str) -> int:
    """Return the uid of an account inside a root: one's own, unless root made it."""
    if os.getuid() != 0:
        return os.getuid()
    return FIRST_UID + (1 + VM_ACCOUNTS.index(name) if name in VM_ACCOUNTS else 0)
