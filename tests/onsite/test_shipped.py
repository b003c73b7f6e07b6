"""What is shipped runs with the site's packages alone."""

import os
import subprocess
import sys

import pytest

from kit.experiments import load_experiment
from kit.submitter.env import REQUIREMENTS
from kit.submitter.job import code_archive

# The site's PyTorch module brings these; the rest is env/hpc/requirements.txt.
FROM_THE_MODULE = {"torch", "numpy"}
# Names under which packages are imported, where they differ from the package's name.
IMPORTED_AS = {"pyyaml": "yaml", "typing-extensions": "typing_extensions"}

IMPORT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in allowed or top in sys.stdlib_module_names or top[:1] == "_"
        if path is None and not known:
            raise ModuleNotFoundError(f"{top} is not on the site", name=top)

allowed = set(sys.argv[2:]) | {"kit"}
sys.meta_path.insert(0, Refuse())
import importlib
module = importlib.import_module(sys.argv[1])
print(module.__file__)
"""


def site_packages():
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    names = {line.partition("==")[0].strip() for line in lines if line and line[0] != "#"}
    return FROM_THE_MODULE | {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


@pytest.mark.parametrize("module", ["kit.onsite.main", "kit.onsite.driver", "kit.onsite.tunnel"])
def test_programs_start_from_the_shipped_archive_alone(tmp_path, module):
    archive = tmp_path / "code.zip"
    archive.write_bytes(code_archive(load_experiment("fashion_mnist")))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(archive)}
    argv = [sys.executable, "-c", IMPORT, module, *sorted(site_packages())]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(str(archive)), done.stderr


def test_shell_program_of_a_step_is_read_from_the_archive(tmp_path):
    archive = tmp_path / "code.zip"
    archive.write_bytes(code_archive(load_experiment("fashion_mnist")))
    code = "from importlib.resources import files; import kit.onsite; "
    code += "print((files('kit.onsite') / 'step.sh').read_text())"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(archive)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "RAY_enable_metrics_collection" in done.stdout, done.stderr
