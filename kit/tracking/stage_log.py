"""What MLflow gets of a run of a pipeline: the training and, of a job on a site, what it used."""

import re
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from kit.base import Json
from kit.experiments.fashion_mnist.data import LABELS
from kit.slurm import parse_duration, parse_time
from kit.tracking import runlog
from kit.tracking.runlog import RunLog

SACCT = (("elapsed", "Elapsed"), ("cpu-time", "CPUTime"), ("total-cpu", "TotalCPU"),
         ("ave-cpu", "AveCPU"))  # fmt: skip


def experiment_of(target: str) -> str:
    """Name the experiment of a target (cloud, cloud-hpc)."""
    return f"{target}-fmnist-pipeline"


def run_log(
    run_id: str, trained: Json, evaluated: Json, losses: Sequence[tuple[int, float]], work: Path
) -> RunLog:
    """Say what MLflow gets of a run, from its two records and the files in `work`.

    The model's file is always logged; it is registered when the gates were passed.
    """
    end_ms = int(trained["training"]["end-time"] * 1000)
    passed, target = evaluated["gates"]["passed"], run_id.rsplit("-", 2)[0]
    points = runlog.performance_metrics(evaluated["performance"], LABELS, end_ms)
    points += (("training-seconds", trained["training"]["total-seconds"], 0, end_ms),)
    points += tuple(("loss", loss, step, end_ms) for step, loss in losses)
    params, tags = runlog.hyperparameters(trained["hyperparameters"]), dict(evaluated["tags"])
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
    model = str(work / "model.safetensors")
    files = ((str(work / "predictions.npy"), "predicted_qualities"),)
    return RunLog(
        experiment=experiment_of(target),
        run_name=run_id,
        run_id=run_id,
        start_ms=int(trained["time"]["start-time"] * 1000),
        end_ms=int(time.time() * 1000),
        params=params,
        metrics=points,
        tags={
            **tags,
            "kit.target": target,
            "kit.data": trained["data"]["source"],
            "kit.gates": "passed" if passed else "not passed",
        },
        artifacts=files if passed else (*files, (model, "model")),
        model=(f"{target.upper()}-FMNIST-CNN", model) if passed else None,
    )


def units_log(run_id: str, trained: Json, units: Mapping[str, Decimal]) -> RunLog:
    """Say what MLflow gets of a run's bill, which is known last: the units of each kind.

    `Cloud BU` becomes the metric `cloud-billing-units`, `GPU-h` becomes `gpu-h`.
    """
    target, at = run_id.rsplit("-", 2)[0], int(trained["training"]["end-time"] * 1000)
    names = {kind: kind.lower().replace(" ", "-") for kind in units}
    return RunLog(
        experiment=experiment_of(target),
        run_name=run_id,
        run_id=run_id,
        start_ms=int(trained["time"]["start-time"] * 1000),
        end_ms=int(time.time() * 1000),
        metrics=tuple(
            (re.sub("-bu$", "-billing-units", names[kind]), float(value), 0, at)
            for kind, value in units.items()
        ),
    )


def sacct_metrics(rows: Mapping[str, Mapping[str, str | None]]) -> dict[str, float]:
    """Give the figures of each row of sacct, named `<row>-<what>-seconds`."""
    found: dict[str, float | None] = {}
    for number, row in rows.items():
        for name, column in SACCT:
            found[f"{number}-{name}-seconds"] = parse_duration(row[column] or "")
        submit, start, end = (parse_time(row[name] or "") for name in ("Submit", "Start", "End"))
        if submit is not None and start is not None:
            found[f"{number}-total-submit-start-seconds"] = start - submit
        if start is not None and end is not None:
            found[f"{number}-total-start-end-seconds"] = end - start
    return {name: value for name, value in found.items() if value is not None}


def seff_metrics(seff: Mapping[str, str]) -> dict[str, float]:
    """Give the figures of seff; what it does not say is left out."""
    found: dict[str, float | None] = {
        "cpu-utilized-seconds": parse_duration(seff.get("CPU Utilized", "")),
        "cpu-efficiency-percentage": _percent(seff.get("CPU Efficiency", "")),
        "job-wall-clock-time-seconds": parse_duration(seff.get("Job Wall-clock time", "")),
        "memory-efficiency-percentage": _percent(seff.get("Memory Efficiency", "")),
        "billing-units": _number(seff.get("Non-Interactive BUs", "")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _percent(text: str) -> float | None:
    return _number(text.partition("%")[0])


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
