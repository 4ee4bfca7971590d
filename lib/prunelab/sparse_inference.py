"""Ways to run a frozen network whose pruned weights are zeros, and what each takes.

A dense product takes as long whatever is zero in it. What a mask saves has to be taken: channels that tell nothing are
removed, convolutions of few weights become products of sparse matrices, or an engine made for it runs the network.

Source: Iofinova et al. 2022, arXiv:2111.13445, on the time of linear finetuning.
Differs: They time the whole training of a probe through DeepSparse, augmented, where features are needed each epoch.
"""

import copy
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab import latency
from prunelab.channels.constants import without_constants
from prunelab.deepsparse import through_deepsparse
from prunelab.models.trunk import head_of
from prunelab.turns import exhaust, until_done

Run = Callable[[Tensor], tuple[Tensor, float]]  # from images to features and seconds
N_COLUMNS = 128  # of patches at a time, so that they stay in the cache


def backbone_of(model: nn.Module) -> nn.Module:
    """Copies a network without its head, in evaluation mode; what it puts out is the features of `features_of`.

    Raises:
        ValueError: It has no head.
    """
    backbone = copy.deepcopy(model).eval()
    backbone.set_submodule(head_of(model), nn.Identity())
    return backbone.to(memory_format=torch.channels_last)


def dense(backbone: nn.Module, sample: Tensor) -> Run:
    """Runs a network as it is, zeros and all."""
    return _in_batches(copy.deepcopy(backbone).eval(), sample)


def removed(backbone: nn.Module, sample: Tensor) -> Run:
    """Runs a network without the channels that `channels.constants` takes out of it."""
    return _in_batches(without_constants(backbone, in_channels=sample.shape[1], image_size=sample.shape[-1]), sample)


def csr(backbone: nn.Module, sample: Tensor) -> Run:
    """Runs those convolutions as `SparseConv` that are faster so, which is measured on `sample`, layer by layer."""
    return _in_batches(with_sparse_convolutions(backbone, sample), sample)


def _in_batches(network: nn.Module, sample: Tensor) -> Run:
    network = network.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, float]:
        images = images.contiguous(memory_format=torch.channels_last)
        started = time.perf_counter()
        features = torch.cat([network(batch) for batch in images.split(len(sample))])
        exhaust(until_done(images.device))
        return features, time.perf_counter() - started

    run(sample)  # kernels are chosen and memory is allocated
    return run


# By name: from a network and a batch of images, of the size that others will come in, to `Run`. All give the same up to
# rounding. The last is not there for everyone: `deepsparse.unavailable` says why.
WAYS: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "dense": dense,
    "removed": removed,
    "csr": csr,
    "deepsparse": through_deepsparse,
}


class SparseConv(nn.Module):
    """A convolution as the product of a sparse matrix, its weights (out, in * height * width), with patches of images.

    A few images at a time; among their patches the pixel of one patch lies beside that of the next image's, so that
    patches are copied in runs.
    """

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution is of a kind that this can be: of one group, not dilated, padded with zeros."""
        numbers = isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"
        return numbers and conv.groups == 1 and set(conv.dilation) == {1}

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.weight, self.bias = conv.weight.detach().flatten(1).to_sparse_csr(), conv.bias
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            (size + 2 * padding - kernel) // stride + 1
            for size, padding, kernel, stride in zip(
                x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True
            )
        )
        shape = (len(x), self.weight.shape[0], height, width)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        n_images = max(1, N_COLUMNS // (height * width))
        for few, own in zip(x.split(n_images), out.split(n_images), strict=True):
            product = self.weight @ self._patches(few)
            own.copy_(product.view(-1, height, width, len(few)).permute(3, 0, 1, 2))
        return out if self.bias is None else out + self.bias[:, None, None]

    def _patches(self, x: Tensor) -> Tensor:
        """Returns (in * height * width of the kernel, positions * images)."""
        (top, left), (down, right) = self.padding, self.stride
        x = F.pad(x.permute(1, 2, 3, 0), (0, 0, left, left, top, top))
        windows = x.unfold(1, self.kernel_size[0], down).unfold(2, self.kernel_size[1], right)
        return windows.permute(0, 4, 5, 1, 2, 3).reshape(self.weight.shape[1], -1)


@torch.no_grad()
def with_sparse_convolutions(
    model: nn.Module, sample: Tensor, *, pays: Callable[[nn.Module, nn.Module, Tensor], bool] | None = None
) -> nn.Module:
    """Copies a network with those convolutions as `SparseConv` for which that pays, in evaluation mode.

    Args:
        model: Left as it is.
        sample: Images, on which it is measured.
        pays: Takes a convolution, the same as `SparseConv`, and its input; by default it times both.
    """
    model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    found: dict[str, nn.Module] = {}

    def compare(name: str, conv: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        if (pays or _is_faster)(conv.forward, sparse := SparseConv(conv), *given):
            found[name] = sparse

    hooks = [
        module.register_forward_hook(partial(compare, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and SparseConv.fits(module)
    ]
    model(sample.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    for name, sparse in found.items():
        model.set_submodule(name, sparse)
    return model


def _is_faster(conv: Callable, sparse: Callable, x: Tensor) -> bool:
    sides = {"conv": lambda _: conv(x), "sparse": lambda _: sparse(x)}
    spent = latency.in_turn(sides, n_rounds=3, n_warm_up=1)
    return min(spent["sparse"]) < min(spent["conv"])
