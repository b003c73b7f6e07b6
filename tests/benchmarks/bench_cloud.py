"""What a cloud run costs beside its training: the aim is 12 s (the article's run: 289 s).

Needs the sandbox. The data set is the official one: 60,000 + 10,000 images, one epoch.
Usage: python tests/benchmarks/bench_cloud.py [PROFILE]
"""

import sys
import tempfile
import uuid
from pathlib import Path

from idx_files import as_data, official_images

from kit.base.settings import load
from kit.experiments import Thresholds, load_experiment
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.objects import StageStore
from kit.runs.outcome import arguments_of, run_pipeline
from kit.store import bucket_name, open_store

AIM_S, ARTICLE_S = 12.0, 1309.7505 - 1020.58485


def main() -> None:
    loaded = load(sys.argv[1] if len(sys.argv) > 1 else "sandbox")
    bucket = bucket_name(loaded, "pipeline")
    store = open_store(loaded, bucket)
    store.ensure_bucket()
    objects = StageStore(store, f"cloud-{uuid.uuid4().hex[:12]}-1")
    data = as_data(official_images())
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
        outcome = run_pipeline(loaded, objects, given, Path(folder))
    rest = outcome.pipeline_s - outcome.trained["training"]["total-seconds"]
    print(f"pipeline {outcome.pipeline_s:.1f} s, of which not training {rest:.1f} s")
    print(f"  aim {AIM_S:.0f} s, ratio to aim {rest / AIM_S:.2f}")
    print(f"  article {ARTICLE_S:.0f} s, ratio to the article {rest / ARTICLE_S:.3f}")
    for name, seconds in outcome.seconds().items():
        print(f"  {name:22} {seconds:7.2f} s")
    print(f"MLflow: {outcome.mlflow['state']} {outcome.mlflow['reason']}")


if __name__ == "__main__":
    main()
