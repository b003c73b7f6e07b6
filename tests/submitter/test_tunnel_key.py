"""The reverse tunnel: its key on VM and site by the real scripts."""

import dataclasses
import json
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from submitter_world import RUN, World

from kit.base import CommandFailed, DataError, KitError, LocalHost, Unreachable, UsageError
from kit.base.settings import Cloud, load
from kit.notebook import plan
from kit.runs.follow import sentence
from kit.runs.requests import RunRequest, RunState, attempt_id
from kit.submitter import collect
from kit.submitter import tunnel_key as tunnel

ATTEMPT_IDS = [f"{number:012x}" for number in range(40)]
VM_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOPWipgHTXPd3jol5bKhQ65TGPBL10leZl4CU4ak52Oh"
ATTEMPTS = "kit/tries"
OTHERS = "ssh-ed25519 AAAA somebody\n# a comment\n"


class HereAsVm(LocalHost):
    """This machine as the VM, with the answer of `ssh -G` that a test wants."""

    name = "cloud"

    def __init__(self, folder, **given):
        super().__init__()
        self.given = {
            "hostname": "vm.example",
            "port": "22",
            "globalknownhostsfile": "/dev/null",
            "userknownhostsfile": str(folder / "known_hosts"),
            **given,
        }

    def settings(self):
        return {key: [value] for key, value in self.given.items()}


@pytest.fixture
def keys(tmp_path):
    """The tunnel user's file of keys, with somebody else's line in it."""
    file = tmp_path / "home" / ".ssh" / "authorized_keys"
    file.parent.mkdir(parents=True)
    file.write_text(OTHERS)
    return file


@pytest.fixture
def vm(tmp_path, keys):
    (tmp_path / "known_hosts").write_text(f"vm.example {VM_KEY}\nelse.example {VM_KEY}\n")
    return a_vm(tmp_path, keys)


def a_vm(folder, keys, owner="a-bucket", **given):
    cloud = Cloud(ssh_host="cloud", tunnel_address="10.1.2.3", tunnel_keys=str(keys))
    return tunnel.TunnelKeys(HereAsVm(folder, **given), cloud, owner)


def opened(vm, folder, name=ATTEMPT_IDS[0]):
    return vm.open(LocalHost(), str(folder / ATTEMPTS / name), name, 900.0)


# The key.


def test_key_may_listen_on_a_few_ports_of_one_address_only(vm, keys, tmp_path):
    given = opened(vm, tmp_path)
    first, second, line = keys.read_text().splitlines()
    assert f"{first}\n{second}\n" == OTHERS
    options, _, rest = line.partition(" ")
    listen = [f'permitlisten="10.1.2.3:{port}"' for port in range(8280, 8290)]
    limits = ["restrict", "port-forwarding", *listen, 'permitopen="127.0.0.1:1"']
    *found, until_then = options.split(",")
    assert found == [*limits, 'command="/bin/false"']
    end = time.mktime(time.strptime(until_then, 'expiry-time="%Y%m%d%H%M"'))
    assert 900 + 6 * 24 * 3600 < end - time.time() < 9 * 24 * 3600
    public = public_of(tmp_path / ATTEMPTS / ATTEMPT_IDS[0] / "tunnel.key")
    assert rest == f"{public} {vm.mark}-{ATTEMPT_IDS[0]}"
    owner = keys.parent.parent.owner()
    assert given == {
        "host": "vm.example",
        "port": 22,
        "user": owner,
        "alias": "vm",
        "address": "10.1.2.3",
        "ports": list(range(8280, 8290)),
    }
    assert (tmp_path / ATTEMPTS / ATTEMPT_IDS[0] / "tunnel.hosts").read_text() == f"vm {VM_KEY}\n"


def public_of(file):
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], capture_output=True, text=True)
    return " ".join(done.stdout.split()[:2])


def test_private_key_is_readable_by_its_owner_in_its_folder_only(vm, tmp_path):
    given = opened(vm, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"PRIVATE" in path.read_bytes()] == ["tunnel.key"]
    key = tmp_path / ATTEMPTS / ATTEMPT_IDS[0] / "tunnel.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert key.read_text().splitlines()[1] not in json.dumps(given)


def test_key_is_not_kept_below_a_project_folder_that_is_missing(vm, keys, tmp_path):
    with pytest.raises(CommandFailed, match="cannot use the folder"):
        opened(vm, tmp_path / "not-mounted")
    assert not (tmp_path / "not-mounted").exists()
    assert keys.read_text() == OTHERS


def test_repeated_call_or_another_submitter_gets_the_same_key(vm, keys, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: opened(a_vm(tmp_path, keys), tmp_path), range(8)))
    (line,) = [each for each in keys.read_text().splitlines() if ATTEMPT_IDS[0] in each]
    assert public_of(tmp_path / ATTEMPTS / ATTEMPT_IDS[0] / "tunnel.key") in line


