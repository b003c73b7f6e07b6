"""Compare a training by two ranks with one worker: seconds a step, and accuracy over seeds.

Usage: make bench NAMES=ranks

Two ranks are two processes of this machine, one thread each, as on two nodes. Each takes its half
of a batch, so they are compared with one worker that takes the whole: the same mathematics, in half
the arithmetic a process plus the averaging of gradients. Only rounding differs, as between the step
of autograd and the one written out. At a learning rate of 0.02 rounding alone moves the accuracy of
a seed by 0.1 (0.70 or 0.56), so the accuracies are compared where it moves it by an image or two.
"""

import json
import tempfile
from pathlib import Path

import measured
from idx_files import real_or_striped_images
from rank_attempts import Attempts

from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters

BATCHES = (8, 128, 512)  # images of a step
SEEDS = (1, 2, 3, 4, 5)
EPOCHS = 10
STEADY = {"epochs": 20, "learning_rate": 0.002, "batch_size": 8}


def alone(images, **hyperparameters):
    """Milliseconds a step, and the accuracy, of one worker, with autograd's step unless asked."""
    hp = Parameters(**{"fast_step": False, **hyperparameters})
    trained = training.train(images, hp)
    steps = trained.losses[-1][0]
    accuracy = training.evaluate(trained.model, images, hp).performance["accuracy"]
    return trained.seconds / steps * 1000, accuracy


def together(images, **hyperparameters):
    """Milliseconds a step of all ranks, and the accuracy, of two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        ended = Attempts(Path(folder), images, **hyperparameters).run("two")
        read = {n: json.loads((ended / f"{n}.json").read_text()) for n in ("times", "metrics")}
        steps = json.loads((ended / "losses.json").read_text())[-1][0]
    seconds = read["times"]["training"]["total-seconds"]
    return seconds / steps * 1000, read["metrics"]["metrics"]["accuracy"]


def compare_steps(images):
    print(f"{len(images.train_images)} images, {EPOCHS} epochs; milliseconds a step")
    for batch in BATCHES:
        common = {"epochs": EPOCHS, "seed": 1}
        half, _ = alone(images, batch_size=batch // 2, **common)
        one, _ = alone(images, batch_size=batch, **common)
        two, _ = together(images, batch_size=batch, **common)
        note = f"ms a step: {two:.2f}; one worker {one:.2f}, with half its batch {half:.2f}"
        measured.show(f"two ranks with {batch // 2} images each", two / one, "", note=note)


def compare_accuracies(images):
    rows = {
        "one worker": [alone(images, **STEADY, seed=s)[1] for s in SEEDS],
        "one worker, fast step": [
            alone(images, **STEADY, seed=s, fast_step=True)[1] for s in SEEDS
        ],
        "two ranks": [together(images, **STEADY, seed=s)[1] for s in SEEDS],
    }
    for name, accuracies in rows.items():
        measured.show(f"accuracy of {name}, batch 8", accuracies, "", more_is_better=True)
    for name in ("one worker, fast step", "two ranks"):
        pairs = zip(rows[name], rows["one worker"], strict=True)
        differences = [abs(other - one) for other, one in pairs]
        measured.show(f"accuracy of {name}, from one worker of that seed", differences, "")


def main():
    images = real_or_striped_images()
    compare_steps(images)
    compare_accuracies(images)


if __name__ == "__main__":
    main()
