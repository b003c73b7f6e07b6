"""Private Debian roots: the folders that the services run in, made from Debian's own packages.

Nothing is installed on the machine and no privilege is needed: apt downloads into folders of the
sandbox and checks Debian's signatures, `roots/unpack.sh` unpacks. `roots/NAME.lock` has the
SHA-256 of each package, which is compared every time. Kept packages make the next root without
a network. `enter.sh` runs a command in a root.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from kit.base import ROOT, DataError, KitError, UsageError
from kit_sandbox import machine
from kit_sandbox.folders import own_folder
from kit_sandbox.sites import FIRST_UID, SITES, site_in

Report = Callable[[str], None]
SOURCE = ROOT / "env" / "sandbox"
ENTER = SOURCE / "enter.sh"
NAMES = tuple(site.root for site in SITES.values())
PUBLIC_MIRROR = "http://deb.debian.org/debian"
# Every state of Debian's archive, by date; KIT_SANDBOX_SNAPSHOT names another such place.
SNAPSHOT = "http://snapshot.debian.org/archive"
AS_OF = "# As of "  # before the date in a lock, such as 20261127T184500Z
GONE = "was not found"  # apt's words for a version that the mirror has no more
KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"
STAMP = "etc/kit-root"
LINK = "root"  # in every state folder: to the root of its services
# Dir::*: nothing of the machine's own apt is read or changed but how it reaches the network
APT_CONF = """\
Dir::State "{apt}";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}";
Dir::Cache::archives "{archives}";
Dir::Etc::sourcelist "{apt}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Debug::NoLocking "true";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""


def make(cache: Path, name: str, report: Report) -> Path:
    """Return the folder of a root, made if it is missing or was made from another lock.

    It is made under another name and renamed when it is whole. Raises UsageError if this machine
    cannot make or enter one, DataError for a package that is not the locked one, KitError if the
    download or the unpacking fails.
    """
    step = "set KIT_CACHE_DIR to a folder of your own, or look at what is in this one and remove it"
    machine.check_cache(cache, report)
    own_folder(cache, 0o700, step)
    folder = own_folder(cache / "roots", 0o700, step)
    root = folder / name
    with exclusive(folder / f"{name}.busy", report):
        if _made_from(root) == _recipe(name):
            return root
        machine.check_machine(ENTER)
        packages = _packages(own_folder(cache / "packages", 0o700, step), name, report)
        report(f"unpacking {len(packages)} packages into {root} …")
        new = folder / f"{name}.new"
        for left_over in (new, folder / f"{name}.old"):
            shutil.rmtree(left_over, ignore_errors=True)
        own_folder(new, 0o755, step)
        ids = (FIRST_UID, FIRST_UID) if os.getuid() == 0 else (os.getuid(), os.getgid())
        words = [SOURCE / "roots" / "unpack.sh", new, *ids, *packages]
        _call(words, "unpack Debian packages", more=_differences(name))
        (new / STAMP).write_text(_recipe(name))
        if root.exists():
            root.rename(folder / f"{name}.old")
        new.rename(root)
        shutil.rmtree(folder / f"{name}.old", ignore_errors=True)
    return root


def inside(state: Path, argv: Sequence[str | Path], host: str = "login") -> list[str]:
    """Return the command that runs `argv` in the root of a sandbox, on a host of that name.

    `state` is its folder. The command needs SBX in its environment (`services.environment`).
    """
    return [str(word) for word in (ENTER, state / LINK, host, *argv)]


