"""The submitter's process: repeated passes, with longer pauses after failures."""

import dataclasses
import json
import os
import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from buckets import remove_bucket
from memory_store import MemoryStore
from private_sshd import keygen
from waiting import until

from kit.base import BucketTaken, LocalHost, StoreUnavailable, UsageError, read_login
from kit.base.settings import load
from kit.runs.requests import RunRequests
from kit.slurm import ACCOUNT_COLUMNS
from kit.store import FolderStore
from kit.submitter import compose_secrets
from kit.submitter import loop as submitter_loop

KEY = submitter_loop.heartbeat_key(load("sandbox"))


class Passes:
    """A submitter whose passes have the outcomes listed, after which the loop stops."""

    def __init__(self, *outcomes):
        self.outcomes, self.done = list(outcomes), 0
        self.requests, self.settings = RunRequests(MemoryStore()), load("sandbox")
        self.slurm = SimpleNamespace(host=LocalHost(), hpc=self.settings.hpc)

    def once(self):
        outcome = self.outcomes[self.done]
        self.done += 1
        if outcome:
            raise outcome

    def stop(self):
        return self.done == len(self.outcomes)


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(submitter_loop.time, "sleep", found.append)
    monkeypatch.setattr(submitter_loop.random, "random", lambda: 0.0)
    return found


def test_pauses_grow_while_the_store_is_unavailable(pauses):
    away = StoreUnavailable("ask the store", "503")
    passes = Passes(None, *[away] * 8, None, None)
    submitter_loop.run_loop(passes, passes.stop)
    assert pauses == [1.5, 3, 6, 12, 24, 48, 60, 60, 60, 1.5, 1.5]


def test_end_of_the_certificate_is_warned_of_hours_before_and_not_at_every_pass(caplog):
    now, end = 1_800_000_000.0, [None]
    host = SimpleNamespace(name="roihu-cpu.csc.fi", valid_until=lambda: end[0])
    clock = [now]
    warning = submitter_loop.CertificateWarning(host, "csc_cert.py", lambda: clock[0])

    def warned_at(hours_before, until=now + 24 * 3600):
        end[0], clock[0] = until, until - hours_before * 3600
        caplog.clear()
        for _ in range(3):
            warning.look()
        return [record.getMessage() for record in caplog.records]

    assert warned_at(24) == warned_at(5) == []
    (text,) = warned_at(3.9)
    assert "the ssh certificate for roihu-cpu.csc.fi ends in 3.9 h" in text
    assert "csc_cert.py" in text
    assert warned_at(3) == []
    assert [len(warned_at(hours)) for hours in (1.9, 1.5, 0.9, 0.5)] == [1, 0, 1, 0]
    renewed = now + 48 * 3600
    assert warned_at(20, renewed) == []
    assert len(warned_at(3.5, renewed)) == 1


def test_login_without_a_certificate_has_nothing_to_warn_of(caplog):
    submitter_loop.CertificateWarning(LocalHost(), "").look()
    assert caplog.records == []


def test_submitter_is_active_until_its_heartbeat_is_old(pauses, tmp_path, monkeypatch):
    store = FolderStore("integration-submitter-s0-c0-u1-anna", tmp_path)
    passes = Passes(None, None, StoreUnavailable("ask the store", "503"))
    passes.requests = RunRequests(store)
    store.ensure_bucket()
    assert not submitter_loop.other_submitter_active(store, KEY)
    store.delete(submitter_loop.CLOCK_KEY)
    remove_bucket(store)
    submitter_loop.run_loop(passes, passes.stop)
    assert submitter_loop.other_submitter_active(store, KEY)
    heartbeat = next(tmp_path.rglob(KEY))
    old = time.time() - 3 * submitter_loop.HEARTBEAT_S - 1
    os.utime(heartbeat, (old, old))
    assert not submitter_loop.other_submitter_active(store, KEY)


def test_submitter_of_another_profile_is_not_waited_for(pauses, tmp_path):
    """They may share a bucket, and none works for the other: its runs would wait for ever."""
    store = FolderStore("integration-submitter-s0-c0-u1-anna", tmp_path)
    other = submitter_loop.heartbeat_key(load("sandbox-trixie"))
    assert other != KEY
    submitter_loop.write_heartbeat(store, other)
    submitter_loop.wait_for_other_submitter(store, KEY, lambda: False)
    assert pauses == []
    assert submitter_loop.other_submitter_active(store, other)


