"""What `kit doctor` can find: each diagnosis by name, its cause and its next step.

`docs/doctor.md` is `table()`; a test holds it to that, and seeds every fault once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kit.base import KitError

Known = Mapping[Any, str]  # class of an error -> the diagnosis that it is


@dataclass(frozen=True)
class Finding:
    """What one check found: `state` is ok, warning, failed or skipped; `answer` what was seen.

    `diagnosis` is a name of DIAGNOSES; "" where all is well, or for what nobody has foreseen.
    """

    name: str
    state: str
    answer: str
    next_step: str = ""
    seconds: float = 0.0
    diagnosis: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """A fault that is known: which check sees it, why it is so, what to do."""

    check: str
    cause: str
    next_step: str
    state: str = "failed"


class Found(KitError):
    """A fault of DIAGNOSES; `got` is what was seen, `next_step` replaces the table's."""

    def __init__(self, diagnosis: str, got: str = "", next_step: str = "") -> None:
        known = DIAGNOSES[diagnosis]
        super().__init__(known.cause, got, next_step or known.next_step)
        self.diagnosis, self.state = diagnosis, known.state


class Skipped(KitError):
    """A check that cannot be: what it needs has failed, and has a finding of its own."""


def failure(name: str, err: KitError, known: Known, seconds: float = 0.0) -> Finding:
    """Make the finding of what a check raised; `known` names the diagnosis of an error's class."""
    if isinstance(err, Skipped):
        return Finding(name, "skipped", err.tried, "", seconds)
    answer = " ".join("; ".join(part for part in (err.tried, err.got) if part).split())
    if isinstance(err, Found):
        return Finding(name, err.state, answer, err.next_step, seconds, err.diagnosis)
    match = next((known[cls] for cls in type(err).__mro__ if cls in known), "")
    step = err.next_step or (DIAGNOSES[match].next_step if match else "look at that service")
    return Finding(name, "failed", answer, step, seconds, match)


def text(found: Iterable[Finding]) -> str:
    """Show findings as lines, what was skipped by its reason, and how many there are of each."""
    lines, states, skipped = [], Counter[str](), defaultdict[str, list[str]](list)
    for each in found:
        states[each.state] += 1
        if each.state == "skipped":
            skipped[each.answer].append(each.name)
            continue
        lines.append(f"{each.state:8}{each.name}: {each.answer}")
        if each.next_step:
            named = f" [{each.diagnosis}]" if each.diagnosis else ""
            lines.append(f"{'':8}next: {each.next_step}{named}")
    lines += [f"skipped {', '.join(names)}: {why}" for why, names in skipped.items()]
    return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in states.items())])


def table() -> str:
    """Give every diagnosis as a Markdown table."""
    lines = ["| diagnosis | check | cause | what to do |", "|---|---|---|---|"]
    for name, row in DIAGNOSES.items():
        mark = " (warning)" if row.state == "warning" else ""
        lines.append(f"| `{name}`{mark} | {row.check} | {row.cause} | {row.next_step} |")
    return "\n".join(lines)


