"""Scores of weights: six weights worked out on paper, laws that must hold, and what is refused."""

import copy
import math
import weakref
from functools import partial
from itertools import pairwise, repeat

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunelab.masks import empty_layers, global_masks, prunable_weights
from prunelab.models import build_model
from prunelab.scores import SCORES, score
from prunelab.scores.afr import afr_scores, standardised
from prunelab.scores.grasp import grasp_scores
from prunelab.scores.refer import block_names, refer_scores
from prunelab.scores.rounds import prune_in_rounds
from prunelab.scores.snip import snip_scores
from prunelab.scores.synflow import synflow_scores

# Two classes, three inputs, two images. Both outputs are 1 for both images, so that each class has probability 1/2 and
# the features (images, outputs) are [[1, 1], [1, 1]], with singular values 2 and 0.
WEIGHT = torch.tensor([[2.0, -1.0, 3.0], [-1.0, 2.0, 3.0]])
IMAGES = torch.tensor([[1.0, 1.0, 0.0], [-2.0, -2.0, 1.0]])
# Gradient of an image's loss: -1/2 image in the row of its label, +1/2 image in the other one.
# Labels 0, 1: the mean is 1/4 (-3, -3, 1) in row 0 and the opposite in row 1.
SNIP = torch.tensor([[6.0, 3.0, 3.0], [3.0, 6.0, 3.0]]) / 4
# Labels 0, 0: it is 1/4 (1, 1, -1) in row 0 and the opposite in row 1.
SNIP_OF_ONE_CLASS = torch.tensor([[2.0, 1.0, 3.0], [1.0, 2.0, 3.0]]) / 4
# U V' = [[1, 1], [1, 1]] / 2 and min(2, 2) = 2, so each output of each image has the gradient 1/4: 1/4 (-1, -1, 1).
REFER = torch.tensor([[2.0, 1.0, 3.0], [1.0, 2.0, 3.0]]) / 4
# In quarters ReFer has mean 2 and variance 2/3. SNIP, in units of 3/4, has mean 4/3 and variance 2/9.
Z_REFER = math.sqrt(3 / 2) * torch.tensor([[0.0, -1.0, 1.0], [-1.0, 0.0, 1.0]])
Z_SNIP = math.sqrt(2) * torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5]])


def six_weights():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    model[0].weight.data = WEIGHT.clone()
    return model


def on_paper(score, *, labels=(0, 1), **options):
    model = six_weights()
    return score(model, prunable_weights(model), [(IMAGES, torch.tensor(labels))], **options)["0"]


def test_snip_of_six_weights_is_what_it_is_on_paper():
    torch.testing.assert_close(on_paper(snip_scores), SNIP)
    torch.testing.assert_close(on_paper(snip_scores, labels=(0, 0)), SNIP_OF_ONE_CLASS)


def test_refer_of_six_weights_is_what_it_is_on_paper():
    torch.testing.assert_close(on_paper(refer_scores, layers=["0"], features="mean"), REFER)


@pytest.mark.parametrize(
    "mixture, expected",
    [(0.0, Z_REFER), (1.0, Z_SNIP), (0.5, (Z_REFER + Z_SNIP) / 2), (0.25, 0.75 * Z_REFER + 0.25 * Z_SNIP)],
)
@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_afr_of_six_weights_is_what_it_is_on_paper(mixture, expected, scope):
    found = on_paper(afr_scores, layers=["0"], features="mean", mixture=mixture, scope=scope)
    torch.testing.assert_close(found, expected)


def test_afr_keeps_other_weights_than_refer():
    # ReFer keeps the weights of 3, SNIP and AFR those of 2: sums 1.41 and 0.52, by hand.
    of_refer, of_afr = (on_paper(function, layers=["0"], features="mean") for function in (refer_scores, afr_scores))
    assert global_masks({"0": of_refer}, density=1 / 3)["0"].tolist() == [[False, False, True]] * 2
    assert global_masks({"0": of_afr}, density=1 / 3)["0"].tolist() == [[True, False, False], [False, True, False]]


def test_refer_adds_up_over_layers():
    # Features of "1" are those of "0" times the identity: each of the two layers gives its own half.
    model = nn.Sequential(six_weights()[0], nn.Linear(2, 2, bias=False))
    model[1].weight.data = torch.eye(2)
    options = {"weights": {"0": model[0].weight}, "batches": [(IMAGES, torch.tensor([0, 1]))], "features": "mean"}
    torch.testing.assert_close(refer_scores(model, layers=["0", "1"], **options)["0"], 2 * REFER)


