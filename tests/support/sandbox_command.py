"""Call `kit sandbox` as a person would."""

import subprocess
import sys

KIT = [sys.executable, "-m", "kit", "sandbox"]


def kit_sandbox(*words, **options):
    """Run `kit sandbox …`; gives the completed process with its texts."""
    return subprocess.run([*KIT, *words], capture_output=True, text=True, **options)
