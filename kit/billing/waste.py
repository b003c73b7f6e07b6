"""Where a run's billing units went: the same job elsewhere, and waste in a sentence. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal

from kit.base.settings import Partition, Settings
from kit.billing import rates
from kit.billing.rates import Line, money
from kit.slurm import Resources, parse_duration

MEMORY_HEADROOM = Decimal("1.1")  # a job that used 2.2 GiB asks for 3: whole GiB, a tenth to spare
CORE_TOLERANCE = Decimal("0.1")  # Ray's own processes: 73 core-seconds in 72 s are one core


@dataclass(frozen=True)
class JobUse:
    """A job's resources: held, requested, worked and needed, summed over its nodes.

    Memory and worked seconds are None where the accounting does not know them. `workers` are the
    processes that trained; Ray spreads them, so each has a node of its own while there are any.
    """

    held: Resources
    requested_cores: int
    requested_gib: Decimal | None
    worked_seconds: Decimal | None
    needed_gib: Decimal | None
    workers: int = 1

    @property
    def needed_cores(self) -> int | None:
        """The fewest whole cores that could have done the work in the same time.

        Each worker needs one. None if it is not known how much was worked.
        """
        if self.worked_seconds is None:
            return None
        busy = self.worked_seconds / self.held.seconds if self.held.seconds else Decimal(0)
        return max(self.workers, int((busy - CORE_TOLERANCE).to_integral_value(ROUND_CEILING)))

    @property
    def needed_whole_gib(self) -> int | None:
        """The memory that it needed, in whole GiB with some headroom; None if not known."""
        if self.needed_gib is None:
            return None
        return max(1, int((self.needed_gib * MEMORY_HEADROOM).to_integral_value(ROUND_CEILING)))


@dataclass(frozen=True)
class Offer:
    """The price of a job on one partition of one site; `what` is what is requested there."""

    site: str
    partition: str
    what: str
    line: Line
    closed: bool


def elsewhere(job: JobUse, sites: Iterable[Settings]) -> list[Offer]:
    """Price a job on every partition of every site that could hold it, for the same time.

    Whole-node partitions take the same number of nodes, the others what was requested and what
    was needed. A partition without a rate has no offer.
    """
    return [
        Offer(site.profile, name, what, rates.job_lines(site, held)[0], bool(site.site.closed))
        for site in sites
        for name, partition in site.partitions.items()
        if name in site.rates and not partition.for_tests
        for what, held in _requests(job, site, name)
        if _holds(partition, held, whole=site.rates[name].per == "node-h")
    ]


def _requests(job: JobUse, site: Settings, name: str) -> list[tuple[str, Resources]]:
    """Return what could be requested on a partition: a description and the resources."""
    if site.rates[name].per == "node-h":
        nodes = job.held.nodes
        gib = job.requested_gib
        held = replace(job.held, partition=name, cores=job.requested_cores, memory_gib=gib)
        return [(f"{nodes} full node{'s' * (nodes > 1)}", held)]
    needed = job.needed_whole_gib
    wanted = {
        "same request": (job.requested_cores, job.requested_gib),
        "what it used": (job.needed_cores, None if needed is None else Decimal(needed)),
    }
    return [
        (
            f"{what} ({_cores(cores)}, {gib:f} GiB)",
            replace(job.held, partition=name, cores=cores, memory_gib=gib),
        )
        for what, (cores, gib) in wanted.items()
        if gib is not None and cores is not None
    ]


def _cores(count: int) -> str:
    return f"{count} core{'s' * (count > 1)}"


def _holds(partition: Partition, held: Resources, whole: bool) -> bool:
    """Report whether a job fits: its time, nodes and GPUs, its cores and memory together."""
    nodes = held.nodes if whole else min(held.nodes, partition.nodes)
    limit = Decimal(str(parse_duration(partition.time) or 0))
    return (
        held.seconds <= limit
        and nodes <= partition.nodes
        and bool(held.gpus) == bool(partition.gpus)
        and held.gpus <= partition.gpus * nodes
        and held.cores <= partition.cores * nodes
        and (held.memory_gib or 0) <= partition.gib * nodes
    )


def sentences(job: JobUse, cost: Line | None, offers: Sequence[Offer]) -> list[str]:
    """Return what was held and not used, and the one change that would have saved most.

    `cost` is the job's price; a site of one's own has no price, and nothing to save.
    """
    cores, seconds = job.held.cores, job.held.seconds
    advice = []
    if seconds and cores and job.worked_seconds is not None:
        share = 100 * job.worked_seconds / (seconds * cores)
        advice.append(
            f"CPU efficiency {share:.2f} %: {job.worked_seconds:.0f} core-seconds were "
            f"worked of {seconds * cores:,.0f} reserved."
        )
    idle = job.held.nodes - job.workers
    if idle > 0:
        advice.append(f"{idle} of {job.held.nodes} nodes had nothing to do.")
    needed, requested = job.needed_gib, job.requested_gib
    if needed is not None and requested is not None and needed < requested / 2:
        advice.append(f"{requested:.1f} GiB of memory were requested, {needed:.1f} GiB were used.")
    if cost is None:
        return advice
    comparable = [o for o in offers if o.line.kind == cost.kind and not o.closed]
    best = min(comparable, key=lambda offer: offer.line.bu, default=None)
    if best is not None and money(best.line.bu) < money(cost.bu):
        advice.append(_change(job, cost, best))
    return advice


def _change(job: JobUse, cost: Line, best: Offer) -> str:
    nodes = f"{job.held.nodes} node{'s were' if job.held.nodes > 1 else ' was'}"
    memory = "" if job.needed_gib is None else f" and {job.needed_gib:.1f} GB"
    used = "" if job.needed_cores is None else f", {_cores(job.needed_cores)}{memory} used"
    options = f"--partition {best.partition}"
    if "used" in best.what:
        options += f" --cpus-per-task {job.needed_cores} --mem {job.needed_whole_gib}G"
    return (
        f"{nodes} reserved{used}: `{options}` on {best.site} "
        f"would have cost {money(best.line.bu)} instead of {money(cost.bu)} {cost.kind}."
    )


def pipeline(parts: Mapping[str, float], threads: int, cores: int) -> list[str]:
    """Return which share of a pipeline was not training, and whether threads and cores fit."""
    advice = []
    whole, training = sum(parts.values()), parts.get("training", 0.0)
    if whole:
        rest = {name: value for name, value in parts.items() if name != "training"}
        share = f"{100 * (whole - training) / whole:.0f} % of the pipeline was not training"
        if rest:
            largest = max(rest, key=lambda name: rest[name])
            share += f"; most of that went to {largest} ({rest[largest]:.1f} s)"
        advice.append(f"{share}.")
    if threads > cores:
        advice.append(
            f"{threads} threads on {cores} cores: they wait for each other; "
            f"-p threads {cores} at most."
        )
    elif threads < cores:
        advice.append(
            f"{threads} thread(s) on {cores} reserved cores: [hpc] cpus = {threads} "
            "would be enough."
        )
    return advice
