"""The checks on the cloud VM: every fault is seeded, and each has its own diagnosis."""

import captured
import pytest
from doctor_bench import KIND
from doctor_faults import assert_diagnosed, by_name, faults_of

from kit.doctor import vm
from kit.doctor.vm import LIST, LISTENERS, LOG


@pytest.mark.parametrize("fault", faults_of(vm))
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, bench)


def test_healthy_vm_on_recorded_outputs_has_no_fault(bench):
    found = by_name(bench.cluster())
    for name in ("VM", "VM from the site", "Docker", "kind", "pods"):
        assert found[name].state == "ok", found[name]
    assert found["Docker"].answer == "2 containers"
    assert found["pods"].answer == "2 pods are ready, every image is there"


def test_leftover_docker_proxy_gets_the_commands_and_nothing_is_changed(bench):
    """The program that changes something refuses; the doctor only prints what to run."""
    listeners = {(*LISTENERS,): "made/ss-docker-proxy-left.txt"}
    found = by_name(bench.cluster(listeners))["Docker"]
    assert found.diagnosis == "docker-proxy-left"
    for command in (
        "sudo systemctl stop docker.socket docker",
        "sudo rm -rf /var/lib/docker/network/files",
        "sudo systemctl start docker",
    ):
        assert f"`{command}`" in found.next_step


def test_docker_of_root_alone_is_asked_by_sudo(bench):
    """The person is in no group docker, so that `docker ps` is refused but by sudo."""
    answers = {
        ("sudo", "-n", *LIST): "made/docker-ps.txt",
        ("sudo", "-n", *KIND): "made/kind-clusters.txt",
    }
    refused = 'echo "permission denied while trying to connect to the Docker daemon" >&2; exit 1'
    found = by_name(bench.cluster(answers, docker=refused, kind=refused))
    assert (found["Docker"].state, found["kind"].state) == ("ok", "ok"), found["Docker"]
    assert found["Docker"].answer == "2 containers"


def test_stuck_registry_gets_the_command_for_its_own_shim(bench):
    log = {(*LOG,): "made/docker-log-registry-stuck.txt"}
    found = by_name(bench.cluster(log))["Docker"]
    number = captured.read("made/docker-ps.txt").splitlines()[1].partition("|")[0]
    assert f"`sudo pkill -KILL -f '[c]ontainerd-shim.*{number[:12]}'`" in found.next_step
    assert "`docker rm --force kind-registry`" in found.next_step


def test_gateway_ports_may_be_for_the_tunnels_user_only(bench):
    """`kit vm bootstrap` allows it in a Match block; the person logs in as somebody else."""
    server = bench.bare(sudo='[ "$3" = -T ] && echo GatewayPorts clientspecified')
    found = by_name(bench.vm(server, tunnel_address="0.0.0.0"))["GatewayPorts"]
    assert (found.state, found.diagnosis) == ("ok", ""), found
