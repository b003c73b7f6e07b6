"""Experiments are found by name or file; an error names what is missing or wrong."""

import os
import pickle
import sys

import pytest
from own_experiments import GOOD, changed, write

from kit.base import DataError, UsageError
from kit.experiments.contract import hash_of
from kit.experiments.listed import list_experiment
from kit.experiments.loader import (
    BUILT_IN,
    experiment_names,
    experiment_with_code,
    load_experiment,
    remember,
)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_experiments_fulfil_the_contract(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    assert len(experiment.code) == 64


def test_file_of_the_working_folder_is_found_by_its_name_and_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    found = load_experiment("mean_model")
    assert (found.name, found.reference) == ("mean_model", str(path))
    assert load_experiment(str(path)).code == found.code
    assert pickle.loads(pickle.dumps(found)).code == found.code


def test_package_is_one_experiment_with_the_hash_of_all_its_files(tmp_path):
    folder = tmp_path / "mean_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("from mean_model.parts import *\n")
    (folder / "parts.py").write_text(GOOD)
    before = load_experiment(str(folder))
    assert set(before.sources) == {"__init__.py", "parts.py"}
    (folder / "parts.py").write_text(GOOD + "\n# a change\n")
    assert load_experiment(str(folder)).code != before.code


def test_changed_part_of_a_package_is_loaded_again(tmp_path):
    """As in a notebook whose kernel stays: the hash is that of the code that runs."""
    folder = tmp_path / "mean_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("from mean_model.parts import *\n")
    (folder / "parts.py").write_text(GOOD)
    assert load_experiment(str(folder)).parameters().steps == 3
    (folder / "parts.py").write_text(changed("default=3", "default=3 + 4"))
    assert load_experiment(str(folder)).parameters().steps == 7
    (folder / "parts.py").write_text("def x(:\n")
    with pytest.raises(UsageError, match="line 1"):
        load_experiment(str(folder))
    assert sys.modules["mean_model.parts"].Parameters().steps == 7, "the last good one stays"


def test_other_source_of_the_same_time_and_size_is_not_taken_for_the_one_before(tmp_path):
    """As the files of two archives: Python's own stored compilation would be used again."""
    for default in (3, 5):
        path = write(tmp_path, changed("default=3", f"default={default}"))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert load_experiment(str(path)).parameters().steps == default


def test_source_files_that_changed_after_they_were_loaded_are_not_copied(tmp_path):
    path = write(tmp_path)
    experiment = load_experiment(str(path))
    assert experiment.read_sources() == {"mean_model.py": GOOD.encode()}
    path.write_text(GOOD + "\n# a change\n")
    with pytest.raises(DataError, match=f"hash {experiment.code[:12]} when they were loaded"):
        experiment.read_sources()
    path.unlink()
    with pytest.raises(DataError, match=r"mean_model\.py: No such file") as caught:
        experiment.read_sources()
    assert caught.value.next_step


def test_programs_that_are_started_find_the_file_that_was_used_last(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    one, other = (load_experiment(str(write(tmp_path / name))) for name in ("one", "other"))
    for wanted in (one, other, one):
        remember(wanted)
        assert load_experiment("mean_model", own_files=False).reference == wanted.reference
    assert len(os.environ["KIT_EXPERIMENTS"].split(os.pathsep)) == 2


def test_submitter_knows_no_file_of_its_working_folder(tmp_path, monkeypatch):
    """A request names an experiment: it must not choose which file here is executed."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "raise SystemExit('it was executed')")
    with pytest.raises(UsageError, match="unknown experiment 'mean_model'"):
        load_experiment("mean_model", own_files=False)
    with pytest.raises(UsageError, match="not the name of an experiment"):
        load_experiment(str(path), own_files=False)
    path.write_text(GOOD)
    monkeypatch.setenv("KIT_EXPERIMENTS", str(path))
    assert load_experiment("mean_model", own_files=False).name == "mean_model"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package whose module `their_model` is the experiment `mean_model`."""
    write(tmp_path).rename(tmp_path / "their_model.py")
    facts = tmp_path / "their_model-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their-model\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[kit.experiments]\nmean_model = their_model\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("their_model", None)


def test_installed_experiment_is_found_by_its_entry_point(installed, monkeypatch):
    monkeypatch.chdir(installed.parent)
    assert "mean_model" in experiment_names()
    found = load_experiment("mean_model", own_files=False)
    assert (found.name, found.module.__name__) == ("mean_model", "their_model")
    assert set(found.sources) == {"their_model.py"}
    assert load_experiment("mean_model").module is found.module


def test_installed_experiment_that_was_edited_is_loaded_again(installed):
    assert load_experiment("mean_model").parameters().steps == 3
    (installed / "their_model.py").write_text(changed("default=3", "default=3 + 4"))
    assert load_experiment("mean_model").parameters().steps == 7


def test_a_stage_refuses_other_source_files_than_those_of_the_run(installed):
    code = load_experiment("mean_model", own_files=False).code
    assert experiment_with_code("mean_model", code).code == code
    assert experiment_with_code("mean_model", "").code == code  # a run without a hash
    with pytest.raises(DataError, match=f"{code[:12]}.*{'0' * 12}") as caught:
        experiment_with_code("mean_model", "0" * 64)
    assert "bring the same version" in caught.value.next_step


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A listed file, and beside it one of that name that must not be executed; no other is known.

    KIT_EXPERIMENTS has neither: as for a submitter that was started before the run.
    """
    for name in ("KIT_CACHE_DIR", "KIT_SANDBOX_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    listed = []
    for folder in ("a", "b"):
        path = write(tmp_path / folder)
        list_experiment(load_experiment(str(path)))
        listed.append(path)
    listed[0].write_text("raise SystemExit('it was executed')")
    return listed


def test_listed_file_is_found_by_its_hash_and_no_other_one_is_executed(files, monkeypatch):
    code = hash_of({"mean_model.py": GOOD.encode()})
    assert experiment_with_code("mean_model", code).reference == str(files[1])
    monkeypatch.setenv("KIT_EXPERIMENTS", str(files[0]))
    assert experiment_with_code("mean_model", code).reference == str(files[1])


def test_listed_file_that_was_edited_is_not_executed(files):
    code = hash_of({"mean_model.py": GOOD.encode()})
    files[1].write_text("raise SystemExit('it was executed')")
    with pytest.raises(DataError, match=f"not {code[:12]}") as caught:
        experiment_with_code("mean_model", code)
    assert "run again if you have edited it" in caught.value.next_step
    for path in files:
        path.unlink()
    with pytest.raises(UsageError, match="unknown experiment 'mean_model'") as unknown:
        experiment_with_code("mean_model", code)
    assert "set KIT_EXPERIMENTS" in unknown.value.next_step
    assert "entry point" in unknown.value.next_step


def test_listed_file_is_used_for_a_request_with_a_hash_only(files):
    for own_files, code in ((False, ""), (True, hash_of({"mean_model.py": GOOD.encode()}))):
        with pytest.raises(UsageError, match="unknown experiment"):
            load_experiment("mean_model", own_files, code)


BAD = {
    "no such file": (None, "that file does not exist"),
    "imports something absent": ("import no_such_package_at_all", r"No module named 'no_such"),
    "syntax error": (GOOD + "\ndef x(:\n", r"line \d+: "),
    "raises at import": (GOOD + "\nraise ValueError('at import')\n", "ValueError: at import"),
    "exits at import": (GOOD + "\nraise SystemExit(3)\n", "SystemExit: 3"),
    "no name": (changed("NAME =", "name ="), "it has no NAME"),
    "name illegal in a bucket": (
        changed('"mean_model"', '"Mean Model"'),
        "its NAME is 'Mean Model'",
    ),
    "name too long": (changed('"mean_model"', '"a" * 41'), "its NAME is"),
    "no train": (changed("def train", "def fit"), r"no function train[\s\S]*def train\(ctx\)"),
    "wrong signature": (
        changed("def data(folder, source)", "def data(folder)"),
        r"data\(folder\) cannot",
    ),
    "train is a number": (
        changed("def train(ctx):", "train = 3\ndef fit(ctx):"),
        "no function train",
    ),
    "no parameters": (
        changed("class Parameters(kit.Parameters)", "class P(kit.Parameters)"),
        "no class Parameters",
    ),
    "parameters of another base": (changed("(kit.Parameters)", ""), "no class Parameters of kit"),
    "parameter without description": (
        changed(', description="steps of the training"', ""),
        "no description",
    ),
    "parameter without default": (changed("default=3, ", ""), "steps"),
    "default outside its own range": (changed("default=3", "default=0"), "steps = 0 is not valid"),
    "default that is not JSON": (
        changed("steps: int = Field(default=3, ge=1, ", "steps: bytes = Field(default=b'3', "),
        "cannot be written as JSON",
    ),
    "gates that are texts": (GOOD + "\nGATES = {'error': 'low'}\n", "GATES are not valid"),
    "requirements with an option": (
        GOOD + "\nREQUIREMENTS = ['--index-url x']\n",
        "REQUIREMENTS have '--index-url x'",
    ),
    "requirements with a marker": (
        GOOD + "\nREQUIREMENTS = ['pandas; python_version < \"3.12\"']\n",
        "a marker would be evaluated on this machine",
    ),
    "requirement at an address": (
        GOOD + "\nREQUIREMENTS = ['pandas @ https://example.org/p.whl']\n",
        "from its index only",
    ),
    "requirement with a line of its own": (
        GOOD + "\nREQUIREMENTS = ['pandas\\n--index-url=x']\n",
        "REQUIREMENTS have",
    ),
    "requirements are one text": (GOOD + "\nREQUIREMENTS = 'pandas'\n", "REQUIREMENTS are 'pan"),
    "requirement is a number": (GOOD + "\nREQUIREMENTS = [3]\n", "3: it is not a text"),
    "primary is a number": (GOOD + "\nPRIMARY = 3\n", "PRIMARY is not a text"),
    "best is neither end": (GOOD + "\nBEST = 'smallest'\n", "BEST is 'smallest'"),
    "best is a number": (GOOD + "\nBEST = -1\n", "BEST is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_module_is_refused_with_what_is_wrong(tmp_path, case):
    text, wanted = BAD[case]
    path = tmp_path / "mean_model.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=wanted) as caught:
        load_experiment(str(path))
    assert caught.value.next_step


@pytest.mark.parametrize("name", ["", "../x", "a b", "A", "a__b", "x" * 41, "1a"])
def test_illegal_name_is_refused(name):
    with pytest.raises(UsageError, match="not the name of an experiment|load the experiment"):
        load_experiment(name, own_files=False)


def test_module_that_would_hide_one_of_python_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'random' would hide"):
        load_experiment(str(write(tmp_path, name="random")))
