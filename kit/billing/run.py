"""The bill of a run from what its folder holds, the estimate before it, and both as tables.

Rates are the profile's; usage is sacct's raw text (`sacct.txt`), seff's figure stands beside it.
"""

from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

from kit.base import DataError, Host, Json, KitError, UsageError, read_history, site_host
from kit.base.settings import Settings
from kit.billing import rates as billing
from kit.billing.rates import Bill, Line, money
from kit.runs.history import Run
from kit.slurm import Usage, job_starts, planned_resources, read_account, usage_of
from kit.store import ObjectStore


def usages(loaded: Settings, sacct_text: str) -> list[Usage]:
    """Read every life of every job of a raw sacct listing."""
    zone = ZoneInfo(loaded.hpc.timezone if loaded.hpc else "UTC")
    return [usage_of(start) for start in job_starts(read_account(sacct_text, zone))]


def of_run(loaded: Settings, run: Json) -> Bill:
    """Price a run of the history by today's profile: jobs, VM and address, what it stored.

    A run of several tries has the jobs of all of them in its bill. A file that is missing costs
    its lines.
    """
    slurm, figures = run.get("slurm", {}), run.get("figures", {})
    told = slurm.get("seff", {})
    seff = "" if "Source" in told else str(told.get("Non-Interactive BUs", ""))
    if not loaded.rates:
        return Bill((), seff=seff)
    one = sacct_of(loaded, run)
    files = [path for path in (one.with_name("sacct-tries.txt"), one) if path.exists()]
    jobs = usages(loaded, files[0].read_text(encoding="utf-8")) if files else []
    if files and not jobs:
        raise DataError("price a run", f"its {files[0].name} lists no job", "fetch the run again")
    lines = billing.actual(loaded, jobs, slurm.get("job", {}).get("id", ""))
    duration = Decimal(str(figures.get("pipeline_s", 0) if run["target"] != "local" else 0))
    if not duration:
        return Bill(tuple(lines), seff=seff)
    lines += billing.cloud_lines(loaded, duration)
    stored = int(run.get("stored_bytes", 0))
    if stored and "storage" in loaded.rates:
        lines.append(billing.storage_line(loaded, stored, duration))
    return Bill(tuple(lines), tuple(billing.cloud_lines(loaded, duration, started=True)), seff)


def sacct_of(loaded: Settings, run: Json) -> Path:
    """Name the file with the raw sacct text of the job whose result the run has."""
    return loaded.profile_dir / "runs" / str(run["run"]) / "sacct.txt"


def figures(bill: Bill) -> dict[str, float]:
    """Give the article's three rows: Slurm, VM and address, and both rounded and added up.

    Only this sum adds two kinds, because the article's table does; storage is not in it.
    """
    sums = billing.totals(bill.lines)
    cloud = money(sums.pop("Cloud BU", Decimal(0)))
    sums.pop("Storage BU", None)
    found = {"cloud_bu": float(cloud)}
    if sums:
        slurm = money(sum(sums.values(), Decimal(0)))
        return {"slurm_bu": float(slurm), **found, "total_bu": float(slurm + cloud)}
    return {**found, "total_bu": float(cloud)}


def keep(run: Run, facts: Json, store: ObjectStore) -> Json:
    """Write the bill of a run that is done into its folder; give its facts with the figures.

    What it keeps in the store counts. A run is not lost for a price: where there is none, `bill`
    says why.
    """
    keys = f"data/{facts['data']['hash']}", f"runs/{run.id}/"
    count = sum(each.size for prefix in keys for each in store.list(prefix))
    facts = {**facts, "stored_bytes": count}
    try:
        bill = of_run(run.settings, {"run": run.id, "target": run.target, **facts})
    except KitError as err:
        return {**facts, "bill": {"problem": str(err)}}
    run.save("bill.json", bill.as_json())
    merged = facts["figures"] | (figures(bill) if bill.lines else {})
    return {**facts, "figures": merged, "bill": bill.as_json()["totals"]}


def job_units(loaded: Settings, sacct_text: str) -> float:
    """Give the units that the jobs of a listing cost, for where seff does not say them."""
    lines = billing.actual(loaded, usages(loaded, sacct_text))
    return float(money(sum((line.bu for line in lines), Decimal(0))))


def estimate(loaded: Settings, target: str) -> Bill:
    """Price a run before it starts, at most: the job to its time limit, the VM as long.

    How long a cloud run takes is not known: the VM is counted for an hour.
    """
    if target == "local" or not loaded.rates:
        return Bill(())
    lines: list[Line] = []
    duration = billing.HOUR
    if target == "cloud-hpc" and loaded.hpc is not None:
        load = planned_resources(loaded.hpc)
        lines += billing.job_lines(loaded, load, "job, to its time limit")
        duration = load.seconds
    lines += billing.cloud_lines(loaded, duration)
    return Bill(tuple(lines), tuple(billing.cloud_lines(loaded, duration, True)))


def refuse_over(loaded: Settings, target: str, limit: str = "") -> Bill:
    """Estimate a run and refuse it (UsageError): a closed site, or over what is allowed.

    `limit` (BU of any kind) replaces the profile's [budget] for this run.
    """
    if loaded.site.closed and target != "local":
        raise UsageError(f"run {target} on {loaded.profile}", loaded.site.closed,
                         "use another profile")  # fmt: skip
    bill = estimate(loaded, target)
    billing.within(loaded, bill.lines, {"any": limit} if limit else loaded.budget)
    return bill


def afford(
    loaded: Settings, host: Host | None = None, target: str = "cloud-hpc", limit: str = ""
) -> None:
    """Refuse a run (UsageError) over its budget (as `refuse_over`) or what the project has left.

    What is left is asked of `csc-projects` on the site's login node; a site without it is taken
    at its budget. Without any budget nothing is asked. Raises what `host.run` does.
    """
    if not (limit or loaded.budget):
        return
    lines, hpc = refuse_over(loaded, target, limit).lines, loaded.hpc
    if lines and hpc is not None:
        host = host or site_host(loaded)
        argv = ["csc-projects", "-p", hpc.account]
        billing.within(loaded, lines, billing.left(host.run(argv, check=False, repeat=True).out))


def find(loaded: Settings, run_id: str) -> Json:
    """Find a run of the history. Raises UsageError that names the newest ones."""
    history, _ = read_history(loaded.profile_dir / "history.jsonl")
    for run in reversed(history):
        if run["run"] == run_id:
            return run
    newest = ", ".join(str(run["run"]) for run in history[-3:]) or "no finished run"
    raise UsageError(f"profile {loaded.profile} has no finished run {run_id!r}",
                     f"the newest: {newest}", "kit bill lists them")  # fmt: skip
