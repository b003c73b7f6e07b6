"""The command of the submitter: `kit submitter`."""

from pathlib import Path

import click

from kit.base.ports import SUBMITTER_PORT
from kit.cli.options import listening_options, pass_on_options, profile_option


@click.group("submitter", invoke_without_command=True)
@profile_option
@click.option(
    "--once", is_flag=True, help="Do one pass and exit, without the HTTP API.  [default: no]"
)
@listening_options(SUBMITTER_PORT, "the HTTP API")
@click.pass_context
def submitter_group(
    ctx: click.Context, profile: str | None, once: bool, address: str, port: int
) -> None:
    """Submit requested runs to Slurm.

    Runs the submitter until Ctrl-C. It polls for run requests, submits them to Slurm, follows
    the jobs and publishes their results. An HTTP API shows the state of all runs.

    \b
    Example:
      kit submitter --profile sandbox --once
    """
    if ctx.invoked_subcommand:
        pass_on_options(ctx)
        return
    from kit.submitter import loop

    with loop.open_submitter(profile) as (settings, submitter):
        if once:
            statuses = submitter.once().values()
            done = sum(status.state.finished for status in statuses)
            click.echo(f"{len(statuses)} runs, {done} finished before this pass", err=True)
            return
        from kit.forwarder import Buckets, api, serve
        from kit.forwarder.people import Person

        buckets = Buckets("", "", submitter.requests.store, submitter.data)
        person, read_log = Person(settings, buckets), submitter.slurm.logs
        app = api.submitter_api(person, read_log, serve.api_token(settings))
        with serve.serve(app, address, port):
            token = serve.api_token_path(settings)
            click.echo(f"API: http://{address}:{port}/runs, token in {token}", err=True)
            loop.run_loop(submitter)


@submitter_group.command("template")
@profile_option
@click.option(
    "--to",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder to write into.",
)
def template_command(profile: str | None, folder: Path) -> None:
    """Write templates of the connection files.

    Writes compose-secrets.json for the submitter's container and a block for ~/.ssh/config,
    both to be filled in.

    \b
    Example:
      kit submitter template --profile roihu --to .
    """
    from kit.base.settings import load
    from kit.submitter import compose_secrets

    settings = load(profile)
    hpc, cloud = settings.hpc, settings.cloud
    ssh = compose_secrets.ssh_template(
        hpc.ssh_host if hpc else "",
        cloud.ssh_host if cloud else "",
        hpc.renew_hint if hpc and hpc.needs_certificate else "",
    )
    text = compose_secrets.platforms_template(settings.profile, hpc.ssh_host if hpc else "")
    secrets, config = compose_secrets.write_templates(folder, ssh, text)
    click.echo(f"{config}: fill in the values in <...>, then append the file to ~/.ssh/config")
    click.echo(f"{secrets}: for the submitter's container; fill in what you use, leave")
    click.echo("  'none' where a value is absent; mode 600, never into git. Then: kit doctor")
