"""What a network costs: weights, multiply-accumulates (MACs), and the MACs of training it.

Convention: one MAC is one multiplication and its addition. Products by weights are counted, of convolution and linear
layers above all, and those of activations with each other, as in attention; biases, normalisation, activation
functions, pooling, embeddings and what is multiplied element by element are not. A masked weight costs nothing. These
are counts, not speed: no ordinary kernel skips the zeros.

Source: Evci et al. 2020, arXiv:1911.11134, App. H.
Differs: The authors count 2 FLOPs a MAC plus one per output element, on padded images; ratios agree to 0.001.
"""

import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from prunelab.masks import distinct, layer_weights
from prunelab.shadows import Size, images_for, without_numbers

aten = torch.ops.aten
# Weights that meet other tensors here are joined to them, picked, or normalise; so are those of operations that torch
# knows to be element by element.
_NO_PRODUCTS = {
    *(aten.cat, aten.stack, aten.index, aten.index_select, aten.gather, aten.embedding),
    *(aten._embedding_bag, aten._embedding_bag_forward_only, aten._prelu_kernel, aten.native_layer_norm),
    *(aten.native_group_norm, aten.native_batch_norm, aten._native_batch_norm_legit_no_training),
}


def layer_table(
    model: nn.Module, *, in_channels: int, image_size: Size, n_active: Mapping[str, int] | None = None
) -> list[dict]:
    """Lists the weights and MACs of each convolution and linear layer, and of whatever else multiplies, for one image.

    A layer that runs several times has the MACs of all its calls, an idle one none. Layers that share a weight are one
    row, under the name of the first. Any other module has a row where it multiplies by itself: attention for the
    products of queries, keys and values, in `nn.MultiheadAttention` with the input projection and its weights. Where
    weights are given to an operation of which neither is known, as in `nn.Bilinear`, a warning names them.

    Args:
        model: Left as it is; a copy without numbers runs.
        in_channels: Channels of the image.
        image_size: Its height and width in pixels; one number for both.
        n_active: Active weights of each masked layer; a layer that is not named is dense.
    Returns:
        One dict a row, first layer first: `name`, `shape` of the weight ([] where there is none, or several),
        `n_weights`, `n_active`, `masked`, and `macs`, in which an inactive weight costs nothing.
    Raises:
        ValueError: A masked layer that is not there, has no weight of its own, or fewer than are active.
    """
    n_active = n_active or {}
    with torch.inference_mode(False), torch.no_grad():  # inference hides the products that an operation consists of
        shadow, images = without_numbers(model), images_for(model, in_channels, image_size, n=1)
        with _Products(shadow, images) as products:
            shadow(images)
    if products.unknown:
        uncounted = "; ".join(f"what {operation!r} makes of {name}" for name, operation in products.unknown.items())
        warnings.warn(f"{type(model).__name__} may cost more MACs than are counted: without {uncounted}", stacklevel=2)
    weights = distinct(layer_weights(shadow))
    if unknown := sorted(n_active.keys() - weights):
        raise ValueError(
            f"{type(model).__name__} has no layers {', '.join(unknown)} with a weight of their own to be masked; "
            f"there are {', '.join(weights)}"
        )
    table = []
    for name, module in shadow.named_modules():
        macs = products.macs[name]
        if name not in weights and not macs:
            continue
        factors = [weights[name]] if name in weights else products.factors(name, module)
        n_weights = sum(weight.numel() for weight in factors)
        row = {
            "name": name,
            "shape": list(factors[0].shape) if len(factors) == 1 else [],
            "n_weights": n_weights,
            "n_active": n_active.get(name, n_weights),
            "masked": name in n_active,
        }
        if not isinstance(row["n_active"], Integral) or not 0 <= row["n_active"] <= n_weights:
            raise ValueError(f"layer {name!r} of {n_weights} weights cannot have {row['n_active']} active ones")
        table.append(row | {"macs": _at(macs, n_weights, row["n_active"])})
    return table


class _Products(TorchDispatchMode):
    """Counts the products of a network that runs inside, by torch's formulas.

    A product counts for the layer whose weight is one of its factors, whoever multiplies: attention does so for its
    output projection. Else it counts for the innermost module that is running.

    Attributes:
        macs: By the name of a module.
        unknown: Names of operations, by the parameter that they may have multiplied by.
    """

    supports_higher_order_operators = True  # flex attention is one

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.unknown: dict[str, str] = {}
        self._layers = {f"{name}.weight": name for name in distinct(layer_weights(model))}
        # Names of the parameters that a tensor was made of, by its memory; no names where it does not hang on images.
        self._made_of = {_storage(buffer): () for buffer in model.buffers()}
        named = sorted(  # of several names a layer's counts, or the first
            reversed([*model.named_parameters(remove_duplicate=False)]), key=lambda each: each[0] in self._layers
        )
        self._made_of |= {_storage(parameter): (name,) for name, parameter in named}
        self._of_images = {_storage(images)}  # what hangs on them, by its memory
        self._kept: list[Tensor] = []  # so that no other takes their memory
        self._multiplied: set[str] = set()
        self._running = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave)

    def factors(self, name: str, module: nn.Module) -> list[Tensor]:
        """Lists the parameters of a module itself, no layer, that were factors of products; what is shared, once."""
        return [own for full_name, own in module.named_parameters(name, recurse=False) if full_name in self._multiplied]

    def _enter(self, name: str, *_: Any) -> None:
        self._running.append(name)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = getattr(func, "_overloadpacket", func)
        given, results = (
            [each for each in tree_leaves(tree) if isinstance(each, Tensor)] for tree in ((args, kwargs), result)
        )
        made_of = {name: each.dim() for each in given for name in self._made_of.get(_storage(each), ())}
        if is_product := operation in flop_registry:
            factors = [name for name, n_axes in made_of.items() if n_axes > 1]  # no biases
            layer = next((self._layers[name] for name in factors if name in self._layers), None)
            if layer is None:
                layer = self._running[-1]
                self._multiplied.update(factors)
            self.macs[layer] += flop_registry[operation](*args, **kwargs, out_val=result) // 2
        if all(_storage(each) in self._made_of for each in given):
            self._made_of |= dict.fromkeys(map(_storage, results), () if is_product else tuple(made_of))
            self._kept += results
        else:
            for each in results:  # perhaps written in place
                self._made_of.pop(_storage(each), None)
            if self._of_images.isdisjoint(map(_storage, given)):  # made once for all images
                return result
            self._of_images.update(map(_storage, results))
            self._kept += results
            if not is_product and operation not in _NO_PRODUCTS and torch.Tag.pointwise not in func.tags:
                self.unknown |= dict.fromkeys(made_of, operation.__name__)
        return result


