"""The report of many runs and the bill of many rows of sacct, beside their aims.

Usage: make bench NAMES=report
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measured

from kit.base.settings import load
from kit.billing import bill_of_run
from kit.report import page as report_page

COLUMNS = "JobID|Partition|State|AllocCPUS|AllocNodes|ElapsedRaw|AllocTRES|JobName"
RUN = {
    "schema": 1,
    "target": "local",
    "parameters": {"epochs": 5, "threads": 1},
    "data": {"hash": "d", "title": "official 60,000 + 10,000"},
    "figures": {"training_s": 60.0, "accuracy": 0.88},
    "seconds": {"training": 60.0, "data": 1.0},
}


def row(what: str, work: Callable[[], object], aim: float) -> None:
    start = time.process_time()
    work()
    figure = time.process_time() - start
    measured.show(what, figure, "CPU s", aim)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load("sandbox", {**os.environ, "KIT_RESULTS_DIR": folder})
        loaded.profile_dir.mkdir(parents=True)
        history = Path(loaded.profile_dir / "history.jsonl")
        for count, aim in ((1_000, 3.0), (10_000, 15.0)):
            history.write_text(
                "".join(json.dumps({**RUN, "run": f"r-{n}"}) + "\n" for n in range(count))
            )
            row(f"report as a page, {count:,} runs", lambda: report_page.page(loaded), aim)
            row(
                f"report as a table, {count:,} runs", lambda: report_page.text(loaded, "table"), aim
            )
        tres = "cpu=4,mem=16G,node=1"
        listing = [f"{n}|small|COMPLETED|4|1|3600|{tres}|kit-x" for n in range(10_000)]
        text = "\n".join([COLUMNS, *listing]) + "\n"
        run = {**RUN, "run": "r-1", "target": "cloud-hpc"}
        path = loaded.profile_dir / "runs" / "r-1" / "sacct.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        row("bill of 10,000 rows of sacct", lambda: bill_of_run(loaded, run), 1.0)


if __name__ == "__main__":
    main()
