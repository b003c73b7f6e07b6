"""Start-up, everything beside training, and peak memory of `kit run local`.

One table from one run on this machine. The data set is the official one.
Usage: python tests/benchmarks/bench_local.py
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from idx_files import full_size_data_dir


def median_ms(argv: list[str], times: int = 11) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def row(what: str, figure: float, unit: str, aim: float) -> None:
    print(f"{what:52} {figure:9.2f} {unit:3}  aim {aim:7.1f}  ratio to aim {figure / aim:5.2f}")


def main() -> None:
    python = sys.executable
    bare = median_ms([python, "-c", "pass"])
    row("python -c pass", bare, "ms", 150)
    row("import kit", median_ms([python, "-c", "import kit"]), "ms", 150)
    row("kit --help", median_ms([python, "-m", "kit", "--help"]), "ms", 150)
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "KIT_RESULTS_DIR": f"{folder}/results"}
        environ["KIT_DATA_DIR"] = str(full_size_data_dir(Path(folder) / "data"))
        start = time.perf_counter()
        argv = [python, "-m", "kit", "run", "local", "-p", "epochs", "1"]
        subprocess.run(argv, check=True, env=environ, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        line = json.loads(Path(folder, "results/sandbox/history.jsonl").read_text())
    training = line["figures"]["training_s"]
    row("kit run local, 1 epoch of 60,000: all but training", seconds - training, "s", 10)
    print(f"  of which: {line['seconds']}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    row("peak memory of that run", peak, "MB", 1500)
    print(f"training: {training:.1f} s, {15_000 / training:,.0f} steps per second")


if __name__ == "__main__":
    main()
