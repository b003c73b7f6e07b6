"""The ranks of a distributed training: one process each, joined by torch.distributed. On the site.

Every rank carries out the experiment's `train`. They meet through a file in the attempt's folder,
which nobody else may enter: a store that listens on a port would take anybody's values. Ranks
other than the first work in folders of their own, so that an experiment may write without asking
which rank it is; they begin with a copy of the checkpoint. A rank that is lost fails the attempt,
and the next attempt resumes. Tried with torch 2.13 (gloo) and Ray 2.60; nccl is untried.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from kit.base import KitError

MEETING = "ranks"  # the file in the attempt's folder
WAIT = timedelta(minutes=10)  # for a rank that does not come, or is behind


@contextmanager
def joined(folder: Path, rank: int, ranks: int, device: str) -> Iterator[None]:
    """Join the other ranks for the block. Raises KitError when they do not come."""
    if ranks == 1:
        yield
        return
    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    try:
        store = dist.FileStore(str(folder / MEETING), ranks)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=WAIT)
    except (RuntimeError, ValueError) as err:
        step = "run again; on a file system without file locks use workers = 1"
        raise KitError(f"join {ranks} ranks of the training", str(err)[:500], step) from err
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_all(ranks: int) -> None:
    """Wait until every rank has come here."""
    if ranks > 1:
        import torch.distributed as dist

        dist.barrier()


def rank_folder(folder: Path, rank: int) -> Path:
    """Return the folder in which a rank works; its checkpoint is a copy of the first one's."""
    if rank == 0:
        return folder
    own, checkpoint = folder / f"rank-{rank}", folder / "checkpoint"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    if checkpoint.is_dir():
        shutil.copytree(checkpoint, own / "checkpoint")
    return own