def test_submitter_waits_until_no_other_is_active(pauses, tmp_path, monkeypatch):
    store = FolderStore("integration-submitter-s0-c0-u1-anna", tmp_path)
    submitter_loop.write_heartbeat(store, KEY)
    heartbeat = next(tmp_path.rglob(KEY))
    away = [True]

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            monkeypatch.setattr(store, "stat", lambda _: away.pop() and failing())
        if len(pauses) == 3:
            monkeypatch.undo()
            monkeypatch.setattr(submitter_loop.time, "sleep", pause)
            old = time.time() - 3 * submitter_loop.HEARTBEAT_S - 1
            os.utime(heartbeat, (old, old))

    def failing():
        raise StoreUnavailable("ask the store", "503")

    monkeypatch.setattr(submitter_loop.time, "sleep", pause)
    submitter_loop.wait_for_other_submitter(store, KEY, lambda: len(pauses) > 5)
    assert pauses == [submitter_loop.HEARTBEAT_S] * 3
    submitter_loop.write_heartbeat(store, KEY)
    submitter_loop.wait_for_other_submitter(store, KEY, lambda: len(pauses) > 5)
    assert len(pauses) == 6, "the wait ends with the process that started it"


def test_submitter_whose_passes_fail_writes_no_more_heartbeats(monkeypatch):
    monkeypatch.setattr(submitter_loop, "HEARTBEAT_S", 0.01)
    store, counts = MemoryStore(), []
    with submitter_loop._heartbeat(store, KEY) as alive:
        until(lambda: "put" in store.calls)
        alive.clear()
        for _ in range(2):
            time.sleep(0.1)
            counts.append(len(store.calls))
    assert counts[0] == counts[1]


def test_heartbeat_continues_during_a_long_pass(monkeypatch):
    monkeypatch.setattr(submitter_loop, "HEARTBEAT_S", 0.01)
    passes = Passes(None)
    passes.once = lambda: until(lambda: passes.requests.store.calls.count("put") > 3)
    stops = iter([False, True])
    submitter_loop.run_loop(passes, lambda: next(stops))


def test_bucket_of_another_project_gets_no_heartbeat():
    store = MemoryStore()
    store.taken = True
    with pytest.raises(BucketTaken):
        submitter_loop.write_heartbeat(store, KEY)
    assert store.objects == {}


def test_unexpected_error_of_a_pass_does_not_end_the_loop(pauses, caplog):
    passes = Passes(None, ZeroDivisionError(), None)
    submitter_loop.run_loop(passes, passes.stop)
    assert passes.done == 3
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("lacks", ["hpc", "store"])
def test_a_profile_that_cannot_submit_is_refused(lacks):
    profile = dataclasses.replace(load("sandbox"), **{lacks: None})
    with pytest.raises(UsageError) as error:
        submitter_loop.submitter_for(profile)
    assert error.value.next_step


VALUES = {
    "HPC_ENVIROMENT": "slurm|lumi",
    "HPC_ADDRESS": "login.example|lumi.csc.fi",
    "HPC_USER": "me|you",
    "HPC_KEY": "/run/secrets/local-mahti|/run/secrets/other",
    "HPC_PASSWORD": "none|none",
}
SITE = """
[site]
name = "slurm"
title = "Mine"
[store]
kind = "directory"
url = "{0}/store"
[hpc]
ssh_host = "somewhere-else"
account = "project_2001234"
project_dir = "/proj"
"""


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """What the container has: a profile, the secrets file; gives a way to change the file."""
    (tmp_path / "slurm.toml").write_text(SITE.format(tmp_path))
    path = tmp_path / "compose-secrets.json"
    monkeypatch.setenv("KIT_SITES_DIR", str(tmp_path))
    monkeypatch.setenv("KIT_COMPOSE_SECRETS", str(path))

    def write(**values):
        table = {key: "none" for key in compose_secrets.MEANING} | VALUES | values
        lines = [f'  "{key}": {json.dumps(value)}, # {key}' for key, value in table.items()]
        lines[-1] = lines[-1].replace(", #", " #")
        path.write_text("# as the original's template\n{\n" + "\n".join(lines) + "\n}\n")
        path.chmod(0o600)

    write()
    return write


def test_rays_token_of_a_batch_script_that_was_killed_is_removed(stack, tmp_path):
    """`kill -9` of the script's shell: nothing on the node removes it, so the submitter does."""
    programs, attempt_id = tmp_path / "bin", "0123456789ab"
    row = {"JobID": "7", "JobName": f"kit-{attempt_id}", "State": "FAILED", "ExitCode": "0:9"}
    row |= {"Submit": "1700000000", "Start": "1700000001", "End": "1700000009", "Partition": "p"}
    listing = [ACCOUNT_COLUMNS, [row.get(column, "") for column in ACCOUNT_COLUMNS]]
    sacct = "".join(f"echo '{'|'.join(line)}'\n" for line in listing)
    programs.mkdir()
    for name, text in {"squeue": "", "scancel": "", "sacct": sacct}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}")
        (programs / name).chmod(0o755)
    profile = load("slurm")
    hpc = dataclasses.replace(profile.hpc, project_dir=str(tmp_path))
    submitter = submitter_loop.submitter_for(dataclasses.replace(profile, hpc=hpc))
    submitter.slurm.host = LocalHost(prefix=("env", f"PATH={programs}:{os.environ['PATH']}"))
    folder = Path(submitter.slurm.paths.attempt(attempt_id))
    folder.mkdir(parents=True)
    (folder / "owner").symlink_to("7.0")
    for name in ("ray.token", "tunnel.key", "metrics.json"):
        (folder / name).touch()
    assert submitter.slurm.settle(attempt_id).done
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"metrics.json"}


