"""What an experiment imports, and what its requirements need."""

import email.message
import importlib.metadata

import pytest

from kit.base import UsageError
from kit.experiments.packages import (
    canonical,
    dependencies,
    imported_modules,
    missing_packages,
    requirement_problem,
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


@pytest.fixture
def installed(monkeypatch):
    """Packages that need each other by extras, as if they were installed."""
    needs = {
        "app": ["tool>=1; extra == 'fast-io'", "app[fast-io]; extra == 'all'", "base[json]"],
        "base": ["plain", "loads; extra == 'json'", "never; python_version < '3'"],
    }

    def about(name):
        if name not in needs:
            raise importlib.metadata.PackageNotFoundError(name)
        message = email.message.Message()
        extras = {"app": ("Fast_IO", "all"), "base": ("json",)}[name]
        for header, texts in (("Requires-Dist", needs[name]), ("Provides-Extra", extras)):
            for text in texts:
                message[header] = text
        return message

    monkeypatch.setattr(importlib.metadata, "metadata", about)


@pytest.mark.parametrize(
    ("requirement", "text", "needed"),
    [
        ("app==2", "app==2", {"base", "plain", "loads"}),
        ("app[fast-io]==2", "app==2", {"base", "plain", "loads", "tool"}),
        ("app[Fast_IO]", "app", {"base", "plain", "loads", "tool"}),
        ("app[all]", "app", {"base", "plain", "loads", "tool"}),
        ("base", "base", {"plain"}),
    ],
)
def test_extras_are_expanded_with_what_they_need(installed, requirement, text, needed):
    first, *others = with_dependencies([requirement])
    assert first == text
    assert set(others) == needed


def test_extra_that_a_package_does_not_have_is_refused(installed):
    with pytest.raises(UsageError, match=r"app\[slow\] needs[\s\S]*it has all, fast-io"):
        with_dependencies(["app[slow]"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("scikit-learn", ""),
        ("pandas[parquet,excel]>=2,<4", ""),
        ("ray[default]; python_version < '4'", "a marker"),
        ("ray @ https://example.org/ray.whl", "index only"),
        ("-r other.txt", "Expected package name"),
        ("", "Expected package name"),
        ("ray >= 2", "a space"),
        ("ray # new", "Expected"),
    ],
)
def test_requirement_is_accepted_or_refused_with_the_reason(text, reason):
    problem = requirement_problem(text)
    assert reason in problem
    assert bool(problem) == bool(reason)


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


def test_what_only_the_data_function_imports_is_not_needed_on_the_site(tmp_path):
    path = tmp_path / "model.py"
    body = "def data(folder, source):\n    import sklearn\n\n\ndef train(ctx):\n    import yaml\n"
    path.write_text(f"{body}\n\ndef evaluate(ctx):\n    pass\n")
    assert imported_modules(path, on_site=True) == {"yaml"}
    assert imported_modules(path) == {"sklearn", "yaml"}
    path.write_text(body)  # a helper's function of that name may be called by any other
    assert imported_modules(path, on_site=True) == {"sklearn", "yaml"}
