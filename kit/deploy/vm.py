"""`kit vm`: the cloud VM of the platform: its OpenStack commands with their price, its set-up."""

import shlex
from decimal import Decimal
from pathlib import Path

import click

from kit.base.errors import UsageError
from kit.base.settings import Settings
from kit.billing import rates as billing

PROFILE = click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
NAME = "kit-platform"
GROUP = "kit-ssh"
KEY = "local-cpouta"
# For the shell that they are pasted into; OS_PROJECT_NAME is what the centre's openrc file sets.
NETWORK, ADDRESS, HERE = "$OS_PROJECT_NAME", "$ADDRESS", "$HERE/32"


def commands(loaded: Settings) -> list[tuple[str, list[str]]]:
    """Give the OpenStack commands that make the VM: what each is for, and its words.

    Raises UsageError when the profile names no flavor: then there is no VM to make.
    """
    cloud, hpc = loaded.cloud, loaded.hpc
    if cloud is None or hpc is None or not cloud.flavor:
        got = "it has no [hpc], or no flavor in [cloud]"
        raise UsageError(f"plan the VM of {loaded.profile}", got, "use a profile with a cloud")
    rule = ["security", "group", "rule", "create", "--protocol", "tcp", "--dst-port", "22"]
    allowed = [("ssh from there", HERE)]
    allowed += [(f"ssh from {loaded.site.title.split(',')[0]}", f"{a}/32") for a in hpc.nat]
    public = f"$HOME/.ssh/{KEY}.pem.pub"
    new = ["-f", "value", "-c", "floating_ip_address", "public"]
    server = ["--flavor", cloud.flavor, "--image", cloud.image, "--key-name", KEY,
              "--security-group", GROUP, "--network", NETWORK, "--wait", NAME]  # fmt: skip
    return [
        ("your public key", ["keypair", "create", "--public-key", public, KEY]),
        ("who may come in: nobody yet", ["security", "group", "create", GROUP]),
        *((what, [*rule, "--remote-ip", source, GROUP]) for what, source in allowed),
        ("the VM, in the network of your project", ["server", "create", *server]),
        ("an address of its own", ["floating", "ip", "create", *new]),
        ("the VM at that address", ["server", "add", "floating", "ip", NAME, ADDRESS]),
    ]


def text(loaded: Settings) -> str:
    """Say the plan: each command with what it is for and what it costs, then what ends it."""
    costs = {"server create": "vm", "floating ip": "floating-ip"}
    lines = ["# where you sit, as the VM sees you", "HERE=192.0.2.7"]
    for what, words in commands(loaded):
        key = costs.get(" ".join(words[:2]), "")
        price = f": {_price(loaded, key)}" if key else ""
        line = f"openstack {' '.join(map(_word, words))}"
        lines += [f"# {what}{price}", f"ADDRESS=$({line})" if key == "floating-ip" else line]
    hour = sum((line.bu for line in billing.cloud_lines(loaded, billing.HOUR)), Decimal(0))
    return "\n".join(
        [
            *lines,
            "",
            f"# together {hour:.2f} Cloud BU an hour, {24 * hour:.2f} a day, from the start to the",
            "# end of each: by started hours, a VM that is shut off and an unused address as well.",
            "# What ends it:",
            f"openstack server delete --wait {NAME}",
            f"openstack floating ip delete {_word(ADDRESS)}",
        ]
    )


def _word(word: str) -> str:
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)


def _price(loaded: Settings, key: str) -> str:
    rate = billing.rate_of(loaded, key)
    value = billing.number(loaded, key, "rate", rate.rate)
    return f"{value:.2f} {rate.kind} {rate.unit} an hour ({rate.source}, {rate.checked})"


@click.group("vm")
def group() -> None:
    """Plan the cloud VM of a profile and set it up."""


@group.command("plan")
@PROFILE
def plan_command(profile: str | None) -> None:
    """Print the OpenStack commands that make the VM, with their price; nothing is done."""
    from kit.base import settings

    click.echo(text(settings.load(profile)))


@group.command("cloud-init")
@click.argument("key", type=click.Path(path_type=Path), metavar="KEY.pub")
def cloud_init_command(key: Path) -> None:
    """Print the user data of a new VM (openstack server create --user-data FILE)."""
    from kit.deploy import vm_setup

    click.echo(vm_setup.cloud_init(vm_setup.public_key(key)), nl=False)


@group.command("bootstrap")
@PROFILE
@click.option("--dry-run", is_flag=True, help="Only say what is in order and what is not.")
def bootstrap_command(profile: str | None, dry_run: bool) -> None:
    """Set up the VM over ssh, step by step; what is in order is left alone. Run it again freely."""
    from kit.base import settings
    from kit.base.ssh import SSHHost
    from kit.deploy import vm_setup

    loaded = settings.load(profile)
    if loaded.cloud is None or not loaded.cloud.ssh_host:
        got, step = "no cloud.ssh_host", "use a profile with a cloud"
        raise UsageError(f"set up the VM of {loaded.profile}", got, step)
    host = SSHHost(loaded.cloud.ssh_host, loaded.hpc.ssh_config if loaded.hpc else "")
    left = vm_setup.bootstrap(host, click.echo, dry_run)
    if left:
        click.echo(f"not in order: {', '.join(left)}; nothing was changed")
