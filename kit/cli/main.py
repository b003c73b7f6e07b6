"""The `kit` command: finds the command that is called, and turns errors into exit codes."""

import importlib
import sys
from typing import ClassVar

import click

from kit import __version__
from kit.base import WIDTH, KitError
from kit.cli.options import warn_renamed

INTERRUPTED = 130
EXTRAS = "make setup, or: pip install -e '.[local,cloud,hpc]'"
HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called.

    `lazy` has the place of each command, `summaries` its line in `kit --help` (so that the list
    imports nothing), `renamed` the new name of each old one. A distribution may add commands by
    entry points of the group `kit.commands`.
    """

    lazy: ClassVar[dict[str, str]] = {
        "bill": "kit.cli.report:bill_command",
        "cancel": "kit.cli.runs:cancel_command",
        "check": "kit.cli.experiments:check_command",
        "credentials": "kit.cli.store:credentials_command",
        "doctor": "kit.cli.doctor:doctor_command",
        "envs": "kit.cli.leftovers:envs_group",
        "export": "kit.cli.report:export_command",
        "forwarder": "kit.cli.forwarder:forwarder_group",
        "logs": "kit.cli.runs:logs_command",
        "new": "kit.cli.experiments:new_command",
        "plan": "kit.cli.run:plan_command",
        "platform": "kit.cli.deploy:platform_group",
        "port-forward": "kit.cli.deploy:port_forward_command",
        "report": "kit.cli.report:report_command",
        "reproduce": "kit.cli.run:reproduce_command",
        "run": "kit.cli.run:run_command",
        "runs": "kit.cli.runs:runs_command",
        "store": "kit.cli.store:store_group",
        "submit": "kit.cli.submit:submit_command",
        "submitter": "kit.cli.submitter:submitter_group",
        "sweep": "kit.cli.run:sweep_command",
        "sync": "kit.cli.run:sync_command",
        "tidy": "kit.cli.leftovers:tidy_command",
        "vm": "kit.cli.deploy:vm_group",
    }
    summaries: ClassVar[dict[str, str]] = {
        "bill": "Show what runs cost.",
        "cancel": "Cancel a run and its Slurm job.",
        "check": "Try an experiment before it is run.",
        "credentials": "List credentials and their expiry.",
        "doctor": "Check a profile's setup.",
        "envs": "Manage Python environments on the site.",
        "export": "Export a run as an RO-Crate.",
        "forwarder": "Serve gauges and accept run requests.",
        "logs": "Follow the log of a run's job.",
        "new": "Make an experiment of your own.",
        "plan": "Show what a run would do and cost.",
        "platform": "Prepare the Kubernetes platform.",
        "port-forward": "Forward the platform's ports to localhost.",
        "report": "Compare runs with the article.",
        "reproduce": "Run all notebooks and print the table.",
        "run": "Run a target's notebook.",
        "runs": "List runs and their state.",
        "sandbox": "Start and stop the local services.",
        "store": "List, upload and download objects.",
        "submit": "Submit a job to Slurm at most once.",
        "submitter": "Submit requested runs to Slurm.",
        "sweep": "Run many trials as one run.",
        "sync": "Send waiting runs to MLflow.",
        "tidy": "List and remove old files of runs.",
        "vm": "Plan and set up the cloud VM.",
    }
    renamed: ClassVar[dict[str, str]] = {
        "forward": "port-forward",
        "jobs": "runs",
        "token": "credentials",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List all commands; those not imported yet and those of entry points too."""
        return sorted([*self.lazy, *_added()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its present or its old name."""
        name = self.renamed.get(cmd_name, cmd_name)
        places = self.lazy if name in self.lazy else _added()
        if name not in places:
            return None
        module, _, attribute = places[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            names = self.list_commands(ctx)
            formatter.write_dl([(name, self.summaries.get(name, "")) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called, and print the new name of one that was renamed."""
        if args and (new := self.renamed.get(args[0])):
            warn_renamed(f"kit {args[0]}", f"kit {new}")
        return super().resolve_command(ctx, args)


def _added() -> dict[str, str]:
    """Return the commands that the installed distribution adds: name -> place."""
    from importlib import metadata

    try:
        points = metadata.distribution("kit").entry_points
    except metadata.PackageNotFoundError:
        return {}
    return {point.name: point.value for point in points.select(group="kit.commands")}


@click.group(cls=LazyGroup, context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="kit")
def cli() -> None:
    """Run one experiment on three targets.

    The targets are this machine, a cloud platform and a supercomputer. Exit codes: 0 done,
    1 failed, 2 wrong usage or settings, 3 state unknown (no contact; ask again).

    \b
    Example:
      kit run local -p epochs 1
    """


def main() -> None:
    """Run the command; an error becomes its message and its exit code."""
    try:
        code = cli(standalone_mode=False)
    except KitError as err:
        click.echo(f"kit: {err}", err=True)
        sys.exit(err.exit_code)
    except click.ClickException as err:
        err.show()
        sys.exit(2)
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] in ("", "kit", "kit_sandbox"):
            raise
        text = f"kit: this command needs the package {err.name!r}, which is not installed"
        click.echo(f"{text}\n  next: {EXTRAS}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("kit: interrupted; run the same command again to resume", err=True)
        click.echo(
            "  jobs on a site keep running: kit runs lists them, kit cancel RUN ends one", err=True
        )
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
