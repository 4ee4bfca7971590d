"""Rethinking's structures: what each way of pruning leaves of a large network, and the network that has it."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunelab import cost
from prunelab.channels import filters, reconstruction, thinet
from prunelab.channels.selection import Selection
from prunelab.channels.slimming import Slimming, gamma_scores
from prunelab.channels.soft import SoftFilterPruning, l2_scores
from prunelab.channels.surgery import shrink, without
from prunelab.channels.trace import Trace, trace
from prunelab.data import Dataset
from prunelab.masks import random_mask
from prunelab.methods.hooks import Hooks
from prunelab.methods.lottery import keep_largest
from prunelab.methods.magnitude import conv_weights, magnitude_masks, pattern_masks, rescaled_init_, stage_patterns
from prunelab.models import build_model
from prunelab.models.layers import Select
from prunelab.recipes.common import Masks, Options, generator_of, image_of

N_IMAGES = 500  # on which ThiNet and regression choose channels
_SHARE_STEPS = 256  # a uniform or guided design is found to this fraction of a layer's channels


@dataclass
class Pruned:
    """What pruning leaves of a network.

    Attributes:
        model: The large network with the weights that the pruned one inherits.
        kept: Indices of the channels that stay, by layer name; of layers that are not named all do.
        removed: Names of the blocks that go as a whole.
        masks: Of single weights, by layer name; empty where whole channels are pruned.
    """

    model: nn.Module
    kept: dict[str, Tensor] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    masks: Masks = field(default_factory=dict)

    def shrunken(self, model: nn.Module, dataset: Dataset) -> nn.Module:
        """A network of the same kind in this structure; itself where nothing is removed."""
        if self.removed:
            model = without(model, self.removed)
        return shrink(model, self.kept, **image_of(dataset)) if self.kept else copy.deepcopy(model)


@dataclass
class Large:
    """The network to prune, and all that a way of pruning may look at.

    Attributes:
        model: With the values of the first parent where there is one, else fresh.
        traced: Its channels.
        parents: The states of the run's parents.
    """

    options: Options
    dataset: Dataset
    model: nn.Module
    traced: Trace
    parents: Sequence[dict]
    seed: int

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each convolution and selection that may lose some, is normalised by itself, and has one reader.

        The stem of torchvision's ResNet-50, which two layers read, stays whole, as in the papers.
        """
        return {
            name: n
            for name, n in self.traced.widths.items()
            if self.traced.norm(name)
            and len(self.traced.readers(name)) == 1
            and not isinstance(self.traced.layers[name].module, nn.Linear)
        }

    @property
    def filter_widths(self) -> dict[str, int]:
        """Of those the convolutions, whose filters can be ranked."""
        return {name: n for name, n in self.widths.items() if isinstance(self.model.get_submodule(name), nn.Conv2d)}

    @property
    def counts(self) -> dict[str, int]:
        """How many filters of each convolution stay by the target, or density, of the run."""
        if self.options["target"]:
            return filters.predefined_counts(self.options["target"], self.filter_widths)
        return filters.uniform_counts(self.filter_widths, density=self.options["density"])


def large_of(options: Options, dataset: Dataset, parents: Sequence[dict], *, seed: int) -> Large:
    """The large network of a run, on the data set's device; its random values come from torch's global generator."""
    num_classes = parents[0]["num_classes"] if parents else dataset.num_classes  # a design may come from other images
    model = build_model(options["model"], num_classes=num_classes, width=options["width"], **image_of(dataset))
    traced = trace(model, **image_of(dataset))
    if parents:
        try:
            model.load_state_dict(parents[0]["model"])
        except RuntimeError as error:
            raise ValueError(f"the parent is no {options['model']} of width {options['width']:g}: {error}") from error
    model.to(dataset.device, memory_format=torch.channels_last)
    return Large(options, dataset, model, traced, parents, seed)


