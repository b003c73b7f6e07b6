"""The commands of the forwarder."""

from click.testing import CliRunner

from kit.cli.main import cli


def test_the_old_name_of_the_api_port_is_hidden_and_works(monkeypatch):
    monkeypatch.setattr("kit.cli.forwarder._open", lambda profile: (None, {}, Gauges()))
    assert "--face-port" not in CliRunner().invoke(cli, ["forwarder", "-h"]).output
    done = CliRunner().invoke(cli, ["forwarder", "--once", "--face-port", "7000"])
    assert (done.exit_code, done.stdout) == (0, "gauge 1\n")
    assert "`--face-port` is now `--api-port`" in done.stderr


class Gauges:
    text = "gauge 1\n"

    def once(self):
        return []
