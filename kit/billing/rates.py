"""Prices: what a job held times a profile's rates. Pure, in `Decimal`, never rounded inside.

Kinds (CPU, GPU, Cloud and Storage BU; LUMI's core-hours) are separate budgets: a bill has a total
for each and none over all. Hours count as fractions, as in the article; cPouta bills started
hours, so a bill has its cloud lines a second time in `started`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

from kit.base import DataError, UsageError
from kit.base.settings import Rate, Settings
from kit.slurm import Resources, Usage, allocated_resources

HOUR, TIB = Decimal(3600), 2**40
CLOUD = ("vm", "floating-ip")
PROJECT_STORAGE = "project-storage"  # the rate of the folder on the site
LOST = "an attempt without a result"


@dataclass(frozen=True)
class Line:
    """One line of a bill: `bu` = `quantity` (in `unit`) times `rate`, in units of `kind`."""

    what: str
    quantity: Decimal
    unit: str
    rate: Decimal
    bu: Decimal
    kind: str
    source: str
    checked: str
    note: str = ""


@dataclass(frozen=True)
class Bill:
    """The lines of a run; `started` are its cloud lines by started hours, `seff` seff's figure."""

    lines: tuple[Line, ...]
    started: tuple[Line, ...] = ()
    seff: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the bill for a JSON file; numbers are texts with all their digits."""
        shown = {
            name: [{key: str(value) for key, value in asdict(line).items()} for line in lines]
            for name, lines in (("lines", self.lines), ("started_hours", self.started))
        }
        sums = {kind: str(money(value)) for kind, value in totals(self.lines).items()}
        return {**shown, "totals": sums, "seff": self.seff}


def money(value: Decimal) -> Decimal:
    """Round to a hundredth, a half up, as the centre prints it."""
    return value.quantize(Decimal("0.01"), ROUND_HALF_UP)


def totals(lines: Iterable[Line]) -> dict[str, Decimal]:
    """Add up each kind for itself."""
    sums: dict[str, Decimal] = {}
    for line in lines:
        sums[line.kind] = sums.get(line.kind, Decimal(0)) + line.bu
    return sums


def slurm_kinds(lines: Iterable[Line]) -> dict[str, Decimal]:
    """Add up the kinds of units that jobs cost, not the cloud's and the storage's.

    A kind of which nothing was used counts only if it is the only one.
    """
    sums = {k: v for k, v in totals(lines).items() if k not in ("Cloud BU", "Storage BU")}
    return {kind: units for kind, units in sums.items() if units} or sums


def job_lines(settings: Settings, held: Resources, what: str = "job", note: str = "") -> list[Line]:
    """Price what a job holds.

    Raises UsageError for a partition without a rate and a rate that is not a number, DataError
    for a negative or endless time and for memory that decides the price but is not known.
    """
    if not held.seconds.is_finite() or held.seconds < 0:
        raise DataError(f"price {what}", f"it ran {held.seconds} s", "look at its sacct text")
    key, rate = held.partition, rate_of(settings, held.partition)
    hours = held.seconds / HOUR
    if rate.max:
        terms = [_term(settings, key, rate, name, held) for name in rate.max]
        count, unit, price = max(terms, key=lambda term: term[0] * term[2])
    else:
        counts = {"node-h": held.nodes, "GPU-h": held.gpus, "core-h": held.cores, "h": 1}
        if rate.per not in counts:
            raise UsageError(
                f"{_where(settings, key)}: per = {rate.per!r} is not known",
                next_step=f"write one of {', '.join(counts)}",
            )
        count, unit = Decimal(counts[rate.per]), rate.per
        price = number(settings, key, "rate", rate.rate)
    lines = [_line(f"{what}: {held.partition}", count * hours, unit, price, rate, note)]
    for name, factor in rate.plus.items():
        extra = _amount(held, name, what)
        if extra:
            price = number(settings, key, f"plus.{name}", factor)
            lines.append(_line(f"{what}: reserved disk", extra * hours, "GiB-h", price, rate, note))
    return lines


def _term(
    settings: Settings, key: str, rate: Rate, name: str, held: Resources
) -> tuple[Decimal, str, Decimal]:
    """Return one term of a `max`: how many, of what, at which price an hour."""
    factor = rate.max[name]
    base = number(settings, key, "rate", rate.rate or "1")
    unit = {"gib": "GiB-h", "cores": "core-h", "gpus": "GPU-h"}.get(name, f"{name}-h")
    amount = _amount(held, name, f"a job on {key}")
    if factor.startswith("/"):
        by = number(settings, key, f"max.{name}", factor[1:])
        started = (amount / by).to_integral_value(ROUND_CEILING)
        return started, f"x {factor[1:]} {unit}", base
    return amount, unit, base * number(settings, key, f"max.{name}", factor)


def _amount(held: Resources, name: str, what: str) -> Decimal:
    value = getattr(held, {"gib": "memory_gib"}.get(name, name), None)
    if value is None:
        next_step = (
            "ask sacct for AllocTRES or ReqMem, or name the memory in the profile ([hpc] mem)"
        )
        raise DataError(f"price {what}", f"how much {name} it held is not known", next_step)
    return Decimal(value)


def _line(
    what: str, quantity: Decimal, unit: str, price: Decimal, rate: Rate, note: str = ""
) -> Line:
    amount = quantity * price
    return Line(what, quantity, unit, price, amount, _kind(rate), rate.source, rate.checked, note)


def _kind(rate: Rate) -> str:
    return rate.unit if rate.unit.startswith(rate.kind) else f"{rate.kind} {rate.unit}"


def rate_of(settings: Settings, key: str) -> Rate:
    """Return a rate of the profile. Raises UsageError that names the missing key and its file."""
    if key not in settings.rates:
        have = ", ".join(settings.rates) or "none"
        raise UsageError(
            f"{_where(settings, key)} is missing",
            f"it has: {have}",
            "add it with its source, or name another partition",
        )
    return settings.rates[key]


def number(settings: Settings, key: str, name: str, text: str) -> Decimal:
    """Read a number of a rate. Raises UsageError that names the key and the file."""
    try:
        value = Decimal(text)
    except InvalidOperation as err:
        raise UsageError(
            f"{_where(settings, key)}: {name} = {text!r} is not a number",
            next_step='write it as "0.75"',
        ) from err
    if not value.is_finite() or value < 0:
        raise UsageError(f"{_where(settings, key)}: {name} = {text!r} is not a price")
    return value


def _where(settings: Settings, key: str) -> str:
    section = key if key == "budget" else f"rates.{key}"
    return f"{settings.file}: [{section}]"


def cloud_lines(settings: Settings, duration: Decimal, started: bool = False) -> list[Line]:
    """Price the VM and its floating IP; `started`: every begun hour counts, as cPouta bills."""
    hours = duration / HOUR
    if started:
        hours = hours.to_integral_value(ROUND_CEILING)
    return [
        _line(name, hours, rate.per, number(settings, name, "rate", rate.rate), rate)
        for name, rate in settings.rates.items()
        if name in CLOUD
    ]


def storage_line(
    settings: Settings,
    stored: int,
    duration: Decimal,
    key: str = "storage",
    note: str = "while the run lasted",
) -> Line:
    """Price bytes in the object store, or on the site (`PROJECT_STORAGE`), for some seconds."""
    rate = rate_of(settings, key)
    quantity = Decimal(stored) / TIB * duration / HOUR
    return _line(key, quantity, rate.per, number(settings, key, "rate", rate.rate), rate, note)


def actual(settings: Settings, usages: Sequence[Usage], committed: str = "") -> list[Line]:
    """Price every start of every job that sacct lists; one that never ran is a line of 0.

    `committed` is the id of the job whose result was kept; the others are noted as `LOST`.
    """
    lines: list[Line] = []
    starts: dict[str, int] = {}
    for usage in usages:
        starts[usage.job_id] = start = starts.get(usage.job_id, 0) + 1
        what = f"job {usage.job_id}" + (f", start {start}" if start > 1 else "")
        note = "" if usage.job_id == committed or not committed else LOST
        note = note if usage.state.finished else f"{usage.state.name}: so far"
        if not usage.elapsed_seconds:
            started = usage.rows[0].start is not None and usage.state.finished
            raw = usage.rows[0].columns.get("ElapsedRaw", "")
            note = f"sacct says {raw} s: not billed" if raw.startswith("-") else note
            if usage.elapsed_seconds is None:
                note = note or "how long it ran is not known: not billed"
            note = note or ("ended within its first second" if started else "never started")
            rate = settings.rates.get(usage.rows[0].columns.get("Partition", "").split(",")[0])
            kind = _kind(rate) if rate else "CPU BU"
            zero = Decimal(0)
            lines.append(Line(what, zero, "h", zero, zero, kind, "sacct", "", note))
            continue
        lines += job_lines(settings, allocated_resources(usage), what, note)
    return lines


def check_budget(settings: Settings, lines: Iterable[Line], limits: Mapping[str, str]) -> None:
    """Raise UsageError if a plan costs more of a kind than `limits` (kind -> BU) allow.

    A limit's name is the kind (`CPU`, `CPU BU`) or `any`. A limit that is not a number is a
    UsageError too.
    """
    for kind, cost in totals(lines).items():
        for name, text in limits.items():
            limit = number(settings, "budget", name, text)
            if name in ("any", kind, kind.partition(" ")[0]) and cost > limit:
                got = f"it may cost {money(cost)} {kind}, and {limit} are allowed"
                raise UsageError(
                    f"the plan on {settings.profile} is over the budget",
                    got,
                    "ask for less in [hpc], or raise the budget",
                )


def parse_remaining_units(text: str) -> dict[str, str]:
    """Parse `csc-projects -p PROJECT`: kind -> units that remain; {} if it lists none.

    The form of 2026 has a row for each kind, the one before a single budget (`any`). Source:
    https://docs.csc.fi/accounts/how-to-manage-your-project/
    """
    rows = re.findall(r"^(\w+) BU: +\d+ +\d+ +(-?\d+)\s*$", text, flags=re.MULTILINE)
    whole = re.findall(r"\bRemain: *(-?\d+)\s*$", text, flags=re.MULTILINE)
    remaining = dict(rows) or ({"any": whole[0]} if whole else {})
    return {kind: str(max(0, int(units))) for kind, units in remaining.items()}
