"""Thresholds of metrics: how good a model must be to be registered."""

import math
from collections.abc import Mapping
from typing import Any

from kit.base import KitError, UsageError

AT_MOST = "<="  # an upper bound is a text, such as "<= 0.3"


class GatesNotPassed(KitError):
    """The model is not good enough, and the run was started with `strict`."""


class Thresholds(dict[str, float | str]):
    """The bound of each metric that a registered model must keep, in the order of names.

    A number is the least value, the text "<= 0.3" sets the greatest one, as for a loss. A
    pipeline's argument (a JSON object of Kubeflow) does not keep the order that it was given.
    """

    def __init__(self, thresholds: Mapping[str, float | str]) -> None:
        for metric, bound in thresholds.items():
            if not math.isfinite(_number(bound)):
                got = f"the gate of {metric} is {bound!r}, which is not a finite number"
                step = f'set it to a number, or to "{AT_MOST} 0.3" for a metric that is to be low'
                raise UsageError("read the gates", got, step)
        super().__init__(
            (metric, upper_bound(_number(bound)) if isinstance(bound, str) else bound)
            for metric, bound in sorted(thresholds.items())
        )

    def judge(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Compare; `missed` has a sentence for each gate that was not passed."""
        missed = []
        for metric, bound in self.items():
            value, upper, number = metrics.get(metric), isinstance(bound, str), _number(bound)
            if value is None:
                side = "at most" if upper else "at least"
                shown = number if upper else bound
                missed.append(f"{metric} was not measured, and {side} {shown} is required")
            elif upper and not value <= number:  # so that "not a number" does not pass
                missed.append(f"{metric} {value:.4f} is above {number}")
            elif not upper and not value >= number:
                missed.append(f"{metric} {value:.4f} is below {bound}")
        return {"passed": not missed, "thresholds": dict(self), "missed": missed}


def upper_bound(number: float) -> str:
    """Return the gate of a metric that may be at most this."""
    return f"{AT_MOST} {number}"


def _number(bound: object) -> float:
    """Return the number of a gate; "not a number" for anything that is not a gate."""
    if isinstance(bound, str) and bound.startswith(AT_MOST):
        try:
            return float(bound.removeprefix(AT_MOST))
        except ValueError:
            return math.nan
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    return float(bound) if number else math.nan  # type: ignore[arg-type]
