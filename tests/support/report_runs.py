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
