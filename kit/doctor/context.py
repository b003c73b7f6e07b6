"""What the checks of `kit doctor` stand on: settings, machines that are reached once, a clock."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kit.base import Host, KitError, Login, SSHHost, UsageError, read_login
from kit.base.settings import Cloud, Hpc, Settings
from kit.doctor import keys as doctor_keys
from kit.doctor.findings import Known, Skipped
from kit.store import keystone as credentials
from kit.store.keystone import Keystone

T = TypeVar("T")
CONNECT_S = 10


@dataclass(frozen=True)
class Check:
    """A check by its name; `known` says which diagnosis an error of a class is."""

    name: str
    look: "Callable[[Ground], str]"
    known: Known


class Once(Generic[T]):
    """Something that is got once, by whoever asks first; the others wait for that one."""

    def __init__(self, what: str, make: Callable[[], T]) -> None:
        self.what, self.make = what, make
        self._lock = threading.Lock()
        self._got: list[T] = []
        self._error: KitError | None = None

    def get(self) -> T:
        """Give it, or raise why it cannot be had."""
        with self._lock:
            if not self._got and self._error is None:
                try:
                    self._got.append(self.make())
                except KitError as err:
                    self._error = err
        if self._error is not None:
            raise self._error
        return self._got[0]

    def needed(self) -> T:
        """Give it, or raise Skipped: that it cannot be had is another check's finding."""
        try:
            return self.get()
        except KitError as err:
            raise Skipped(f"not tried: it needs {self.what}") from err


class Ground:
    """A profile, with its machines and its Keystone not reached yet."""

    def __init__(self, loaded: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.clock = loaded, clock
        self.login: Once[Login] = Once(".env", lambda: read_login(self.settings))
        self.keystone: Once[Keystone] = Once("the token", self._keystone)
        self.site_key = Once("the ssh key", lambda: doctor_keys.usable(self.site_ssh()))
        self.site: Once[Host] = Once("ssh to the site", self._site)
        self.vm_key = Once("the ssh key", lambda: doctor_keys.usable(self.vm_ssh()))
        self.vm: Once[Host] = Once("ssh to the VM", self._vm)

    @property
    def hpc(self) -> Hpc:
        """The profile's site. Raises UsageError when it has none."""
        if self.settings.hpc is None:
            raise UsageError(f"profile {self.settings.profile} has no [hpc]")
        return self.settings.hpc

    @property
    def cloud(self) -> Cloud:
        """The profile's cloud. Raises UsageError when it has none."""
        if self.settings.cloud is None:
            raise UsageError(f"profile {self.settings.profile} has no [cloud]")
        return self.settings.cloud

    def site_ssh(self) -> SSHHost:
        """Give the login node, not reached yet."""
        hpc = self.hpc
        return SSHHost(hpc.ssh_host, hpc.ssh_config, hpc.user, hpc.renew_hint,
                       connect_timeout_s=CONNECT_S)  # fmt: skip

    def vm_ssh(self) -> SSHHost:
        """Give the cloud VM, not reached yet; it is in the same ssh config as the site."""
        config = self.settings.hpc.ssh_config if self.settings.hpc else ""
        return SSHHost(self.cloud.ssh_host, config, connect_timeout_s=CONNECT_S)

    def _site(self) -> Host:
        self.site_key.needed()
        return _reached(self.site_ssh())

    def _vm(self) -> Host:
        self.vm_key.get()
        return _reached(self.vm_ssh())

    def _keystone(self) -> Keystone:
        self.login.needed()
        keystone = credentials.keystone_for(self.settings)
        keystone.valid_until()
        return keystone


def _reached(host: SSHHost) -> Host:
    host.run(["true"], timeout=20, repeat=True)
    return host
