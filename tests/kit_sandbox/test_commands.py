"""What `kit sandbox` says about the person who calls it."""

import pytest
from kit_sandbox import commands

from kit.base.settings import load


@pytest.mark.parametrize(
    ("uid", "profile", "warned"),
    [(0, "sandbox", True), (1000, "sandbox", False), (0, "sandbox-trixie", False)],
)
def test_rights_of_the_services_are_reported_where_root_starts_them(
    monkeypatch, capsys, uid, profile, warned
):
    monkeypatch.setattr(commands.os, "getuid", lambda: uid)
    monkeypatch.setattr(commands, "up", lambda settings, report: report("started"))
    commands._up(load(profile))
    messages = capsys.readouterr().err.splitlines()
    assert [line for line in messages if "root's rights" in line] == messages[:warned]
    assert "started" in messages[warned]
