"""The submitter: it alone holds ssh keys, submits run requests to Slurm and publishes the results.

It keeps nothing that it could not find out again: it may be killed at any instruction, and two
submitters at once do no harm. `python -m kit.submitter PROFILE` is the process that a notebook
starts. Begin reading at `submitter.Submitter.once`.
"""

from kit.submitter.collect import read_progress
from kit.submitter.compose_secrets import ssh_template, write_templates
from kit.submitter.env import (
    Environment,
    EnvironmentBuildError,
    list_environments,
    remove_environments,
)
from kit.submitter.job import Task, code_archive, job_spec
from kit.submitter.jobs import (
    JOB,
    JobRecord,
    collect_job,
    exit_code_of,
    job_record,
    job_records,
    open_slurm,
)
from kit.submitter.loop import (
    open_submitter,
    other_submitter_active,
    run_loop,
    submitter_for,
    write_heartbeat,
)
from kit.submitter.submitter import Submitter
from kit.submitter.tunnel_key import TunnelKeys, tunnel_settings
