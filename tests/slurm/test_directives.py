"""Every option that a profile can give to sbatch, read by the real sbatch of both sites.

What an option names need not exist here: then the controller's refusal of that name is expected,
which comes after sbatch has read the option.
"""

import subprocess

import pytest

from kit.base.settings import Hpc, load
from kit.slurm.script import OPTIONS, JobSpec, build_script

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(300)]
ACCEPTED = "to start at"
NOT_READ = ("unrecognized option", "Invalid directive", "invalid option", "ambiguous")

# the field, its value, what sbatch says on both sites
CASES = [
    ("mem_per_cpu", "50M", ACCEPTED),
    ("tasks_per_node", 1, ACCEPTED),
    ("exclusive", True, ACCEPTED),
    ("exclude", "c2", ACCEPTED),
    ("nodelist", "c1", ACCEPTED),
    ("mail_type", "END,FAIL", ACCEPTED),
    ("mail_user", "me@example.org", ACCEPTED),
    ("comment", "five-epochs", ACCEPTED),
    ("burst_buffer", "#BB_LUA SBF storagesize=100G path=/run/sbb/me", ACCEPTED),
    ("gres", "nvme:10", "Invalid generic resource"),
    ("gpus_per_node", "a100:1", "Requested node configuration is not available"),
    ("qos", "nosuch", ACCEPTED),  # neither site enforces the QOS of a job
    ("constraint", "nosuch", "Invalid feature specification"),
    ("reservation", "nosuch", "Requested reservation is invalid"),
    ("licenses", "nosuch:1", "Invalid license specification"),
    ("clusters", "nosuch", "nosuch"),
]


@pytest.fixture(scope="module", params=["sandbox", "sandbox-trixie"])
def login(request, second_site):
    """Return the ssh command for the login node of a site."""
    hpc = load(request.param).hpc
    return ["ssh", "-F", hpc.ssh_config, hpc.ssh_host], hpc


@pytest.mark.parametrize(("field", "value", "expected"), CASES, ids=lambda value: str(value)[:24])
def test_real_sbatch_reads_the_option(login, field, value, expected):
    argv, hpc = login
    memory = "" if field == "mem_per_cpu" else "50M"
    fields = {"account": hpc.account, "partition": "small", "memory": memory, field: value}
    job = JobSpec("kit-directives", ("true",), time="00:01:00", **fields)
    script = build_script(job, f"{hpc.project_dir}/kit/tries/0123456789ab")
    done = subprocess.run(
        [*argv, "sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=60
    )
    answer = done.stdout + done.stderr
    assert not [text for text in NOT_READ if text in answer], answer
    assert expected in answer, answer


def test_every_option_of_a_profile_is_tried():
    tried = {field for field, *_ in CASES}
    always = {"name", "account", "partition", "nodes", "cpus", "memory", "time"}
    assert {field for _, field, *_ in OPTIONS} | {"exclusive"} == tried | always
    assert "burst_buffer" in Hpc.__dataclass_fields__
