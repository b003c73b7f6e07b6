"""The commands of the platform and of the cloud VM."""

import pytest
from click.testing import CliRunner

from kit.base import UsageError, settings
from kit.cli.deploy import platform_group
from kit.deploy import manifests

LOGIN = "CSC_USERNAME='anna'\nCSC_PASSWORD='planted-store-password'\n"
NAMES = [([], "", "roihu"), ([], "lumi", "lumi"), (["--profile", "roihu"], "lumi", "roihu")]


def test_the_command_shows_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "FOLDER", tmp_path)
    env = tmp_path / "login"
    env.write_text(LOGIN + "CSC_USER_DOMAIN_NAME=Default\nCSC_PROJECT_NAME=project_1\n")
    env.chmod(0o600)
    monkeypatch.setenv("KIT_ENV_FILE", str(env))
    done = CliRunner().invoke(platform_group, ["secrets", "--profile", "roihu"])
    assert done.exit_code == 0, done.output
    assert "planted" not in done.output
    assert "planted-store-password" in (tmp_path / "secrets" / "store.env").read_text()


def test_profile_that_does_not_exist_is_refused_before_anything_is_built():
    for command in ("build", "apply"):
        done = CliRunner().invoke(platform_group, [command, "kubeflow", "--profile", "nowhere"])
        assert isinstance(done.exception, UsageError)
        assert "'nowhere' does not exist" in str(done.exception)


@pytest.mark.parametrize(("named", "variable", "used"), NAMES)
def test_platform_has_a_default_profile_of_its_own(monkeypatch, named, variable, used):
    """The sandbox, the default elsewhere, has no platform."""
    loaded = []
    monkeypatch.setattr(settings, "load", lambda name: loaded.append(name) or {})
    monkeypatch.setattr(manifests, "build", lambda *_, **__: "")
    monkeypatch.setenv("KIT_PROFILE", variable)
    CliRunner().invoke(platform_group, ["build", "kubeflow", *named])
    assert loaded == [used]
