"""The article's experiment: a small convolutional network on Fashion-MNIST.

`training.py` is read from top to bottom; `fast_step.py` is its step written out by hand, faster
on the CPU; `data.py` reads the images and `download.py` fetches them; `parameters.py` holds
what can be changed. Only `training.py` and `fast_step.py` need PyTorch.
"""

METRICS = ("accuracy", "precision", "recall")  # each is a share, from 0 to 1
GATES = {"accuracy": 0.8, "precision": 0.8, "recall": 0.8}

__all__ = ["GATES", "METRICS"]
