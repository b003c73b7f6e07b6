"""`kit vm`: the cloud VM of the platform: its OpenStack commands with their price, its set-up."""

import shlex
from decimal import Decimal

from kit.base import UsageError
from kit.base.settings import Settings
from kit.billing import rates as billing

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
    allowed += [
        (f"ssh from {loaded.site.title.split(',')[0]}", f"{a}/32") for a in hpc.egress_addresses
    ]
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
