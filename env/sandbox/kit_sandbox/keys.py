"""Keys and certificates of a sandbox: ssh, its user CA, TLS, munge.

They are created once; their modes are set at every start.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kit.base import CommandFailed
from kit_sandbox.folders import give
from kit_sandbox.sites import account_uid

CERTIFICATE_HOURS = 24  # as long as a centre's certificate lives


def write_private(path: Path, text: str | bytes) -> None:
    """Write a file that only its owner can read, by rename."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    data = text.encode() if isinstance(text, str) else text
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
    new.replace(path)


def create(folder: Path, values: Mapping[str, str]) -> None:
    """Create what is missing below `folder` and set the modes of what is there.

    `values` are the variables of the sandbox. Raises CommandFailed with what ssh-keygen or
    openssl said.
    """
    etc = folder / "etc"
    if not (etc / "munge.key").exists():
        write_private(etc / "munge.key", secrets.token_bytes(1024))
    (etc / "munge.key").chmod(0o600)  # munged refuses to start when others may read it
    for name in ("id", "user_ca", "login_host", "cloud_host"):
        if not (etc / "ssh" / name).exists():
            _call(
                "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", etc / "ssh" / name
            )
        (etc / "ssh" / name).chmod(0o600)  # ssh ignores a private key that others may read
    (etc / "ssh").chmod(0o755)
    _authorize(folder, values)
    sign(folder, values["HPC_USER"], values["CLOUD_USER"])
    _known_hosts(etc, values)
    _homes(folder, values)
    _tls(etc)


def sign(folder: Path, *principals: str, valid: str = f"-5m:+{CERTIFICATE_HOURS}h") -> None:
    """Sign the user's key with the sandbox's CA; `valid` is ssh-keygen's -V."""
    ssh = folder / "etc" / "ssh"
    names = ",".join(dict.fromkeys(principals))
    argv = ("ssh-keygen", "-q", "-s", ssh / "user_ca", "-I", "kit-sandbox", "-n", names)
    _call(*argv, "-V", valid, ssh / "id.pub")


def _call(*argv: str | Path) -> None:
    words = [str(word) for word in argv]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandFailed(words, done.returncode, done.stdout, done.stderr)


def _authorize(folder: Path, values: Mapping[str, str]) -> None:
    """Let the user's key in: at the login node as the HPC user, at the VM as its administrator."""
    ssh = folder / "etc" / "ssh"
    for directory, user in (("login_keys", "HPC_USER"), ("cloud_keys", "CLOUD_USER")):
        target = ssh / directory / values[user]
        shutil.copyfile(ssh / "id.pub", target)
        target.chmod(0o644)  # sshd reads it as the user who logs in


def _known_hosts(etc: Path, values: Mapping[str, str]) -> None:
    lines = []
    for name in ("login", "cloud"):
        key = " ".join((etc / "ssh" / f"{name}_host.pub").read_text().split()[:2])
        upper = name.upper()
        lines.append(f"[{values[f'ADDR_{upper}']}]:{values[f'PORT_{upper}']} {key}\n")
    (etc / "known_hosts").write_text("".join(lines))


def _homes(folder: Path, values: Mapping[str, str]) -> None:
    """Create the homes of the sandbox's own accounts and the project folders."""
    hpc, cloud, tunnel = (values[key] for key in ("HPC_USER", "CLOUD_USER", "TUNNEL_USER"))
    uids = {name: account_uid(name) for name in (hpc, cloud, tunnel)}
    give(folder, f"home/{hpc}", uids[hpc], 0o700)
    give(folder, f"home/{cloud}", uids[cloud], 0o700)
    give(folder, f"home/{tunnel}", uids[tunnel], 0o755)
    # the keys of the tunnel user are written by the VM's administrator and read by sshd
    give(folder, f"home/{tunnel}/.ssh", uids[cloud], 0o755)
    give(folder, f"home/{tunnel}/.ssh/authorized_keys", uids[cloud], 0o644, file=True)
    for project in values["PROJECTS"].split():
        give(folder, f"projappl/{project}", uids[hpc], 0o700)


def _tls(etc: Path) -> None:
    """Create a CA and, signed by it, the certificate of the object store."""
    if (etc / "rgw.crt").exists():
        return
    new_key = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _call(
        *new_key,
        "-x509",
        "-days",
        "3650",
        "-subj",
        "/CN=Cloud-HPC kit sandbox CA",
        *usage,
        "-keyout",
        etc / "ca.key",
        "-out",
        etc / "ca.crt",
    )
    _call(*new_key, "-subj", "/CN=localhost", "-keyout", etc / "rgw.key", "-out", etc / "rgw.csr")
    extensions = etc / "rgw.ext"
    extensions.write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
        "authorityKeyIdentifier=keyid\nextendedKeyUsage=serverAuth\n"
    )
    signed = etc / "rgw.crt.new"
    _call(
        "openssl",
        "x509",
        "-req",
        "-in",
        etc / "rgw.csr",
        "-days",
        "3650",
        "-extfile",
        extensions,
        "-CA",
        etc / "ca.crt",
        "-CAkey",
        etc / "ca.key",
        "-CAcreateserial",
        "-out",
        signed,
    )
    for key in (etc / "ca.key", etc / "rgw.key"):
        key.chmod(0o600)
    signed.replace(etc / "rgw.crt")
