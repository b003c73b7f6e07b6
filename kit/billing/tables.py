"""Bills as tables: for the terminal, for notebooks, beside other sites, with what was wasted."""

import contextlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from kit.base import Json, KitError, UsageError, read_history, to_text
from kit.base.settings import Settings, load, profile_names
from kit.billing import rates as billing
from kit.billing import waste
from kit.billing.rates import Bill, Line, money
from kit.billing.run import estimate, of_run, sacct_of, usages
from kit.slurm import GIB, allocated_resources, parse_size

if TYPE_CHECKING:
    import pandas

NO_JOB = "its sacct.txt is missing: the job is not in this bill"


def of_all(loaded: Settings) -> tuple[list[dict[str, str]], list[str]]:
    """Give one row a finished run with its units by kind, and what could not be read."""
    history, problems = read_history(loaded.profile_dir / "history.jsonl")
    bills: list[tuple[Json, dict[str, Decimal]]] = []
    for run in history:
        try:
            bills.append((run, billing.totals(of_run(loaded, run).lines)))
            if run["target"] == "cloud-hpc" and not sacct_of(loaded, run).exists():
                problems.append(f"{run['run']}: {NO_JOB}")
        except KitError as err:  # its files are damaged: the other runs have their bills
            problems.append(f"{run['run']}: {str(err).splitlines()[0]}")
    kinds = list(dict.fromkeys(kind for _, sums in bills for kind in sums))
    return [
        {"run": str(run["run"]), **{kind: _units(sums.get(kind, Decimal(0))) for kind in kinds}}
        for run, sums in bills
    ], problems


def rows(lines: Iterable[Line]) -> list[dict[str, str]]:
    """Give the lines for a table, numbers shortened for people."""
    return [
        {
            "what": line.what,
            "quantity": f"{line.quantity.normalize():.4g} {line.unit}",
            "rate": f"{line.rate.normalize():f}",
            "BU": _units(line.bu),
            "kind": line.kind,
            "rate's source": f"{line.source.removeprefix('https://')} ({line.checked})",
            "note": line.note,
        }
        for line in lines
    ]


def _units(value: Decimal) -> str:
    """Two digits after the point; what would be 0.00 but is not, with one digit that counts."""
    return f"{value:.1g}" if 0 < value < Decimal("0.005") else f"{money(value)}"


def summary(bill: Bill) -> list[str]:
    """Say the total of each kind, the started hours beside, and seff's own figure."""
    sums = [f"{_units(value)} {kind}" for kind, value in billing.totals(bill.lines).items()]
    nothing = "Nothing to pay, or no rates in the profile."
    told = [f"Together, each kind for itself: {', '.join(sums)}." if sums else nothing]
    if bill.started:
        begun = money(billing.totals(bill.started)["Cloud BU"])
        told.append(f"cPouta bills started hours: {begun} Cloud BU in place of the fractions.")
    lost = billing.totals(line for line in bill.lines if line.note == billing.LOST)
    told += [f"Of that {_units(value)} {kind} went to tries without a result."
             for kind, value in lost.items() if value]  # fmt: skip
    if bill.seff:
        told.append(f"The centre's own figure (seff): {bill.seff} BU.")
    return told


def estimate_text(loaded: Settings, target: str) -> str:
    """Say what a run may cost at most, with the source of each rate."""
    bill = estimate(loaded, target)
    return "\n\n".join([to_text(rows(bill.lines)), *summary(bill)]).strip()


def show_estimate(profile: str, target: str) -> "pandas.DataFrame":
    """Say in a notebook what a run may cost at most."""
    return frame(estimate(load(profile), target))


def show_bill(profile: str, run: Json) -> "pandas.DataFrame":
    """Show a finished run's bill in a notebook; `attrs["summary"]` has the sums and the waste."""
    loaded = load(profile)
    table = frame(of_run(loaded, run))
    table.attrs["summary"] = "\n".join([table.attrs["summary"], *advice(loaded, run)])
    return table


def show_elsewhere(profile: str, run: Json) -> "pandas.DataFrame":
    """Price the job of a finished run on every site that could hold it."""
    import pandas

    job = used(load(profile), run)
    return pandas.DataFrame(offers(job)).set_index("site") if job else pandas.DataFrame()


def frame(bill: Bill) -> "pandas.DataFrame":
    """Give a bill for a notebook; the sums stand in `attrs["summary"]`."""
    import pandas

    table = (
        pandas.DataFrame(rows(bill.lines)).set_index("what") if bill.lines else pandas.DataFrame()
    )
    table.attrs["summary"] = "\n".join(summary(bill))
    return table


def used(loaded: Settings, run: Json) -> waste.Used | None:
    """Say what the run's job asked for, worked and needed; None without sacct's text."""
    path = sacct_of(loaded, run)
    found = usages(loaded, path.read_text(encoding="utf-8")) if path.exists() else []
    if not found:
        return None
    last = found[-1]
    load, columns = allocated_resources(last), last.rows[0].columns
    asked = dict(p.split("=", 1) for p in columns.get("ReqTRES", "").split(",") if "=" in p)
    gib = Decimal(parse_size(asked.get("mem", "")) or 0) / GIB or load.memory_gib or Decimal(0)
    cores = int(asked.get("cpu") or columns.get("ReqCPUS") or load.cores)
    worked, rss = Decimal(str(last.cpu_seconds or 0)), Decimal(last.max_rss_bytes or 0)
    workers = int(run.get("parameters", {}).get("workers", 1))
    return waste.Used(load, cores, gib, worked, rss / GIB, workers)


def sites() -> list[Settings]:
    """Load every site that has partitions and prices; aliases and unfinished profiles left out."""
    named: dict[str, Settings] = {}
    for name in profile_names():
        with contextlib.suppress(UsageError):  # a profile that nobody has filled in yet
            loaded = load(name)
            named[loaded.profile] = loaded
    return [each for each in named.values() if each.partitions]


def offers(job: waste.Used) -> list[dict[str, str]]:
    """Give the same job on every site that could hold it, for a table."""
    return [
        {
            "site": offer.site + " (closed)" * offer.closed,
            "partition": offer.partition,
            "asking for": offer.what,
            "BU": str(money(offer.line.bu)),
            "kind": offer.line.kind,
        }
        for offer in waste.elsewhere(job, sites())
    ]


def advice(loaded: Settings, run: Json) -> list[str]:
    """Say where the run's units and seconds went for nothing, and the change that saves most."""
    threads = int(run.get("parameters", {}).get("threads", 1))
    parts: Mapping[str, float] = run.get("pipeline", {})
    job = used(loaded, run)
    if job is None:
        told = [NO_JOB] if run["target"] == "cloud-hpc" and loaded.rates else []
        here = int(run.get("host", {}).get("cores") or threads)
        return told + waste.pipeline(parts, threads, min(here, threads))
    cost = billing.job_lines(loaded, job.load)[0] if loaded.rates else None
    told = waste.sentences(
        job, cost, waste.elsewhere(job, [loaded] if loaded.partitions else sites())
    )
    return told + waste.pipeline(parts, threads, job.asked_cores // max(1, job.load.nodes))
