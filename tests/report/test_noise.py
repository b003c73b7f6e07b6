"""Which differences between runs are more than noise."""

import pytest
from report_runs import add_run, add_sweep

from kit.report import noise as report_noise
from kit.report import page as report_page
from kit.report import table as report


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


def test_statements_on_runs_with_other_parameters_say_so(loaded):
    for number in (1, 2):
        add_run(loaded, "local", 60.0, number=number)
        add_run(loaded, "cloud", 20.0, number=number)
    assert [line for line in noise(loaded) if "different parameters" in line] == []
    add_run(loaded, "cloud", 20.0, number=3, parameters={"threads": 1, "epochs": 1})
    add_run(loaded, "cloud", 20.0, number=4, parameters={"threads": 1, "epochs": 1})
    training, accuracy = noise(loaded)
    for line in (training, accuracy):
        assert line.endswith("noise. They were trained with different parameters: epochs.")


def test_differences_are_judged_over_seeds_where_a_sweep_has_them(loaded):
    """Wilson over 180 images cannot tell these two apart; five seeds can."""
    add_run(loaded, "local", 60.0, accuracy=0.50)
    add_run(loaded, "cloud", 20.0, accuracy=0.55, parameters={"threads": 2, "seed": 1})
    assert "within the noise." in noise(loaded)[-1]
    add_sweep(loaded, "local", {"threads": 1, "configured": True, "gates": {}}, (0.49, 0.5, 0.51))
    assert "within the noise (over the seeds of local (new))." in noise(loaded)[-1]
    add_sweep(loaded, "local", {"threads": 2}, (0.56, 0.561, 0.559), number=8)
    line = noise(loaded)[-1]
    assert "0.0600 apart, more than noise (over the seeds of local (new) and cloud (new))" in line
    table, _ = report.read_table(loaded)
    # t of two degrees of freedom is 4.3027: 0.5 -+ 4.3027 x 0.01 / sqrt(3)
    label = "accuracy, 95 % interval (t over seeds)"
    assert table["local (new)"][label] == "0.4752 to 0.5248 (3 seeds)"
    assert label not in table["article local"]
    for form in ("table", "html"):
        assert "t over seeds" in report_page.text(loaded, form)[0]
