"""The forwarder's pass over buckets that are folders, its scrape and its command."""

import dataclasses
import json
import os
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import captured
import pytest
from buckets import remove_bucket
from forwarder_buckets import OWN, ForwarderBuckets
from gauge_samples import RUN, kept, scraped, values

from kit.base import NoSuchBucket, Secret, StoreUnavailable
from kit.forwarder import collect as forwarder
from kit.forwarder import gauges
from kit.forwarder.api import metrics_api
from kit.forwarder.serve import serve
from kit.store import FolderStore

OTHER = "cloud-hpc-ba9876543210-2"
SACCT = "slurm-22.05/sacct-completed.txt"


@pytest.fixture
def world(tmp_path):
    return ForwarderBuckets(tmp_path)


def rows(ours):
    return scraped(ours.text)


def test_without_any_bucket_there_are_no_gauges_and_no_error(tmp_path):
    empty = ForwarderBuckets(tmp_path)
    remove_bucket(empty.request_store)
    remove_bucket(empty.data)
    ours = empty.forwarder()
    assert ours.once() == []
    assert rows(ours) == []
    assert b"# TYPE cloud_hpc_job_seff_metrics gauge" in ours.text


def test_every_gauge_is_there_after_a_run_under_the_names_of_its_buckets(world):
    world.done()
    ours = world.forwarder()
    assert ours.once(1.5) == []
    found = rows(ours)
    assert {name for name, _, _ in found} == set(gauges.LABELS)
    assert values(found, gauges.SEFF, user="anna", jobkey=RUN)["BiUn"] == 23.17
    assert values(found, gauges.JOB, collector=world.request_bucket)["ToRunSec"] == 417
    passes = values(found, gauges.TASK, collector=OWN, group="forwarder-pass")
    assert passes["ToWaiSec"] == 1.5
    assert passes["ToTasSec"] == pytest.approx(1.5 + passes["ToRunSec"])


def test_a_pass_that_finds_nothing_new_reads_nothing_and_leaves_no_trace(world, monkeypatch):
    world.done()
    ours = world.forwarder()
    ours.once()
    before = ours.text

    def fail(*_, **__):
        raise AssertionError("an object was read or written")

    monkeypatch.setattr(FolderStore, "get", fail)
    monkeypatch.setattr(FolderStore, "put", fail)
    assert ours.once() == []
    assert ours.text is before


def test_the_gauges_survive_a_restart_once_each(world):
    world.done()
    world.done(OTHER)
    first = world.forwarder()
    first.once()
    second = world.forwarder()
    second.once()
    labels = [(name, tuple(sorted(labels.items()))) for name, labels, _ in rows(second)]
    assert len(labels) == len(set(labels))
    assert {str(row) for row in rows(first)} <= {str(row) for row in rows(second)}


def test_gauges_are_removed_with_their_run_or_bucket(world):
    world.done()
    world.done(OTHER)
    ours = world.forwarder()
    ours.once()
    for store in (world.request_store, world.data):
        for info in list(store.list(f"runs/{OTHER}/")):
            store.delete(info.key)
    ours.once()
    keys = {labels.get("jobkey", RUN) for _, labels, _ in rows(ours)}
    assert keys == {RUN}
    for store in (world.request_store, world.data):
        for info in list(store.list()):
            store.delete(info.key)
        remove_bucket(store)
    with pytest.raises(NoSuchBucket):
        list(world.request_store.list())
    ours.once()
    assert {labels["collector"] for _, labels, _ in rows(ours)} == {OWN}


@pytest.mark.parametrize(
    "content",
    [
        b"no JSON",
        b"[" * 100_000,
        b"[]",
        b'{"schema": 2}',
        b'{"schema": 1}',
        b'{"schema": 1, "sacct": {"1": {"JobName": 7}}, "seff": {}, "job": {"id": 1}}',
    ],
)
def test_damaged_run_affects_only_itself_and_is_reported(world, content):
    world.done()
    world.done(OTHER)
    world.write(world.request_store, OTHER, "result.json", content)
    ours = world.forwarder()
    problems = ours.once()
    assert [OTHER in problem for problem in problems] == [True]
    found = rows(ours)
    assert values(found, gauges.SEFF, jobkey=RUN)["BiUn"] == 23.17
    assert not [labels for _, labels, _ in found if OTHER in labels.values()]
    world.done(OTHER)  # it was put right
    assert ours.once() == []
    assert values(rows(ours), gauges.SEFF, jobkey=OTHER)["BiUn"] == 23.17