def test_standardised_over_the_network_or_in_each_layer():
    scores = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([5.0, 7.0])}
    ones = {name: torch.ones(2) for name in scores}
    everywhere, by_layer = (standardised(scores, ones, scope=scope) for scope in ("global", "layerwise"))
    # Mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; in each layer a deviation of 1 around 2 and 6.
    torch.testing.assert_close(torch.cat(list(everywhere.values())), torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 5**0.5)
    torch.testing.assert_close(torch.cat(list(by_layer.values())), torch.tensor([-1.0, 1.0, -1.0, 1.0]))


def test_pruned_weights_count_in_no_mean_and_equal_scores_become_zero():
    scores = {"a": torch.tensor([0.0, 1.0, 3.0, 0.0]), "b": torch.full((2,), 5.0)}
    weights = {"a": torch.tensor([0.0, 9.0, 9.0, 0.0]), "b": torch.ones(2)}
    found = standardised(scores, weights, scope="layerwise")
    assert found["a"].tolist() == [-2.0, -1.0, 1.0, -2.0] and found["b"].tolist() == [0.0, 0.0]


# --- any network


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 12), nn.GELU(), nn.Linear(12, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """A transformer of two blocks on four patches and a class token."""

    def __init__(self, dim=8):
        super().__init__()
        self.patches, self.start = nn.Conv2d(3, dim, 4, stride=4), nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.Sequential(Block(dim), Block(dim))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(dim, 5)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.start.expand(len(images), -1, -1), patches], dim=1)
        return self.head(self.dropout(self.blocks(tokens)[:, 0]))


def perceptron(*sizes, bias=True):
    layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m, bias=bias), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def network(kind):
    """A network of a kind, its weights but those of the head, and the options with which ReFer takes it."""
    torch.manual_seed(0)
    if kind == "convolutions":
        model, options = build_model("resnet8", num_classes=5, width=0.25), {"features": "mean"}
    elif kind == "perceptron":
        model, options = perceptron(3 * 8 * 8, 7, 6, 5), {"layers": ["1", "3"], "features": "mean"}
    else:
        model, options = Tokens(), {}
    weights = prunable_weights(model)
    return model, {name: weights[name] for name in list(weights)[:-1]}, options


NETWORKS = ("convolutions", "perceptron", "tokens")


def some_batches(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(sum(sizes), 3, 8, 8, generator=generator)
    labels = torch.randint(5, (sum(sizes),), generator=generator)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def options_of(refer):
    return refer | {"generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_a_finite_number_for_each_weight_of_any_network(name, kind):
    model, weights, options = network(kind)
    scores = score(name, model, weights, some_batches(6, 6), **options_of(options))
    assert list(scores) == list(weights)
    for layer, values in scores.items():
        assert values.shape == weights[layer].shape and values.is_floating_point() and not values.requires_grad
        assert values.isfinite().all() and len(values.unique()) > 1
        assert name in ("grasp", "afr") or (values >= 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", SCORES)
def test_network_is_left_as_it_was_also_where_scoring_fails(name, kind):
    model, weights, options = network(kind)
    model.train()
    frozen, last = next(iter(weights.values())).requires_grad_(False), list(weights.values())[-1]
    last.grad = grad = torch.ones_like(last)
    before, good, bad = copy.deepcopy(model.state_dict()), some_batches(6, 6), some_batches(6, 6)
    bad[1][0][0] = torch.nan
    score(name, model, weights, good, **options_of(options))
    if name in ("snip", "grasp", "refer", "afr"):  # the others look at no image
        with pytest.raises(ValueError):
            score(name, model, weights, bad, **options_of(options))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert not frozen.requires_grad and last.requires_grad and last.grad is grad and bool((grad == 1).all())
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not last)


def agree(found, expected):
    assert list(found) == list(expected)
    for name in found:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_scores_of_a_loss_do_not_depend_on_how_images_are_split(name, kind):
    model, weights, _ = network(kind)
    whole, parts = (score(name, model, weights, some_batches(*sizes)) for sizes in [(12,), (1, 4, 7)])
    agree(parts, whole)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "refer", "afr"])
def test_frozen_weights_and_callers_without_gradients_get_the_same_scores(name):
    model, weights, options = network("tokens")
    free = score(name, model, weights, some_batches(6), **options)
    with torch.no_grad():
        frozen = score(name, model.requires_grad_(False), weights, some_batches(6), **options)
    assert all(torch.equal(free[layer], frozen[layer]) for layer in weights)


