"""The gates: how good a model must be to be registered."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kit.base import KitError, UsageError


class GatesNotPassed(KitError):
    """The model is not good enough, and the run was started with `strict`."""


@dataclass(frozen=True)
class Gates:
    """The least accuracy, precision and recall (0 to 1) of a model that is registered."""

    accuracy: float = 0.8
    precision: float = 0.8
    recall: float = 0.8

    def __post_init__(self) -> None:
        """Check every threshold."""
        for kind, value in dataclasses.asdict(self).items():
            if not 0 <= value <= 1:
                raise UsageError(
                    f"min_{kind} = {value!r} is not possible",
                    next_step=f"give min_{kind} a number from 0 to 1",
                )

    def outcome(self, performance: Mapping[str, float]) -> dict[str, Any]:
        """Compare; `missed` has a sentence for each gate that was not passed."""
        thresholds = dataclasses.asdict(self)
        missed = [
            f"{kind} {performance[kind]:.4f} is below {least}"
            for kind, least in thresholds.items()
            if not performance[kind] >= least  # so that "not a number" does not pass
        ]
        return {"passed": not missed, "thresholds": thresholds, "missed": missed}