def _storage(tensor: Tensor) -> int:
    """Tells tensors apart that hold no numbers; a view, as a transposed weight, is like the whole."""
    return tensor.untyped_storage()._cdata


def _at(macs: int, n: int, wanted: int) -> int:
    """Returns what a layer costs with `wanted` weights that costs `macs` with `n` of them, each used as often."""
    return macs if wanted == n else macs * wanted // n


def total(layers: list[dict], key: str) -> int:
    """Returns the sum of one column of a layer table, such as `macs`."""
    return sum(layer[key] for layer in layers)


def _macs_with(layers: list[dict], n_active: Mapping[str, int]) -> int:
    """Returns what the network of a layer table costs with other numbers of active weights; layers not named are dense.

    Raises:
        ValueError: A layer that has no active weight in the table, so that what one costs is not known.
    """
    macs = 0
    for layer in layers:
        wanted = n_active.get(layer["name"], layer["n_weights"])
        if wanted and not layer["n_active"]:
            raise ValueError(f"layer {layer['name']!r} is empty in this table; give the table of the dense network")
        macs += _at(layer["macs"], layer["n_active"], wanted)
    return macs


def matching_density(layers: list[dict], active_counts: Callable[[float], Mapping[str, int]], *, macs: float) -> float:
    """Finds the density at which a network costs as much as another one, to the nearest weight.

    Args:
        layers: Table of the network, from `layer_table`, at any density.
        active_counts: Active weights of each masked layer at a density: `methods.static.active_counts`, all else given.
        macs: What the other network costs, for one image.
    Returns:
        Density for `active_counts`, in (0, 1].
    Raises:
        ValueError: Too much even for the dense network, or too little for one weight in each masked layer.
    """
    dense = active_counts(1.0)
    n_weights = sum(dense.values())

    def macs_with(n_active: int) -> int:
        return _macs_with(layers, active_counts(n_active / n_weights))

    least, most = macs_with(len(dense)), macs_with(n_weights)
    if not least <= macs <= most:
        raise ValueError(f"no density costs {macs:,} MACs: this network takes {least:,} to {most:,}")
    return nearest_step(macs, macs_with, least=len(dense), most=n_weights) / n_weights


def mean_macs(layers: list[dict], active_counts: Sequence[tuple[int, Mapping[str, int]]], *, n_steps: int) -> float:
    """Averages the MACs of a forward pass over a training in which layers lose weights now and then.

    Args:
        layers: Table of the dense network, from `layer_table`.
        active_counts: From which step on how many weights of each masked layer were active; before that all were.
        n_steps: Optimizer steps of the training.
    """
    stages = [(0, {}), *active_counts]
    stops = [*(step for step, _ in active_counts), n_steps]
    spent = ((stop - step) * _macs_with(layers, n_active) for (step, n_active), stop in zip(stages, stops, strict=True))
    return sum(spent) / n_steps


def nearest_step(wanted: float, size: Callable[[int], float], *, least: int = 1, most: int) -> int:
    """Finds the step in `least`..`most` whose size is nearest to the wanted one; sizes must not fall. Ties go down."""
    above = bisect_left(range(most + 1), wanted, lo=least, hi=most, key=size)  # the first that reaches it
    return min((max(above - 1, least), above), key=lambda step: abs(size(step) - wanted))


def training_macs(
    dense_macs: float, sparse_macs: float, *, n_samples: float, n_dense_gradient_samples: float = 0
) -> float:
    """Returns the MACs of training: a forward pass, and a backward pass that costs two.

    A sample costs 3 f_S; where the gradient of every weight is needed, 2 f_S + f_D. Dense training is f_S = f_D;
    static and SET never need a dense gradient, RigL needs it on the batches of its mask updates, SNFS on all.

    Args:
        dense_macs: MACs of a dense forward pass for one image, f_D.
        sparse_macs: MACs of the masked forward pass, f_S.
        n_samples: Images processed, repetitions counted.
        n_dense_gradient_samples: How many of them needed the gradient of every weight.
    Source: Evci et al. 2020, App. H. With one update after every `update_every` steps this is its
        (3 f_S * update_every + 2 f_S + f_D) / (update_every + 1) a sample.
    """
    return 3 * sparse_macs * n_samples + (dense_macs - sparse_macs) * n_dense_gradient_samples
