"""Who gets into the login node and the VM of the sandbox, and who does not."""

import re
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def ssh(sandbox):
    """A function: ssh with the sandbox's configuration; gives the completed process."""

    def run(*words, config=sandbox["files"]["ssh_config"]):
        argv = ["ssh", "-F", config, *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30)

    return run


@pytest.fixture
def stranger(sandbox, tmp_path):
    """An ssh configuration like the sandbox's with a new key that nobody has authorised."""
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    text = Path(sandbox["files"]["ssh_config"]).read_text()
    config = tmp_path / "config"
    config.write_text(text.replace(sandbox["files"]["user_key"], str(key)))
    return config


def sign(sandbox, stranger, principal, valid):
    argv = ["ssh-keygen", "-q", "-s", sandbox["files"]["user_ca"], "-I", "test", "-n", principal]
    subprocess.run([*argv, "-V", valid, f"{stranger.parent}/id.pub"], check=True)


def user_of(sandbox, host):
    text = Path(sandbox["files"]["ssh_config"]).read_text()
    return re.search(rf"Host {host}\n(?:  .*\n)*?  User (\S+)", text)[1]


@pytest.mark.parametrize(("host", "name"), [("hpc", "login"), ("cloud", "cloud")])
def test_each_host_answers_with_its_own_name_and_user(ssh, sandbox, host, name):
    done = ssh(host, "hostname; id -un")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [name, user_of(sandbox, host)]


@pytest.mark.parametrize("host", ["hpc", "cloud"])
def test_an_unknown_key_is_refused_and_no_password_is_asked(ssh, stranger, host):
    done = ssh(
        "-o", "BatchMode=no", "-o", "NumberOfPasswordPrompts=1", host, "true", config=stranger
    )
    assert done.returncode == 255
    assert "Permission denied (publickey)." in done.stderr


def test_a_certificate_lets_a_new_key_in_until_it_expires(ssh, sandbox, stranger):
    sign(sandbox, stranger, user_of(sandbox, "hpc"), "always:+2s")
    assert ssh("hpc", "true", config=stranger).returncode == 0
    time.sleep(2.5)
    done = ssh("hpc", "true", config=stranger)
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_a_certificate_for_somebody_else_is_refused(ssh, sandbox, stranger):
    sign(sandbox, stranger, "somebody", "always:+1h")
    assert ssh("hpc", "true", config=stranger).returncode == 255


def test_the_users_own_certificate_is_valid_for_most_of_a_day(sandbox):
    argv = ["ssh-keygen", "-L", "-f", sandbox["files"]["user_key"] + "-cert.pub"]
    text = subprocess.run(argv, capture_output=True, text=True).stdout
    end = re.search(r"to (\S+)", text)[1]
    left = time.mktime(time.strptime(end, "%Y-%m-%dT%H:%M:%S")) - time.time()
    assert 23 * 3600 < left <= 24 * 3600


def test_a_host_with_another_key_is_not_talked_to(ssh, sandbox, tmp_path):
    known = tmp_path / "known_hosts"
    lines = Path(sandbox["files"]["known_hosts"]).read_text().splitlines()
    (first, key), (second, other) = (line.split(" ", 1) for line in lines)
    known.write_text(f"{first} {other}\n{second} {key}\n")
    done = ssh("-o", f"UserKnownHostsFile={known}", "hpc", "true")
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


@pytest.mark.parametrize("bind", ["127.0.0.13:8280", "127.0.0.1:8281"])
def test_the_vm_ends_reverse_tunnels_at_the_address_that_is_asked_for(sandbox, bind):
    back = (
        f"{bind}:127.0.0.1:{next(s['port'] for s in sandbox['services'] if s['name'] == 'redis')}"
    )
    argv = ["ssh", "-F", sandbox["files"]["ssh_config"], "-o", "ExitOnForwardFailure=yes"]
    tunnel = subprocess.Popen(
        [*argv, "-R", back, "cloud", "echo up; sleep 20"], stdout=subprocess.PIPE
    )
    try:
        assert tunnel.stdout.readline() == b"up\n"
        address, port = bind.split(":")
        script = f"exec 3<>/dev/tcp/{address}/{port}; printf 'PING\\r\\n' >&3; head -1 <&3"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=10)
        assert "NOAUTH" in done.stdout, "Redis answers through the tunnel, and wants its password"
    finally:
        tunnel.terminate()
        tunnel.wait()