def test_submitters_at_once_lose_no_line_of_each_other(vm, keys, tmp_path):
    def work(number):
        one = a_vm(tmp_path, keys, owner=f"bucket {number % 2}")
        opened(one, tmp_path, ATTEMPT_IDS[number])
        if number % 4 < 2:
            one.sweep(LocalHost(), str(tmp_path / ATTEMPTS), [ATTEMPT_IDS[number]])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(len(ATTEMPT_IDS))))
    lines = keys.read_text().splitlines()
    left = sorted(line[-12:] for line in lines[2:])
    assert left == [name for number, name in enumerate(ATTEMPT_IDS) if number % 4 >= 2]
    assert "\n".join(lines[:2]) + "\n" == OTHERS
    assert [path.name for path in keys.parent.iterdir()] == ["authorized_keys"]


def test_sweep_removes_only_the_keys_of_its_attempts(vm, keys, tmp_path):
    other = a_vm(tmp_path, keys, owner="another bucket")
    for name in ATTEMPT_IDS[:3]:
        opened(vm, tmp_path, name)
    (tmp_path / "other").mkdir()
    opened(other, tmp_path / "other", ATTEMPT_IDS[0])
    vm.sweep(LocalHost(), str(tmp_path / ATTEMPTS), ATTEMPT_IDS[:2])
    vm.sweep(LocalHost(), str(tmp_path / ATTEMPTS), ATTEMPT_IDS[:2])
    marks = [line.split()[-1] for line in keys.read_text().splitlines()[2:]]
    assert marks == [f"{vm.mark}-{ATTEMPT_IDS[2]}", f"{other.mark}-{ATTEMPT_IDS[0]}"]
    assert sorted(path.parent.name for path in tmp_path.glob("kit/tries/*/tunnel.key")) == [
        ATTEMPT_IDS[2]
    ]
    vm.sweep(LocalHost(), str(tmp_path / "no such folder"), ATTEMPT_IDS)


def test_unwritable_key_file_is_reported_and_loses_no_line(vm, keys, tmp_path):
    (tmp_path / ATTEMPTS / ATTEMPT_IDS[0]).mkdir(parents=True)
    (tmp_path / ATTEMPTS / ATTEMPT_IDS[0] / "tunnel.key").write_text("no key\n")
    with pytest.raises(DataError) as error:
        opened(vm, tmp_path)
    assert "tunnel.key" in error.value.next_step
    with pytest.raises(KitError):
        opened(a_vm(tmp_path, tmp_path / "nowhere" / ".ssh" / "keys"), tmp_path, ATTEMPT_IDS[1])
    assert keys.read_text() == OTHERS


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("[vm.example]:2223 ", {"port": "2223"}),
        ("cpouta ", {"hostkeyalias": "cpouta", "port": "2223"}),
        ("10.9.9.9,vm.example ", {}),
        ("@revoked vm.example ", {}),
    ],
)
def test_the_job_knows_the_vm_by_the_key_that_we_know_it_by(keys, tmp_path, line, given):
    (tmp_path / "known_hosts").write_text(f"else {VM_KEY}\n{line}{VM_KEY}\n")
    opened(a_vm(tmp_path, keys, **given), tmp_path)
    text = (tmp_path / ATTEMPTS / ATTEMPT_IDS[0] / "tunnel.hosts").read_text()
    mark = "@revoked " if line.startswith("@") else ""
    assert text == f"{mark}vm {VM_KEY}\n"


