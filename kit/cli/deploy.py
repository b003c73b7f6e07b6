"""Commands about the platform and its VM: `kit platform`, `kit port-forward`, `kit vm`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.base import Host, KitError, UsageError
from kit.cli.options import pass_on_options, profile_option

if TYPE_CHECKING:
    from kit.base.settings import Settings


@click.command("port-forward")
@profile_option
@click.option(
    "--bind", default="", metavar="IP", help="Address to listen at.  [default: the profile's]"
)
@click.option(
    "--print",
    "only_print",
    is_flag=True,
    help="Print plain ssh and kubectl commands, on stderr the table of addresses, and exit.  "
    "[default: no]",
)
def port_forward_command(profile: str | None, bind: str, only_print: bool) -> None:
    """Forward the platform's ports to localhost.

    Opens one ssh connection to the VM and forwards every service of the profile, until Ctrl-C.

    \b
    Example:
      kit port-forward --profile roihu --print
    """
    import signal
    import threading

    from kit.base.settings import load
    from kit.deploy import port_forward
    from kit.deploy.forwards import as_table, list_forwards, plain_commands

    settings = load(profile)
    rows = list_forwards(settings, bind)
    host = port_forward.vm_connection(settings, rows)
    if only_print:
        click.echo(plain_commands(host, rows))
        click.echo(as_table(rows), err=True)  # beside the commands: a shell may read these
        return
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the ssh process below is ended in any case
        signal.signal(number, lambda *_: stop.set())
    connection = port_forward.Connection(
        host, rows, lambda line: click.echo(f"kit port-forward: {line}", err=True)
    )
    port_forward.keep_forwarding(connection, click.echo, stop)


@click.group("platform")
@profile_option
@click.pass_context
def platform_group(ctx: click.Context, profile: str | None) -> None:
    """Prepare the Kubernetes platform.

    Fetches the upstream platform, writes its passwords and builds the kit's overlays.

    \b
    Example:
      kit platform build kubeflow-monitoring
    """
    from kit.deploy import manifests

    pass_on_options(ctx)
    if not manifests.ENVIRONMENTS:
        raise UsageError(
            "prepare the platform from an installed wheel",
            "a wheel has no manifests",
            "git clone the kit's repository and run the command there",
        )


@platform_group.command("source")
def source_command() -> None:
    """Fetch the upstream platform.

    Clones the pinned commit into env/platform/upstream, or links the checkout that
    KIT_PLATFORM_SOURCE names.

    \b
    Example:
      kit platform source
    """
    from kit.deploy import manifests

    folder = manifests.get_source(os.environ.get("KIT_PLATFORM_SOURCE", ""))
    click.echo(f"upstream at {manifests.COMMIT[:12]}: {folder}")


@platform_group.command("secrets")
@profile_option
@click.option(
    "--user",
    default="me",
    show_default=True,
    metavar="NAME",
    help="Person who may send requests to the forwarder.",
)
def secrets_command(profile: str | None, user: str) -> None:
    """Write the platform's passwords.

    Writes the missing files of env/platform/secrets with mode 600 and checks all of them.

    \b
    Example:
      kit platform secrets --profile roihu
    """
    from kit.base import read_login
    from kit.base.settings import load
    from kit.deploy import manifests

    values = read_login(load(profile)).lines()
    if any("'" in value or "\n" in value for value in values.values()):
        raise KitError("write the store's login", "a quote in it", "write store.env by hand")
    text = "".join(f"{name}='{value}'\n" for name, value in values.items())
    for path in manifests.write_secrets(manifests.FOLDER / "secrets", text, user):
        click.echo(f"{path}: in order")


def _settings(profile: str | None) -> "Settings":
    """Load the profile of a platform: the sandbox has none, so it is not the default here."""
    from kit.base.settings import load
    from kit.deploy import manifests

    return load(profile or os.environ.get("KIT_PROFILE") or manifests.DEFAULT_PROFILE)


def _built(name: str, profile: str | None, placeholders: bool = False) -> str:
    """Return the manifests of an environment for a profile, the kit's or the person's own."""
    from kit.base.settings import SITES
    from kit.deploy import manifests

    settings = _settings(profile)
    own = [path for path in (settings.file, *settings.bases) if path.parent != SITES]
    return manifests.build(name, profile=settings.profile, sites=own, placeholders=placeholders)


def _cluster_host(profile: str | None, here: bool) -> Host:
    """Return the machine whose kubectl and Docker are used: the profile's VM, or this one."""
    from kit.base import LocalHost, vm_host

    return LocalHost() if here else vm_host(_settings(profile))


