"""The experiments that the kit runs.

An experiment has parameters (`Parameters`: types, ranges, defaults and descriptions, checked
when a run starts) and metrics, which are held against `Thresholds` before a model is registered.
Begin with `fashion_mnist/training.py`, the article's experiment from top to bottom.
"""

from kit.experiments.gates import GatesNotPassed as GatesNotPassed
from kit.experiments.gates import Thresholds as Thresholds

__all__ = ["GatesNotPassed", "Thresholds"]
