"""The venv `.venv-tools` for validators that may not share the kit's packages."""

import subprocess
import sys

from kit.base import ROOT

TOOLS = ROOT / ".venv-tools"


def tools(*packages):
    """See to it that the exact packages are in the venv; give its Python."""
    python = TOOLS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(TOOLS)], check=True)
    listed = subprocess.run(
        [str(python), "-m", "pip", "freeze"], check=True, capture_output=True, text=True
    ).stdout.lower()
    missing = [each for each in packages if each.lower() not in listed.splitlines()]
    if missing:
        subprocess.run([str(python), "-m", "pip", "install", "-qq", *missing], check=True)
    return python