def test_stack_uses_the_logins_of_its_secrets_file(stack):
    with submitter_loop.open_submitter("slurm") as (loaded, submitter):
        host = submitter.slurm.host
        assert (loaded.profile, host.name, host.user) == ("slurm", "somewhere-else", "")
        config = Path(host.config).read_text()
        assert "HostName login.example\n" in config
        assert "IdentityFile /run/secrets/local-mahti\n" in config
    assert not Path(host.config).exists()


def test_key_with_a_pass_phrase_is_held_by_an_agent(stack, tmp_path):
    keygen("-t", "ed25519", "-N", "hush-7f3a", "-f", tmp_path / "key")
    stack(HPC_KEY=f"{tmp_path}/key|/x", HPC_PASSWORD="hush-7f3a|none")
    with submitter_loop.open_submitter("slurm") as (_, submitter):
        config = Path(submitter.slurm.host.config).read_text()
        (socket,) = re.findall("    IdentityAgent (.*)", config)
        argv = ["ssh-add", "-l"]
        environ = {**os.environ, "SSH_AUTH_SOCK": socket}
        done = subprocess.run(argv, capture_output=True, text=True, env=environ)
        assert "ED25519" in done.stdout, done.stderr
    assert not Path(socket).exists()


CLOUD = """
[cloud]
ssh_host = "my-vm"
tunnel_address = "10.1.2.3"
"""


def test_all_platforms_of_the_secrets_file_are_used(stack, tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_FACE_TOKEN", "/run/secrets/face-token")  # as the stack sets it
    with (tmp_path / "slurm.toml").open("a") as file:
        file.write(CLOUD)
    more = {"ADDRESS": "1.2.3.4", "USER": "ubuntu", "KEY": "/run/secrets/cpouta-mahti"}
    stack(
        CLOUD_ENVIROMENT="slurm",
        **{f"CLOUD_{key}": value for key, value in more.items()},
        STORAGE_ENVIROMENT="slurm",
        STORAGE_USER="anna",
        STORAGE_PASSWORD="it's a \\ $word",
        INTEGRATION_ENVIROMENT="slurm",
        INTEGRATION_PASSWORD="token of the api",
    )
    with submitter_loop.open_submitter("slurm") as (loaded, submitter):
        options = submitter.tunnel_keys.host.settings()
        assert (options["hostname"], options["user"]) == (["1.2.3.4"], ["ubuntu"])
        login = read_login(loaded, {})
        assert (login.username, login.password.reveal()) == ("anna", "it's a \\ $word")
        assert Path(os.environ["KIT_FACE_TOKEN"]).read_text() == "token of the api"


def test_token_of_the_api_may_be_a_file_of_the_container(stack, monkeypatch):
    monkeypatch.setenv("KIT_FACE_TOKEN", "/run/secrets/face-token")
    stack(INTEGRATION_ENVIROMENT="slurm", INTEGRATION_KEY="/run/secrets/own-token")
    with submitter_loop.open_submitter("slurm"):
        assert os.environ["KIT_FACE_TOKEN"] == "/run/secrets/own-token"


def test_secrets_file_for_other_profiles_is_refused(stack):
    stack(INTEGRATION_ENVIROMENT="lumi")
    with pytest.raises(UsageError, match="INTEGRATION_ENVIROMENT names lumi"):
        submitter_loop.open_submitter("slurm").__enter__()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"HPC_USER": "me"}, "HPC_ENVIROMENT has 2, HPC_USER has 1"),
        ({"HPC_ENVIROMENT": "lumi|roihu"}, "no platform 'slurm'"),
        ({"HPC_PASSWORD": "pass phrase|none"}, "unlock the ssh key /run/secrets/local-mahti"),
        ({"HPC_USER": "me; reboot|you"}, "HPC_USER is not a single word"),
        ({"HPC_KEY": "$(reboot)|x"}, "HPC_KEY is not a single word"),
    ],
)
def test_unusable_secrets_file_is_refused_with_its_key(stack, values, message):
    stack(**values)
    with pytest.raises(UsageError, match=message.replace("$", r"\$")) as error:
        submitter_loop.open_submitter("slurm").__enter__()
    assert error.value.next_step
    assert "pass phrase|none" not in str(error.value)
