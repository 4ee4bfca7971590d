"""How a network is pruned: which channels, blocks or single weights stay, each way by its name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunelab import cost
from prunelab.channels import filters, reconstruction, thinet
from prunelab.channels.selection import Selection
from prunelab.channels.slimming import Slimming, gamma_scores
from prunelab.channels.soft import SoftFilterPruning, l2_scores
from prunelab.masks import random_mask
from prunelab.methods.hooks import Hooks
from prunelab.methods.lottery import prune_smallest
from prunelab.methods.magnitude import conv_weights, magnitude_masks, pattern_masks, stage_patterns
from prunelab.recipes.common import Masks, generator_of, image_of
from prunelab.recipes.structures import Original, Structure, original_of

N_IMAGES = 500  # on which ThiNet and regression choose channels
_SHARE_STEPS = 256  # a uniform or guided design is found to this fraction of a layer's channels


def _by_scores(original: Original, scores: Mapping[str, Tensor]) -> Structure:
    """Keeps the filters of largest score in each layer."""
    return Structure(original.model, filters.keep_largest(scores, original.counts))


def _predefined(original: Original) -> Structure:
    """The first filters: only how many there are matters, since none of their values is inherited."""
    return Structure(original.model, {name: torch.arange(n) for name, n in original.counts.items()})


def _by_readers(method: Callable[..., tuple[nn.Module, dict[str, Tensor]]], original: Original) -> Structure:
    """The filters that the next layer can least do without on images of the training set."""
    counts = {name: n for name, n in original.counts.items() if n < original.widths[name]}
    generator = generator_of("channels", original.seed)
    n_images = min(N_IMAGES, original.dataset.n_train)
    images, _ = next(original.dataset.train_batches(batch_size=n_images, augment=False, generator=generator))
    readers = {name: original.traced.readers(name)[0] for name in counts}
    model, kept = method(original.model, images, readers=readers, counts=counts, generator=generator)
    return Structure(model, kept)


def _by_gammas(original: Original) -> Structure:
    """The channels of largest gamma in their normalisation, over all layers at once."""
    norms = {name: original.traced.norm(name) for name in original.widths}
    scores = gamma_scores(original.model, norms.values())
    of_layers = {name: scores[norm] for name, norm in norms.items()}
    return Structure(original.model, filters.keep_largest_globally(of_layers, density=original.options.density))


def _by_factors(original: Original) -> Structure:
    """What is left of blocks, groups or channels whose factor is not zero."""
    if not original.parents[0].factors:
        raise ValueError("the parent was trained without factors; selection needs one trained with pruning='selection'")
    pruned = Structure(original.model)
    for name, factors in original.parents[0].factors.items():
        stays = factors != 0
        if name in _block_ends(original.model):
            pruned.removed += () if stays.any() else (name.rpartition(".")[0],)
            continue
        if not stays.any():  # a layer without channels would end the network
            stays[0] = True
        for layer, n in original.widths.items():
            if original.traced.norm(layer) == name:
                pruned.kept[layer] = stays.repeat_interleave(n // len(stays)).nonzero().flatten()
    return pruned


def _by_magnitude(scope: str, original: Original) -> Structure:
    """The largest weights of the convolutions, of those that the parent's mask has left."""
    weights, density = conv_weights(original.model), original.options.density
    if earlier := original.parents[0].masks:
        earlier = {name: mask.to(original.dataset.device) for name, mask in earlier.items()}
        left = {name: earlier.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()}
        return Structure(original.model, masks=earlier | prune_smallest(weights, left, density=density))
    return Structure(original.model, masks=magnitude_masks(weights, density=density, scope=scope))


def _uniform_weights(original: Original) -> Structure:
    """Weights drawn at random, as large a share of every convolution."""
    generator, density = generator_of("masks", original.seed), original.options.density
    shapes = {name: weight.shape for name, weight in conv_weights(original.model).items()}
    masks = {
        name: random_mask(shape, max(1, round(density * shape.numel())), generator=generator)
        for name, shape in shapes.items()
    }
    return Structure(original.model, masks=masks)


def _uniform(original: Original) -> Structure:
    """As large a share of every layer's channels; with as many weights in the end as slimming would leave."""
    return _as_large_as(original, dict.fromkeys(original.widths, 1.0))


def _guided(original: Original) -> Structure:
    """Stages that keep the shares of channels which slimming left of the second parent's, on average, to scale."""
    source = _source(original)
    kept, widths = _by_gammas(source).kept, source.widths
    shares = {
        stage: sum(len(kept[name]) for name in names) / sum(widths[name] for name in names)
        for stage, names in _stages(source, widths).items()
    }
    return _as_large_as(
        original, {name: shares[stage] for stage, names in _stages(original, original.widths).items() for name in names}
    )


