"""Lines of a history, for the report."""

from kit.base import append_history

DATA = {"hash": "d", "title": "own files 720 + 180", "test_items": 180, "balanced": True}


def add_run(loaded, target, training_s, accuracy=0.5, number=1, **more):
    loaded.profile_dir.mkdir(parents=True, exist_ok=True)
    figures = {"training_s": training_s, "accuracy": accuracy}
    if target != "local":
        figures |= {"pipeline_s": training_s * 2, "cloud_bu": 0.25}
    line = {
        "run": f"{target}-0123456789ab-{number}",
        "target": target,
        "parameters": {"threads": 1, "configured": False},
        "figures": figures,
        "data": DATA,
        "host": {"cpu": "A CPU"},
        "seconds": {"training": training_s, "data": 1.0, "new word": 2.0},
    }
    append_history(loaded.profile_dir / "history.jsonl", {**line, **more})


def add_trial(
    loaded, state="done", metric=0.5, primary="score", experiment="digits", number=7, **values
):
    row = {"run": f"local-0123456789ab-{number}", "trial": str(values), "experiment": experiment}
    row |= {"target": "local", "primary": primary, "state": state, "values": values}
    row["metrics"] = dict.fromkeys(("score", "accuracy"), metric) if state == "done" else {}
    loaded.profile_dir.mkdir(parents=True, exist_ok=True)
    append_history(loaded.profile_dir / "trials.jsonl", row)


def add_sweep(loaded, target, parameters, metrics, number=7, experiment="fashion_mnist"):
    """A sweep over seeds, a trial for each metric."""
    line = {"run": f"local-0123456789ab-{number}", "target": target, "experiment": experiment}
    line |= {"parameters": {**parameters, "seed": 42, "workers": 2, "sweep": "{}"}}
    line |= {"sweep": {"trials": len(metrics)}, "data": DATA, "figures": {}}
    loaded.profile_dir.mkdir(parents=True, exist_ok=True)
    append_history(loaded.profile_dir / "history.jsonl", line)
    more = {"primary": "accuracy", "experiment": experiment, "number": number}
    for seed, metric in enumerate(metrics):
        add_trial(loaded, metric=metric, seed=seed, **more)
