"""What MLflow gets of a cloud run, from the records of its two stages."""

import time
from collections.abc import Sequence
from pathlib import Path

from kit import runlog
from kit.fashion_mnist import LABELS
from kit.records import Json
from kit.runlog import RunLog

EXPERIMENT, MODEL = "cloud-fmnist-pipeline", "CLOUD-FMNIST-CNN"


def run_log(
    run_id: str,
    trained: Json,
    evaluated: Json,
    losses: Sequence[tuple[int, float]],
    work: Path,
) -> RunLog:
    """Say what MLflow gets of a run, from its two records and the files in `work`.

    The model's file is always logged; it is registered when the gates were passed.
    """
    end_ms = int(trained["training"]["end-time"] * 1000)
    passed = evaluated["gates"]["passed"]
    points = runlog.performance_metrics(evaluated["performance"], LABELS, end_ms)
    seconds = ("training-seconds", trained["training"]["total-seconds"], 0, end_ms)
    model = str(work / "model.safetensors")
    files = ((str(work / "predictions.npy"), "predicted_qualities"),)
    return RunLog(
        experiment=EXPERIMENT,
        run_name=run_id,
        run_id=run_id,
        start_ms=int(trained["time"]["start-time"] * 1000),
        end_ms=int(time.time() * 1000),
        params=runlog.hyperparameters(trained["hyperparameters"])
        | {f"gate-{kind}": str(least) for kind, least in evaluated["gates"]["thresholds"].items()},
        metrics=(*points, seconds, *(("loss", loss, step, end_ms) for step, loss in losses)),
        tags={
            **evaluated["tags"],
            "kit.target": "cloud",
            "kit.data": trained["data"]["source"],
            "kit.gates": "passed" if passed else "not passed",
        },
        artifacts=files if passed else (*files, (model, "model")),
        model=(MODEL, model) if passed else None,
    )
