"""The calls of the notebooks: `start` a run of a target, then its steps; `plan` shows it before.

`Run` is one class for the three targets. Everything that is computed is in the rooms below; here
are the steps in the order of the cells and how their results look. Begin with `run.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.notebook.run import Run, show_code, show_estimate, start

__all__ = ["Run", "show_code", "show_estimate", "start"]


def __getattr__(name: str) -> Any:
    """Load a name when it is used: plots and pipelines are heavy."""
    if name in __all__:
        return getattr(importlib.import_module("kit.notebook.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
