"""Shared context of the `kit doctor` checks: settings, lazily opened connections, clock."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Generic, TypeVar

from kit.base import Host, KitError, Login, SSHHost, read_login, site_host, vm_host
from kit.base.settings import Cloud, Hpc, Settings
from kit.doctor import keys
from kit.doctor.diagnosis import CheckSkipped, Known
from kit.store import Keystone, keystone_for

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True)
class Check:
    """A check by its name; `known` has the diagnosis for an error of a class."""

    name: str
    run: "Callable[[CheckContext], str]"
    known: Known


class Lazy(Generic[T]):
    """A resource that is opened once, by the first who asks; the others wait for it."""

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self.name, self.make = name, make
        self._lock = threading.Lock()
        self._value: list[T] = []
        self._error: KitError | None = None

    def get(self) -> T:
        """Return the resource, or raise why it cannot be had."""
        with self._lock:
            if not self._value and self._error is None:
                try:
                    self._value.append(self.make())
                except KitError as err:
                    self._error = err
        if self._error is not None:
            raise self._error
        return self._value[0]

    def needed(self) -> T:
        """Return the resource, or raise CheckSkipped: its failure is another check's finding."""
        try:
            return self.get()
        except KitError as err:
            raise CheckSkipped(f"not tried: it needs {self.name}") from err


class CheckContext:
    """A profile, with its machines and its Keystone not reached yet."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.clock = settings, clock
        self.login: Lazy[Login] = Lazy(".env", lambda: read_login(self.settings))
        self.keystone: Lazy[Keystone] = Lazy("the token", self._keystone)
        self.site_key = Lazy("the ssh key", lambda: keys.usable_key(self.site_ssh()))
        self.site: Lazy[Host] = Lazy("ssh to the site", self._site)
        self.vm_key = Lazy("the ssh key", lambda: keys.usable_key(self.vm_ssh()))
        self.vm: Lazy[Host] = Lazy("ssh to the VM", self._vm)

    @property
    def hpc(self) -> Hpc:
        """The profile's site. Raises UsageError if it has none."""
        return self.settings.hpc_section()

    @property
    def cloud(self) -> Cloud:
        """The profile's cloud. Raises UsageError if it has none."""
        return self.settings.cloud_section()

    def site_ssh(self) -> SSHHost:
        """Return the login node, not connected yet."""
        return site_host(self.settings, connect_timeout_s=CONNECT_TIMEOUT_S)

    def vm_ssh(self) -> SSHHost:
        """Return the cloud VM, not connected yet."""
        return vm_host(self.settings, connect_timeout_s=CONNECT_TIMEOUT_S)

    def _site(self) -> Host:
        self.site_key.needed()
        return _connected(self.site_ssh())

    def _vm(self) -> Host:
        self.vm_key.get()
        return _connected(self.vm_ssh())

    def _keystone(self) -> Keystone:
        self.login.needed()
        keystone = keystone_for(self.settings)
        keystone.valid_until()
        return keystone


def _connected(host: SSHHost) -> Host:
    host.run(["true"], timeout=20, repeat=True)
    return host


def shell_file(name: str) -> bytes:
    """Return one of the room's shell files, `scripts/<name>.sh`, for `bash -s`."""
    return (files(__package__) / "scripts" / f"{name}.sh").read_bytes()
