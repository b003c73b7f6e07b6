"""Commands that run the experiment: `kit run`, `kit plan`, `kit reproduce`, `kit sync`."""

import re
import time
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import click

from kit.base import CredentialRefused, Unreachable, UsageError, process_began
from kit.cli.options import TARGETS, echo_json, json_option, profile_option

if TYPE_CHECKING:
    from kit.base.settings import Settings


class BillingUnits(click.ParamType[Decimal]):
    """A number of billing units: finite, not negative."""

    name = "BU"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Decimal:
        """Return the number; a value that is not one is wrong usage of this option."""
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("nan")
        if not number.is_finite() or number < 0:
            self.fail(f"{value!r} is not a number of billing units, such as 20.5", param, ctx)
        return number


class RunCommand(click.Command):
    """A command that accepts `-p name=value` beside `-p name value`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split the value of each `-p` at its first equals sign, then parse as usual."""
        words: list[str] = []
        for word in args:
            pair = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL)
            split = bool(words) and words[-1] in ("-p", "--parameter") and pair
            words += pair.groups() if split and pair else [word]
        return super().parse_args(ctx, words)


@click.command("run", cls=RunCommand)
@click.argument("target", type=TARGETS, metavar="TARGET")
@click.option(
    "-p",
    "--parameter",
    "pairs",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Parameter of the notebook, also as NAME=VALUE.  [default: the notebook's]",
)
@profile_option
@click.option("--fresh", is_flag=True, help="Start a new run.  [default: resume an unfinished run]")
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Number of runs to execute, one after another.",
)
@click.option(
    "--budget",
    type=BillingUnits(),
    metavar="BU",
    help="Refuse a run that may cost more.  [default: the profile's budget]",
)
def run_command(
    target: str,
    pairs: tuple[tuple[str, str], ...],
    profile: str | None,
    fresh: bool,
    repeat: int,
    budget: Decimal | None,
) -> None:
    """Run a target's notebook.

    Executes the notebook of TARGET (local, cloud or cloud-hpc) with papermill and writes the
    results below results/PROFILE/. An interrupted run resumes when the same command is called
    again.

    \b
    Example:
      kit run local -p epochs 1
    """
    from kit.base.settings import load
    from kit.report.article import reproduce
    from kit.runs import notebooks

    if "profile" in dict(pairs):
        raise UsageError("-p profile is not accepted", next_step="use --profile NAME")
    settings = load(profile)
    _refuse_unaffordable(settings, target, budget)
    values = notebooks.parse_values(pairs) | ({"fresh": True} if fresh else {})
    record = None
    for number in range(1, repeat + 1):
        text = f"kit run {target}: run {number} of {repeat}, profile {settings.profile}"
        click.echo(text, err=True)
        began = process_began() if number == 1 else None
        record = notebooks.run_notebook(settings, target, values, began)
        click.echo(reproduce.summary(record))
        if record:
            click.echo(f"  files: {settings.profile_dir / 'runs' / record['run']}")
            click.echo(f"  next: kit report, the article's table with it; kit bill {record['run']}")
    if repeat > 1 and record:
        click.echo(reproduce.repeated(settings, record))


def _refuse_unaffordable(settings: "Settings", target: str, budget: Decimal | None) -> None:
    """Raise UsageError for a run over its budget, or over the units that the project has left."""
    from kit.billing import check_affordable, refuse_over

    limit = "" if budget is None else str(budget)
    refuse_over(settings, target, limit)
    try:
        check_affordable(settings, None, target, limit)
    except (Unreachable, CredentialRefused) as err:
        click.echo(f"note: the units left in the project are not known: {err}", err=True)


