"""Where a run's billing units went: the same job elsewhere, and waste in a sentence. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal

from kit.base.settings import Partition, Settings
from kit.billing import rates as billing
from kit.billing.rates import Line, money
from kit.slurm import Resources, parse_duration

# A job that used 2.2 GiB asks for 3: whole GiB, with a tenth to spare.
SPARE = Decimal("1.1")
FOR_TESTS = ("test", "debug", "gputest", "dev-g")  # sites ask not to work on these


@dataclass(frozen=True)
class Used:
    """What a job held (`load`), asked for, worked and needed, summed over its nodes.

    `workers` are the processes that trained; Ray spreads them, so each has a node of its own
    while there are any.
    """

    load: Resources
    asked_cores: int
    asked_gib: Decimal
    worked_seconds: Decimal
    needed_gib: Decimal
    workers: int = 1

    @property
    def needed_cores(self) -> int:
        """The fewest whole cores that could have done the work in the same time.

        Each worker needs one.
        """
        busy = self.worked_seconds / self.load.seconds if self.load.seconds else Decimal(0)
        return max(self.workers, int(busy.to_integral_value(ROUND_CEILING)))

    @property
    def needed_whole_gib(self) -> int:
        """The memory that it needed, in whole GiB with something to spare."""
        return max(1, int((self.needed_gib * SPARE).to_integral_value(ROUND_CEILING)))


@dataclass(frozen=True)
class Offer:
    """The price of a job on one partition of one site; `what` says what is asked for there."""

    site: str
    partition: str
    what: str
    line: Line
    closed: bool


def elsewhere(job: Used, sites: Iterable[Settings]) -> list[Offer]:
    """Price a job on every partition of every site that could hold it, for the same time.

    Whole-node partitions take the same number of nodes, the others what was asked for and what
    was needed.
    """
    offers: list[Offer] = []
    for site in sites:
        for name, partition in site.partitions.items():
            if name in FOR_TESTS:
                continue
            rate = site.rates[name]
            if rate.per == "node-h":
                nodes = job.load.nodes
                wanted = {f"{nodes} full node{'s' * (nodes > 1)}": (job.asked_cores, job.asked_gib)}
            else:
                wanted = {
                    "same request": (job.asked_cores, job.asked_gib),
                    "what it used": (job.needed_cores, Decimal(job.needed_whole_gib)),
                }
            for what, (cores, gib) in wanted.items():
                load = replace(job.load, partition=name, cores=cores, memory_gib=gib)
                if _holds(partition, load, whole=rate.per == "node-h"):
                    cores_gib = "" if rate.per == "node-h" else f" ({_cores(cores)}, {gib:f} GiB)"
                    line = billing.job_lines(site, load)[0]
                    offers.append(
                        Offer(site.profile, name, what + cores_gib, line, bool(site.site.closed))
                    )
    return offers


def _cores(count: int) -> str:
    return f"{count} core{'s' * (count > 1)}"


def _holds(partition: Partition, load: Resources, whole: bool) -> bool:
    """Say whether a job fits: its time, its nodes and its GPUs, its cores and memory together."""
    nodes = load.nodes if whole else min(load.nodes, partition.nodes)
    limit = Decimal(str(parse_duration(partition.time) or 0))
    return (
        load.seconds <= limit
        and nodes <= partition.nodes
        and bool(load.gpus) == bool(partition.gpus)
        and load.gpus <= partition.gpus * nodes
        and load.cores <= partition.cores * nodes
        and (load.memory_gib or 0) <= partition.gib * nodes
    )


def sentences(job: Used, cost: Line | None, offers: Sequence[Offer]) -> list[str]:
    """Say what was held and not used, and the one change that would have saved most.

    `cost` is what the job came to; a site of one's own has no price, and nothing to save.
    """
    held = job.load.cores
    told = []
    if job.load.seconds and held:
        share = 100 * job.worked_seconds / (job.load.seconds * held)
        told.append(f"CPU efficiency {share:.2f} %: {job.worked_seconds:.0f} core-seconds were "
                    f"worked of {job.load.seconds * held:,.0f} reserved.")  # fmt: skip
    idle = job.load.nodes - job.workers
    if idle > 0:
        told.append(f"{idle} of {job.load.nodes} nodes had nothing to do.")
    if job.needed_gib < job.asked_gib / 2:
        told.append(f"{job.asked_gib:.1f} GiB of memory were asked for, "
                    f"{job.needed_gib:.1f} GiB were used.")  # fmt: skip
    if cost is None:
        return told
    best = min((o for o in offers if o.line.kind == cost.kind and not o.closed),
               key=lambda offer: offer.line.bu, default=None)  # fmt: skip
    if best is not None and money(best.line.bu) < money(cost.bu):
        told.append(_change(job, cost, best))
    return told


def _change(job: Used, cost: Line, best: Offer) -> str:
    nodes = f"{job.load.nodes} node{'s were' if job.load.nodes > 1 else ' was'}"
    cores = _cores(job.needed_cores)
    ask = f"--partition {best.partition}"
    if "used" in best.what:
        ask += f" --cpus-per-task {job.needed_cores} --mem {job.needed_whole_gib}G"
    return (
        f"{nodes} reserved, {cores} and {job.needed_gib:.1f} GB used: `{ask}` on {best.site} "
        f"would have cost {money(best.line.bu)} instead of {money(cost.bu)} {cost.kind}."
    )


def pipeline(parts: Mapping[str, float], threads: int, cores: int) -> list[str]:
    """Say which share of a pipeline was not training, and whether threads and cores fit."""
    told = []
    whole, training = sum(parts.values()), parts.get("training", 0.0)
    if whole:
        rest = {name: value for name, value in parts.items() if name != "training"}
        told.append(f"{100 * (whole - training) / whole:.0f} % of the pipeline was not training")
        if rest:
            largest = max(rest, key=lambda name: rest[name])
            told[-1] += f"; most of that went to {largest} ({rest[largest]:.1f} s)"
        told[-1] += "."
    if threads > cores:
        told.append(f"{threads} threads on {cores} cores: they wait for each other; "
                    f"-p threads {cores} at most.")  # fmt: skip
    elif threads < cores:
        told.append(f"{threads} thread(s) on {cores} reserved cores: [hpc] cpus = {threads} "
                    "would have done.")  # fmt: skip
    return told
