"""Intervals of a share over the items tested on, and of a mean over seeds."""

import pytest
from report_runs import add_trial

from kit.report import intervals
from kit.report import page as report_page


def test_interval_is_that_of_wilson():
    # Wilson for 8 of 10 by hand: (0.8 + 0.19207) / 1.38415 = 0.71674; half 1.95996 x
    # sqrt(0.016 + 0.0096037) / 1.38415 = 0.22657
    low, high = intervals.wilson(0.8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert intervals.wilson(1.0, 10_000)[1] == 1.0
    assert intervals.wilson(0.0, 5)[0] == 0.0
    assert intervals.wilson(0.5, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("degrees", "wanted"),  # the usual tables of Student's t
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423)],
)
def test_quantiles_are_those_of_students_t(degrees, wanted):
    assert intervals.t95(degrees) == pytest.approx(wanted, abs=0.0003)


def test_a_sweep_over_seeds_gives_the_spread_of_each_combination(loaded):
    for seed, metric in ((1, 0.5), (2, 0.7)):
        add_trial(loaded, metric=metric, seed=seed, rate=0.1)
    add_trial(loaded, metric=0.9, seed=1, rate=0.2)  # one seed has no spread
    add_trial(loaded, state="failed", seed=2, rate=0.2)
    add_trial(loaded, state="stopped early", seed=3, rate=0.1)
    add_trial(loaded, metric=0.9, rate=0.3)
    add_trial(loaded, primary="other", seed=3, rate=0.1)
    # t of one degree of freedom is 12.7062: 0.6 -+ 12.7062 x 0.141421 / sqrt(2)
    wanted = (
        "digits, local, rate 0.1: score 0.6000 ± 0.1414 over 2 seeds, "
        "95 % interval -0.6706 to 1.8706 (Student's t; local-0123456789ab-7)."
    )
    assert list(map(str, intervals.read_spreads(loaded))) == [wanted]
    assert wanted in report_page.notes(loaded)["noise"]


def test_without_sweeps_there_is_no_spread(loaded):
    assert intervals.read_spreads(loaded) == []