def write_lock(cache: Path, name: str, report: Report) -> Path:
    """Write the lock of a root from what the mirror has now; return its path.

    The downloaded packages are kept for the next root.
    """
    step = "remove it, or set KIT_CACHE_DIR to a folder of your own"
    packages = own_folder(own_folder(cache, 0o700, step) / "packages", 0o700, step)
    wanted = [line for line in _lines(SOURCE / "roots" / f"{name}.packages")]
    with exclusive(packages / "busy", report), _apt(packages, _sources(name)) as (apt, archives):
        words = ["install", "--yes", "--download-only", "?essential", *wanted]
        _call([*apt, *words], f"download the packages of {name}")
        rows = {path.name: _sha256(path) for path in archives.glob("*.deb")}
        for file in rows:
            (archives / file).replace(packages / file)
    lock = SOURCE / "roots" / f"{name}.lock"
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    head = f"# Packages of the root {name}; written by `kit sandbox lock {name}`.\n{AS_OF}{now}\n"
    lock.write_text(head + "".join(f"{rows[file]}  {file}\n" for file in sorted(rows)))
    return lock


def _packages(folder: Path, name: str, report: Report) -> list[Path]:
    """Return the locked packages, each compared with its SHA-256, downloaded if not kept."""
    lock = _lock(name)
    with exclusive(folder / "busy", report):
        missing = [file for file in lock if not _is_good(folder / file, lock[file])]
        if missing:
            report(f"downloading {len(missing)} Debian packages for {name} …")
            _download(folder, name, {file: lock[file] for file in missing}, report)
    return [folder / file for file in lock]


def _download(folder: Path, name: str, rows: Mapping[str, str], report: Report) -> None:
    """Download packages; whole ones are kept, also when another one fails.

    A mirror keeps the newest version of a package only. What it has no more comes from the
    snapshot of Debian's archive at the date of the lock, signed and compared like the rest.
    """
    try:
        _download_from(_sources(name), folder, name, rows)
    except KitError as err:
        if GONE not in err.got:
            raise
        report("the mirror has newer packages than the lock: asking the snapshot of its date …")
        try:
            _download_from(_snapshot(name), folder, name, rows)
        except DataError:
            raise
        except KitError as later:
            got = f"{err.got}; {later.got}"
            step = f"try again later, or write a new lock: kit sandbox lock {name}"
            raise KitError(err.tried, got, step) from later


def _download_from(sources: str, folder: Path, name: str, rows: Mapping[str, str]) -> None:
    with _apt(folder, sources) as (apt, archives):
        try:
            words = ["download", *(_specification(file) for file in rows)]
            _call([*apt, *words], f"download the packages of {name}", archives)
        finally:
            good = [file for file in rows if _is_good(archives / file, rows[file])]
            for file in good:
                (archives / file).replace(folder / file)
        wrong = sorted(set(rows) - set(good))
        if wrong:
            raise DataError(
                f"{len(wrong)} packages are not those of {name}.lock",
                ", ".join(wrong),
                f"look into the mirror; a new lock is written by: kit sandbox lock {name}",
            )


@contextmanager
def _apt(folder: Path, sources: str) -> Iterator[tuple[list[str | Path], Path]]:
    """Yield apt-get with folders and package lists of its own, and its archives folder."""
    apt = folder / "apt"
    shutil.rmtree(apt, ignore_errors=True)
    archives = apt / "archives"
    for part in (archives / "partial", apt / "lists" / "partial"):
        part.mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(sources)
    (apt / "apt.conf").write_text(APT_CONF.format(apt=apt, archives=archives))
    command: list[str | Path] = ["apt-get", "-c", apt / "apt.conf", "-qq"]
    try:
        _call([*command, "update"], "read the package lists of Debian")
        yield command, archives
    finally:
        shutil.rmtree(apt, ignore_errors=True)


def _sources(name: str) -> str:
    """Return apt's sources: Debian's mirrors of this machine's own apt, else the public one.

    KIT_SANDBOX_MIRROR names another mirror, such as an earlier state of the archive.
    """
    keyring = Path("/", KEYRING)
    if not keyring.exists():
        raise UsageError(
            "check the signatures of Debian's packages",
            f"{keyring} does not exist",
            "sudo apt-get install debian-archive-keyring",
        )
    main = os.environ.get("KIT_SANDBOX_MIRROR") or _mirror("") or PUBLIC_MIRROR
    security = _mirror("-security") or f"{main}-security"
    if os.environ.get("KIT_SANDBOX_MIRROR"):
        security = f"{main}-security"
    return _source_lines(main, security, name, f"signed-by={keyring}")