@pytest.mark.parametrize("name", ["snip", "grasp", "refer", "afr", "synflow"])
def test_only_one_batch_of_activations_is_held(name):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            assert all(output() is None for output in seen)
            output = x * x  # held by the graph: its square is differentiated next
            seen.append(weakref.ref(output))
            return output * output

    model, weights, _ = network("perceptron")
    model.insert(2, Watched())
    score(name, model, weights, some_batches(*[2] * 5), layers=["1", "4"], features="mean")
    assert len(seen) == {"grasp": 10, "afr": 10, "synflow": 1}.get(name, 5)


def test_half_precision_is_scored_in_single():
    model, weights, options = network("perceptron")
    exact = score("afr", model, weights, some_batches(6), **options)
    images, labels = some_batches(6)[0]
    found = score("afr", model.bfloat16(), weights, [(images.bfloat16(), labels)], **options)
    for name, values in found.items():
        assert values.dtype == torch.float32
        assert torch.corrcoef(torch.stack([values.flatten(), exact[name].flatten()]))[0, 1] > 0.99


# --- what single scores are


def test_random_scores_follow_their_generator():
    model, weights, _ = network("perceptron")
    first, same, other = (
        score("random", model, weights, (), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first["1"], same["1"]) and not torch.equal(first["1"], other["1"])


def test_snip_is_what_the_loss_changes_by_when_a_weight_is_scaled():
    model, weights, _ = network("tokens")
    model, batches = model.double().eval(), [(images.double(), labels) for images, labels in some_batches(4, 3)]

    def loss():
        losses = [F.cross_entropy(model(images), labels, reduction="none") for images, labels in batches]
        return torch.cat(losses).mean()

    scores = snip_scores(model, weights, batches)
    for name, weight in weights.items():
        values, value = weight.data.view(-1), weight.data.view(-1)[3].item()
        losses = []
        for scale in (1 + 1e-4, 1 - 1e-4, 1.0):
            values[3] = scale * value
            losses.append(loss().item())
        assert scores[name].view(-1)[3].item() == pytest.approx(abs(losses[0] - losses[1]) / 2e-4, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_the_weight_times_a_finite_difference_of_gradients(temperature):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    images, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 1])
    weights = prunable_weights(model)

    def gradients():
        loss = F.cross_entropy(model(images) / temperature, labels)
        return torch.autograd.grad(loss, list(weights.values()))

    def shifted(step, direction):
        with torch.no_grad():
            torch._foreach_add_(list(weights.values()), list(direction), alpha=step)
        return gradients()

    scores = grasp_scores(model, weights, [(images[:4], labels[:4]), (images[4:], labels[4:])], temperature=temperature)
    direction, step = gradients(), 1e-4 * temperature
    above = shifted(step, direction)
    below = shifted(-2 * step, direction)
    shifted(step, direction)
    for name, high, low in zip(weights, above, below, strict=True):
        expected = weights[name].detach() * (high - low) / (2 * step)
        torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    assert any((values < 0).any() for values in scores.values())


