"""The parameters of one training on Fashion-MNIST; the defaults are the article's."""

from typing import Literal

from pydantic import Field

from kit.experiments.parameters import Parameters as Base

MAX_SEED = 2**53 - 1  # exact as a float, which is what JSON and KFP make of it


class Parameters(Base):
    """Parameters of one training.

    The article did not record its number of threads. With batches of four one thread is the
    fastest on most machines.
    """

    epochs: int = Field(default=5, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(default=4, ge=1, le=60_000, description="images per step")
    learning_rate: float = Field(default=0.001, gt=0, le=10, description="learning rate of SGD")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD")
    seed: int = Field(default=42, ge=0, le=MAX_SEED, description="seed of weights and order")
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads of PyTorch")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where the training runs")
    fast_step: bool = Field(
        default=True, description="hand-written step on the CPU, the same results"
    )
