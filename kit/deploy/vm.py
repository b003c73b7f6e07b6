"""`kit vm`: the cloud VM of the platform, its OpenStack commands with their price, its setup.

The setup is `env/vm/setup.sh`, which cloud-init runs at the first boot and `bootstrap` over ssh.
"""

import base64
import re
import shlex
from collections.abc import Callable
from decimal import Decimal
from ipaddress import IPv4Network
from pathlib import Path
from string import Template

from kit.base import ROOT, CommandFailed, Host, LocalHost, UsageError
from kit.base.settings import Settings
from kit.billing import HOUR, cloud_lines, number, rate_of

FOLDER = ROOT / "env" / "vm"
REMOTE = ".kit-vm-setup"  # in the home there: nobody else can write it, and it exists on a new VM
STEP_TIMEOUT_S = 1800.0
NAME = "kit-platform"
GROUP = "kit-ssh"
KEY = "local-cpouta"
PUBLIC_KEY = re.compile(r"[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}( [^\n]*)?")
# For the shell that they are pasted into; OS_PROJECT_NAME is what the centre's openrc file sets.
NETWORK, ADDRESS, HERE = "$OS_PROJECT_NAME", "$ADDRESS", "$HERE/32"


def commands(settings: Settings) -> list[tuple[str, list[str]]]:
    """Return the OpenStack commands that create the VM: the purpose of each, and its words.

    Raises UsageError if the profile names no flavor.
    """
    cloud, hpc = settings.cloud, settings.hpc
    if cloud is None or hpc is None or not cloud.flavor:
        got = "it has no [hpc], or no flavor in [cloud]"
        raise UsageError(f"plan the VM of {settings.profile}", got, "use a profile with a cloud")
    rule = ["security", "group", "rule", "create", "--protocol", "tcp", "--dst-port", "22"]
    site = settings.site.title.split(",")[0]
    sources = [("ssh from there", HERE)]
    blocks = map(str, map(IPv4Network, hpc.egress_addresses))  # an address becomes a block of one
    sources += [(f"ssh from {site}", block) for block in blocks]
    public = f"$HOME/.ssh/{KEY}.pem.pub"
    new = ["-f", "value", "-c", "floating_ip_address", "public"]
    server = ["--flavor", cloud.flavor, "--image", cloud.image, "--key-name", KEY]
    server += ["--security-group", GROUP, "--network", NETWORK, "--wait", NAME]
    return [
        ("your public key", ["keypair", "create", "--public-key", public, KEY]),
        ("addresses that may connect: none yet", ["security", "group", "create", GROUP]),
        *((purpose, [*rule, "--remote-ip", source, GROUP]) for purpose, source in sources),
        ("the VM, in the network of your project", ["server", "create", *server]),
        ("a public address", ["floating", "ip", "create", *new]),
        ("the VM at that address", ["server", "add", "floating", "ip", NAME, ADDRESS]),
    ]


def plan(settings: Settings) -> str:
    """Return the plan: each command with its purpose and price, then the commands that end it."""
    costs = {"server create": "vm", "floating ip": "floating-ip"}
    lines = ["# the address of this machine, as the VM sees it", "HERE=192.0.2.7"]
    for purpose, words in commands(settings):
        key = costs.get(" ".join(words[:2]), "")
        price = f": {_price(settings, key)}" if key else ""
        line = f"openstack {' '.join(map(_word, words))}"
        lines += [f"# {purpose}{price}", f"ADDRESS=$({line})" if key == "floating-ip" else line]
    hour = sum((line.bu for line in cloud_lines(settings, HOUR)), Decimal(0))
    return "\n".join(
        [
            *lines,
            "",
            f"# together {hour:.2f} Cloud BU an hour, {24 * hour:.2f} a day, from creation to",
            "# deletion, by started hours; a VM that is shut off and an unused address cost too.",
            "# Delete both:",
            f"openstack server delete --wait {NAME}",
            f"openstack floating ip delete {_word(ADDRESS)}",
        ]
    )


def _word(word: str) -> str:
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)


def _price(settings: Settings, key: str) -> str:
    rate = rate_of(settings, key)
    value = number(settings, key, "rate", rate.rate)
    return f"{value:.2f} {rate.kind} {rate.unit} an hour ({rate.source}, {rate.checked})"


def public_key(path: Path) -> str:
    """Read one public ssh key. Raises UsageError for anything else; never shows its text."""
    try:
        text = path.expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"read the public key {path}", str(err), "name the .pub file") from err
    if PUBLIC_KEY.fullmatch(text) is None:
        got = "a private key" if "PRIVATE KEY" in text else "no line of the form TYPE BASE64 NAME"
        raise UsageError(f"{path} is not a public ssh key", got, "name the .pub file")
    argv = ["ssh-keygen", "-l", "-f", str(path.expanduser())]
    if LocalHost().run(argv, timeout=10, check=False).code:
        got, step = "ssh-keygen cannot read it: it is cut off or mixed up", "copy it again, whole"
        raise UsageError(f"{path} is not a public ssh key", got, step)
    return text


def cloud_init(key: str) -> str:
    """Return the user data of a new VM: the key's owner may log in, and the setup runs."""
    script = base64.b64encode((FOLDER / "setup.sh").read_bytes()).decode()
    template = Template((FOLDER / "cloud-init.yaml.in").read_text())
    text = f'"{key}"' if '"' not in key else key.split('"')[0]
    return template.substitute(KEY=text, SETUP=script)


def bootstrap(host: Host, report: Callable[[str], None], dry: bool = False) -> list[str]:
    """Set up a VM over ssh, step by step; return the steps that are missing.

    Each step is checked before and after it, with the rights that it runs with. A dry run only
    checks. Raises UsageError if the user there is not root and has no sudo, CommandFailed if a
    step fails.
    """
    host.put((FOLDER / "setup.sh").read_bytes(), REMOTE, 0o700)
    prefix = root_prefix(host)
    if prefix is None and not dry:
        step = "log in as a user with sudo (Ubuntu's own is `ubuntu`), or look with --dry-run"
        raise UsageError("set up the VM", "the user there is not root and may not use sudo", step)
    missing = []
    for step in host.run(["bash", REMOTE, "list"]).out.split():
        check = [*(prefix or []), "bash", REMOTE, "check", step]
        if host.run(check, check=False).code == 0:
            report(f"{step}: in order")
        elif dry:
            unsure = ", or cannot be checked without sudo" if prefix is None else ""
            report(f"{step}: not in order{unsure}; a dry run changes nothing")
            missing.append(step)
        else:
            report(f"{step}: being done …")
            done = host.run([*(prefix or []), "bash", REMOTE, "do", step], timeout=STEP_TIMEOUT_S)
            if host.run(check, check=False).code:
                argv, hint = ["setup.sh", "check", step], f"look at this step in {FOLDER}/setup.sh"
                raise CommandFailed(argv, 1, done.out, done.err, hint)
            report(f"{step}: done")
    return missing


def root_prefix(host: Host) -> list[str] | None:
    """Return what goes before a command so that root runs it; None if that is not possible."""
    if host.run(["id", "-u"]).out.strip() == "0":
        return []
    return ["sudo", "-n"] if host.run(["sudo", "-n", "true"], check=False).code == 0 else None
