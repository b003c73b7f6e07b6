"""The bill of a run from its folder, the estimate, the budget, and what `kit bill` prints."""

import dataclasses
import json
from decimal import Decimal

import pytest
from click.testing import CliRunner

from kit.base import ROOT, Completed, DataError, KitError, UsageError, append_history
from kit.base.settings import load
from kit.billing import (
    NO_JOB,
    bill_advice,
    bill_figures,
    bill_of_run,
    bill_summary,
    check_affordable,
    estimate,
    job_of_run,
    job_units,
    money,
    refuse_over,
    totals,
)
from kit.billing.rates import LOST
from kit.billing.tables import bill_rows, sites
from kit.cli.report import bill_command, bills_of_all, find_run

RUN = "cloud-hpc-0123456789ab-1"
COLUMNS = (
    "JobID|Partition|State|AllocCPUS|AllocNodes|ReqCPUS|Submit|Start|End|ElapsedRaw|"
    "CPUTimeRAW|TotalCPU|MaxRSS|ReqTRES|AllocTRES|JobName"
)
# 2 nodes, 2 cores, 6 GiB for 900 s: max(2 x 0.75, 6 x 0.375) = 2.25 x 0.25 h = 0.5625 CPU BU
TRES = "cpu=2,mem=6G,node=2"
JOB = f"5|small|COMPLETED|2|2|2|100|110|1010|900|1800|00:01:30||{TRES}|{TRES}|kit-0123456789ab"
STEP = "5.0||COMPLETED|2|2|2|110|110|1010|900|1800|00:01:30|1048576K|||ray"


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    loaded = load("sandbox")
    add(loaded, RUN, sacct=f"{COLUMNS}\n{JOB}\n{STEP}\n")
    return loaded


def add(loaded, run, sacct="", target="cloud-hpc", **more):
    folder = loaded.profile_dir / "runs" / run
    folder.mkdir(parents=True)
    if sacct:
        (folder / "sacct.txt").write_text(sacct)
    line = {
        "run": run,
        "target": target,
        "parameters": {"threads": 1},
        "stored_bytes": 2**30,
        "figures": {"pipeline_s": 1800.0},
        "host": {"cores": 2},
        "pipeline": {"training": 450.0, "queue": 1350.0},
        "slurm": {"seff": {"Non-Interactive BUs": "0.56"}},
    }
    append_history(loaded.profile_dir / "history.jsonl", {**line, **more})


def test_a_run_is_priced_from_its_raw_sacct_text_its_pipelines_time_and_its_bytes(loaded):
    bill = bill_of_run(loaded, find_run(loaded, RUN))
    sums = {kind: str(money(bu)) for kind, bu in totals(bill.lines).items()}
    # 0.5 h x (8.40 + 0.2) = 4.30; 1 GiB = 1/1024 TiB x 0.5 h x 1.05 = 0.0005
    assert sums == {"CPU BU": "0.56", "Cloud BU": "4.30", "Storage BU": "0.00"}
    assert bill_figures(bill) == {"slurm_bu": 0.56, "cloud_bu": 4.3, "total_bu": 4.86}
    assert bill_summary(bill) == [
        "Together, each kind for itself: 0.56 CPU BU, 4.30 Cloud BU, 0.0005 Storage BU.",
        "cPouta bills started hours: 8.60 Cloud BU in place of the fractions.",
        "The centre's own figure (seff): 0.56 BU.",
    ]
    assert job_units(loaded, f"{COLUMNS}\n{JOB}\n") == 0.56


def test_waste_of_a_run_names_the_change_on_a_site_that_is_open(loaded):
    advice = bill_advice(loaded, find_run(loaded, RUN))
    # 90 of 1800 core-seconds; 2 GiB x 0.375 x 0.25 h = 0.1875
    assert advice[0] == "CPU efficiency 5.00 %: 90 core-seconds were worked of 1,800 reserved."
    assert "`--partition small --cpus-per-task 1 --mem 2G` on roihu" in advice[3]
    assert "0.19 instead of 0.56 CPU BU" in advice[3]
    assert advice[4].startswith("75 % of the pipeline was not training")


def test_a_run_without_its_files_is_priced_without_them(loaded):
    add(loaded, "cloud-hpc-0123456789ab-2", slurm={})
    add(loaded, "local-0123456789ab-1", target="local", figures={}, pipeline={}, slurm={})
    found, problems = bills_of_all(loaded)
    assert [row["run"][-14:] for row in found] == [f"0123456789ab-{n}" for n in (1, 2, 1)]
    assert [row["CPU BU"] for row in found] == ["0.56", "0.00", "0.00"]
    assert [row["Cloud BU"] for row in found] == ["4.30", "4.30", "0.00"]
    assert problems == [f"cloud-hpc-0123456789ab-2: {NO_JOB}"]
    lost = find_run(loaded, "cloud-hpc-0123456789ab-2")
    assert bill_advice(loaded, lost)[0] == NO_JOB
    bill = bill_of_run(loaded, find_run(loaded, "local-0123456789ab-1"))
    assert bill_summary(bill) == ["Nothing to pay, or no rates in the profile."]


