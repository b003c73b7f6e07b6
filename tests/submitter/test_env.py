"""The environment on the HPC side: found, built, published once, removed only when unused."""

import dataclasses
import json
import os
import re
import subprocess
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kit.base import CommandFailed, DataError, LocalHost, UsageError
from kit.base.settings import Hpc
from kit.cli import runs as runs_commands
from kit.cli.leftovers import envs_group
from kit.submitter import env as hpc_env

ATTEMPT = "0123456789ab"
# A Python that makes a venv and has a pip, in a second instead of half a minute.
PYTHON = """\
#!/bin/bash
case "$*" in
    *"-m venv"*) mkdir -p "${@: -1}/bin" "${@: -1}/lib/python3.11/site-packages"
        cp "$0" "${@: -1}/bin/python" ;;
    *" download "*) echo download >>"$LOG"; [ -z "$OFFLINE" ] || exit 1
        while [ "$1" != --dest ]; do shift; done; mkdir -p "$2"; touch "$2/one.whl" ;;
    *sysconfig*) echo "${PLATFORM:-cpython-311 linux-x86_64}" ;;
    *" install "*) echo install >>"$LOG"; [ -z "$BROKEN" ] ;;
esac
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    project = tmp_path / "proj"
    project.mkdir()
    return Hpc(ssh_host="x", project_dir=str(project), python=str(python))


def make(site, configured=True, attempt_id=ATTEMPT):
    messages = []
    host, report = LocalHost(), messages.append
    return *hpc_env.make_environment(host, site, attempt_id, configured, report), messages


def steps(tmp_path):
    log = tmp_path / "log"
    return log.read_text().split() if log.exists() else []


def test_first_run_builds_the_environment_and_the_second_finds_it(site, tmp_path):
    first, private, messages = make(site)
    assert (private, steps(tmp_path)) == (False, ["download", "install"])
    steps_reported = [line.split()[1] for line in messages]
    assert steps_reported == ["building", "downloading", "installing", "ready"]
    second, private, messages = make(site)
    assert (second, private) == (first, False)
    assert messages == [f"environment: found {first}"]
    assert steps(tmp_path) == ["download", "install"]


def test_packages_that_others_may_write_are_not_installed(site, tmp_path):
    """A member of the project could put a package of theirs into the shared folder."""
    wheels = Path(hpc_env.pins_file(site)).with_suffix("")
    wheels.mkdir(parents=True)
    (wheels / "complete").touch()
    (wheels / "planted.whl").touch()
    wheels.chmod(0o777)
    venv, _, messages = make(site)
    assert any("others may write" in line for line in messages)
    assert steps(tmp_path) == ["download", "install"]
    assert [path.name for path in (Path(venv) / "wheels").glob("*.whl")] == ["one.whl"]


def test_list_of_packages_that_was_changed_is_written_again(site):
    make(site)
    file = Path(hpc_env.pins_file(site))
    good = file.read_text()
    file.write_text("evil==1.0\n")
    make(site)
    assert file.read_text() == good


def test_unconfigured_run_builds_a_private_environment(site, tmp_path):
    published, *_ = make(site)
    own, private, _ = make(site, configured=False, attempt_id="aaaaaaaaaaaa")
    assert own != published
    assert private
    assert Path(published).exists()
    assert make(site)[0] == published
    assert steps(tmp_path) == ["download", "install", "install"]  # the wheels were there


def test_the_first_unconfigured_one_is_published(site):
    own, private, _ = make(site, configured=False)
    assert not private
    assert make(site)[0] == own


def test_a_wheel_folder_serves_a_site_without_network(site, monkeypatch):
    wheels = Path(site.project_dir) / "kit/wheels" / hpc_env.pins_key(hpc_env.pins())
    wheels.mkdir(parents=True)
    (wheels / "complete").touch()
    monkeypatch.setenv("OFFLINE", "1")
    assert Path(make(site)[0]).exists()


def test_another_python_or_machine_downloads_its_own_wheels_once(site, tmp_path, monkeypatch):
    """Roihu's x86 and ARM sides, with different Pythons, share one file system."""
    make(site)
    monkeypatch.setenv("PLATFORM", "cpython-312 linux-aarch64")
    arm = dataclasses.replace(site, module_path="/arm")
    initialised = tmp_path / "init"
    initialised.write_text("module() { :; }\n")
    arm = dataclasses.replace(arm, module_init=str(initialised))
    make(arm)
    make(arm, configured=False, attempt_id="aaaaaaaaaaaa")
    monkeypatch.delenv("PLATFORM")
    make(site, configured=False, attempt_id="bbbbbbbbbbbb")
    assert steps(tmp_path) == ["download", "install"] * 2 + ["install"] * 2
    complete = Path(hpc_env.pins_file(site)).with_suffix("") / "complete"
    assert complete.read_text() == "cpython-311 linux-x86_64\ncpython-312 linux-aarch64\n"


