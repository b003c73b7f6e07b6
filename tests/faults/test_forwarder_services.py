"""The forwarder's services killed in turn during a run; no secret in what they show."""

import json
import secrets
import threading
import time
import urllib.request
from base64 import b64encode

import pytest
import redis
from allas_site import AllasSite
from dotenv import dotenv_values
from hpc_bench import ended_jobs
from idx_files import as_data, real_or_striped_images
from notebook_runs import planted
from waiting import until

from kit.base.settings import load
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.client import forwarder_client
from kit.runs.follow import follow
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest
from kit.submitter.loop import submitter_for

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]


def get(url, authorization=""):
    headers = {"Authorization": authorization} if authorization else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.read()


def scraped(loaded):
    word = (loaded.sandbox_dir / "etc" / "secrets" / "forwarder").read_text()
    try:
        return get("http://127.0.0.1:6502/metrics", f"Bearer {word}").decode()
    except OSError:
        return ""


def test_services_that_are_killed_in_turn_mid_run_cost_the_run_nothing(sandbox, seen):
    loaded, site, data = load("sandbox"), AllasSite(), as_data(real_or_striped_images())
    submitter, results, said = submitter_for(loaded), [], []
    for store in (submitter.requests.store, submitter.data):
        store.ensure_bucket()
    run = f"cloud-hpc-{secrets.token_hex(6)}-1"
    StageStore(submitter.data, run).put_data(data)
    forwarder_client(loaded).ask(
        RunRequest(
            run=run,
            data_hash=data.hash,
            configured=True,
            hyperparameters=Parameters(epochs=200).model_dump(),
        )
    )
    person = threading.Thread(
        target=lambda: results.append(follow(forwarder_client(loaded), run, 600, said.append)),
        daemon=True,
    )
    person.start()
    until(lambda: (submitter.requests.read(run, "progress") or {}).get("training"), 300, 0.5)
    for name in ("forwarder", "worker", "redis", "flower", "submitter"):
        site.kill(name)  # the supervisor starts it again
        until(lambda name=name: site.pid(name), 30)
        site.wait(name)
    person.join(400)
    assert results, said[-3:]
    assert results[0]["job"]["state"] == "COMPLETED"
    states = [state for _, state in ended_jobs(submitter.slurm.host, run)]
    assert states == ["COMPLETED"]
    until(lambda: run in scraped(loaded), 60, 0.5)
    for store in (submitter.requests.store, submitter.data):
        for info in list(store.list(f"runs/{run}/")):
            store.delete(info.key)
    until(lambda: run not in scraped(loaded), 60, 0.5)
    seen("face, worker, Redis, Flower, submitter killed in turn mid-run", "one job, COMPLETED")


def test_no_secret_is_in_messages_pages_documents_or_logs(sandbox):
    loaded = load("sandbox")
    etc, words = loaded.sandbox_dir / "etc", planted(loaded)
    texts = {}
    client = redis.from_url(dotenv_values(etc / "redis.env")["REDIS_URL"])
    with client.monitor() as monitor:
        begin, commands = time.monotonic(), []
        for each in monitor.listen():
            commands.append(each["command"])
            if time.monotonic() > begin + 15 or sum("LPUSH" in one for one in commands) > 1:
                break
    assert any("forwarder-pass" in one for one in commands), "no message was seen"
    texts["Redis"] = "\n".join(commands).encode()
    login = f"Basic {b64encode((etc / 'flower_login').read_bytes().strip()).decode()}"
    for page in (
        "",
        "workers",
        "tasks",
        "broker",
        "metrics",
        "api/workers",
        "api/tasks",
        "api/queues/length",
    ):
        texts[f"Flower {page}"] = get(f"http://127.0.0.1:6501/{page}", login)
    for page in ("openapi.json", "docs"):
        texts[f"face {page}"] = get(f"http://127.0.0.1:6500/{page}")
    json.loads(texts["face openapi.json"])
    logs = [path for path in (loaded.sandbox_dir / "log").iterdir() if path.is_file()]
    texts |= {path.name: path.read_bytes() for path in logs}
    assert {name: n for name, text in texts.items() for n, w in enumerate(words) if w in text} == {}
