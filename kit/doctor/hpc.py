"""The checks of `kit doctor` on the supercomputer: key, ssh, Slurm, modules, project folder."""

import shlex
from collections.abc import Iterable
from datetime import datetime

from kit.base import (
    ClosedBeforeLogin,
    CommandFailed,
    CredentialExpired,
    CredentialRefused,
    Host,
    HostKeyRefused,
    Unreachable,
    UsageError,
)
from kit.base.settings import Hpc, Settings
from kit.doctor import in_job, keys, link_race
from kit.doctor.context import Check, CheckContext, shell_file
from kit.doctor.diagnosis import CheckSkipped, DiagnosisError, Known
from kit.slurm import NO_ACCOUNTING, SitePaths, Slurm, module_lines, read_room, room_argv

MAX_SKEW_S = 60.0  # beside the time that the answer took
SHORT_S = 3600.0
TORCH_STEP = "name a Python with PyTorch in [hpc] python, or the module that brings it in modules"

_VERSIONS = "import importlib.metadata, sys; [*map(importlib.metadata.version, sys.argv[1:])]"

SSH: Known = {
    CredentialExpired: "certificate-expired",
    CredentialRefused: "ssh-refused",
    ClosedBeforeLogin: "ssh-closed",
    HostKeyRefused: "host-key",
    UsageError: "ssh-settings",
    Unreachable: "ssh-away",
}
SLURM: Known = {CommandFailed: "slurm-away", Unreachable: "slurm-away"}


def checks(settings: Settings) -> Iterable[Check]:
    """Yield the checks that this profile has something for."""
    if settings.hpc is None:
        return
    yield Check("ssh key", _key, {})
    if settings.hpc.needs_certificate:
        yield Check("ssh certificate", _certificate, {})
    yield Check("ssh", _ssh, SSH)
    yield Check("clock", _clock, {})
    yield Check("Slurm", _slurm, SLURM)
    yield Check("modules", _modules, {UsageError: "module-missing"})
    if settings.hpc.container:
        yield Check("container", _container, {UsageError: "container-fails"})
    yield Check("environment", _environment, {UsageError: "module-missing"})
    yield Check("seff", _seff, {})
    yield Check("project folder", _folder, {})
    yield Check("links", _links, {})
    yield Check("site's tunnels", _tunnels, {})


def _key(context: CheckContext) -> str:
    return context.site_key.get()


def _certificate(context: CheckContext) -> str:
    keys.require_ssh()
    hpc, end = context.hpc, context.site_ssh().valid_until()
    if end is None:
        raise DiagnosisError("certificate-missing", f"for {hpc.ssh_host}", hpc.renew_hint)
    left = end - context.clock()
    if left <= 0:
        raise DiagnosisError("certificate-expired", f"{-left:.0f} s ago", hpc.renew_hint)
    if left < SHORT_S:
        raise DiagnosisError("certificate-short", f"in {left / 60:.0f} min", hpc.renew_hint)
    return f"valid for {left / 3600:.1f} h"


def _ssh(context: CheckContext) -> str:
    done = context.site.get().run(["hostname"], timeout=20)
    return f"{context.hpc.ssh_host} is {done.out.strip()}, {done.seconds * 1000:.0f} ms"


def _clock(context: CheckContext) -> str:
    host, begin = context.site.needed(), context.clock()
    there = float(host.run(["date", "+%s.%N"], timeout=20).out)
    end = context.clock()
    skew, seconds = there - (begin + end) / 2, end - begin
    if abs(skew) > MAX_SKEW_S + seconds:
        time = datetime.fromtimestamp(there).astimezone()
        got = f"by {skew:+.0f} s: it is {time:%Y-%m-%d %H:%M:%S %z} there"
        raise DiagnosisError("clock-off", got)
    return f"{skew * 1000:+.0f} ms, known to {seconds * 500:.0f} ms"


