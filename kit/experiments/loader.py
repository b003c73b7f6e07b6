"""Find an experiment by its name or its file, import it and check that nothing is missing.

A name is looked for among the built-in experiments, then among those that installed packages
bring (entry points of the group `kit.experiments`), then as `NAME.py` or `NAME/` in the working
folder. `KIT_EXPERIMENTS` lists files of further ones; a submitter, whose requests come from a
bucket, knows only these, the installed ones, and by their hash those that the person's own runs
have listed (`listed`).
"""

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from kit.base import DataError, KitError, UsageError
from kit.experiments.contract import HIGHEST, LOWEST, Experiment, hash_of
from kit.experiments.gates import Thresholds
from kit.experiments.listed import listed_files
from kit.experiments.packages import requirement_problem
from kit.experiments.parameters import Parameters

BUILT_IN = ("digits", "fashion_mnist")
DEFAULT = "fashion_mnist"
GROUP = "kit.experiments"
# Legal in the keys of a bucket, in a pipeline's name and in MLflow.
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MAX_NAME = 40
_imported_code: dict[str, str] = {}  # of an installed experiment, when it was imported here
_FUNCTIONS = {"data": ("folder", "source"), "train": ("ctx",), "evaluate": ("ctx",)}


def load_experiment(reference: str, own_files: bool = True, code: str = "") -> Experiment:
    """Load an experiment by its name, or from the path of its file or package.

    With `own_files` false only built-in and installed ones and those of KIT_EXPERIMENTS are
    found, and with the hash of its source files (`code`) those that the person's runs have listed;
    of several files of that name one with that hash is taken. Raises UsageError that names what is
    missing or wrong, DataError where all listed files have another hash: none of them is run.
    """
    path = Path(reference)
    if own_files and (path.suffix == ".py" or os.sep in reference):
        return _from_file(path)
    legal_name(reference)
    if reference in BUILT_IN:
        return _checked(_import(f"kit.experiments.{reference}", reference), reference)
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == reference:
            return _installed(point.value, reference)
    files = [file for file in _own_files(reference, own_files) if file.exists()]
    listed = listed_files(reference) if code and not own_files else []
    same = [file for file in [*files, *listed] if _code_of(file) == code] if code else []
    for file in [*same, *files]:
        return _from_file(file)
    if listed:
        raise _other_version(reference, _code_of(listed[0]), code)
    raise _unknown(reference, own_files)


def experiment_with_code(name: str, code: str) -> Experiment:
    """Load an experiment. Raises DataError if its source files are not those of the run."""
    experiment = load_experiment(name, own_files=False, code=code)
    if code and experiment.code != code:
        raise _other_version(name, experiment.code, code)
    return experiment


def _other_version(name: str, found: str, wanted: str) -> DataError:
    got = f"its source files here have the hash {found[:12]}, not {wanted[:12]} as the run has"
    step = "run again if you have edited it: that is a new run; on another machine bring the same"
    return DataError(f"carry out the experiment {name}", got, f"{step} version there")


def legal_name(name: str) -> str:
    """Return a name that an experiment may have. Raises UsageError for another text."""
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        step = f"use small letters, digits and single underscores, at most {MAX_NAME}"
        raise UsageError(f"{name!r:.80} is not the name of an experiment", "", step)
    if name in sys.stdlib_module_names:
        raise UsageError(
            f"name an experiment {name}", "Python has a module of that name", "use another"
        )
    return name


def remember(experiment: Experiment) -> None:
    """Let programs that this process starts find an experiment of a file by its name."""
    listed = os.environ.get("KIT_EXPERIMENTS", "").split(os.pathsep)
    if os.sep in experiment.reference:  # first: another file of that name may be listed, too
        others = [file for file in listed if file not in ("", experiment.reference)]
        os.environ["KIT_EXPERIMENTS"] = os.pathsep.join([experiment.reference, *others])


def imported_experiment(module: str) -> Experiment:
    """Return the experiment of a module that can be imported here, whatever its hash is.

    On a site it comes from the archive that the submitter checked.
    """
    loaded = _import(module, module)
    _check(loaded, module)
    return Experiment(loaded, module, {}, "")


