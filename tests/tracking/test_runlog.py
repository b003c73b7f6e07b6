"""The value that a run logs, and the spool on disk."""

import dataclasses
import json
from pathlib import Path

import pytest

from kit.base import DataError
from kit.tracking import runlog
from kit.tracking.runlog import (
    RunLog,
    hyperparameters,
    performance_metrics,
    read_entry,
    write_entry,
)


def a_run(folder: Path, run_id: str = "local-0123456789ab-1") -> RunLog:
    """A run with every field set, its files in `folder`."""
    predictions, model = folder / "predictions.npy", folder / "model.safetensors"
    predictions.write_bytes(b"predictions")
    model.write_bytes(b"weights")
    return RunLog(
        experiment="local-fmnist",
        run_name="local training",
        run_id=run_id,
        start_ms=1_700_000_000_000,
        end_ms=1_700_000_001_500,
        status="FAILED",
        params={"hp-epochs": "5"},
        metrics=(("loss", 2.3, 2000, 1_700_000_000_500), ("loss", 0.4, 4000, 1_700_000_000_900)),
        tags={"kit.target": "local"},
        artifacts=((str(predictions), "predicted_qualities"),),
        model=("CLOUD-FMNIST-CNN", str(model)),
    )


def test_a_run_comes_back_equal_from_json(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert RunLog.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_run_without_files_or_model_comes_back_equal_from_json() -> None:
    run = RunLog("local-fmnist", "n", "local-0-1", 1, 2)
    assert RunLog.from_dict(json.loads(json.dumps(run.to_dict()))) == run


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": [["loss", "high", 1, 2]]},
        {"metrics": [["loss", 1.0]]},
        {"artifacts": [["only-a-path"]]},
        {"metrics": None},
        {"unknown": 1},
    ],
    ids=["text for a value", "short point", "short artifact", "no points", "unknown key"],
)
def test_a_table_that_is_no_run_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    table = a_run(tmp_path).to_dict()
    with pytest.raises((KeyError, TypeError, ValueError)):
        RunLog.from_dict({**table, **change})


def test_performance_becomes_three_totals_and_three_points_for_each_label() -> None:
    performance = {
        "name": "x",
        "accuracy": 0.5,
        "precision": 0.6,
        "recall": 0.7,
        "class-accuracy": [0.1, 0.2],
        "class-precision": [0.3, 0.4],
        "class-recall": [0.8, 0.9],
    }
    assert performance_metrics(performance, ["top", "ankle-boot"], 17) == (
        ("accuracy", 0.5, 0, 17),
        ("precision", 0.6, 0, 17),
        ("recall", 0.7, 0, 17),
        ("top-accuracy", 0.1, 0, 17),
        ("ankle-boot-accuracy", 0.2, 0, 17),
        ("top-precision", 0.3, 0, 17),
        ("ankle-boot-precision", 0.4, 0, 17),
        ("top-recall", 0.8, 0, 17),
        ("ankle-boot-recall", 0.9, 0, 17),
    )
    with pytest.raises(ValueError, match="zip"):
        performance_metrics(performance, ["top"], 17)


def test_hyperparameters_get_their_prefix_and_become_text() -> None:
    assert hyperparameters({"learning-rate": 0.001, "epochs": 5}) == {
        "hp-learning-rate": "0.001",
        "hp-epochs": "5",
    }


def test_an_entry_keeps_the_run_when_the_originals_are_gone(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    entry = write_entry(tmp_path / "spool", run, now_ns=5)
    for path in (run.artifacts[0][0], run.model[1] if run.model else ""):
        Path(path).unlink()
    kept = read_entry(entry)
    assert Path(kept.artifacts[0][0]).read_bytes() == b"predictions"
    assert Path(kept.artifacts[0][0]).name == "predictions.npy"
    assert kept.artifacts[0][1] == "predicted_qualities"
    assert kept.model is not None
    assert (kept.model[0], Path(kept.model[1]).read_bytes()) == ("CLOUD-FMNIST-CNN", b"weights")
    assert dataclasses.replace(kept, artifacts=(), model=None) == dataclasses.replace(
        run, artifacts=(), model=None
    )


def test_entries_are_listed_oldest_first_and_only_whole_ones(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    assert runlog.waiting(spool) == []
    names = [write_entry(spool, a_run(tmp_path, f"local-0-{n}"), now_ns=n) for n in (30, 4, 200)]
    (spool / ".new-killed").mkdir()
    (spool / "damaged").mkdir()
    (spool / ".lock").touch()
    assert runlog.waiting(spool) == [names[1], names[0], names[2]]
    assert [runlog.run_id_of(entry) for entry in runlog.waiting(spool)] == [
        "local-0-4",
        "local-0-30",
        "local-0-200",
    ]


def test_a_file_of_the_run_that_is_missing_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    run = dataclasses.replace(a_run(tmp_path), artifacts=((str(tmp_path / "gone.npy"), ""),))
    with pytest.raises(DataError, match=r"gone\.npy"):
        write_entry(tmp_path / "spool", run, now_ns=1)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_spool_that_cannot_be_written_is_named_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="spool") as caught:
        write_entry(tmp_path / "spool", a_run(tmp_path), now_ns=1)
    assert "log again" in caught.value.next_step


DAMAGE = {
    "run.json missing": lambda entry: (entry / "run.json").unlink(),
    "run.json empty": lambda entry: (entry / "run.json").write_text(""),
    "run.json cut": lambda entry: (entry / "run.json").write_text('{"schema": 1, "run": {"exp'),
    "run.json a list": lambda entry: (entry / "run.json").write_text("[]"),
    "run.json not text": lambda entry: (entry / "run.json").write_bytes(b"\xff\xfe\x00"),
    "a file missing": lambda entry: (entry / "artifacts/0/predictions.npy").unlink(),
    "a file cut": lambda entry: (entry / "artifacts/0/predictions.npy").write_bytes(b"pred"),
    "the model changed": lambda entry: (entry / "model/model.safetensors").write_bytes(b"Weights"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_recognised(tmp_path: Path, damage: object) -> None:
    entry = write_entry(tmp_path / "spool", a_run(tmp_path), now_ns=1)
    read_entry(entry)
    damage(entry)  # type: ignore[operator]
    with pytest.raises(DataError):
        read_entry(entry)


def test_a_damaged_entry_is_moved_aside_with_the_reason(tmp_path: Path) -> None:
    entry = write_entry(tmp_path / "spool", a_run(tmp_path), now_ns=1)
    aside = runlog.set_aside(entry, "the disk was full")
    assert runlog.waiting(tmp_path / "spool") == []
    assert (aside / "reason.txt").read_text() == "the disk was full\n"
    assert (aside / "model/model.safetensors").read_bytes() == b"weights"


def test_discarding_an_entry_also_removes_what_a_killed_removal_left(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    entry = write_entry(spool, a_run(tmp_path), now_ns=1)
    (spool / ".sent-earlier" / "artifacts").mkdir(parents=True)
    runlog.discard(entry)
    assert list(spool.iterdir()) == []