@click.command("sweep", cls=RunCommand)
@click.argument("target", type=TARGETS, metavar="TARGET")
@click.option(
    "-p",
    "--parameter",
    "pairs",
    nargs=2,
    multiple=True,
    metavar="NAME VALUES",
    help="Values of a parameter: 0.001,0.01 or 1..5 or log:0.0001..0.1/4; one value is fixed.  "
    "[default: the notebook's]",
)
@profile_option
@click.option("--experiment", metavar="NAME", help="Experiment.  [default: the notebook's]")
@click.option(
    "--trials",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="Draw N trials at random.  [default: every combination]",
)
@click.option(
    "--at-once",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Number of trials that run at the same time.",
)
@click.option("--stop-early", is_flag=True, help="End the worse half at each halving.")
@click.option(
    "--trial-limit",
    default=0.0,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End a trial that takes longer.  [default: no limit]",
)
@click.option("--fresh", is_flag=True, help="Start a new sweep.  [default: resume it]")
@click.option(
    "--budget",
    type=BillingUnits(),
    metavar="BU",
    help="Refuse a sweep that may cost more.  [default: the profile's budget]",
)
def sweep_command(
    target: str,
    pairs: tuple[tuple[str, str], ...],
    profile: str | None,
    experiment: str | None,
    budget: Decimal | None,
    trial_limit: float,
    **options: Any,
) -> None:
    """Run many trials as one run.

    Trains the experiment with every combination of the given values, on this machine or, with
    the target cloud-hpc, in one batch job. A sweep that was interrupted or cancelled runs the
    missing trials only when the same command is called again.

    \b
    Example:
      kit sweep local -p learning_rate 0.001,0.01 -p seed 1..3
    """
    from kit.base.settings import load
    from kit.runs import notebooks
    from kit.sweeps.space import named

    settings = load(profile)
    _refuse_unaffordable(settings, target, budget)
    ranges = [pair for pair in pairs if "," in pair[1] or ".." in pair[1]]
    space = {name: text for name, text in ranges if name != "experiment"}  # that may be ../own.py
    fixed = notebooks.parse_values(pair for pair in pairs if pair[0] not in space)
    values = {"target": target, "space": space, "trial_limit_s": trial_limit, "parameters": {}}
    values |= {**fixed, **options}
    values |= {"experiment": experiment} if experiment else {}
    record = notebooks.run_notebook(settings, "sweep", values, process_began())
    if record:
        counts, folder = record["sweep"], settings.profile_dir / "runs" / record["run"]
        done = f"{counts['done']} of {counts['trials']} trials done"
        click.echo(f"{record['run']}: {done}, {counts['failed']} failed")
        primary, metrics = record.get("primary", ""), record.get("metrics", {})
        score = f": {primary} {metrics[primary]:.4g}" if primary in metrics else ""
        click.echo(f"  best: {named(counts['best'])}{score}")
        if counts["not_run"]:
            click.echo(f"  {counts['not_run']} not run: the same command runs them")
        click.echo(f"  files: {folder} (trials.json, sweep.ipynb)")
        click.echo(f"  next: open sweep.ipynb there; kit bill {record['run']}")


@click.command("plan")
@click.argument("target", type=TARGETS, metavar="TARGET")
@profile_option
def plan_command(target: str, profile: str | None) -> None:
    """Show what a run would do and cost.

    Prints the steps of TARGET (local, cloud or cloud-hpc), the batch script, an upper estimate of
    the cost and whether the credentials last. Nothing is started or changed.

    \b
    Example:
      kit plan cloud-hpc --profile roihu
    """
    from kit.base.settings import load
    from kit.notebook import plan

    for title, text in plan.plan_sections(load(profile), target, time.time()):
        click.echo(f"# {title}\n\n{text}\n")


@click.command("reproduce")
@profile_option
@click.pass_context
def reproduce_command(ctx: click.Context, profile: str | None) -> None:
    """Run all notebooks and print the table.

    Starts the sandbox where the profile needs it, runs every notebook, prints the article's
    table with the new runs beside it and writes the reproduction report.

    \b
    Example:
      kit reproduce
    """
    from kit.base.settings import load
    from kit.cli.main import cli
    from kit.report.article import reproduce

    def start_sandbox() -> None:
        """Call `kit sandbox up`, which another package brings."""
        command = cli.get_command(ctx, "sandbox")
        if command is None:
            raise UsageError("the sandbox is not installed", next_step="make setup")
        command.main(["up"], standalone_mode=False)

    ctx.exit(reproduce.reproduce(load(profile), click.echo, start_sandbox))


@click.command("sync")
@profile_option
@json_option
def sync_command(profile: str | None, as_json: bool) -> None:
    """Send waiting runs to MLflow.

    A run that could not be logged because its MLflow server did not answer waits on disk.
    Repeating the command is harmless: a run is logged once.

    \b
    Example:
      kit sync --profile sandbox
    """
    from kit.base.settings import load
    from kit.tracking import sync

    results, errors = sync(load(profile))
    if as_json:
        echo_json(results)
    for result in [] if as_json else results:
        click.echo(f"{result.run_id}: {result.state} {result.link or result.reason}")
    click.echo(f"{len(results)} run(s) sent or checked", err=True)
    if errors:
        raise errors[0]
