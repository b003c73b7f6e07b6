"""File names and exit codes of a job's programs, for those who read what a job has left.

All files are in the folder of the job's attempt. Exit codes are below 128: Slurm reports larger
ones minus 128, as signals. What the job script itself ends with (96 to 99) is listed by the room
that writes the script (kit/slurm/status.py).
"""

MANIFEST = "manifest.json"
FAILURE = "failure.json"
PROGRESS = "progress.json"
METRICS = "metrics.json"
TIMES = "times.json"
DRIVER_LOG = "driver.log"
RAY_TOKEN = "ray.token"  # noqa: S105 - the name of a file
TUNNEL_KEY = "tunnel.key"
TUNNEL_HOSTS = "tunnel.hosts"
TUNNEL_STATE = "tunnel.json"
END_TRIALS = "end-trials"  # a sweep publishes what is finished once this file is there
# What a job removes at its end, and leaves when it is killed.
LEFTOVERS = (RAY_TOKEN, TUNNEL_KEY)
# What the manifest holds of a training beside the experiment's own files.
RESULTS = ("losses.json", METRICS, TIMES)

DRIVER_FAILED = 1
CODE_CHANGED = 88
NOT_WRITABLE = 89
RAY_NOT_STARTED = 90
WRONG_RAY_VERSION = 91
NODE_LOST = 92
KILLED = 93
END_REQUESTED = 94
ENVIRONMENT_FAILED = 95

EXIT_MEANINGS = {
    CODE_CHANGED: "the code on the site is not the one that was staged: run again",
    NOT_WRITABLE: "its folder is full or not writable: free space in the project folder, run again",
    RAY_NOT_STARTED: "Ray could not be started on the job's nodes; the end of its log says more",
    WRONG_RAY_VERSION: "the environment has another version of Ray: run with configured = False",
    NODE_LOST: "a node of Ray was lost; run again, and report the node if it happens again",
    KILLED: "its program was killed: most often it used more memory than it requested",
    END_REQUESTED: "it was asked to end: its time limit was near, or it was cancelled",
    ENVIRONMENT_FAILED: "its Python environment could not be made; the end of its log says more",
}