def experiment_names() -> list[str]:
    """List the names of the built-in and of the installed experiments."""
    installed = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    return sorted({*BUILT_IN, *installed})


def _own_files(name: str, own_files: bool) -> list[Path]:
    listed = os.environ.get("KIT_EXPERIMENTS", "").split(os.pathsep)
    files = [Path(item) for item in listed if item and Path(item).stem == name]
    return [*files, Path.cwd() / f"{name}.py", Path.cwd() / name] if own_files else files


def _unknown(name: str, own_files: bool) -> UsageError:
    got = f"no {name}.py in {Path.cwd()}"
    step = f"use {', '.join(experiment_names())}, the path of a file, or make one: kit new {name}"
    if not own_files:
        got = (
            "no package installed there has it, KIT_EXPERIMENTS there has no such file, and no run "
        )
        got += "of that user on that machine has used one"
        step = (
            "where the submitter or the component of the pipeline runs, set KIT_EXPERIMENTS to the "
        )
        step += f"path of its file, or install a package with an entry point of the group {GROUP}, "
        step += "and start it again"
    return UsageError(f"unknown experiment {name!r}", got, step)


def _installed(module: str, name: str) -> Experiment:
    """Load the experiment of an installed package, again if its files were changed since."""
    experiment = _checked(_import(module, name), name)
    if _imported_code.setdefault(module, experiment.code) != experiment.code:
        _forget(module)
        experiment = _checked(_import(module, name), name)
        _imported_code[module] = experiment.code
    return experiment


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles the source each time: a stored compilation is taken for that of another version.

    Python compares only its size and its time in whole seconds.
    """

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the compiled source."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _from_file(path: Path) -> Experiment:
    """Load the module in a file, or the package in a folder."""
    path = path.absolute()
    source = path / "__init__.py" if path.is_dir() else path
    tried, name = f"load the experiment {path}", path.stem
    if not source.is_file():
        raise UsageError(tried, "that file does not exist", "give the path of its .py file")
    if name in sys.stdlib_module_names or not name.isidentifier() or name == "kit":
        got = f"a module named {name!r} would hide one of Python's own"
        raise UsageError(tried, got, "rename the file, for instance to my_experiment.py")
    folder = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(
        name,
        source,
        loader=_Source(name, str(source)),
        submodule_search_locations=folder,
    )
    if spec is None or spec.loader is None:
        raise UsageError(tried, "it is not a Python file", "give the path of its .py file")
    module = importlib.util.module_from_spec(spec)
    before = _forget(name)
    sys.modules[name] = module  # its classes are pickled by this name
    try:
        _execute(tried, lambda: spec.loader.exec_module(module))
    except UsageError:
        _forget(name)
        sys.modules.update(before)
        raise
    return _checked(module, str(path))


def _forget(name: str) -> dict[str, ModuleType]:
    """Remove a module and those below it from the imported ones; return them.

    Their files may have been changed since, and the hash is that of the files.
    """
    names = [n for n in sys.modules if n == name or n.startswith(f"{name}.")]
    return {known: sys.modules.pop(known) for known in names}


def _import(module: str, name: str) -> ModuleType:
    imported: ModuleType = _execute(
        f"load the experiment {name}", lambda: importlib.import_module(module)
    )
    return imported


def _execute(tried: str, load: Any) -> Any:
    """Run a module's code; any failure of it becomes a UsageError that says what and where."""
    try:
        return load()
    except ModuleNotFoundError as err:
        step = f"install {err.name} in this environment, or import it where it is used"
        raise UsageError(tried, str(err), step) from err
    except SyntaxError as err:
        raise UsageError(tried, f"line {err.lineno}: {err.msg}", "correct that line") from err
    except UsageError:
        raise
    except (Exception, SystemExit) as err:
        got = f"{type(err).__name__}: {err}"
        raise UsageError(tried, got, "correct the module, then try again") from err


def _checked(module: ModuleType, reference: str) -> Experiment:
    """Check the names of the contract and return the experiment with its own files."""
    _check(module, reference)
    sources = _sources(Path(str(module.__file__)))
    return Experiment(module, reference, sources, hash_of(sources))


