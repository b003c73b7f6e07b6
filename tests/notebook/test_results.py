"""The bill of a run that is finished in a notebook."""

from types import SimpleNamespace

import pytest
from memory_store import MemoryStore

from kit.base import read_json
from kit.base.settings import load
from kit.notebook import results
from kit.runs import history
from kit.runs.objects import StageStore

JOB = (
    "JobID|Partition|State|ElapsedRaw|AllocCPUS|AllocNodes|Start|End|JobName\n"
    "5|mars|COMPLETED|9|2|2|1|10|kit-0123456789ab\n"
)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    return load("sandbox")


def test_a_finished_run_keeps_its_bill_and_its_figures(loaded):
    run = history.start_run(loaded, "cloud", {}, "d")
    store = MemoryStore()
    store.put("data/d-train", b"12345")
    facts = {"figures": {"pipeline_s": 3600.0}, "data": {"hash": "d"}}
    facts, _ = results._with_bill(run, facts, SimpleNamespace(store=store))
    assert facts["stored_bytes"] == 5
    assert facts["figures"] == {"pipeline_s": 3600.0, "cloud_bu": 8.6, "total_bu": 8.6}
    assert facts["bill"] == {"Cloud BU": "8.60", "Storage BU": "0.00"}
    assert read_json(run.folder / "bill.json")["totals"] == facts["bill"]


def test_a_run_that_cannot_be_priced_is_kept_with_the_reason(loaded):
    run = history.start_run(loaded, "cloud-hpc", {}, "d")
    run.save("sacct.txt", JOB)
    facts = {"figures": {"pipeline_s": 1.0}, "data": {"hash": "d"}}
    facts, _ = results._with_bill(run, facts, SimpleNamespace(store=MemoryStore()))
    assert "[rates.mars] is missing" in facts["bill"]["problem"]


def test_folder_of_a_pipelines_run_has_what_is_needed_to_load_the_model(loaded):
    run, store = history.start_run(loaded, "cloud", {}, "d"), MemoryStore()
    objects = StageStore(store, run.id)
    out = objects.store.put("m", b"m"), objects.store.put("p", b"p")
    model, predictions = ({"key": info.key, "sha256": info.sha256} for info in out)
    kept = {"out/model.safetensors": model, "x.json": objects.keep("x.json", b"x")}
    outcome = SimpleNamespace(
        losses=[[1, 0.5]],
        files={**kept, "out/predictions.npy": predictions},
    )
    results._save_objects(run, objects, outcome)
    assert (run.folder / "out/model.safetensors").read_bytes() == b"m"
    assert (run.folder / "out/predictions.npy").read_bytes() == b"p"
    assert read_json(run.folder / "losses.json") == [[1, 0.5]]
