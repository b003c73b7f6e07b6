"""Compare a training by two ranks with one worker: seconds a step, and accuracy over seeds.

Usage: make bench NAMES=ranks

Two ranks are two processes of this machine, one thread each, as on two nodes. A step of two ranks
with batches of N takes as many images as one of one worker with 2 N, so those two are compared:
the same mathematics, in half the arithmetic a process plus the averaging of gradients.
"""

import json
import tempfile
from pathlib import Path

import measured
from idx_files import real_or_striped_images
from rank_attempts import Attempts

from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters

BATCHES = (4, 64, 256)
SEEDS = (1, 2, 3, 4, 5)
EPOCHS = 10


def alone(images, **hyperparameters):
    """Milliseconds a step, and the accuracy, of one worker with autograd's step."""
    hp = Parameters(**hyperparameters, fast_step=False)
    trained = training.train(images, hp)
    steps = trained.losses[-1][0]
    accuracy = training.evaluate(trained.model, images, hp).performance["accuracy"]
    return trained.seconds / steps * 1000, accuracy


def together(images, **hyperparameters):
    """Milliseconds a step of all ranks, and the accuracy, of two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        ended = Attempts(Path(folder), images, **hyperparameters).run("two")
        read = {n: json.loads((ended / f"{n}.json").read_text()) for n in ("times", "metrics")}
        steps = json.loads((ended / "losses.json").read_text())[-1][0] / 2
    seconds = read["times"]["training"]["total-seconds"]
    return seconds / steps * 1000, read["metrics"]["metrics"]["accuracy"]


def main():
    images = real_or_striped_images()
    print(f"{len(images.train_images)} images, {EPOCHS} epochs; milliseconds a step")
    for batch in BATCHES:
        common = {"epochs": EPOCHS, "seed": 1}
        one, _ = alone(images, batch_size=batch, **common)
        wide, _ = alone(images, batch_size=2 * batch, **common)
        two, _ = together(images, batch_size=batch, **common)
        note = f"ms a step: {two:.2f}; one worker {wide:.2f}, with half its batch {one:.2f}"
        measured.show(f"two ranks with {batch} images each", two / wide, "", note=note)
    common = {"epochs": EPOCHS, "learning_rate": 0.02}  # so that it learns something in that time
    rows = {
        "one worker, batch 8": [alone(images, **common, seed=s, batch_size=8) for s in SEEDS],
        "two ranks, batch 4": [together(images, **common, seed=s) for s in SEEDS],
    }
    for name, values in rows.items():
        accuracies = [accuracy for _, accuracy in values]
        measured.show(f"accuracy of {name}", accuracies, "", more_is_better=True)


if __name__ == "__main__":
    main()