def _slurm(context: CheckContext) -> str:
    host, hpc = context.site.needed(), context.hpc
    if host.run(["bash", "-s"], b"command -v sinfo sacctmgr", timeout=20, check=False).code:
        raise DiagnosisError("slurm-missing", hpc.ssh_host)
    partition = _partition(host, hpc)
    user = host.run(["id", "-un"], timeout=20).out.strip()
    accounts = _accounts(host, user)
    if accounts is None:
        return f"{partition}; no accounting, so the figures of its jobs are not known"
    if hpc.account and hpc.account not in accounts:
        got = f"{hpc.account!r} for {user} on {hpc.ssh_host}"
        step = f"set [hpc] account to one of: {', '.join(accounts) or 'none'}"
        raise DiagnosisError("account-missing", got, step)
    return f"{hpc.account or 'no account'}; {partition}"


def _accounts(host: Host, user: str) -> list[str] | None:
    """List the Slurm accounts of a user; None on a site without accounting, which has none."""
    argv = ["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Account"]
    try:
        return sorted({*host.run(argv, timeout=20).out.split()})
    except CommandFailed as err:
        if NO_ACCOUNTING.search(err.got):
            return None
        raise


def _partition(host: Host, hpc: Hpc) -> str:
    """Describe the profile's partition; without a name it is the site's default, marked by `*`."""
    rows = host.run(["sinfo", "-h", "-o", "%P %a %l %D"], timeout=20).out.splitlines()
    named = {line.split()[0]: line for line in rows if line.strip()}
    if not hpc.partition:
        defaults = [line for name, line in named.items() if name.endswith("*")]
        if defaults:
            return " ".join(defaults[0].split())
    elif line := named.get(hpc.partition) or named.get(f"{hpc.partition}*"):
        return " ".join(line.split())
    step = f"set [hpc] partition to one of: {', '.join(sorted(name.rstrip('*') for name in named))}"
    kind = "partition-unknown" if hpc.partition else "partition-missing"
    raise DiagnosisError(kind, f"{hpc.partition!r} on {hpc.ssh_host}", step)


def _as_in_a_job(context: CheckContext, *lines: str) -> tuple[int, str, str]:
    """Run lines after the modules with an empty environment, as `--export=NIL` gives a job."""
    text = "\n".join([*module_lines(context.hpc), *lines, ""])
    host = context.site.needed()
    done = host.run(["env", "-i", "bash", "-s"], text.encode(), timeout=30, check=False)
    return done.code, done.out.strip(), done.err.strip()


def _modules(context: CheckContext) -> str:
    hpc = context.hpc
    if not hpc.modules:
        context.site.needed()
        return "none in the profile"
    code, out, err = _as_in_a_job(context)
    if code:
        got = f"{' '.join(hpc.modules)} on {hpc.ssh_host}: {(err or out)[-300:]}"
        raise DiagnosisError("module-missing", got)
    return f"{', '.join(hpc.modules)} can be loaded"


def _with_python(context: CheckContext, *lines: str) -> tuple[int, str, str]:
    """Run lines as in a job, where `inside` runs a program in the profile's container, if any."""
    from kit.submitter.container import python_lines

    return _as_in_a_job(context, *python_lines(context.hpc), *lines)


def _container(context: CheckContext) -> str:
    """Run Python in the image, as a job would on the login node's kind of machine."""
    hpc = context.hpc
    code, out, err = _with_python(context, f"inside {shlex.quote(hpc.python)} --version")
    if code == 0:
        return f"{out} runs in {SitePaths(hpc).image}"
    kinds = {"does not exist": "container-missing", "neither apptainer": "container-runtime"}
    kind = next((kinds[words] for words in kinds if words in err), "container-fails")
    raise DiagnosisError(kind, f"{SitePaths(hpc).image}: {err[-300:] or f'exit code {code}'}")


