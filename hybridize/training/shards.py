"""Checkpoints that many ranks write, each its own rows, and any number of ranks read.

The files are those of `torch.distributed.checkpoint` in its safetensors form, so that nothing is
pickled: a file per rank, which says of each tensor in it where its rows begin.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from hybridize.core.errors import RunError
from hybridize.training.distributed import Ranks

PREFIX = "shard-"
"""How the names of these files begin."""


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this rank's rows of each tensor, together with all other ranks.

    Raises:
        OSError: the disk of any rank is full or refuses.
    """
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(values, storage_writer=writer)
    except CheckpointException as error:
        raise OSError(_reason(error)) from error


def list_names(folder: Path) -> set[str]:
    """Return the names of all tensors in the files of a checkpoint."""
    return {name for file in folder.glob("*.safetensors") for name in _names(file)}


def read_shards(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill tensors, split or whole, from the files of any number of ranks, or of one process.

    Raises:
        RunError: a tensor is not there, or is of another size.
    """
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(values, storage_reader=reader, no_dist=ranks.size == 1)
    except CheckpointException as error:
        raise RunError(
            f"checkpoint {folder} does not fit the run ({_reason(error)}). "
            "Remove it to train again from the start."
        ) from error


def _names(file: Path) -> Iterator[str]:
    with safe_open(file, framework="pt") as opened:
        yield from opened.keys()


def _reason(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in error.failures.items())