here_option = click.option(
    "--here", is_flag=True, help="Use this machine instead of the profile's VM.  [default: no]"
)


@platform_group.command("build")
@click.argument("name", metavar="ENVIRONMENT")
@profile_option
@click.option(
    "--placeholders",
    is_flag=True,
    help="Build without passwords, only to look at the result.  [default: no]",
)
def build_command(name: str, profile: str | None, placeholders: bool) -> None:
    """Print the manifests of an environment.

    The profile is the one whose runs the forwarder shows. `kit platform apply` sends the same
    manifests to the cluster.

    \b
    Example:
      kit platform build kubeflow-monitoring --placeholders
    """
    click.echo(_built(name, profile, placeholders))


@platform_group.command("images")
@profile_option
@here_option
def images_command(profile: str | None, here: bool) -> None:
    """Build the images of the platform.

    Sends the files of this checkout to the profile's VM, where Docker builds the four images and
    pushes them to the cluster's registry.

    \b
    Example:
      kit platform images --profile roihu
    """
    from kit.deploy import images, vm

    host = _cluster_host(profile, here)
    tag = images.build_images(host, vm.root_prefix(host) or [], lambda line: click.echo(line))
    click.echo(f"pushed with the tag {tag}")


@platform_group.command("apply")
@click.argument("name", metavar="ENVIRONMENT")
@profile_option
@here_option
def apply_command(name: str, profile: str | None, here: bool) -> None:
    """Send an environment to the cluster.

    Sends the manifests in stages to kubectl on the profile's VM and waits for each stage. It may be
    stopped and repeated at any time.

    \b
    Example:
      kit platform apply kubeflow-monitoring --profile roihu
    """
    from kit.deploy import apply

    text, host = _built(name, profile), _cluster_host(profile, here)
    apply.apply(host, text, lambda line: click.echo(line))
    if bare := apply.without_sidecar(host):
        click.echo(f"started before Istio, without a sidecar: {', '.join(bare)}", err=True)
        click.echo("delete these pods: they come back with one", err=True)
    click.echo("applied; `kit doctor` shows which pods are ready")


@click.group("vm")
@profile_option
@click.pass_context
def vm_group(ctx: click.Context, profile: str | None) -> None:
    """Plan and set up the cloud VM.

    \b
    Example:
      kit vm plan --profile roihu
    """
    pass_on_options(ctx)


@vm_group.command("plan")
@profile_option
def vm_plan_command(profile: str | None) -> None:
    """Print the commands that create the VM.

    Prints OpenStack commands with their price. Nothing is executed.

    \b
    Example:
      kit vm plan --profile roihu
    """
    from kit.base.settings import load
    from kit.deploy import vm

    click.echo(vm.plan(load(profile)))


@vm_group.command("cloud-init")
@click.argument("key", type=click.Path(path_type=Path), metavar="KEY.pub")
def cloud_init_command(key: Path) -> None:
    """Print the user data of a new VM.

    The output is the file of `openstack server create --user-data FILE`.

    \b
    Example:
      kit vm cloud-init key.pub
    """
    from kit.deploy import vm

    click.echo(vm.cloud_init(vm.public_key(key)), nl=False)


@vm_group.command("bootstrap")
@profile_option
@click.option(
    "--dry-run", is_flag=True, help="Only report what is in order and what is not.  [default: no]"
)
def bootstrap_command(profile: str | None, dry_run: bool) -> None:
    """Set up the VM over ssh.

    Works step by step and skips steps that are already done. It may be run again at any time.

    \b
    Example:
      kit vm bootstrap --profile roihu --dry-run
    """
    from kit.base import vm_host
    from kit.base.settings import load
    from kit.deploy import vm

    missing = vm.bootstrap(vm_host(load(profile)), click.echo, dry_run)
    if missing:
        click.echo(f"not in order: {', '.join(missing)}; nothing was changed")
