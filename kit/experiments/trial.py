"""Try an experiment before it is run: in a clean process, killed halfway, then once more.

`python -m kit.experiments.trial FOLDER` is the clean process; it reads what to do from the file
`task.json` in the folder and leaves `result.json` there.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import DataError, Json, UsageError, read_json, temporary_folder, write_json
from kit.experiments import running
from kit.experiments.contract import Context, files_below, hash_of
from kit.experiments.loader import load_experiment

KILLED = 75
KILL_HALFWAY, WHOLE = "halfway", "whole"


@dataclass(frozen=True)
class Checked:
    """The result of a trial of an experiment.

    `resumed_step` is where the training went on after it had been killed (0: from the
    beginning), `reported` whether it calls ctx.report. `problems` would fail on another target.
    """

    data: str
    reported: bool
    resumed_step: int
    seconds: float
    metrics: Mapping[str, float]
    files: tuple[str, ...]
    problems: tuple[str, ...]


def check(experiment: str | Path, source: Path | None = None, **parameters: Any) -> Checked:
    """Train an experiment in a clean process, kill it halfway, train again and evaluate.

    `experiment` is a name or the path of a file, `source` the person's own data folder. Raises
    the experiment's own error, as UsageError with its last line, and DataError for what its
    functions return or leave that is not allowed.
    """
    loaded = load_experiment(str(experiment))
    with temporary_folder() as folder:
        return _check(loaded.reference, folder, source, parameters)


def _check(reference: str, folder: Path, source: Path | None, parameters: Json) -> Checked:
    task = {
        "experiment": reference,
        "source": str(source.absolute()) if source else "",
        "parameters": parameters,
    }
    reported = _child(folder, {**task, "part": KILL_HALFWAY}) == KILLED
    _child(folder, {**task, "part": WHOLE})
    result = read_json(folder / "result.json")
    problems = []
    if left := sorted(files_below(folder / "cwd")):
        problems.append(f"it writes into the working folder: {', '.join(left)[:200]}")
    if not result["data_kept"]:
        problems.append("its training changes files of ctx.data: other runs read them too")
    return Checked(
        result["data"],
        reported,
        result["resumed_step"],
        result["seconds"],
        result["metrics"],
        tuple(result["files"]),
        tuple(problems),
    )


def _child(folder: Path, task: Json) -> int:
    """Run a part in a process of its own, in an empty folder; return KILLED or 0."""
    write_json(folder / "task.json", task)
    (folder / "cwd").mkdir(exist_ok=True)
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "kit.experiments.trial", str(folder)],
        cwd=folder / "cwd",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode in (0, KILLED):
        return done.returncode
    tried = f"check {task['experiment']}"
    failure = read_json(folder / "failure.json") if (folder / "failure.json").exists() else None
    if failure:
        raise {"DataError": DataError}.get(failure["kind"], UsageError)(*failure["parts"])
    sys.stderr.write(done.stderr)
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    raise UsageError(tried, last, "correct the line that the traceback names")


def _work(folder: Path) -> None:
    """Do one part of the trial, in the clean process."""
    task = read_json(folder / "task.json")
    experiment = load_experiment(task["experiment"])
    parameters = experiment.parameters(**task["parameters"])
    halfway = task["part"] == KILL_HALFWAY

    def kill(step: int, steps: int, loss: float) -> None:
        """End this process halfway, as a kill would."""
        if 2 * step >= steps:
            os._exit(KILLED)

    if halfway:
        source = Path(task["source"]) if task["source"] else None
        data = running.make_data(experiment, folder / "data", source)
        kept = {"folder": str(data.folder), "hash": data.hash, "title": data.info.title}
        write_json(folder / "data.json", kept)
        running.train(experiment, Context(data.folder, folder, parameters, show=kill))
        return
    kept = read_json(folder / "data.json")
    ctx = Context(Path(kept["folder"]), folder, parameters)
    trained = running.train(experiment, ctx)
    metrics = running.evaluate(experiment, ctx)
    write_json(
        folder / "result.json",
        {
            "data": kept["title"],
            "data_kept": hash_of(files_below(ctx.data)) == kept["hash"],
            "resumed_step": trained.resumed_step,
            "seconds": trained.seconds,
            "metrics": metrics,
            "files": [*running.out_files(ctx.out)],
        },
    )


def main(folder: Path) -> None:
    """Do one part; leave an error of the kit as a file, so that it is raised as it is."""
    try:
        _work(folder)
    except (UsageError, DataError) as err:
        parts = [err.tried, err.got, err.next_step]
        write_json(folder / "failure.json", {"kind": type(err).__name__, "parts": parts})
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