def test_the_jobs_of_every_attempt_are_in_the_bill(loaded):
    run = "cloud-hpc-0123456789ab-2"
    slurm = {"seff": {"Non-Interactive BUs": "0.56"}, "job": {"id": "5", "life": 0}}
    add(loaded, run, sacct=f"{COLUMNS}\n{JOB}\n{STEP}\n", slurm=slurm)
    # before it the same request for 1800 s, 2.25 x 0.5 h = 1.125, and one that never started
    lost = JOB.replace("5|", "3|", 1).replace("COMPLETED", "TIMEOUT").replace("|900|", "|1800|")
    never = "4|small|CANCELLED|0|0|2|100|None|200|0|0|||||kit-0123456789ab"
    text = f"{COLUMNS}\n{lost}\n{never}\n{JOB}\n{STEP}\n"
    (loaded.profile_dir / "runs" / run / "sacct-tries.txt").write_text(text)
    bill = bill_of_run(loaded, find_run(loaded, run))
    jobs = [(line.what, str(money(line.bu)), line.note) for line in bill.lines[:3]]
    assert jobs == [
        ("job 3: small", "1.13", LOST),
        ("job 4", "0.00", LOST),
        ("job 5: small", "0.56", ""),
    ]
    assert bill_figures(bill)["slurm_bu"] == 1.69
    assert "Of that 1.13 CPU BU went to attempts without a result." in bill_summary(bill)
    assert job_of_run(loaded, find_run(loaded, run)).held.seconds == 900


def test_the_workers_of_a_run_are_known_where_its_waste_is_advice(loaded):
    add(
        loaded,
        "cloud-hpc-0123456789ab-2",
        f"{COLUMNS}\n{JOB}\n{STEP}\n",
        parameters={"threads": 1, "workers": 2},
    )
    idle = "1 of 2 nodes had nothing to do."
    advice = [bill_advice(loaded, find_run(loaded, f"{RUN[:-1]}{n}")) for n in (1, 2)]
    assert [idle in lines for lines in advice] == [True, False]


GPU_JOB = JOB.replace("5|small", "6|gputest").replace(TRES, TRES + ",gres/gpu=1")


def test_units_of_two_kinds_are_never_added(loaded):
    run = "cloud-hpc-0123456789ab-2"
    add(loaded, run, sacct=f"{COLUMNS}\n{JOB}\n{GPU_JOB}\n")
    bill = bill_of_run(loaded, find_run(loaded, run))
    assert {"CPU BU", "GPU BU", "Cloud BU"} <= set(totals(bill.lines))
    assert bill_figures(bill) == {"cloud_bu": 4.3}
    with pytest.raises(DataError, match="price the jobs") as caught:
        job_units(loaded, f"{COLUMNS}\n{JOB}\n{GPU_JOB}\n")
    assert "0.56 CPU BU, 50.00 GPU BU" in caught.value.got


def test_the_articles_sum_is_of_cpu_and_cloud_units_only(loaded):
    run = "cloud-hpc-0123456789ab-2"
    add(loaded, run, sacct=f"{COLUMNS}\n{GPU_JOB}\n")
    figures = bill_figures(bill_of_run(loaded, find_run(loaded, run)))
    assert figures == {"slurm_bu": 50.0, "cloud_bu": 4.3}


def test_unknown_memory_gives_no_advice_about_memory(loaded):
    run = "cloud-hpc-0123456789ab-2"
    add(loaded, run, sacct=f"{COLUMNS}\n{JOB}\n")  # no step, so no MaxRSS
    record = find_run(loaded, run)
    job = job_of_run(loaded, record)
    assert (job.needed_gib, job.needed_whole_gib) == (None, None)
    text = "\n".join(bill_advice(loaded, record))
    assert "GiB were used" not in text
    assert "--mem" not in text


def test_rows_of_other_jobs_are_not_priced(loaded):
    """A site may use an id again: only jobs with the kit's name count, of this id too."""
    run = "cloud-hpc-0123456789ab-2"
    other = JOB.replace("kit-0123456789ab", "someone").replace("|900|", "|90000|")
    add(loaded, run, sacct=f"{COLUMNS}\n{other}\n{JOB}\n{STEP}\n")
    record = find_run(loaded, run)
    assert bill_figures(bill_of_run(loaded, record))["slurm_bu"] == 0.56
    assert job_of_run(loaded, record).held.seconds == 900
    assert job_units(loaded, f"{COLUMNS}\n{other}\n") is None


