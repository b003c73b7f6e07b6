"""The settings of one training and the values they may have (no torch: cheap to import)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kit.base.errors import UsageError


@dataclass(frozen=True)
class Hyperparameters:
    """The settings of one training; the defaults are the article's.

    `threads` was not recorded there. With batches of 4 one thread is the fastest on most
    machines. Raises UsageError for a value outside the allowed range.
    """

    epochs: int = 5
    batch_size: int = 4
    learning_rate: float = 0.001
    momentum: float = 0.9
    seed: int = 42
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check every value."""
        for name, (least, most) in WHOLE.items():
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool)
            if not good or not least <= value <= most:
                raise _not_allowed(name, value, f"a whole number from {least} to {most}")
        rate, momentum = self.learning_rate, self.momentum
        if not _is_number(rate) or not 0 < rate <= 10:
            raise _not_allowed("learning_rate", rate, "a number above 0 and up to 10")
        if not _is_number(momentum) or not 0 <= momentum < 1:
            raise _not_allowed("momentum", momentum, "a number from 0 to below 1")
        if self.device not in ("cpu", "cuda"):
            raise _not_allowed("device", self.device, "cpu or cuda")


def from_json(table: Mapping[str, Any]) -> Hyperparameters:
    """Read what went through JSON, where a whole number may have become 5.0. Raises UsageError."""
    if unknown := set(table) - {each.name for each in fields(Hyperparameters)}:
        raise UsageError(f"hyperparameters of other names: {', '.join(sorted(unknown))[:200]}")
    whole = {n: int(v) for n, v in table.items() if n in WHOLE and _is_number(v) and v == int(v)}
    return Hyperparameters(**{**table, **whole})


WHOLE = {
    "epochs": (1, 10_000),
    "batch_size": (1, 60_000),
    "seed": (0, 2**53 - 1),  # exact as a float: JSON, and KFP's arguments
    "threads": (1, 1024),
}


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _not_allowed(name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{name} = {value!r} is not possible", next_step=f"give {name} {allowed}")