@pytest.mark.parametrize("fault", ["OFFLINE", "BROKEN"])
def test_failed_build_is_not_published(site, monkeypatch, fault):
    monkeypatch.setenv(fault, "1")
    with pytest.raises(DataError, match="build the Python environment"):
        make(site)
    monkeypatch.delenv(fault)
    assert Path(make(site)[0]).exists()


def test_module_that_is_missing_on_the_login_node_names_the_cause(site):
    lacks = dataclasses.replace(site, modules=("no-such-module",))
    with pytest.raises(hpc_env.EnvironmentBuildError) as error:
        make(lacks)
    assert "module" in error.value.got
    assert error.value.next_step


def test_noise_of_the_sites_start_files_is_not_read_as_an_answer(site, tmp_path):
    noisy = tmp_path / "init"
    noisy.write_text("module() { :; }\necho '@exit 7'; echo Welcome | cat; echo '@private /x'\n")
    venv, private, _ = make(dataclasses.replace(site, module_init=str(noisy)))
    assert (Path(venv).exists(), private) == (True, False)


def test_environment_of_an_interrupted_attempt_is_not_built_again(site, tmp_path):
    make(site)
    first, private, _ = make(site, configured=False, attempt_id="aaaaaaaaaaaa")
    again = make(site, configured=False, attempt_id="aaaaaaaaaaaa")
    assert (again[0], again[1], private) == (first, True, True)
    assert steps(tmp_path).count("install") == 2


def test_environment_that_others_may_write_into_is_not_executed(site):
    first, *_ = make(site)
    Path(first).chmod(0o770)
    second, private, _ = make(site, attempt_id="aaaaaaaaaaaa")
    assert second != first
    assert private


def test_folder_that_is_not_writable_is_reported(site, tmp_path):
    gone = Hpc(ssh_host="x", project_dir="/proc/no-such-project", python=site.python)
    with pytest.raises(CommandFailed, match="no-such-project"):
        make(gone)


