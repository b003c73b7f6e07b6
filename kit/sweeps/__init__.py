"""Sweeps: many trials of one experiment in one run, each with its own parameters and result.

Begin with `space`, which turns a search space into trials, then `engine`, which carries them out.
Both are used on this machine (`here`) and inside the job on a site (`kit.onsite.sweep`).
"""

from kit.sweeps.engine import TRIALS, Slots, carry_out, run_sweep, stored_results, table_of
from kit.sweeps.space import MAX_TRIALS, Sweep, Trial, expand, trials_of

__all__ = [
    "MAX_TRIALS",
    "TRIALS",
    "Slots",
    "Sweep",
    "Trial",
    "carry_out",
    "expand",
    "run_sweep",
    "stored_results",
    "table_of",
    "trials_of",
]