def _by_filters(large: Large) -> Pruned:
    """The filters of largest L1 norm."""
    scores = filters.l1_scores(large.model, large.counts)
    return Pruned(large.model, filters.keep_largest(scores, large.counts))


def _at_random(large: Large) -> Pruned:
    """Filters drawn at random."""
    scores = filters.random_scores(large.model, large.counts, generator=generator_of("channels", large.seed))
    return Pruned(large.model, filters.keep_largest(scores, large.counts))


def _predefined(large: Large) -> Pruned:
    """The first filters: only how many there are matters, since none of their values is inherited."""
    return Pruned(large.model, {name: torch.arange(n) for name, n in large.counts.items()})


def _by_soft_pruning(large: Large) -> Pruned:
    """The filters that soft pruning has left in the end, those of largest L2 norm."""
    scores = {name: l2_scores(large.model.get_submodule(name).weight) for name in large.counts}
    return Pruned(large.model, filters.keep_largest(scores, large.counts))


def _by_readers(method: Callable[..., tuple[nn.Module, dict[str, Tensor]]], large: Large) -> Pruned:
    """The filters that the next layer can least do without on images of the training set."""
    counts = {name: n for name, n in large.counts.items() if n < large.widths[name]}
    generator = generator_of("channels", large.seed)
    n_images = min(N_IMAGES, large.dataset.n_train)
    images, _ = next(large.dataset.train_batches(batch_size=n_images, augment=False, generator=generator))
    readers = {name: large.traced.readers(name)[0] for name in counts}
    model, kept = method(large.model, images, readers=readers, counts=counts, generator=generator)
    return Pruned(model, kept)


def _by_gammas(large: Large) -> Pruned:
    """The channels of largest gamma in their normalisation, over all layers at once."""
    norms = {name: large.traced.norm(name) for name in large.widths}
    scores = gamma_scores(large.model, norms.values())
    of_layers = {name: scores[norm] for name, norm in norms.items()}
    return Pruned(large.model, filters.keep_largest_globally(of_layers, density=large.options["density"]))


