"""The experiments that the kit runs.

An experiment is a module with five names (`contract`); it is found by its name or its file
(`loader`) and carried out the same way on every target (`running`). Its metrics are held against
`Thresholds` before a model is registered. Begin with `contract.py`, then `digits.py`.
"""

from kit.experiments.contract import Context, DataInfo, Experiment, Goal
from kit.experiments.gates import GatesNotPassed, Thresholds, upper_bound
from kit.experiments.listed import list_experiment
from kit.experiments.loader import (
    DEFAULT,
    experiment_names,
    experiment_with_code,
    imported_experiment,
    load_experiment,
    remember,
)
