"""The search space: every form of values, every combination, and what is refused."""

import pytest

from kit.base import UsageError
from kit.experiments import load_experiment
from kit.sweeps import MAX_TRIALS, Sweep, expand, trials_of

DIGITS = load_experiment("digits")


def values(text, name="x", **more):
    return [row[name] for row in expand({name: text}, **more)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.001,0.01", [0.001, 0.01]),
        ("1..5", [1, 2, 3, 4, 5]),
        ("3..3", [3]),
        ("-1..1", [-1, 0, 1]),
        ("1..10/4", [1, 5, 9]),
        ("0.5..1/0.25", [0.5, 0.75, 1.0]),
        ("0..0.3/0.1", [0.0, 0.1, 0.2, 0.3]),
        ("log:0.0001..0.1/4", [0.0001, 0.001, 0.01, 0.1]),
        ("log:1..100/3", [1.0, 10.0, 100.0]),
        ("true,false", [True, False]),
        ("cpu, cuda", ["cpu", "cuda"]),
        ("none,1", [None, 1]),
        ("5", [5]),
    ],
)
def test_the_forms_of_values(text, wanted):
    found = values(text)
    assert found == wanted
    assert list(map(type, found)) == list(map(type, wanted))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty value"),
        ("1,,2", "empty value"),
        ("5..1", "first number is above the last"),
        ("1..5/0", "not above 0"),
        ("1..5/-1", "not above 0"),
        ("log:0..1/3", "above 0"),
        ("log:-1..1/3", "above 0"),
        ("log:1..10/1", "not a number of values"),
        ("log:1..10/2.5", "not a number of values"),
        ("1...5", "not a range"),
        ("1..a", "not a range"),
        ("1..5,7", "not a range"),
        ("1..1000000", "1,000,000 values"),
        ("0.1..0.9", "0.1..0.9"),
        ("log:0.1..0.9", "log:0.1..0.9"),
    ],
)
def test_values_that_are_refused(text, reason):
    with pytest.raises(UsageError) as caught:
        expand({"x": text})
    assert reason in str(caught.value)
    assert caught.value.next_step


def test_every_combination_is_a_trial_in_order():
    rows = expand({"a": "1..2", "b": "x,y"})
    assert rows == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_a_space_without_parameters_is_refused():
    with pytest.raises(UsageError, match="nothing"):
        expand({})


def test_a_space_of_a_million_trials_is_refused_with_the_number_before_any_is_made():
    with pytest.raises(UsageError, match="1,000,000 combinations") as caught:
        expand({name: "1..100" for name in "abc"})
    assert "--trials" in caught.value.next_step


@pytest.mark.parametrize("count", [-1, MAX_TRIALS + 1])
def test_a_number_of_trials_that_is_not_possible_is_refused(count):
    with pytest.raises(UsageError, match="not possible"):
        expand({"a": "1..5"}, count)


def test_random_search_draws_distinct_trials_within_the_ranges_the_same_for_a_seed():
    space = {"rate": "log:0.0001..0.1", "momentum": "0.5..0.99", "seed": "1..3"}
    rows = expand(space, 50, seed=7)
    assert rows == expand(space, 50, seed=7) != expand(space, 50, seed=8)
    assert len({tuple(row.items()) for row in rows}) == 50
    assert all(0.0001 <= row["rate"] <= 0.1 and 0.5 <= row["momentum"] <= 0.99 for row in rows)
    assert sum(row["rate"] < 0.00316 for row in rows) in range(15, 36)  # half of the scale
    assert {row["seed"] for row in rows} == {1, 2, 3}


def test_more_random_trials_than_combinations_are_refused_with_how_many_there_are():
    with pytest.raises(UsageError, match="about 4 different"):
        expand({"a": "1..2", "b": "1..2"}, 5)
    assert len(expand({"a": "1..2", "b": "1..2"}, 4)) == 4


def test_trials_are_checked_by_the_experiments_own_parameters():
    trials = trials_of(DIGITS, {"epochs": 2}, expand({"seed": "1..3"}))
    assert [dict(trial.values) for trial in trials] == [{"seed": 1}, {"seed": 2}, {"seed": 3}]
    assert all(trial.parameters["epochs"] == 2 for trial in trials)
    assert len({trial.id for trial in trials}) == 3
    again = trials_of(DIGITS, {"epochs": 2}, expand({"seed": "3..4"}))
    assert again[0].id == trials[2].id  # the id depends on the parameters alone


def test_whole_numbers_that_a_pipeline_made_decimal_are_the_same_trials():
    (one,) = trials_of(DIGITS, {}, [{"seed": 3, "alpha": 1.0}])
    (other,) = trials_of(DIGITS, {}, [{"seed": 3.0, "alpha": 1.0}])
    assert one == other
    assert repr(other.values["seed"]) == "3"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"epochs": 1}, {"epochs": 0}], "trial 2 of the sweep, epochs 0"),
        ([{"wrong": 1}], "unknown parameter 'wrong'"),
        ([{"seed": 1}, {"seed": 1}], "twice"),
        ([{"epochs": "many"}], "epochs = 'many'"),
    ],
)
def test_wrong_trials_are_named(rows, words):
    with pytest.raises(UsageError) as caught:
        trials_of(DIGITS, {}, rows)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"trials": [{"a": float("inf")}]},
        {"trials": [{"a": [1]}]},
        {"trials": [{"a": {"b": 1}}]},
        {"trials": "1..5"},
        {"trials": [{}] * (MAX_TRIALS + 1)},
        {"trial_limit_s": -1.0},
        {"stop_early": "yes"},
        {"command": "rm"},
    ],
)
def test_a_sweep_of_a_request_holds_data_only(fields):
    with pytest.raises(UsageError):
        Sweep(**fields)