def test_flow_is_conserved_from_layer_to_layer_of_a_perceptron_without_biases():
    torch.manual_seed(0)
    model = perceptron(3 * 8 * 8, 30, 20, 10, 5, bias=False)
    scores = synflow_scores(model, prunable_weights(model), some_batches(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.abs_()
        flow = float(model.double()(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum())
    for values in scores.values():
        assert values.dtype == torch.float64 and float(values.sum()) == pytest.approx(flow, rel=1e-12)


def test_flow_through_forty_layers_is_still_a_number():
    model = perceptron(3 * 8 * 8, *[30] * 40, 5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)  # a flow of 30 to the power of 40, beyond single precision
    scores = synflow_scores(model, prunable_weights(model), some_batches(2))
    assert all(values.isfinite().all() and (values > 1e38).all() for values in scores.values())


@pytest.mark.parametrize("name", ["magnitude", "snip", "grasp", "synflow", "refer"])
def test_pruned_weight_scores_zero(name):
    model, weights, options = network("tokens")
    with torch.no_grad():
        weights["blocks.1.attn.qkv"][:5] = 0.0
    scores = score(name, model, weights, some_batches(6), **options)["blocks.1.attn.qkv"]
    assert not scores[:5].any() and scores[5:].any()


# --- rounds


def test_one_round_is_one_shot_and_magnitudes_need_no_more():
    model, weights, _ = network("convolutions")
    batches = some_batches(6)
    at_once = global_masks(snip_scores(model, weights, batches), density=0.2)
    assert same(prune_in_rounds(snip_scores, model, weights, batches, density=0.2), at_once)
    rounds = [prune_in_rounds(SCORES["magnitude"], model, weights, batches, density=0.2, n_rounds=n) for n in (1, 2, 7)]
    assert same(rounds[0], rounds[1]) and same(rounds[0], rounds[2])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_round_sees_what_the_round_before_has_left():
    model, weights, _ = network("perceptron")
    state, n = copy.deepcopy(model.state_dict()), sum(weight.numel() for weight in weights.values())
    shares, left = [], []

    def own(model, weights, batches):
        shares.append(sum(int((weight != 0).sum()) for weight in weights.values()))
        left.append({name: weight.detach() != 0 for name, weight in weights.items()})
        return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}

    generator = torch.Generator().manual_seed(0)
    masks = prune_in_rounds(own, model, weights, (), density=0.125, n_rounds=3)
    assert shares == [n, round(n / 2), round(n / 4)] and sum(int(mask.sum()) for mask in masks.values()) == round(n / 8)
    for before, after in zip(left, [*left[1:], masks], strict=True):
        assert not any((after[name] & ~before[name]).any() for name in weights)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_flow_in_a_hundred_rounds_keeps_a_path_where_one_round_breaks_it():
    # As much flows through the first layer as through the last one, by forty times as many weights.
    torch.manual_seed(0)
    model = perceptron(3 * 8 * 8, 100, 100, 5, bias=False)
    prune = partial(prune_in_rounds, synflow_scores, model, prunable_weights(model), some_batches(2), density=0.001)
    assert empty_layers(prune(n_rounds=1)) == ["1", "3"] and empty_layers(prune(n_rounds=100)) == []


@pytest.mark.parametrize("name", SCORES)
def test_every_score_prunes_in_rounds_to_the_exact_count(name):
    model, weights, options = network("tokens")
    n = sum(weight.numel() for weight in weights.values())
    function = partial(score, name, **options_of(options))
    for density in (0.02, 0.5, 1.0):
        masks = prune_in_rounds(function, model, weights, some_batches(6, 6), density=density, n_rounds=3)
        assert sum(int(mask.sum()) for mask in masks.values()) == round(density * n)


# --- what is refused


def refused(match, name="snip", kind="tokens", batches=None, change=lambda model: None, weights=None, **options):
    model, own, known = network(kind)
    change(model)
    with pytest.raises(ValueError, match=match):
        score(name, model, own if weights is None else weights(model), batches or some_batches(4), **known | options)


def test_unknown_names_are_refused_with_those_there_are():
    refused("unknown score 'taylor'; there are magnitude, random, snip, grasp, synflow, refer, afr", "taylor")
    refused("no score has the option layer; there are generator, temperature, layers, features, mixture", layer="head")
    refused("unknown features 'max'; there are cls, mean, tokens", "refer", features="max")
    refused("unknown scope 'local'; there are global, layerwise", "afr", scope="local")
    refused("layers must name modules, got 'stem'; there are patches, blocks, blocks.0,", "refer", layers=["stem"])
    refused("layers must name modules, got none; there are patches", "refer", layers=[])
    with pytest.raises(ValueError, match="Sequential has no `blocks`; name the layers"):
        block_names(six_weights())


@pytest.mark.parametrize("name", SCORES)
def test_weights_that_cannot_be_scored_are_refused(name):
    options = {"generator": torch.Generator()}
    refused("no weights of Tokens to score; masks.prunable_weights", name, weights=lambda model: {}, **options)
    refused("'a' is no parameter of Tokens", name, weights=lambda model: {"a": nn.Parameter(torch.ones(2))}, **options)
    refused(
        "layers 'head' and 'tail' share one weight",
        name,
        weights=lambda model: {"head": model.head.weight, "tail": model.head.weight},
        **options,
    )
    refused(
        "layer 'blocks.1.mlp.0' has weights that are NaN or infinite",
        name,
        change=lambda model: model.blocks[1].mlp[0].weight.data.view(-1)[3].fill_(torch.nan),
        **options,
    )


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "refer", "afr"])
def test_batches_that_cannot_be_read_are_refused(name):
    images, labels = some_batches(4)[0]
    model, weights, _ = network("tokens")
    for batches in ([], iter([(images, labels)])):
        with pytest.raises(
            ValueError, match=r"batches must be a sequence of at least one \(images, labels\), got list"
        ):
            score(name, model, weights, batches)
    refused(
        "batch 1 must have a label for each of its images, got 3 for 4",
        name,
        batches=[(images, labels), (images, labels[:3])],
    )
    refused("batch 0 must have a label for each of its images, got 0 for 0", name, batches=[(images[:0], labels[:0])])