def _guided_weights(original: Original) -> Structure:
    """Random weights, as dense at each position of the kernels as the second parent's stages are after pruning."""
    source = _source(original)
    patterns = stage_patterns(_by_magnitude("global", source).masks, stages=_kernel_stages(source))
    weights, stages = conv_weights(original.model), _kernel_stages(original)
    wanted = round(original.options.density * sum(weight.numel() for weight in weights.values()))

    def scaled(k: int) -> dict[str, Tensor]:
        return {stage: (pattern * k / _SHARE_STEPS).clamp(max=1.0) for stage, pattern in patterns.items()}

    def size(k: int) -> float:
        return sum(
            weights[name].numel() * float(scaled(k)[stage].mean()) for stage, names in stages.items() for name in names
        )

    sparsest = min(float(pattern.mean()) for pattern in patterns.values())
    k = cost.nearest_step(wanted, size, most=round(_SHARE_STEPS / sparsest))
    generator = generator_of("masks", original.seed)
    return Structure(original.model, masks=pattern_masks(weights, scaled(k), stages=stages, generator=generator))


def patterns_of(original: Original, masks: Masks) -> dict[str, list]:
    """Returns how dense each position of the kernels of each stage is."""
    return {stage: own.tolist() for stage, own in stage_patterns(masks, stages=_kernel_stages(original)).items()}


def _structures(original: Original) -> dict[str, int]:
    """What factors scale: groups of grouped convolutions, else residual blocks, else channels; counts by layer name."""
    norms = {name: original.traced.norm(name) for name in original.filter_widths}
    groups = {name: original.model.get_submodule(name).groups for name in norms}
    if any(n > 1 for n in groups.values()):
        return {norms[name]: n for name, n in groups.items() if n > 1}
    return dict.fromkeys(_block_ends(original.model), 1) or {
        norms[name]: n for name, n in original.filter_widths.items()
    }


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


def _source(original: Original) -> Original:
    """The network that a design is taken from, the second parent's, to be pruned as far as this run's."""
    state = original.parents[1]
    network = {name: state.options[name] for name in ("model", "width")}
    options = replace(original.options, **network)
    return original_of(options, original.dataset, [state], seed=original.seed)


def _stages(original: Original, names: Collection[str]) -> dict[str, list[str]]:
    """Some convolutions by how many positions their maps have."""
    stages: dict[str, list[str]] = {}
    for layer in cost.layer_table(original.model, **image_of(original.dataset)):
        if layer["name"] in names:
            stages.setdefault(str(layer["macs"] // layer["n_weights"]), []).append(layer["name"])
    return stages


def _kernel_stages(original: Original) -> dict[str, list[str]]:
    """Those whose kernels are 3x3, which have a pattern."""
    return _stages(
        original, [name for name, weight in conv_weights(original.model).items() if weight.shape[2:] == (3, 3)]
    )


def _as_large_as(original: Original, shares: Mapping[str, float]) -> Structure:
    """Channels by given shares of each layer, to scale, so that as many weights are left as slimming would leave."""

    def design(k: int) -> Structure:
        scaled = {name: round(shares.get(name, 1.0) * n * k / _SHARE_STEPS) for name, n in original.widths.items()}
        counts = {name: min(n, max(1, scaled[name])) for name, n in original.widths.items()}
        evenly = {name: torch.arange(counts[name]) * n // counts[name] for name, n in original.widths.items()}
        return Structure(original.model, evenly)

    most = round(_SHARE_STEPS / min(shares.values()))
    wanted = _n_weights(_by_gammas(original), original)
    return design(cost.nearest_step(wanted, lambda k: _n_weights(design(k), original), most=most))


def _n_weights(pruned: Structure, original: Original) -> int:
    smaller = pruned.shrunken(original.model, original.dataset)
    return cost.total(cost.layer_table(smaller, **image_of(original.dataset)), "n_weights")


# How the structure of a network is found, by name.
PRUNINGS: dict[str, Callable[[Original], Structure]] = {
    "predefined": _predefined,
    "l1": lambda original: _by_scores(original, filters.l1_scores(original.model, original.counts)),
    "thinet": lambda original: _by_readers(thinet.prune, original),
    "regression": lambda original: _by_readers(reconstruction.prune, original),
    "random": lambda original: _by_scores(
        original,
        filters.random_scores(original.model, original.counts, generator=generator_of("channels", original.seed)),
    ),
    "soft": lambda original: _by_scores(  # what soft pruning has left in the end
        original, {name: l2_scores(original.model.get_submodule(name).weight) for name in original.counts}
    ),
    "slimming": _by_gammas,
    "selection": _by_factors,
    "uniform": _uniform,
    "guided": _guided,
    "magnitude": lambda original: _by_magnitude("global", original),
    "magnitude_layerwise": lambda original: _by_magnitude("layerwise", original),
    "uniform_weights": _uniform_weights,
    "guided_weights": _guided_weights,
}
# Those of single weights, which leave the network as large as it is.
WEIGHT_PRUNINGS = ("magnitude", "magnitude_layerwise", "uniform_weights", "guided_weights")
# The hooks that prepare a network for its pruning while it is trained, from it and the steps of an epoch.
PREPARATIONS: dict[str, Callable[[Original, int], Hooks]] = {
    "slimming": lambda original, steps: Slimming(
        original.model, [original.traced.norm(name) for name in original.widths], penalty=original.options.penalty
    ),
    "selection": lambda original, steps: Selection(
        original.model, _structures(original), penalty=original.options.penalty
    ),
    "soft": lambda original, steps: SoftFilterPruning(original.model, original.counts, prune_every_steps=steps),
}
