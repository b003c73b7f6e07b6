"""Training: the right arithmetic, the same bits every time, whatever is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.functional.classification as metrics
from idx_files import real_or_striped_images, striped_images
from tiny_training import TINY, interrupt_in_epoch, train
from torch import nn
from usual_model import AsUsual, bits

from kit.base import DataError, UsageError
from kit.experiments.contract import Context
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.fast_step import FastStep
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.fashion_mnist.tensor_files import read_tensors, write_tensors
from kit.experiments.fashion_mnist.training import (
    Model,
    PlainStep,
    as_labels,
    as_tensor,
    save_model,
)

# --- settings ---------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_cuda_without_a_gpu_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="no CUDA device"):
        train(TINY, Parameters(device="cuda"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_a_gpu
def test_a_step_on_a_gpu_is_the_step_on_the_cpu():
    torch.manual_seed(1)
    here, there = Model(), Model().cuda()
    steps = FastStep(here, Parameters()), FastStep(there, Parameters())
    x, y = as_tensor(TINY.train_images), as_labels(TINY.train_labels)
    with torch.no_grad():
        for images, labels in zip(x.split(4), y.split(4), strict=True):
            there.load_state_dict(here.state_dict())
            for name, velocity in steps[0].velocity.items():
                steps[1].velocity[name].copy_(velocity)
            losses = steps[0](images, labels), steps[1](images.cuda(), labels.cuda()).cpu()
            torch.testing.assert_close(*losses)
            for mine, other in zip(here.parameters(), there.parameters(), strict=True):
                torch.testing.assert_close(other.cpu(), mine, atol=1e-5, rtol=1e-4)


@on_a_gpu
def test_a_training_on_a_gpu_has_the_same_bits_again_and_after_a_kill(tmp_path):
    hp = Parameters(epochs=3, device="cuda")
    first, again = train(TINY, hp), train(TINY, hp)

    with pytest.raises(KeyboardInterrupt):
        training.train(TINY, hp, tmp_path, interrupt_in_epoch(2, 3))
    resumed = train(TINY, hp, tmp_path)
    assert resumed.epochs_resumed == 1
    assert bits(first.model.cpu()) == bits(again.model.cpu()) == bits(resumed.model.cpu())
    assert training.evaluate(resumed.model, TINY, hp).performance["accuracy"] > 0


# --- the arithmetic ---------------------------------------------------------------------------


def test_images_become_what_totensor_and_normalize_make_of_them():
    images = np.arange(784, dtype=np.uint8).reshape(1, 28, 28)
    expected = (torch.tensor(images).to(torch.float32).div(255) - 0.5) / 0.5
    got = as_tensor(images)
    assert got.shape == (1, 1, 28, 28)
    assert torch.equal(got[0, 0], expected[0])
    assert (got.min(), got.max()) == (-1, 1)


def test_same_seed_same_first_weights_as_the_usual_model():
    torch.manual_seed(7)
    usual = AsUsual()
    torch.manual_seed(7)
    ours = Model()
    assert bits(ours) == bits(usual)
    x = as_tensor(TINY.test_images)
    assert torch.equal(ours(x), usual(x))


def test_plain_steps_are_those_of_torch_sgd():
    torch.manual_seed(3)
    ours, usual = Model(), AsUsual()
    usual.load_state_dict(ours.state_dict())
    step = PlainStep(ours, Parameters())
    optimizer = torch.optim.SGD(usual.parameters(), lr=0.001, momentum=0.9)
    x, y = as_tensor(TINY.train_images), as_labels(TINY.train_labels)
    with torch.no_grad():
        losses = [step(*batch).item() for batch in zip(x.split(4), y.split(4), strict=True)]
    for batch, loss in zip(zip(x.split(4), y.split(4), strict=True), losses, strict=True):
        optimizer.zero_grad()
        expected = F.cross_entropy(usual(batch[0]), batch[1])
        expected.backward()
        optimizer.step()
        assert loss == expected.item()
    assert bits(ours) == bits(usual)


def test_every_image_is_seen_once_an_epoch_in_another_order(monkeypatch):
    seen = []
    take = FastStep.__call__
    monkeypatch.setattr(FastStep, "__call__", lambda *a: seen.append(a[1].clone()) or take(*a))
    done = train(TINY, Parameters(epochs=2))
    assert [len(x) for x in seen] == ([4] * 12 + [2]) * 2
    first, second = torch.cat(seen[:13]), torch.cat(seen[13:])
    assert not torch.equal(first, second)
    assert sorted(first.sum((1, 2, 3)).tolist()) == sorted(second.sum((1, 2, 3)).tolist())
    assert done.losses[-1][0] == 26


def test_ranks_share_each_batch_and_step_together(monkeypatch):
    """Each has as many images, so the first of a batch are seen twice where they do not divide."""
    seen = []
    take = training.PlainStep.__call__
    keep = lambda *a: seen.append(a[1].clone()) or take(*a)  # noqa: E731
    monkeypatch.setattr(training.PlainStep, "__call__", keep)
    hp = Parameters(epochs=1)
    for rank in range(3):
        share = Context(None, Path("none"), hp, 3, rank=rank, ranks=3).batches
        done = training.train(TINY, hp, ranks=training.Ranks(3, batches=share))
        assert done.losses[-1][0] == 13, "the steps are those of one worker"
    assert [len(x) for x in seen] == ([2] * 12 + [1]) * 3
    order = torch.randperm(50, generator=torch.Generator().manual_seed(hp.seed))
    images = as_tensor(TINY.train_images)
    for step, batch in enumerate(order.split(4)):
        of_all = torch.cat(seen[step::13]).sum((1, 2, 3)).tolist()
        filled = torch.cat([batch, batch])[: 6 if len(batch) == 4 else 3]
        assert sorted(of_all) == sorted(images[filled].sum((1, 2, 3)).tolist())


def test_one_loss_point_is_a_mean_over_its_steps(monkeypatch):
    monkeypatch.setattr(FastStep, "__call__", lambda *a: torch.tensor(float(len(a[1]))))
    losses = train(TINY, Parameters(epochs=2)).losses
    assert [step for step, _ in losses] == [2, 4, 6, 8, 10, 12, 13, 15, 17, 19, 21, 23, 25, 26]
    assert [loss for _, loss in losses] == [4, 4, 4, 4, 4, 4, 2] * 2


def test_long_epochs_have_a_point_every_2000_steps(monkeypatch):
    monkeypatch.setattr(FastStep, "__call__", lambda *a: torch.tensor(1.0))
    data = striped_images(10_500, 10)
    hp = Parameters(epochs=1, batch_size=1)
    assert [s for s, _ in train(data, hp).losses] == [2000, 4000, 6000, 8000, 10_000, 10_500]


def test_an_infinite_loss_ends_the_training_with_advice():
    with pytest.raises(UsageError, match="lower learning_rate"):
        train(TINY, Parameters(learning_rate=10, epochs=30))


def test_threads_and_onednn_are_set_for_the_training_only(monkeypatch):
    before, during = torch.get_num_threads(), []
    take = FastStep.__call__

    def look(*args):
        during.append((torch.get_num_threads(), bool(torch.backends.mkldnn.enabled)))
        return take(*args)

    monkeypatch.setattr(FastStep, "__call__", look)
    train(TINY, Parameters(epochs=1, threads=2))
    assert set(during) == {(2, False)}
    during.clear()
    train(TINY, Parameters(epochs=1, batch_size=32))  # oneDNN is faster from here on
    assert set(during) == {(1, True)}
    assert torch.get_num_threads() == before
    assert torch.backends.mkldnn.enabled


# --- the same result again --------------------------------------------------------------------


def test_same_seed_same_bits_and_metrics_other_seed_others():
    first, again, other = (train(TINY, Parameters(epochs=2, seed=seed)) for seed in (42, 42, 43))
    assert bits(first.model) == bits(again.model) != bits(other.model)
    assert first.losses == again.losses
    measured = [training.evaluate(t.model, TINY, Parameters()) for t in (first, again)]
    assert measured[0].performance == measured[1].performance
    assert measured[0].probabilities.tobytes() == measured[1].probabilities.tobytes()


def test_resumes_after_an_interruption_with_the_same_bits(tmp_path):
    hp = Parameters(epochs=4)

    with pytest.raises(KeyboardInterrupt):
        training.train(TINY, hp, tmp_path, interrupt_in_epoch(3, 4))
    time.sleep(0.01)
    resumed, unbroken = train(TINY, hp, tmp_path), train(TINY, hp)
    assert bits(resumed.model) == bits(unbroken.model)
    assert resumed.losses == unbroken.losses
    assert (resumed.epochs_resumed, unbroken.epochs_resumed) == (2, 0)
    assert resumed.end - resumed.start > resumed.seconds > 0


def test_a_finished_training_is_read_and_not_repeated(tmp_path, monkeypatch):
    hp = Parameters(epochs=2)
    first = train(TINY, hp, tmp_path)
    monkeypatch.setattr(FastStep, "__call__", None)  # a step would fail
    again = train(TINY, hp, tmp_path)
    assert bits(again.model) == bits(first.model)
    assert again.epochs_resumed == 2
    assert dataclasses.astuple(again)[1:5] == dataclasses.astuple(first)[1:5]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from idx_files import striped_images
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
def show(step, steps, loss):
    print(step, flush=True)
training.train(striped_images(50, 30), Parameters(epochs=int(sys.argv[2])), Path(sys.argv[1]), show)
"""


