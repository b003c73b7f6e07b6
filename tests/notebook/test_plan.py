"""`kit plan`: nobody is asked, nothing is done, and all that a run would do is said."""

import getpass
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from kit.base import ROOT, DataError, SSHHost, UsageError
from kit.base.settings import SITES, Site, load
from kit.notebook import plan
from kit.notebook.show import credentials_table
from kit.runs.requests import RunRequest
from kit.store import Credential

NOW = 1_800_000_000.0


@pytest.fixture
def loaded(tmp_path):
    environ = {"KIT_SANDBOX_DIR": str(tmp_path / "nothing"), "KIT_RESULTS_DIR": str(tmp_path)}
    return load("sandbox", environ)


def text(loaded, target):
    return "\n".join(f"{title}\n{body}" for title, body in plan.plan_sections(loaded, target, NOW))


def test_a_plan_needs_no_account_no_network_and_does_nothing(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("somebody was asked"))
    assert "in the notebook's own process" in text(loaded, "local")
    assert "preprocess-train, evaluate by kfp.local" in text(loaded, "cloud")
    shown = text(loaded, "cloud-hpc")
    assert "at most 0.5 node-hours: 2 node(s) of small for at most 00:15:00" in shown
    assert "sbatch --parsable --export=NIL" in shown
    assert "#SBATCH --account=project_2001234" in shown
    assert "integration-submitter-s0-c0-u1-<user>" in shown
    assert list(tmp_path.iterdir()) == []


def test_the_script_is_the_one_that_a_request_gives(loaded):
    request = RunRequest(run="cloud-hpc-0123456789ab-1", data_hash="a" * 64, configured=False)
    made = plan.batch(loaded, request)
    assert "a" * 64 in made.script
    assert made.argv[-1] == f"{loaded.hpc.project_dir}/kit/tries/000000000000/job.sh"
    assert " no || exit" in made.script
    by_ssh = replace(loaded, hpc=replace(loaded.hpc, build_env_on="login"))
    assert "venvs/made-by-ssh" in plan.batch(by_ssh, request).script


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (3600, "to the job's end: lasts"),
        (300, "expires 10 min too early: what was submitted continues, the kit waits"),
        (-60, "it has expired; to renew: kit sandbox up"),
        (None, "the certificate is missing; to renew: kit sandbox up"),
    ],
)
def test_the_certificate_is_compared_with_the_end_of_the_job(loaded, monkeypatch, left, words):
    monkeypatch.setattr(SSHHost, "valid_until", lambda _: None if left is None else NOW + left)
    assert words in text(loaded, "cloud-hpc")


def test_every_credential_is_compared_with_the_end_of_the_job(loaded, monkeypatch):
    token = Credential("token", NOW + 60, 60.0, "automatic")
    rows = [token, replace(token, valid_until=None)]
    monkeypatch.setattr("kit.store.list_credentials", lambda _: rows)
    monkeypatch.setattr("time.time", lambda: NOW)
    table = credentials_table(loaded, plan.job_end(loaded, NOW))
    short, endless = table.frame["to the job's end"]
    assert short.startswith("expires 14 min too early")
    assert short.endswith("to renew: automatic")
    assert endless == "lasts"


def test_a_profile_that_cannot_do_it_is_refused_with_the_reason(loaded):
    closed = replace(loaded, site=Site("old", "Old", closed="closed in 2026: use new"))
    for wrong, target, words in [
        (closed, "cloud-hpc", "closed in 2026: use new"),
        (replace(loaded, hpc=None), "cloud-hpc", "no section .hpc."),
        (replace(loaded, store=None), "cloud", "no section .store."),
        (replace(loaded, hpc=replace(loaded.hpc, partition="a b")), "cloud-hpc", "partition"),
    ]:
        with pytest.raises(UsageError, match=words):
            plan.plan_sections(wrong, target, NOW)


def test_plan_is_refused_where_the_price_depends_on_a_memory_that_is_not_named(loaded):
    """`mem = "0"` is the memory of the whole node for sbatch: how much that is, nobody knows."""
    with pytest.raises(DataError, match="gib it held is not known") as error:
        plan.plan_sections(replace(loaded, hpc=replace(loaded.hpc, mem="0")), "cloud-hpc", NOW)
    assert "[hpc] mem" in error.value.next_step


def test_the_command_prints_it():
    argv = [sys.executable, "-m", "kit", "plan"]
    done = subprocess.run([*argv, "cloud-hpc"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# what would happen\n")
    assert subprocess.run([*argv, "moon"], capture_output=True).returncode == 2


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ([], {"HOME": "/nonexistent"}),
        ([], {"LANG": "C", "LC_ALL": "C"}),
        ([], {"TZ": "Nowhere/Land"}),
        (["-O"], {}),
        (["-OO"], {}),
    ],
)
def test_the_command_works_in_an_odd_environment(options, environ):
    argv = [sys.executable, *options, "-m", "kit", "plan", "cloud-hpc", "--profile", "roihu"]
    done = subprocess.run(argv, capture_output=True, env={**os.environ, **environ})
    assert done.returncode == 0, done.stderr
    assert "# what would happen" in done.stdout.decode("utf-8")