_VM_LOG = "look on the VM: `grep sshd /var/log/auth.log`"
_D, _W = Diagnosis, "warning"
DIAGNOSES = {
    "late": _D("any", "it does not answer in time", "look at that service, then run it again"),
    # the profile and what is on this machine
    "profile-unknown": _D("profile", "there is no profile of that name", "use one that it names"),
    "profile-wrong": _D(
        "profile", "the file has a syntax error, or a key that is unknown, missing or no such type",
        "mend the file at the line or key that it names"),
    "profile-unfilled": _D("profile", "the profile is a template, and a value is not filled in",
                           "copy it into a folder, name that in KIT_SITES_DIR, fill the value in"),
    "site-closed": _D("profile", "the site takes no jobs any more", "use the profile it names"),
    "over-budget": _D(
        "budget", "a run may cost more than the profile's [budget] allows",
        "ask for less in [hpc], or raise [budget]"),
    "env-missing": _D(
        ".env", "there is no login for the object store, or a name of it is missing",
        "write the four CSC_ names into ~/.ssh/.env, mode 600"),
    "env-readable": _D(".env", "the file with the password can be read by others",
                       "`chmod 600` it", _W),
    "secrets-tracked": _D(
        ".env", "a file with secrets is tracked by git",
        "`git rm --cached` it, add it to .gitignore, and change what was in it"),
    "secrets-wrong": _D(
        "compose-secrets", "the submitter's secrets file is missing, open to others or wrong",
        "mend the key it names; `kit submitter template` explains each"),
    # the object store
    "login-refused": _D(
        "token", "Keystone refuses the login: user, password, domain or project is wrong",
        "mend .env; look in MyCSC whether account and project are active"),
    "keystone-away": _D("token", "Keystone does not answer", "check network and [store] auth_url"),
    "keystone-fails": _D("token", "Keystone has a fault of its own: it is not your login",
                         "ask again; if it stays so, tell its operator"),
    "store-settings": _D("store", "[store] of the profile cannot be used", "mend the key it names"),
    "store-refused": _D("store", "the store lets nobody in with these keys", "`kit token`"),
    "store-away": _D("store", "the store does not answer", "check network and [store] url"),
    "bucket-taken": _D("store", "the bucket belongs to another project",
                       "change [store] bucket_prefix or ice_id"),
    "store-damaged": _D("store", "the store gives back other bytes than were put",
                        "tell its operator"),
    # the platform
    "mlflow-away": _D("MLflow", "MLflow does not answer",
                      "start it, or `kit forward`; runs wait on disk for `kit sync`"),
    "mlflow-refused": _D("MLflow", "MLflow does not take the password, or there is none",
                         "mend [cloud] mlflow_env_file"),
    "runner-missing": _D("pipelines", "kfp is not installed here", "`make setup`"),
    "kfp-away": _D("pipelines", "Kubeflow Pipelines does not answer", "`kit forward`"),
    "kfp-refused": _D("pipelines", "Kubeflow asks for a log-in",
                      "log in with the browser, put KUBEFLOW_COOKIES into .env"),
    "forwarder-away": _D("forwarder", "the forwarder's face does not answer",
                         "start it, or `kit forward`"),
    "submitter-away": _D(
        "submitter", "no submitter runs here", "nothing: a notebook starts one of its own; "
        "`kit submitter` is there for all", _W),
    "port-dead": _D("ports", "nobody listens where the profile says that a service is",
                    "start it (sandbox: `kit sandbox status`)"),
    "port-taken": _D("ports", "another program has a port that `kit forward` needs",
                     "end that program, or `kit forward --bind 127.0.0.2`"),
    "not-forwarded": _D("ports", "services of the platform are not forwarded to this machine",
                        "`kit forward`", _W),
    # ssh
    "ssh-missing": _D("ssh key", "there is no ssh on this machine",
                      "install OpenSSH's client (Debian, Ubuntu: openssh-client)"),
    "key-missing": _D("ssh key", "there is no ssh key to log in with, and none in the agent",
                      "make one with `ssh-keygen`, register it, name it in ~/.ssh/config"),
    "key-mode": _D("ssh key", "the private key can be read by others: ssh will not use it",
                   "`chmod 600` it"),
    "key-passphrase": _D("ssh key", "the key has a pass phrase, and no agent has the key",
                         "`ssh-add` it"),
    "certificate-missing": _D("ssh certificate", "the site wants a certificate; there is none",
                              "get one as the profile's renew_hint says"),
    "certificate-expired": _D("ssh certificate", "the certificate has ended",
                              "get a new one as the profile's renew_hint says"),
    "certificate-short": _D("ssh certificate", "the certificate ends within the hour",
                            "get a new one before a long run", _W),
    "ssh-settings": _D("ssh key", "ssh does not take its config",
                       "mend the file that it names (sandbox: `kit sandbox up`)"),
    "ssh-away": _D("ssh", "the login node is not reached: its name, its port, the network",
                   "check [hpc] ssh_host; try `ssh -v`"),
    "ssh-refused": _D("ssh", "the login node refuses key or certificate",
                      "is the key registered, the certificate newer than a day, the user right?"),
    "host-key": _D("ssh", "the machine has another host key than the one that is known",
                   "compare fingerprints with the centre's, then mend known_hosts"),
    "vm-away": _D("VM", "the cloud VM is not reached",
                  "is it on, may you in (security group), is it a Host of ~/.ssh/config?"),
    "vm-refused": _D("VM", "the cloud VM refuses the key", _VM_LOG),
    "vm-port-closed": _D(
        "VM from the site", "the site does not reach port 22 of the VM",
        "add the centre's NAT addresses to the security group: `kit vm plan`"),
    "tunnel-barred": _D("GatewayPorts", "the VM lets nobody open a tunnel to it",
                        "AllowTcpForwarding yes in its sshd_config; " + _VM_LOG),
    "gateway-ports": _D(
        "GatewayPorts", "the VM opens the tunnel on its loopback: pods do not reach it",
        "GatewayPorts clientspecified in its sshd_config, `sudo systemctl restart ssh`"),
    # the supercomputer
    "clock-off": _D("clock", "this machine's clock and the site's differ",
                    "set the clock (`timedatectl set-ntp true`): certificates and S3 fail"),
    "slurm-missing": _D("Slurm", "the login node has no Slurm: it may be another machine",
                        "set [hpc] ssh_host to the site's login node"),
    "slurm-away": _D("Slurm", "Slurm's controller or accounting does not answer",
                     "ask again later; the centre says when it is back"),
    "partition-unknown": _D("Slurm", "there is no such partition",
                            "set [hpc] partition to one that it names"),
    "account-missing": _D("Slurm", "you have no such Slurm account",
                          "set [hpc] account to one that it names; is the project's access on?"),
    "module-missing": _D("modules", "a module cannot be loaded",
                         "look with `module avail` there, mend [hpc] modules"),
    "python-missing": _D("environment", "[hpc] python does not run there",
                         "name one that does, or the module that brings it"),
    "environment-missing": _D(
        "environment", "no Python environment for this profile is on the site",
        "the first run makes it: configured = False", _W),
    "seff-missing": _D("seff", "the site has no seff", "set [hpc] seff = false"),
    "folder-missing": _D("project folder", "the project's folder is not there or not yours",
                         "set [hpc] project_dir; is the file system mounted?"),
    "folder-full": _D("project folder", "the project's folder is full: nothing can be written",
                      "remove what is old (`kit envs rm`), or ask for quota"),
    "links-broken": _D("links", "the file system does not keep that a link is made once",
                       "set [hpc] project_dir to another one: a try could run twice"),
    "race-not-held": _D("links against a job", "the race for links with a job could not be held",
                        "look at the job in squeue; run it again when the queue is shorter"),
    # the cluster on the VM
    "docker-missing": _D("Docker", "the VM has no Docker", "`kit vm bootstrap`"),
    "docker-away": _D("Docker", "Docker does not answer on the VM",
                      "`sudo systemctl start docker`; is the user in the group docker?"),
    "docker-data-gone": _D(
        "Docker", "Docker has no container at all: its data folder may not be mounted",
        "a VM that was shelved comes back without its volume: mount it, restart Docker"),
    "docker-proxy-left": _D(
        "Docker", "docker-proxy holds a port, and no container is behind it",
        "`kit doctor --fix docker-proxy-left` restarts Docker without its network files"),
    "registry-stuck": _D(
        "Docker", "the kind registry cannot be stopped or removed",
        "`kit doctor --fix registry-stuck` ends its containerd-shim and removes it"),
    "kind-missing": _D("kind", "there is no kind cluster on the VM", "`kit vm bootstrap`"),
    "kubeconfig-nowhere": _D(
        "pods", "the kubeconfig points where no cluster answers",
        "`kind export kubeconfig` on the VM; is the control plane's container up?"),
    "image-not-pulled": _D("pods", "an image cannot be pulled",
                           "`kubectl describe pod`; is the registry there, the name right?"),
    "pod-not-ready": _D("pods", "a pod is not ready",
                        "`kubectl describe pod`, `kubectl logs`; after a start wait some minutes"),
}  # fmt: skip
