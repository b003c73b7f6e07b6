"""What an experiment's functions are given, and its files by name and hash."""

import json

import numpy as np
import pytest
import torch

from kit.base import DataError, UsageError
from kit.experiments.contract import Context, files_below, hash_of


def context(folder, **more):
    return Context(folder / "data", folder, None, **more)


def reported(ctx, points):
    with ctx.opened():
        for step, loss in points:
            ctx.report(step, 10, loss)


def test_points_of_a_killed_training_are_kept_and_repeated_steps_replaced(tmp_path):
    reported(context(tmp_path), [(1, 0.9), (2, 0.8), (3, 0.7)])
    again = context(tmp_path)
    reported(again, [(3, 0.6), (4, 0.5)])
    assert again.losses == [(1, 0.9), (2, 0.8), (3, 0.6), (4, 0.5)]
    assert again.resumed_step == 2
    done = context(tmp_path)
    with done.opened():
        done.load_losses()
    assert done.losses == again.losses


def test_a_cut_last_point_costs_only_itself(tmp_path):
    reported(context(tmp_path), [(1, 0.9), (2, 0.8)])
    path = tmp_path / "checkpoint/losses.jsonl"
    path.write_text(path.read_text()[:-4])
    again = context(tmp_path)
    reported(again, [(3, 0.7)])
    assert again.losses == [(1, 0.9), (3, 0.7)]


def test_steps_that_go_backwards_replace_the_later_points(tmp_path):
    ctx = context(tmp_path)
    reported(ctx, [(5, 0.5), (6, 0.4), (2, 0.3)])
    assert ctx.losses == [(2, 0.3)]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path, loss):
    with pytest.raises(UsageError, match=r"diverged[\s\S]*by step 1"):
        reported(context(tmp_path), [(1, loss)])


def test_map_calls_here_where_there_is_no_other_worker(tmp_path):
    assert context(tmp_path).map(json.dumps, [[1], {}]) == ["[1]", "{}"]
    with pytest.raises(TypeError):
        context(tmp_path).map(json.dumps, [{1}])


def test_one_rank_has_all_items_and_the_model_itself(tmp_path):
    ctx = context(tmp_path)
    ctx.device = "cpu"
    model, items = torch.nn.Linear(1, 1), np.arange(5)
    assert ctx.prepare(model) is model
    assert ctx.order(items) is items
    assert [batch.tolist() for batch in ctx.batches(items, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_ranks_have_equal_shares_that_hold_every_item(tmp_path, kind):
    shares = [context(tmp_path, rank=r, ranks=3).order(kind([4, 2, 0, 1, 3])) for r in range(3)]
    assert [share.tolist() for share in shares] == [[4, 1], [2, 3], [0, 4]]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_ranks_have_equal_shares_of_each_batch_in_the_same_number_of_steps(tmp_path, kind):
    """One item of a batch of three fills up a share, and the single one of the last is shared."""
    items = kind([4, 2, 0, 1, 3, 5, 6])
    ranks = [context(tmp_path, rank=r, ranks=2).batches(items, 3) for r in range(2)]
    assert [[batch.tolist() for batch in rank] for rank in ranks] == [
        [[4, 0], [1, 5], [6]],
        [[2, 4], [3, 1], [6]],
    ]
    even = [context(tmp_path, rank=r, ranks=2).batches(items[:4], 4)[0].tolist() for r in range(2)]
    assert even == [[4, 0], [2, 1]]


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_no_items_are_refused(tmp_path, size):
    with pytest.raises(UsageError, match=f"batches of {size}"):
        context(tmp_path).batches([1, 2], size)


def test_hash_is_over_names_and_contents(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_text("x")
    first = hash_of(files_below(tmp_path))
    (tmp_path / "sub/a").rename(tmp_path / "sub/b")
    assert hash_of(files_below(tmp_path)) != first
    (tmp_path / "sub/b").rename(tmp_path / "sub/a")
    assert hash_of(files_below(tmp_path)) == first


def test_links_and_too_many_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    monkeypatch.setattr("kit.experiments.contract.MAX_FILES", 0)
    with pytest.raises(DataError, match=r"1 files, at most 0[\s\S]*archives"):
        files_below(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="a is a symbolic link"):
        files_below(tmp_path)
