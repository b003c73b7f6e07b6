"""One experiment on three targets: a laptop, a cloud MLOps platform, a supercomputer.

`import kit` is all that a notebook needs. The names below are the public surface; each is loaded
when it is used, so that the import stays light. docs/reference/api.md describes them.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kit.base import (
        CommandFailed,
        CredentialRefused,
        DataError,
        KitError,
        LocalHost,
        SSHHost,
        Unreachable,
        UsageError,
    )
    from kit.base.settings import Settings as Profile
    from kit.base.settings import load as load_profile
    from kit.experiments.contract import Context, DataInfo
    from kit.experiments.parameters import Parameters
    from kit.experiments.trial import check
    from kit.notebook.run import Run, show_code, show_estimate, start
    from kit.notebook.sweep import start_sweep
    from kit.report import plots
    from kit.report.article import sizes as notebook_sizes
    from kit.report.dashboard import panels as dashboard_panels
    from kit.report.page import beside_article as compare_with_article
    from kit.report.page import frame as report_table
    from kit.report.page import notes as report_notes
    from kit.report.page import page as report_page
    from kit.report.page import pictures as report_pictures
    from kit.report.page import runs_of_experiment as compare_runs
    from kit.report.page import timeline_beside_article
    from kit.slurm import JobSpec, JobStatus, Slurm
    from kit.store.objects import ObjectStore
    from kit.store.opening import open_store
    from kit.submitter.jobs import open_slurm

# public name -> module and attribute; without an attribute the module itself
_PLACES = {
    "CommandFailed": "kit.base.errors:CommandFailed",
    "Context": "kit.experiments.contract:Context",
    "CredentialRefused": "kit.base.errors:CredentialRefused",
    "DataError": "kit.base.errors:DataError",
    "DataInfo": "kit.experiments.contract:DataInfo",
    "JobSpec": "kit.slurm:JobSpec",
    "JobStatus": "kit.slurm:JobStatus",
    "KitError": "kit.base.errors:KitError",
    "LocalHost": "kit.base.host:LocalHost",
    "ObjectStore": "kit.store.objects:ObjectStore",
    "Parameters": "kit.experiments.parameters:Parameters",
    "Profile": "kit.base.settings:Settings",
    "Run": "kit.notebook.run:Run",
    "SSHHost": "kit.base.ssh:SSHHost",
    "Slurm": "kit.slurm:Slurm",
    "Unreachable": "kit.base.errors:Unreachable",
    "UsageError": "kit.base.errors:UsageError",
    "check": "kit.experiments.trial:check",
    "compare_runs": "kit.report.page:runs_of_experiment",
    "compare_with_article": "kit.report.page:beside_article",
    "dashboard_panels": "kit.report.dashboard:panels",
    "load_profile": "kit.base.settings:load",
    "notebook_sizes": "kit.report.article.sizes",
    "open_slurm": "kit.submitter.jobs:open_slurm",
    "open_store": "kit.store.opening:open_store",
    "plots": "kit.report.plots",
    "report_notes": "kit.report.page:notes",
    "report_page": "kit.report.page:page",
    "report_pictures": "kit.report.page:pictures",
    "report_table": "kit.report.page:frame",
    "show_code": "kit.notebook.run:show_code",
    "show_estimate": "kit.notebook.run:show_estimate",
    "start": "kit.notebook.run:start",
    "start_sweep": "kit.notebook.sweep:start_sweep",
    "timeline_beside_article": "kit.report.page:timeline_beside_article",
}

__all__ = [
    "CommandFailed",
    "Context",
    "CredentialRefused",
    "DataError",
    "DataInfo",
    "JobSpec",
    "JobStatus",
    "KitError",
    "LocalHost",
    "ObjectStore",
    "Parameters",
    "Profile",
    "Run",
    "SSHHost",
    "Slurm",
    "Unreachable",
    "UsageError",
    "check",
    "compare_runs",
    "compare_with_article",
    "dashboard_panels",
    "load_profile",
    "notebook_sizes",
    "open_slurm",
    "open_store",
    "plots",
    "report_notes",
    "report_page",
    "report_pictures",
    "report_table",
    "show_code",
    "show_estimate",
    "start",
    "start_sweep",
    "timeline_beside_article",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'kit' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    loaded: object = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those not loaded yet."""
    return [*globals(), *__all__]
