"""Jobs on any Slurm site, each attempt executed and committed at most once.

The room knows no run, no store and no Ray. `scripts/fence.sh` decides who works; begin reading with
`fence.py`, which calls it (the three symlinks that an attempt rests on), then `status.py` (how its
state is derived) and `client.py` (the methods of `Slurm`). `text.py` and `usage.py` read what Slurm
prints, `script.py` builds the batch script, `program.py` makes it from a person's own program; the
shell programs are in `scripts/`.
"""

from kit.slurm.client import Accounting, Slurm
from kit.slurm.fence import ATTEMPT_ID, Attempt, SitePaths, job_name
from kit.slurm.program import REFUSED, read_directives, resolve_tasks, script_commands
from kit.slurm.room import Room, read_room, room_argv
from kit.slurm.script import (
    JobSpec,
    build_script,
    job_for,
    module_lines,
    node_hours,
    replace_fields,
    sbatch_argv,
)
from kit.slurm.status import EXIT_MEANINGS, JobStatus
from kit.slurm.text import (
    ACCOUNT_COLUMNS,
    NO_ACCOUNTING,
    JobState,
    account_row,
    count_gres,
    parse_count,
    parse_duration,
    parse_memory,
    parse_size,
    parse_time,
    read_account,
)
from kit.slurm.usage import (
    GIB,
    PUBLISHED,
    Resources,
    Usage,
    allocated_resources,
    computed_seff,
    count_gpus,
    job_starts,
    planned_resources,
    published_rows,
    read_seff,
    read_usage,
    requested_resources,
    usage_of,
)