def test_project_folder_that_is_missing_is_not_made_by_a_build(site):
    """A disk that is not mounted on the node: its folder must not appear on the node's own disk."""
    hpc_env.stage_pins(LocalHost(), site)
    away = Path(site.project_dir).rename(Path(site.project_dir).with_name("away"))
    call = hpc_env.environment_call(site, ATTEMPT, True)
    argv = ["bash", "-c", f"{hpc_env.FUNCTION}\n{call}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"no folder {site.project_dir}\n")
    assert not Path(site.project_dir).exists()
    assert not (away / "kit/venvs").exists()


def built_at_once(site, configured, answer):
    """The answers of four builders of one attempt that start together."""
    hpc_env.stage_pins(LocalHost(), site)
    call = hpc_env.environment_call(site, ATTEMPT, configured)
    script = f"{hpc_env.FUNCTION}\n{call}; echo {answer}"
    builders = [
        subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    return {builder.communicate()[0].splitlines()[-1] for builder in builders}


def test_two_builders_at_once_end_with_one_published(site, tmp_path):
    found = built_at_once(site, True, "$venv")
    assert len(found) == 1
    folders = [p for p in (Path(site.project_dir) / "kit/venvs").iterdir() if not p.is_symlink()]
    assert [str(path) for path in folders] == list(found)


@pytest.mark.parametrize("configured", [True, False])
def test_two_submitters_build_for_one_attempt_and_the_losers_is_removed(site, configured):
    """Both were asked for the same attempt: one job is submitted, so one environment stays."""
    make(site, attempt_id="bbbbbbbbbbbb") if not configured else None
    answers = built_at_once(site, configured, "$venv $private")
    assert len(answers) == 1
    venv, *private = answers.pop().split()
    assert private == ([] if configured else [venv])
    names = {row.name: row.published for row in hpc_env.list_environments(LocalHost(), site)}
    assert names.pop(Path(venv).name) is configured
    assert list(names.values()) == ([] if configured else [True])


def test_environment_that_loses_leaves_no_symlink_behind(site):
    own, _, _ = make(site, attempt_id="bbbbbbbbbbbb")
    venvs = Path(own).parent
    private, *_ = make(site, configured=False)
    assert (venvs / f"attempt-{ATTEMPT}").readlink() == Path(Path(private).name)
    assert hpc_env.remove_environments(LocalHost(), site, []) == [Path(private).name]
    assert not (venvs / f"attempt-{ATTEMPT}").is_symlink()
    again, private, _ = make(site, configured=False)
    assert (Path(again).exists(), private) == (True, True)


def test_unused_private_environments_are_removed(site):
    host = LocalHost()
    published, *_ = make(site)
    used, *_ = make(site, configured=False, attempt_id="aaaaaaaaaaaa")
    left, *_ = make(site, configured=False, attempt_id="bbbbbbbbbbbb")
    assert hpc_env.remove_environments(host, site, ["aaaaaaaaaaaa"]) == [Path(left).name]
    assert Path(published).exists()
    assert Path(used).exists()
    names = {made.name: made.published for made in hpc_env.list_environments(host, site)}
    assert names == {Path(published).name: True, Path(used).name: False}


def test_environment_in_use_is_not_removed_by_name(site):
    host, open_attempt_id = LocalHost(), "aaaaaaaaaaaa"
    published, own = make(site)[0], make(site, configured=False, attempt_id=open_attempt_id)[0]
    left = make(site, configured=False, attempt_id="bbbbbbbbbbbb")[0]
    for name in (published, own):
        with pytest.raises(UsageError, match="is in use"):
            hpc_env.remove_environments(
                host, site, [open_attempt_id], [Path(left).name, Path(name).name]
            )
    assert len(hpc_env.list_environments(host, site)) == 3
    assert hpc_env.remove_environments(host, site, [], [Path(published).name]) == [
        Path(published).name
    ]
    again, private, _ = make(site)
    assert again != published
    assert not private


@pytest.mark.parametrize("name", ["", "..", "../tries", "x; touch /tmp/x", "0123456789ab.x"])
def test_only_an_environment_is_removed(site, name):
    make(site)
    with pytest.raises(UsageError, match="unknown environment"):
        hpc_env.remove_environments(LocalHost(), site, [], [name])
    assert len(hpc_env.list_environments(LocalHost(), site)) == 1


def test_interrupted_environment_is_listed_as_private_and_removed(site, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(DataError):
        make(site)
    (left,) = hpc_env.list_environments(LocalHost(), site)
    assert (left.published, left.attempt) == (False, ATTEMPT)
    assert hpc_env.remove_environments(LocalHost(), site, [ATTEMPT]) == []
    assert hpc_env.remove_environments(LocalHost(), site, []) == [left.name]


def test_commands_list_and_remove_unused_environments(site, monkeypatch):
    published = Path(make(site)[0]).name
    own = Path(make(site, configured=False, attempt_id="aaaaaaaaaaaa")[0]).name
    left = Path(make(site, configured=False, attempt_id="bbbbbbbbbbbb")[0]).name
    requests = SimpleNamespace(open_attempt_ids=lambda: ["aaaaaaaaaaaa"])
    slurm = SimpleNamespace(host=LocalHost(), hpc=site)
    opened = SimpleNamespace(requests=requests, slurm=slurm)
    monkeypatch.setattr(runs_commands, "open_site", lambda *_: opened)

    def kit(*words):
        return CliRunner().invoke(envs_group, words)

    lines = kit("ls").output.splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == sorted([published, own, left])
    assert [line.endswith("published") for line in lines].count(True) == 1
    assert len(json.loads(kit("ls", "--json").output)) == 3
    assert isinstance(kit("rm", own).exception, UsageError)
    assert kit("rm").output == f"removed {left}\n"
    assert len(json.loads(kit("ls", "--json").output)) == 2


def test_nothing_to_list_or_to_remove_on_a_new_site(site):
    assert hpc_env.list_environments(LocalHost(), site) == []
    assert hpc_env.remove_environments(LocalHost(), site, []) == []


def test_a_modules_packages_come_behind_the_environments_own(site, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/apps/torch:/apps/more")
    made, *_ = make(site)
    lines = (Path(made) / "lib/python3.11/site-packages/module.pth").read_text()
    assert lines == "/apps/torch\n/apps/more\n"


@pytest.mark.parametrize(
    "change",
    [{"modules": ("pytorch/3",)}, {"python": "/o"}, {"module_path": "/m"}, {"container": "i"}],
)
def test_another_site_software_is_another_environment(site, change):
    assert hpc_env.environment_key(site, "a==1") != hpc_env.environment_key(
        dataclasses.replace(site, **change), "a==1"
    )


def test_environment_key_depends_on_the_packages(site):
    assert hpc_env.environment_key(site, "a==1") == hpc_env.environment_key(site, "a==1")
    assert hpc_env.environment_key(site, "a==1") != hpc_env.environment_key(site, "a==2")


def needed():
    """Names of all that Ray and the others need, without the site's PyTorch and NumPy."""
    seen, todo = set(), [("ray", ("default",)), ("safetensors", ()), ("tqdm", ())]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name in ("torch", "numpy"):
            continue
        seen.add((name, extras))
        for text in requires(name) or []:
            one = Requirement(text)
            given = [{"extra": extra} for extra in (*extras, "")]
            if one.marker is None or any(one.marker.evaluate(each) for each in given):
                todo.append((canonicalize_name(one.name), tuple(sorted(one.extras))))
    return {name for name, _ in seen}


def test_the_list_of_packages_is_complete():
    names = {line.split("==")[0] for line in hpc_env.pins().splitlines()}
    assert names == needed()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in hpc_env.pins().splitlines())


def test_a_package_that_is_not_locked_is_named(tmp_path):
    names = tmp_path / "names"
    names.write_text("# a comment\nray\nno-such-package\n")
    with pytest.raises(DataError, match="no-such-package"):
        hpc_env.pins(names=names)


def test_requirements_of_an_experiment_make_another_environment():
    more = ("scikit-learn", "einops==0.8.1", "ray")
    lines = hpc_env.pins(more).splitlines()
    added = {line.split("==")[0] for line in set(lines) - set(hpc_env.pins().splitlines())}
    assert {"scikit-learn", "einops", "scipy", "joblib", "threadpoolctl"} <= added  # what they need
    assert not added & {"numpy", "torch"}  # the site's module has them
    assert f"scikit-learn=={hpc_env.locked()['scikit-learn']}" in lines
    assert "einops==0.8.1" in lines
    assert len(lines) == len(set(lines))
    site = Hpc(ssh_host="x", project_dir="/p")
    calls = {hpc_env.environment_call(site, "0" * 12, True, names) for names in ((), more)}
    assert len(calls) == 2


def test_extra_is_installed_as_the_packages_that_it_needs():
    extra = {line.split("==")[0] for line in hpc_env.pins(("pydantic[email]",)).splitlines()}
    plain = {line.split("==")[0] for line in hpc_env.pins(("pydantic",)).splitlines()}
    assert "email-validator" in extra - plain
    assert f"pydantic=={hpc_env.locked()['pydantic']}" in hpc_env.pins(("pydantic[email]",))


@pytest.mark.parametrize("attempt_id", ["", "../../x", "0123456789ab;reboot"])
def test_invalid_attempt_id_is_refused(site, attempt_id):
    with pytest.raises(UsageError):
        hpc_env.environment_call(site, attempt_id, True)


def test_package_of_the_module_is_installed_only_where_it_is_asked_for_by_name():
    assert "numpy<2" in hpc_env.pins(["numpy<2"]).splitlines()
    assert {"numpy", "torch", "einops"} <= set(hpc_env.site_packages(["einops"]))


def test_function_is_valid_bash():
    done = subprocess.run(["bash", "-n"], input=hpc_env.FUNCTION, text=True, env=os.environ)
    assert done.returncode == 0
