# shellcheck shell=bash disable=SC2154 # $python, [hpc] python, and `inside` are set before this text
# Exits 0 if an environment that is made from $python will find PyTorch; otherwise reports why not.
# An environment sees the packages of its base, also where $python is that of a venv itself.
# A Python that was found by PATH finds itself only where PATH is exported, as the fence does.
export PATH
inside "$python" -c '
import subprocess, sys
look = "import importlib.util, sys; sys.exit(importlib.util.find_spec(%r) is None)" % "torch"
base = getattr(sys, "_base_executable", None) or sys.executable
if not subprocess.run([base, "-sP", "-c", look]).returncode:
    sys.exit(0)
if not subprocess.run([sys.executable, "-sP", "-c", look]).returncode:
    sys.exit("PyTorch is in the venv %s, and an environment made from a venv does not see it" % sys.prefix)
sys.exit("%s has no PyTorch" % sys.executable)
'