def _environment(context: CheckContext) -> str:
    """Look for the environment that a run with configured = True would use, and its Python."""
    from kit.submitter import env

    hpc = context.hpc
    code, out, err = _with_python(context, f"inside {shlex.quote(hpc.python)} --version")
    if code and hpc.container:
        raise CheckSkipped("not tried: it needs the container")
    if code:
        raise DiagnosisError("python-missing", f"{hpc.python}: {err[-300:]}")
    link = env.published_link(hpc)
    argv = ["readlink", "-e", link]
    folder = context.site.needed().run(argv, timeout=20, check=False).out.strip()
    if folder:
        return f"{folder} on {out}; {_packages(context, folder)}"
    look = (f"python={shlex.quote(hpc.python)}", shell_file("find_torch").decode())
    code, _, err = _with_python(context, *look)
    if code:
        got = f"{link}; {out} cannot create it: {err[-300:] or 'no answer'}"
        raise DiagnosisError("environment-missing", got, TORCH_STEP)
    raise DiagnosisError("environment-missing", f"{link}; {out} can create it")


def _packages(context: CheckContext, folder: str) -> str:
    """Look for the packages of the kit, and PyTorch, in an environment."""
    from kit.submitter import env

    names = ["torch", *(line.partition("==")[0] for line in env.pins().splitlines())]
    words = [f"{folder}/bin/python", "-c", _VERSIONS, *names]
    code, _, err = _with_python(context, "unset PYTHONPATH", f"inside {shlex.join(words)}")
    if code:
        got = f"{folder}: {err[-300:] or f'exit code {code}'}"
        step = f"`kit envs rm {folder.rpartition('/')[2]}`, then run with configured = False"
        raise DiagnosisError("environment-incomplete", got, step)
    return f"it has {len(names)} packages"


def _seff(context: CheckContext) -> str:
    host, hpc = context.site.needed(), context.hpc
    there = host.run(["bash", "-s"], b"command -v seff", timeout=20, check=False).code == 0
    if hpc.has_seff and not there:
        raise DiagnosisError("seff-missing", hpc.ssh_host)
    return "there" if there else "missing: the kit computes its figures from sacct"


def _probe_folder(context: CheckContext) -> tuple[str, str]:
    """Try the project's folder; return the state and the rest of the script's line."""
    argv = ["bash", "-s", "--", context.hpc.project_dir]
    out = context.site.needed().run(argv, shell_file("project_folder")).out
    line = next((line for line in out.splitlines() if line.startswith("@")), "@full no answer")
    state, _, rest = line[1:].partition(" ")
    return state, rest


def _folder(context: CheckContext) -> str:
    from kit.submitter.staging import needed_room

    state, rest = _probe_folder(context)
    place = context.hpc.project_dir
    if state == "missing":
        raise DiagnosisError("folder-missing", place)
    if state == "other":
        raise DiagnosisError("folder-of-another", f"{place}/kit")
    if state == "full":
        refused = "Permission denied" in rest or "Read-only" in rest
        kind = "folder-missing" if refused else "folder-full"
        raise DiagnosisError(kind, f"{place}: {rest[-300:]}")
    room = read_room(context.site.needed().run(room_argv(place), timeout=25, check=False).out)
    needed = needed_room(context.hpc, 0, builds=True)
    if not room.holds(needed):
        raise DiagnosisError("quota-short", f"{place} has room for {room}; a run: {needed}")
    return f"a MiB was written to {place}; there is room for {room}"


def _links(context: CheckContext) -> str:
    """Try the primitive that an attempt rests on; `--race` tries it against a job on a node."""
    state, rest = _probe_folder(context)
    if state != "ok":
        raise CheckSkipped("not tried: it needs the project folder")
    if rest != "first":
        raise DiagnosisError("links-broken", f"the second symlink won: {rest.split()[:1]}")
    return "the first of two symlinks won"


def _tunnels(context: CheckContext) -> str:
    """Report whether the login node lets connections through; the kit does not need it."""
    context.site.needed()
    return "allowed" if keys.allows_forwarding(context.site_ssh()) else "barred"


def check_links_against_a_job(context: CheckContext) -> str:
    """Run the race for symlinks between the login node and a job."""
    return link_race.check_race(Slurm(context.site.needed(), context.hpc))


def check_in_a_job(context: CheckContext) -> str:
    """Run a job that reports what it sees."""
    return in_job.check_with_job(Slurm(context.site.needed(), context.hpc))
