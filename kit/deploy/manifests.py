"""`kit platform`: the upstream source, the passwords and the manifests of `env/platform/`.

The passwords are in three files of `env/platform/secrets`, mode 600, which git ignores.
"""

import base64
import contextlib
import json
import os
import re
import secrets as random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kit.base import (
    ROOT,
    CommandFailed,
    DataError,
    Json,
    UsageError,
    read_env,
    read_private,
    sha256_of,
    write_text,
)
from kit.deploy import images

FOLDER = ROOT / "env" / "platform"
SOURCE = "https://github.com/OSS-MLOPS-PLATFORM/oss-mlops-platform"
COMMIT = "f34e78d4bb8616d5bcf3c617f38ebec037038848"
OLDEST_KUBECTL = (1, 21)  # kubectl that has kustomize 4: Debian 12's own, 1.20, knows no components
ENVIRONMENTS = tuple(sorted(path.name for path in (FOLDER / "envs").glob("*")))
FILES = ("platform.env", "people", "store.env")
PASSWORDS = (
    *("MLFLOW_DB_PASSWORD", "MLFLOW_MINIO_PASSWORD", "KFP_MINIO_PASSWORD", "KFP_DB_PASSWORD"),
    *("OIDC_CLIENT_SECRET", "DEX_PASSWORD", "GRAFANA_PASSWORD", "FLOWER_PASSWORD"),
    *("FORWARDER_GAUGES_TOKEN", "FORWARDER_TOKEN", "REDIS_PASSWORD"),
)
USERS = {"MLFLOW_MINIO_USER": "mlflow", "KFP_MINIO_USER": "kubeflow", "KFP_DB_USER": "root"}
MIN_PASSWORD_LENGTH = 24
DEFAULT_PROFILE = "roihu"  # the forwarder's
SITES_FOLDER = "/etc/kit-sites"  # where a profile of one's own is in the forwarder's pods
PLACEHOLDER = "placeholder-of-a-password"
PLACEHOLDER_BASE64 = base64.b64encode(PLACEHOLDER.encode()).decode()  # as it is in a Secret
# Passwords that upstream and its parts have committed, so that everybody can read them.
PUBLISHED = (
    "KFSg-AYoiPdfRun64z2-w89Kk7z5cJL2IbVvSd3l8Og",
    "pUBnBOY80SnXgjibTYM9ZWNzY2xreNGQok",
)
RECREATE = "remove that line and run `kit platform secrets` again"


def get_source(given: str = "", folder: Path = FOLDER) -> Path:
    """Clone the pinned commit to `folder`/upstream, or link `given` there.

    Raises UsageError if another folder is there, CommandFailed from git.
    """
    place = folder / "upstream"
    if given:
        wanted = Path(given).expanduser().resolve()
        check_source(wanted)
        if place.is_symlink() or not place.exists():
            place.unlink(missing_ok=True)
            place.symlink_to(wanted)
        if place.resolve() != wanted:
            step = f"remove {place}, then run it again"
            raise UsageError(f"{place} exists and is not KIT_PLATFORM_SOURCE", next_step=step)
        return place
    if not (place / ".git").exists():
        place.mkdir(exist_ok=True)
        _run(["git", "-C", str(place), "init", "--quiet"])
        _run(["git", "-C", str(place), "fetch", "--quiet", "--depth=1", SOURCE, COMMIT])
        _run(["git", "-C", str(place), "checkout", "--quiet", "FETCH_HEAD"])
    check_source(place)
    return place


