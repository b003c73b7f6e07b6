"""Every service of the sandbox answers, wants its credential, and `status` says the truth."""

import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from kit_sandbox import commands
from kit_sandbox import files as sandbox_files
from kit_sandbox.services import Service
from sandbox_command import kit_sandbox

from kit.base.settings import load

pytestmark = pytest.mark.core
WITH_A_PORT = set(sandbox_files.PLACES)


def env_file(path):
    return dict(line.split("=", 1) for line in Path(path).read_text().splitlines() if "=" in line)


def with_login(url, user=None, password=None, body=None):
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    if user:
        words = b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {words}")
    return request


def status_of(url, user=None, password=None, body=None):
    try:
        with urllib.request.urlopen(with_login(url, user, password, body), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as err:
        return err.code


@pytest.fixture(scope="module")
def services(sandbox):
    """What `status` says now: other tests may have made services start again."""
    return json.loads(kit_sandbox("status", "--json").stdout)["services"]


@pytest.mark.sandbox
@pytest.mark.parametrize("name", sandbox_files.PROGRAMS)
def test_a_service_is_up_and_says_where_since_when_and_how_big(services, name):
    one = next(row for row in services if row["name"] == name)
    assert one["up"], one
    assert 0 < one["health_s"] < 10
    assert Path(f"/proc/{one['pid']}").exists()
    assert 1e6 < one["rss"] < 6e8
    assert (one["port"] is not None) == (name in WITH_A_PORT)


@pytest.mark.sandbox
def test_every_service_listens_on_loopback_addresses_only(services):
    pids = {str(one["pid"]) for one in services}
    lines = kit_sandbox("exec", "ss", "-Hltnp").stdout.splitlines()
    ours = [line for line in lines if pids & set(re.findall(r"pid=(\d+)", line))]
    listening = {line.split()[3] for line in ours}
    assert {f"{one['address']}:{one['port']}" for one in services if one["port"]} <= listening
    assert [address for address in listening if not address.startswith("127.")] == []


@pytest.mark.sandbox
def test_all_services_together_stay_below_their_memory(services):
    assert sum(row["rss"] for row in services) < 1.4e9


@pytest.mark.sandbox
def test_the_files_that_status_names_exist_and_the_secret_ones_are_private(sandbox):
    for name, path in sandbox["files"].items():
        assert Path(path).stat().st_size > 0, name
    private = ("env_file", "mlflow_env", "redis_env", "prometheus_env", "user_key", "user_ca")
    assert {Path(sandbox["files"][name]).stat().st_mode & 0o777 for name in private} == {0o600}


@pytest.mark.sandbox
def test_mlflow_wants_its_password_and_keeps_artifacts_in_the_store(sandbox, tmp_path, monkeypatch):
    import mlflow

    given = env_file(sandbox["files"]["mlflow_env"])
    search = given["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/search"
    body = json.dumps({"max_results": 1}).encode()
    assert status_of(search, body=body) == 401
    assert status_of(search, "kit", "guess", body) == 401
    assert status_of(given["MLFLOW_TRACKING_URI"] + "/health") == 200
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient(given["MLFLOW_TRACKING_URI"])
    run = client.create_run("0")
    (tmp_path / "figures.bin").write_bytes(bytes(range(256)) * 4096)
    client.log_artifact(run.info.run_id, str(tmp_path / "figures.bin"))
    (tmp_path / "back").mkdir()
    back = client.download_artifacts(run.info.run_id, "figures.bin", str(tmp_path / "back"))
    assert Path(back).read_bytes() == (tmp_path / "figures.bin").read_bytes()
    client.delete_run(run.info.run_id)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")


@pytest.mark.sandbox
def test_redis_wants_its_password(sandbox):
    import redis

    url = env_file(sandbox["files"]["redis_env"])["REDIS_URL"]
    assert redis.from_url(url).ping()
    bare = redis.from_url("redis://" + url.split("@")[1])
    with pytest.raises(redis.AuthenticationError):
        bare.ping()


@pytest.mark.sandbox
def test_prometheus_wants_its_password_and_looks_at_the_forwarder(sandbox):
    given = env_file(sandbox["files"]["prometheus_env"])
    url = given["PROMETHEUS_URL"] + "/api/v1/targets"
    assert status_of(url) == 401
    words = (given["PROMETHEUS_USERNAME"], given["PROMETHEUS_PASSWORD"])
    assert status_of(url, *words) == 200
    answer = urllib.request.urlopen(with_login(url, *words), timeout=10)
    targets = json.load(answer)["data"]
    assert [one["scrapeUrl"] for one in targets["activeTargets"]] == [
        "http://127.0.0.1:6502/metrics"
    ]


@pytest.mark.sandbox
def test_no_daemon_has_a_password_in_its_arguments(sandbox, services):
    folder = Path(sandbox["files"]["slurm_conf"]).parent
    secrets = [path.read_text() for path in (folder / "secrets").iterdir()]
    assert len(secrets) >= 6
    for one in services:
        line = Path(f"/proc/{one['pid']}/cmdline").read_bytes().decode(errors="replace")
        assert not [word for word in secrets if word in line], one["name"]


@pytest.mark.sandbox
def test_status_as_a_table_names_every_service(sandbox):
    done = kit_sandbox("status")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["service", "up", "since", "pid"]
    assert [line.split()[0] for line in lines[1:-1]] == list(sandbox_files.PROGRAMS)


@pytest.mark.sandbox
@pytest.mark.parametrize("name", ["slurmctld", "mlflow", "prometheus"])
def test_logs_show_what_a_service_wrote(sandbox, name):
    done = kit_sandbox("logs", name, "-n", "3")
    assert done.returncode == 0
    assert f"/log/{name}.out" in done.stdout


def test_the_table_shows_what_is_down_and_the_sum():
    services = [
        Service("redis", True, 0.0123, "PONG", "running", 42, 0.0, "127.0.0.1", 6379, 12_000_000),
        Service("rgw", False, 0.0, "not running", "stopped"),
    ]
    lines = commands.service_table(services).splitlines()
    assert lines[1].split() == (
        ["redis", "yes", lines[1].split()[2], "42", "127.0.0.1:6379", "12", "0.01", "PONG"]
    )
    assert lines[2].split() == ["rgw", "NO", "-", "-", "-", "0", "0.00", "not", "running"]
    assert lines[3] == "12 MB resident in all"


@pytest.mark.sandbox
def test_accounting_knows_the_controller_by_its_real_address(sandbox):
    """`squeue -M` asks the controller where the accounting says it is."""
    done = kit_sandbox("exec", "squeue", "-M", "sandbox", "-h")
    assert (done.returncode, done.stderr) == (0, "")
    columns = "format=controlhost,controlport"
    place = kit_sandbox("exec", "sacctmgr", "-nP", "show", "cluster", columns).stdout.strip()
    row = next(row for row in sandbox["services"] if row["name"] == "slurmctld")
    assert place == f"{row['address']}|{row['port']}"


@pytest.mark.sandbox
def test_nothing_of_the_sandbox_can_be_read_by_other_users(sandbox):
    folder = Path(sandbox["files"]["slurm_conf"]).parent.parent
    closed = [folder, load("sandbox").cache_dir / "sandbox"]
    assert {path.stat().st_mode & 0o777 for path in closed} == {0o700}


@pytest.mark.sandbox
def test_services_run_in_the_private_root_and_the_machine_has_none_of_their_programs(services):
    root = (load("sandbox").sandbox_dir / "root").resolve()
    for row in services:
        inside = Path(f"/proc/{row['pid']}/root").samefile(root)
        python = row["name"] in ("keystone", "mlflow", "forwarder", "worker", "flower", "submitter")
        assert inside is not python, row["name"]
