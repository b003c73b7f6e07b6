"""One small experiment on three targets: a laptop, a cloud MLOps platform, a supercomputer."""

__version__ = "0.1.0"
