"""What an image is built from: only what `.dockerignore` names, and no file with a secret."""

import ast
import fnmatch
import re
import subprocess

import pytest

from kit.base import ROOT

LINES = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
]
SECRET = (
    ".env",
    "compose-secrets.json",
    "env/platform/secrets/platform.env",
    "env/platform/secrets/store.env",
    "env/platform/secrets/people",
    "kit/.env",
    "env/sandbox/etc/redis.env",
    ".git/config",
    "results/sandbox/history.jsonl",
    "env/platform/upstream/README.md",
)


def taken(path):
    """Docker's rule: the last line that matches the path or a folder above it decides."""
    answer = True
    folders = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for line in LINES:
        pattern = line.removeprefix("!")
        tail = pattern.removeprefix("**/")
        for folder in folders:
            name = folder.rpartition("/")[2] if tail != pattern else folder
            if fnmatch.fnmatchcase(name, tail) and (tail == "*" or "/" not in name or tail == name):
                answer = line.startswith("!")
    return answer


@pytest.mark.parametrize("path", SECRET)
def test_planted_secret_is_not_in_the_build_context(path):
    assert not taken(path)


def tracked(*folders):
    argv = ["git", "-C", ROOT, "ls-files", *folders]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def test_all_that_the_kit_reads_is_in_the_build_context_as_in_the_wheel():
    in_the_wheel = re.search(r"^FILES = (\(.+?\))$", (ROOT / "setup.py").read_text(), re.M | re.S)
    patterns = ast.literal_eval(in_the_wheel[1])
    read = {str(path.relative_to(ROOT)) for each in patterns for path in ROOT.glob(each)}
    files = [path for path in tracked() if path in read or path.startswith("kit/")]
    assert len(files) > len(patterns)
    assert [path for path in files if not taken(path)] == []


def test_everything_that_the_images_copy_is_in_the_build_context():
    files = tracked()
    for dockerfile in (ROOT / "env" / "images").glob("*/Dockerfile"):
        for words in re.findall(r"^COPY (?!--from)(.+)$", dockerfile.read_text(), re.M):
            for source in words.split()[:-1]:
                rows = [f for f in files if f == source or f.startswith(f"{source}/")]
                assert rows, source
                assert all(taken(row) for row in rows if not row.endswith(".env")), source


def test_no_dockerfile_has_an_ignore_file_of_its_own():
    assert list((ROOT / "env").rglob("*.dockerignore")) == []


def test_the_sandbox_image_does_not_run_as_root():
    text = (ROOT / "env" / "sandbox" / "Dockerfile").read_text()
    assert "--allow-root" not in text
    assert re.search(r"^USER (?!root)", text, re.M)
