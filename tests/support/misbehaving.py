"""An experiment of a person that goes wrong in a way which a parameter names."""

NAME = "odd_ways"
# What the error of each way has in it.
WAYS = {
    "nan": "the metric score is nan, which is not a finite number",
    "text": "its function evaluate returned 'good'",
    "nothing": "its function evaluate returned None",
    "raises": "raised in train",
    "no file": "its function train wrote no file into ctx.out",
}
MODULE = '''
"""Goes wrong in the way that its parameter names; without one it uses all workers."""
import json
import os
import signal
import time
from pathlib import Path

import kit
from pydantic import Field

NAME, PRIMARY = "odd_ways", "score"


class Parameters(kit.Parameters):
    way: str = Field(default="", description="how it goes wrong")


def data(folder, source):
    (folder / "numbers.json").write_text("[1, 2, 3]")
    return kit.DataInfo(title="three numbers", test_items=3)


def train(ctx):
    way = ctx.parameters.way
    print("environment:", json.dumps(dict(os.environ)))
    if way == "raises":
        raise ValueError("raised in train")
    if way == "catches SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for step in range(1, 6000):
            ctx.report(step, 6000, 1 / step)
            time.sleep(0.1)
    numbers = json.loads((ctx.data / "numbers.json").read_text())
    squares = ctx.map(square, numbers)
    ctx.report(1, 1, 0.5)
    if way != "no file":
        (ctx.out / "model.json").write_text(json.dumps(squares))


def square(number):
    return number * number


def evaluate(ctx):
    squares = json.loads((ctx.out / "model.json").read_text())
    score = 0.5 if squares == [1, 4, 9] else 0.0
    bad = {"nan": {"score": float("nan")}, "text": "good", "nothing": None}
    return bad.get(ctx.parameters.way, {"score": score})


def meet(item):
    """Wait for the other call, which runs at the same time."""
    folder, number = item
    Path(folder, str(number)).touch()
    until = time.monotonic() + 60
    while len(os.listdir(folder)) < 2:
        assert time.monotonic() < until, "the other call does not come"
        time.sleep(0.01)
    return number, os.getpid()


def fail(number):
    if number == 3:
        raise ValueError("no item 3")
    return number


def vanish(number):
    if number == 3:
        os._exit(9)
    return number
'''
