"""Make requirements.lock and environment.yml from pyproject.toml (`make lock`).

pip-compile resolves all extras; the lock stays neutral: no local version (`+cpu`) and none of
the CUDA packages that the default Linux build of PyTorch pulls in by itself.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("local", "cloud", "hpc", "dev")
LEFT_OUT = re.compile(r"(nvidia|cuda|triton|pip(?![\w-]))", re.IGNORECASE)
HEAD = "# Made by `make lock` from pyproject.toml (all extras, Python 3.11). Do not edit.\n"


def resolve() -> list[str]:
    """Run pip-compile and give the lines `name==version`."""
    argv = [sys.executable, "-m", "piptools", "compile", "--quiet", "--strip-extras"]
    argv += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
    argv += ["--no-annotate", "--no-header", "--allow-unsafe", "--output-file", "-"]
    argv += [f"--extra={extra}" for extra in EXTRAS] + ["pyproject.toml"]
    done = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    lines = [re.sub(r"\+\w+", "", line) for line in done.stdout.splitlines() if "==" in line]
    return sorted(line for line in lines if not LEFT_OUT.match(line))


def environment(lines: list[str]) -> str:
    """Return the text of environment.yml with the same packages."""
    head = HEAD + "name: cloud-hpc-kit\nchannels:\n  - conda-forge\ndependencies:\n"
    body = "".join(f"      - {line}\n" for line in lines)
    return f"{head}  - python=3.11\n  - pip\n  - pip:\n{body}      - -e .\n"


if __name__ == "__main__":
    pins = resolve()
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(pins) + "\n", encoding="utf-8")
    (ROOT / "environment.yml").write_text(environment(pins), encoding="utf-8")
