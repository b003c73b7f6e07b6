"""The page and the other forms of the table."""

import json
import re

import pytest
from click.testing import CliRunner
from report_runs import add_run

from kit.base import SSHHost, Unreachable, UsageError, read_history
from kit.cli.main import cli
from kit.cli.report import report_command
from kit.report import page as report_page
from kit.report import table as report
from kit.runs import notebooks


def test_page_needs_no_other_file_and_has_every_section(loaded):
    add_run(loaded, "local", 60.0)
    add_run(loaded, "cloud", 20.0, run="cloud-<b>-1")
    with (loaded.profile_dir / "history.jsonl").open("a") as file:
        file.write("{broken\n" + json.dumps({"schema": 99, "run": "x"}) + "\n")
    page = report_page.page(loaded)
    assert page.count("data:image/svg+xml;base64,") == 4
    assert not re.search(r"<script|(?:src|href)=\"(?!data:)", page)
    assert "cloud-&lt;b&gt;-1" in page
    assert "line 3 is damaged" in page
    assert "line 4 was left out: it has another shape" in page
    for title in ("23.17", "26.24", "not parallelism", "pipeline_data.json", "cPouta bills"):
        assert title in page, title


def test_page_is_made_although_a_run_has_damaged_files(loaded):
    add_run(loaded, "cloud", 20.0)
    add_run(loaded, "cloud-hpc", 20.0)
    assert "cPouta bills" in report_page.page(loaded)  # both runs have no folder at all
    folder = loaded.profile_dir / "runs" / "cloud-hpc-0123456789ab-1"
    folder.mkdir(parents=True)
    (folder / "sacct.txt").write_text("JobID|Partition|State\n5|sma")
    page = report_page.page(loaded)
    assert "a line of sacct does not fit its header" in page
    assert "cloud-0123456789ab-1</h3>" in page


def test_the_page_can_be_made_before_any_run(loaded):
    assert "No new runs yet" in report_page.page(loaded)


def invoke(*arguments):
    done = CliRunner().invoke(report_command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_table_comes_as_text_markdown_csv_latex_and_html(loaded, tmp_path):
    add_run(loaded, "local", 60.0)
    assert "1,555.07" in invoke()
    assert "| training s" in invoke("--format", "md")
    lines = invoke("--format", "csv").splitlines()
    assert lines[0].startswith(",article local,article cloud")
    assert lines[1].startswith('training s,"1,555.07"')
    latex = invoke("--format", "tex")
    assert latex.startswith("\\begin{tabular}{lrrrrr}")
    assert "accuracy, 95 \\% interval" in latex
    assert invoke("--format", "html").startswith("<!doctype html>")
    assert "where-the-seconds-went.svg" in invoke("--pictures", str(tmp_path / "p"))


def test_every_line_of_the_report_fits_a_terminal(loaded):
    add_run(loaded, "local", 60.0)
    text, _ = report_page.text(loaded, "table")
    assert "The published figures" in text
    assert max(map(len, text.splitlines())) <= 100


def test_repeated_runs_end_with_their_median_spread_and_what_is_noise(loaded, monkeypatch):
    for number in (1, 2):
        add_run(loaded, "cloud", 20.0, number=number)
    times = iter((60.0, 50.0, 70.0))

    def execute(loaded, target, _values, _began):
        add_run(loaded, target, next(times))
        return read_history(loaded.profile_dir / "history.jsonl")[0][-1]

    monkeypatch.setattr(notebooks, "run_notebook", execute)
    done = CliRunner().invoke(cli, ["run", "local", "--repeat", "3"], catch_exceptions=False)
    assert (done.exit_code, next(times, None)) == (0, None)
    assert re.search(r"training s +60.00\n +\[50.00 to\n +70.00\]", done.stdout)
    assert "local (new) and cloud (new), training: 40.00 s apart, more than noise." in done.stdout


def test_a_budget_counts_also_where_the_site_cannot_be_asked_what_is_left(loaded, monkeypatch):
    def away(*_args, **_how):
        raise Unreachable("reach hpc")

    monkeypatch.setattr(SSHHost, "run", away)
    monkeypatch.setattr(notebooks, "run_notebook", lambda *_: None)
    asked = CliRunner().invoke(
        cli, ["run", "cloud-hpc", "--budget", "1000"], catch_exceptions=False
    )
    assert (asked.exit_code, "left in the project are not known: reach hpc" in asked.stderr) == (
        0,
        True,
    )
    with pytest.raises(UsageError, match="0.0001 are allowed"):
        CliRunner().invoke(cli, ["run", "cloud-hpc", "--budget", "0.0001"], catch_exceptions=False)


def test_a_history_line_without_target_or_parameters_is_left_out(loaded):
    add_run(loaded, "local", 60.0)
    add_run(loaded, "moon", 10.0, number=2)
    add_run(loaded, "local", 10.0, number=3, parameters=None)
    table, problems = report.read_table(loaded)
    assert table["local (new)"]["runs"] == "1"
    assert len(problems) == 2


def test_the_report_of_many_runs_is_whole(loaded):
    add_run(loaded, "local", 60.0)
    path = loaded.profile_dir / "history.jsonl"
    path.write_text(path.read_text() * 10_000)
    table, problems = report_page.text(loaded, "table")
    assert "10000" in table
    assert problems == []
