"""How long `kit forward` takes to be ready, and to be back after its ssh connection was killed.

The sandbox must be up. Usage: make bench NAMES=forward
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import measured

from kit.base.settings import load
from kit.deploy.forwards import list_forwards

HERE, ROUNDS = "127.0.0.4", 5
COMMAND = [sys.executable, "-m", "kit", "port-forward", "--profile", "sandbox", "--bind", HERE]


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://{HERE}:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True  # the service wants a credential: it is there
    except OSError:
        return False
    return True


def until_all(ports: list[int], begun: float) -> float:
    """Wait until each port answers; give the seconds since `begun`."""
    while not all(map(answers, ports)):
        if time.monotonic() > begun + 60:
            sys.exit("kit forward: not there after 60 s")
        time.sleep(0.02)
    return time.monotonic() - begun


def once(ports: list[int]) -> tuple[float, float]:
    """Give the seconds to ready, and from the killed connection to back."""
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        process = subprocess.Popen(COMMAND, stdout=output, stderr=output)
        try:
            ready = until_all(ports, begun)
            pgrep = ["pgrep", "-x", "-P", str(process.pid), "ssh"]
            (pid,) = subprocess.run(pgrep, capture_output=True, text=True).stdout.split()
            os.kill(int(pid), signal.SIGKILL)
            begun = time.monotonic()
            while answers(ports[0]):
                time.sleep(0.005)
            return ready, until_all(ports, begun)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


def main() -> None:
    rows = list_forwards(load("sandbox"), HERE)
    ports = [each.to.port for each in rows if each.name != "ray"]  # there only while a job runs
    times = [once(ports) for _ in range(ROUNDS)]
    for what, values, target in zip(
        ("ready", "back after a kill"), zip(*times, strict=True), (3, 5), strict=True
    ):
        measured.show(f"kit forward, {what}", values, "s", target)


if __name__ == "__main__":
    main()
