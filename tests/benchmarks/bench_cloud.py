"""What a cloud run costs beside its training: the article's run had 289 s.

Needs the sandbox. The data set is the official one: 60,000 + 10,000 images, one epoch.
Usage: make bench NAMES=cloud
"""

import statistics
import sys
import tempfile
import uuid
from pathlib import Path

import measured
from idx_files import as_data, official_images

from kit.base.settings import Settings, load
from kit.experiments import Thresholds, load_experiment
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.running import Data
from kit.runs.objects import StageStore
from kit.runs.outcome import Outcome, arguments_of, run_pipeline
from kit.store import ObjectStore, bucket_name, open_store

AIM_S, ARTICLE_S, RUNS = 7.0, 1309.7505 - 1020.58485, 3


def main() -> None:
    loaded = load(sys.argv[1] if len(sys.argv) > 1 else "sandbox")
    bucket = bucket_name(loaded, "pipeline")
    store = open_store(loaded, bucket)
    store.ensure_bucket()
    data = as_data(official_images())
    outcomes = [once(loaded, store, bucket, data) for _ in range(RUNS)]
    rest = [one.pipeline_s - one.trained["training"]["total-seconds"] for one in outcomes]
    measured.show("pipeline beside its training", rest, "s", AIM_S)
    measured.show("the same, beside the article's", statistics.median(rest) / ARTICLE_S, "")
    for name, seconds in outcomes[-1].seconds().items():
        print(f"  {name:22} {seconds:7.2f} s")
    print(f"MLflow: {outcomes[-1].mlflow['state']} {outcomes[-1].mlflow['reason']}")


def once(loaded: Settings, store: ObjectStore, bucket: str, data: Data) -> Outcome:
    """Run the pipeline once, as the notebook does."""
    objects = StageStore(store, f"cloud-{uuid.uuid4().hex[:12]}-1")
    objects.put_data(data)
    given = arguments_of(
        loaded,
        objects.run_id,
        bucket,
        data.hash,
        load_experiment("fashion_mnist"),
        Parameters(epochs=1).model_dump(),
        Thresholds({"accuracy": 0, "precision": 0, "recall": 0}),
    )
    with tempfile.TemporaryDirectory() as folder:
        return run_pipeline(loaded, objects, given, Path(folder))


if __name__ == "__main__":
    main()
