"""What holds the project together: packages, documents, no secrets and no foreign paths."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kit.base import ROOT

LOCK = ROOT / "requirements.lock"
ENVIRONMENT = ROOT / "environment.yml"
NAMED = ("jupyterlab", "papermill", "nbformat", "ray", "mlflow", "boto3", "python-swiftclient")
ALSO_NAMED = ("keystoneauth1", "matplotlib", "pandas")


def locked() -> dict[str, str]:
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def environment() -> list[str]:
    return yaml.safe_load(ENVIRONMENT.read_text())["dependencies"][-1]["pip"]


def tracked() -> list[Path]:
    """Every file of the project: tracked by git, or about to be."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def load_script(name: str) -> ModuleType:
    """Import a script of env/, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "env" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_environment_yml_names_python_pip_and_the_lock_and_ends_with_the_package():
    content = yaml.safe_load(ENVIRONMENT.read_text())
    assert content["name"] == "cloud-hpc-kit"
    assert content["dependencies"][:2] == ["python=3.11", "pip"]
    *pins, last = environment()
    assert last == "-e ."
    assert dict(pin.split("==") for pin in pins) == {
        line.split("==")[0]: line.split("==")[1]
        for line in LOCK.read_text().splitlines()
        if "==" in line
    }


@pytest.mark.parametrize("name", NAMED + ALSO_NAMED)
def test_the_packages_that_a_user_looks_for_are_in_environment_yml(name):
    assert any(pin.startswith(f"{name}==") for pin in environment())


def test_every_requirement_of_pyproject_is_met_by_the_lock():
    pins = locked()
    for requirement in requirements():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_the_lock_has_only_exact_and_neutral_versions():
    for line in LOCK.read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)


def test_keystones_lock_names_every_package_once_with_the_hashes_of_its_files():
    text = (ROOT / "env" / "sandbox" / "keystone.lock").read_text().replace("\\\n", "")
    names = []
    for line in text.splitlines():
        if not line.startswith("#"):
            pin, *hashes = line.split()
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.]*", pin)
            assert hashes
            assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", word) for word in hashes)
            names.append(pin.split("==")[0])
    assert len(names) == len(set(names))
    assert {"keystone", "waitress"} < set(names)


def test_make_lock_writes_keystones_packages_with_their_hashes(monkeypatch):
    lock = load_script("lock")
    pip_compile = Mock(return_value="x==1 \\\n    --hash=sha256:0\n\n# unsafe\n# setuptools\n")
    monkeypatch.setattr(lock, "compile_lock", pip_compile)
    assert lock.resolve_keystone() == "x==1 \\\n    --hash=sha256:0\n"
    assert pip_compile.call_args.args == ("--generate-hashes", "-")
    assert pip_compile.call_args.kwargs == {"stdin": "keystone==30.0.0\nwaitress==3.0.2"}
    written = (ROOT / "env" / "sandbox" / "keystone.lock").read_text()
    assert written.startswith(lock.KEYSTONE_HEAD)


def test_only_pytorch_comes_from_the_index_that_is_named_for_it():
    argv = ["make", "--always-make", "--dry-run", "TORCH_INDEX=https://example.org/cpu"]
    for target in (".venv/full.stamp", ".venv/local.stamp"):
        plan = subprocess.run([*argv, target], cwd=ROOT, capture_output=True, text=True, check=True)
        lines = [line for line in plan.stdout.splitlines() if "pip install" in line]
        named = [line for line in lines if "example.org" in line]
        assert len(named) == 1
        assert named[0] == lines[0]
        assert "--no-deps --index-url" in named[0]
        assert re.search(r" torch==[\d.]+$", named[0])
    named = [path for path in tracked() if "EXTRA_" + "INDEX" in text_of(path)]
    assert named == []


@pytest.mark.slow
def test_the_list_of_environment_yml_installs_in_a_venv_and_is_complete():
    """Install the pip list as conda would, then let pip check that nothing is missing.

    The venv is kept under a name made of the list, so a second run needs no network.
    """
    import hashlib

    digest = hashlib.sha256(ENVIRONMENT.read_bytes()).hexdigest()[:12]
    venv = ROOT / f".venv-environment-{digest}"
    python = venv / "bin" / "python"
    done = venv / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        # only what is imported below is worth a compilation
        options = ["-qq", "--disable-pip-version-check", "--no-compile", "--no-deps"]
        pip = [str(python), "-m", "pip", "install", *options]
        pins, last = environment()[:-1], environment()[-1]
        subprocess.run([*pip, *pins], check=True)
        subprocess.run([*pip, "--no-build-isolation", *last.split()], check=True, cwd=ROOT)
        done.touch()
    check = subprocess.run([str(python), "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    subprocess.run([str(python), "-c", "import kit, torch, ray, kfp, mlflow"], check=True)


# The machines people work on: none of their paths belongs into a file of the project.
FOREIGN = re.compile(
    r"(?<![\w.])/(?:home/(?!hpcuser|jovyan|u\b|user\b|kit\b|ada\b)\w|root/|work/|Users/\w|opt/(?!venv|kit|pytorch|debian12))"
)
SECRETS = re.compile(
    r"-----BEGIN (?:OPENSSH |RSA |EC )?PRIVATE KEY-----|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30}"
    r"|glpat-[\w-]{20}|xox[bp]-\w{10}"
)


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def test_no_file_has_an_absolute_path_of_the_machine_it_was_made_on():
    home = re.escape(str(Path.home()))
    here = re.escape(str(ROOT))
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        for match in re.finditer(f"{FOREIGN.pattern}|{home}/|{here}", text_of(path))
        if path != Path(__file__)
    ]
    assert not found


def test_no_file_has_a_secret():
    found = [path.relative_to(ROOT) for path in tracked() if SECRETS.search(text_of(path))]
    assert [str(p) for p in found if p.name != Path(__file__).name] == []


@pytest.mark.parametrize(
    "planted",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_" + "a1" * 18,
    ],
)
def test_the_secret_search_finds_a_planted_secret(planted):
    assert SECRETS.search(f"x = '{planted}'")


@pytest.mark.parametrize("planted", ["/home/anna/x", "/root/.ssh", "/work/kit", "/Users/anna"])
def test_the_path_search_finds_a_planted_path(planted):
    assert FOREIGN.search(f'path = "{planted}"')


def test_the_citation_names_the_article_and_the_version():
    from kit import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["references"][0]["doi"] == "10.1145/3672608.3707866"
    assert citation["version"] == __version__
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


# Only the batch job and `kit run` set these, for their own processes.
NOT_OF_A_PERSON = {"KIT_ATTEMPT", "KIT_TASK", "KIT_CODE", "KIT_CODE_HASH", "KIT_STEP"}
NOT_OF_A_PERSON |= {"KIT_CONTAINER", "KIT_COMMAND_BEGAN"}


def test_every_variable_has_a_row_on_its_page():
    used = set()
    for path in [
        *(ROOT / "kit").rglob("*.py"),
        *(ROOT / "env/sandbox").rglob("*.py"),
        ROOT / "Makefile",
    ]:
        used |= set(re.findall(r"\bKIT_[A-Z_]+\b", text_of(path)))
    page = (ROOT / "docs" / "reference" / "variables.md").read_text()
    rows = set(re.findall(r"^\| `(KIT_[A-Z_]+)`", page, re.MULTILINE))
    assert used - rows - NOT_OF_A_PERSON == set(), "variables without a row on their page"


def test_every_file_of_the_packages_is_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    rooms = {path.parent for path in tracked() if path.name == "__init__.py"}
    for path in tracked():
        if path.relative_to(ROOT).parts[0] == "kit" and path.suffix != ".py":
            room = next(folder for folder in path.parents if folder in rooms)
            inside = path.relative_to(room)
            assert any(inside.match(pattern) for pattern in patterns), path


def test_no_module_hides_one_of_the_standard_library():
    modules = [*(ROOT / "kit").rglob("*.py"), *(ROOT / "env/sandbox/kit_sandbox").rglob("*.py")]
    names = {path.stem for path in modules} - {"__init__", "__main__"}
    assert names & sys.stdlib_module_names == set()


def test_the_tables_of_faults_have_as_many_rows_as_their_titles_say():
    text = (ROOT / "docs" / "reference" / "faults.md").read_text()
    tables = re.findall(r"^## [^\n]*: (\d+) faults\n.*?\n(\|.*?)(?:\n\n|\Z)", text, re.S | re.M)
    assert len(tables) == 2
    total = sum(int(number) for number, _ in tables)
    assert f"[{total} faults]" in (ROOT / "README.md").read_text()
    for number, table in tables:
        assert len(table.splitlines()) - 2 == int(number)


def test_pages_that_are_made_from_the_code_are_up_to_date():
    argv = [sys.executable, str(ROOT / "env" / "docs_reference.py"), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_page_is_in_the_index():
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text()
    linked = {(docs / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index)}
    pages = {path.resolve() for path in docs.rglob("*.md")} - {(docs / "index.md").resolve()}
    of_the_site = {path.resolve() for path in (docs / "site").glob("*.md")}  # it has its own index
    assert pages - of_the_site <= linked


def test_the_readme_has_400_to_900_words():
    assert 400 <= len((ROOT / "README.md").read_text().split()) <= 900


def test_every_file_that_the_architecture_page_names_exists():
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    text += (ROOT / "docs" / "explanation" / "promises.md").read_text()
    text += (ROOT / "docs" / "explanation" / "attempt.md").read_text()
    paths = re.findall(r"`((?:kit|tests|env|docs)/[\w./-]+)`", text)
    named = [path for path in paths if "ROOM" not in path and "NAME" not in path]
    rooms = {path.name for path in (ROOT / "kit").iterdir() if (path / "__init__.py").exists()}
    assert named
    assert [path for path in named if not (ROOT / path).exists() and "tries" not in path] == []
    assert rooms <= set(re.findall(r"^\| \d \| `(\w+)`", text, re.MULTILINE))


def test_every_make_target_named_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"reproduce", "test"} <= named <= targets


README_BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
# What a block may not do in a test: install, start what never ends, or test itself.
NOT_RUN = ("git clone", "make reproduce", "make test", "make lab", "make bench", "sudo ", "pip ")


@pytest.mark.core
@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [b for kind, b in README_BLOCKS if kind == "sh" and not any(n in b for n in NOT_RUN)]
)
def test_a_code_block_of_the_readme_runs(block, sandbox, tmp_path):
    from idx_files import small_data_dir

    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "KIT_DATA_DIR": str(small_data_dir(tmp_path / "data")),
        "KIT_RESULTS_DIR": str(tmp_path / "results"),
    }
    done = subprocess.run(
        ["bash", "-eu"], input=block, cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_blocks_that_are_not_run_name_commands_and_targets_that_exist():
    blocks = [b for kind, b in README_BLOCKS if kind == "sh" and any(n in b for n in NOT_RUN)]
    assert blocks
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks:
        assert set(re.findall(r"\bmake ([a-z-]+)", block)) <= targets
