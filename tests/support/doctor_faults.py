"""Every fault that the doctor must name: how it is seeded, its diagnosis, what the answer says.

`how` is `here` (files, keys and servers of the test), `sshd` (a real sshd before this machine),
`sandbox` (its real services) or `recorded` (programs on that sshd that answer from texts in
`outputs/`, since no Docker and no cluster run where the tests do).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import doctor_seeds as seeds
import pytest
from doctor_bench import ENV, KIND
from doctor_seeds import NOBODY

from kit.base import DataError
from kit.base.settings import Cloud, Port, Store
from kit.doctor import checks as doctor
from kit.doctor import diagnoses
from kit.doctor.link_race import Race
from kit.doctor.vm import LIST, LISTENERS, LOG, PODS

OWN = '[site]\nname = "mine"\ntitle = "Mine"\n'


@dataclass(frozen=True)
class Fault:
    """One row: what is wrong, the diagnosis, a word of the answer, how and by what it is seeded."""

    what: str
    diagnosis: str
    word: str
    how: str
    seed: Callable[[Any], list[Any]]

    def __str__(self):
        return f"{self.diagnosis}: {self.what}"


PROFILE = [
    Fault(
        "a profile that is not there",
        "profile-unknown",
        "atlantis",
        "here",
        lambda _: doctor.examine("atlantis"),
    ),
    Fault(
        "a typo in a key",
        "profile-wrong",
        "partion",
        "here",
        lambda b: b.profile(f'{OWN}[hpc]\nssh_host = "h"\nproject_dir = "/p"\npartion = "x"\n'),
    ),
    Fault(
        "a key that is missing",
        "profile-wrong",
        "project_dir",
        "here",
        lambda b: b.profile(f'{OWN}[hpc]\nssh_host = "h"\n'),
    ),
    Fault(
        "a text for a number",
        "profile-wrong",
        "nodes",
        "here",
        lambda b: b.profile(f'{OWN}[hpc]\nssh_host="h"\nproject_dir="/p"\nnodes = "2"\n'),
    ),
    Fault(
        "a syntax error",
        "profile-wrong",
        "line 5",
        "here",
        lambda b: b.profile(f"{OWN}[hpc]\nssh_host = h\n"),
    ),
    Fault(
        "a template", "profile-unfilled", "[store] url", "here", lambda _: doctor.examine("slurm")
    ),
    Fault("a closed site", "site-closed", "roihu", "here", lambda _: doctor.examine("mahti-2024")),
    Fault("a run over the budget", "over-budget", "0.0001", "here", seeds.budget),
    Fault("it does not answer", "late", "0.5 s", "here", seeds.late),
]

SECRETS = [
    Fault(
        "no .env",
        "env-missing",
        "nowhere",
        "here",
        lambda b: b.look(env_file=b.folder / "nowhere", store=Store("s3", "", auth_url=NOBODY)),
    ),
    Fault(
        "a name is missing in .env",
        "env-missing",
        "CSC_PROJECT_NAME",
        "here",
        lambda b: seeds.login(b, text=ENV.replace("CSC_PROJECT_NAME", "CSC_PROJECT")),
    ),
    Fault(
        ".env is open to others",
        "env-readable",
        "mode 644",
        "here",
        lambda b: seeds.login(b, mode=0o644),
    ),
    Fault(".env is tracked by git", "secrets-tracked", ".env", "here", seeds.tracked_env),
    Fault(
        "compose-secrets is open to others",
        "secrets-wrong",
        "others",
        "here",
        lambda b: seeds.compose(b, "{}", 0o644),
    ),
    Fault(
        "compose-secrets is not JSON",
        "secrets-wrong",
        "JSON",
        "here",
        lambda b: seeds.compose(b, "{'", 0o600),
    ),
    Fault(
        "Keystone refuses the login",
        "login-refused",
        "anna",
        "here",
        lambda b: seeds.keystone(b, 401),
    ),
    Fault(
        "Keystone fails inside", "keystone-fails", "500", "here", lambda b: seeds.keystone(b, 500)
    ),
    Fault(
        "a package is missing",
        "package-missing",
        "keystoneauth1",
        "here",
        seeds.without_keystoneauth,
    ),
    Fault("nobody at Keystone's port", "keystone-away", "127.0.0.1:9", "here", seeds.login),
]

PLATFORM = [
    Fault(
        "an unknown kind of store",
        "store-settings",
        "tape",
        "here",
        lambda b: b.look(store=Store("tape", "x")),
    ),
    Fault("a store that changes bytes", "store-damaged", "pipeline", "here", seeds.damaged_store),
    Fault(
        "nobody at MLflow's port",
        "mlflow-away",
        "Connection refused",
        "here",
        lambda b: b.look(cloud=Cloud(mlflow_url=NOBODY)),
    ),
    Fault(
        "MLflow started without its host name",
        "mlflow-host",
        "Invalid Host header",
        "here",
        lambda b: seeds.mlflow_answers(b, 403, "Invalid Host header - possible DNS rebinding"),
    ),
    Fault(
        "MLflow without artifact proxy",
        "mlflow-artifacts",
        "127.0.0.1",
        "here",
        lambda b: seeds.mlflow_answers(b, 200, "disabled: --no-serve-artifacts", 503),
    ),
    Fault(
        "a clock that is off for the store",
        "store-clock",
        "RequestTimeTooSkewed",
        "here",
        seeds.skewed_store,
    ),
    Fault(
        "a path as MLflow's address",
        "tracking-uri-wrong",
        "mlruns",
        "here",
        lambda b: seeds.tracking_uri(b, "./mlruns"),
    ),
    Fault(
        "an address without http",
        "tracking-uri-wrong",
        "127.0.0.1:5955",
        "here",
        lambda b: seeds.tracking_uri(b, "127.0.0.1:5955"),
    ),
    Fault(
        "a file in place of the results folder",
        "results-not-writable",
        "taken",
        "here",
        lambda b: b.look(results_dir=b.file("", name="taken") / "results"),
    ),
    Fault(
        "results without file locks",
        "results-without-locks",
        "No locks",
        "here",
        seeds.without_locks,
    ),
    Fault(
        "a data folder that is not there",
        "data-dir-missing",
        "does not exist",
        "here",
        lambda b: b.look(data_dir=b.folder / "nowhere"),
    ),
    Fault(
        "a file as data folder",
        "data-dir-missing",
        "it is a file",
        "here",
        lambda b: b.look(data_dir=b.file("", name="data.gz")),
    ),
    Fault("kfp is not installed", "runner-missing", "kfp", "here", seeds.no_kfp),
    Fault(
        "nobody at Kubeflow's port",
        "kfp-away",
        "Connection refused",
        "here",
        lambda b: b.look(cloud=Cloud(runner="cluster", kfp_url=NOBODY)),
    ),
    Fault("Kubeflow asks for a log-in", "kfp-refused", "401", "here", seeds.kfp_refuses),
    Fault(
        "nobody at the forwarder's port",
        "forwarder-away",
        "Connection refused",
        "here",
        lambda b: b.look(cloud=Cloud(forwarder_url=NOBODY)),
    ),
    Fault(
        "no submitter",
        "submitter-away",
        "127.0.0.1:9",
        "here",
        lambda b: b.look(
            hpc=b.site(None, "/nowhere"), ports={"submitter": Port(9, address="127.0.0.1")}
        ),
    ),
    Fault(
        "a dead service",
        "port-dead",
        "redis 127.0.0.1:9",
        "here",
        lambda b: b.look(ports={"redis": Port(9, address="127.0.0.1")}),
    ),
    Fault(
        "a port of another program",
        "port-taken",
        "(mlflow) by pid",
        "here",
        lambda b: seeds.forwarded(b, b.listening()),
    ),
    Fault(
        "nothing is forwarded", "not-forwarded", "mlflow 9", "here", lambda b: seeds.forwarded(b, 9)
    ),
]

SSH = [
    Fault("no ssh here", "ssh-missing", "ssh is not installed", "here", seeds.without_ssh),
    Fault(
        "no key",
        "key-missing",
        "for site",
        "here",
        lambda b: b.look(
            hpc=b.site(
                None, b.key(config="Host site\n  IdentityAgent none\n  IdentityFile /nowhere/id\n")
            )
        ),
    ),
    Fault(
        "a key that others may read",
        "key-mode",
        "mode 644",
        "here",
        lambda b: b.look(hpc=b.site(None, b.key(mode=0o644))),
    ),
    Fault(
        "a key with a pass phrase",
        "key-passphrase",
        "user_key",
        "here",
        lambda b: b.look(hpc=b.site(None, b.key(passphrase="hush hush"))),
    ),
    Fault(
        "no certificate",
        "certificate-missing",
        "for site",
        "here",
        lambda b: b.look(hpc=b.site(None, b.key(), needs_certificate=True)),
    ),
    Fault(
        "a certificate that has expired",
        "certificate-expired",
        "certificate",
        "here",
        lambda b: seeds.certificate(b, -7200, -3600),
    ),
    Fault(
        "a certificate for half an hour",
        "certificate-short",
        "min",
        "here",
        lambda b: seeds.certificate(b, -60, 1800),
    ),
    Fault(
        "a typo in the ssh config",
        "ssh-settings",
        "prot",
        "here",
        lambda b: b.look(hpc=b.site(None, b.key(config="Host site\n  Prot 22\n"))),
    ),
    Fault(
        "nobody at the login node's port",
        "ssh-away",
        "refused",
        "here",
        lambda b: b.look(hpc=b.site(None, b.key())),
    ),
    Fault(
        "the login node closes the connection before the login",
        "ssh-closed",
        "closed the connection before the login",
        "here",
        seeds.closing,
    ),
    Fault(
        "the login node refuses the key",
        "ssh-refused",
        "Permission denied",
        "sshd",
        lambda b: seeds.refused(b, "site"),
    ),
    Fault("another host key", "host-key", "site", "sshd", seeds.another_machine),
    Fault(
        "nobody at the VM's port",
        "vm-away",
        "refused",
        "here",
        lambda b: b.look(hpc=b.site(None, b.key()), cloud=Cloud(ssh_host="site")),
    ),
    Fault(
        "the VM refuses the key",
        "vm-refused",
        "Permission denied",
        "sshd",
        lambda b: seeds.refused(b, "vm"),
    ),
    Fault(
        "the site does not reach the VM",
        "vm-port-closed",
        "127.0.0.1:9",
        "sshd",
        seeds.vm_beyond_a_jump,
    ),
    Fault(
        "tunnels are barred",
        "tunnel-barred",
        "site",
        "sshd",
        lambda b: seeds.vm_with(b, "AllowTcpForwarding no", "127.0.0.1"),
    ),
    Fault(
        "GatewayPorts no",
        "gateway-ports",
        "got 127.0.0.1",
        "sshd",
        lambda b: seeds.vm_with(b, "GatewayPorts no", "0.0.0.0"),
    ),
    Fault(
        "the clock is off by an hour",
        "clock-off",
        "by -3",
        "sshd",
        lambda b: b.login_node(b.sshd(), ahead_s=3600),
    ),
]

SITE = [
    Fault("a machine without Slurm", "slurm-missing", "site", "sshd", seeds.slurm),
    Fault(
        "no modules there",
        "module-missing",
        "pytorch",
        "sshd",
        lambda b: b.login_node(b.bare(), modules=("pytorch",)),
    ),
    Fault(
        "another path of Python",
        "python-missing",
        "/nowhere/python3",
        "sshd",
        lambda b: b.login_node(b.bare(), python="/nowhere/python3"),
    ),
    Fault(
        "no image there",
        "container-missing",
        "torch.sif does not exist",
        "sshd",
        lambda b: seeds.container(b, "exit 1", "images/torch.sif"),
    ),
    Fault(
        "no container runtime there",
        "container-runtime",
        "neither apptainer nor singularity",
        "sshd",
        lambda b: seeds.container(b, "", str(b.folder)),
    ),
    Fault(
        "an image without that Python",
        "container-fails",
        "executable file not found",
        "sshd",
        lambda b: seeds.container(
            b, "echo 'FATAL: python3: executable file not found in $PATH' >&2; exit 255", "."
        ),
    ),
    Fault(
        "an environment without Ray",
        "environment-incomplete",
        "No package metadata was found for ray",
        "sshd",
        seeds.environment_without_ray,
    ),
    Fault(
        "no environment yet",
        "environment-missing",
        "Python 3",
        "sshd",
        lambda b: b.login_node(b.bare()),
    ),
    Fault(
        "no seff", "seff-missing", "site", "sshd", lambda b: b.login_node(b.bare(), has_seff=True)
    ),
    Fault(
        "no project folder",
        "folder-missing",
        "/nowhere",
        "sshd",
        lambda b: b.login_node(b.bare(), project_dir="/nowhere"),
    ),
    Fault(
        "another user of the project was here first",
        "folder-of-another",
        "/kit",
        "sshd",
        seeds.folder_of_another,
    ),
    Fault(
        "a quota that is nearly used up",
        "quota-short",
        "room for 0.10 GiB in 900 files",
        "sshd",
        lambda b: b.login_node(b.bare(lfs=seeds.LFS)),
    ),
    Fault("a full project folder", "folder-full", "File too large", "sshd", seeds.full_folder),
    Fault(
        "a link that a node won, too",
        "links-broken",
        "disagree who won 1",
        "sshd",
        lambda b: seeds.raced(b, Race(200, 200, (3,))),
    ),
    Fault(
        "a job that does not start",
        "race-not-held",
        "not in time",
        "sshd",
        lambda b: seeds.raced(b, DataError("race for links with a job", "not in time")),
    ),
    Fault(
        "a job for the report that nobody starts",
        "job-not-run",
        "PENDING",
        "sshd",
        lambda b: seeds.in_a_job(b, DataError("run a job that reports", "it is PENDING")),
    ),
    Fault(
        "a module that a node does not have",
        "job-fails",
        "module x",
        "sshd",
        lambda b: seeds.in_a_job(b, seeds.JOB_FAILS),
    ),
    Fault(
        "a module that sets a locale",
        "job-environment",
        "fi_FI",
        "sshd",
        lambda b: seeds.in_a_job(b, {**seeds.SEEN, "locale": "fi_FI.UTF-8"}),
    ),
    Fault(
        "a node without PyTorch",
        "job-packages",
        "No module named 'torch'",
        "sshd",
        lambda b: seeds.in_a_job(b, {**seeds.SEEN, "missing": "No module named 'torch'"}),
    ),
    Fault(
        "PyTorch that sees no GPU",
        "gpu-unseen",
        "sees 0",
        "sshd",
        lambda b: seeds.in_a_job(b, seeds.SEEN, gres="gpu:gh200:1"),
    ),
    Fault("links that are replaced", "links-broken", "second", "sshd", seeds.links_that_replace),
    Fault(
        "no partition named and no default",
        "partition-missing",
        "''",
        "sshd",
        lambda b: seeds.slurm(
            b, partition="", sinfo="echo 'small up 1:00:00 2'", sacctmgr="echo p"
        ),
    ),
]

CLUSTER = [
    Fault("no Docker", "docker-missing", "docker", "sshd", lambda b: b.cluster(taken=("docker",))),
    Fault(
        "Docker is stopped",
        "docker-away",
        "Cannot connect",
        "recorded",
        seeds.recorded(LIST, "docker-28.2/ps-no-daemon.txt"),
    ),
    Fault(
        "Docker's volume is not mounted",
        "docker-data-gone",
        "container",
        "recorded",
        lambda b: b.cluster({(*LIST,): "", (*LISTENERS,): ""}),
    ),
    Fault(
        "docker-proxy without a container",
        "docker-proxy-left",
        "port 8080",
        "recorded",
        seeds.recorded(LISTENERS, "made/ss-docker-proxy-left.txt"),
    ),
    Fault(
        "a kind registry that cannot be killed",
        "registry-stuck",
        "permission denied",
        "recorded",
        seeds.recorded(LOG, "made/docker-log-registry-stuck.txt"),
    ),
    Fault(
        "a kind registry that cannot be removed",
        "registry-stuck",
        "Removal In Progress",
        "recorded",
        lambda b: b.cluster({(*LIST,): "made/docker-ps-registry-dead.txt", (*LISTENERS,): ""}),
    ),
    Fault("no kind", "kind-missing", "kind", "sshd", lambda b: b.cluster(taken=("kind",))),
    Fault(
        "no kind cluster",
        "kind-missing",
        "No kind clusters",
        "recorded",
        seeds.recorded(KIND, "made/kind-clusters-none.txt"),
    ),
    Fault(
        "a kubeconfig that points nowhere",
        "kubeconfig-nowhere",
        "127.0.0.1:6443",
        "recorded",
        seeds.recorded(PODS, "kubectl-1.32/get-pods-no-cluster.txt"),
    ),
    Fault(
        "an image that cannot be pulled",
        "image-not-pulled",
        "localhost:5001/kit-forwarder",
        "recorded",
        seeds.recorded(PODS, "made/pods-unpulled.json.txt"),
    ),
    Fault(
        "a pod that crashes",
        "pod-not-ready",
        "CrashLoopBackOff",
        "recorded",
        seeds.recorded(PODS, "made/pods-waiting.json.txt"),
    ),
]

FAULTS = [*PROFILE, *SECRETS, *PLATFORM, *SSH, *SITE, *CLUSTER]

SANDBOX = [
    Fault(
        "a partition that is not there",
        "partition-unknown",
        "'huge'",
        "sandbox",
        lambda b: b.sandbox(hpc={"partition": "huge"}),
    ),
    Fault(
        "an account that is not yours",
        "account-missing",
        "'project_9'",
        "sandbox",
        lambda b: b.sandbox(hpc={"account": "project_9"}),
    ),
    Fault(
        "Slurm's controller is stopped",
        "slurm-away",
        "Unable to contact slurm controller",
        "sandbox",
        lambda b: seeds.without(b, "slurmctld"),
    ),
    Fault(
        "a module that is not there",
        "module-missing",
        "tensorfloor",
        "sandbox",
        lambda b: b.sandbox(hpc={"modules": ("tensorfloor",)}),
    ),
    Fault(
        "seff is wanted",
        "seff-missing",
        "hpc",
        "sandbox",
        lambda b: b.sandbox(hpc={"has_seff": True}),
    ),
    Fault(
        "a host name that is not known",
        "ssh-away",
        "nowhere.invalid",
        "sandbox",
        lambda b: b.sandbox(hpc={"ssh_host": "nowhere.invalid"}),
    ),
    Fault(
        "a wrong password",
        "login-refused",
        "401",
        "sandbox",
        lambda b: seeds.edited(b, "CSC_PASSWORD=", "CSC_PASSWORD=wrong-"),
    ),
    Fault(
        "a wrong project",
        "login-refused",
        "401",
        "sandbox",
        lambda b: seeds.edited(b, "CSC_PROJECT_NAME=", "CSC_PROJECT_NAME=no_"),
    ),
    Fault(
        "a key for S3 that is not known",
        "store-refused",
        "InvalidAccessKeyId",
        "sandbox",
        seeds.unknown_ec2_key,
    ),
    Fault(
        "a bucket of another project",
        "bucket-taken",
        "another project has",
        "sandbox",
        seeds.taken_bucket,
    ),
    Fault(
        "nobody at the store's port",
        "store-away",
        "127.0.0.1:9",
        "sandbox",
        lambda b: b.sandbox(store={"url": "https://127.0.0.1:9"}),
    ),
    Fault(
        "MLflow without its password",
        "mlflow-refused",
        "401",
        "sandbox",
        lambda b: b.sandbox(cloud={"mlflow_env_file": ""}),
    ),
    Fault(
        "MLflow's password file is gone",
        "mlflow-refused",
        "nowhere",
        "sandbox",
        lambda b: b.sandbox(cloud={"mlflow_env_file": "/nowhere"}),
    ),
    Fault(
        "a service that is stopped",
        "port-dead",
        "flower 127.0.0.1:6501",
        "sandbox",
        lambda b: seeds.without(b, "flower"),
    ),
]


def by_name(findings):
    return {finding.name: finding for finding in findings}


def faults_of(module):
    """Return the faults whose diagnosis is made in a module of the doctor, to be seeded."""
    source = inspect.getsource(module)
    rows = [(fault, ()) for fault in FAULTS] + [(fault, pytest.mark.sandbox) for fault in SANDBOX]
    return [
        pytest.param(fault, id=str(fault), marks=marks)
        for fault, marks in rows
        if f'"{fault.diagnosis}"' in source
    ]


def assert_diagnosed(fault, bench):
    """Seed a fault: its diagnosis is there, from the check of its row, and says what to do."""
    known = diagnoses()[fault.diagnosis]
    found = fault.seed(bench)
    named = [each for each in found if each.diagnosis == fault.diagnosis]
    assert named, found
    assert known.check == "any" or any(each.name.startswith(known.check) for each in named)
    for each in named:
        assert fault.word in each.answer
        assert each.state == known.state
        assert each.next_step
