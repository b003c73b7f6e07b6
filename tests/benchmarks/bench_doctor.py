"""Seconds of `kit doctor` on the healthy sandbox and with nothing set up, each beside its target.

The sandbox is started where it is not up, and then stopped again. Each figure is the median of
five, as a person sees it, Python's start among it. Usage: make bench NAMES=doctor
"""

import os
import subprocess
import sys
import tempfile
import time

import measured

KIT = [sys.executable, "-m", "kit"]
REPEAT = 5


def seconds(profile: str, exit_code: int, environ: dict[str, str]) -> float:
    """One run; ends the program when it found something else than was expected."""
    begin = time.monotonic()
    argv = [*KIT, "doctor", profile]
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    took = time.monotonic() - begin
    if done.returncode != exit_code:
        sys.exit(f"kit doctor {profile} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return took


def main() -> None:
    was_up = subprocess.run([*KIT, "sandbox", "status"], capture_output=True).returncode == 0
    if not was_up:
        subprocess.run([*KIT, "sandbox", "up"], check=True)
    with tempfile.TemporaryDirectory() as empty:
        nothing = {"PATH": os.environ["PATH"], "HOME": empty, "KIT_SANDBOX_DIR": f"{empty}/none"}
        rows = [
            ("healthy sandbox", "sandbox", 0, 8.0, dict(os.environ)),
            ("nothing set up, sandbox", "sandbox", 1, 5.0, nothing),
            ("nothing set up, roihu", "roihu", 1, 5.0, nothing),
        ]
        for what, profile, code, target, environ in rows:
            took = [seconds(profile, code, environ) for _ in range(REPEAT)]
            measured.show(f"kit doctor, {what}", took, "s", target)
    if not was_up:
        subprocess.run([*KIT, "sandbox", "down"], check=True)


if __name__ == "__main__":
    main()
