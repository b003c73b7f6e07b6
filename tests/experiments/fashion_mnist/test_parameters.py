"""The parameters of the experiment: defaults and ranges."""

import pytest

from kit.base import UsageError
from kit.experiments.fashion_mnist.parameters import Parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", bad) for bad in (0, -1, True, "5", 2.5, None, 10_001)],
        *[("batch_size", bad) for bad in (0, 60_001, 4.5)],
        *[("threads", bad) for bad in (0, 1025, "1")],
        *[("seed", bad) for bad in (-1, 2**53, False)],
        *[("learning_rate", bad) for bad in (0, -0.1, float("nan"), float("inf"), "0.1", True)],
        *[("momentum", bad) for bad in (-0.1, 1, float("nan"), None)],
        *[("device", bad) for bad in ("tpu", "", 0, None)],
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(name, value):
    with pytest.raises(UsageError) as caught:
        Parameters(**{name: value})
    assert f"{name} = {value!r}" in caught.value.tried
    assert caught.value.next_step.startswith(f"set {name} to ")


def test_the_defaults_are_the_articles():
    assert tuple(vars(Parameters()).values()) == (5, 4, 0.001, 0.9, 42, 1, "cpu", True)
    Parameters(epochs=1, batch_size=60_000, learning_rate=1, momentum=0, seed=0)
