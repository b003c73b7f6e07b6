"""The second site of the sandbox: Debian 13 with Slurm 24.11, different on purpose.

What people of a site meet there is another user name, tcsh, another time zone and locale,
certificates, a job_submit plugin and Environment Modules.
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hpc_bench import Bench
from kit_sandbox.sites import SITES
from sandbox_command import kit_sandbox
from waiting import until

from kit.base import CommandFailed, site_host
from kit.base.settings import SITES as BUILT_IN
from kit.base.settings import load
from kit.runs.follow import sentence
from kit.runs.requests import RunState
from kit.slurm import Slurm
from kit.submitter.loop import submitter_for

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(300)]
PROFILE = "sandbox-trixie"
SITE = SITES[PROFILE]
MESSAGE = "Your project has 12 BU left"


@pytest.fixture(scope="module")
def hpc(second_site):
    """Return a function: run a bash script on the login node, which has another login shell."""

    def run(script, *words):
        argv = ["ssh", "-F", second_site["files"]["ssh_config"], "hpc", *(words or ["bash", "-s"])]
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture(scope="module")
def slurm(second_site):
    """The kit's own client of the site."""
    settings = load(PROFILE)
    with contextlib.closing(site_host(settings)) as host:
        yield Slurm(host, dataclasses.replace(settings.hpc, poll_floor_s=1.0))


def ended(slurm, *commands, **fields):
    """Run a job to its end by the kit; return its status and its log."""
    values = {"memory": "50M", "time": "00:02:00", "modules": (), "nodes": 1, **fields}
    attempt = secrets.token_hex(6)
    lines = ["{ " + "; ".join(commands) + "; }", "echo {} >m", "commit m"]
    slurm.submit(slurm.job("second", lines, **values), attempt)
    status = until(lambda: (s := slurm.settle(attempt)).done and s, 60, 0.5)
    return status, slurm.logs(attempt)[0].decode()


def test_both_sites_are_healthy_each_with_its_own_slurm(second_site, hpc):
    assert all(row["up"] for row in second_site["services"])
    assert kit_sandbox("status").returncode == 0
    assert hpc("sinfo --version") == "slurm-wlm 24.11.5"
    assert kit_sandbox("exec", "sinfo", "--version").stdout.strip() == "slurm-wlm 22.05.8"


def test_accounting_of_both_sites_reaches_their_controllers(second_site):
    for profile, cluster in (("sandbox", "sandbox"), (PROFILE, "trixie")):
        inside = ("exec", "--profile", profile)
        done = kit_sandbox(*inside, "squeue", "-h", "-M", cluster)
        assert (done.returncode, done.stderr) == (0, "")
        row = ("sacctmgr", "-nP", "show", "cluster", cluster, "format=ControlHost,ControlPort")
        host, port = kit_sandbox(*inside, *row).stdout.strip().split("|")
        assert (host, int(port)) == place(profile, "slurmctld")


def place(profile, name):
    port = load(profile).ports[name]
    return port.address, port.port


def test_both_sites_need_less_memory_than_their_budget(second_site):
    texts = [kit_sandbox("status", "--profile", name).stdout for name in SITES]
    megabytes = [int(re.search(r"(\d+) MB resident in all", text)[1]) for text in texts]
    assert sum(megabytes) < 1450, megabytes


def test_job_of_two_nodes_is_completed_in_the_accounting(slurm):
    status, log = ended(slurm, "srun hostname", nodes=2)
    assert status.succeeded, status
    assert sorted(log.split()) == ["c1", "c2"]
    rows = slurm.usage(status.attempt_id, status.job_id).usage.rows
    assert {row.state.name for row in rows} == {"COMPLETED"}


def test_jobs_have_the_same_python_and_torch_as_on_the_first_site(slurm, hpc):
    python = "import sys, ssl, sqlite3, torch; print(*sys.version_info[:2], torch.__version__)"
    command = f"/opt/debian12/bin/python3 -c '{python}'"
    status, log = ended(slurm, command, modules=("pytorch",), memory="500M")
    assert status.succeeded, status
    assert log.startswith("3 11 2.13.0")
    assert hpc("/usr/bin/python3 -V") == "Python 3.13.5"


