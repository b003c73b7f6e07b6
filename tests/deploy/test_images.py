"""`kit platform images` and step 7 of the guide: on which machine each command works.

Docker and kubectl are stand-ins on the PATH of the VM alone, which is a sshd of the test's own.
"""

import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from private_sshd import PrivateSshd
from stand_in_cluster import OBJECTS, SMALL

from kit.base import ROOT, CommandFailed, LocalHost, UsageError
from kit.base.host import Output, as_completed
from kit.cli.deploy import platform_group
from kit.deploy import images, manifests
from kit.runs import pipeline

DOCKER = f"""#!{sys.executable}
import json, sys, tarfile
words = sys.argv[1:]
if words[0] == "build":
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        names = tar.getnames()
    file = words[words.index("--file") + 1]
    assert file in names, file
tags = [words[n + 1] for n, word in enumerate(words) if word == "--tag"]
with open("{{log}}", "a") as log:
    log.write(json.dumps([words[0], tags or words[-1:]]) + "\\n")
"""


@pytest.fixture
def checkout(tmp_path):
    """A small checkout with the files that images are built from, and some that they are not."""
    folder = tmp_path / "checkout"
    for name in ("kit/a.py", "env/images/mlflow/Dockerfile", "README.md", "results/x", "kit/b.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("*.pyc\n.env\n")
    (folder / "kit" / ".env").write_text("CSC_PASSWORD=planted")
    git = ["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "made for a test"]):
        subprocess.run([*git, *words], check=True)
    return folder


def test_the_components_of_pipelines_ask_for_an_image_that_is_built():
    name, _, tag = pipeline.IMAGE.removeprefix(f"{images.REGISTRY}/kit-python-").partition(":")
    assert name in images.IMAGES
    assert tag == "1"


def names_in(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return set(tar.getnames())


def test_context_has_what_git_knows_or_would_add_and_nothing_else(checkout):
    (checkout / "kit" / "new.py").write_text("not committed yet")
    assert names_in(images.context(checkout)) == {
        "kit/a.py",
        "kit/new.py",
        "env/images/mlflow/Dockerfile",
        "README.md",
    }


def test_tag_changes_with_the_contents_and_with_nothing_else(checkout):
    first = images.tag_of(images.context(checkout))
    os.utime(checkout / "kit" / "a.py", (1, 1))
    (checkout / "results" / "y").write_text("a result")
    assert images.tag_of(images.context(checkout)) == first
    (checkout / "kit" / "a.py").write_text("another")
    assert images.tag_of(images.context(checkout)) != first
    assert re.fullmatch("[0-9a-f]{12}", first)


def test_context_of_this_checkout_has_every_file_that_the_images_copy():
    known = names_in(images.context())
    for name, (folder, target) in images.IMAGES.items():
        text = (ROOT / "env" / "images" / folder / "Dockerfile").read_text()
        assert f"env/images/{folder}/Dockerfile" in known
        assert not target or f" AS {target}" in text, name
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
            for source in line.split():
                assert any(f == source or f.startswith(f"{source}/") for f in known), source


def test_folder_without_git_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a git checkout"):
        images.context(tmp_path)


def test_failed_build_is_reported_and_nothing_is_pushed():
    calls = []

    class Broken(LocalHost):
        def run(self, argv, input=b"", timeout=60, check=True, repeat=False):
            calls.append(argv)
            return as_completed(argv, Output(1, b"", b"no space left", 0.0), check)

    with pytest.raises(CommandFailed, match="no space left"):
        images.build_images(Broken(), ["sudo", "-n"], print)
    assert len(calls) == 1
    assert calls[0][:4] == ["sudo", "-n", "docker", "build"]


@pytest.fixture
def vm(tmp_path, monkeypatch):
    """A VM by ssh that alone has docker and kubectl; gives the folder of what they noted."""
    programs = tmp_path / "bin"
    programs.mkdir()
    support = Path(__file__).parents[1] / "support"
    paths = f"{ROOT}:{support}"
    for name, text in {
        "docker": DOCKER.replace("{log}", str(tmp_path / "docker.log")),
        "kubectl": f"#!/bin/sh\nPYTHONPATH={paths} STAND_IN_CLUSTER={tmp_path}/cluster"
        f' exec {sys.executable} {support}/stand_in_cluster.py "$@"\n',
        "sudo": '#!/bin/sh\n[ "$1" = -n ] && shift; exec "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    sshd = PrivateSshd(tmp_path / "sshd", setenv=f"PATH={programs}:/usr/bin:/bin").start()
    text = (ROOT / "env/sites/roihu.toml").read_text()
    text = re.sub(r"^ssh_host = .*", 'ssh_host = "site"', text, flags=re.M)
    text = re.sub(r"^ssh_config = .*\n", "", text, flags=re.M)
    text = text.replace("[hpc]\n", f'[hpc]\nssh_config = "{sshd.folder}/config"\n', 1)
    (tmp_path / "roihu.toml").write_text(text)
    monkeypatch.setenv("KIT_SITES_DIR", str(tmp_path))
    yield tmp_path
    sshd.stop()


def test_step_of_the_guide_brings_the_platform_up_from_the_laptop(vm, monkeypatch):
    """Docker and the cluster are on the VM: the commands of the guide reach them over ssh."""
    monkeypatch.setattr(manifests, "build", lambda name, **_: SMALL)
    text = (ROOT / "docs" / "real-site.md").read_text()
    step = text[text.index("7. The platform on it") : text.index("8. Its services")]
    commands = [shlex.split(line) for line in step.splitlines() if line.startswith("   kit ")]
    assert [words[2] for words in commands] == ["source", "secrets", "images", "apply"]
    for words in commands[2:]:
        done = CliRunner().invoke(platform_group, words[2:])
        assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (vm / "docker.log").read_text().splitlines()]
    tag = images.tag_of(images.context())
    built = [f"{images.REGISTRY}/kit-python-{name}" for name in images.IMAGES]
    assert [row for row in rows if row[0] == "build"] == [
        ["build", [f"{name}:{tag}", f"{name}:1"]] for name in built
    ]
    pushed = {row[1][0] for row in rows if row[0] == "push"}
    assert pushed == {f"{name}:{version}" for name in built for version in (tag, "1")}
    assert len(pickle.loads((vm / "cluster").read_bytes()).objects) == OBJECTS
