"""Checks of a profile's set-up, and the diagnoses that they can make (`diagnoses.toml`).

A finding names the fault, its cause and the next step; nothing is repaired. The checks run side by
side and also on a machine with nothing set up. Begin with `checks.examine`; the modules `local`,
`store`, `hpc` and `vm` have the checks, `diagnosis` their exceptions.
"""

from kit.doctor.checks import examine
from kit.doctor.diagnosis import (
    Diagnosis,
    Finding,
    diagnoses,
    diagnosis_table,
    findings_to_text,
)
from kit.doctor.in_job import COST as JOB_COST
from kit.doctor.link_race import COST
