"""The checks of `kit doctor` on the supercomputer: keys, ssh, Slurm, modules, the folder."""

from collections.abc import Iterable
from datetime import datetime

from kit.base import (
    CommandFailed,
    CredentialExpired,
    CredentialRefused,
    HostKeyRefused,
    Unreachable,
    UsageError,
)
from kit.base.settings import Settings
from kit.doctor import keys as doctor_keys
from kit.doctor.context import Check, Ground
from kit.doctor.findings import Found, Known, Skipped
from kit.submitter import env as hpc_env

SKEW_S = 60.0  # seen beside that: the time the answer took
SHORT_S = 3600.0
# As in the batch script: a shell that is no login shell has no `module` of its own.
LOAD = """\
[ -z "$1" ] || source "$1"
[ -z "$2" ] || module use "$2"
shift 2
module load "$@"
"""
PYTHON = LOAD.replace(
    'module load "$@"', '[ $# -lt 2 ] || module load "${@:2}" >&2\n"$1" --version'
)
# $1 the project's folder: write a MiB there, say what is left, try the two links of a try.
FOLDER = r"""
[ -d "$1" ] || { echo "@missing"; exit; }
new=$(mktemp -d "$1/.kit-doctor.XXXXXX" 2>&1) || { echo "@full $new"; exit; }
trap 'rm -rf "$new"' EXIT
said=$(dd if=/dev/zero of="$new/file" bs=64k count=16 2>&1) || { echo "@full $said"; exit; }
for who in first second; do ln -sT "$who" "$new/link" 2>/dev/null; done
echo "@ok $(readlink "$new/link") $(df -Pk "$1" | tail -n 1)"
"""
SSH: Known = {
    CredentialExpired: "certificate-expired",
    CredentialRefused: "ssh-refused",
    HostKeyRefused: "host-key",
    UsageError: "ssh-settings",
    Unreachable: "ssh-away",
}
SLURM: Known = {CommandFailed: "slurm-away", Unreachable: "slurm-away"}


def checks(loaded: Settings) -> Iterable[Check]:
    """Name the checks that this profile has something for."""
    if loaded.hpc is None:
        return
    yield Check("ssh key", _key, {})
    if loaded.hpc.certificate:
        yield Check("ssh certificate", _certificate, {})
    yield Check("ssh", _ssh, SSH)
    yield Check("clock", _clock, {})
    yield Check("Slurm", _slurm, SLURM)
    yield Check("modules", _modules, {})
    yield Check("environment", _environment, {})
    yield Check("seff", _seff, {})
    yield Check("project folder", _folder, {})
    yield Check("links", _links, {})
    yield Check("site's tunnels", _tunnels, {})


def _key(ground: Ground) -> str:
    return ground.site_key.get()


def _certificate(ground: Ground) -> str:
    doctor_keys.here()
    hpc, end = ground.hpc, ground.site_ssh().valid_until()
    if end is None:
        raise Found("certificate-missing", f"for {hpc.ssh_host}", hpc.renew_hint)
    left = end - ground.clock()
    if left <= 0:
        raise Found("certificate-expired", f"{-left:.0f} s ago", hpc.renew_hint)
    if left < SHORT_S:
        raise Found("certificate-short", f"in {left / 60:.0f} min", hpc.renew_hint)
    return f"good for {left / 3600:.1f} h"


def _ssh(ground: Ground) -> str:
    done = ground.site.get().run(["hostname"], timeout=20)
    return f"{ground.hpc.ssh_host} is {done.out.strip()}, {done.seconds * 1000:.0f} ms"


def _clock(ground: Ground) -> str:
    host, begin = ground.site.needed(), ground.clock()
    said = host.run(["date", "+%s.%N"], timeout=20).out
    end = ground.clock()
    skew, took = float(said) - (begin + end) / 2, end - begin
    if abs(skew) > SKEW_S + took:
        there = datetime.fromtimestamp(float(said)).astimezone()
        raise Found("clock-off", f"by {skew:+.0f} s: it is {there:%Y-%m-%d %H:%M:%S %z} there")
    return f"{skew * 1000:+.0f} ms, known to {took * 500:.0f} ms"