def _snapshot(name: str) -> str:
    """Return apt's sources: Debian's archive as it was when the lock was written.

    Raises DataError for a lock without a date.
    """
    lock = SOURCE / "roots" / f"{name}.lock"
    dates = [line for line in lock.read_text().splitlines() if line.startswith(AS_OF)]
    if not dates:
        raise DataError(f"read the date of {lock}", "it has none", f"kit sandbox lock {name}")
    base, date = os.environ.get("KIT_SANDBOX_SNAPSHOT", SNAPSHOT), dates[0].removeprefix(AS_OF)
    main, security = (f"{base}/{kind}/{date}" for kind in ("debian", "debian-security"))
    return _source_lines(main, security, name, f"check-valid-until=no signed-by=/{KEYRING}")


def _source_lines(main: str, security: str, name: str, options: str) -> str:
    rows = [(main, name), (main, f"{name}-updates"), (security, f"{name}-security")]
    return "".join(f"deb [{options}] {url} {suite} main\n" for url, suite in rows)


def _mirror(kind: str) -> str:
    """Return where this machine gets Debian's main or "-security" packages; empty if unknown."""
    form = "$(ORIGIN) $(RELEASE) $(REPO_URI)"
    argv = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    done = subprocess.run(argv, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        origin, _, rest = line.partition(" ")
        release, _, url = rest.partition(" ")
        if origin == "Debian" and release.endswith("-security") == bool(kind):
            return url.rstrip("/")
    return ""


def _specification(file: str) -> str:
    """Return NAME=VERSION of a package's file name, NAME_VERSION_ARCHITECTURE.deb."""
    package, version, _ = file.removesuffix(".deb").split("_")
    return f"{package}={unquote(version)}"


def _lock(name: str) -> dict[str, str]:
    """Read a lock: {file: SHA-256}."""
    rows = [line.split() for line in _lines(SOURCE / "roots" / f"{name}.lock")]
    return {file: sha256 for sha256, file in rows}


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _recipe(name: str) -> str:
    """Return a hash of all that a root is made from."""
    parts = [SOURCE / "roots" / f"{name}.lock", SOURCE / "roots" / "unpack.sh"]
    texts = [*(part.read_bytes() for part in parts), repr(_differences(name)).encode()]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _differences(name: str) -> dict[str, str]:
    """Return the variables of `unpack.sh` that make the root of a site that site's."""
    site = site_in(name)
    return {
        "SITE_USER": site.user,
        "SITE_SHELL": site.login_shell,
        "SITE_ZONE": site.zone,
        "SITE_LOCALE": site.locale,
    }


def _made_from(root: Path) -> str:
    stamp = root / STAMP
    return stamp.read_text() if stamp.exists() else ""


def _is_good(path: Path, sha256: str) -> bool:
    return path.exists() and _sha256(path) == sha256


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def exclusive(file: Path, report: Report) -> Iterator[None]:
    """Let one process at a time make what this file is for.

    The programs that it calls hold the lock as well: when it is killed, the next one waits until
    they have ended, and does not find them writing into what it makes.
    """
    with open(file, "w") as stream:
        os.set_inheritable(stream.fileno(), True)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is making it; waiting …")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _call(
    argv: Sequence[object],
    tried: str,
    folder: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> None:
    """Run a program with the locale C. Raises KitError with what it said."""
    words = [str(word) for word in argv]
    environ = {**os.environ, "LC_ALL": "C", **(more or {})}
    # close_fds: what is inherited are the locks of `exclusive`, nothing else
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=folder, env=environ, close_fds=False
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:] or "no output"
        step = "fix what it names (network, mirror, free space), then repeat the command"
        raise KitError(tried, f"{Path(words[0]).name}: {said}", step)
