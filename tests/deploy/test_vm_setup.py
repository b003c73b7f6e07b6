"""The VM's setup: the script by itself, over a real sshd, and as cloud-init's user data."""

import base64
import getpass
import hashlib
import os
import re
import shutil
import subprocess

import pytest
import yaml
from click.testing import CliRunner
from private_sshd import PrivateSshd, keygen
from tools_venv import TOOLS, tools

from kit.base import CommandFailed, UsageError
from kit.base.host import Output, as_completed
from kit.cli.deploy import vm_group
from kit.deploy import vm

SCRIPT = vm.FOLDER / "setup.sh"
STEPS = [
    "packages",
    "upgrades",
    "tools",
    "tunnel-user",
    "sshd",
    "registry",
    "cluster",
    "kubeconfig",
]
DOCKER_STEPS = ("registry", "cluster")
VALIDATOR = (
    "jsonschema==4.26.0",
    "PyYAML==6.0.4",
    "Jinja2==3.1.6",
    "configobj==5.0.9",
    "jsonpatch==1.48",
    "requests==2.34.2",
)


def script(*words, root="", path=""):
    environ = {**os.environ, "ROOT": str(root)} | ({"PATH": str(path)} if path else {})
    return subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, env=environ)


@pytest.fixture
def key(tmp_path):
    keygen("-t", "ed25519", "-N", "", "-C", "anna's laptop", "-f", tmp_path / "key")
    return tmp_path / "key.pub"


def test_script_lists_its_steps_and_refuses_others():
    assert script("list").stdout.split() == STEPS
    for words in (["check", "reboot"], ["do", "reboot"], ["nothing"], []):
        assert script(*words).returncode == 2


@pytest.mark.parametrize(
    ("step", "file", "line"),
    [
        ("sshd", "etc/ssh/sshd_config.d/50-kit.conf", "GatewayPorts clientspecified"),
        (
            "upgrades",
            "etc/apt/apt.conf.d/52-kit-upgrades",
            'APT::Periodic::Unattended-Upgrade "1";',
        ),
    ],
)
def test_step_can_be_done_again(tmp_path, step, file, line):
    assert script("check", step, root=tmp_path).returncode != 0
    for _ in range(2):
        assert script("do", step, root=tmp_path).returncode == 0
        assert line in (tmp_path / file).read_text().splitlines()
        assert script("check", step, root=tmp_path).returncode == 0


