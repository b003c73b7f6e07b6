"""The documents: blocks marked `sh` are run, those marked `console` name only what there is."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kit.base import ROOT
from kit.base.settings import SITES
from kit.cli.main import cli

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCKS = [
    (path.name, kind, re.sub("^ +", "", text, flags=re.MULTILINE))
    for path in DOCUMENTS
    for kind, text in re.findall(r"^ *```(\w*)\n(.*?)^ *```", path.read_text(), re.S | re.M)
]
OTHERS = {  # programs that are not the kit's
    "bash",
    "cat",
    "cp",
    "curl",
    "export",
    "install",
    "kubectl",
    "mkdir",
    "module",
    "openssl",
    "openstack",
    "pip",
    "printf",
    "rm",
    "ssh",
    "git",
    "cd",
    "source",
    "$EDITOR",
}


def commands(text):
    """The commands of a block, word by word: lines, cut at pipes and `&&`."""
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split, words = True, []
        for word in lexer:
            if set(word) <= set("|&;"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def wrong_of_kit(words):
    """The words of `kit …` that do not exist: a command, an option, a profile."""
    command, wrong, names = cli, [], iter(words)
    for word in names:
        if word in (">", "<", "--"):
            break
        if word.startswith("-"):
            known = {flag: p for p in command.params for flag in p.opts}
            if word not in known:
                wrong.append(word)
            elif word == "--profile" and not (SITES / f"{next(names)}.toml").exists():
                wrong.append("--profile")
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is None:
                return [*wrong, word]
            command = found
    return wrong


def wrong_of(words):
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)] or ["export"]
    program, *rest = words
    files = [w for w in rest if re.match(r"(env|docs|notebooks|tests)/\w", w)]
    wrong = [name for name in files if not (ROOT / name).exists()]
    if program == "kit":
        return wrong + wrong_of_kit(rest)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return wrong + [word for word in rest if word not in targets]
    return wrong if program in OTHERS else [*wrong, program]


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, kind, text in BLOCKS if kind in ("sh", "console")]
)
def test_a_block_names_commands_options_and_files_that_exist(name, text):
    assert [(words, wrong) for words in commands(text) if (wrong := wrong_of(words))] == []


@pytest.mark.parametrize(
    "line",
    [
        "kit dcotor",
        "kit run local --budgte 3",
        "kit doctor --profile moon",
        "make nothing",
        "cp env/sites/moon.toml x",
        "kubeclt get pods",
        "kit vm paln | kubectl apply",
    ],
)
def test_a_word_that_does_not_exist_is_found(line):
    assert any(wrong_of(words) for words in commands(line))


@pytest.mark.core
@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name, kind, text in BLOCKS if kind == "sh" and name != "README.md"],
)
def test_a_block_of_the_documents_runs(name, text, sandbox, tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "KIT_RESULTS_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-eu"], input=text, cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_guide_has_ten_steps_at_most_and_each_a_command():
    text = (ROOT / "docs" / "real-site.md").read_text()
    guide = text.partition("## Ten steps")[2].partition("\n## ")[0]
    steps = re.split(r"^\d+\. ", guide, flags=re.MULTILINE)[1:]
    assert len(steps) <= 10
    assert all("```console" in step and "You see" in step for step in steps)


def test_every_link_between_documents_leads_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)