def _sources(file: Path) -> dict[str, Path]:
    """Return the source files of a module by name: its file, or all files of its package."""
    package = file.name == "__init__.py"
    sources = sorted(file.parent.rglob("*.py")) if package else [file]
    return {path.relative_to(file.parent).as_posix(): path for path in sources}


def _code_of(path: Path) -> str:
    """Return the hash of a module's source files without importing it; empty if unreadable."""
    with contextlib.suppress(DataError):
        return hash_of(_sources(path / "__init__.py" if path.is_dir() else path))
    return ""


def _check(module: ModuleType, reference: str) -> None:
    tried = f"load the experiment {reference}"
    _check_name(tried, getattr(module, "NAME", None))
    for function, arguments in _FUNCTIONS.items():
        _check_function(tried, module, function, arguments)
    if hasattr(module, "figures"):
        _check_function(tried, module, "figures", ("ctx",))
    _check_parameters(tried, getattr(module, "Parameters", None))
    _check_options(tried, module)


def _check_name(tried: str, name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > MAX_NAME:
        got = "it has no NAME" if name is None else f"its NAME is {name!r:.80}"
        step = "set NAME to small letters, digits and single underscores, such as my_model"
        raise UsageError(tried, got, step)


def _check_function(
    tried: str, module: ModuleType, function: str, arguments: tuple[str, ...]
) -> None:
    wanted = f"{function}({', '.join(arguments)})"
    value = getattr(module, function, None)
    if not callable(value):
        raise UsageError(tried, f"it has no function {function}", f"write def {wanted}")
    try:
        inspect.signature(value).bind(*arguments)
    except TypeError as err:
        got = f"{function}{inspect.signature(value)} cannot be called as {wanted}"
        raise UsageError(tried, got, f"write def {wanted}") from err


def _check_parameters(tried: str, kind: object) -> None:
    """Check that the defaults are there, within their own ranges, and can be written as JSON."""
    if not isinstance(kind, type) or not issubclass(kind, Parameters):
        step = "write class Parameters(kit.Parameters): …"
        raise UsageError(tried, "it has no class Parameters of kit.Parameters", step)
    try:
        values = kind().model_dump()
        kind(**values)
        json.dumps(values, allow_nan=False)
    except UsageError as err:
        got = f"the defaults of its Parameters are not valid: {err.tried}: {err.got}"
        raise UsageError(
            tried, got.rstrip(": "), "give each parameter a default in its range"
        ) from err
    except (TypeError, ValueError) as err:
        got = f"the defaults of its Parameters cannot be written as JSON: {err}"
        raise UsageError(tried, got, "use numbers, texts, true and false") from err
    except Exception as err:  # a validator is the experiment's own code
        got = f"its Parameters raised {type(err).__name__}: {err}"
        raise UsageError(tried, got, "raise ValueError in a validator") from err


def _check_options(tried: str, module: ModuleType) -> None:
    requirements = getattr(module, "REQUIREMENTS", ())
    step = "list names of packages: REQUIREMENTS = ('scikit-learn', 'pandas[parquet]>=2')"
    if not isinstance(requirements, tuple | list):
        raise UsageError(tried, f"its REQUIREMENTS are {requirements!r:.80}", step)
    for item in requirements:
        problem = requirement_problem(item) if isinstance(item, str) else "it is not a text"
        if problem:
            raise UsageError(tried, f"its REQUIREMENTS have {item!r:.80}: {problem}", step)
    if not isinstance(getattr(module, "PRIMARY", ""), str):
        raise UsageError(tried, "its PRIMARY is not a text", "set PRIMARY to a metric's name")
    best = getattr(module, "BEST", HIGHEST)
    if best not in (HIGHEST, LOWEST):
        raise UsageError(tried, f"its BEST is {best!r:.80}", f"write {HIGHEST!r} or {LOWEST!r}")
    try:
        Thresholds(getattr(module, "GATES", {}))
    except (KitError, AttributeError, TypeError) as err:
        step = "write GATES = {'score': 0.8, 'loss': '<= 0.3'}: at least, at most"
        raise UsageError(tried, f"its GATES are not valid: {err}", step) from err