@pytest.mark.parametrize("name", ["snip", "grasp", "afr"])
@pytest.mark.parametrize("label", [-1, 5])
def test_labels_that_are_no_class_are_refused(name, label):
    images, labels = some_batches(4)[0]
    labels[2] = label
    refused(r"labels must lie in 0 .. 4, the outputs of Tokens; got", name, batches=[(images, labels)])


def test_outputs_that_are_no_logits_are_refused():
    refused(
        r"Tokens must return logits, \(images, classes\), got \(4, 5, 8\)",
        change=lambda model: setattr(model, "forward", lambda images: images.new_ones(4, 5, 8)),
    )


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_layer_in_which_a_loss_ceases_to_be_a_number_is_named(name):
    def change(model):
        model.blocks[1].norm1.weight.data.fill_(torch.inf)  # no weight that is scored

    refused("objective of batch 0 is nan: the output of layer 'blocks.1.norm1' is the first", name, change=change)
    images, labels = some_batches(4)[0]
    refused("images have NaN or infinite values", name, batches=[(images / 0, labels)])


def test_layer_whose_features_are_no_numbers_is_named():
    def change(model):
        model.blocks[1].norm1.weight.data.fill_(torch.inf)

    refused("the output of layer 'blocks.1' has NaN or infinite values", "refer", change=change)


def test_layer_on_which_nothing_depends_is_named():
    def everything(model):
        return prunable_weights(model)

    refused("what is measured does not depend on the weights of head; leave them out", "refer", weights=everything)
    refused(
        "not depend on the weights of blocks.1.attn.qkv, blocks.1.attn.proj, blocks.1.mlp.0, blocks.1.mlp.2",
        "refer",
        layers=["blocks.0"],
    )
    refused(
        "layers idle do not run", "refer", layers=["idle"], change=lambda model: model.add_module("idle", nn.ReLU())
    )


def test_single_image_has_no_spread_but_its_tokens_have():
    for features in ("cls", "mean"):
        refused(
            "'blocks.0' have one row, whose one singular value", "refer", batches=some_batches(4, 1), features=features
        )
    model, weights, _ = network("tokens")
    assert refer_scores(model, weights, some_batches(1), features="tokens")["blocks.0.attn.qkv"].any()


def test_features_that_a_layer_has_not_are_refused():
    refused(
        r"'cls' of layer 'blocks.0', of shape \(4, 4, 8, 8\): no class token", "refer", "convolutions", features="cls"
    )
    refused(
        "the output of layer 'blocks.0' is tuple, not a tensor",
        "refer",
        change=lambda model: model.blocks[0].register_forward_hook(lambda module, inputs, output: (output,)),
    )


@pytest.mark.parametrize("mixture", [-0.1, 1.5, math.nan])
def test_mixture_is_a_share(mixture):
    refused(r"mixture must lie in \[0, 1\]", "afr", mixture=mixture)


def test_temperature_is_above_zero_and_there_is_a_round():
    refused("temperature must be above 0, got 0", "grasp", temperature=0)
    model, weights, _ = network("tokens")
    with pytest.raises(ValueError, match="n_rounds must be at least 1, got 0"):
        prune_in_rounds(snip_scores, model, weights, some_batches(4), density=0.5, n_rounds=0)
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        prune_in_rounds(snip_scores, model, weights, some_batches(4), density=90)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_batches_without_end_are_refused_at_once(name):
    model, weights, _ = network("perceptron")
    with pytest.raises(ValueError, match="batches must be a sequence"):
        score(name, model, weights, repeat(some_batches(6)[0]))


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "refer", "afr"])
def test_scores_say_that_they_need_gradients(name):
    model, weights, options = network("tokens")
    with torch.inference_mode(), pytest.raises(ValueError, match="call them outside of it"):
        score(name, model, weights, some_batches(6), **options)


def test_second_derivatives_are_not_taken_in_float16():
    model, weights, _ = network("perceptron")
    images, labels = some_batches(6)[0]
    with pytest.raises(ValueError, match="vanish in float16, which layer '1' has"):
        score("grasp", model.half(), weights, [(images.half(), labels)])
