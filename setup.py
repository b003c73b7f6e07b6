"""What pyproject.toml cannot say: a wheel brings the files that the kit reads in a checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
FILES = (
    "requirements.lock",
    "notebooks/*.ipynb",
    "results/article/figures.json",
    "env/hpc/*",
    "env/platform/grafana/integration-dashboard.json",
    "env/sandbox/**/*",
    "env/sites/*.toml",
    "env/submitter/*",
    "env/vm/*",
)


class BuildWithFiles(build_py):
    """Copies FILES into the package's folder `_files`; an editable install reads the checkout."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if self.editable_mode:
            return
        for path in sorted({path for pattern in FILES for path in HERE.glob(pattern)}):
            if path.is_file() and path.suffix != ".pyc" and "kit_sandbox" not in path.parts:
                target = Path(self.build_lib, "kit", "_files", path.relative_to(HERE))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)


setup(cmdclass={"build_py": BuildWithFiles})
