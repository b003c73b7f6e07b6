"""Bills as tables: for the terminal, for notebooks, beside other sites, with what was wasted."""

import contextlib
from collections.abc import Iterable, Mapping
from decimal import Context, Decimal

from kit.base import Json, UsageError, to_text
from kit.base.settings import Settings, load, profile_names
from kit.billing import rates, waste
from kit.billing.rates import Bill, Line, money
from kit.billing.run import estimate, sacct_of, usages
from kit.slurm import GIB, allocated_resources, parse_count, parse_size

NO_JOB = "its sacct.txt is missing or empty: the job is not in this bill"


def bill_rows(lines: Iterable[Line]) -> list[dict[str, str]]:
    """Return the lines for a table, numbers shortened for people."""
    return [
        {
            "what": line.what,
            "quantity": f"{_four_digits(line.quantity)} {line.unit}",
            "rate": f"{line.rate.normalize():f}",
            "BU": format_units(line.bu),
            "kind": line.kind,
            "rate's source": line.source.removeprefix("https://")
            + (f" ({line.checked})" if line.checked else ""),
            "note": line.note,
        }
        for line in lines
    ]


def _four_digits(value: Decimal) -> str:
    """Write four significant digits; values below 0.0001 have an exponent."""
    rounded = Context(prec=4).plus(value).normalize()
    return f"{rounded:e}" if 0 < rounded < Decimal("0.0001") else f"{rounded:f}"


def format_units(value: Decimal) -> str:
    """Return two digits after the point; values below 0.005 keep one significant digit."""
    return f"{value:.1g}" if 0 < value < Decimal("0.005") else f"{money(value)}"


def bill_summary(bill: Bill) -> list[str]:
    """Return sentences: the total of each kind, the started hours, and seff's own figure."""
    sums = [f"{format_units(value)} {kind}" for kind, value in rates.totals(bill.lines).items()]
    nothing = "Nothing to pay, or no rates in the profile."
    lines = [f"Together, each kind for itself: {', '.join(sums)}." if sums else nothing]
    if bill.started:
        begun = money(rates.totals(bill.started)["Cloud BU"])
        lines.append(f"cPouta bills started hours: {begun} Cloud BU in place of the fractions.")
    lost = rates.totals(line for line in bill.lines if line.note == rates.LOST)
    lines += [
        f"Of that {format_units(value)} {kind} went to attempts without a result."
        for kind, value in lost.items()
        if value
    ]
    if bill.seff:
        lines.append(f"The centre's own figure (seff): {bill.seff} BU.")
    return lines


def estimate_text(loaded: Settings, target: str) -> str:
    """Return what a run may cost at most, with the source of each rate."""
    bill = estimate(loaded, target)
    return "\n\n".join([to_text(bill_rows(bill.lines)), *bill_summary(bill)]).strip()


def job_of_run(loaded: Settings, run: Json) -> waste.JobUse | None:
    """Return what the run's job requested, worked and needed; None without sacct's text."""
    jobs = usages(loaded, sacct_of(loaded, run))
    if not jobs:
        return None
    last = jobs[-1]
    held, columns = allocated_resources(last), last.rows[0].columns
    requested = dict(p.split("=", 1) for p in columns.get("ReqTRES", "").split(",") if "=" in p)
    memory = parse_size(requested.get("mem", ""))
    return waste.JobUse(
        held=held,
        requested_cores=parse_count(requested.get("cpu"))
        or parse_count(columns.get("ReqCPUS"))
        or held.cores,
        requested_gib=Decimal(memory) / GIB if memory else held.memory_gib,
        worked_seconds=None if last.cpu_seconds is None else Decimal(str(last.cpu_seconds)),
        needed_gib=Decimal(last.max_rss_bytes) / GIB if last.max_rss_bytes else None,
        workers=int(run.get("parameters", {}).get("workers", 1)),
    )


def sites() -> list[Settings]:
    """Load every site that has partitions and prices.

    Without aliases, unfinished profiles, and those on another one's base: they are the same site.
    """
    named: dict[str, Settings] = {}
    for name in profile_names():
        with contextlib.suppress(UsageError):  # a profile that nobody has filled in yet
            loaded = load(name)
            named[loaded.profile] = loaded
    return [
        site for site in named.values() if site.partitions and site.site.base in ("", site.profile)
    ]


def offers_elsewhere(job: waste.JobUse) -> list[dict[str, str]]:
    """Return the same job on every site that could hold it, for a table."""
    return [
        {
            "site": offer.site + " (closed)" * offer.closed,
            "partition": offer.partition,
            "request": offer.what,
            "BU": str(money(offer.line.bu)),
            "kind": offer.line.kind,
        }
        for offer in waste.elsewhere(job, sites())
    ]


def bill_advice(loaded: Settings, run: Json) -> list[str]:
    """Return where units and seconds were wasted, and the change that saves most."""
    threads = int(run.get("parameters", {}).get("threads", 1))
    parts: Mapping[str, float] = run.get("pipeline", {})
    job = job_of_run(loaded, run)
    if job is None:
        missing = [NO_JOB] if run["target"] in ("cloud-hpc", "job") and loaded.rates else []
        if run["target"] == "job":
            return missing
        here = int(run.get("host", {}).get("cores") or threads)
        return missing + waste.pipeline(parts, threads, min(here, threads))
    cost = rates.job_lines(loaded, job.held)[0] if loaded.rates else None
    candidates = [loaded] if loaded.partitions else sites()
    advice = waste.sentences(job, cost, waste.elsewhere(job, candidates))
    if run["target"] == "job":  # a person's own program: how it spent its time is not known
        return advice
    return advice + waste.pipeline(parts, threads, job.requested_cores // max(1, job.held.nodes))