@pytest.mark.parametrize("text", ["\ufffd\ufffd:0x", "9" * 400])
def test_damaged_value_is_reported_and_the_rest_is_shown(world, text):
    world.done()
    damaged = kept().result["sacct"]
    damaged["1"]["Elapsed"] = text
    world.done(OTHER, sacct=damaged)
    ours = world.forwarder()
    (problem,) = ours.once()
    assert "Elapsed" in problem
    assert values(rows(ours), gauges.SACCT, jobkey=RUN, row="1")["ElaSec"] == 417
    other = values(rows(ours), gauges.SACCT, jobkey=OTHER, row="1")
    assert other["AcNod"] == 2
    assert "ElaSec" not in other


def priced(world, text):
    """Write a run whose seff has no cost, with this sacct text beside it."""
    result = kept().result
    del result["seff"]["Non-Interactive BUs"]
    at = world.write(world.data, RUN, "try-1/sacct.txt", text)
    files = {"sacct.txt": {"key": at.key, "sha256": at.sha256, "bytes": at.size}}
    world.done(seff=result["seff"], files=files)


def test_units_come_from_the_rates_if_seff_has_none(world):
    text = captured.read("slurm-22.05/sacct-asked.txt")
    priced(world, text.encode())
    ours = world.forwarder()
    assert ours.once() == []
    assert values(rows(ours), gauges.SEFF)["BiUn"] >= 0


def test_a_partition_without_a_price_has_no_units_and_all_the_rest(world):
    world.settings = dataclasses.replace(world.settings, rates={})
    priced(world, captured.read("slurm-22.05/sacct-asked.txt").encode())
    ours = world.forwarder()
    assert ours.once() == []
    seff = values(rows(ours), gauges.SEFF)
    assert seff["Nod"] == 2
    assert "BiUn" not in seff


@pytest.mark.parametrize(
    ("text", "problems"), [(b"", 0), (b"\xff\xfe", 1), (b"JobID|State\n1|2|3\n", 1)]
)
def test_sacct_text_that_is_empty_or_damaged_costs_the_price_alone(world, text, problems):
    """A site without accounting has an empty text: nothing is wrong."""
    priced(world, text)
    ours = world.forwarder()
    assert len(ours.once()) == problems
    seff = values(rows(ours), gauges.SEFF)
    assert seff["Nod"] == 2
    assert "BiUn" not in seff


def test_unavailable_store_leaves_the_last_gauges(world, monkeypatch):
    world.done()
    ours = world.forwarder()
    ours.once()
    before = ours.text

    def away(*_):
        raise StoreUnavailable("list runs/")

    monkeypatch.setattr(FolderStore, "list", away)
    assert [world.request_bucket in problem for problem in ours.once()] == [True]
    assert ours.text is before


def test_newest_passes_are_kept_and_a_damaged_list_is_replaced(world):
    ours = world.forwarder()
    for number in range(1, forwarder.KEPT_PASSES + 4):
        world.done(f"cloud-hpc-0123456789ab-{number}")
        ours.once(float(number))
    kept_passes = {
        value
        for name, labels, value in rows(ours)
        if name == gauges.TASK and labels["group"] == "forwarder-pass"
        if labels["metric"] == "ToWaiSec"
    }
    assert len(kept_passes) == forwarder.KEPT_PASSES
    assert min(kept_passes) == 4
    world.own.put(forwarder.PASSES, b'{"schema": 1, "passes": [{"id": 1}]}')
    again = world.forwarder()
    assert again.once() == []
    assert len(json.loads(world.own.get(forwarder.PASSES))["passes"]) == 1


def test_scrape_needs_the_token_and_has_only_the_gauges(world):
    world.done()
    ours = world.forwarder()
    ours.once()
    secret = "t0ken-of-the-scrape-0123456789"

    def get(path, **headers):
        try:
            with urlopen(Request(f"http://127.0.0.1:{port}{path}", headers=headers)) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except HTTPError as err:
            with err:
                return err.code, "", err.read()

    with serve(metrics_api(ours, Secret(secret)), "127.0.0.1", 0) as port:
        assert get("/metrics")[0] == 401
        assert get("/metrics", Authorization="Bearer guess")[0] == 401
        code, kind, text = get("/metrics", Authorization=f"Bearer {secret}")
        assert (code, text) == (200, ours.text)
        assert kind.startswith("text/plain; version=")
        assert get("/docs", Authorization=f"Bearer {secret}")[0] == 404


def test_the_command_prints_the_gauges_of_a_profile_of_ones_own(world, tmp_path):
    world.done()
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "own.toml").write_text(
        f'[site]\nname = "own"\ntitle = "own"\n[store]\nkind = "directory"\nurl = "{tmp_path}"\n'
    )
    env = os.environ | {"KIT_SITES_DIR": str(tmp_path / "sites"), "LOGNAME": "anna"}
    argv = [sys.executable, "-m", "kit", "forwarder", "--once", "--profile", "own"]
    done = subprocess.run(argv, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert values(scraped(done.stdout), gauges.SEFF, user="anna")["BiUn"] == 23.17