def check_source(place: Path, commit: str = COMMIT, folder: Path = FOLDER) -> None:
    """Refuse an upstream folder that is missing, at another commit, or lacks a file we name."""
    if not (place / "deployment").is_dir():
        step = "run `make platform-source`, or set KIT_PLATFORM_SOURCE to a checkout of upstream"
        raise UsageError(f"{place} holds no upstream source", "no folder deployment/", step)
    done = _git(place, "rev-parse", "--show-toplevel", "HEAD").split()
    if len(done) != 2 or Path(done[0]) != place.resolve():
        got = "it is not a git checkout, so its commit is not known"
        raise UsageError(f"{place} is not at {commit[:12]}", got, f"clone {SOURCE} there")
    if done[1] != commit:
        step = f"git -C {place} fetch origin {commit} && git -C {place} checkout {commit}"
        raise UsageError(f"{place} is not at {commit[:12]}", f"it is at {done[1][:12]}", step)
    changed = _git(place, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        step = f"git -C {place} checkout ."
        raise UsageError(f"{place} has changes of its own", changed[0].strip(), step)
    for path in folder.rglob("kustomization.yaml"):
        if "upstream" in path.relative_to(folder).parts:
            continue
        for name in re.findall(r"\.\./upstream/([^\s,\]]+)", path.read_text()):
            if not (place / name).exists():
                got = f"{path.relative_to(folder)} refers to it"
                raise DataError(f"upstream has no {name}", got, "correct the path there")


def check_kubectl() -> None:
    """Refuse a kubectl that is missing or too old for the overlays."""
    step = "install kubectl 1.27 or newer, https://kubernetes.io/docs/tasks/tools/"
    try:
        answer = _run(["kubectl", "version", "--client", "--output=json"])
        version = str(json.loads(answer)["clientVersion"]["gitVersion"])
        found = re.match(r"v(\d+)\.(\d+)", version)
    except FileNotFoundError as err:
        raise UsageError("kubectl is not installed", str(err), step) from err
    except (ValueError, KeyError, TypeError) as err:
        raise UsageError("ask kubectl for its version", str(err), step) from err
    if found is None or (int(found[1]), int(found[2])) < OLDEST_KUBECTL:
        need = ".".join(map(str, OLDEST_KUBECTL))
        raise UsageError(f"kubectl is older than {need}", f"it is {version}", step)


def write_secrets(
    folder: Path, login: str, user: str, password: Callable[[], str] = lambda: random.token_hex(24)
) -> list[Path]:
    """Write the missing passwords (mode 600), keep existing ones, check all."""
    folder.mkdir(exist_ok=True)
    path = folder / "platform.env"
    found = _read(path) if path.exists() else {}
    for key in PASSWORDS:
        found.setdefault(key, password())
    for key, name in USERS.items():
        found.setdefault(key, name)
    if "DEX_USER_HASH" not in found:
        found["DEX_USER_HASH"] = _bcrypt(found["DEX_PASSWORD"])
    found |= _derived(found)
    rows = "".join(f"{key}={value}\n" for key, value in sorted(found.items()))
    write_text(path, rows, 0o600)
    people, token = folder / "people", _token_hash(found)
    known = read_private(people, f"read {people}", "remove it") if people.exists() else ""
    if token not in known:  # the token of pipelines, whose owner's runs they are
        write_text(people, f"{known}{user} {token}\n", 0o600)
    if not (folder / "store.env").exists():
        write_text(folder / "store.env", login, 0o600)
    check_secrets(folder)
    return [folder / name for name in FILES]


def check_secrets(folder: Path) -> None:
    """Refuse secrets that are missing, weak, published, readable by others, or in git."""
    step = "run `kit platform secrets`"
    for name in FILES:
        if not (folder / name).exists():
            raise UsageError(f"{folder / name} is missing", next_step=step)
        if not read_private(folder / name, f"read {folder / name}", step).strip():
            raise UsageError(f"{folder / name} is empty", next_step=f"remove it, then {step}")
    found = _read(folder / "platform.env")
    _check_passwords(found, step)
    if _token_hash(found) not in (folder / "people").read_text():
        got = "the forwarder would refuse the pipelines"
        raise UsageError(f"{folder / 'people'} has no hash of FORWARDER_TOKEN", got, step)


def _check_passwords(found: Mapping[str, str], step: str) -> None:
    for key in PASSWORDS:
        value = found.get(key, "")
        if not value:
            raise UsageError(f"platform.env: {key} is missing", next_step=step)
        if len(value) < MIN_PASSWORD_LENGTH or value in PUBLISHED:
            short = f"shorter than {MIN_PASSWORD_LENGTH} characters"
            what = "published" if value in PUBLISHED else short
            raise UsageError(f"platform.env: {key} is not a password", f"it is {what}", RECREATE)
    for key in (*USERS, "DEX_USER_HASH"):
        if not found.get(key) or found[key] == "minioadmin":
            raise UsageError(f"platform.env: {key} is missing or a default", next_step=RECREATE)
    for key, value in _derived(found).items():
        if found.get(key) != value:
            raise UsageError(f"platform.env: {key} does not match its password", next_step=step)


def build(
    name: str,
    folder: Path = FOLDER,
    commit: str = COMMIT,
    profile: str = DEFAULT_PROFILE,
    sites: Sequence[Path] = (),
    placeholders: bool = False,
) -> str:
    """Return the manifests of an environment, after every check.

    `profile` is the forwarder's, `sites` are its file and those of its bases that are none of the
    kit's. With `placeholders` no password is needed; such manifests cannot be applied. Raises
    UsageError for an unknown name, a wrong source or weak secrets, and CommandFailed from kubectl.
    """
    if name not in ENVIRONMENTS:
        step = f"use one of: {', '.join(ENVIRONMENTS)}"
        raise UsageError(f"{name!r:.60} is not an environment of the platform", next_step=step)
    check_kubectl()
    check_source(folder / "upstream", commit, folder)
    with contextlib.ExitStack() as stack:
        if placeholders:
            folder = stack.enter_context(_with_placeholders(folder))
        check_secrets(folder / "secrets")
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kit-"))).resolve()
        overlay = _overlay(folder / "secrets", name, profile, sites)
        overlay["resources"] = [os.path.relpath((folder / "envs" / name).resolve(), place)]
        for site in sites:
            shutil.copy(site, place / site.name)
        write_text(place / "kustomization.yaml", json.dumps(overlay))  # JSON is YAML, too
        return _run(["kubectl", "kustomize", str(place)])


def _overlay(secrets: Path, name: str, profile: str, sites: Sequence[Path]) -> Json:
    """Return what differs between installations: tags of our images, the forwarder's profile."""
    tag = images.tag_of(images.context())
    ours = [f"{images.REGISTRY}/kit-python-{image}" for image in ("forwarder", "mlflow")]
    overlay: Json = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "sortOptions": {"order": "legacy"},
        "images": [{"name": image, "newTag": tag} for image in ours],
    }
    if not name.endswith("-monitoring"):
        return overlay
    own = [f"KIT_SITES_DIR={SITES_FOLDER}"] if sites else []
    rows: list[Json] = [
        {
            "name": "forwarder-settings",
            "behavior": "merge",
            "literals": [f"KIT_PROFILE={profile}", *own],
        },
        *({"name": "forwarder-sites", "files": [site.name for site in sites]} for _ in own),
    ]
    overlay["configMapGenerator"] = [{"namespace": "forwarder", **row} for row in rows]
    # The forwarder reads its secrets when it starts: changed ones start it again.
    digest = sha256_of(b"".join((secrets / file).read_bytes() for file in FILES))
    value = {"kit/secrets": digest[:16]}
    mark = {"op": "add", "path": "/spec/template/metadata/annotations", "value": value}
    target = {"kind": "Deployment", "namespace": "forwarder"}
    overlay["patches"] = [{"target": target, "patch": json.dumps([mark])}]
    return overlay


