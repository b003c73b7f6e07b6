"""Compare the kit's training with the usual loop, and measure the memory of a full-size run.

Usage: make bench NAMES=training

One run prints one table of ratios; all loops take turns, seed by seed, so that a machine
that gets slower or faster in between does so for all of them.
"""

import resource
import statistics
import subprocess
import sys
import time

import measured
import torch
import torch.nn.functional as F
import torchmetrics
from idx_files import official_images, real_or_striped_images
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters

SEEDS = (1, 2, 3, 4, 5)
EPOCHS = 5
KIT = "the kit, 1 thread"
FULL_SIZE = (60_000, 10_000)
MEMORY_LIMIT_GB = 1.5


class UsualModel(nn.Module):
    """The model as it is usually written: ReLU before the pooling."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 256)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class UsualDataset(Dataset):
    """Like torchvision's: a PIL image a time, then ToTensor and Normalize(0.5, 0.5)."""

    def __init__(self, images, labels):
        self.images, self.labels = torch.tensor(images), torch.tensor(labels, dtype=torch.int64)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].numpy())
        return normalize(to_tensor(image)), int(self.labels[index])


def to_tensor(image):
    """The steps of torchvision's ToTensor for an image of mode L."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    values = values.view(image.size[1], image.size[0], 1).permute(2, 0, 1).contiguous()
    return values.to(torch.get_default_dtype()).div(255)


def normalize(tensor):
    """The steps of torchvision's Normalize((0.5,), (0.5,))."""
    tensor = tensor.clone()
    mean = torch.as_tensor((0.5,), dtype=tensor.dtype).view(-1, 1, 1)
    std = torch.as_tensor((0.5,), dtype=tensor.dtype).view(-1, 1, 1)
    return tensor.sub_(mean).div_(std)


def usual(data, seed, threads, metrics_in_training):
    """Train and evaluate in the usual way; give (steps/s, seconds in all, accuracy)."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    net = UsualModel()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    train_set = UsualDataset(data.train_images, data.train_labels)
    loader = DataLoader(train_set, batch_size=4, shuffle=True)
    watched = three_metrics() if metrics_in_training else ()
    began = time.perf_counter()
    steps, running_loss = 0, 0.0
    for _ in range(EPOCHS):
        for inputs, labels in loader:
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            for metric in watched:
                metric.update(outputs.argmax(1), labels)
            steps += 1
    trained = time.perf_counter()
    accuracy, *_ = final = three_metrics()
    test_set = UsualDataset(data.test_images, data.test_labels)
    with torch.no_grad():
        for inputs, labels in DataLoader(test_set, batch_size=4):
            for metric in final:
                metric.update(net(inputs).argmax(1), labels)
    result = float(accuracy.compute())
    return steps / (trained - began), time.perf_counter() - began, result


def three_metrics():
    kinds = torchmetrics.classification
    return [
        kind(num_classes=10, average="macro")
        for kind in (kinds.MulticlassAccuracy, kinds.MulticlassPrecision, kinds.MulticlassRecall)
    ]


def ours(data, seed, fast_step=True):
    """Train and evaluate with the kit; return (steps/s, seconds in all, accuracy)."""
    hp = Parameters(epochs=EPOCHS, seed=seed, fast_step=fast_step)
    began = time.perf_counter()
    done = training.train(data, hp)
    accuracy = training.evaluate(done.model, data, hp).performance["accuracy"]
    total = time.perf_counter() - began
    return done.losses[-1][0] / done.seconds, total, accuracy


def compare(data):
    """Run every loop with every seed in turn; give {name: [(steps/s, seconds, accuracy)]}."""
    many = torch.get_num_threads()
    loops = {
        KIT: lambda seed: ours(data, seed),
        "the kit with loss.backward(), 1 thread": lambda seed: ours(data, seed, False),
        f"usual, {many} threads (default)": lambda seed: usual(data, seed, many, False),
        "usual, 1 thread": lambda seed: usual(data, seed, 1, False),
        f"usual + metrics a batch, {many} threads": lambda seed: usual(data, seed, many, True),
        "usual + metrics a batch, 1 thread": lambda seed: usual(data, seed, 1, True),
    }
    for loop in loops.values():
        loop(0)  # warm-up: imports and first calls
    results = {name: [] for name in loops}
    for seed in SEEDS:
        for name, loop in loops.items():
            results[name].append(loop(seed))
    return results


def table(results):
    """One line a loop: steps/s, the kit's ratio to it (training; with evaluation), accuracy."""
    (kit_rate, kit_total), lines = _medians(results[KIT]), []
    lines.append(
        f"{'loop':40} {'steps/s':>8} {'kit is':>7} {'+ eval':>7}  accuracy (mean ± sd, range)"
    )
    for name, runs in results.items():
        rate, total = _medians(runs)
        accuracies = [run[2] for run in runs]
        lines.append(
            f"{name:40} {rate:8.0f} {kit_rate / rate:6.2f}x {total / kit_total:6.2f}x  "
            f"{statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f}"
            f"  {min(accuracies):.3f}-{max(accuracies):.3f}"
        )
    return "\n".join(lines)


def _medians(runs):
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


def full_size_memory():
    """Train one epoch on the official images here; give (GB, steps/s, accuracy)."""
    data = official_images()
    hp = Parameters(epochs=1)
    done = training.train(data, hp)
    accuracy = training.evaluate(done.model, data, hp).performance["accuracy"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if _MAC else 1024)
    return peak / 1e9, done.losses[-1][0] / done.seconds, accuracy


_MAC = sys.platform == "darwin"  # where ru_maxrss is in bytes


def main():
    if sys.argv[1:] == ["--memory"]:
        peak, rate, accuracy = full_size_memory()
        print(f"{FULL_SIZE[0]:,} + {FULL_SIZE[1]:,} official images, 1 epoch")
        measured.show("peak memory of that training", peak, "GB", MEMORY_LIMIT_GB)
        measured.show("steps a second", rate, "1/s", more_is_better=True)
        measured.show("its accuracy", accuracy, "", more_is_better=True)
        return 0 if peak < MEMORY_LIMIT_GB else 1
    data = real_or_striped_images()
    kind = "real" if data.source == "folder" else "GENERATED (KIT_TEST_DATA is not set)"
    sizes = f"{len(data.train_images)} + {len(data.test_images)}"
    print(f"{sizes} {kind} images, batch 4, {EPOCHS} epochs, {len(SEEDS)} seeds, torch", end=" ")
    print(f"{torch.__version__}, {sum(p.numel() for p in training.Model().parameters())} weights")
    results = compare(data)
    print(table(results), flush=True)
    for name, runs in results.items():
        rates = [ours[0] / run[0] for ours, run in zip(results[KIT], runs, strict=True)]
        measured.show(f"the kit beside {name}", rates, "", more_is_better=True)
    # In a process of its own: peak memory never goes down again.
    argv = [sys.executable, __file__, "--memory"]
    return subprocess.run(argv, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
