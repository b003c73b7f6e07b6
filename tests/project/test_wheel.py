"""The wheel: all that the kit needs is in it, and results go to the person's own folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from idx_files import small_data_dir

from kit.base import ROOT
from kit.base.settings import profile_names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel and install it into a folder; return the environment that imports it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("kit-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", built], check=True)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("KIT_")}
    return ours | {"PYTHONPATH": str(folder / "site"), "KIT_CACHE_DIR": str(folder / "cache")}


def run(wheel, folder, *arguments):
    argv = [sys.executable, "-m", "kit", *arguments]
    return subprocess.run(argv, cwd=folder, env=wheel, capture_output=True, text=True)


@pytest.mark.slow
def test_profiles_notebooks_and_article_are_in_the_wheel(wheel, tmp_path):
    code = (
        "import json; from kit.base import ROOT; from kit.base.settings import profile_names;"
        "from kit.report.table import NOTEBOOKS, notebook_rows as rows;"
        "from kit.report.article.figures import article_figures; article_figures();"
        "print(json.dumps([str(ROOT), profile_names(), rows(NOTEBOOKS / 'local.ipynb')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=wheel, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    root, profiles, rows = json.loads(done.stdout)
    assert root.startswith(wheel["PYTHONPATH"])
    assert profiles == profile_names()
    assert rows > 0


@pytest.mark.slow
def test_a_run_from_the_wheel_leaves_its_results_below_the_working_folder(wheel, tmp_path):
    wheel = wheel | {"KIT_DATA_DIR": str(small_data_dir(tmp_path / "images"))}
    done = run(wheel, tmp_path, "run", "local", "-p", "epochs", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("results/sandbox/local/artifacts/local_metrics.json"))
    done = run(wheel, tmp_path, "report")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "local (new)" in done.stdout


@pytest.mark.slow
def test_the_platforms_manifests_need_the_repository(wheel, tmp_path):
    done = run(wheel, tmp_path, "platform", "source")
    assert done.returncode == 2
    assert "git clone" in done.stderr


@pytest.mark.slow
def test_new_experiment_runs_from_the_wheel_in_an_empty_folder(wheel, tmp_path):
    made = run(wheel, tmp_path, "new", "my_model")
    assert made.returncode == 0, made.stderr[-2000:]
    checked = run(wheel, tmp_path, "check", "my_model")
    assert checked.returncode == 0, checked.stderr[-2000:]
    assert "again: resumed after step 100" in checked.stdout
    words = ("local", "--profile", "laptop", "-p", "experiment", "my_model")
    done = run(wheel, tmp_path, "run", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("results/laptop/runs/local-*/out/model.json"))
    table = run(wheel, tmp_path, "report", "--profile", "laptop").stdout
    assert "error" in table.partition("Experiment my_model")[2]
    assert list(Path(wheel["PYTHONPATH"]).rglob("*my_model*")) == []