# Each difference, and that the kit works with it.


def test_user_has_another_name_and_tcsh_as_the_login_shell(hpc, slurm):
    assert hpc("", "id -un; echo $shell $version:q").split()[:3] == [
        SITE.user,
        SITE.login_shell,
        "tcsh",
    ]
    words = ["a b", "!!", "$HOME", "it's", "x" * 3000, "line\nbreak"]
    assert slurm.host.run(["printf", "%s\\0", *words]).out.split("\0")[:-1] == words
    status, log = ended(slurm, "id -un")
    assert (status.succeeded, log.strip()) == (True, SITE.user)


def test_times_and_numbers_are_read_whatever_the_zone_and_the_locale(hpc, slurm):
    assert hpc("printf '%.1f ' 1,5; date +%:z; readlink /etc/localtime").split() == [
        "1,5",
        re.sub(r"(..)$", r":\1", datetime.now(ZoneInfo(SITE.zone)).strftime("%z")),
        f"/usr/share/zoneinfo/{SITE.zone}",
    ]
    begun = time.time()
    status, log = ended(slurm, "date +%Z", "printf '%.1f\\n' 1.5", "echo $LANG", "sleep 1")
    zone = datetime.now(ZoneInfo(SITE.zone)).tzname()
    assert log.split() == [zone, "1.5", SITE.locale], "a job has the kit's locale, not the site's"
    (job, *_) = slurm.usage(status.attempt_id, status.job_id).usage.rows
    assert begun - 5 < job.submit <= job.start < job.end < time.time() + 5
    (job, *_) = slurm.list_accounting([status.attempt_id]).splitlines()[1:]
    assert status.job_id in job


def test_key_without_a_certificate_is_refused_and_the_doctor_names_it(second_site, tmp_path):
    key = Path(second_site["files"]["user_key"])
    for name in ("id", "id.pub"):
        (tmp_path / name).write_bytes(key.with_name(name).read_bytes())
    (tmp_path / "id").chmod(0o600)
    text = Path(second_site["files"]["ssh_config"]).read_text()
    config = tmp_path / "config"
    config.write_text(text.replace(str(key), str(tmp_path / "id")))
    done = subprocess.run(["ssh", "-F", config, "hpc", "true"], capture_output=True, text=True)
    assert (done.returncode, "Permission denied (publickey)" in done.stderr) == (255, True)
    first = Path(kit_status()["ssh_config"])
    config.write_text(first.read_text().replace(str(first.parent / "ssh" / "id"), f"{tmp_path}/id"))
    assert subprocess.run(["ssh", "-F", config, "hpc", "true"]).returncode == 0, "the first does"
    config.write_text(text.replace(str(key), str(tmp_path / "id")))
    rows = doctor(config, tmp_path / "sites")
    assert "ok" not in (rows["ssh certificate"], rows["ssh"])


def kit_status():
    return json.loads(kit_sandbox("status", "--json").stdout)["files"]


def doctor(config, folder):
    """Return the doctor's findings for a profile with another ssh config."""
    text = (BUILT_IN / f"{PROFILE}.toml").read_text()
    text = re.sub("(?m)^ssh_config = .*$", f'ssh_config = "{config}"', text)
    folder.mkdir()
    (folder / "keyonly.toml").write_text(text.replace('"trixie"', '"keyonly"', 1))
    argv = [sys.executable, "-m", "kit", "doctor", "--profile", "keyonly", "--json"]
    environ = {**os.environ, "KIT_SITES_DIR": str(folder)}
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    return {row["name"]: row["state"] for row in json.loads(done.stdout)}


