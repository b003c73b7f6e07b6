"""`kit platform images`: the images of ours, built and pushed where the cluster's registry is.

An image is tagged by the hash of what it is built from, and the manifests name that tag: a changed
kit is another image. `:1` is the newest one, which pipelines and the submitter's stack ask for.
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from kit.base import ROOT, Host, UsageError, sha256_of
from kit.base.files import git

REGISTRY = "localhost:5001"
# Name: folder of its Dockerfile in env/images, and the stage in it.
IMAGES = {
    "pipeline": ("pipeline", ""),
    "forwarder": ("services", "forwarder"),
    "submitter": ("services", "submitter"),
    "mlflow": ("mlflow", ""),
}
SOURCES = (
    *("kit", "env/sites", "env/hpc", "env/images"),
    *("requirements.lock", "pyproject.toml", "README.md", "LICENSE"),
)
BUILD_TIMEOUT_S = 3600.0


def context(root: Path = ROOT) -> bytes:
    """Return the build context as a tar file: what git knows or would add, and nothing else.

    The same files give the same bytes. Raises UsageError outside a checkout.
    """
    argv = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES]
    done = git(root, *argv)
    names = sorted(done.stdout.split("\0")) if done is not None and not done.returncode else []
    if not names:
        step = "git clone the kit's repository and run the command there"
        raise UsageError(f"list the files of the images in {root}", "not a git checkout", step)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in (root / name for name in names if name):
            if path.is_file():
                info = tarfile.TarInfo(str(path.relative_to(root)))
                info.size = path.stat().st_size
                info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                with path.open("rb") as file:
                    tar.addfile(info, file)
    return buffer.getvalue()


def tag_of(content: bytes) -> str:
    """Return the tag of the images that are built from a context."""
    return sha256_of(content)[:12]


def build_images(host: Host, prefix: list[str], report: Callable[[str], None]) -> str:
    """Build the images on `host` and push them to its registry; return their tag.

    `prefix` goes before `docker`, such as sudo. Raises CommandFailed with what Docker printed.
    """
    content = context()
    tag = tag_of(content)
    for name, (folder, target) in IMAGES.items():
        image = f"{REGISTRY}/kit-python-{name}"
        report(f"{image}:{tag} on {host.name}")
        stage = ["--target", target] if target else []
        tags = ["--tag", f"{image}:{tag}", "--tag", f"{image}:1"]
        file = ["--file", f"env/images/{folder}/Dockerfile"]
        argv = [*prefix, "docker", "build", "--quiet", *file, *stage, *tags, "-"]
        host.run(argv, content, timeout=BUILD_TIMEOUT_S)
        for version in (tag, "1"):
            push = [*prefix, "docker", "push", "--quiet", f"{image}:{version}"]
            host.run(push, timeout=BUILD_TIMEOUT_S)
    return tag
