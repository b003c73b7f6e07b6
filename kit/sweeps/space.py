"""The search space of a sweep, and its trials. Pure.

    0.001,0.01          these values
    1..5                whole numbers, both ends
    0.5..1/0.25         from 0.5 to 1 in steps of 0.25
    log:0.0001..0.1/4   four values, evenly spaced on a logarithmic scale, both ends
    0.0001..0.1         any number between, for a random search; log:0.0001..0.1 as well

Without a number of trials every combination is one. With it that many are drawn at random, by a
seed, no combination twice.
"""

import ast
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import Field, FiniteFloat

from kit.base import UsageError, sha256_of
from kit.experiments import Experiment
from kit.experiments.parameters import Parameters

MAX_TRIALS = 1000
MAX_CONTINUED = 100
_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_RANGE = re.compile(
    rf"(?P<log>log:)?(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})(?:/(?P<step>{_NUMBER}))?"
)
_WAYS = "write values as 0.001,0.01, a range as 1..5 or 0.5..1/0.25, or log:0.0001..0.1/4"


class Sweep(Parameters):
    """The trials of a run, as its request carries them: data only. Raises UsageError."""

    trials: list[dict[str, bool | int | FiniteFloat | str | None]] = Field(
        default=[],
        max_length=MAX_TRIALS,
        description="Parameters of each trial, where they differ from the run's.",
    )
    stop_early: bool = Field(
        default=False,
        description="Whether the worse half of the trials is ended at each halving.",
    )
    trial_limit_s: float = Field(
        default=0.0, ge=0.0, description="Seconds after which a trial is ended; 0: no limit."
    )
    continues: list[str] = Field(
        default=[],
        max_length=MAX_CONTINUED,
        description="Cancelled runs of it whose finished trials are taken over, newest first.",
    )


@dataclass(frozen=True)
class Trial:
    """One trial: `values` are what it has of its own, `parameters` all that it trains with."""

    id: str
    values: Mapping[str, Any]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """Listed values of a parameter."""

    values: tuple[Any, ...]

    def draw(self, source: random.Random) -> Any:
        """Return one of the values."""
        return source.choice(self.values)


@dataclass(frozen=True)
class Between:
    """Any number between two, for a random search; with `log` evenly on a logarithmic scale."""

    low: float
    high: float
    log: bool

    def draw(self, source: random.Random) -> float:
        """Return a number of six digits between both ends."""
        if self.log:
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high)
        return float(f"{min(max(value, self.low), self.high):.6g}")


