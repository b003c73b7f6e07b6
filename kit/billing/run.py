"""The bill of a run from what its folder holds, and the estimate before it.

Rates are the profile's; usage is sacct's raw text (`sacct.txt`); seff's figure is shown beside it.
"""

from collections.abc import Sequence
from decimal import Decimal
from zoneinfo import ZoneInfo

from kit.base import DataError, Host, Json, KitError, UsageError, site_host
from kit.base.settings import Hpc, Settings
from kit.billing import rates
from kit.billing.limits import check_limits, held_resources
from kit.billing.rates import Bill, Line, money, slurm_kinds
from kit.slurm import (
    JobSpec,
    Usage,
    job_for,
    job_name,
    job_starts,
    read_account,
    usage_of,
)


def usages(loaded: Settings, sacct_text: str) -> list[Usage]:
    """Read every start of every job of the kit in a raw sacct listing.

    None is in the empty text that a site without accounting leaves.
    """
    zone = ZoneInfo(loaded.hpc.timezone if loaded.hpc else "UTC")
    rows = read_account(sacct_text, zone) if sacct_text.strip() else []
    return [usage_of(start) for start in job_starts(rows, prefix=job_name(""))]


def bill_of_run(loaded: Settings, run: Json) -> Bill:
    """Price a run of the history by today's profile: jobs, VM and address, what it stored.

    A run of several attempts has the jobs of all of them in its bill. A missing file costs its
    lines.
    """
    slurm, figures = run.get("slurm", {}), run.get("figures", {})
    values = slurm.get("seff", {})
    seff = "" if "Source" in values else str(values.get("Non-Interactive BUs", ""))
    if not loaded.rates:
        return Bill((), seff=seff)
    text = sacct_of(loaded, run, "sacct-tries.txt") or sacct_of(loaded, run)
    jobs = usages(loaded, text)
    if text and not jobs:
        raise DataError("price a run", "its sacct text lists no job of it", "fetch the run again")
    lines = rates.actual(loaded, jobs, slurm.get("job", {}).get("id", ""))
    duration = Decimal(str(figures.get("pipeline_s", 0) if run["target"] != "local" else 0))
    if not duration:
        return Bill(tuple(lines), seff=seff)
    lines += rates.cloud_lines(loaded, duration)
    stored = int(run.get("stored_bytes", 0))
    if stored and "storage" in loaded.rates:
        lines.append(rates.storage_line(loaded, stored, duration))
    return Bill(tuple(lines), tuple(rates.cloud_lines(loaded, duration, started=True)), seff)


def sacct_of(loaded: Settings, run: Json, name: str = "sacct.txt") -> str:
    """Return the raw sacct text of the job whose result the run has.

    Empty if the file is missing, or the site has no accounting.
    """
    path = loaded.profile_dir / "runs" / str(run["run"]) / name
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def bill_figures(bill: Bill) -> dict[str, float]:
    """Return the article's three rows: Slurm, VM and address, and both rounded and added up.

    Only the article's own sum adds two kinds, CPU BU and Cloud BU; it is left out where jobs
    cost anything else. Jobs that cost units of several kinds have no Slurm row.
    """
    jobs = slurm_kinds(bill.lines)
    cloud = money(rates.totals(bill.lines).get("Cloud BU", Decimal(0)))
    row = {"cloud_bu": float(cloud)}
    if not jobs:
        return {**row, "total_bu": float(cloud)}
    if len(jobs) == 1:
        kind, units = next(iter(jobs.items()))
        row["slurm_bu"] = float(money(units))
        if kind == "CPU BU":
            row["total_bu"] = float(money(units) + cloud)
    return row


def job_units(loaded: Settings, sacct_text: str) -> float | None:
    """Return the units that the jobs of a listing cost, for where seff does not have them.

    None if the listing has no job. Raises DataError if the units are of several kinds, which are
    never added.
    """
    jobs = usages(loaded, sacct_text)
    if not jobs:
        return None
    kinds = slurm_kinds(rates.actual(loaded, jobs))
    if len(kinds) > 1:
        got = ", ".join(f"{money(units)} {kind}" for kind, units in kinds.items())
        raise DataError("price the jobs of a run", f"units of several kinds: {got}")
    return float(money(sum(kinds.values(), Decimal(0))))


def estimate(loaded: Settings, target: str) -> Bill:
    """Price a run before it starts, at most: the job to its time limit, the VM as long.

    How long a cloud run takes is not known: the VM is counted for an hour. Raises UsageError for
    a job that its partition does not take.
    """
    if target == "cloud-hpc":
        _check_profile(loaded)
    if target == "local" or not loaded.rates:
        return Bill(())
    lines: list[Line] = []
    duration = rates.HOUR
    if target == "cloud-hpc" and loaded.hpc is not None:
        planned = held_resources(loaded, job_for(loaded.hpc, "plan", ()))
        lines += rates.job_lines(loaded, planned, "job, to its time limit")
        duration = planned.seconds
    lines += rates.cloud_lines(loaded, duration)
    return Bill(tuple(lines), tuple(rates.cloud_lines(loaded, duration, True)))


def refuse_over(loaded: Settings, target: str, limit: str = "") -> Bill:
    """Return the estimate of a run. Raises UsageError for a closed site or one over the budget.

    `limit` (BU of any kind) replaces the profile's [budget] for this run.
    """
    if loaded.site.closed and target != "local":
        raise UsageError(
            f"run {target} on {loaded.profile}", loaded.site.closed, "use another profile"
        )
    bill = estimate(loaded, target)
    rates.check_budget(loaded, bill.lines, {"any": limit} if limit else loaded.budget)
    return bill


def check_affordable(
    loaded: Settings, host: Host | None = None, target: str = "cloud-hpc", limit: str = ""
) -> None:
    """Raise UsageError if a run is over its partition, its budget or what the project has left.

    `csc-projects` on the login node prints what is left; on a site without it only the budget
    counts. Without any budget nothing is asked. Raises what `host.run` does, but no DataError or
    UsageError, which would refuse the run: that the site was not asked says nothing about it.
    """
    if target == "cloud-hpc":
        _check_profile(loaded)
    if not (limit or loaded.budget):
        return
    lines, hpc = refuse_over(loaded, target, limit).lines, loaded.hpc
    if lines and hpc is not None:
        _check_remaining(loaded, hpc, lines, host or site_host(loaded))


def check_job(loaded: Settings, job: JobSpec, host: Host) -> None:
    """Raise UsageError if a job is over its partition, its budget or what the project has.

    It is priced to its time limit. Without any budget nothing is asked. Raises what
    `check_affordable` does.
    """
    check_limits(loaded, job)
    if loaded.budget and loaded.hpc is not None:
        lines = rates.job_lines(loaded, held_resources(loaded, job), "job, to its time limit")
        rates.check_budget(loaded, lines, loaded.budget)
        _check_remaining(loaded, loaded.hpc, lines, host)


def _check_profile(loaded: Settings) -> None:
    if loaded.hpc is not None:
        check_limits(loaded, job_for(loaded.hpc, "plan", ()))


def _check_remaining(loaded: Settings, hpc: Hpc, lines: Sequence[Line], host: Host) -> None:
    argv = ["csc-projects", "-p", hpc.account]
    try:
        answer = host.run(argv, check=False, repeat=True)
    except (DataError, UsageError) as err:
        raise KitError(err.tried, err.got, err.next_step) from err
    rates.check_budget(loaded, lines, rates.parse_remaining_units(answer.out))
