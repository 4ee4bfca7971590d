"""AFR, Adaptive Feature Retention: what the network knows (ReFer) and what the task asks of it (SNIP), in one score.

Source: Nitta et al. 2024, Adaptive Feature Retention, Sec. 3.2, Eq. 3 and 4.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunelab.scores.gradients import Batches, Weights
from prunelab.scores.refer import DEFAULT_FEATURES, refer_scores
from prunelab.scores.snip import snip_scores

SCOPES = ("global", "layerwise")


def standardised(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, scope: str) -> dict[str, Tensor]:
    """Shifts and scales scores to mean 0 and standard deviation 1; to 0 where all are equal.

    Args:
        scores: By layer name.
        weights: Those that are scored, same names and shapes. What is 0, as a pruned weight is, is scaled along but
            counts in neither mean nor deviation, which so are those of the weights that can still be pruned.
        scope: `global` standardises over all layers at once, `layerwise` each by itself.
    Raises:
        ValueError: An unknown scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; there are {', '.join(SCOPES)}")
    if scope == "layerwise":
        return {name: standardised({name: score}, weights, scope="global")[name] for name, score in scores.items()}
    present = [score[weights[name] != 0].double() for name, score in scores.items()]
    n = sum(map(len, present)) or 1
    mean = sum(float(values.sum()) for values in present) / n
    deviation = math.sqrt(sum(float((values - mean).square().sum()) for values in present) / n)
    return {
        name: (score - mean) / deviation if deviation else torch.zeros_like(score) for name, score in scores.items()
    }


def afr_scores(
    model: nn.Module,
    weights: Weights,
    batches: Batches,
    *,
    layers: Sequence[str] | None = None,
    features: str = DEFAULT_FEATURES,
    mixture: float = 0.5,
    scope: str = "global",
) -> dict[str, Tensor]:
    """Returns (1 - mixture) * z(ReFer) + mixture * z(SNIP) of each weight, z standing for `standardised`.

    By default over the network, as the paper's one symbol for all weights reads: a layer that matters keeps more of
    its weights. Layer by layer, every layer has the same mean and deviation, and what both scores say of layers is
    lost.

    Args:
        model: Returns logits; see `snip.snip_scores`.
        weights: By layer name; frozen ones are scored too.
        batches: Images and labels, on the model's device.
        layers, features: See `refer.refer_scores`.
        mixture: Share of SNIP, in [0, 1]; 0.5 ranks as the paper's sum does.
        scope: One of `SCOPES`.
    Returns:
        Score of each weight, of either sign, by layer name.
    Raises:
        ValueError: A mixture outside [0, 1], an unknown scope; else see `refer.refer_scores` and `snip.snip_scores`.
    Source: Nitta et al. 2024, Eq. 3 and 4.
    Differs: `mixture`, and half of the paper's sum by default.
    """
    if not 0.0 <= mixture <= 1.0:
        raise ValueError(f"mixture must lie in [0, 1], from ReFer to SNIP, got {mixture}")
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; there are {', '.join(SCOPES)}")
    refer = refer_scores(model, weights, batches, layers=layers, features=features)
    snip = snip_scores(model, weights, batches)
    refer, snip = (standardised(scores, weights, scope=scope) for scores in (refer, snip))
    return {name: torch.lerp(refer[name], snip[name], mixture) for name in weights}
