"""Commands for an experiment of one's own: `kit new`, `kit check`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kit.experiments import Experiment


@click.command("new")
@click.argument("name")
def new_command(name: str) -> None:
    """Make an experiment of your own.

    Writes NAME.py into this folder: a small experiment that runs as it is, to be changed. NAME
    has small letters, digits and single underscores.

    \b
    Example:
      kit new my_model
    """
    from importlib import resources

    from kit.base import UsageError, write_text
    from kit.experiments import load_experiment
    from kit.experiments.loader import experiment_names, legal_name

    path = Path(f"{legal_name(name)}.py")
    if name in experiment_names() or path.exists():
        raise UsageError(f"make {path}", "an experiment of that name exists", "use another name")
    text = resources.files("kit.experiments").joinpath("new.py.j2").read_text(encoding="utf-8")
    write_text(path, text.replace("{{ name }}", name))
    load_experiment(str(path))
    click.echo(f"wrote {path}\nnext: kit check {name}")
    click.echo(f"then: kit run local --profile laptop -p experiment {name}")


@click.command("check")
@click.argument("experiment")
def check_command(experiment: str) -> None:
    """Try an experiment before it is run.

    Makes the data set of EXPERIMENT (a name or a file), trains with the default parameters,
    interrupts the training halfway and resumes it, and evaluates, all in a temporary folder.

    \b
    Example:
      kit check my_model
    """
    from kit.base import temporary_folder
    from kit.experiments import load_experiment

    loaded = load_experiment(experiment)
    click.echo(f"{loaded.name}: its five names are there; code {loaded.code[:12]}")
    with temporary_folder() as folder:
        for sentence in _tried(loaded, folder):
            click.echo(sentence)


def _tried(experiment: "Experiment", folder: Path) -> list[str]:
    """Return what happened in each step. Raises the error of the step that failed."""
    from kit.base.settings import load
    from kit.experiments import Context, running

    def interrupt(step: int, steps: int, loss: float) -> None:
        """Interrupt the training halfway."""
        if 2 * step >= steps:
            raise KeyboardInterrupt

    data = running.make_data(experiment, folder / "cache", load().data_dir)
    sentences = [f"data: {data.info.title}"]
    parameters = experiment.parameters()
    try:
        running.train(experiment, Context(data.folder, folder, parameters, show=interrupt))
    except KeyboardInterrupt:
        sentences.append("training: interrupted halfway")
    else:
        sentences.append("training: it never calls ctx.report, so its progress is not shown")
    ctx = Context(data.folder, folder, parameters)
    trained = running.train(experiment, ctx)
    resumed = (
        f"resumed after step {trained.resumed_step}"
        if trained.resumed_step
        else ("started from the beginning: it keeps nothing in ctx.checkpoint")
    )
    sentences.append(f"again: {resumed}, {trained.seconds:.1f} s")
    metrics = running.evaluate(experiment, ctx)
    sentences.append(
        "metrics: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    )
    sentences.append(f"files: {', '.join(running.out_files(ctx.out))}")
    return sentences
