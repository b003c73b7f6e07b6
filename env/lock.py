"""Make the locks: requirements.lock, environment.yml, env/sandbox/keystone.lock (`make lock`).

pip-compile resolves all extras of pyproject.toml; that lock stays neutral: no local version
(`+cpu`) and none of the CUDA packages that the default Linux build of PyTorch pulls in by itself.
So it has no hashes: each index builds PyTorch anew. Keystone's lock has them.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("local", "cloud", "hpc", "dev")
LEFT_OUT = re.compile(r"(nvidia|cuda|triton|pip(?![\w-]))", re.IGNORECASE)
HEAD = "# Made by `make lock` from pyproject.toml (all extras, Python 3.11). Do not edit.\n"
KEYSTONE = ("keystone==30.0.0", "waitress==3.0.2")
KEYSTONE_LOCK = ROOT / "env" / "sandbox" / "keystone.lock"
KEYSTONE_HEAD = f"""\
# Keystone for the sandbox, in a venv of its own. Made by `make lock` (Python 3.11) from
# {", ".join(KEYSTONE)}. Do not edit. Installed with --no-deps and --require-hashes.
"""


def compile_lock(*words: str, stdin: str = "") -> str:
    """Run pip-compile and return what it prints: pinned packages, without any index."""
    argv = [sys.executable, "-m", "piptools", "compile", "--quiet", "--strip-extras"]
    argv += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
    argv += ["--no-annotate", "--no-header", "--output-file", "-", *words]
    done = subprocess.run(
        argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, input=stdin
    )
    return done.stdout


def resolve() -> list[str]:
    """Return the lines `name==version` of pyproject.toml."""
    text = compile_lock(
        "--allow-unsafe", *(f"--extra={extra}" for extra in EXTRAS), "pyproject.toml"
    )
    lines = [re.sub(r"\+\w+", "", line) for line in text.splitlines() if "==" in line]
    return sorted(line for line in lines if not LEFT_OUT.match(line))


def resolve_keystone() -> str:
    """Return the packages of Keystone, each with the hashes of its files."""
    text = compile_lock("--generate-hashes", "-", stdin="\n".join(KEYSTONE))
    # pip-compile ends with a note on the packages that it leaves out, such as setuptools
    return "".join(f"{line}\n" for line in text.splitlines() if line and not line.startswith("#"))


def environment(lines: list[str]) -> str:
    """Return the text of environment.yml with the same packages."""
    head = HEAD + "name: cloud-hpc-kit\nchannels:\n  - conda-forge\ndependencies:\n"
    body = "".join(f"      - {line}\n" for line in lines)
    return f"{head}  - python=3.11\n  - pip\n  - pip:\n{body}      - -e .\n"


if __name__ == "__main__":
    pins = resolve()
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(pins) + "\n", encoding="utf-8")
    (ROOT / "environment.yml").write_text(environment(pins), encoding="utf-8")
    KEYSTONE_LOCK.write_text(KEYSTONE_HEAD + resolve_keystone(), encoding="utf-8")
