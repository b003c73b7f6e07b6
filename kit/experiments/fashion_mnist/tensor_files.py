"""Tensors and a little JSON in one safetensors file, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from kit.base import DataError, write_bytes


def write_tensors(
    path: Path, tensors: dict[str, Tensor], state: dict[str, Any] | None = None
) -> None:
    """Write a safetensors file, `state` as JSON in its header, whole or not at all.

    Raises DataError when the folder cannot be written or is full.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: safetensors 0.8.0 writes several in a random order, and equal models shall
    # be equal files (their hashes are compared).
    metadata = {"state": json.dumps(state, allow_nan=False)} if state else {"format": "pt"}
    write_bytes(path, safetensors.torch.save(content, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote: the tensors (on the CPU) and the state.

    Raises DataError when the file is missing, cut or of another kind. Nothing in the file is
    ever executed: safetensors holds numbers only.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            state = json.loads((file.metadata() or {}).get("state", "{}"))
    except (OSError, ValueError, safetensors.SafetensorError) as err:
        next_step = "remove the file, or use a file that the kit wrote"
        raise DataError(f"read {path}", str(err), next_step) from err
    if not isinstance(state, dict):
        raise DataError(f"read {path}", "its state is not a JSON object", "remove the file")
    return tensors, state
