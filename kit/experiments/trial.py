"""Try an experiment before it is run: in a clean process, killed halfway, then once more.

`python -m kit.experiments.trial FOLDER` is the clean process; it reads what to do from the file
`task.json` in the folder and leaves `result.json` there.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import (
    DataError,
    Json,
    UsageError,
    read_json,
    temporary_folder,
    time_record,
    write_json,
    write_text,
)
from kit.experiments import running
from kit.experiments.contract import FORKED, Context, files_below, hash_of
from kit.experiments.loader import load_experiment

KILLED = 75
KILL_HALFWAY, WHOLE = "halfway", "whole"
TASK, RESULT, FAILURE, DATA = "task.json", "result.json", "failure.json", "data.json"
STDERR, BACKWARDS = "stderr.txt", "backwards.txt"
OWN_NAMES = {TASK, RESULT, FAILURE, DATA, STDERR, BACKWARDS, "cwd", "data", "out", "checkpoint"}


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
    result = read_json(folder / RESULT)
    return Checked(
        result["data"],
        reported,
        result["resumed_step"],
        result["seconds"],
        result["metrics"],
        tuple(result["files"]),
        tuple(_problems(folder, result)),
    )


def _problems(folder: Path, result: Json) -> Iterator[str]:
    """Yield what the trial left where nothing must be left, and what fails on other targets."""
    if left := sorted(files_below(folder / "cwd")):
        yield f"it writes into the working folder: {', '.join(left)[:200]}"
    data_folder = Path(read_json(folder / DATA)["folder"]).name
    outside = {path.name for path in folder.iterdir()} - OWN_NAMES
    outside |= {path.name for path in (folder / "data").iterdir()} - {data_folder}
    if outside:
        yield f"it writes outside ctx.out: {', '.join(sorted(outside))[:200]}"
    if not result["data_kept"]:
        yield "its training changes files of ctx.data: other runs read them too"
    if (folder / BACKWARDS).exists():
        said = (folder / BACKWARDS).read_text(encoding="utf-8")
        yield f"ctx.report is called with {said}: points are lost, as steps must grow"
    if FORKED in (folder / STDERR).read_text(encoding="utf-8", errors="replace"):
        yield "it forks (os.fork) and the copy returns, too: end the copy with os._exit"


def _child(folder: Path, task: Json) -> int:
    """Run a part in a process of its own, in an empty folder; return KILLED or 0."""
    write_json(folder / TASK, task)
    (folder / "cwd").mkdir(exist_ok=True)
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / STDERR).open("ab") as stderr:  # a pipe would wait for processes that it leaves
        code = subprocess.run(
            [sys.executable, "-m", "kit.experiments.trial", str(folder)],
            cwd=folder / "cwd",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        ).returncode
    if code in (0, KILLED):
        return code
    if (folder / FAILURE).exists():
        failure = read_json(folder / FAILURE)
        sys.stderr.write(failure["traceback"])
        raise {"DataError": DataError}.get(failure["kind"], UsageError)(*failure["parts"])
    text = (folder / STDERR).read_text(encoding="utf-8", errors="replace")
    sys.stderr.write(text)
    last = (text.strip().splitlines() or [""])[-1]
    got = f"its process ended with the exit code {code}: {last}".removesuffix(": ")
    if code < 0:
        got = f"its process was ended by {signal.Signals(-code).name}"
    raise UsageError(f"check {task['experiment']}", got, "let its functions return or raise")


def _work(folder: Path) -> None:
    """Do one part of the trial, in the clean process."""
    task = read_json(folder / TASK)
    experiment = load_experiment(task["experiment"])
    parameters = experiment.parameters(**task["parameters"])
    halfway, last = task["part"] == KILL_HALFWAY, 0

    def show(step: int, steps: int, loss: float) -> None:
        """Note a step that is not above the last one; end this process halfway, as a kill would."""
        nonlocal last
        if step <= last:
            write_text(folder / BACKWARDS, f"step {step} after step {last}")
        last = step
        if halfway and 2 * step >= steps:
            os._exit(KILLED)

    if halfway:
        source = Path(task["source"]) if task["source"] else None
        data = running.make_data(experiment, folder / "data", source)
        kept = {"folder": str(data.folder), "hash": data.hash, "title": data.info.title}
        write_json(folder / DATA, kept)
        running.train(experiment, Context(data.folder, folder, parameters, show=show))
        return
    kept = read_json(folder / DATA)
    ctx = Context(Path(kept["folder"]), folder, parameters, show=show)
    trained = running.train(experiment, ctx)
    metrics = running.evaluate(experiment, ctx)
    experiment.figures(ctx)
    times = time_record("local-model-training", trained.start, trained.end, trained.seconds)
    experiment.published("local", {"metrics": metrics, "time": times})
    result = {
        "data": kept["title"],
        "data_kept": hash_of(files_below(ctx.data)) == kept["hash"],
        "resumed_step": trained.resumed_step,
        "seconds": trained.seconds,
        "metrics": metrics,
        "files": [*running.out_files(ctx.out)],
    }
    write_json(folder / RESULT, result)


def _own_traceback(err: Exception) -> str:
    """Return the traceback of an experiment's error, from its own first line on."""
    ours = {__file__, running.__file__}
    frames = err.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in ours:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(err), err, frames or err.__traceback__))


def main(folder: Path) -> int:
    """Do one part; leave an error as a file, so that it is raised by the first process."""
    try:
        _work(folder)
    except (UsageError, DataError) as err:
        parts, shown = [err.tried, err.got, err.next_step], ""
        kind = type(err).__name__
    except Exception as err:  # noqa: BLE001 - whatever the experiment's own code raises
        kind, shown = "UsageError", _own_traceback(err)
        experiment = read_json(folder / TASK)["experiment"]
        got = f"{type(err).__name__}: {err}"
        parts = [f"check {experiment}", got, "correct the line that the traceback names"]
    else:
        return 0
    write_json(folder / FAILURE, {"kind": kind, "parts": parts, "traceback": shown})
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
