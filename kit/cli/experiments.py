"""Commands for an experiment of one's own: `kit new`, `kit check`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kit.experiments.trial import Checked


@click.command("new")
@click.argument("name")
def new_command(name: str) -> None:
    """Make an experiment of your own.

    Writes into this folder NAME.py, a small experiment that runs as it is, to be changed; its
    tests, a notebook, and a README.md where there is none. NAME has small letters, digits and
    single underscores.

    \b
    Example:
      kit new my_model
    """
    from importlib import resources

    from kit.base import UsageError, write_text
    from kit.experiments import load_experiment
    from kit.experiments.loader import experiment_names, legal_name

    legal_name(name)
    files = {
        "module.py": Path(f"{name}.py"),
        "test.py": Path(f"test_{name}.py"),
        "notebook.ipynb": Path(f"{name}.ipynb"),
        "readme.md": Path("README.md"),
    }
    taken = [str(path) for path in list(files.values())[:-1] if path.exists()]
    if name in experiment_names() or taken:
        got = f"{', '.join(taken)} exists" if taken else "an experiment of that name exists"
        raise UsageError(f"make the experiment {name}", got, "use another name")
    for template, path in files.items():
        if not path.exists():
            source = resources.files("kit.experiments").joinpath("new", f"{template}.j2")
            write_text(path, source.read_text(encoding="utf-8").replace("{{ name }}", name))
            click.echo(f"wrote {path}")
    load_experiment(f"{name}.py")
    click.echo(f"next: kit check {name}")
    click.echo(f"then: kit run local --profile laptop -p experiment {name}")


@click.command("check")
@click.argument("experiment")
def check_command(experiment: str) -> None:
    """Try an experiment before it is run.

    Makes the data set of EXPERIMENT (a name or a file), trains with the default parameters, kills
    the training halfway and resumes it, and evaluates, all in a clean process and a temporary
    folder. Reports what would fail on another target.

    \b
    Example:
      kit check my_model
    """
    from kit.base import UsageError
    from kit.base.settings import load
    from kit.experiments import load_experiment
    from kit.experiments.packages import missing_packages
    from kit.experiments.trial import check
    from kit.submitter.env import site_packages

    loaded = load_experiment(experiment)
    click.echo(f"{loaded.name}: its five names are there; code {loaded.code[:12]}")
    checked = check(loaded.reference, load().data_dir)
    for sentence in _sentences(checked):
        click.echo(sentence)
    missing = missing_packages(loaded.sources, site_packages(loaded.requirements))
    problems = [*checked.problems]
    problems += [
        f"a site does not install {package}, which it imports ({module}): add it to REQUIREMENTS,"
        " or import it in the function `data`, which does not run there"
        for module, package in missing.items()
    ]
    if problems:
        raise UsageError(
            f"check {loaded.name}", "; ".join(problems), "correct these, then check again"
        )


def _sentences(checked: "Checked") -> list[str]:
    """Return what happened in each step."""
    first = "killed halfway" if checked.reported else "it never calls ctx.report: no progress"
    resumed = "started from the beginning: it keeps nothing in ctx.checkpoint"
    if checked.resumed_step:
        resumed = f"resumed after step {checked.resumed_step}"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in checked.metrics.items())
    return [
        f"data: {checked.data}",
        f"training: {first}",
        f"again: {resumed}, {checked.seconds:.1f} s",
        f"metrics: {metrics}",
        f"files: {', '.join(checked.files)}",
    ]
