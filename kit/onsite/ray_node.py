"""`ray start` without the server of Ray Client: the program that starts Ray on one node of a job.

Ray 2.60 starts that server on the head wherever it could (`ray start` has no option against it:
port 0 is an error, no port means 10001). Nobody uses it here: it costs 3.5 CPU seconds at the start
of a job, and it is one more port that carries out what it is sent.
"""

import sys

from ray.scripts import scripts


def without_client_server() -> None:
    """Let `ray start` find that Ray Client cannot be used; it then starts no server for it."""
    missing = ImportError("no job of the kit uses Ray Client")
    scripts.get_ray_client_dependency_error = lambda: missing


if __name__ == "__main__":
    without_client_server()
    sys.argv[0] = "ray"
    sys.exit(scripts.main())
