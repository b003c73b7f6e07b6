"""compose-secrets.json: accepted forms of the original's file, and how mistakes are reported."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from kit.base import SecretTracked, UsageError
from kit.base.settings import load
from kit.cli.main import cli
from kit.submitter.compose_secrets import (
    MEANING,
    parse_platforms,
    platforms_template,
    read_platforms,
    ssh_config,
    write_templates,
)

GOOD = {key: "none" for key in MEANING} | {
    "CLOUD_ENVIROMENT": "cpouta",
    "HPC_ENVIROMENT": "roihu",
    "HPC_ADDRESS": "roihu-cpu.csc.fi",
    "HPC_USER": "me",
    "HPC_KEY": "/run/secrets/local-roihu",
    "HPC_PASSWORD": "correct horse # battery",
}


def text(**changes):
    return json.dumps({**GOOD, **changes})


def test_one_platform_a_prefix():
    (hpc,) = parse_platforms(text())["HPC"]
    assert (hpc.text("ENVIROMENT"), hpc.text("USER")) == ("roihu", "me")
    assert hpc.text("PASSWORD") == "correct horse # battery"


def test_none_and_empty_mean_absent():
    found = parse_platforms(text(HPC_PASSWORD="empty", STORAGE_ENVIROMENT="None"))
    assert found["HPC"][0].values["PASSWORD"] is None
    assert found["STORAGE"] == []


def test_several_platforms_are_separated_by_bars():
    two = {f"HPC_{key}": "a|b" for key in ("ENVIROMENT", "ADDRESS", "USER", "KEY")}
    first, second = parse_platforms(text(**two, HPC_PASSWORD="none | secret"))["HPC"]
    assert (first.text("USER"), second.text("USER")) == ("a", "b")
    assert first.values["PASSWORD"] is None
    assert second.text("PASSWORD") == "secret"


def test_the_other_spelling_is_taken():
    changed = {key.replace("ENVIROMENT", "ENVIRONMENT"): value for key, value in GOOD.items()}
    assert parse_platforms(json.dumps(changed))["HPC"][0].text("ENVIROMENT") == "roihu"


def test_comments_of_the_original_are_accepted():
    lines = json.dumps(GOOD, indent=4).splitlines()
    commented = "\n".join(f"# about {n}\n{line} # {n}" for n, line in enumerate(lines))
    assert parse_platforms(commented) == parse_platforms(text())


def test_the_template_is_read_and_explains_every_key():
    assert parse_platforms(platforms_template()) == {
        prefix: [] for prefix in ("CLOUD", "STORAGE", "HPC", "INTEGRATION")
    }
    assert all(meaning in platforms_template() for meaning in MEANING.values())


BAD = {
    "empty": ("", "not a JSON document"),
    "cut": (text()[:-5], "line 1"),
    "deep": ("[" * 60_000, "too deep"),
    "a list": ("[]", "not a JSON object"),
    "unknown": (text(HPC_KEYS="x"), "HPC_KEYS"),
    "not text": (text(HPC_KEY=3), "HPC_KEY"),
    "a list for text": (text(HPC_KEY=["a"]), "HPC_KEY"),
    "unequal": (text(HPC_USER="a|b"), "HPC_ENVIROMENT has 1, HPC_USER has 2"),
    **{
        f"without {key}": (json.dumps({k: v for k, v in GOOD.items() if k != key}), key)
        for key in MEANING
    },
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_named_without_showing_a_value(name):
    content, expected = BAD[name]
    with pytest.raises(UsageError) as error:
        parse_platforms(content)
    assert expected in str(error.value)
    assert "horse" not in str(error.value)
    assert error.value.next_step


def test_a_missing_key_is_explained():
    without = {key: value for key, value in GOOD.items() if key != "HPC_KEY"}
    with pytest.raises(UsageError, match="private key for it, a path inside the container"):
        parse_platforms(json.dumps(without))


def test_no_secret_is_shown():
    assert "horse" not in repr(parse_platforms(text()))


def write(folder: Path, mode: int) -> Path:
    path = folder / "compose-secrets.json"
    path.write_text(text())
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    with pytest.raises(UsageError, match="read by others"):
        read_platforms(write(tmp_path, mode))


def test_a_private_file_is_read(tmp_path):
    assert read_platforms(write(tmp_path, 0o600)) == parse_platforms(text())


def test_a_file_that_git_tracks_is_refused_and_one_that_it_ignores_is_read(tmp_path):
    path = write(tmp_path, 0o600)
    (tmp_path / ".gitignore").write_text("*.json\n")
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    assert read_platforms(path) == parse_platforms(text())
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", path.name], check=True)
    with pytest.raises(SecretTracked, match="tracked by git") as caught:
        read_platforms(path)
    assert f"git rm --cached {path}" in caught.value.next_step
    assert "horse" not in str(caught.value)


def test_where_there_is_no_git_a_file_is_read(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_platforms(write(tmp_path, 0o600)) == parse_platforms(text())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="no-such"):
        read_platforms(tmp_path / "no-such.json")


NO_PASS = {"HPC_PASSWORD": "none"}


def test_ssh_config_has_the_host_of_the_profile():
    assert ssh_config(parse_platforms(text(**NO_PASS))["HPC"], "roihu", "login") == (
        "Host login\n    HostName roihu-cpu.csc.fi\n    User me\n"
        "    IdentityFile /run/secrets/local-roihu\n    IdentitiesOnly yes\n"
    )


@pytest.mark.parametrize(
    ("changes", "profile", "expected"),
    [
        (NO_PASS, "lumi", "no platform 'lumi'"),
        (NO_PASS | {"HPC_USER": "me\n  ProxyCommand reboot"}, "roihu", "HPC_USER"),
        (NO_PASS | {"HPC_ADDRESS": "none"}, "roihu", "HPC_ADDRESS"),
    ],
)
def test_what_ssh_cannot_use_is_refused(changes, profile, expected):
    with pytest.raises(UsageError) as error:
        ssh_config(parse_platforms(text(**changes))["HPC"], profile, profile)
    assert expected in str(error.value)


# The files that are written to be filled in.


@pytest.mark.parametrize("name", ["roihu", "lumi", "sandbox"])
def test_both_files_are_written_private_and_ssh_takes_its_block_filled_in(tmp_path, name):
    argv = ["submitter", "template", "--profile", name, "--to", str(tmp_path)]
    done = CliRunner().invoke(cli, argv)
    assert done.exit_code == 0, done.output
    secrets, config = tmp_path / "compose-secrets.json", tmp_path / "ssh-config"
    platforms = parse_platforms(secrets.read_text())
    for prefix in ("STORAGE", "HPC", "INTEGRATION"):
        assert [row.text("ENVIROMENT") for row in platforms[prefix]] == [name]
    address = {"roihu": "roihu-cpu.csc.fi", "lumi": "lumi.csc.fi"}.get(name, "")
    assert platforms["HPC"][0].text("ADDRESS") == address
    assert [path.stat().st_mode & 0o777 for path in (secrets, config)] == [0o600, 0o600]
    filled = re.sub(r"<[^>]*>", "value", config.read_text())
    config.write_text(filled)
    loaded = load(name)
    for host, user in ((loaded.hpc.ssh_host, "value"), (loaded.cloud.ssh_host, "ubuntu")):
        argv = ["ssh", "-G", "-F", str(config), host]
        options = subprocess.run(
            argv, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert {f"user {user}", "identityfile value", "identitiesonly yes"} <= set(options)
        assert f"hostname {host if '.' in host else 'value'}" in options
    assert ("to renew it:" in filled) == loaded.hpc.needs_certificate


def test_what_is_there_is_never_overwritten_and_nothing_else_is_left(tmp_path):
    (tmp_path / "ssh-config").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        write_templates(tmp_path, "x")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("ssh-config", "mine")]
    with pytest.raises(UsageError, match="write"):
        write_templates(Path("/proc"), "x")
