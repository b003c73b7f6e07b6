"""Run benchmarks one after the other, and compare each with its last run in the record.

Usage: make bench [NAMES="NAME …"]

A name is that of a file without `bench_`. With `--record` (`make bench` has it) the new figures
replace those in docs/reference/speed.json, and the page beside it is made from that.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import measured
import psutil

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    path.stem.removeprefix("bench_"): path
    for path in sorted(Path(__file__).parent.glob("bench_*.py"))
}
RECORD = ROOT / "docs" / "reference" / "speed.json"
HEAD = """\
# Measured speed

<!-- Made by `make bench`; change nothing here. -->

The last run of each benchmark: medians, with the lowest and the highest of several values. An aim
is a limit. The figures of another machine differ, the ratios hardly.
"""
COLUMNS = "| what | median | lowest to highest | aim |\n|---|---:|---:|---:|"


def machine() -> str:
    """Return what the figures depend on, in words."""
    models = [
        text.partition(":")[2].strip()
        for text in Path("/proc/cpuinfo").read_text().splitlines()
        if text.startswith("model name")
    ] or [platform.machine()]
    memory = psutil.virtual_memory().total / 2**30
    torch = version("torch").partition("+")[0]
    python = platform.python_version()
    return f"{len(models)} x {models[0]}, {memory:.0f} GiB, Python {python}, torch {torch}"


def commit() -> str:
    """Return the short hash of the checkout, with a plus where it has changes."""
    argv = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def page(record: dict) -> str:
    """Return the page of a record: a table a benchmark, with where and when it ran."""
    parts = [HEAD]
    for name, bench in record.items():
        run = "{date}, commit `{commit}`, load before it {load:.1f}; {machine}.".format(**bench)
        parts += [f"## {name}\n\n{run}\n\n{COLUMNS}", *map(cells, bench["figures"]), ""]
    return "\n".join(parts)


def cells(row: dict) -> str:
    """Return the line of a figure in its table."""
    low, high, count = row["lowest"], row["highest"], row["samples"]
    spread = f"{low:.4g} to {high:.4g} ({count})" if count > 1 else ""
    aim = ""
    if row["aim"] is not None:
        aim = f"{row['aim']:g}" + ("" if measured.reached(row) else ", missed")
    note = f" ({row['note']})" if row["note"] else ""
    return f"| {row['what']}{note} | {row['median']:.4g} {row['unit']} | {spread} | {aim} |"


def compare(new: dict, last: dict) -> list[str]:
    """Return a line for each figure that is worse than the last one by more than its spread."""
    if new["machine"] != last["machine"]:
        return [f"not compared: the last run was on another machine ({last['machine']})"]
    before, lines = {row["what"]: row for row in last["figures"]}, []
    for row in new["figures"]:
        old = before.get(row["what"])
        if old and measured.slower(row, old):
            was = f"{old['median']:.4g} {old['unit']} on {last['date']}"
            lines.append(f"worse: {row['what']}: {row['median']:.4g}, was {was}")
    return lines or [f"nothing is worse than on {last['date']} by more than its spread"]


def measure(script: Path) -> dict | None:
    """Run one benchmark; return its figures and what they depend on, None if it failed."""
    made = {"machine": machine(), "commit": commit(), "load": os.getloadavg()[0]}
    made["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as kept:
        environ = {**os.environ, measured.KEEP: kept.name}
        if subprocess.run([sys.executable, str(script)], env=environ).returncode:
            return None
        return made | {"figures": [json.loads(text) for text in kept.read().splitlines()]}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args(words)
    if unknown := set(options.names) - set(SCRIPTS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    failed = []
    for name in options.names or SCRIPTS:
        print(f"\n== {name}", flush=True)
        new = measure(SCRIPTS[name])
        if new is None:
            failed.append(name)
            continue
        if name in record:
            print("\n".join(compare(new, record[name])))
        record[name] = new
    if options.record:
        record = {name: record[name] for name in sorted(record)}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        RECORD.with_suffix(".md").write_text(page(record))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