def expand(space: Mapping[str, str], count: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Return the combinations of a search space, at most MAX_TRIALS.

    All of them in order, or `count` that are drawn at random. Raises UsageError for a space that
    is empty or too large, and for a range that has no values of its own without a count.
    """
    if not space:
        raise UsageError("sweep over nothing", "the search space is empty", f"-p NAME: {_WAYS}")
    dimensions = {name: _dimension(name, str(text)) for name, text in space.items()}
    if not 0 <= count <= MAX_TRIALS:
        step = f"give at most {MAX_TRIALS}"
        raise UsageError(f"run {count} trials", "that is not possible", step)
    if count:
        return _drawn(dimensions, count, seed)
    if endless := [name for name, kind in dimensions.items() if isinstance(kind, Between)]:
        step = "add a step (0.5..1/0.25), or a number of trials for a random search"
        raise UsageError(f"try every value of {endless[0]}", f"it is {space[endless[0]]}", step)
    values = [kind.values for kind in dimensions.values() if isinstance(kind, Choice)]
    if (size := math.prod(map(len, values))) > MAX_TRIALS:
        got = f"the search space has {size:,} combinations, at most {MAX_TRIALS:,} are possible"
        step = "list fewer values, or draw some of them: --trials 100"
        raise UsageError("run every trial of the sweep", got, step)
    return [
        dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)
    ]


def trials_of(
    experiment: Experiment, base: Mapping[str, Any], sweep: Sweep | Sequence[Mapping[str, Any]]
) -> list[Trial]:
    """Return the trials, each checked by the experiment's own Parameters.

    The id of a trial is the hash of all its parameters. Raises UsageError that names the trial.
    """
    rows = sweep.trials if isinstance(sweep, Sweep) else sweep
    found: dict[str, Trial] = {}
    for number, values in enumerate(rows, start=1):
        try:
            parameters = experiment.parameters(**{**base, **values}).model_dump()
        except UsageError as err:
            tried = f"trial {number} of the sweep, {named(values)}: {err.tried}"
            raise UsageError(tried, err.got, err.next_step) from err
        own = {name: parameters[name] for name in values}  # 3, also where a pipeline made it 3.0
        name = sha256_of(json.dumps(parameters, sort_keys=True).encode())[:12]
        if name in found:
            got = f"{named(values)} is there twice"
            raise UsageError("run the trials of the sweep", got, "list each value once")
        found[name] = Trial(name, own, parameters)
    return list(found.values())


def named(values: Mapping[str, Any]) -> str:
    """Return the values of a trial in words: `learning_rate 0.01, seed 3`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _drawn(
    dimensions: Mapping[str, Choice | Between], count: int, seed: int
) -> list[dict[str, Any]]:
    """Draw combinations until there are enough, each once."""
    source, found = random.Random(seed), dict[str, dict[str, Any]]()  # noqa: S311 - no secret
    for _ in range(100 * count):
        row = {name: kind.draw(source) for name, kind in dimensions.items()}
        found.setdefault(json.dumps(row), row)
        if len(found) == count:
            return list(found.values())
    got = f"the search space has only about {len(found)} different combinations"
    raise UsageError(f"draw {count} trials", got, "ask for fewer, or leave the number out")


def _dimension(name: str, text: str) -> Choice | Between:
    tried = f"read the values of {name}"
    if match := _RANGE.fullmatch(text.strip()):
        return _range(f"{tried}: {text}", **match.groupdict())
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(tried, f"{text!r:.80} has an empty value", _WAYS)
    if any(".." in word for word in words):
        raise UsageError(tried, f"{text!r:.80} is not a range", _WAYS)
    return Choice(tuple(map(_value, words)))


def _value(word: str) -> Any:
    """Read a value: a number, true or false, none, else a text."""
    known = {"true": True, "false": False, "none": None}
    if word.lower() in known:
        return known[word.lower()]
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return value if isinstance(value, str | int | float | bool) else word


def _range(tried: str, log: str | None, low: str, high: str, step: str | None) -> Choice | Between:
    first, last = Decimal(low), Decimal(high)
    if first > last or (log and first <= 0):
        got = "the first number is above the last" if first > last else "log: needs numbers above 0"
        raise UsageError(tried, got, _WAYS)
    if log:
        return _log_range(tried, float(first), float(last), step)
    whole = all(number == number.to_integral_value() for number in (first, last))
    written = not any(sign in low + high for sign in ".eE")
    if step is None and not (whole and written):
        return Between(float(first), float(last), log=False)
    distance = Decimal(step or 1)
    if distance <= 0 or (count := (last - first) // distance) >= MAX_TRIALS:
        got = "the step is not above 0" if distance <= 0 else f"it has {count + 1:,} values"
        raise UsageError(tried, got, f"at most {MAX_TRIALS} values are possible; {_WAYS}")
    numbers = [first + distance * n for n in range(int(count) + 1)]
    if whole and written and distance == distance.to_integral_value():
        return Choice(tuple(map(int, numbers)))
    return Choice(tuple(map(float, numbers)))


def _log_range(tried: str, low: float, high: float, count: str | None) -> Choice | Between:
    if count is None:
        return Between(low, high, log=True)
    if not count.isdigit() or not 2 <= int(count) <= MAX_TRIALS:
        step = "write the number of values after the stroke: log:0.0001..0.1/4"
        raise UsageError(tried, f"{count} is not a number of values, at least 2", step)
    ratio = (high / low) ** (1 / (int(count) - 1))
    inner = [float(f"{low * ratio**n:.6g}") for n in range(1, int(count) - 1)]
    return Choice((low, *inner, high))
