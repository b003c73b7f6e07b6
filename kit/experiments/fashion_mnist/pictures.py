"""The experiment's pictures: one image of each class, and which class was taken for which."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kit.experiments.contract import Context
from kit.experiments.fashion_mnist.images import LABELS, read_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(ctx: Context) -> dict[str, Any]:
    """Return the pictures that can be drawn from the files of a run so far, by title."""
    data = read_folder(ctx.data)
    drawn = {"images": image_grid(data.train_images, data.train_labels.tolist(), data.warning)}
    confusion = ctx.out / "confusion.json"
    if confusion.exists():
        counts = np.array(json.loads(confusion.read_text(encoding="utf-8")))
        drawn["confusion"] = confusion_matrix(counts, data.warning)
    return drawn


def _figure(width: float, height: float, warning: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if warning:
        figure.suptitle(warning, color="#B00000", fontsize=10, fontweight="bold", wrap=True)
    return figure


def image_grid(images: NDArray[np.uint8], labels: list[int], warning: str = "") -> "Figure":
    """Draw the first image of each class, (N, 28, 28) uint8, in one row."""
    figure = _figure(9, 1.6 + 0.3 * bool(warning), warning)
    for number, axes in enumerate(figure.subplots(1, len(LABELS))):
        axes.set_title(LABELS[number], fontsize=8)
        axes.axis("off")
        if number in labels:
            axes.imshow(images[labels.index(number)], cmap="gray_r", vmin=0, vmax=255)
    return figure


def confusion_matrix(matrix: NDArray[np.int64], warning: str = "") -> "Figure":
    """Draw counts (10, 10), rows the true class, columns the predicted one."""
    figure = _figure(6.2, 5.4, warning)
    axes = figure.subplots()
    axes.set_title("Confusion matrix (test images)", loc="left", fontsize=11)
    axes.imshow(matrix, cmap="Blues")
    axes.set_xticks(range(len(LABELS)), LABELS, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(LABELS)), LABELS, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    half = matrix.max() / 2
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if count > half else "black"
        text = axes.text(column, row, str(count), ha="center", va="center", fontsize=7)
        text.set(color=colour, in_layout=False)  # 100 texts would triple the time of the layout
    return figure
