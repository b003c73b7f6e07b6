"""Which differences between runs are more than noise."""

import pytest
from report_runs import add_run

from kit.base import append_history
from kit.report import noise as report_noise
from kit.report import page as report_page
from kit.report import table as report


def test_interval_is_that_of_wilson():
    # Wilson for 8 of 10 by hand: (0.8 + 0.19207) / 1.38415 = 0.71674; half 1.95996 x
    # sqrt(0.016 + 0.0096037) / 1.38415 = 0.22657
    low, high = report.wilson(0.8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert report.wilson(1.0, 10_000)[1] == 1.0
    assert report.wilson(0.0, 5)[0] == 0.0
    assert report.wilson(0.5, 0) == (0.0, 1.0)


def test_speed_ups_are_over_the_local_column_of_the_same_kind(loaded):
    add_run(loaded, "local", 60.0)
    add_run(loaded, "cloud", 20.0)
    table, _ = report.read_table(loaded)
    # 1555.06633 / 271.85157 = 5.7203; 1555.06633 / 1349.36426 = 1.1524
    label = "training, times faster than local"
    assert table["article cloud-hpc-1"][label] == "5.72"
    assert table["article cloud-hpc-1"]["pipeline, times faster than local"] == "1.15"
    assert table["cloud (new)"][label] == "3.00"
    assert table["cloud (new)"]["pipeline, times faster than local"] == "1.50"


def test_without_a_local_run_there_is_no_speed_up(loaded):
    add_run(loaded, "cloud", 20.0)
    assert report.read_table(loaded)[0]["cloud (new)"]["training, times faster than local"] == "-"


def noise(loaded):
    return report_noise.compare(report.columns(loaded)[0])


def test_noise_is_unknown_with_fewer_than_two_runs(loaded):
    add_run(loaded, "local", 60.0)
    add_run(loaded, "cloud", 20.0)
    assert noise(loaded)[0].startswith("local (new), cloud (new): fewer than two runs")


@pytest.mark.parametrize(
    ("cloud", "wanted"),
    [((20.0, 30.0), "35.00 s apart, more than noise"), ((20.0, 65.0), "within the noise")],
)
def test_times_differ_when_their_ranges_do_not_meet(loaded, cloud, wanted):
    for number, (mine, theirs) in enumerate(zip((60.0, 60.0), cloud, strict=True), 1):
        add_run(loaded, "local", mine, number=number)
        add_run(loaded, "cloud", theirs, number=number)
    assert wanted in noise(loaded)[0]


@pytest.mark.parametrize(("accuracy", "wanted"), [(0.55, "within"), (0.9, "more than")])
def test_accuracies_differ_when_their_intervals_do_not_meet(loaded, accuracy, wanted):
    add_run(loaded, "local", 60.0, accuracy=0.5)
    add_run(loaded, "cloud", 20.0, accuracy=accuracy)
    assert f"{wanted} noise" in noise(loaded)[1].replace("the noise", "noise")


def add_trial(loaded, state="done", metric=0.5, primary="score", **values):
    row = {"run": "local-0123456789ab-1", "trial": str(values), "experiment": "digits"}
    row |= {"target": "local", "primary": primary, "state": state, "values": values}
    row["metrics"] = {"score": metric} if state == "done" else {}
    loaded.profile_dir.mkdir(parents=True, exist_ok=True)
    append_history(loaded.profile_dir / "trials.jsonl", row)


def test_a_sweep_over_seeds_gives_the_spread_of_each_combination(loaded):
    for seed, metric in ((1, 0.5), (2, 0.7)):
        add_trial(loaded, metric=metric, seed=seed, rate=0.1)
    add_trial(loaded, metric=0.9, seed=1, rate=0.2)  # one seed has no spread
    add_trial(loaded, state="failed", seed=2, rate=0.2)
    add_trial(loaded, state="stopped early", seed=3, rate=0.1)
    add_trial(loaded, metric=0.9, rate=0.3)
    add_trial(loaded, primary="other", seed=3, rate=0.1)
    wanted = "digits, local, rate 0.1: score 0.6000 ± 0.1414 over 2 seeds (local-0123456789ab-1)."
    assert report_noise.spread_over_seeds(loaded) == [wanted]
    assert wanted in report_page.notes(loaded)["noise"]


def test_without_sweeps_there_is_no_spread(loaded):
    assert report_noise.spread_over_seeds(loaded) == []