def test_a_site_without_accounting_has_a_bill_without_its_job(loaded):
    run = "cloud-hpc-0123456789ab-2"
    add(loaded, run, slurm={})
    (loaded.profile_dir / "runs" / run / "sacct.txt").write_text("")
    record = find_run(loaded, run)
    assert bill_figures(bill_of_run(loaded, record)) == {"cloud_bu": 4.3, "total_bu": 4.3}
    assert job_of_run(loaded, record) is None
    assert bill_advice(loaded, record)[0] == NO_JOB
    assert job_units(loaded, "") is None  # not known, which is not 0
    assert f"{run}: {NO_JOB}" in bills_of_all(loaded)[1]
    assert NO_JOB in invoke(run)


def test_unknown_seconds_are_not_zero(loaded):
    run = "cloud-hpc-0123456789ab-2"
    job = JOB.replace("|900|1800|00:01:30|", "|||Unknown|")
    add(loaded, run, sacct=f"{COLUMNS}\n{job}\n")
    record = find_run(loaded, run)
    line = bill_of_run(loaded, record).lines[0]
    assert (line.bu, line.note) == (0, "how long it ran is not known: not billed")
    used = job_of_run(loaded, record)
    assert (used.worked_seconds, used.needed_cores) == (None, None)
    text = "\n".join(bill_advice(loaded, record))
    assert "CPU efficiency" not in text
    assert "cpus-per-task" not in text


def test_requested_cores_in_short_form_are_read(loaded):
    run = "cloud-hpc-0123456789ab-2"
    job = JOB.replace(f"{TRES}|{TRES}", f"|{TRES}").replace("|2|2|2|100|", "|2|2|1K|100|")
    add(loaded, run, sacct=f"{COLUMNS}\n{job}\n")
    assert job_of_run(loaded, find_run(loaded, run)).requested_cores == 1024


def test_damaged_usage_costs_only_its_own_run(loaded):
    add(loaded, "cloud-hpc-0123456789ab-2", sacct="JobID|Stat")
    found, problems = bills_of_all(loaded)
    assert len(found) == 1
    assert problems == ["cloud-hpc-0123456789ab-2: price a run"]


def test_an_unknown_run_names_the_newest_ones(loaded):
    with pytest.raises(UsageError, match=RUN):
        find_run(loaded, "cloud-hpc-000000000000-9")


@pytest.mark.parametrize(
    ("profile", "target", "wanted"),
    [
        # 3 GiB x 0.375 x 0.5 h = 0.5625; VM as long: 0.5 h x 8.6 = 4.30
        ("roihu", "cloud-hpc", {"CPU BU": "0.56", "Cloud BU": "4.30"}),
        # max(1, ceil(3 / 2)) = 2 x 0.5 h = 1
        ("lumi", "cloud-hpc", {"CPU core-h": "1.00", "Cloud BU": "4.30"}),
        # 2 x 100 x 20 min = 66.67; 8.2 x 1/3 h = 2.73
        ("mahti-2024", "cloud-hpc", {"CPU BU": "66.67", "Cloud BU": "2.73"}),
        ("roihu", "cloud", {"Cloud BU": "8.60"}),
        ("roihu", "local", {}),
    ],
)
def test_an_estimate_is_the_most_that_a_run_may_cost(profile, target, wanted):
    bill = estimate(load(profile, {}), target)
    found = totals(bill.lines)
    assert {kind: str(money(bu)) for kind, bu in found.items()} == wanted


def test_a_budget_given_for_the_run_replaces_the_profiles():
    roihu = load("roihu", {})
    with pytest.raises(UsageError, match=r"may cost 0.56 CPU BU, and 0.5 are allowed"):
        refuse_over(roihu, "cloud-hpc", "0.5")
    assert refuse_over(roihu, "cloud-hpc", "5").lines
    assert refuse_over(roihu, "cloud-hpc").lines


@pytest.mark.parametrize("target", ["cloud", "cloud-hpc"])
def test_a_closed_site_is_refused_before_anything_starts(target):
    with pytest.raises(UsageError, match="use --profile roihu"):
        refuse_over(load("mahti", {}), target)


def test_a_profile_without_rates_has_no_bill_and_refuses_nothing(loaded):
    bare = dataclasses.replace(loaded, rates={}, budget={"CPU": "0"})
    assert refuse_over(bare, "cloud-hpc").lines == ()
    assert bill_of_run(bare, find_run(loaded, RUN)).lines == ()


class Project:
    """A login node that knows only `csc-projects`."""

    def __init__(self, remain):
        self.remain = remain

    def run(self, argv, **_how):
        assert argv == ["csc-projects", "-p", "project_2001234"]
        return Completed(tuple(argv), 0, f"CPU BU:  60000  20  {self.remain}\n", "", 0.0)


