"""How long the networks of `06_frontier` take, beside the whole dense one: measured here, from their records."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from prunelab import frontier, recipes
from prunelab.latency import N_WARM_UP, in_turn
from prunelab.masks import random_mask
from prunelab.recipes.common import foreseen, image_of, network_of
from prunelab.recipes.structures import rebuild
from prunelab.runs import build_options
from prunelab.sparse_inference import SparseConv, with_sparse_convolutions

BATCH_SIZE = 64
N_BUILT = 3  # copies: where its weights lie in memory changes the time of one by up to a third


def network(record: Mapping) -> nn.Module:
    """Builds a network as large as that of a record, on the CPU, with other values; one under a mask as if dense."""
    if "widths" in record:
        model = rebuild(record)
    else:
        recipe = recipes.get(record["recipe"])
        options = build_options(recipe.name, recipe.options, record["options"])
        dataset = foreseen(options)
        model = network_of(options, dataset, width=recipe.outline(options, dataset).width)
    return model.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def sparse(record: Mapping, *, pays: Callable[..., bool] | None = None) -> nn.Module:
    """Builds a masked network whose convolutions are products of sparse matrices, where that pays.

    Each layer has as many active weights as the record says, at random.

    Args:
        record: Of the network.
        pays: As for `with_sparse_convolutions`; by default each is timed.
    """
    model, generator = network(record), torch.Generator().manual_seed(0)
    for layer in record["layers"]:
        weight = model.get_submodule(layer["name"]).weight
        weight.mul_(random_mask(weight.shape, layer["n_active"], generator=generator))
    return with_sparse_convolutions(model, _images(record), pays=pays)


def known_times(found: Iterable[Mapping]) -> pd.DataFrame:
    """Reads the times of records that ship, and measures those of the others here; rows as those of `times`.

    Args:
        found: Records of one network and one size of images; where that of the dense one is not among them, others
            have no time.
    """
    shipped, found = frontier.read_times()[0], list(found)
    lacking = [record for record in found if record["id"] not in set(shipped["id"])]
    dense = [record for record in found if _is_dense(record)][:1]
    return pd.concat([shipped, times([*dense, *lacking], n_rounds=30)]) if lacking and dense else shipped


@torch.no_grad()
def times(found: Iterable[Mapping], *, n_rounds: int) -> pd.DataFrame:
    """Times each network in turn with the dense one, as a share of its time; those that are alike once.

    Few at a time: of many networks the library of kernels does not keep all that it has prepared. On one thread, in
    batches of 64; of each network, the dense one too, the fastest round of several copies counts, which nothing else on
    the machine has disturbed, and where memory lies well. A masked network is the dense one, zeros and all, but for
    those layers that are faster as sparse products; where there is none it takes the dense one's time.

    Args:
        found: Records of one network and one size of images, that of the dense one among them.
        n_rounds: How often each is timed.
    Returns:
        One row a record: `id`; `time`; of a masked network `n_sparse`, the layers that were faster as sparse products,
        and `sparse`, its time with all of them so; and of the dense one `again`, other copies of it timed beside those
        that all are timed with, which tells how well times can be told apart.
    """
    found, n_threads, shares = list(found), torch.get_num_threads(), {}
    dense = next(filter(_is_dense, found))
    images = _images(dense)
    wholes = _passes("whole", partial(network, dense), images)

    def share(build: Callable[[], nn.Module]) -> float:
        spent = in_turn(_passes("own", build, images) | wholes, n_rounds=n_rounds, n_warm_up=N_WARM_UP)
        fastest = {name: min(seconds) for name, seconds in spent.items()}
        own, whole = (min(fastest[name] for name in fastest if name.startswith(side)) for side in ("own", "whole"))
        return round(own / whole, 3)

    def measured(record: Mapping) -> dict[str, float]:
        if not _is_masked(record):
            own = share(partial(network, record))
            return {"time": 1.0, "again": own} if _is_dense(record) else {"time": own}
        n_sparse = sum(isinstance(module, SparseConv) for module in sparse(record).modules())
        time = min(1.0, share(partial(sparse, record))) if n_sparse else 1.0
        return {"time": time, "n_sparse": n_sparse, "sparse": share(partial(sparse, record, pays=lambda *_: True))}

    torch.set_num_threads(1)
    try:
        for kind, record in {_kind(record): record for record in found}.items():
            shares[kind] = measured(record)
    finally:
        torch.set_num_threads(n_threads)
    columns = ["id", "time", "n_sparse", "sparse", "again"]
    return pd.DataFrame([{"id": record["id"]} | shares[_kind(record)] for record in found], columns=columns)


def _passes(name: str, build: Callable[[], nn.Module], images: Tensor) -> dict[str, Callable[[int], None]]:
    """Builds some copies of a network; returns their forward passes."""
    return {f"{name} {i}": partial(_forward, build(), images) for i in range(N_BUILT)}


def _images(record: Mapping) -> Tensor:
    """Makes a batch of noise in the shape of the images of a record's run."""
    recipe = recipes.get(record["recipe"])
    image = image_of(foreseen(build_options(recipe.name, recipe.options, record["options"])))
    shape = (BATCH_SIZE, image["in_channels"], image["image_size"], image["image_size"])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(memory_format=torch.channels_last)


def _forward(model: nn.Module, images: Tensor, _round: int) -> None:
    model(images)


def _is_dense(record: Mapping) -> bool:
    return record["options"].get("method") == "dense"


def _is_masked(record: Mapping) -> bool:
    return any(layer["masked"] for layer in record["layers"])


def _kind(record: Mapping) -> tuple:
    """Tells networks apart that do not take the same time."""
    return tuple((*layer["shape"], layer["n_active"]) for layer in record["layers"])
