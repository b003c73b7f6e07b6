"""The log of a run for MLflow: the training, what the job on a site used, the bill."""

import dataclasses
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from kit.base import Json
from kit.experiments.running import model_file, out_names
from kit.slurm import parse_duration, parse_time

Point = tuple[str, float, int, int]
SACCT_METRICS = {
    "elapsed": "Elapsed",
    "cpu-time": "CPUTime",
    "total-cpu": "TotalCPU",
    "ave-cpu": "AveCPU",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RunLog:
    """Everything one run logs. Times in ms since 1970; a point is (key, value, step, time).

    `status` is FINISHED or FAILED, `artifacts` are (local file, artifact folder), `model` is
    (registered name, local safetensors file) or None; the model's file goes to `model/`; `parent`
    is the id of the run below which MLflow shows it. The fields are checked, as they may come from
    a JSON file: TypeError or ValueError.
    """

    experiment: str
    run_name: str
    run_id: str
    start_ms: int
    end_ms: int
    status: str = "FINISHED"
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[Point, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[tuple[str, str], ...] = ()
    model: tuple[str, str] | None = None
    parent: str = ""

    @property
    def target(self) -> str:
        """The target of the run, from its id."""
        return target_of(self.run_id)

    def merged(self, later: "RunLog") -> "RunLog":
        """Return this log with a later one of the same run."""
        return dataclasses.replace(
            later,
            params={**self.params, **later.params},
            metrics=tuple(dict.fromkeys(self.metrics + later.metrics)),
            tags={**self.tags, **later.tags},
            artifacts=tuple(dict.fromkeys(self.artifacts + later.artifacts)),
            model=later.model or self.model,
        )


def metric_points(metrics: Mapping[str, float], timestamp_ms: int) -> tuple[Point, ...]:
    """Return the points of an experiment's metrics."""
    return tuple((name, float(value), 0, timestamp_ms) for name, value in metrics.items())


def mlflow_params(values: Mapping[str, object]) -> dict[str, str]:
    """Return an experiment's parameters for MLflow: `hp-` before each name, values as text."""
    return {f"hp-{name}": str(value) for name, value in values.items()}


def target_of(run_id: str) -> str:
    """Return the target of a run, which its id begins with."""
    return run_id.rsplit("-", 2)[0]


def experiment_of(target: str, label: str) -> str:
    """Return the MLflow experiment of a target and of an experiment's label."""
    return f"local-{label}" if target == "local" else f"{target}-{label}-pipeline"


def predictions(names: Iterable[str]) -> list[str]:
    """Return those of an experiment's files that are logged beside the model: its predictions."""
    return [name for name in names if Path(name).stem == "predictions"]


def run_log(
    run_id: str, trained: Json, evaluated: Json, losses: Sequence[tuple[int, float]], work: Path
) -> RunLog:
    """Return the log of a pipeline's run, from its two records.

    The experiment's files are in `work`. The model is always logged, and registered if the gates
    were passed.
    """
    about = trained["experiment"]
    names = out_names({**trained["objects"], **evaluated["objects"]})
    end_ms = int(trained["training"]["end-time"] * 1000)
    passed, target = evaluated["gates"]["passed"], target_of(run_id)
    points = metric_points(evaluated["metrics"], end_ms)
    points += (("training-seconds", trained["training"]["total-seconds"], 0, end_ms),)
    points += tuple(("loss", loss, step, end_ms) for step, loss in losses)
    params, tags = mlflow_params(trained["hyperparameters"]), dict(evaluated["tags"])
    params |= {f"gate-{kind}": str(n) for kind, n in evaluated["gates"]["thresholds"].items()}
    if slurm := trained.get("slurm"):
        used = {**sacct_metrics(slurm["sacct"]), **seff_metrics(slurm["seff"])}
        points += tuple((name, value, 0, end_ms) for name, value in used.items())
        params |= {
            "workers": str(trained["workers"]),
            "billed-project": slurm["seff"].get("Billed project", ""),
            "cluster": slurm["seff"].get("Cluster", ""),
            "status": slurm["job"]["state"],
        }
        tags |= {"kit.configured": str(trained["configured"]), "kit.try": str(slurm["try"])}
    model = str(work / model_file(names)) if model_file(names) else ""
    files = tuple((str(work / name), "predicted_qualities") for name in predictions(names))
    return RunLog(
        experiment=experiment_of(target, about["label"]),
        run_name=run_id,
        run_id=run_id,
        start_ms=int(trained["time"]["start-time"] * 1000),
        end_ms=int(time.time() * 1000),
        params=params,
        metrics=points,
        tags={
            **tags,
            "kit.target": target,
            "kit.experiment": about["name"],
            "kit.data": trained["data"]["source"],
            "kit.gates": "passed" if passed else "not passed",
        },
        artifacts=files if passed or not model else (*files, (model, "model")),
        model=(f"{target.upper()}-{about['model']}", model) if passed and model else None,
    )


def units_log(run_id: str, trained: Json, units: Mapping[str, Decimal]) -> RunLog:
    """Return the log of a run's bill, which is known last: the units of each kind.

    `Cloud BU` becomes the metric `cloud-billing-units`, `GPU-h` becomes `gpu-h`. The job's own
    units are `billing-units`, as the article logged them.
    """
    target, at = target_of(run_id), int(trained["training"]["end-time"] * 1000)
    names = {kind: kind.lower().replace(" ", "-") for kind in units}
    metrics = {
        re.sub("-bu$", "-billing-units", names[kind]): float(value) for kind, value in units.items()
    }
    job = _number(trained.get("slurm", {}).get("seff", {}).get("Non-Interactive BUs", ""))
    if job is not None:
        metrics["billing-units"] = job
    return RunLog(
        experiment=experiment_of(target, trained["experiment"]["label"]),
        run_name=run_id,
        run_id=run_id,
        start_ms=int(trained["time"]["start-time"] * 1000),
        end_ms=int(time.time() * 1000),
        metrics=tuple((name, value, 0, at) for name, value in metrics.items()),
    )


def sacct_metrics(rows: Mapping[str, Mapping[str, str | None]]) -> dict[str, float]:
    """Return the figures of each row of sacct, named `<row>-<what>-seconds`."""
    metrics: dict[str, float | None] = {}
    for number, row in rows.items():
        for name, column in SACCT_METRICS.items():
            metrics[f"{number}-{name}-seconds"] = parse_duration(row[column] or "")
        submit, start, end = (parse_time(row[name] or "") for name in ("Submit", "Start", "End"))
        if submit is not None and start is not None:
            metrics[f"{number}-total-submit-start-seconds"] = start - submit
        if start is not None and end is not None:
            metrics[f"{number}-total-start-end-seconds"] = end - start
    return {name: value for name, value in metrics.items() if value is not None}


def seff_metrics(seff: Mapping[str, str]) -> dict[str, float]:
    """Return the figures of seff; what it does not report is left out."""
    metrics: dict[str, float | None] = {
        "cpu-utilized-seconds": parse_duration(seff.get("CPU Utilized", "")),
        "cpu-efficiency-percentage": _percent(seff.get("CPU Efficiency", "")),
        "job-wall-clock-time-seconds": parse_duration(seff.get("Job Wall-clock time", "")),
        "memory-efficiency-percentage": _percent(seff.get("Memory Efficiency", "")),
        "billing-units": _number(seff.get("Non-Interactive BUs", "")),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def _percent(text: str) -> float | None:
    return _number(text.partition("%")[0])


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
