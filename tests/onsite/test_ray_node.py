"""`ray start` without the server of Ray Client."""

from click.testing import CliRunner
from ray.scripts import scripts

from kit.onsite import ray_node


def test_no_server_of_ray_client_is_started(monkeypatch):
    """The option that is missing: without a port Ray would take 10001, and refuses port 0."""
    made = []
    monkeypatch.setattr(scripts, "get_ray_client_dependency_error", lambda: None)

    def params(**options):
        made.append(options["ray_client_server_port"])
        raise SystemExit

    monkeypatch.setattr("ray._private.parameter.RayParams", params)
    for prepare in (lambda: None, ray_node.without_client_server):
        prepare()
        CliRunner().invoke(scripts.start, ["--head"])
    assert made == [10001, None]
