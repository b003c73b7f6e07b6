"""The bill: what was held times a profile's rates. Pure, in `Decimal`, never rounded inside.

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
LOST = "a try without a result"


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
        """Give the bill for a JSON file; numbers are texts with all their digits."""
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


def job_lines(settings: Settings, load: Resources, what: str = "job", note: str = "") -> list[Line]:
    """Price what a job holds.

    Raises UsageError for a partition without a rate and a rate that is no number, DataError for
    a negative or endless time and for memory that decides the price but is not known.
    """
    if not load.seconds.is_finite() or load.seconds < 0:
        raise DataError(f"price {what}", f"it ran {load.seconds} s", "look at its sacct text")
    key, rate = load.partition, rate_of(settings, load.partition)
    hours = load.seconds / HOUR
    if rate.max:
        terms = [_term(settings, key, rate, name, load) for name in rate.max]
        count, unit, price = max(terms, key=lambda term: term[0] * term[2])
    else:
        held = {"node-h": load.nodes, "GPU-h": load.gpus, "core-h": load.cores, "h": 1}
        if rate.per not in held:
            raise UsageError(f"{_where(settings, key)}: per = {rate.per!r} is not known",
                             next_step=f"write one of {', '.join(held)}")  # fmt: skip
        count, unit = Decimal(held[rate.per]), rate.per
        price = number(settings, key, "rate", rate.rate)
    lines = [_line(f"{what}: {load.partition}", count * hours, unit, price, rate, note)]
    for name, factor in rate.plus.items():
        extra = _held(load, name, what)
        if extra:
            price = number(settings, key, f"plus.{name}", factor)
            lines.append(_line(f"{what}: reserved disk", extra * hours, "GiB-h", price, rate, note))
    return lines


def _term(
    settings: Settings, key: str, rate: Rate, name: str, load: Resources
) -> tuple[Decimal, str, Decimal]:
    """Give one term of a `max`: how many, of what, at which price an hour."""
    factor = rate.max[name]
    base = number(settings, key, "rate", rate.rate or "1")
    unit = {"gib": "GiB-h", "cores": "core-h", "gpus": "GPU-h"}.get(name, f"{name}-h")
    held = _held(load, name, f"a job on {key}")
    if factor.startswith("/"):
        by = number(settings, key, f"max.{name}", factor[1:])
        started = (held / by).to_integral_value(ROUND_CEILING)
        return started, f"x {factor[1:]} {unit}", base
    return held, unit, base * number(settings, key, f"max.{name}", factor)


def _held(load: Resources, name: str, what: str) -> Decimal:
    value = getattr(load, {"gib": "memory_gib"}.get(name, name), None)
    if value is None:
        step = "ask sacct for AllocTRES or ReqMem, or name the memory in the profile ([hpc] mem)"
        raise DataError(f"price {what}", f"how much {name} it held is not known", step)
    return Decimal(value)


def _line(
    what: str, quantity: Decimal, unit: str, price: Decimal, rate: Rate, note: str = ""
) -> Line:
    amount = quantity * price
    return Line(what, quantity, unit, price, amount, _kind(rate), rate.source, rate.checked, note)


def _kind(rate: Rate) -> str:
    return rate.unit if rate.unit.startswith(rate.kind) else f"{rate.kind} {rate.unit}"


def rate_of(settings: Settings, key: str) -> Rate:
    """Find a rate of the profile. Raises UsageError that names the missing key and its file."""
    if key not in settings.rates:
        have = ", ".join(settings.rates) or "none"
        raise UsageError(f"{_where(settings, key)} is missing", f"it has: {have}",
                         "add it with its source, or name another partition")  # fmt: skip
    return settings.rates[key]


def number(settings: Settings, key: str, name: str, text: str) -> Decimal:
    """Read a number of a rate. Raises UsageError that names the key and the file."""
    try:
        value = Decimal(text)
    except InvalidOperation as err:
        raise UsageError(f"{_where(settings, key)}: {name} = {text!r} is no number",
                         next_step="write it as \"0.75\"") from err  # fmt: skip
    if not value.is_finite() or value < 0:
        raise UsageError(f"{_where(settings, key)}: {name} = {text!r} is no price")
    return value


def _where(settings: Settings, key: str) -> str:
    return f"{settings.file}: [rates.{key}]"


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


def storage_line(settings: Settings, stored: int, duration: Decimal) -> Line:
    """Price bytes in the object store for as long as the run took."""
    rate = rate_of(settings, "storage")
    quantity = Decimal(stored) / TIB * duration / HOUR
    return _line("storage", quantity, rate.per, number(settings, "storage", "rate", rate.rate),
                 rate, "while the run lasted")  # fmt: skip


def actual(settings: Settings, usages: Sequence[Usage], committed: str = "") -> list[Line]:
    """Price every life of every job that sacct lists; one that never ran is a line of 0.

    `committed` is the id of the job whose result was kept: the others are noted as `LOST`.
    """
    lines: list[Line] = []
    seen: dict[str, int] = {}
    for usage in usages:
        seen[usage.job_id] = life = seen.get(usage.job_id, 0) + 1
        what = f"job {usage.job_id}" + (f", start {life}" if life > 1 else "")
        note = "" if usage.job_id == committed or not committed else LOST
        note = note if usage.state.finished else f"{usage.state.name}: so far"
        if not usage.elapsed_seconds:
            begun = usage.rows[0].start is not None and usage.state.finished
            raw = usage.rows[0].columns.get("ElapsedRaw", "")
            note = f"sacct says {raw} s: not billed" if raw.startswith("-") else note
            note = note or ("ended within its first second" if begun else "never started")
            rate = settings.rates.get(usage.rows[0].columns.get("Partition", "").split(",")[0])
            kind = _kind(rate) if rate else "CPU BU"
            zero = Decimal(0)
            lines.append(Line(what, zero, "h", zero, zero, kind, "sacct", "", note))
            continue
        lines += job_lines(settings, allocated_resources(usage), what, note)
    return lines


def within(settings: Settings, lines: Iterable[Line], limits: Mapping[str, str]) -> None:
    """Refuse a plan that costs more of a kind than `limits` (kind -> BU) allow.

    A limit's name is the kind (`CPU`, `CPU BU`) or `any`. Raises UsageError, also for a limit
    that is no number.
    """
    for kind, cost in totals(lines).items():
        for name, text in limits.items():
            limit = number(settings, "budget", name, text)
            if name in ("any", kind, kind.partition(" ")[0]) and cost > limit:
                got = f"it may cost {money(cost)} {kind}, and {limit} are allowed"
                raise UsageError(f"the plan on {settings.profile} is over the budget", got,
                                 "ask for less in [hpc], or raise the budget")  # fmt: skip


def left(text: str) -> dict[str, str]:
    """Read `csc-projects -p PROJECT`: kind -> units that remain; {} where it says nothing.

    Today's form has a row a kind, the one before a single budget (`any`). Source:
    https://docs.csc.fi/accounts/how-to-manage-your-project/
    """
    rows = re.findall(r"^(\w+) BU: +\d+ +\d+ +(-?\d+)\s*$", text, flags=re.MULTILINE)
    whole = re.findall(r"\bRemain: *(-?\d+)\s*$", text, flags=re.MULTILINE)
    found = dict(rows) or ({"any": whole[0]} if whole else {})
    return {kind: str(max(0, int(units))) for kind, units in found.items()}
