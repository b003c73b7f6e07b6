"""MLflow: what a run logs, and delivery that may be repeated and loses nothing.

A run's log waits in the folder of the run until the MLflow that it was made for has all of it;
`kit sync` delivers what waits. Begin with `log`, then `delivery`; `client` is MLflow's side.
"""

from kit.tracking.ahead import start_ahead
from kit.tracking.client import credential
from kit.tracking.delivery import (
    Logged,
    destination_of,
    log_run,
    log_runs,
    read_logged_run,
    rows,
    sync,
    with_server,
)
from kit.tracking.log import (
    RunLog,
    experiment_of,
    metric_points,
    mlflow_params,
    predictions,
    run_log,
    units_log,
)