def test_packages_are_brought_up_to_date_before_others_are_installed(tmp_path):
    program = tmp_path / "apt-get"
    program.write_text(f'#!/bin/sh\necho "$DEBIAN_FRONTEND $*" >>{tmp_path}/calls\n')
    program.chmod(0o755)
    done = script("do", "packages", root=tmp_path, path=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines()[1:] == [
        "noninteractive upgrade -qy",
        "noninteractive install -qy docker.io git curl unattended-upgrades",
    ]


def test_only_the_tunnel_user_may_open_ports_for_others(tmp_path):
    script("do", "sshd", root=tmp_path)
    keygen("-t", "ed25519", "-N", "", "-f", tmp_path / "host")
    config = tmp_path / "etc/ssh/sshd_config.d/50-kit.conf"
    argv = [shutil.which("sshd"), "-T", "-f", config, "-h", tmp_path / "host"]
    for user, sockets, ports in (
        ("kit-tunnel", "no", "clientspecified"),
        ("ubuntu", "yes", "no"),
    ):
        who = ["-C", f"user={user},host=h,addr=10.0.0.1"]
        done = subprocess.run([*argv, *who], capture_output=True, text=True)
        assert f"gatewayports {ports}" in done.stdout.lower(), done.stderr
        assert "clientaliveinterval 20" in done.stdout.lower()
        assert f"allowstreamlocalforwarding {sockets}" in done.stdout.lower()


def test_cluster_has_one_node_with_the_label_and_the_two_ports():
    config = yaml.safe_load(script("config").stdout)
    (node,) = config["nodes"]
    assert node["role"] == "control-plane"
    assert 'node-labels: "ingress-ready=true"' in node["kubeadmConfigPatches"][0]
    ports = [(each["containerPort"], each["hostPort"]) for each in node["extraPortMappings"]]
    assert ports == [(80, 80), (443, 443)]
    assert "127.0.0.1:5001:5000" in SCRIPT.read_text()


def pins():
    return dict(re.findall(r"\b([A-Z0-9_]+)=(\S+)", SCRIPT.read_text()))


def test_kubectl_node_and_kind_belong_together_and_are_pinned_by_hash():
    """kubectl supports a skew of one minor version; kind enforces policies from 0.24 on."""
    found = pins()
    node = re.fullmatch(r"kindest/node:v1\.(\d+)\.\d+@sha256:[0-9a-f]{64}", found["NODE"])
    kubectl = re.fullmatch(r"v1\.(\d+)\.\d+", found["KUBECTL"])
    assert abs(int(node[1]) - int(kubectl[1])) <= 1
    assert int(found["KIND"].split(".")[1]) >= 27, "the registry is found by a hosts.toml"
    assert re.fullmatch(r"registry:[\d.]+@sha256:[0-9a-f]{64}", found["REGISTRY"])
    for tool in ("KUBECTL", "KIND", "KUSTOMIZE"):
        assert re.fullmatch("[0-9a-f]{64}", found[f"{tool}_SHA256"])


def stand_ins(folder, **programs):
    """Programs in a folder that is first in PATH; gives the environment."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "ROOT": str(folder / "root")}


@pytest.mark.parametrize("tampered", ["", "kubectl", "kind", "kustomize_v5.5.0_linux_amd64.tar.gz"])
def test_downloaded_tool_with_other_contents_is_not_installed(tmp_path, tampered):
    """The checksum is the script's own: one from the same place would have been changed too."""
    curl = f'echo "$6" >"$6"; [ "$6" != "{tampered}" ] || echo bad >>"$6"'
    environ = stand_ins(tmp_path, curl=curl, tar="cp kubectl kustomize")
    text = SCRIPT.read_text()
    for tool, file in (("KUBECTL", "kubectl"), ("KIND", "kind"), ("KUSTOMIZE", "")):
        content = f"{file or 'kustomize_v5.5.0_linux_amd64.tar.gz'}\n".encode()
        sha = hashlib.sha256(content).hexdigest()
        text = text.replace(pins()[f"{tool}_SHA256"], sha)
    (tmp_path / "setup.sh").write_text(text)
    argv = ["bash", tmp_path / "setup.sh", "do", "tools"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    assert (done.returncode == 0) == (tampered == ""), done.stderr
    assert (tmp_path / "root/usr/local/bin/kind").exists() == (tampered == "")


@pytest.mark.parametrize(
    ("image", "code", "calls"),
    [
        ("", 0, ["create cluster"]),
        ("NODE", 0, []),
        ("kindest/node:v1.24.15", 1, []),
    ],
)
def test_cluster_of_another_version_is_reported_and_kept(tmp_path, image, code, calls):
    node = pins()["NODE"] if image == "NODE" else image
    log = tmp_path / "kind.log"
    environ = stand_ins(
        tmp_path,
        docker=f'case "$1" in inspect) echo "{node}" ;; exec) cat >/dev/null ;; esac',
        kind=f'cat >/dev/null; echo "$1 $2" >> {log}',
        sysctl="",
    )
    argv = ["bash", SCRIPT, "do", "cluster"]
    done = subprocess.run(
        argv, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, done.stderr
    assert (log.read_text().splitlines() if log.exists() else []) == calls
    assert ("kind delete cluster" in done.stderr) == (code == 1)


def completed(argv, code, out, err, seconds, check):
    return as_completed(argv, Output(code, out, err, seconds), check)


class Shell:
    """A host: two steps are the real script under a root of its own, the others are noted."""

    name = "vm"

    def __init__(self, root, sudo=True):
        self.root, self.sudo, self.did, self.broken = root, sudo, [], ""

    def put(self, source, target, mode=0o600):
        assert source == SCRIPT.read_bytes()
        assert mode == 0o700

    def run(self, argv, input=b"", timeout=60, check=True, repeat=False):
        if argv[:2] == ["id", "-u"]:
            return completed(argv, 0, b"1000\n", b"", 0.0, check)
        if argv[:2] == ["sudo", "-n"] and argv[2] == "true":
            return completed(argv, 0 if self.sudo else 1, b"", b"", 0.0, check)
        words = argv[argv.index("bash") + 2 :]
        step = words[-1]
        if step in DOCKER_STEPS and argv[0] != "sudo":  # Docker's socket is root's
            return completed(argv, 1, b"", b"permission denied", 0.0, check)
        if step in ("sshd", "upgrades") or words == ["list"]:
            done = script(*words, root=self.root)
            self.did += [step] if words[0] == "do" else []
            return completed(argv, done.returncode, done.stdout.encode(), b"", 0.0, check)
        if words[0] == "do" and step != self.broken:
            self.did.append(step)
        return completed(argv, 0 if step in self.did else 1, b"", b"", 0.0, words[0] == "do")


def test_second_bootstrap_does_nothing(tmp_path):
    host, said = Shell(tmp_path), []
    assert vm.bootstrap(host, said.append) == []
    assert host.did == STEPS
    said.clear()
    vm.bootstrap(host, said.append)
    assert said == [f"{step}: in order" for step in STEPS]
    assert host.did == STEPS


def test_docker_steps_are_checked_with_the_rights_they_need(tmp_path):
    """Ubuntu's own user is not in the group docker: without sudo these checks fail for ever."""
    host, said = Shell(tmp_path), []
    vm.bootstrap(host, said.append)
    assert "cluster: done" in said
    assert vm.bootstrap(host, said.append, dry=True) == []


def test_kubeconfig_is_the_persons_own(tmp_path):
    """kubectl runs as the person who logs in, and `kind` runs as root."""
    environ = stand_ins(
        tmp_path,
        kind="echo current-context: kind-mlops-platform",
        kubectl='grep -qs kind-mlops-platform "$2"',
    ) | {"SUDO_USER": getpass.getuser()}

    def step(word):
        return subprocess.run(["bash", SCRIPT, word, "kubeconfig"], env=environ).returncode

    assert step("check") != 0
    assert (step("do"), step("check")) == (0, 0)
    (file,) = (tmp_path / "root").rglob("config")
    assert file.stat().st_mode & 0o777 == 0o600
    assert (step("do"), step("check")) == (0, 0)


def test_dry_run_changes_nothing(tmp_path):
    host, said = Shell(tmp_path, sudo=False), []
    assert vm.bootstrap(host, said.append, dry=True) == STEPS
    assert host.did == []
    assert (
        said[0]
        == "packages: not in order, or cannot be checked without sudo; a dry run changes nothing"
    )


def test_failing_step_stops_the_rest_and_missing_sudo_is_reported(tmp_path):
    host = Shell(tmp_path)
    host.broken = "tools"
    with pytest.raises(CommandFailed):
        vm.bootstrap(host, lambda _: None)
    assert host.did == STEPS[:2]
    with pytest.raises(UsageError, match="may not use sudo"):
        vm.bootstrap(Shell(tmp_path, sudo=False), lambda _: None)


def test_dry_run_over_a_real_sshd(tmp_path):
    server = PrivateSshd(tmp_path / "ssh")
    server.start()
    try:
        said = []
        left = vm.bootstrap(server.host(), said.append, dry=True)
        assert [line.partition(":")[0] for line in said] == STEPS
        assert set(left) <= set(STEPS)
    finally:
        server.stop()


@pytest.mark.sandbox
def test_dry_run_on_the_sandbox_vm(sandbox):
    done = CliRunner().invoke(vm_group, ["bootstrap", "--profile", "sandbox", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert [line.partition(":")[0] for line in done.output.splitlines()][:8] == STEPS
    assert "nothing was changed" in done.output


def test_user_data_has_the_key_and_the_script(key):
    done = CliRunner().invoke(vm_group, ["cloud-init", str(key)])
    assert done.output.startswith("#cloud-config\n")
    data = yaml.safe_load(done.output)
    assert data["ssh_authorized_keys"] == [key.read_text().strip()]
    (file,) = data["write_files"]
    assert base64.b64decode(file["content"]) == SCRIPT.read_bytes()
    assert data["runcmd"] == [[file["path"], "all"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line of the form"),
        ("ssh-ed25519 AAAAC3Nza", "cut off or mixed up"),
        (
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIJ3Wq1Jtq0l0Z2Zb3l1Zb3l1Zb3l1Zb3l1Zb3l1Zb3l1",
            "mixed up",
        ),
        ("-----BEGIN OPENSSH " + "PRIVATE KEY-----\nxyz", "a private key"),
        ("ssh-ed25519 AAAAC3Nz x\nruncmd: [reboot]", "no line of the form"),
    ],
)
def test_bad_key_is_refused_and_not_shown(tmp_path, text, words):
    (tmp_path / "k.pub").write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        vm.public_key(tmp_path / "k.pub")
    assert "xyz" not in str(caught.value)
    with pytest.raises(UsageError, match="name the .pub file"):
        vm.public_key(tmp_path / "absent.pub")


def cloud_init_of_debian():
    """Unpack cloud-init without installing it (it would act at boot); give its Python folder."""
    place = TOOLS / "cloud-init"
    if not (place / "usr").exists():
        place.mkdir(exist_ok=True)
        get = ["apt-get", "-o", "DPkg::Lock::Timeout=150", "download", "cloud-init"]
        if subprocess.run(get, cwd=place, capture_output=True).returncode:
            subprocess.run(["apt-get", "update"], check=True, capture_output=True)
            subprocess.run(get, cwd=place, check=True, capture_output=True)
        (package,) = place.glob("cloud-init_*.deb")
        subprocess.run(["dpkg", "-x", package, place], check=True)
    return place / "usr/lib/python3/dist-packages"


@pytest.mark.slow
def test_cloud_init_accepts_the_user_data_and_refuses_a_wrong_one(tmp_path, key):
    python = tools(*VALIDATOR)
    environ = {**os.environ, "PYTHONPATH": str(cloud_init_of_debian())}

    def schema(text):
        (tmp_path / "user-data").write_text(text)
        argv = [python, "-m", "cloudinit.cmd.main", "schema", "-c", str(tmp_path / "user-data")]
        return subprocess.run(argv, capture_output=True, text=True, env=environ)

    text = vm.cloud_init(vm.public_key(key))
    done = schema(text)
    assert done.returncode == 0, done.stderr
    assert "Valid cloud-config" in done.stdout
    assert schema(text.replace("packages: [", "packages: 3 # [")).returncode == 1
