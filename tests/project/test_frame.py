"""The files that the hosting site reads: they run what a clone runs, with no more rights."""

import re
import tomllib

import pytest
import yaml

from kit.base import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))


def steps(path):
    for name, job in yaml.safe_load(path.read_text())["jobs"].items():
        for step in job["steps"]:
            yield name, step


def test_the_whole_of_continuous_integration_is_what_a_clone_runs():
    assert [path.name for path in WORKFLOWS] == ["tests.yml"]
    assert ".ci/run" in [step.get("run") for _, step in steps(WORKFLOWS[0])]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_only_reads_the_repository(path):
    text = yaml.safe_load(path.read_text())
    assert text["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in text["jobs"].values())
    for _, step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # What a branch or a title says never becomes a part of a shell program.
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_make_targets_and_a_python_that_exist(path):
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    for _, step in steps(path):
        for target in re.findall(r"(?m)^make (?:\w+=\S+ )*([a-z-]+)", step.get("run", "")):
            assert target in TARGETS
        if version := step.get("with", {}).get("python-version"):
            assert python.startswith(f">={version}")


def test_a_report_of_a_hole_has_a_private_way_that_the_readme_names():
    text = (ROOT / "SECURITY.md").read_text()
    assert "Report a vulnerability" in text
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()
    for page in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / page).exists(), page


def test_new_versions_of_actions_and_of_every_image_are_proposed():
    """Python's packages are in the lock, whose known holes `make audit` names each week."""
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    folders = {
        update["package-ecosystem"]: {update.get("directory"), *update.get("directories", ())}
        for update in updates
    }
    assert folders["github-actions"] == {"/"}
    files = [*ROOT.glob("env/images/*/Dockerfile"), ROOT / "env/sandbox/Dockerfile"]
    images = {f"/{path.parent.relative_to(ROOT)}" for path in files}
    assert folders["docker"] - {None} == images


def test_known_holes_of_every_locked_package_are_asked_for_each_week():
    text = WORKFLOWS[0].read_text()
    (audit,) = [job for job, step in steps(WORKFLOWS[0]) if step.get("run") == "make audit"]
    assert "schedule:" in text.partition("jobs:")[0]
    assert "schedule" not in yaml.safe_load(text)["jobs"][audit].get("if", "")
    recipe = re.search(r"(?m)^audit:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())[1]
    assert "exit 1" in recipe
    locks = [ROOT / "requirements.lock", *ROOT.glob("env/**/*.lock")]
    for lock in locks:
        if "==" in lock.read_text():  # the others are lists of Debian packages
            assert str(lock.relative_to(ROOT)) in recipe


def test_hooks_before_a_commit_are_local_and_use_the_locked_tools():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