@pytest.mark.slow
def test_killed_with_signal_9_again_and_again_gives_the_unbroken_result(tmp_path):
    epochs, kills = 300, 0
    support = str(Path(__file__).parents[2] / "support")
    argv = [sys.executable, "-c", CHILD, str(tmp_path), str(epochs), support]
    for lines in (10, 400, 487):  # killed after this many progress lines
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
            for _ in range(lines):
                child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        read_tensors(tmp_path / "checkpoint.safetensors")  # whole after every kill
    hp = Parameters(epochs=epochs)
    resumed, unbroken = train(TINY, hp, tmp_path), train(TINY, hp)
    assert kills == 3
    assert 100 < resumed.epochs_resumed < epochs
    assert bits(resumed.model) == bits(unbroken.model)
    assert resumed.losses == unbroken.losses


# --- checkpoints and models on disk -----------------------------------------------------------


def test_a_checkpoint_of_another_training_is_refused_and_kept(tmp_path):
    train(TINY, Parameters(epochs=1), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    before = path.read_bytes()
    other = striped_images(51, 30)
    for data, hp, named in (
        (TINY, Parameters(epochs=1, seed=1, learning_rate=0.01), "learning_rate, seed"),
        (other, Parameters(epochs=1), "data"),
    ):
        with pytest.raises(DataError) as caught:
            train(data, hp, tmp_path)
        assert caught.value.got.endswith(f"other values of: {named}")
        assert str(path) in caught.value.tried
    assert path.read_bytes() == before


def test_a_checkpoint_of_fewer_epochs_is_the_beginning_of_a_longer_training(tmp_path):
    train(TINY, Parameters(epochs=2), tmp_path)
    longer, whole = train(TINY, Parameters(epochs=5), tmp_path), train(TINY, Parameters(epochs=5))
    assert longer.epochs_resumed == 2
    assert bits(longer.model) == bits(whole.model)
    assert longer.losses == whole.losses
    with pytest.raises(DataError, match="other values of: epochs"):
        train(TINY, Parameters(epochs=3), tmp_path)  # it has more than these already


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no shuffle", "a directory"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, damage):
    hp, path = Parameters(epochs=1), tmp_path / "checkpoint.safetensors"
    train(TINY, hp, tmp_path)
    content = path.read_bytes()
    tensors, state = read_tensors(path)
    if damage == "no shuffle":
        write_tensors(path, {k: v for k, v in tensors.items() if k != "shuffle"}, state)
    elif damage == "a directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"cut": content[:-100], "empty": b"", "text": b"hello" * 9}[damage])
    with pytest.raises(DataError, match="checkpoint.safetensors") as caught:
        train(TINY, hp, tmp_path)
    assert "remove" in caught.value.next_step


def test_a_folder_that_cannot_be_written_is_named_and_nothing_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="KIT_RESULTS_DIR"):
        train(TINY, Parameters(epochs=1), tmp_path / "file")
    save_model(Model(), tmp_path / "m")
    before = (tmp_path / "m").read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        save_model(Model(), tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["file", "m"]


# --- evaluation -------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Answers with the scores it was given."""

    def __init__(self, predicted):
        super().__init__()
        self.scores = F.one_hot(torch.tensor(predicted), 10).float() * 5

    def forward(self, x):
        answer, self.scores = self.scores[: len(x)], self.scores[len(x) :]
        return answer


def test_metrics_by_hand():
    # Labels 0..9 twice; 0 is taken for 1 once, 2 for 1 twice; nothing is ever called 2.
    actual = np.array([*range(10), *range(10)], np.uint8)
    predicted = [0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1, 3, 4, 5, 6, 7, 8, 9]
    data = dataclasses.replace(TINY, test_images=TINY.test_images[:20], test_labels=actual)
    got = training.evaluate(Fixed(predicted), data, Parameters())
    p = got.performance
    assert list(p) == [
        "name",
        "accuracy",
        "precision",
        "recall",
        "class-accuracy",
        "class-precision",
        "class-recall",
    ]
    assert p["class-recall"] == p["class-accuracy"] == [0.5, 1, 0, 1, 1, 1, 1, 1, 1, 1]
    assert p["class-precision"] == pytest.approx([1, 0.4, 0, 1, 1, 1, 1, 1, 1, 1])
    assert p["accuracy"] == p["recall"] == pytest.approx(0.85)
    assert p["precision"] == pytest.approx(0.84)
    assert json.loads(json.dumps(p)) == p
    assert got.predictions.tolist() == predicted
    assert got.predictions.dtype == np.uint8
    assert got.confusion[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert got.confusion.sum() == 20
    assert got.probabilities.dtype == np.float32
    assert got.probabilities.sum(1) == pytest.approx(np.ones(20))


@pytest.mark.parametrize("seed", range(20))
def test_metrics_have_the_bits_of_torchmetrics(seed):
    """Also where a class occurs and is never predicted, the other way round, or neither."""
    torch.manual_seed(seed)
    classes = torch.randperm(10)
    actual = classes[torch.randint(2 + seed % 9, (1000,))]
    predicted = torch.where(torch.rand(1000) < 0.7, actual, classes[torch.randint(10, (1000,))])
    data = dataclasses.replace(
        TINY,
        test_images=np.zeros((1000, 28, 28), np.uint8),
        test_labels=actual.numpy().astype(np.uint8),
    )
    got = training.evaluate(Fixed(predicted.tolist()), data, Parameters())
    for kind in ("accuracy", "precision", "recall"):
        measure = getattr(metrics, f"multiclass_{kind}")
        macro = measure(predicted, actual, num_classes=10, average="macro")
        by_class = measure(predicted, actual, num_classes=10, average="none")
        assert got.performance[kind] == macro.tolist()
        assert got.performance[f"class-{kind}"] == by_class.tolist()
    confusion = metrics.multiclass_confusion_matrix(predicted, actual, 10)
    assert got.confusion.tolist() == confusion.tolist()


def test_evaluation_does_not_depend_on_its_batch(monkeypatch):
    model = train(TINY, Parameters(epochs=1)).model
    whole = training.evaluate(model, TINY, Parameters())
    monkeypatch.setattr(training, "EVALUATION_BATCH", 4)
    pieces = training.evaluate(model, TINY, Parameters())
    assert whole.predictions.tolist() == pieces.predictions.tolist()
    assert np.allclose(whole.probabilities, pieces.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "real", "generated"), [(5, (0.48, 0.66), (0.1, 1)), (20, (0.68, 0.80), (0.8, 1))]
)
def test_accuracy_on_the_small_set(epochs, real, generated):
    data = real_or_striped_images()
    least, most = real if data.source == "folder" else generated
    hp = Parameters(epochs=epochs)
    accuracy = training.evaluate(train(data, hp).model, data, hp).performance["accuracy"]
    assert least <= accuracy <= most, f"{data.source} images"


# --- what the person sees ---------------------------------------------------------------------


def test_training_reports_step_steps_and_loss(tmp_path):
    seen = []
    training.train(TINY, Parameters(epochs=2), tmp_path, lambda *now: seen.append(now))
    assert seen[0][:2] == (2, 26)
    assert seen[-1][:2] == (26, 26)
    assert all(loss > 0 for _, _, loss in seen)
