"""Start-up, everything beside training, and peak memory of `kit run local`.

One table from one run on this machine. The data set is the official one.
Usage: make bench NAMES=local
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from idx_files import full_size_data_dir
from measured import show


def milliseconds(argv: list[str], times: int = 11) -> list[float]:
    """Return how long each of several starts of a command took."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        took.append(1000 * (time.perf_counter() - start))
    return took


def main() -> None:
    python = sys.executable
    show("python -c pass", milliseconds([python, "-c", "pass"]), "ms")
    show("import kit", milliseconds([python, "-c", "import kit"]), "ms", 150)
    show("kit --help", milliseconds([python, "-m", "kit", "--help"]), "ms", 150)
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "KIT_RESULTS_DIR": f"{folder}/results"}
        environ["KIT_DATA_DIR"] = str(full_size_data_dir(Path(folder) / "data"))
        start = time.perf_counter()
        argv = [python, "-m", "kit", "run", "local", "-p", "epochs", "1"]
        subprocess.run(argv, check=True, env=environ, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        line = json.loads(Path(folder, "results/sandbox/history.jsonl").read_text())
    training = line["figures"]["training_s"]
    show("kit run local beside its training", seconds - training, "s", 6)
    print(f"  of which: {line['seconds']}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    show("peak memory of that run", peak, "MB", 1500)
    show("its training", 15_000 / training, "1/s", note="steps of one epoch of 60,000 images")


if __name__ == "__main__":
    main()