def test_a_hashed_name_is_found_too(keys, tmp_path):
    (tmp_path / "known_hosts").write_text(f"vm.example {VM_KEY}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(tmp_path / "known_hosts")], check=True)
    opened(a_vm(tmp_path, keys), tmp_path)
    assert (tmp_path / ATTEMPTS / ATTEMPT_IDS[0] / "tunnel.hosts").read_text() == f"vm {VM_KEY}\n"


def test_vm_without_a_known_host_key_is_refused(keys, tmp_path):
    (tmp_path / "known_hosts").write_text(f"else.example {VM_KEY}\n")
    with pytest.raises(UsageError) as error:
        opened(a_vm(tmp_path, keys), tmp_path)
    assert "ssh cloud" in error.value.next_step


# The submitter.


class Barred:
    """A VM that does not answer; counts how often it is asked."""

    asked = 0

    def open(self, *_):
        raise Unreachable("reach cloud by ssh", "Connection refused")

    def sweep(self, *_):
        self.asked += 1
        raise Unreachable("reach cloud by ssh", "Connection refused")


def test_unreachable_vm_affects_the_tunnel_only(tmp_path):
    world, vm = World(tmp_path, tunnel="reverse"), Barred()
    world.ask()
    submitter = world.submitter(tunnel_keys=vm)
    submitter.once()
    world.play()
    submitter.once()
    shown = world.requests.read(RUN, "progress")
    assert shown["tunnel"] == {"barred": "the VM cannot be prepared: Connection refused"}
    assert "no tunnel (the run needs none): the VM cannot" in sentence(shown)
    assert world.until_finished(submitter).state is RunState.DONE
    before = vm.asked
    for _ in range(3):
        submitter.once()
    assert vm.asked - before <= 1, "a VM that is away is not asked by every pass"


def test_keys_are_removed_when_an_attempt_ends_even_after_a_crash(tmp_path):
    world, swept = World(tmp_path, tunnel="reverse"), []
    task = {"address": "10.1.2.3", "port": 22, "ports": [8280]}
    vm = SimpleNamespace(open=lambda *_: task, sweep=lambda _, tries, names: swept.extend(names))
    world.ask()
    submitter = world.submitter(tunnel_keys=vm)
    world.until_finished(submitter)
    assert swept == [attempt_id(RUN, 1)]
    submitter.once()
    assert swept == [attempt_id(RUN, 1)], "once is enough"
    world.submitter(tunnel_keys=vm).once()
    assert swept == [attempt_id(RUN, 1)] * 2, "another submitter cannot know that it was done"


def test_keys_of_a_refused_submission_are_removed_in_the_same_pass(tmp_path):
    world, swept = World(tmp_path, tunnel="reverse"), []
    task = {"address": "10.1.2.3", "port": 22, "ports": [8280]}
    vm = SimpleNamespace(open=lambda *_: task, sweep=lambda _, tries, names: swept.extend(names))
    world.ask()
    world.site.sbatch = "refuse"
    assert world.until_finished(world.submitter(tunnel_keys=vm)).state is RunState.ENDED
    assert swept == [attempt_id(RUN, 1)]


def test_keys_of_a_cancelled_run_are_removed_when_the_vm_is_back(tmp_path):
    """The cancel closes the attempt after the last one too, which may have a key already."""
    world, vm, swept = World(tmp_path, tunnel="reverse"), Barred(), []
    world.ask()
    submitter = world.submitter(tunnel_keys=vm)
    submitter.once()
    world.requests.cancel(RUN)
    world.until_finished(submitter)
    vm.sweep = lambda _, tries, names: swept.extend(names)
    world.site.now += 60
    submitter.once()
    assert set(swept) == {attempt_id(RUN, 1), attempt_id(RUN, 2)}


@pytest.mark.parametrize(
    ("usual", "asked", "wanted"),
    [
        ("reverse", "", True),
        ("none", "", False),
        ("none", "reverse", True),
        ("reverse", "none", False),
    ],
)
def test_the_request_decides_and_else_the_profile(tmp_path, usual, asked, wanted):
    world = World(tmp_path, tunnel=usual)
    world.requests.ask(RunRequest(run=RUN, data_hash="d" * 64, tunnel=asked))
    assert RunRequest(run=RUN, data_hash="d" * 64, tunnel=asked).wants_tunnel(usual) is wanted
    loaded = dataclasses.replace(load("sandbox"), hpc=dataclasses.replace(world.hpc, tunnel=usual))
    script = plan.batch(loaded, RunRequest(run=RUN, data_hash="d" * 64, tunnel=asked)).script
    assert ('"tunnel": {' in script) is wanted
    assert ('"tunnel": null' in script) is not wanted


def test_progress_of_running_jobs_is_read_in_one_call(tmp_path):
    for name, file, text in (
        (ATTEMPT_IDS[0], "progress.json", '{\n  "epoch": 1,\n  "note": "a * b"\n}'),
        (ATTEMPT_IDS[0], "tunnel.json", '{"barred": "no"}'),
        (ATTEMPT_IDS[1], "tunnel.json", '{"barr'),
        (ATTEMPT_IDS[1], "progress.json", '{"loss": NaN}'),
        (ATTEMPT_IDS[2], "progress.json", '{"note": "\\ud800"}'),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text(text)
    banner = {"barred": "line 1\n\nline 3 with \\ and 'quotes'\u2028 %s"}
    (tmp_path / ATTEMPT_IDS[3]).mkdir()
    (tmp_path / ATTEMPT_IDS[3] / "tunnel.json").write_text(json.dumps(banner))
    (tmp_path / ATTEMPT_IDS[3] / "progress.json").write_text("[1, 2]")
    found = collect.read_progress(LocalHost(), str(tmp_path), ATTEMPT_IDS[:4])
    assert found.pop(ATTEMPT_IDS[3]) == {"training": None, "tunnel": banner}
    nothing = {"training": None, "tunnel": None}
    reported = {"training": {"epoch": 1, "note": "a * b"}, "tunnel": {"barred": "no"}}
    assert found == {ATTEMPT_IDS[0]: reported, ATTEMPT_IDS[1]: nothing, ATTEMPT_IDS[2]: nothing}
    assert collect.read_progress(LocalHost(), str(tmp_path / "none"), ATTEMPT_IDS[:1]) == {
        ATTEMPT_IDS[0]: nothing
    }


# What the person reads.


def test_the_line_below_the_picture_has_the_link():
    window = {"address": "10.1.2.3", "port": 8281}
    text = sentence({"state": "RUNNING", "nodes": ["c1"], "tunnel": window})
    assert text == "on c1; Ray's dashboard: http://10.1.2.3:8281"
    assert sentence({"state": "RUNNING", "nodes": ["c1"], "tunnel": None}) == "on c1"
