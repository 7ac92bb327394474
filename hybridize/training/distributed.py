"""Many processes that train one model: who does what, how weights are split and put together again.

Each rank holds an even share of the rows of every tensor (PyTorch's FSDP2, `fully_shard`) and works
on its share of the rows of data of a step. A model that is not split has one rank, and everything
here then does nothing: `fit` has one path for both.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from hybridize.core.errors import HybridizeError, RunError
from hybridize.training.data import Batch, TokenSource, batch, share_of_rank


class Ranks:
    """The processes that train one model together; a process that trains alone is one rank.

    Every method is called by all ranks in the same order. What they pass to each other goes through
    the memory of the processors, not through accelerators.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def world(cls) -> "Ranks":
        """Return all processes of the process group."""
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def of(cls, model: nn.Module) -> "Ranks":
        """Return the ranks a model is split over: this process alone if it is not."""
        is_split = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        return cls.world() if is_split else cls()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up the values of all ranks, one by one; all get the same sums."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def any(self, flag: bool) -> bool:
        """Tell whether it is so on any rank."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first rank."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all ranks at the end; an error of one is raised on all."""
        failed: HybridizeError | None = None
        try:
            yield
        except HybridizeError as error:
            failed = error
        if self.any(failed is not None):
            errors = [error for error in self.gather(failed) if error is not None]
            raise failed or errors[0]


class Calls:
    """How the first rank calls the others to common work; they may wait for it for days.

    Common work itself has a timeout; a wait between two pieces of it has none, and ends when the
    first rank does.
    """

    def __init__(self) -> None:
        """Made by all ranks."""
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=365))

    def send(self, job: Any) -> None:
        """Call the others, by the first rank."""
        dist.broadcast_object_list([job], src=0, group=self._group)

    def wait(self) -> Any:
        """Return what the first rank calls for, by the others.

        Raises:
            RunError: the first rank has ended.
        """
        jobs: list[Any] = [None]
        try:
            dist.broadcast_object_list(jobs, src=0, group=self._group)
        except RuntimeError as error:
            raise RunError("the first process has ended; it says why.") from error
        return jobs[0]


def read_batches(source: TokenSource, rows: range, size: int, ranks: Ranks) -> Iterator[Batch]:
    """Yield this rank's share of some rows, `size` at a time.

    All ranks get the same number of batches, because they compute each one together; what a rank
    lacks is a row in which nothing counts.
    """
    own = share_of_rank(rows.start, len(rows), ranks.rank, ranks.size)
    for row in own[::size]:
        yield batch(source, row, min(size, own.stop - row))
    most = ceil(ceil(len(rows) / ranks.size) / size)
    for _ in range(most - ceil(len(own) / size)):
        spare = batch(source, rows.start, 1)
        yield replace(spare, loss_mask_BT=torch.zeros_like(spare.loss_mask_BT))


def shard(
    outline: nn.Module, source: nn.Module | None, device: torch.device, *, widen: bool = False
) -> None:
    """Split a model over all ranks, layer by layer, so that no device ever holds the whole of it.

    Args:
        outline: the model on the meta device, the same on all ranks; it is filled in place. What is
            not on the meta device is moved to the device.
        source: on the first rank the model with the weights, elsewhere None.
        widen: keep the weights in float32, as training needs them that sums small updates.
    """
    ranks = Ranks.world()
    mesh = init_device_mesh(device.type, (ranks.size,))
    tensors = (
        {} if source is None else dict(chain(source.named_parameters(), source.named_buffers()))
    )
    dtypes = ranks.broadcast({name: tensor.dtype for name, tensor in tensors.items()})

    def receive(name: str, empty: Tensor) -> Tensor:
        if not empty.is_meta:
            return empty.to(device)
        dtype = dtypes[name]
        dtype = torch.float32 if widen and dtype.is_floating_point else dtype
        if ranks.is_first:
            value = tensors[name].detach().to(device, dtype).contiguous()
        else:
            value = torch.empty(empty.shape, dtype=dtype, device=device)
        dist.broadcast(value, src=0)
        return value

    names = {module: name for name, module in outline.named_modules()}
    filled: dict[Tensor, nn.Parameter] = {}
    for module in (*find_layers(outline), outline):
        _fill(module, names[module], receive, filled)
        fully_shard(module, mesh=mesh, reshard_after_forward=module is not outline)
    register_fsdp_forward_method(outline, "hidden")
    for module in outline.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by the counted tokens of all ranks: gradients are summed.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def gather_weights(model: nn.Module, like: nn.Module | None) -> dict[str, Tensor] | None:
    """Put the weights of a split model together: on the first rank, on the CPU; None elsewhere.

    Args:
        like: on the first rank a model whose types the weights take; it may be on the meta device.
    """
    types = {} if like is None else {name: t.dtype for name, t in like.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        whole = whole_tensor(value)
        if like is not None:
            weights[name] = whole.detach().to("cpu", types[name])
    return None if like is None else weights


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that is split over the ranks; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def find_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the layers of a model: what its first list of modules holds."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return tuple(next(lists, ()))


@contextmanager
def prepared_layers(model: nn.Module, *, recompute: bool, compiled: bool) -> Iterator[None]:
    """Change how the layers of a model run, for the time of a `with` block.

    Args:
        recompute: keep only the input of each layer for the backward pass, and run the layer again
            there (activation checkpointing).
        compiled: run each layer through `torch.compile`.
    """
    layers = find_layers(model) if recompute or compiled else ()
    for layer in layers:
        run: Any = layer.forward
        if compiled:
            run = torch.compile(run)
        if recompute:
            run = partial(checkpoint, run, use_reentrant=False)
        layer.forward = run
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fill(
    module: nn.Module,
    name: str,
    receive: Callable[[str, Tensor], Tensor],
    filled: dict[Tensor, nn.Parameter],
) -> None:
    """Give each tensor of a module its value, but for what is split already."""
    for prefix, part in module.named_modules(prefix=name):
        for key, buffer in part.named_buffers(recurse=False):
            setattr(part, key, receive(f"{prefix}.{key}".lstrip("."), buffer))
        for key, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                continue
            if parameter not in filled:
                value = receive(f"{prefix}.{key}".lstrip("."), parameter)
                filled[parameter] = nn.Parameter(value, parameter.requires_grad)
            setattr(part, key, filled[parameter])
