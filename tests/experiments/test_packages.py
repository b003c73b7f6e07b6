"""What an experiment imports, and what its requirements need."""

import pytest

from kit.experiments.packages import (
    canonical,
    dependencies,
    imported_modules,
    missing_packages,
    with_dependencies,
)


@pytest.mark.parametrize(
    ("requirement", "name"),
    [("Scikit_Learn>=1.5", "scikit-learn"), ("ray[default]", "ray"), ("a.b==1", "a-b")],
)
def test_name_of_a_requirement_is_the_one_of_an_index(requirement, name):
    assert canonical(requirement) == name


def test_requirements_bring_what_they_need_and_keep_their_text():
    names = with_dependencies(["scikit-learn>=1", "no-such-package==1"])
    assert names[:2] == ["scikit-learn>=1", "no-such-package==1"]
    assert {"scipy", "joblib"} <= set(names)
    assert not {"pytest", "matplotlib"} & set(names)  # of its optional dependencies
    assert dependencies("no-such-package") == []


def test_imports_are_found_wherever_they_are(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("import a.b\nfrom . import near\n\ndef f():\n    from c.d import e\n")
    assert imported_modules(path) == {"a", "c"}


def test_modules_of_python_of_the_kit_and_of_the_experiment_are_not_missing(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("import json, kit, helper, sklearn, yaml\n")
    sources = {"model.py": path, "helper.py": tmp_path / "none"}
    (tmp_path / "none").write_text("")
    assert missing_packages(sources, ["scikit-learn==1"]) == {"yaml": "pyyaml"}
