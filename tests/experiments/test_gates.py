"""Thresholds of metrics, whatever the metrics are."""

from kit.experiments import Thresholds


def test_missed_gates_are_listed_by_name_whatever_the_order_given():
    missed = Thresholds({"recall": 1, "accuracy": 1}).judge({"accuracy": 0.5, "recall": 0.25})
    assert missed["missed"] == ["accuracy 0.5000 is below 1", "recall 0.2500 is below 1"]