def test_message_at_submission_reaches_the_person_and_the_job_is_known(slurm, tmp_path):
    argv = [sys.executable, "-m", "kit", "submit", "--profile", PROFILE, "-t", "1", "--mem", "20M"]
    done = subprocess.run(
        [*argv, "--name", secrets.token_hex(4), "--wait", "--", "echo", "done"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert f"the site says: {MESSAGE}" in done.stderr
    assert re.search(r"COMPLETED \d+", done.stderr)


def test_refusal_of_the_plugin_is_one_whatever_its_words(slurm):
    job = slurm.job("refused", ["true"], account="project_2005678", modules=(), nodes=1)
    with pytest.raises(CommandFailed, match="has no BU left. Its controller") as caught:
        slurm.submit(job, secrets.token_hex(6))
    assert "Unspecified error" in caught.value.got


@pytest.mark.parametrize("init", ["", "/usr/share/modules/init/bash"])
def test_modules_in_tcl_are_loaded_with_and_without_module_init(slurm, init):
    status, log = ended(slurm, "echo $LOADEDMODULES", modules=("pytorch",), module_init=init)
    assert (status.succeeded, log.strip()) == (True, "pytorch/2.13")
    gone, log = ended(slurm, "true", modules=("no-such",), module_init=init)
    assert (gone.exit_code, "no-such" in log) == (96, True)


def test_figures_of_a_site_without_seff_are_computed(hpc, slurm):
    assert hpc("command -v seff || echo none") == "none"
    status, _ = ended(slurm, "sleep 1")
    accounting = slurm.usage(status.attempt_id, status.job_id)
    assert accounting.seff["Source"] == "computed from sacct"
    assert accounting.missing == ()


# Two submitters, two profiles, one store.


def test_each_submitter_works_only_for_its_own_profile(second_site):
    prefix = f"t{secrets.token_hex(4)}"
    benches = {}
    for name in SITES:
        profile = load(name)
        store = dataclasses.replace(profile.store, bucket_prefix=prefix)
        benches[name] = Bench(dataclasses.replace(profile, store=store))
    first, second = benches.values()
    try:
        run = second.ask()
        left_alone(first, run)
        second.passes_until(run, lambda: second.shown(run).get("job"))
        assert f"the site says: {MESSAGE}" in sentence(second.shown(run) | {"training": None})
        left_alone(first, run, RunState.SUBMITTED)
        first.requests.cancel(run)
        left_alone(first, run, RunState.CANCELLING)
        assert second.finish(run).state is RunState.CANCELLED
        assert (len(second.ended(run)), first.sacct(run)) == (1, [])
        run = first.ask()
        left_alone(second, run)
        first.requests.cancel(run)
        left_alone(second, run, RunState.CANCELLING)
        assert first.finish(run).state is RunState.CANCELLED
    finally:
        for bench in benches.values():
            bench.close()


def left_alone(bench, run, state=RunState.REQUESTED):
    """Check that a submitter does nothing about a run."""
    for _ in range(3):
        bench.submitter.once()
    assert bench.requests.status(run).state is state
    assert not bench.folder(run).exists()


def test_forwarder_refuses_a_run_of_the_other_profile(second_site):
    settings = load("sandbox")
    token = Path(settings.cloud.forwarder_token_file).read_text().strip()
    run = f"cloud-hpc-{secrets.token_hex(6)}-1"
    body = {"run": run, "data_hash": "0" * 64, "hyperparameters": {}, "profile": PROFILE}
    argv = ["curl", "-s", "-w", "\n%{http_code}", "-K", "-", "-X", "POST", "-d", json.dumps(body)]
    url = f"{settings.cloud.forwarder_url}/runs"
    header = f'header = "Authorization: Bearer {token}"\nheader = "Content-Type: application/json"'
    done = subprocess.run([*argv, url], input=header, capture_output=True, text=True)
    text, code = done.stdout.rsplit("\n", 1)
    assert code == "404", text
    assert "this forwarder is for profile sandbox" in text
    assert run not in submitter_for(load(PROFILE)).requests.statuses()
