"""The progress line of a training, in a terminal and in a notebook."""

import io

from idx_files import striped_images

from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.notebook import progress


def test_the_bar_shows_loss_and_rate_on_one_line():
    screen = io.StringIO()
    training.train(striped_images(50, 30), Parameters(epochs=2), None, progress.Bar(screen))
    shown = screen.getvalue()
    assert shown.count("\n") == 1
    assert shown.isascii()
    last = shown.strip().split("\r")[-1]
    assert last.startswith("training: 100%")
    assert "step/s" in last
    assert "loss 2." in last
    assert len(last) <= 100


def test_in_a_notebook_each_state_takes_the_place_of_the_one_before(monkeypatch):
    import IPython.display

    calls = []
    handle = IPython.display.DisplayHandle
    monkeypatch.setattr(handle, "display", lambda self, what, raw: calls.append(("new", what)))
    monkeypatch.setattr(handle, "update", lambda self, what, raw: calls.append(("same", what)))
    line = progress.NotebookLine()
    for text in ("\r 10%", "", "\r 20%", "\n"):
        line.write(text)
    line.flush()
    assert calls == [("new", {"text/plain": "10%"}), ("same", {"text/plain": "20%"})]
