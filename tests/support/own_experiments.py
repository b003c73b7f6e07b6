"""Experiments as a person would write them, good and bad, in files of their own."""

GOOD = '''
"""The mean of some numbers."""
import json
import kit
from pydantic import Field

NAME = "mean_model"
PRIMARY, BEST = "error", "lowest"


class Parameters(kit.Parameters):
    steps: int = Field(default=3, ge=1, description="steps of the training")


def data(folder, source):
    (folder / "numbers.json").write_text("[1, 2, 3]")
    return kit.DataInfo(title="three numbers", test_items=3)


def train(ctx):
    numbers = json.loads((ctx.data / "numbers.json").read_text())
    for step in range(1, ctx.parameters.steps + 1):
        ctx.report(step, ctx.parameters.steps, 1 / step)
    (ctx.out / "model.json").write_text(json.dumps(sum(numbers) / len(numbers)))


def evaluate(ctx):
    return {"error": abs(json.loads((ctx.out / "model.json").read_text()) - 2)}
'''


def write(folder, text=GOOD, name="mean_model", **replace):
    """Write a module; `replace` are pairs of texts to be exchanged in it."""
    for old, new in replace.items():
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def changed(old, new, text=GOOD):
    assert old in text, old
    return text.replace(old, new)