def _slurm(ground: Ground) -> str:
    host, hpc = ground.site.needed(), ground.hpc
    if host.run(["bash", "-c", "command -v sinfo sacctmgr"], timeout=20, check=False).code:
        raise Found("slurm-missing", hpc.ssh_host)
    partition = host.run(["sinfo", "-h", "-p", hpc.partition, "-o", "%R %a %l %D"], timeout=20).out
    if not partition.strip():
        known = sorted({*host.run(["sinfo", "-h", "-o", "%R"], timeout=20).out.split()})
        raise Found("partition-unknown", f"{hpc.partition!r} on {hpc.ssh_host}",
                    f"set [hpc] partition to one of: {', '.join(known)}")  # fmt: skip
    user = host.run(["id", "-un"], timeout=20).out.strip()
    ask = ["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Account"]
    accounts = sorted({*host.run(ask, timeout=20).out.split()})
    if hpc.account and hpc.account not in accounts:
        raise Found("account-missing", f"{hpc.account!r} for {user} on {hpc.ssh_host}",
                    f"set [hpc] account to one of: {', '.join(accounts) or 'none'}")  # fmt: skip
    return f"{hpc.account or 'no account'}; {' '.join(partition.split())}"


def _modules(ground: Ground) -> str:
    host, hpc = ground.site.needed(), ground.hpc
    if not hpc.modules:
        return "none asked for"
    argv = ["bash", "-c", LOAD, "modules", hpc.module_init, hpc.module_path, *hpc.modules]
    done = host.run(argv, timeout=30, check=False)
    if done.code:
        said = (done.err or done.out).strip()[-300:]
        raise Found("module-missing", f"{' '.join(hpc.modules)} on {hpc.ssh_host}: {said}")
    return f"{', '.join(hpc.modules)} can be loaded"


def _environment(ground: Ground) -> str:
    """Look for the environment that a run with configured = True would take, and its Python."""
    host, hpc = ground.site.needed(), ground.hpc
    argv = ["bash", "-c", PYTHON, "python", hpc.module_init, hpc.module_path, hpc.python]
    done = host.run([*argv, *hpc.modules], timeout=30, check=False)
    if done.code:
        raise Found("python-missing", f"{hpc.python}: {done.err.strip()[-300:]}")
    key = hpc_env.environment_key(hpc, hpc_env.pins())
    link = f"{hpc.project_dir}/kit/venvs/{key}"
    made = host.run(["readlink", "-e", link], timeout=20, check=False).out.strip()
    if not made:
        raise Found("environment-missing", f"{link}; {done.out.strip()} is there to make it")
    return f"{made} on {done.out.strip()}"


def _seff(ground: Ground) -> str:
    host, hpc = ground.site.needed(), ground.hpc
    there = host.run(["bash", "-c", "command -v seff"], timeout=20, check=False).code == 0
    if hpc.seff and not there:
        raise Found("seff-missing", hpc.ssh_host)
    return "there" if there else "not there: the kit computes its figures from sacct"


def _looked(ground: Ground) -> tuple[str, str]:
    """Try the project's folder: what came of it, and the rest of the line."""
    done = ground.site.needed().run(["bash", "-c", FOLDER, "folder", ground.hpc.project_dir])
    line = next((line for line in done.out.splitlines() if line.startswith("@")), "@full no answer")
    return (line[1:].partition(" ")[0], line.partition(" ")[2])


def _folder(ground: Ground) -> str:
    state, rest = _looked(ground)
    place = ground.hpc.project_dir
    if state == "missing":
        raise Found("folder-missing", place)
    if state == "full":
        missing = "Permission denied" in rest or "Read-only" in rest
        raise Found("folder-missing" if missing else "folder-full", f"{place}: {rest[-300:]}")
    words = rest.split()
    left = int(words[4]) / 2**20 if len(words) > 5 and words[4].isdigit() else 0
    return f"a MiB was written to {place}; {left:.1f} GiB are left on its file system"


def _links(ground: Ground) -> str:
    """Try the primitive that a try rests on; `--race` tries it against a job on a node."""
    state, rest = _looked(ground)
    if state != "ok":
        raise Skipped("not tried: it needs the project folder")
    if not rest.startswith("first "):
        raise Found("links-broken", f"the second link won: {rest.split()[:1]}")
    return "the first of two links won"


def _tunnels(ground: Ground) -> str:
    """Say whether the login node lets connections through: nothing of the kit needs that."""
    ground.site.needed()
    return "allowed" if doctor_keys.lets_through(ground.site_ssh()) else "barred"
