"""Thresholds of metrics, whatever the metrics are."""

import json
import math

import pytest

from kit.base import UsageError
from kit.experiments import Thresholds


def test_missed_gates_are_listed_by_name_whatever_the_order_given():
    missed = Thresholds({"recall": 1, "accuracy": 1}).judge({"accuracy": 0.5, "recall": 0.25})
    assert missed["missed"] == ["accuracy 0.5000 is below 1", "recall 0.2500 is below 1"]


@pytest.mark.parametrize(
    ("loss", "missed"),
    [
        (0.3, []),
        (0.1, []),
        (0.30001, ["loss 0.3000 is above 0.3"]),
        (math.nan, ["loss nan is above 0.3"]),
    ],
)
def test_an_upper_bound_is_missed_by_a_greater_value(loss, missed):
    judged = Thresholds({"loss": "<=0.30"}).judge({"loss": loss})
    assert judged == {"passed": not missed, "thresholds": {"loss": "<= 0.3"}, "missed": missed}


def test_an_upper_bound_of_an_unmeasured_metric_is_missed():
    missed = Thresholds({"loss": "<= 2"}).judge({})["missed"]
    assert missed == ["loss was not measured, and at most 2.0 is required"]


def test_thresholds_of_a_record_are_read_again_as_they_were():
    gates = Thresholds({"loss": "<= 1e-9", "accuracy": 1})
    assert Thresholds(json.loads(json.dumps(gates))) == gates


@pytest.mark.parametrize("bound", ["<= ", "<= low", "<= nan", "<= inf", "< 0.3", ">= 0.3", "0.3"])
def test_a_text_that_is_not_an_upper_bound_is_refused(bound):
    with pytest.raises(UsageError, match="the gate of loss is") as caught:
        Thresholds({"loss": bound})
    assert '"<= 0.3"' in str(caught.value)
