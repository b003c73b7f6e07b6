"""The command that runs the submitter."""

import os
import subprocess
import sys

import pytest
import yaml

from kit.base import ROOT
from kit.base.ports import SUBMITTER_PORT
from kit.cli.submitter import submitter_group


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ('{ # cut\n "HPC_KEY": "k"', 0o600, "is not a JSON document"),
        ('{ # one\n "HPC_KEY": "k"}', 0o600, "compose-secrets.json: CLOUD_ENVIROMENT"),
        ("{}", 0o644, "read by others"),
    ],
)
def test_wrong_secrets_file_ends_the_submitter_with_a_reason(tmp_path, content, mode, message):
    path = tmp_path / "compose-secrets.json"
    path.write_text(content)
    path.chmod(mode)
    environ = {**os.environ, "KIT_COMPOSE_SECRETS": str(path)}
    argv = [sys.executable, "-m", "kit", "submitter", "--once"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    assert done.returncode == 2
    assert message in done.stderr
    assert "next:" in done.stderr
    assert "Traceback" not in done.stderr


def test_stack_starts_this_command_with_a_local_port():
    text = (ROOT / "env/submitter/stack.yaml").read_text()
    stack = yaml.safe_load(text.replace("${SUBMITTER_PROFILE:?name a profile}", "sandbox"))
    service = stack["services"]["submitter"]
    assert service["command"][0] == "kit"
    with submitter_group.make_context("submitter", service["command"][2:]) as ctx:
        assert (ctx.params["profile"], ctx.params["once"]) == ("sandbox", False)
        assert service["ports"] == [f"127.0.0.1:{ctx.params['port']}:{SUBMITTER_PORT}"]
    assert set(service["secrets"]) == set(stack["secrets"])
    files = [v for v in service["environment"].values() if v.startswith("/run/secrets/")]
    assert {path.rpartition("/")[2] for path in files} <= set(service["secrets"])
    assert not [word for word in service["command"] if "token" in word.lower()]
