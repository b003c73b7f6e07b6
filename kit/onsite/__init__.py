"""All that runs on the supercomputer, shipped as one zip of `base`, `experiments` and `onsite`.

Begin reading with `main.py`, the batch job's program: it starts Ray (`ray_cluster.py`), runs the
driver (`driver.py`), keeps the tunnel open meanwhile (`tunnel.py`) and leaves a manifest.
`names.py` lists file names and exit codes for the rooms that read what a job has left.
"""

from kit.onsite.names import (
    END_TRIALS,
    EXIT_MEANINGS,
    FAILURE,
    LEFTOVERS,
    MANIFEST,
    PROGRESS,
    RAY_TOKEN,
    RESULTS,
    TUNNEL_HOSTS,
    TUNNEL_KEY,
    TUNNEL_STATE,
)
