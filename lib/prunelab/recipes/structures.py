"""Structures of networks: the one to be pruned, what pruning leaves of it, and networks built like those."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunelab.channels import filters
from prunelab.channels.surgery import shrink, without
from prunelab.channels.trace import Trace, trace
from prunelab.data import LabelledImages
from prunelab.masks import layer_weights
from prunelab.methods.magnitude import rescaled_init_
from prunelab.methods.static import Static
from prunelab.models import build_model
from prunelab.models.layers import Select
from prunelab.models.trunk import head_of, load_trunk
from prunelab.recipes.common import Masks, generator_of, image_of, network_of
from prunelab.recipes.recipe import PruningOptions, State, TrainingOptions


@dataclass
class Structure:
    """What pruning leaves of a network.

    Attributes:
        model: The original network with the weights that the pruned one inherits.
        kept: Indices of the channels that stay, by layer name; of layers that are not named all do.
        removed: Names of the blocks that go as a whole.
        masks: Of single weights, by layer name; empty where whole channels are pruned.
    """

    model: nn.Module
    kept: dict[str, Tensor] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    masks: Masks = field(default_factory=dict)

    def shrunken(self, model: nn.Module, dataset: LabelledImages) -> nn.Module:
        """Gives a network of the same kind this structure; copies it where nothing is removed."""
        if self.removed:
            model = without(model, self.removed)
        return shrink(model, self.kept, **image_of(dataset)) if self.kept else copy.deepcopy(model)


@dataclass
class Original:
    """The network to prune, and all that a way of pruning may look at.

    Attributes:
        model: With the structure and the values of the first parent where there is one, else fresh.
        traced: Its channels.
        parents: The states of the run's parents.
    """

    options: PruningOptions
    dataset: LabelledImages
    model: nn.Module
    traced: Trace
    parents: Sequence[State]
    seed: int

    def reduced_to(self, smaller: nn.Module, pruned: Structure) -> tuple[dict[str, int], list[str]]:
        """Says which channels and blocks of the full network a smaller one has: `widths` and `removed` of its state."""
        earlier = self.parents[0] if self.parents else None
        widths = changed(trace(smaller, **image_of(self.dataset)).own_widths, self.traced.own_widths)
        return (
            (earlier.widths | widths, [*earlier.removed, *pruned.removed]) if earlier else (widths, [*pruned.removed])
        )

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """Channels of each convolution and selection that may lose some, is normalised by itself, and has one reader.

        The stem of torchvision's ResNet-50, which two layers read, stays whole, as in the papers.
        """
        return {
            name: n
            for name, n in self.traced.own_widths.items()
            if self.traced.norm(name)
            and len(self.traced.readers(name)) == 1
            and not isinstance(self.traced.layers[name].module, nn.Linear)
        }

    @functools.cached_property
    def filter_widths(self) -> dict[str, int]:
        """Of those the convolutions, whose filters can be ranked."""
        return {name: n for name, n in self.widths.items() if isinstance(self.model.get_submodule(name), nn.Conv2d)}

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """How many filters of each convolution stay by the target, or density, of the run."""
        if self.options.target:
            return filters.predefined_counts(self.options.target, self.filter_widths)
        return filters.uniform_counts(self.filter_widths, density=self.options.density)


def original_of(options: PruningOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> Original:
    """Builds the network that is to be pruned, on the data set's device; fresh values are the global generator's.

    Raises:
        ValueError: The first parent is another network.
    """
    model = same_network(options, dataset, parents[0]) if parents else network_of(options, dataset, width=options.width)
    traced = trace(model, **image_of(dataset))
    model.to(dataset.device, memory_format=torch.channels_last)
    return Original(options, dataset, model, traced, parents, seed)


def same_network(options: TrainingOptions, dataset: LabelledImages, parent: State) -> nn.Module:
    """Builds a parent's network on the CPU, with its values and its classes, which other images may not have.

    Args:
        options: Name the parent's network and its width.
        dataset: Decides the channels and the size of images.
        parent: Dense, masked or without some of its channels.
    Raises:
        ValueError: The parent is another network.
    """
    return _like(parent, options, dataset, nn.Module.load_state_dict, num_classes=parent.num_classes)


def carried_over(options: TrainingOptions, dataset: LabelledImages, parent: State) -> tuple[nn.Module, Static | None]:
    """Builds a parent's network for other images, to be trained on them: its values and masks, and a new head.

    The head is dense, also where the parent's has a mask, and its values are those of torch's global generator.

    Args:
        options: Name the parent's network and its width.
        dataset: Decides the classes, and the device.
        parent: Dense, masked or without some of its channels.
    Returns:
        model: On the data set's device.
        method: Holds the weights to the parent's masks; None where it has none.
    Raises:
        ValueError: The parent is another network, or has a mask that fits none of its layers.
    Source: Iofinova et al. 2022, arXiv:2111.13445, full finetuning.
    """
    model = _like(parent, options, dataset, load_trunk)
    model.to(dataset.device, memory_format=torch.channels_last)
    head = head_of(model)
    masks = {name: mask for name, mask in parent.masks.items() if name != head}
    return model, Static(model, masks) if masks else None


def _like(
    parent: State,
    options: TrainingOptions,
    dataset: LabelledImages,
    load: Callable[[nn.Module, Mapping[str, Tensor]], object],
    *,
    num_classes: int | None = None,
) -> nn.Module:
    """Builds a network like a parent's, on the CPU, and lets `load` put the parent's values into it."""
    try:
        model = network_of(options, dataset, width=options.width, num_classes=num_classes, **parent.lost)
        load(model, parent.model)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the parent is no {options.model} of width {options.width:g}; give the run its model and width: {error}"
        ) from error
    return model


def from_scratch(pruned: Structure, original: Original) -> nn.Module:
    """Builds a network in the structure of a pruned one, with values as before any training.

    These are new random ones, from torch's global generator, or those that the original network started from.
    """
    options, dataset = original.options, original.dataset
    if options.start == "ticket":
        ticket = copy.deepcopy(original.model)
        ticket.load_state_dict(original.parents[0].start)
        return pruned.shrunken(ticket, dataset)
    smaller = pruned.shrunken(pruned.model, dataset)
    widths, removed = original.reduced_to(smaller, pruned)
    fresh = network_of(options, dataset, width=options.width, widths=widths, removed=removed)
    for name, module in smaller.named_modules():
        if isinstance(module, Select):  # which channels are read belongs to the structure
            fresh.get_submodule(name).indices.copy_(module.indices)
    if pruned.masks:
        rescaled_init_(fresh, pruned.masks, generator=generator_of("masked values", original.seed))
    return fresh.to(dataset.device, memory_format=torch.channels_last)


def changed(widths: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Returns the widths that differ from those before; not every layer can be built at another width."""
    return {name: n for name, n in widths.items() if n != before.get(name, n)}


def rebuild(record: Mapping) -> nn.Module:
    """Builds the network of a record, with other values: to be timed, or looked at."""
    options, image = record["options"], dict(record["image"])
    build = functools.partial(build_model, options["model"], width=options["width"], **image)
    del image["num_classes"]
    whole = build()
    before = {name: len(weight) for name, weight in layer_weights(whole).items()} | trace(whole, **image).own_widths
    # A block that was removed has no widths, and is built only to be removed again.
    return without(build(widths=changed(record["widths"], before)), record["removed"])
