"""The pipeline as Kubeflow gets it, its picture and its gates."""

import inspect
import json
import math
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from kit.base import ROOT, UsageError
from kit.experiments import Thresholds, fashion_mnist
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs import pipeline, stages
from kit.runs.outcome import CLOUD, CLOUD_HPC
from kit.tracking import experiment_of

GOLDEN = Path(__file__).parents[1] / "golden"
TARGETS = {"cloud": CLOUD, "cloud-hpc": CLOUD_HPC}
HPC_DEFAULTS = {
    "configured": True,
    "workers": 1,
    "tunnel": "",
    "follow_timeout_s": 86400,
    "sweep": {},
}


@pytest.fixture(scope="module", params=list(TARGETS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def compiled(name: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    pipeline_of_run = pkgutil.resolve_name(TARGETS[name].pipeline + "fmnist")
    compiler.Compiler().compile(pipeline_of_run, str(path))
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_the_compiled_pipeline_is_the_golden_one(compiled: list[Any], name: str) -> None:
    golden = (GOLDEN / f"{name}-pipeline.yaml").read_text(encoding="utf-8")
    assert compiled == list(yaml.safe_load_all(golden))


def test_nothing_is_installed_when_a_component_starts(compiled: list[Any]) -> None:
    for executor in compiled[0]["deploymentSpec"]["executors"].values():
        assert "pip" not in " ".join(executor["container"]["command"])


def test_components_are_named_as_the_time_file_names_them(compiled: list[Any], name: str) -> None:
    assert sorted(compiled[0]["root"]["dag"]["tasks"]) == sorted(TARGETS[name].components)
    assert compiled[0]["pipelineInfo"]["name"] == experiment_of(name, "fmnist")


def test_no_argument_of_the_pipeline_can_carry_a_credential(compiled: list[Any]) -> None:
    names = compiled[0]["root"]["inputDefinitions"]["parameters"]
    for word in ("password", "secret", "token", "key", "credential", "user"):
        assert [name for name in names if word in name] == []


def test_every_pod_gets_the_secret_as_a_file_where_the_image_looks_for_it(
    compiled: list[Any], name: str
) -> None:
    mounts = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    image = (ROOT / "env/images/pipeline/Dockerfile").read_text()
    for executor in mounts.values():
        (mount,) = executor["secretAsVolume"]
        assert f"KIT_ENV_FILE={mount['mountPath']}/.env" in image
    assert len(mounts) == len(TARGETS[name].components)


def test_every_pod_asks_the_registry_for_the_newest_image(compiled: list[Any], name: str) -> None:
    """The tag of the image, `:1`, moves with every build; a node keeps what it once pulled."""
    executors = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    policies = [settings["imagePullPolicy"] for settings in executors.values()]
    assert policies == ["Always"] * len(TARGETS[name].components)


def test_the_defaults_of_the_pipeline_are_those_of_the_kit(compiled: list[Any], name: str) -> None:
    given = compiled[0]["root"]["inputDefinitions"]["parameters"]
    defaults = {name: value["defaultValue"] for name, value in given.items() if len(value) > 2}
    wanted = {"strict": False, "commit": "", "mlflow_url": ""}
    assert defaults == wanted | (HPC_DEFAULTS if name == "cloud-hpc" else {})


def test_component_passes_everything_on_to_its_stage() -> None:
    asked = [*inspect.signature(stages.evaluate).parameters]
    given = inspect.signature(pipeline.evaluate.python_func).parameters
    assert [*given] == [*asked, "metrics"]


@pytest.mark.parametrize("epochs", [5, 5.0])
def test_hyperparameters_come_back_from_a_pipeline_as_they_were(epochs: float) -> None:
    sent = {**vars(Parameters()), "epochs": epochs, "seed": 42.0, "learning_rate": 1}
    found = Parameters(**json.loads(json.dumps(sent)))
    assert found == Parameters(learning_rate=1)
    assert (type(found.epochs), type(found.seed)) == (int, int)


@pytest.mark.parametrize(
    ("sent", "message"),
    [({"epochs": 5.5}, "epochs"), ({"epochs": True}, "epochs"), ({"epoch": 5}, "epoch")],
)
def test_hyperparameters_that_cannot_be_are_refused(sent: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Parameters(**sent)


# -- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "precision", "recall", "missed"),
    [
        (0.8, 0.8, 0.8, []),
        (0.79999, 0.9, 0.9, ["accuracy 0.8000 is below 0.8"]),
        (0.9, 0.5, 0.1, ["precision 0.5000 is below 0.8", "recall 0.1000 is below 0.8"]),
        (math.nan, 0.9, 0.9, ["accuracy nan is below 0.8"]),
        (0.0, 0.0, 0.0, [f"{k} 0.0000 is below 0.8" for k in ("accuracy", "precision", "recall")]),
    ],
)
def test_gates_say_which_figure_missed_which_threshold(
    accuracy: float, precision: float, recall: float, missed: list[str]
) -> None:
    performance = {"accuracy": accuracy, "precision": precision, "recall": recall}
    assert Thresholds(fashion_mnist.GATES).judge(performance) == {
        "passed": not missed,
        "thresholds": {"accuracy": 0.8, "precision": 0.8, "recall": 0.8},
        "missed": missed,
    }


@pytest.mark.parametrize("least", [math.nan, math.inf, True, "0.5", None])
def test_a_gate_that_is_not_a_finite_number_is_refused(least: Any) -> None:
    with pytest.raises(UsageError, match="gate of recall"):
        Thresholds({"accuracy": 0.5, "recall": least})


def test_a_gate_of_any_metric_holds_and_an_unmeasured_one_is_missed() -> None:
    gates = Thresholds({"psnr": 30, "f1": 0.5})
    assert gates.judge({"psnr": 31.5, "f1": 0.5})["passed"]
    assert gates.judge({"psnr": 31.5})["missed"] == [
        "f1 was not measured, and at least 0.5 is required"
    ]
