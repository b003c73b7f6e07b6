"""Run requests that are damaged, hostile or out of range; each must be refused."""

import json
import pickle

from kit.runs.requests import MAX_REQUEST_BYTES, RunRequest, write_request

RUN = "cloud-hpc-0123456789ab-1"
HASH = "ab" * 32
GOOD = json.loads(write_request(RunRequest(run=RUN, data_hash=HASH)))


def changed(**values):
    return json.dumps(GOOD | values).encode()


def training(**values):
    return changed(hyperparameters=GOOD["hyperparameters"] | values)


def continuing(run):
    return changed(sweep={"trials": [{"seed": 1}], "continues": [run]})


BAD = {
    "empty": b"",
    "cut": write_request(RunRequest(run=RUN, data_hash=HASH))[:-20],
    "no table": b"[1, 2]",
    "a pickle": pickle.dumps({"schema": 1}),
    "huge": b'{"schema": 1, "x": "' + b"a" * MAX_REQUEST_BYTES + b'"}',
    "deep": b"[" * 60_000,
    "a huge number": b'{"schema": ' + b"9" * 60_000 + b"}",
    "not UTF-8": b"\xff\xfe{}",
    "another schema": changed(schema=2),
    "another run": changed(run="cloud-hpc-0123456789ab-2"),
    "an unknown key": changed(partition="large"),
    "a command": changed(command="rm -rf ~"),
    "an account": changed(account="project_2005678"),
    "a missing key": json.dumps({k: v for k, v in GOOD.items() if k != "data_hash"}).encode(),
    "a path for a hash": changed(data_hash="../../../etc/passwd"),
    "a hash with a newline": changed(data_hash=HASH + "\n"),
    "a list for a hash": changed(data_hash=[HASH]),
    "text for a flag": changed(configured="$(reboot)"),
    "a number for a flag": changed(configured=1),
    "text for a table": changed(hyperparameters="; reboot"),
    "shell characters": training(device="cpu; touch /tmp/x"),
    "text for a number": training(epochs="5"),
    "out of range": training(epochs=10**9),
    "not a number": training(learning_rate=float("nan")),
    "a huge float": training(learning_rate=1e300),
    "true for a number": training(seed=True),
    "an unknown setting": training(partition="`id`"),
    "no workers": changed(workers=0),
    "too many workers": changed(workers=65),
    "text for workers": changed(workers="`id`"),
    "true for workers": changed(workers=True),
    "half a worker": changed(workers=1.5),
    "a sweep that continues itself": continuing(RUN),
    "a sweep that continues a later run": continuing(RUN[:-1] + "2"),
    "a sweep that continues a path": continuing("../../x"),
    "a sweep that continues another one": continuing("cloud-hpc-ffffffffffff-1"),
    "a sweep that continues a text": changed(sweep={"trials": [{"seed": 1}], "continues": RUN}),
    "another tunnel": changed(tunnel="-R 22:localhost:22"),
    "true for a tunnel": changed(tunnel=True),
}
