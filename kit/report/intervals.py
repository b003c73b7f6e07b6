"""Intervals of 95 %: of a share over the items tested on, of a mean over seeds.

A share of tested items has the interval of Wilson: other items could have been tested. A sweep
over seeds says more, because another seed trains another model: the interval of Student's t
around the mean of the trials that differ in nothing but their seed.
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kit.base import Json, read_history
from kit.base.settings import Settings
from kit.experiments import DEFAULT
from kit.runs.history import TRIAL_LINES
from kit.sweeps.engine import DONE

SEED = "seed"
Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
# What a line of the history lists beside the experiment's parameters.
OPTIONS = ("gates", "strict", "configured", "workers", "tunnel", "sweep")
_T95 = (12.706205, 4.302653, 3.182446, 2.776445)  # two-sided 95 % of Student's t, 1 to 4 degrees


@dataclass(frozen=True)
class Spread:
    """One combination of parameters with several seeds: what the trials of one sweep reached.

    `combination` has all parameters but the seed and the hash of the data; it is empty where the
    history has no line of the sweep. `varied` are those that the sweep varies, in words.
    """

    experiment: str
    target: str
    run: str
    primary: str
    varied: str
    combination: str
    values: tuple[float, ...]

    def interval(self) -> tuple[float, float, float]:
        """Return the low end, the mean and the high end of the 95 % interval of the mean."""
        mean, count = statistics.mean(self.values), len(self.values)
        half = t95(count - 1) * statistics.stdev(self.values) / math.sqrt(count)
        return mean - half, mean, mean + half

    def cell(self) -> dict[str, str]:
        """Return the row of a table: its label and the interval."""
        low, _, high = self.interval()
        label = f"{self.primary}, 95 % interval (t over seeds)"
        return {label: f"{low:.4f} to {high:.4f} ({len(self.values)} seeds)"}

    def __str__(self) -> str:
        """Return the spread as a sentence."""
        names = ", ".join(filter(None, (self.experiment, self.target, self.varied)))
        low, mean, high = self.interval()
        return (
            f"{names}: {self.primary} {mean:.4f} ± {statistics.stdev(self.values):.4f} over "
            f"{len(self.values)} seeds, 95 % interval {low:.4f} to {high:.4f} (Student's t; "
            f"{self.run})."
        )


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` tests, after Wilson (1927).

    It holds for a share of the items themselves. A mean over classes is that share only where
    every class has the same number of items.
    """
    if count <= 0:
        return 0.0, 1.0
    spread = Z95 * Z95 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def t95(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t, to 0.0003.

    From five degrees of freedom by the expansion of Abramowitz and Stegun, 26.7.5.
    """
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z = Z95
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    more: float = sum(term / degrees**power for power, term in enumerate(terms, start=1))
    return z + more


def read_spreads(settings: Settings) -> list[Spread]:
    """Return what sweeps have trained to the end with several seeds, in the order of the history.

    A trial that was stopped early or failed is left out.
    """
    trials = read_history(settings.profile_dir / TRIAL_LINES)[0]
    if not trials:
        return []
    history = read_history(settings.profile_dir / "history.jsonl")[0]
    sweeps = {line["run"]: line for line in history if "sweep" in line}
    groups: dict[Spread, list[float]] = {}
    for row in trials:
        values, primary = dict(row.get("values", {})), str(row.get("primary", ""))
        if row.get("state") != DONE or SEED not in values or primary not in row.get("metrics", {}):
            continue
        sweep = sweeps.get(row["run"])
        combination = combination_of(sweep, values) if sweep else ""
        del values[SEED]
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        of = (str(row.get("experiment")), str(row.get("target")), row["run"], primary)
        group = Spread(*of, words, combination, ())
        groups.setdefault(group, []).append(row["metrics"][primary])
    return [
        replace(group, values=tuple(found)) for group, found in groups.items() if len(found) > 1
    ]


def combination_of(run: Json, values: Json) -> str:
    """Return the parameters of a run, with other values for some, without its seed; and its data.

    Empty for a training that several workers share: no trial of a sweep is trained like that.
    """
    parameters = run.get("parameters", {})
    if "sweep" not in parameters and parameters.get("workers", 1) != 1:
        return ""
    trained = {name: value for name, value in parameters.items() if name not in OPTIONS}
    trained = {name: value for name, value in {**trained, **values}.items() if name != SEED}
    return json.dumps([trained, (run.get("data") or {}).get("hash")], sort_keys=True)


def spread_of(spreads: Iterable[Spread], run: Json, primary: str) -> Spread | None:
    """Return what the newest sweep over seeds says of a run's metric; None without one.

    The experiment, the data and all parameters but the seed are the same, the target may differ.
    """
    wanted = str(run.get("experiment") or DEFAULT), primary, combination_of(run, {})
    same = [s for s in spreads if (s.experiment, s.primary, s.combination) == wanted]
    return same[-1] if same and wanted[-1] else None
