"""Run the notebooks by papermill: parameters checked first, the executed copy kept with its run."""

import ast
import asyncio
import contextlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.base import (
    ROOT,
    Json,
    KitError,
    Timeline,
    UsageError,
    errors,
    hide_secrets,
    read_json,
    refuse_secrets,
    temporary_folder,
    time_record,
    write_bytes,
)
from kit.base.settings import Settings
from kit.experiments import Experiment, Thresholds, load_experiment, upper_bound
from kit.runs.cells import CellProgress, cell_headings, usual_seconds
from kit.runs.history import TARGETS, RunTimeline

NOTEBOOKS = ROOT / "notebooks"
_RUN_ID = re.compile(rf"\brun ((?:{'|'.join(TARGETS)})-[0-9a-f]{{12}}-\d+)\b")
COMMAND_BEGAN = "KIT_COMMAND_BEGAN"  # set for a kernel: when `kit run` was called
# What papermill imports if it is there: clients of stores, and a grammar of addresses that takes
# more than a second. A notebook on this disk needs neither.
_NOT_NEEDED = ("azure", "boto3", "gcsfs", "github", "pyarrow", "rfc3987_syntax")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def parse_values(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read `-p NAME VALUE` pairs: Python literals where they are some, else text."""
    values = {}
    for name, text in pairs:
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = {"true": True, "false": False, "nan": float("nan")}.get(
                text.lower(), text
            )
    return values


def fill(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` as the notebook's parameters cell has them.

    Another experiment than the notebook's brings its own parameters and gates. A parameter of the
    experiment goes into the dictionary `parameters`, `min_<metric>` or, where the gate is an upper
    bound, `max_<metric>` into the dictionary `gates`. Raises UsageError for an unknown name, which
    papermill would add without a word, and for a value that is not possible.
    """
    defaults = _defaults(notebook)
    filled: dict[str, Any] = {}
    experiment = _experiment(defaults, values)
    if experiment is not None and experiment.name != defaults["experiment"]:
        own = {"parameters": experiment.parameters().model_dump(), "gates": dict(experiment.gates)}
        filled = {"experiment": experiment.reference, **{n: own[n] for n in own if n in defaults}}
        defaults |= filled
        values = {name: value for name, value in values.items() if name != "experiment"}
    fields = experiment.parameters.model_fields if experiment else {}
    gates = _gate_names(defaults.get("gates", {}))
    for name, value in values.items():
        if name in defaults:
            _check_type(notebook, name, value, defaults[name])
            filled[name] = value
        elif "parameters" in defaults and name in fields:
            filled.setdefault("parameters", dict(defaults["parameters"]))[name] = value
        elif name in gates:
            metric, bound = gates[name], upper_bound(value) if name.startswith("max_") else value
            filled.setdefault("gates", dict(defaults["gates"]))[metric] = bound
        else:
            raise UsageError(
                f"notebook {notebook.stem} has no parameter {name!r}",
                next_step=f"it has: {', '.join(_names(defaults, fields, gates))}",
            )
    if "parameters" in filled and experiment:
        filled["parameters"] = experiment.parameters(**filled["parameters"]).model_dump()
    if "gates" in filled:
        Thresholds(filled["gates"])
    return filled


def _experiment(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> Experiment | None:
    """Return the experiment that a notebook will run; None for one that runs none."""
    if "experiment" not in defaults:
        return None
    return load_experiment(str(values.get("experiment", defaults["experiment"])))


def _gate_names(gates: Mapping[str, float | str]) -> dict[str, str]:
    """Return the metric of each name that sets a gate: `min_score`, or `max_loss`."""
    return {
        f"{'max' if isinstance(bound, str) else 'min'}_{metric}": metric
        for metric, bound in gates.items()
    }


def _names(defaults: Mapping[str, Any], fields: Iterable[str], gates: Iterable[str]) -> list[str]:
    """List the names that `-p` takes."""
    names = [name for name in defaults if name not in ("parameters", "gates")]
    return [*names, *fields, *gates]


def _kind(value: object) -> str:
    """The type of a value with its article: an int, a str."""
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _check_type(notebook: Path, name: str, value: Any, default: Any) -> None:
    """Raise UsageError when a value has another type than its default; None accepts any."""
    if isinstance(default, float) and type(value) is int:
        return
    if default is not None and type(value) is not type(default):
        raise UsageError(
            f"parameter {name} of {notebook.stem} is {value!r}, {_kind(value)}",
            next_step=f"give {_kind(default)}, such as {default!r}",
        )


def _defaults(notebook: Path) -> dict[str, Any]:
    """Read the parameters cell: name -> default value."""
    cells = read_json(notebook)["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise UsageError(f"{notebook} has {len(tagged)} cells tagged `parameters`, not one")
    found = {}
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


def run_notebook(
    settings: Settings, name: str, values: Mapping[str, Any], began: float | None = None
) -> Json | None:
    """Execute a notebook; return the record of the run that it made (None without a run).

    `began` is when the person asked for it, in seconds since 1970 (None: now). The executed
    notebook goes into the run's folder, or to `results/<profile>/<name>.ipynb`.
    Raises the notebook's own failure as KitError, with the same exit code, and SecretFound for a
    notebook that shows a secret: it is not kept.
    """
    notebook = NOTEBOOKS / f"{name}.ipynb"
    if not notebook.exists():
        have = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
        raise UsageError(f"unknown notebook {name!r}", next_step=f"use: {', '.join(have)}")
    if (other := values.get("profile", settings.profile)) != settings.profile:
        raise UsageError(
            f"run {name} with -p profile {other!r} and the profile {settings.profile}",
            "budget and results belong to one profile",
            f"use --profile {other} and leave out -p profile",
        )
    if "profile" in _defaults(notebook):
        values = {"profile": settings.profile, **values}
    values = fill(notebook, values)
    began = time.time() if began is None else began
    with temporary_folder() as folder, _started_kernel(folder, began) as kernel:
        executed = folder / notebook.name
        usual_s = usual_seconds(settings, name, values)
        titles = cell_headings(read_json(notebook)["cells"])
        hide = hide_secrets(settings)
        with CellProgress(name, titles, usual_s, sys.stderr, hide=hide) as progress:
            failure = _execute(notebook, executed, values, progress, kernel)
        refuse_secrets(settings, [executed])
        run_id = _run_id(executed)
        kept = _keep(settings, executed, run_id, failure)
    if failure is not None:
        raise _notebook_error(failure, f"the cells up to there, with the traceback, are in {kept}")
    if run_id is None:
        return None
    _note_end(kept.parent)
    record: Json = read_json(kept.parent / "record.json")
    return record


def _note_end(folder: Path) -> None:
    """Add to a run's timeline the time since its last cell: the notebook was checked and kept."""
    timeline, now = RunTimeline(folder / "timeline.json"), time.time()
    timeline.load(now)
    if timeline.spans:
        end = timeline.spans[-1]["end-time"]
        timeline.add(Timeline([time_record("notebook kept", end, now)]))


@contextlib.contextmanager
def _started_kernel(folder: Path, began: float) -> Iterator[Any]:
    """Start a kernel, which gets ready while papermill is imported; end it with the block."""
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    # Over ipc ipykernel 7.4 says nothing of unencrypted TCP, and no port is opened. Without `ip`
    # jupyter_client 8 makes the sockets in the working folder, where two runs take each other's.
    clients = []

    class Kernel(AsyncKernelManager):
        """A kernel whose connections are closed with it."""

        def client(self, **options: Any) -> Any:
            """Return a new client."""
            clients.append(super().client(**options))
            return clients[-1]

    manager = Kernel(kernel_name="python3", transport="ipc", ip=str(folder / "kernel"))
    environ = {**os.environ, COMMAND_BEGAN: repr(began)}
    history = "--HistoryManager.hist_file=:memory:"
    run_sync(manager.start_kernel)(extra_arguments=[history], env=environ)
    try:
        yield manager
    finally:  # all is on disk; a graceful end takes three seconds
        run_sync(_end_tasks)()
        run_sync(manager.shutdown_kernel)(now=True)
        for client in clients:
            client.stop_channels()


async def _end_tasks() -> None:
    """End what an interrupted cell has left in the event loop.

    nbclient 0.11 waits on in it: it reports the end of the kernel as a failure, with a traceback.
    """
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _hidden(names: Iterable[str]) -> Iterator[None]:
    """Have imports in the block not find these modules, unless they are imported already."""
    hidden = dict.fromkeys(name for name in names if name not in sys.modules)
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None: it cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _execute(
    notebook: Path, executed: Path, values: Mapping[str, Any], progress: CellProgress, kernel: Any
) -> Any:
    """Run the notebook with its streams shown here; return the failure or None."""
    with warnings.catch_warnings(), _hidden(_NOT_NEEDED):
        warnings.simplefilter("ignore")  # tqdm 4.70 misses ipywidgets, which nothing here needs
        import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            dict(values),
            kernel_name="python3",
            progress_bar=False,
            on_cell_start=progress.start_cell,
            stdout_file=progress.around(sys.stdout),
            stderr_file=progress.around(sys.stderr),
            km=kernel,
        )
    except PapermillExecutionError as err:
        return err
    return None


def _run_id(executed: Path) -> str | None:
    """Return the id of the run that the notebook showed in its outputs."""
    for cell in read_json(executed)["cells"]:
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/plain", output.get("text", "")))
            if match := _RUN_ID.search(text):
                return match[1]
    return None


def _keep(settings: Settings, executed: Path, run_id: str | None, failure: Any) -> Path:
    """Move the executed notebook to its run. Raises KitError if it cannot be written there."""
    folder = settings.profile_dir
    if run_id is not None:
        folder = folder / "runs" / run_id
    kept = folder / (executed.name if failure is None else f"{executed.stem}-failed.ipynb")
    try:
        write_bytes(kept, executed.read_bytes())
    except KitError as err:
        if failure is not None:
            raise _notebook_error(failure, f"{err.tried}: {err.got}; {err.next_step}") from err
        raise
    return kept


def _notebook_error(failure: Any, next_step: str) -> KitError:
    """Turn papermill's error into the error that the cell raised."""
    kind = getattr(errors, failure.ename, None)
    text = _ANSI.sub("", failure.evalue)
    got = "" if kind else f"{failure.ename}: {text}"
    error = KitError(text if kind else "run the notebook", got, next_step)
    error.exit_code = getattr(kind, "exit_code", 1)
    return error
