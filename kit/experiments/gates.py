"""Thresholds of metrics: how good a model must be to be registered."""

import math
from collections.abc import Mapping
from typing import Any

from kit.base import KitError, UsageError


class GatesNotPassed(KitError):
    """The model is not good enough, and the run was started with `strict`."""


class Thresholds(dict[str, float]):
    """The least value of each metric that a registered model must reach, in the order of names.

    A pipeline's argument (a JSON object of Kubeflow) does not keep the order that it was given.
    """

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        for metric, least in thresholds.items():
            number = isinstance(least, int | float) and not isinstance(least, bool)
            if not number or not math.isfinite(least):
                got = f"the gate of {metric} is {least!r}, which is not a finite number"
                raise UsageError("read the gates", got, f"set the gate of {metric} to a number")
        super().__init__(sorted(thresholds.items()))

    def judge(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Compare; `missed` has a sentence for each gate that was not passed."""
        missed = []
        for metric, least in self.items():
            value = metrics.get(metric)
            if value is None:
                missed.append(f"{metric} was not measured, and at least {least} is required")
            elif not value >= least:  # so that "not a number" does not pass
                missed.append(f"{metric} {value:.4f} is below {least}")
        return {"passed": not missed, "thresholds": dict(self), "missed": missed}