def test_a_job_is_refused_over_the_budget_and_over_what_the_project_has_left():
    roihu = dataclasses.replace(load("roihu", {}), budget={"CPU": "1"})
    check_affordable(roihu, Project(59980))
    bare = dataclasses.replace(roihu, budget={})
    check_affordable(bare, None)  # without a budget nobody is asked
    check_affordable(bare, Project(59980), "cloud-hpc", "5")
    with pytest.raises(UsageError, match=r"and 0 are allowed"):
        check_affordable(bare, Project(0), "cloud-hpc", "5")
    with pytest.raises(UsageError, match=r"and 0.5 are allowed"):
        check_affordable(bare, None, "cloud-hpc", "0.5")
    with pytest.raises(UsageError, match=r"may cost 0.56 CPU BU, and 0 are allowed"):
        check_affordable(roihu, Project(-3))
    with pytest.raises(UsageError, match=r"and 0.5 are allowed"):
        check_affordable(dataclasses.replace(roihu, budget={"CPU": "0.5"}), Project(59980))


@pytest.mark.parametrize("error", [UsageError("cannot run `ssh`"), DataError("reach roihu")])
def test_site_that_cannot_be_asked_does_not_refuse_a_run(error):
    """The submitter refuses a run for good on UsageError and DataError, and waits on others."""

    class Broken:
        def run(self, *_arguments, **_how):
            raise error

    with pytest.raises(KitError) as caught:
        check_affordable(dataclasses.replace(load("roihu", {}), budget={"CPU": "1"}), Broken())
    assert not isinstance(caught.value, UsageError | DataError)
    assert caught.value.tried == error.tried


def invoke(*arguments):
    done = CliRunner().invoke(bill_command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_command_lists_runs_and_shows_one(loaded):
    assert invoke().splitlines()[0].split() == ["RUN", "CPU", "BU", "CLOUD", "BU", "STORAGE", "BU"]
    shown = invoke(RUN)
    for text in ("job 5: small", "1.5 GiB-h", "mahti-2024 (closed)", "Together", "CPU efficiency"):
        assert text in shown, text
    found = json.loads(invoke(RUN, "--json"))
    assert found["totals"]["CPU BU"] == "0.56"
    assert ("roihu", "small") in {(row["site"], row["partition"]) for row in found["elsewhere"]}
    assert json.loads(invoke("--json"))[0]["run"] == RUN


def test_the_readme_and_the_profiles_agree_on_who_is_closed():
    assert [site.profile for site in sites() if site.site.closed] == ["mahti-2024"]
    assert (ROOT / "env" / "sites" / "roihu.toml").exists()


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        ("1.5", "1.5"),
        ("1000", "1000"),
        ("150", "150"),
        ("0.000123456", "0.0001235"),
        ("0", "0"),
        ("0.00000002268", "2.268e-8"),
    ],
)
def test_quantity_has_four_digits_and_an_exponent_only_if_it_is_tiny(quantity, text):
    line = dataclasses.replace(
        estimate(load("roihu", {}), "cloud-hpc").lines[0], quantity=Decimal(quantity)
    )
    assert bill_rows([line])[0]["quantity"] == f"{text} {line.unit}"


def test_a_line_without_a_rate_names_its_source_alone(loaded):
    text = JOB.replace("|110|1010|900|1800|", "|110|110|0|0|")
    add(loaded, "cloud-hpc-0123456789ab-2", f"{COLUMNS}\n{text}\n", figures={})
    bill = bill_of_run(loaded, find_run(loaded, "cloud-hpc-0123456789ab-2"))
    row = bill_rows(bill.lines)[0]
    assert row["note"] == "ended within its first second"
    assert row["rate's source"] == "sacct"


def test_profile_on_a_base_is_no_second_site_to_compare_with():
    names = [site.profile for site in sites()]
    assert "roihu" in names
    assert "roihu-gpu" not in names


def test_many_rows_of_sacct_are_all_priced(loaded):
    rows = [JOB.replace("5|", f"{n}|", 1) + f"\n{n}.0" + STEP[3:] for n in range(1, 5001)]
    add(loaded, "cloud-hpc-0123456789ab-2", "\n".join([COLUMNS, *rows]) + "\n", figures={})
    bill = bill_of_run(loaded, find_run(loaded, "cloud-hpc-0123456789ab-2"))
    assert len(bill.lines) == 5000


@pytest.mark.parametrize("rows", ["5|small|COMP", "", "5.0" + STEP[3:]])
def test_a_job_whose_rows_are_cut_is_an_error_of_that_listing(loaded, rows):
    add(loaded, "cloud-hpc-0123456789ab-2", f"{COLUMNS}\n{rows}\n")
    with pytest.raises(DataError):
        bill_of_run(loaded, find_run(loaded, "cloud-hpc-0123456789ab-2"))
