"""How long the networks of `06_frontier` take, beside the whole dense one: measured here, from their records."""

from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from torch import nn

from prunelab import frontier, recipes
from prunelab.latency import compare
from prunelab.masks import random_mask
from prunelab.recipes.common import foreseen, image_of, network_of
from prunelab.recipes.structures import rebuild
from prunelab.runs import build_options
from prunelab.sparse_inference import with_sparse_convolutions

BATCH_SIZE = 64


def network(record: Mapping) -> nn.Module:
    """Builds a network as large as that of a record, on the CPU, with other values; one under a mask as if dense."""
    if "widths" in record:
        return rebuild(record)
    recipe = recipes.get(record["recipe"])
    options = build_options(recipe.name, recipe.options, record["options"])
    dataset = foreseen(options)
    return network_of(options, dataset, width=recipe.outline(options, dataset).width)


@torch.no_grad()
def sparse(record: Mapping) -> nn.Module:
    """Builds a masked network whose convolutions are products of sparse matrices, where these are faster here.

    Each layer has as many active weights as the record says, at random.
    """
    model, generator = network(record), torch.Generator().manual_seed(0)
    for layer in record["layers"]:
        weight = model.get_submodule(layer["name"]).weight
        weight.mul_(random_mask(weight.shape, layer["n_active"], generator=generator))
    image = _image(record)
    shape = (BATCH_SIZE, image["in_channels"], image["image_size"], image["image_size"])
    return with_sparse_convolutions(model, torch.randn(shape, generator=generator))


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


def times(found: Iterable[Mapping], *, n_rounds: int) -> pd.DataFrame:
    """Times networks in turn, as shares of what the dense one takes; those that are alike once.

    On one thread, in batches of 64; the fastest round counts, which is the one that nothing else on the machine has
    disturbed. A masked network takes as long as the dense one in ordinary kernels; where sparse ones are faster it
    takes what these take.

    Args:
        found: Records of one network and one size of images, that of the dense one among them.
        n_rounds: How often each is timed.
    Returns:
        One row a record: `id`; `time`; and `sparse`, a masked network's time in sparse kernels, also where that is
        longer.
    """
    found, n_threads = list(found), torch.get_num_threads()
    dense = next(filter(_is_dense, found))
    torch.set_num_threads(1)
    try:
        models = {_kind(record): (sparse if _is_masked(record) else network)(record) for record in found[::-1]}
        measured = compare(models, batch_size=BATCH_SIZE, n_rounds=n_rounds, **_image(dense))
    finally:
        torch.set_num_threads(n_threads)
    fastest, rows = {kind: min(own.seconds) for kind, own in measured.items()}, []
    for record in found:
        time = round(fastest[_kind(record)] / fastest[_kind(dense)], 3)
        own = {"time": min(1.0, time), "sparse": time} if _is_masked(record) else {"time": time, "sparse": None}
        rows.append({"id": record["id"], **own})
    return pd.DataFrame(rows)


def _image(record: Mapping) -> dict[str, int]:
    recipe = recipes.get(record["recipe"])
    return image_of(foreseen(build_options(recipe.name, recipe.options, record["options"])))


def _is_dense(record: Mapping) -> bool:
    return record["options"].get("method") == "dense"


def _is_masked(record: Mapping) -> bool:
    return any(layer["masked"] for layer in record["layers"])


def _kind(record: Mapping) -> tuple:
    """Tells networks apart that do not take the same time."""
    return tuple((*layer["shape"], layer["n_active"]) for layer in record["layers"])
