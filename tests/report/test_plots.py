"""The pictures of the report."""

import xml.etree.ElementTree as ET

import pytest
from report_runs import add_run

from kit.report import noise as report_noise
from kit.report import page as report_page
from kit.report import plots
from kit.report import table as report


def test_no_two_parts_of_a_timeline_look_alike():
    parts = {f"part {number}": 1.0 for number in range(13)}
    (axes,) = plots.timeline({"a run": parts}).axes
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches]
    assert len(set(looks)) == len(looks) == 13


def test_a_part_looks_the_same_in_pictures_that_lack_another_one():
    both, one = {"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0}
    (more,), (less,) = plots.timeline({"x": both}).axes, plots.timeline({"x": one}).axes
    assert len(less.patches) == 1
    assert less.patches[0].get_facecolor() == more.patches[1].get_facecolor()


def test_the_eight_parts_of_the_published_run_1_are_drawn_apart_and_all_of_them(loaded):
    parts = report_noise.seconds_by_kind(report.columns(loaded)[0])["article cloud-hpc-1"]
    assert {name: value for name, value in parts.items() if value} == {
        "training": 272,
        "Ray start and data load": 16,
        "queue": 10.5,
        "HPC set-up, environment": 64,
        "starting pods, components": 83,
        "pip installs inside pods": 370,
        "polling, submitting, collecting": 479,
        "not attributed": 55,
    }


def test_of_the_other_published_runs_only_what_is_known_is_drawn(loaded):
    # 1309.7505 - 1020.58485; 279.60 - 272.92072 and the rest of 1431.2155
    found = report_noise.seconds_by_kind(report.columns(loaded)[0])
    assert sum(found["article local"].values()) == found["article local"]["training"] == 1555.06633
    assert found["article cloud"]["not attributed"] == pytest.approx(289.16565)
    assert found["article cloud-hpc-2"]["Ray start and data load"] == pytest.approx(6.67928)
    assert sum(found["article cloud-hpc-2"].values()) == pytest.approx(1431.2155)


def test_seconds_of_an_unknown_name_count_as_not_attributed(loaded):
    add_run(loaded, "local", 60.0)
    parts = report_noise.seconds_by_kind(report.columns(loaded)[0])["local (new)"]
    assert (parts["training"], parts["data, evaluation, records"]) == (60.0, 1.0)
    assert (parts["not attributed"], sum(parts.values())) == (2.0, 63.0)


@pytest.mark.slow
def test_pictures_are_svg_and_pdf_and_the_same_each_time(loaded, tmp_path):
    add_run(loaded, "local", 60.0)
    paths = report_page.save_pictures(loaded, tmp_path / "pictures")
    assert len(paths) == 8
    first = {path: path.read_bytes() for path in paths}
    assert all(content.startswith(b"%PDF") for p, content in first.items() if p.suffix == ".pdf")
    for path in paths:
        if path.suffix == ".svg":
            assert ET.fromstring(first[path]).tag.endswith("svg")
    report_page.save_pictures(loaded, tmp_path / "pictures")
    assert {path: path.read_bytes() for path in paths} == first


def trial(state="done", metric=0.5, **values):
    metrics = {"score": metric} if state != "failed" else {}
    return {"trial": str(values), "values": values, "state": state, "metrics": metrics}


@pytest.mark.parametrize(
    "rows",
    [
        [trial(rate=0.1, seed=1), trial(metric=0.7, rate=0.2, seed=2)],
        [trial(way="a"), trial(state="stopped early", way="b"), trial(state="failed", way="c")],
        [trial(rate=n / 100, metric=n) for n in range(30)],  # more values than texts fit
        [trial(flag=True), trial(flag=None)],
        [trial(state="failed", rate=0.1)],
        [trial(rate=0.1)],
    ],
)
def test_trials_are_drawn_whatever_their_values(rows):
    for figure in (
        plots.trials_parallel(rows, "score"),
        plots.metric_by_cost(rows, "score", [1.0] * len(rows), "BU", "a warning"),
    ):
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_best_trial_is_thick_and_a_stopped_one_dashed():
    rows = [trial(rate=0.1), trial(metric=0.9, rate=0.2), trial(state="stopped early", rate=0.3)]
    axes = plots.trials_parallel(rows, "score", rows[1]["trial"]).axes[0]
    lines = [
        line for line in axes.get_lines() if len(line.get_xdata()) == 2 and line.get_xdata()[1] == 1
    ]
    widths = [line.get_linewidth() for line in lines[:3]]
    assert widths[1] == max(widths) > widths[0]
    assert lines[2].get_linestyle() == "--"
