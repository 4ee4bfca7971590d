"""One training on several processes of a machine: the ranks, each with a GPU of its own and its part of every batch.

All ranks do the same from the same seeds: each builds the network and its method, and decides by itself what all
others decide too, from equal numbers. Only the images differ, so what follows from them is put together: gradients,
before a method sees them; the statistics of batch normalisation; what an evaluation counts. So the result is that of
one process but for rounding, and a checkpoint is one of a single process.

Source: Goyal et al. 2017, arXiv:1706.02677, Sec. 4; Li et al. 2020, arXiv:2006.15704 (DistributedDataParallel).
Differs: Gradients are averaged in one piece after the last backward pass. DistributedDataParallel averages them during
    the one backward pass that it expects, while a step here may have several losses, each of another part of the
    network; and it would put a name before each of a network's own. The statistics of batch normalisation are those
    of the whole batch, on CPUs as well, which torch's SyncBatchNorm refuses.
"""

import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import connection
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prunelab import interrupts
from prunelab.turns import Turns

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.5  # between two turns while the ranks work
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


class RankDied(RuntimeError):
    """A rank ended before it had answered: out of memory, or killed."""


def count() -> int:
    """Returns how many ranks there are; 1 in an ordinary process."""
    return distributed.get_world_size() if _is_one_of_several() else 1


def number() -> int:
    """Returns which rank this process is, from 0; rank 0 writes what is to be kept."""
    return distributed.get_rank() if _is_one_of_several() else 0


def _is_one_of_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def most(n: int, *, batch_size: int) -> int:
    """Returns the most ranks, at least 1 and at most n, among which a batch can be divided equally."""
    return max((k for k in range(1, n + 1) if batch_size % k == 0), default=1)


@torch.no_grad()
def add_up(tensor: Tensor) -> Tensor:
    """Puts the sum over all ranks into a tensor, and returns it."""
    if count() > 1:
        distributed.all_reduce(tensor)
    return tensor


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Puts the mean over all ranks into each tensor; they are the same ones everywhere, of one type of numbers."""
    if count() > 1 and (tensors := list(tensors)):
        total = add_up(torch.cat([tensor.flatten() for tensor in tensors])) / count()
        parts = total.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(own) for part, own in zip(parts, tensors, strict=True)])


@torch.no_grad()
def check_equal(tensors: Iterable[Tensor]) -> None:
    """Makes sure that the ranks have not come apart, by the sum of each tensor.

    Raises:
        RuntimeError: One is another than on rank 0.
    """
    if count() > 1:
        own = torch.stack([tensor.double().sum() for tensor in tensors]).nan_to_num()
        first = own.clone()
        distributed.broadcast(first, src=0)
        if not torch.equal(own, first):
            raise RuntimeError(f"rank {number()} has come to other weights or masks than rank 0; run it on one GPU")


def over_all_images() -> AbstractContextManager:
    """Gives a context, to be entered any number of times, in which layers see the batches of all ranks as one."""
    return _Synchronised() if count() > 1 else nullcontext()


class _Synchronised(TorchFunctionMode):
    """Takes the place of the functions behind layers for which a batch is a whole, so that these stay what they are."""

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        return {F.batch_norm: _batch_norm, F.dropout: _dropout}.get(function, function)(*args, **(kwargs or {}))


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As torch's function of that name: draws for the images of all ranks, and takes those of this one."""
    every = F.dropout(x.new_ones(count() * len(x), *x.shape[1:]), p, training)
    return x * every[number() * len(x) :][: len(x)]


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch's function of that name, over the images of all ranks, of which each has as many."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    with torch.no_grad():
        own = torch.stack(torch.var_mean(x.float(), [0, *range(2, x.dim())], correction=0))
        every = own.new_zeros(count(), *own.shape)  # (ranks, 2, channels)
        every[number()] = own
        variances, means = add_up(every).unbind(1)
        mean, var = means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
        if running_mean is not None:
            n = count() * x.numel() // x.shape[1]
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (n / (n - 1)), momentum)
    return _Normalise.apply(x, weight, bias, mean, var, eps)


class _Normalise(torch.autograd.Function):
    """Normalises by statistics that follow from the images of all ranks, and so do the gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.has_bias = eps, bias is not None
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        inverse = (var + ctx.eps).rsqrt()
        # As if mean and variance were constants; then what goes through these, from the outputs of all ranks.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, mean, inverse, False, ctx.eps, [True, True, True]
        )
        scale = inverse if weight is None else inverse * weight
        by_product, by_sum = add_up(torch.stack([of_weight, of_bias])) * (x.shape[1] / (count() * x.numel()))
        slope = scale * inverse * by_product
        slope, offset = (each.view(-1, *[1] * (x.dim() - 2)) for each in (slope, scale * by_sum - slope * mean))
        of_x = (of_x - (x * slope + offset)).to(x.dtype)
        return of_x, of_weight if weight is not None else None, of_bias if ctx.has_bias else None, None, None, None


def together(n: int, work: Callable[..., Any], *arguments: Any, device: str) -> Turns[Any]:
    """Has n new processes do the same work as the ranks of one group; pauses now and then while they do.

    On GPUs rank r has the one that is r after this process's current one. This process only looks after them: whatever
    ends one of them, or this process, ends all.

    Args:
        n: At least 2.
        work: Called with `arguments` on each rank; a function of a module, which is imported there.
        device: "cpu" or "cuda".
    Returns:
        In the end, what rank 0 answers. No rank is left then, nor after an error.
    Raises:
        RuntimeError: The work raised an error on a rank; names both.
        RankDied: A rank was killed, or a GPU failed.
    """
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    store = distributed.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    first_gpu = torch.cuda.current_device() if device == "cuda" else 0
    try:
        for rank in range(n):
            pipe, theirs = context.Pipe()
            rest = (n, store.port, device, first_gpu + rank, work, arguments)
            process = context.Process(target=_serve, args=(theirs, rank, *rest), daemon=True)
            with interrupts.held_back():
                process.start()
            theirs.close()
            pipes.append(pipe)
            processes.append(process)
        while True:
            for pipe in connection.wait(pipes, timeout=_POLL_SECONDS):
                try:
                    error, answer = pipe.recv()
                except (EOFError, OSError):
                    raise RankDied(f"rank {pipes.index(pipe)} of {n} died") from None
                if error:
                    raise RuntimeError(f"rank {pipes.index(pipe)} of {n}: {error}")
                if pipe is pipes[0]:
                    return answer
            yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(
    pipe: connection.Connection,
    rank: int,
    n: int,
    port: int,
    device: str,
    gpu: int,
    work: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    """Does a rank's work, answers, and waits for its end: none goes while others may still need it."""
    interrupts.end_with_parent()
    own = {"rank": rank, "world_size": n}
    if device == "cuda":
        torch.cuda.set_device(gpu)
        own["device_id"] = torch.device("cuda", gpu)
    store = distributed.TCPStore(_HOST, port, is_master=False)
    try:
        distributed.init_process_group(_BACKENDS[device], store=store, **own)
        answer = None, work(*arguments)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        answer = f"{type(error).__name__}: {error}\n{traceback.format_exc()}", None
    pipe.send(answer)
    multiprocessing.parent_process().join()
