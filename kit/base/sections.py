"""The sections of a profile: each key with its type, default and description.

They are written here and nowhere else; the reference page and the commented template are made
from them.
"""

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from decimal import Decimal
from ipaddress import IPv4Network
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from kit.base.text import to_markdown

WIDEST_BLOCK = 8  # bits of the widest address block from which jobs may reach the VM
STRICT = ConfigDict(extra="forbid", strict=True)


def exact(value: Any) -> Any:
    """Convert a number to its shortest decimal text: 0.75 to "0.75", never a binary fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return format(Decimal(repr(value)), "f")


def _zone(value: Any) -> Any:
    if isinstance(value, str):
        try:
            ZoneInfo(value)
        except (ValueError, OSError, LookupError) as err:
            raise ValueError("this time zone does not exist; an example: Europe/Helsinki") from err
    return value


def _no_percent(value: Any) -> Any:
    if isinstance(value, str) and "%" in value:
        raise ValueError("Slurm replaces % in the path of a job's log; use a folder without %")
    return value


def _option(value: Any) -> Any:
    """Refuse what could end a line of the batch script, or be read as an option of sbatch."""
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("a line end or another control character is not allowed")
    if isinstance(value, str) and value.startswith("-"):
        raise ValueError("sbatch would read a value that begins with - as an option")
    return value


def _block(value: Any) -> Any:
    if isinstance(value, str):
        try:
            block = IPv4Network(value)
        except ValueError as err:
            raise ValueError(
                f"{err}; write an address (10.0.0.5) or a block (10.0.0.0/28)"
            ) from err
        if block.prefixlen < WIDEST_BLOCK:
            raise ValueError(f"a block of more than /{WIDEST_BLOCK} lets the whole internet in")
    return value


Option = Annotated[str, BeforeValidator(_option)]
Block = Annotated[str, BeforeValidator(_block)]
Blocks = Annotated[tuple[Block, ...], BeforeValidator(lambda v: tuple(v) if type(v) is list else v)]
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda v: tuple(v) if type(v) is list else v)]
Number = Annotated[str, BeforeValidator(exact)]


@dataclass(frozen=True, config=STRICT)
class Site:
    """The profile itself."""

    name: str = Field(description="Name of the profile, the same as the file's.")
    title: str = Field(description="Title for tables and pages.")
    closed: str = Field(
        default="", description="Sentence that refuses submissions; empty: jobs may run."
    )
    base: str = Field(
        default="",
        description="Name of a profile that has all that is not written here; each key here, "
        "those of named tables too, replaces the base's.",
    )
    alias_of: str = Field(
        default="", description="Name of the profile that is used instead of this one."
    )
    env_file: str = Field(default="", description="File with the login of the object store.")


@dataclass(frozen=True, config=STRICT)
class Store:
    """The object store."""

    kind: str = Field(description="s3, swift, or directory (a folder of this machine).")
    url: str = Field(description="URL of the S3 service; the folder if kind is directory.")
    auth_url: str = Field(default="", description="URL of Keystone, where the login is checked.")
    region: str = Field(default="regionOne", description="Region of the store.")
    bucket_prefix: str = Field(
        default="integration", description="First word of the buckets' names."
    )
    collector_id: str = Field(
        default="s0-c0-u1", description="Id of the article's collector in names."
    )
    credentials_file: str = Field(
        default="",
        description="File with an S3 key, as the AWS tools or rclone write it; without auth_url.",
    )
    credentials_section: str = Field(
        default="", description="Section of that file; empty: the only one with a key."
    )
    credentials_hours: int = Field(
        default=0,
        ge=0,
        description="Hours that a key lasts from when the file was written; 0: ever.",
    )
    renew_hint: str = Field(default="", description="How to get a new key.")
    ca_file: str = Field(default="", description="Certificates to trust; empty: the system's.")


@dataclass(frozen=True, config=STRICT)
class Hpc:
    """The Slurm site: how to log in, what a job asks for, where files are written."""

    ssh_host: str = Field(description="Login node, as in `ssh NAME`.")
    project_dir: Annotated[str, BeforeValidator(_no_percent)] = Field(
        description="Your own folder on the shared file system, not purged; never created."
    )
    account: Option = Field(default="", description="Account that is charged (sbatch --account).")
    user: str = Field(default="", description="User name at the login node; empty: as ssh decides.")
    ssh_config: str = Field(default="", description="ssh config file; empty: ~/.ssh/config.")
    partition: Option = Field(
        default="", description="Partition (sbatch --partition); empty: the default."
    )
    time: Option = Field(default="00:20:00", description="Time limit of a job, as sbatch reads it.")
    nodes: int = Field(default=1, ge=1, description="Nodes of a job.")
    cpus: int = Field(
        default=1, ge=1, description="CPU cores of each node, for the one task that the kit starts."
    )
    mem: Option = Field(
        default="3G",
        description="Memory of each node, as sbatch reads it (3G, 500M); empty: the site's own.",
    )
    gres: Option = Field(
        default="", description="Generic resources of each node, such as gpu:gh200:1."
    )
    mem_per_cpu: Option = Field(
        default="", description="Memory of each core (sbatch --mem-per-cpu), in place of `mem`."
    )
    gpus_per_node: Option = Field(
        default="",
        description="GPUs of each node (sbatch --gpus-per-node), such as 2 or a100:2; "
        "in place of GPUs in `gres`.",
    )
    nvme: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Local disk of each node in GB, where the site has the resource nvme (gres).",
    )
    burst_buffer: Option = Field(
        default="",
        description="Fast storage (sbatch --bb), such as "
        "#BB_LUA SBF storagesize=100G path=/run/sbb/me.",
    )
    exclusive: bool = Field(
        default=False,
        description="No other job on the nodes (sbatch --exclusive); the site bills them whole.",
    )
    reservation: Option = Field(
        default="", description="Reservation, as for a course (sbatch --reservation)."
    )
    nodelist: Option = Field(
        default="", description="Nodes that the job must have (sbatch --nodelist), such as c[1-2]."
    )
    exclude: Option = Field(
        default="", description="Nodes that the job must not have (sbatch --exclude)."
    )
    mail_type: Option = Field(
        default="", description="Events that Slurm mails (sbatch --mail-type), such as END,FAIL."
    )
    mail_user: Option = Field(
        default="", description="Address of that mail; empty: as the site decides."
    )
    qos: Option = Field(default="", description="Quality of service (sbatch --qos).")
    constraint: Option = Field(
        default="", description="Features of the nodes (sbatch --constraint)."
    )
    clusters: Option = Field(default="", description="Cluster of a federation (sbatch --clusters).")
    licenses: Option = Field(
        default="", description="Licences that a job takes (sbatch --licenses)."
    )
    attempt_gib: float = Field(
        default=0.2,
        ge=0,
        description="Room that a job's own files (checkpoints, model, log) need in `project_dir`.",
    )
    modules: Texts = Field(default=(), description="Environment modules to load.")
    module_init: str = Field(
        default="", description="File that defines `module`; empty: the site's own."
    )
    module_path: str = Field(default="", description="Folder for `module use` before loading.")
    python: str = Field(
        default="python3",
        description="Python 3.11 of the nodes, or of the container, with PyTorch.",
    )
    container: Option = Field(
        default="",
        description="Image in which the job's Python runs, by Apptainer or Singularity: its path "
        "on the site, or its name below `project_dir`.",
    )
    container_options: Texts = Field(
        default=(), description='Options of `apptainer exec`, such as "--nv" or "--bind=/data".'
    )
    build_env_on: str = Field(
        default="job", description="Where the environment is built: job or login (the login node)."
    )
    tunnel: str = Field(default="none", description="Reverse tunnel to the VM: reverse or none.")
    poll_floor_s: float = Field(
        default=15.0, description="Least seconds between two questions to Slurm."
    )
    timezone: Annotated[str, BeforeValidator(_zone)] = Field(
        default="UTC", description="Time zone of the accounting, such as Europe/Helsinki."
    )
    has_seff: bool = Field(default=False, description="Whether the site has the command seff.")
    needs_certificate: bool = Field(
        default=False, description="Whether a login needs an ssh certificate."
    )
    renew_hint: str = Field(default="", description="How to get a new certificate or login.")
    retries: int = Field(
        default=0, description="New attempts after one that failed without any work."
    )
    egress_addresses: Blocks = Field(
        default=(), description="IPv4 addresses or blocks (10.0.0.0/28) that jobs come from."
    )


@dataclass(frozen=True, config=STRICT)
class Cloud:
    """The MLOps platform and its virtual machine."""

    runner: str = Field(
        default="local", description="Where pipelines run: local (kfp.local) or cluster."
    )
    ssh_host: str = Field(default="", description="The VM, as in `ssh NAME`.")
    tunnel_address: str = Field(
        default="", description="Address of the VM at which tunnels listen."
    )
    tunnel_keys: str = Field(
        default="/home/kit-tunnel/.ssh/authorized_keys",
        description="authorized_keys file for tunnels.",
    )
    kfp_url: str = Field(default="", description="URL of Kubeflow Pipelines.")
    mlflow_url: str = Field(default="", description="URL of MLflow.")
    mlflow_env_file: str = Field(default="", description="File with user and password of MLflow.")
    forwarder_url: str = Field(default="", description="URL of the forwarder's API.")
    forwarder_token_file: str = Field(default="", description="File with the token of that API.")
    prometheus_url: str = Field(default="", description="URL of Prometheus.")
    prometheus_env_file: str = Field(
        default="", description="File with user and password of Prometheus."
    )
    forward_address: str = Field(
        default="127.0.0.1", description="Address of forwarded ports here."
    )
    flavor: str = Field(default="", description="Flavor of the VM; empty: no VM is created.")
    image: str = Field(default="", description="Image of the VM.")


@dataclass(frozen=True, config=STRICT)
class Port:
    """A service: behind Kubernetes (`svc`, `namespace`) or at an `address`."""

    port: int = Field(description="Port at which the service is reached here.")
    svc: str = Field(default="", description="Name of the Kubernetes service.")
    namespace: str = Field(default="", description="Namespace of the Kubernetes service.")
    address: str = Field(default="", description="Address of a service outside Kubernetes.")
    target: int = Field(default=0, description="Port of the service itself; 0: the same.")
    user: str = Field(default="", description="User name of its login.")
    password: str = Field(default="", description="Command that shows the password of that user.")


@dataclass(frozen=True, config=STRICT)
class Partition:
    """Limits of one job in a partition. A row with only `rate` has a price and takes no jobs."""

    time: str = Field(default="", description="Longest time limit of a job.")
    nodes: int = Field(default=0, description="Most nodes of a job.")
    cores: int = Field(default=0, description="CPU cores of a node.")
    gib: int = Field(default=0, description="Memory of a node in GiB.")
    gpus: int = Field(default=0, description="GPUs of a node.")
    max_gpus: int = Field(
        default=0, description="Most GPUs of a job on all its nodes; 0: those of the nodes."
    )
    rate: str = Field(
        default="", description="Name of its [rates.NAME]; empty: the partition's name."
    )
    for_tests: bool = Field(
        default=False, description="The site asks not to work here; it is never suggested."
    )


@dataclass(frozen=True, config=STRICT)
class Rate:
    """A price. With `max` the price of an hour is `rate` times the largest term.

    A term is a factor of cores, gib, gpus or disk_gib; "/8" counts started eights.
    """

    per: str = Field(description="What is priced: h, node-h, GPU-h, TiB-h.")
    unit: str = Field(description="Unit of the price, such as BU.")
    kind: str = Field(description="Kind of the unit; units of two kinds are never added.")
    source: str = Field(description="Page with the price.")
    checked: str = Field(description="Month in which that page was read.")
    rate: Number = Field(default="", description="Units for one of `per`; empty: 1.")
    max: Mapping[str, Number] = Field(
        default_factory=dict, description="Terms; the largest counts."
    )
    plus: Mapping[str, Number] = Field(default_factory=dict, description="Terms to add each hour.")


SECTIONS: Mapping[str, type] = {"site": Site, "store": Store, "hpc": Hpc, "cloud": Cloud}
TABLES: Mapping[str, type] = {"ports": Port, "partitions": Partition, "rates": Rate}


def _keys() -> Iterator[tuple[str, type, list[tuple[str, str, str, str]]]]:
    """Yield each section: its heading, its class, and (key, type, default, description) rows."""
    for section, cls in [*SECTIONS.items(), *TABLES.items()]:
        heading = section if section in SECTIONS else f"{section}.NAME"
        hints = typing.get_type_hints(cls)
        rows = []
        for item in dataclasses.fields(cls):
            info = item.default
            if not isinstance(info, FieldInfo):
                raise TypeError(f"{heading} {item.name} has no description")
            default = (
                "required"
                if info.is_required()
                else _toml(info.get_default(call_default_factory=True))
            )
            rows.append((item.name, _type_name(hints[item.name]), default, info.description or ""))
        yield heading, cls, rows


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint) or hint
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(origin, "list of texts" if origin is tuple else "table of numbers")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return "{}" if isinstance(value, Mapping) else str(value)


def reference() -> str:
    """Return the reference page of all keys of a profile, in Markdown."""
    parts = []
    for heading, cls, rows in _keys():
        table = [
            {"key": f"`{key}`", "type": kind, "default": f"`{default}`", "description": text}
            for key, kind, default, text in rows
        ]
        parts.append(
            f"## `[{heading}]`\n\n{inspect.cleandoc(cls.__doc__ or '')}\n\n{to_markdown(table)}\n"
        )
    budget = "## `[budget]`\n\nMost units of a kind that one run may cost, such as `CPU = 50`.\n"
    return "\n".join([*parts, budget])


def profile_template() -> str:
    """Return a commented profile with every key: required ones to fill in, others as comments."""
    lines = ["# A profile of the kit. Fill in the values in <angle brackets>."]
    for heading, cls, rows in _keys():
        if heading in SECTIONS:
            lines += ["", f"# {(cls.__doc__ or '').splitlines()[0]}", f"[{heading}]"]
            for key, _, default, text in rows:
                shown = f'{key} = "<{text}>"' if default == "required" else f"# {key} = {default}"
                lines += [f"# {text}", shown]
    return "\n".join(lines) + "\n"
