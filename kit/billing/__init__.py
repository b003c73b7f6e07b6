"""Billing units: what a job held times the profile's rates; estimates, bills, waste.

Everything is computed in `Decimal` from sacct's raw text and the profile; units of different
kinds are separate budgets and are never added. Begin with `rates`, then `run`; `tables` and
`waste` are for people.
"""

from kit.billing.rates import (
    HOUR,
    PROJECT_STORAGE,
    Bill,
    Line,
    check_budget,
    cloud_lines,
    money,
    number,
    parse_remaining_units,
    rate_of,
    storage_line,
    totals,
)
from kit.billing.run import (
    bill_figures,
    bill_of_run,
    check_affordable,
    check_job,
    estimate,
    job_units,
    refuse_over,
    sacct_of,
    usages,
)
from kit.billing.tables import (
    NO_JOB,
    bill_advice,
    bill_rows,
    bill_summary,
    estimate_text,
    format_units,
    job_of_run,
    offers_elsewhere,
)