@pytest.mark.sandbox
def test_the_sandboxs_certificate_is_named_with_its_end(sandbox):
    (shown,) = [
        s
        for t, s in plan.plan_sections(load("sandbox"), "cloud-hpc", time.time())
        if t == "credentials"
    ]
    assert "ssh certificate for hpc: until 20" in shown
    assert shown.count("lasts") == 1


EVERY_OPTION = """
[site]
name = "every-option"
base = "roihu-gpu"
[hpc]
account = "project_2009999"
partition = "gpumedium"
gres = ""
gpus_per_node = "gh200:2"
mem_per_cpu = "2G"
nodes = 2
nvme = 100
burst_buffer = "#BB_LUA SBF storagesize=50G path=/run/sbb/me"
exclusive = true
reservation = "course"
nodelist = "g[1-4]"
exclude = "g9"
mail_type = "END,FAIL"
mail_user = "me@example.org"
qos = "normal"
constraint = "gh200"
clusters = "roihu"
licenses = "matlab:1"
container = "images/torch.sif"
container_options = ["--nv", "--bind=/data"]
[partitions]
gpumedium = { max_gpus = 0 }
"""


@pytest.mark.parametrize("name", ["roihu", "roihu-gpu", "lumi", "lumi-g", "slurm", "every-option"])
def test_the_plan_of_a_site_needs_no_account_and_is_the_one_expected(name, monkeypatch, tmp_path):
    """The golden texts were checked by hand against the sites' own documents; no script in them."""
    monkeypatch.setattr(SSHHost, "valid_until", lambda _: None)
    environ = {"KIT_RESULTS_DIR": "/results", "KIT_ENV_FILE": "/none"}
    if name == "slurm":  # its six values as somebody may fill them in
        text = (SITES / "slurm.toml").read_text()
        for value in ("/store", "login", "project", "long", "/shared/me", "python3.11"):
            text = re.sub(r'"<[^>]+>"', f'"{value}"', text, count=1)
        (tmp_path / "slurm.toml").write_text(text)
        environ["KIT_SITES_DIR"] = str(tmp_path)
    if name == "every-option":
        (tmp_path / f"{name}.toml").write_text(EVERY_OPTION)
        environ["KIT_SITES_DIR"] = str(tmp_path)
    site = load(name, environ)
    *parts, (_, script) = plan.plan_sections(site, "cloud-hpc", NOW)
    asked = "\n".join(line for line in script.splitlines() if line.startswith("#SBATCH"))
    shown = "\n\n".join(f"# {title}\n\n{body}" for title, body in [*parts, ("asked", asked)])
    shown = shown.replace(f"-u1-{getpass.getuser()},", "-u1-<user>,")
    shown = shown.replace(f"-u1-{getpass.getuser()}\n", "-u1-<user>\n")
    if name == "every-option":
        assert "\nimage_options=(--nv --bind=/data)\n" in script
    golden = ROOT / "tests" / "golden" / f"plan-{name}.txt"
    assert shown + "\n" == golden.read_text()


GUIDE = (ROOT / "docs" / "real-site.md").read_text().partition("## Python on the site")[2]
RECIPES = re.findall(r"```toml\n(\[site\]\nname = .*?)```", GUIDE, re.DOTALL)


def test_guide_has_a_recipe_for_each_side_of_both_centres():
    bases = [re.search('base = "(.+)"', text)[1] for text in RECIPES]
    assert bases == ["roihu", "roihu-gpu", "lumi", "lumi-g"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda text: text.split('"')[1])
def test_recipe_of_the_guide_asks_for_what_the_golden_plan_of_its_base_does(recipe, tmp_path):
    name, base = re.search('name = "(.+)"\nbase = "(.+)"', recipe).groups()
    (tmp_path / f"{name}.toml").write_text(recipe)
    site = load(name, {"KIT_RESULTS_DIR": "/results", "KIT_SITES_DIR": str(tmp_path)})
    script = plan.batch(site, plan.EXAMPLE).script
    golden = (ROOT / "tests" / "golden" / f"plan-{base}.txt").read_text()
    wanted = re.findall("(?m)^#SBATCH.*$", golden)
    assert re.findall("(?m)^#SBATCH.*$", script) == wanted
    asked = {
        line for line in script.splitlines() if line.startswith(("load_module ", "module use"))
    }
    assert (
        asked
        == {
            "my-roihu": {
                "module use /projappl/project_2001234/me/modules",
                "load_module python-data",
                "load_module torch",
            },
            "my-roihu-gpu": {"load_module python-pytorch"},
            "my-lumi": {"module use /appl/local/csc/modulefiles/", "load_module pytorch"},
            "my-lumi-g": set(),
        }[name]
    )
    image = re.findall("(?m)^image(?:_options)?=.+$", script)
    assert image == {
        "my-lumi-g": [
            "image=/appl/local/laifs/containers/IMAGE.sif",
            "image_options=(--rocm)",
        ]
    }.get(name, ["image_options=()"])


def test_the_closed_site_is_refused_with_its_sentence_and_a_pointer():
    with pytest.raises(UsageError, match="use --profile roihu"):
        plan.plan_sections(load("mahti", {}), "cloud-hpc", NOW)
