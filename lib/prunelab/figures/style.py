"""How columns and their values look and read: colours, markers, words."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart, a dark brown and a violet that they can too;
# markers differ as well.
METHOD_STYLE: dict[str, dict[str, str]] = {
    "dense": {"color": "#000000", "marker": "P", "label": "dense"},
    "small_dense": {"color": "#8C8C8C", "marker": "s", "label": "small dense (same parameters)"},
    "small_dense_macs": {"color": "#CC79A7", "marker": "D", "label": "small dense (same MACs)"},
    "static": {"color": "#E69F00", "marker": "v", "label": "static"},
    "snip": {"color": "#56B4E9", "marker": "X", "label": "SNIP"},
    "set": {"color": "#009E73", "marker": "^", "label": "SET"},
    "snfs": {"color": "#D55E00", "marker": ">", "label": "SNFS"},
    "rigl": {"color": "#0072B2", "marker": "o", "label": "RigL"},
    "gmp": {"color": "#6B3A00", "marker": "d", "label": "gradual pruning"},
    "woodfisher": {"color": "#C8004B", "marker": "p", "label": "WoodFisher"},
    "acdc": {"color": "#44CC77", "marker": "h", "label": "AC/DC"},
    "str": {"color": "#440066", "marker": "*", "label": "STR"},
    "lottery": {"color": "#7830F0", "marker": "<", "label": "lottery ticket"},
}
DISTRIBUTION_STYLE: dict[str, dict[str, str]] = {
    "uniform": {"color": "#E69F00", "marker": "s", "label": "uniform"},
    "erdos_renyi": {"color": "#009E73", "marker": "^", "label": "Erdős–Rényi"},
    "erk": {"color": "#0072B2", "marker": "o", "label": "ERK"},
}
START_STYLE: dict[str, dict[str, str]] = {
    "fresh": {"color": "#8C8C8C", "marker": "s", "label": "from scratch"},
    "shuffled": {"color": "#E69F00", "marker": "v", "label": "random mask"},
    "reinitialised": {"color": "#009E73", "marker": "^", "label": "same mask, new weights"},
    "ticket": {"color": "#7830F0", "marker": "<", "label": "ticket"},
    "solution": {"color": "#0072B2", "marker": "o", "label": "from the trained network"},
}
TRAINING_STYLE: dict[str, dict[str, str]] = {
    "dense": {"color": "#000000", "marker": "P", "label": "large network"},
    "fine_tune": {"color": "#E69F00", "marker": "v", "label": "fine-tuned"},
    "scratch_e": {"color": "#56B4E9", "marker": "o", "label": "Scratch-E (same epochs)"},
    "scratch_b": {"color": "#0072B2", "marker": "s", "label": "Scratch-B (same MACs)"},
}
PRUNING_STYLE: dict[str, dict[str, str]] = {
    "predefined": {"color": "#000000", "marker": "P", "label": "predefined"},
    "l1": {"color": "#0072B2", "marker": "o", "label": "L1 norm"},
    "thinet": {"color": "#009E73", "marker": "^", "label": "ThiNet"},
    "regression": {"color": "#CC79A7", "marker": "D", "label": "regression"},
    "random": {"color": "#8C8C8C", "marker": "s", "label": "random filters"},
    "soft": {"color": "#56B4E9", "marker": "X", "label": "soft pruning"},
    "slimming": {"color": "#D55E00", "marker": ">", "label": "Network Slimming"},
    "selection": {"color": "#7830F0", "marker": "<", "label": "Sparse Structure Selection"},
    "uniform": {"color": "#8C8C8C", "marker": "d", "label": "uniform widths"},
    "guided": {"color": "#009E73", "marker": "v", "label": "guided widths"},
    "magnitude": {"color": "#0072B2", "marker": "h", "label": "magnitude, all layers at once"},
    "magnitude_layerwise": {"color": "#56B4E9", "marker": "p", "label": "magnitude, layer by layer"},
    "uniform_weights": {"color": "#8C8C8C", "marker": "*", "label": "uniformly random weights"},
    "guided_weights": {"color": "#009E73", "marker": "8", "label": "guided weights"},
}
DESIGN_STYLE: dict[str, dict[str, str]] = {
    "expected": {"color": "#0072B2", "marker": "o", "label": "DMCP"},
    "uniform": {"color": "#8C8C8C", "marker": "s", "label": "uniform widths"},
    "random": {"color": "#E69F00", "marker": "v", "label": "random widths"},
    "greedy": {"color": "#009E73", "marker": "^", "label": "AutoSlim"},
    "evolved": {"color": "#CC79A7", "marker": "D", "label": "MetaPruning"},
    "slimming": {"color": "#D55E00", "marker": ">", "label": "Network Slimming"},
    "direct": {"color": "#56B4E9", "marker": "X", "label": "DMCP, drawn"},
    "latency": {"color": "#7830F0", "marker": "<", "label": "DMCP, latency budget"},
    "dense": {"color": "#000000", "marker": "P", "label": "full network"},
}
SCORE_STYLE: dict[str, dict[str, str]] = {
    "dense": {"color": "#000000", "marker": "P", "label": "not pruned"},
    "magnitude": {"color": "#6B3A00", "marker": "d", "label": "magnitude"},
    "random": {"color": "#8C8C8C", "marker": "s", "label": "random"},
    "snip": {"color": "#56B4E9", "marker": "X", "label": "SNIP"},
    "grasp": {"color": "#CC79A7", "marker": "D", "label": "GraSP"},
    "synflow": {"color": "#E69F00", "marker": "v", "label": "SynFlow"},
    "refer": {"color": "#009E73", "marker": "^", "label": "ReFer"},
    "afr": {"color": "#0072B2", "marker": "o", "label": "AFR"},
}
UPSTREAM_STYLE: dict[str, dict[str, str]] = {  # as the methods themselves, but L1, whose blue is RigL's
    **{name: METHOD_STYLE[name] for name in ("dense", "gmp", "woodfisher", "acdc", "str", "rigl")},
    "rigl_5x": {"color": "#56B4E9", "marker": "X", "label": "RigL (5×)"},
    "lottery": METHOD_STYLE["lottery"] | {"label": "LTH-T"},
    "l1": PRUNING_STYLE["l1"] | {"color": "#8C8C8C", "marker": "s"},
    "slimming": PRUNING_STYLE["slimming"],
}
# Masks are blue, what is pruned and fine-tuned orange, dense networks from scratch black, grey and green.
WAY_STYLE: dict[str, dict[str, str]] = {
    "dense": METHOD_STYLE["dense"],
    "small_dense": METHOD_STYLE["small_dense"] | {"label": "small dense"},
    "small_dense_long": {"color": "#4D4D4D", "marker": "8", "label": "small dense, longer"},
    "scratch_e": {"color": "#009E73", "marker": "*", "label": "fewer channels, Scratch-E"},
    "scratch_b": {"color": "#009E73", "marker": "p", "label": "fewer channels, Scratch-B"},
    "distilled": {"color": "#44CC77", "marker": "D", "label": "small dense, distilled"},
    "dmcp": {"color": "#3A5F0B", "marker": "h", "label": "DMCP's widths"},
    "static": {"color": "#9BD3F5", "marker": "v", "label": "static mask"},
    "snip": METHOD_STYLE["snip"],
    "set": {"color": "#3B9AE1", "marker": "^", "label": "SET"},
    "rigl": METHOD_STYLE["rigl"],
    "gmp": {"color": "#0A2F66", "marker": "d", "label": "gradual pruning"},
    "gmp_long": {"color": "#0A2F66", "marker": "P", "label": "gradual pruning, longer"},
    "magnitude": {"color": "#7830F0", "marker": "<", "label": "magnitude, fine-tuned"},
    "l1": {"color": "#E69F00", "marker": "o", "label": "L1 norm, fine-tuned"},
    "slimming": {"color": "#D55E00", "marker": ">", "label": "Network Slimming, fine-tuned"},
}
KIND_STYLE: dict[str, dict[str, str]] = {
    "dense": {"color": "#000000", "marker": "s", "label": "dense, from scratch"},
    "masked": {"color": "#0072B2", "marker": "o", "label": "masks"},
    "pruned": {"color": "#D55E00", "marker": ">", "label": "channels pruned, fine-tuned"},
}
PATH_STYLE: dict[str, dict[str, str]] = {
    "line": {"color": "#000000", "marker": "o", "label": "straight line"},
    "quadratic_sparse": {"color": "#E69F00", "marker": "v", "label": "quadratic curve, sparse"},
    "cubic_sparse": {"color": "#009E73", "marker": "^", "label": "cubic curve, sparse"},
    "quadratic_dense": {"color": "#0072B2", "marker": "D", "label": "quadratic curve, dense"},
}
NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "aircraft": "Aircraft",
    "birds": "Birdsnap",
    "caltech101": "Caltech-101",
    "caltech256": "Caltech-256",
    "cars": "Cars",
    "dtd": "DTD",
    "flowers": "Flowers",
    "food101": "Food-101",
    "pets": "Pets",
    "SUN": "SUN397",
    "mnist10k": "MNIST",
    "omniglot-small": "Omniglot",
    "tiny-imagenet-200-32px": "Tiny-ImageNet",
    "tiny-imagenet-200-32px:mixed": "21 unseen classes",
    "tiny-imagenet-200-32px:insects": "insects",
    "tiny-imagenet-200-32px:dogs": "dogs",
    "tiny-imagenet-200-32px:vehicles": "vehicles",
    "tiny-imagenet-200-32px:food": "food",
    "glyphs:cyrillic:40": "Cyrillic letters",
    "glyphs:greek": "Greek letters",
    "glyphs:symbols": "symbols",
    "vit_micro4": "ViT-micro/4",
    "vit_s4": "ViT-S/4",
    "vit_s16": "ViT-S/16",
    "vit_b16": "ViT-B/16",
    "imagenet": "ImageNet",
    "resnet8": "ResNet-8",
    "resnet8_wide_early": "ResNet-8, wide early",
    "resnet8_wide_late": "ResNet-8, wide late",
    "resnet20": "ResNet-20",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "resnet32": "ResNet-32",
    "resnet56": "ResNet-56",
    "wrn22_2": "WRN-22-2",
    "mobilenet_v1": "MobileNet",
    "lenet_300_100": "LeNet-300-100",
    "vgg11": "VGG-11",
    "vgg16": "VGG-16",
    "preresnet20": "PreResNet-20",
    "densenet22": "DenseNet-22",
    "resnext20": "ResNeXt-20",
    "vgg16_a": "VGG-16, configuration A",
    "resnet56_b": "ResNet-56, configuration B",
    "inverse_power": "inverse power",
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
}
STYLES = {
    "method": METHOD_STYLE,
    "distribution": DISTRIBUTION_STYLE,
    "start": START_STYLE,
    "path": PATH_STYLE,
    "training": TRAINING_STYLE,
    "pruning": PRUNING_STYLE,
    "design": DESIGN_STYLE,
    "score": SCORE_STYLE,
    "upstream": UPSTREAM_STYLE,
    "way": WAY_STYLE,
    "kind": KIND_STYLE,
}
_LABELS = {
    "train_loss": "training loss",
    "density": "density of the layer",
    "channel_density": "channels of the layer that stay",
    "measured_density": "weights left",
    "inherited_accuracy": "test accuracy before training",
    "survival": "initial connections still active",
    "macs_ratio": "inference MACs, relative to dense",
    "training_macs_ratio": "training MACs, relative to dense",
    "train_multiplier": "length of training",
    "knn_accuracy": "20-NN accuracy",
    "mixture": "share of SNIP in AFR",
    "n_scored": "images that scores are taken from",
    "n_rounds": "rounds of scoring",
    "dead_filters": "filters without a weight",
    "dead_inputs": "dead input channels",
    "upstream_accuracy": "upstream test accuracy",
    "validation_accuracy": "accuracy on held-out images",
    "gained": "full transfer's gain over linear, beside dense",
    "augmented_accuracy": "with features of augmented images",
    "position": "position on the path",
    "setting": "",
    "update_every": "steps between updates",
    "drop_fraction": "share that moves at first",
    "stop_update": "share of training",
    "gradient_momentum": "momentum",
    "dataset": "trained on",
    "parent_dataset": "ticket found on",
    "optimizer": "trained with",
    "parent_optimizer": "ticket found with",
}


def styles(by: str, values: Iterable) -> dict:
    """Returns how to draw each value present, in the order of drawing.

    Raises:
        ValueError: A value that a column with fixed styles does not know.
    """
    present = list(dict.fromkeys(values))
    if by not in STYLES:
        return palette(sorted(present), by=by)
    if unknown := sorted(set(present) - STYLES[by].keys()):
        raise ValueError(f"no style for {by} {', '.join(unknown)}; there are {', '.join(STYLES[by])}")
    return {value: style for value, style in STYLES[by].items() if value in present}


def palette(values: list, *, by: str = "") -> dict:
    """Returns styles for values of a column that has no fixed ones, from dark to light."""
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(values)))
    return {
        value: {"color": color, "marker": "osD^vP"[number % 6], "label": written(by, value)}
        for number, (value, color) in enumerate(zip(values, colors, strict=True))
    }


def label(column: str) -> str:
    """Returns what an axis calls a column."""
    return _LABELS.get(column, column.replace("_", " "))


def legend_title(by: str | None) -> str | None:
    """Returns what the values in a legend are; None where they say so themselves."""
    if by is None or by in STYLES:
        return None
    return "weights left" if by == "density" else label(by)


def written(column: str, value: object) -> str:
    """Writes a value as axes and legends have it."""
    if value in STYLES.get(column, {}):
        return STYLES[column][value]["label"]
    if column == "density":
        return percent(value)
    if column == "train_multiplier":
        return f"{value:g}×"
    return f"{value:.10g}" if isinstance(value, float) else name(value)


def name(value: object) -> str:
    """Returns what readers call a network, a target, a data set or an optimizer."""
    return NAMES.get(value, str(value))


def is_share(metric: str) -> bool:
    """Tells whether a metric is written in percent."""
    return metric.startswith("dead_") or metric.endswith(("accuracy", "density", "ratio", "survival", "precision"))


def percent(share: float, _position: int | None = None) -> str:
    """Writes a share in percent; also the formatter of an axis, which hands in positions."""
    return f"{100 * share:.4g} %"
