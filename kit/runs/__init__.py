"""Runs: their folders and history, the two pipelines and their stages, the requests to the site.

A run resumes under its id wherever it was interrupted; what a stage has recorded is never done
again; the status of a run on the site is a pure function of which of its objects exist. Begin
with `history`, then `stages`, then `requests`. Modules that need KFP (`pipeline`, `kfp_cluster`)
or papermill (`notebooks`) import it where they use it, and are imported by their path.
"""

from kit.runs.client import ForwarderClient, forwarder_client
from kit.runs.follow import (
    TrainingFailed,
    follow,
    last_seen,
    poll,
    sentence,
    write_stored_log,
)
from kit.runs.history import TARGETS, StoredRun, start_run
from kit.runs.objects import StageStore
from kit.runs.requests import (
    MAX_REQUEST_BYTES,
    MAX_WORKERS,
    RUN_ID,
    RunRequest,
    RunRequests,
    RunState,
    RunStatus,
    attempt_id,
    parse_key,
    site_id,
    statuses_from_keys,
)