def _by_factors(large: Large) -> Pruned:
    """What is left of blocks, groups or channels whose factor is not zero."""
    if "factors" not in large.parents[0]:
        raise ValueError("the parent was trained without factors; selection needs one trained with pruning='selection'")
    pruned = Pruned(large.model)
    for name, factors in large.parents[0]["factors"].items():
        stays = factors != 0
        if name in _block_ends(large.model):
            pruned.removed += () if stays.any() else (name.rpartition(".")[0],)
            continue
        if not stays.any():  # a layer without channels would end the network
            stays[0] = True
        for layer, n in large.widths.items():
            if large.traced.norm(layer) == name:
                pruned.kept[layer] = stays.repeat_interleave(n // len(stays)).nonzero().flatten()
    return pruned


def _by_magnitude(scope: str, large: Large) -> Pruned:
    """The largest weights of the convolutions, of those that the parent's mask has left."""
    weights, density = conv_weights(large.model), large.options["density"]
    if earlier := large.parents[0]["masks"]:
        return Pruned(large.model, masks=keep_largest(weights, earlier, density=density))
    return Pruned(large.model, masks=magnitude_masks(weights, density=density, scope=scope))


def _uniform_weights(large: Large) -> Pruned:
    """Weights drawn at random, as large a share of every convolution."""
    generator, density = generator_of("masks", large.seed), large.options["density"]
    shapes = {name: weight.shape for name, weight in conv_weights(large.model).items()}
    masks = {
        name: random_mask(shape, max(1, round(density * shape.numel())), generator=generator)
        for name, shape in shapes.items()
    }
    return Pruned(large.model, masks=masks)


def _uniform(large: Large) -> Pruned:
    """As large a share of every layer's channels; with as many weights in the end as slimming would leave."""
    return _as_large_as(large, dict.fromkeys(large.widths, 1.0))


def _guided(large: Large) -> Pruned:
    """Stages that keep the shares of channels which slimming left of the second parent's, on average, to scale."""
    source = _source(large)
    kept, widths = _by_gammas(source).kept, source.widths
    shares = {}
    for stage, names in _stages(source, widths).items():
        shares[stage] = sum(len(kept[name]) for name in names) / sum(widths[name] for name in names)
    return _as_large_as(
        large, {name: shares[stage] for stage, names in _stages(large, large.widths).items() for name in names}
    )


def _guided_weights(large: Large) -> Pruned:
    """Random weights, as dense at each position of the kernels as the second parent's stages are after pruning."""
    source = _source(large)
    patterns = stage_patterns(_by_magnitude("global", source).masks, stages=_kernel_stages(source))
    weights, stages = conv_weights(large.model), _kernel_stages(large)
    wanted = round(large.options["density"] * sum(weight.numel() for weight in weights.values()))

    def scaled(k: int) -> dict[str, Tensor]:
        return {stage: (pattern * k / _SHARE_STEPS).clamp(max=1.0) for stage, pattern in patterns.items()}

    def size(k: int) -> float:
        return sum(
            weights[name].numel() * float(scaled(k)[stage].mean()) for stage, names in stages.items() for name in names
        )

    sparsest = min(float(pattern.mean()) for pattern in patterns.values())
    k = cost.nearest_step(wanted, size, most=round(_SHARE_STEPS / sparsest))
    generator = generator_of("masks", large.seed)
    return Pruned(large.model, masks=pattern_masks(weights, scaled(k), stages=stages, generator=generator))


# How the structure of a network is found, by name.
PRUNINGS: dict[str, Callable[[Large], Pruned]] = {
    "predefined": _predefined,
    "l1": _by_filters,
    "thinet": lambda large: _by_readers(thinet.prune, large),
    "regression": lambda large: _by_readers(reconstruction.prune, large),
    "random": _at_random,
    "soft": _by_soft_pruning,
    "slimming": _by_gammas,
    "selection": _by_factors,
    "uniform": _uniform,
    "guided": _guided,
    "magnitude": lambda large: _by_magnitude("global", large),
    "magnitude_layerwise": lambda large: _by_magnitude("layerwise", large),
    "uniform_weights": _uniform_weights,
    "guided_weights": _guided_weights,
}
# Those of single weights, which leave the network as large as it is.
WEIGHT_PRUNINGS = ("magnitude", "magnitude_layerwise", "uniform_weights", "guided_weights")
# What prepares a large network for its pruning while it is trained.
PREPARATIONS = ("slimming", "selection", "soft")


def preparation_of(large: Large, *, steps_per_epoch: int) -> Hooks | None:
    """The hooks under which the large network of a run is trained; None trains it as it is."""
    pruning, penalty = large.options["pruning"], large.options["penalty"]
    if pruning == "slimming":
        return Slimming(large.model, [large.traced.norm(name) for name in large.widths], penalty=penalty)
    if pruning == "selection":
        return Selection(large.model, _structures(large), penalty=penalty)
    if pruning == "soft":
        return SoftFilterPruning(large.model, large.counts, prune_every_steps=steps_per_epoch)
    return None


def from_scratch(pruned: Pruned, large: Large) -> nn.Module:
    """A network in the structure of a pruned one, with values as before any training.

    These are new random ones, from torch's global generator, or those that the large network started from.
    """
    options, dataset = large.options, large.dataset
    if options["start"] == "ticket":
        ticket = copy.deepcopy(large.model)
        ticket.load_state_dict(large.parents[0]["start"])
        return pruned.shrunken(ticket, dataset)
    smaller = pruned.shrunken(pruned.model, dataset)
    widths = changed(trace(smaller, **image_of(dataset)).widths, large.traced.widths)
    fresh = build_model(
        options["model"], num_classes=dataset.num_classes, width=options["width"], widths=widths, **image_of(dataset)
    )
    fresh = without(fresh, pruned.removed)
    for name, module in smaller.named_modules():
        if isinstance(module, Select):  # which channels are read belongs to the structure
            fresh.get_submodule(name).indices.copy_(module.indices)
    if pruned.masks:
        rescaled_init_(fresh, pruned.masks, generator=generator_of("masked values", large.seed))
    return fresh.to(dataset.device, memory_format=torch.channels_last)


def changed(widths: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """The widths that differ from those before; a network may have layers that cannot be built at another width."""
    return {name: n for name, n in widths.items() if n != before.get(name, n)}


def patterns_of(large: Large, masks: Masks) -> dict[str, list]:
    """How dense each position of the kernels of each stage is."""
    return {stage: own.tolist() for stage, own in stage_patterns(masks, stages=_kernel_stages(large)).items()}


def _structures(large: Large) -> dict[str, int]:
    """What factors scale: groups of grouped convolutions, else residual blocks, else channels; counts by layer name."""
    norms = {name: large.traced.norm(name) for name in large.filter_widths}
    groups = {name: large.model.get_submodule(name).groups for name in norms}
    if any(n > 1 for n in groups.values()):
        return {norms[name]: n for name, n in groups.items() if n > 1}
    return dict.fromkeys(_block_ends(large.model), 1) or {norms[name]: n for name, n in large.filter_widths.items()}


def _block_ends(model: nn.Module) -> list[str]:
    """The last layer of each bottleneck's branch around which the input passes unchanged."""
    ends = []
    for name, block in model.named_modules():
        if hasattr(block, "conv3") and getattr(block, "projection", None) is None:
            if not hasattr(block, "downsample"):
                ends.append(f"{name}.conv3")
            elif block.downsample is None:  # torchvision's, which normalise last
                ends.append(f"{name}.bn3")
    return ends


def _source(large: Large) -> Large:
    """The network that a design is taken from, the second parent's, to be pruned as far as this run's."""
    state = large.parents[1]
    options = state["options"] | {"density": large.options["density"]}
    return large_of(options, large.dataset, [state], seed=large.seed)


def _stages(large: Large, names: Collection[str]) -> dict[str, list[str]]:
    """Some convolutions by how many positions their maps have."""
    stages: dict[str, list[str]] = {}
    for layer in cost.layer_table(large.model, **image_of(large.dataset)):
        if layer["name"] in names:
            stages.setdefault(str(layer["macs"] // layer["n_weights"]), []).append(layer["name"])
    return stages


def _kernel_stages(large: Large) -> dict[str, list[str]]:
    """Those whose kernels are 3x3, which have a pattern."""
    return _stages(large, [name for name, weight in conv_weights(large.model).items() if weight.shape[2:] == (3, 3)])


def _as_large_as(large: Large, shares: Mapping[str, float]) -> Pruned:
    """Channels by given shares of each layer, to scale, so that as many weights are left as slimming would leave."""

    def design(k: int) -> Pruned:
        scaled = {name: round(shares.get(name, 1.0) * n * k / _SHARE_STEPS) for name, n in large.widths.items()}
        counts = {name: min(n, max(1, scaled[name])) for name, n in large.widths.items()}
        return Pruned(large.model, {name: _spread(counts[name], n) for name, n in large.widths.items()})

    most = round(_SHARE_STEPS / min(shares.values()))
    wanted = _n_weights(_by_gammas(large), large)
    return design(cost.nearest_step(wanted, lambda k: _n_weights(design(k), large), most=most))


def _n_weights(pruned: Pruned, large: Large) -> int:
    smaller = pruned.shrunken(large.model, large.dataset)
    return cost.total(cost.layer_table(smaller, **image_of(large.dataset)), "n_weights")


def _spread(n: int, n_channels: int) -> Tensor:
    """`n` of `n_channels` indices, evenly spread."""
    return torch.arange(n) * n_channels // n
