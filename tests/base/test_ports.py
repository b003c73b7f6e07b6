"""Who holds a port, tried on sockets of this test."""

import os
import socket
from pathlib import Path

import psutil
import pytest

from kit.base.ports import port_holders


def test_holder_of_a_port_is_named_by_pid_and_program():
    with socket.socket() as listener:
        listener.bind(("127.0.0.77", 0))
        listener.listen()
        port = listener.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()
        rows = port_holders([("127.0.0.77", port), ("127.0.0.78", port)])
        assert rows.keys() == {("127.0.0.77", port)}
        assert rows["127.0.0.77", port].startswith(f"pid {os.getpid()} ({name}")
    assert port_holders([("127.0.0.77", port)]) == {}


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
)
def test_listener_on_all_addresses_holds_the_port_of_each(family, address):
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        place = "127.0.0.77", listener.getsockname()[1]
        assert f"pid {os.getpid()}" in port_holders([place])[place]


def test_system_that_shows_no_sockets_has_no_holders(monkeypatch):
    def refuse(kind):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    assert port_holders([("127.0.0.1", 22)]) == {}