@contextlib.contextmanager
def _with_placeholders(folder: Path) -> Iterator[Path]:
    """Yield a copy of the overlays whose secrets are placeholders."""
    with tempfile.TemporaryDirectory(prefix="kit-") as place:
        copy, left_out = Path(place) / "platform", shutil.ignore_patterns("upstream", *FILES)
        shutil.copytree(folder, copy, ignore=left_out)
        (copy / "upstream").symlink_to((folder / "upstream").resolve())
        write_secrets(copy / "secrets", PLACEHOLDER, "me", lambda: PLACEHOLDER)
        yield copy


def _token_hash(found: Mapping[str, str]) -> str:
    return sha256_of(found["FORWARDER_TOKEN"].encode())


def _derived(found: Mapping[str, str]) -> dict[str, str]:
    return {
        "REDIS_URL": f"redis://:{found.get('REDIS_PASSWORD')}@redis-service:6379/0",
        "FLOWER_LOGIN": f"flower:{found.get('FLOWER_PASSWORD')}",
    }


def _read(path: Path) -> dict[str, str]:
    return read_env(path, f"read {path}", "run `kit platform secrets`")


def _bcrypt(password: str) -> str:
    import bcrypt  # late: only the passwords need it

    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(12)).decode()


def _git(place: Path, *words: str) -> str:
    """Return what git prints; "" if it fails."""
    argv = ["git", "-C", str(place), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def _run(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("# Warning")]
        raise CommandFailed(argv, done.returncode, "", "\n".join(lines))
    return done.stdout
