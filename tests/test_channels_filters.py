"""Scores of channels and choosing by them, on layers small enough for paper, and the predefined targets."""

import numpy as np
import pytest
import torch
from torch import nn

from prunelab.channels.filters import (
    TARGETS,
    keep_largest,
    keep_largest_globally,
    l1_scores,
    predefined_counts,
    random_scores,
    uniform_counts,
)
from prunelab.models import build_model


def lists(kept):
    return {name: indices.tolist() for name, indices in kept.items()}


def test_l1_score_sums_the_magnitudes_of_a_filter():
    model = nn.Sequential(nn.Conv2d(2, 2, (1, 2)), nn.Linear(2, 3))
    model[0].weight.data = torch.tensor([[[[1.0, -2.0]], [[0.0, 3.0]]], [[[-1.0, 1.0]], [[0.5, -0.5]]]])
    model[1].weight.data = torch.tensor([[1.0, -1.0], [4.0, 0.0], [0.0, 0.0]])
    scores = l1_scores(model, ["1", "0"])
    assert lists(scores) == {"1": [2, 4, 0], "0": [6, 3]} and not scores["0"].requires_grad


def test_random_scores_depend_on_the_generator_alone():
    model = nn.Sequential(nn.Conv2d(3, 50, 3), nn.Linear(50, 20))
    first, second, other = (random_scores(model, ["0", "1"], generator=torch.manual_seed(s)) for s in (0, 0, 1))
    assert [len(score) for score in first.values()] == [50, 20]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0"], other["0"])
    assert len(first["0"].unique()) == 50


@pytest.mark.parametrize("scorer", [l1_scores, lambda *args: random_scores(*args, generator=torch.Generator())])
def test_layer_without_weights_is_named_and_the_others_listed(scorer):
    with pytest.raises(ValueError, match="Sequential has no convolution or linear layer '1'; there are 0, 2"):
        scorer(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0", "1"])


def test_uniform_counts_round_and_leave_one_channel():
    assert uniform_counts({"a": 16, "b": 7, "c": 3, "d": 1}, density=0.3) == {"a": 5, "b": 2, "c": 1, "d": 1}
    assert uniform_counts({"a": 3}, density=0.9) == {"a": 3}  # 2.7; rounded down it would be 2
    with pytest.raises(ValueError, match="density must lie in"):
        uniform_counts({"a": 3}, density=50)


@pytest.mark.parametrize("count, kept", [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])])
def test_largest_channels_stay_in_ascending_order_and_the_first_of_equal_ones(count, kept):
    scores = {"a": torch.tensor([2.0, 5.0, 2.0, 3.0]), "b": torch.zeros(4)}
    result = keep_largest(scores, {"b": count, "a": count})
    assert lists(result) == {"b": list(range(count)), "a": kept}
    assert result["a"].dtype == torch.int64


@pytest.mark.parametrize("count", [0, -3])
def test_last_channel_of_a_layer_stays_with_a_warning(count):
    with pytest.warns(UserWarning, match=f"layer 'a' keeps 1 channel, its best, where {count} were asked for"):
        assert lists(keep_largest({"a": torch.tensor([1.0, 2.0])}, {"a": count})) == {"a": [1]}


def test_impossible_choices_are_refused_with_their_layer():
    scores = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(ValueError, match="layer 'a' of 2 channels cannot keep 3 of them"):
        keep_largest(scores, {"a": 3})
    with pytest.raises(ValueError, match="no scores for layer 'c'; there are some for a, b"):
        keep_largest(scores, {"c": 1})


@pytest.mark.filterwarnings("error")
def test_global_choice_ranks_all_layers_together():
    scores = {"a": torch.tensor([0.1, 0.9, 0.5]), "b": torch.tensor([0.6, 0.2, 0.5])}
    assert lists(keep_largest_globally(scores, density=0.5)) == {"a": [1, 2], "b": [0]}  # the first of two 0.5 stays
    assert lists(keep_largest_globally(scores, density=1.0)) == {"a": [0, 1, 2], "b": [0, 1, 2]}


def test_layer_below_the_global_threshold_keeps_its_best_channel():
    scores = {"a": torch.tensor([8.0, 9.0]), "b": torch.tensor([1.0, 2.0, 0.0]), "c": torch.tensor([7.0])}
    with pytest.warns(UserWarning, match="density 0.34 leaves no channel of b, c: each keeps its best"):
        assert lists(keep_largest_globally(scores, density=0.34)) == {"a": [0, 1], "b": [1], "c": [0]}


@pytest.mark.parametrize("density", [0.05, 0.5, 0.93, 1.0])
def test_global_choice_keeps_the_exact_number_of_channels(density):
    generator = torch.manual_seed(0)
    scores = {str(n): torch.rand(n, generator=generator) for n in (64, 128, 256)}
    kept = keep_largest_globally(scores, density=density)
    assert sum(map(len, kept.values())) == round(448 * density)
    gone = [score[~torch.isin(torch.arange(len(score)), kept[name])] for name, score in scores.items()]
    smallest_kept = min(score[kept[name]].min() for name, score in scores.items())
    assert density == 1.0 or torch.cat(gone).max() < smallest_kept


@pytest.mark.parametrize("density", [0, -0.1, 1.5])
def test_share_that_is_none_is_refused(density):
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        keep_largest_globally({"a": torch.ones(2)}, density=density)


def resnet(depth, width=1.0):
    """First convolutions of a ResNet for small images."""
    n = (depth - 2) // 6
    return {f"blocks.{i}.conv1": max(1, round((16, 32, 64)[i // n] * width)) for i in range(3 * n)}


def resnet_weights(inner):
    """Weights of a ResNet for ten classes whose blocks have these inner widths: convolutions, BatchNorm, output."""
    n, total, n_in = len(inner) // 3, 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10, 16
    for i, n_inner in enumerate(inner):
        n_out = (16, 32, 64)[i // n]
        total += n_in * n_inner * 9 + n_inner * n_out * 9 + 2 * n_inner + 2 * n_out
        n_in = n_out
    return total


@pytest.mark.parametrize("target, share", [("resnet56_a", 0.907), ("resnet56_b", 0.863)])
def test_resnets_keep_the_published_share_of_their_weights(target, share):
    widths = resnet(56)
    assert resnet_weights(widths.values()) == 853_018
    pruned = resnet_weights(predefined_counts(target, widths).values())
    assert pruned / 853_018 == pytest.approx(share, abs=0.0006)


VGG16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def vgg(channels):
    return {f"blocks.{i}.conv": n for i, n in enumerate(channels)}


def test_vgg16_keeps_the_published_channels_and_share_of_weights():
    def n_weights(channels):  # with BatchNorm, biases, the hidden layer of 512 and its BatchNorm
        pairs = zip([3, *channels], channels, strict=False)
        return sum(9 * a * b + 3 * b for a, b in pairs) + channels[-1] * 512 + 3 * 512 + 5130

    counts = list(predefined_counts("vgg16_a", vgg(VGG16)).values())
    assert counts == [32, 64, 128, 128, 256, 256, 256, 256, 256, 256, 256, 256, 256]
    assert n_weights(counts) / n_weights(VGG16) == pytest.approx(0.360, abs=0.0006)


def test_layers_that_are_left_whole_are_those_of_the_official_code():
    # By layer index there: 2 (i + 1) for block i.
    def whole(target, widths):
        counts = predefined_counts(target, widths)
        return [2 * (i + 1) for i, name in enumerate(widths) if counts[name] == widths[name]]

    assert whole("resnet56_a", resnet(56)) == [16, 20, 38, 54]
    assert whole("resnet56_b", resnet(56)) == [16, 18, 20, 34, 38, 54]
    first_stage = [layer for layer in whole("resnet110_a", resnet(110)) if layer <= 36]
    assert first_stage == [36]
    assert whole("resnet110_b", resnet(110)) == [36, 38, 74]
    resnet34 = {f"layer{s + 1}.{i}.conv1": 64 * 2**s for s, n in enumerate((3, 4, 6, 3)) for i in range(n)}
    for target in ("resnet34_a", "resnet34_b"):
        assert whole(target, resnet34) == [2, 8, 14, 16, 26, 28, 30, 32]


def test_stages_keep_the_published_channels():
    counts = predefined_counts("resnet110_b", resnet(110))
    assert [counts[f"blocks.{i}.conv1"] for i in (0, 20, 40)] == [8, 19, 44]
    widths = {f"layer{s + 1}.{i}.conv1": 64 * 2**s for s, n in enumerate((3, 4, 6, 3)) for i in range(n)}
    for target, channels in (("resnet34_a", [44, 89, 179]), ("resnet34_b", [32, 51, 153])):
        counts = predefined_counts(target, widths)
        assert [counts[f"layer{s}.1.conv1"] for s in (1, 2, 3)] == channels


@pytest.mark.parametrize(
    "target, channels, n_parameters",  # the official ones have 3,840 more, biases of shortcuts' convolutions
    [
        ("resnet50_thinet30", [19, 38, 76, 153], 8_665_318),
        ("resnet50_thinet50", [32, 64, 128, 256], 12_381_864),
        ("resnet50_thinet70", [44, 89, 179, 358], 16_945_246),
    ],
)
def test_resnet50_of_thinet_is_the_official_one(target, channels, n_parameters):
    inner = {
        f"layer{s + 1}.{i}.conv{j}": 64 * 2**s for s, n in enumerate((3, 4, 6, 3)) for i in range(n) for j in (1, 2)
    }
    counts = predefined_counts(target, inner)
    assert [counts[f"layer{s}.2.conv2"] for s in (1, 2, 3, 4)] == channels
    with torch.device("meta"):
        model = build_model("resnet50", num_classes=1000, image_size=224, widths=counts)
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def test_smaller_networks_follow_the_shares_without_exceptions():
    counts = predefined_counts("resnet56_b", resnet(20, 0.5))
    assert list(counts.values()) == [3, 3, 3, 11, 11, 11, 28, 28, 28]
    vgg11 = vgg([64, 128, 256, 256, 512, 512, 512, 512])
    assert list(predefined_counts("vgg16_a", vgg11).values()) == [32, 128, 256, 256, 256, 256, 256, 256]
    half = predefined_counts("vgg16_a", vgg([n // 2 for n in VGG16]))
    assert list(half.values()) == [16, 32, 64, 64, 128, 128, 128, *[128] * 6]


def test_layer_of_one_channel_keeps_it():
    assert predefined_counts("vgg16_a", {"a": 1, "b": 2, "c": 3, "d": 4}) == {"a": 1, "b": 2, "c": 3, "d": 2}


def test_targets_for_other_networks_are_refused():
    with pytest.raises(ValueError, match=f"unknown target 'vgg16'; there are {', '.join(TARGETS)}"):
        predefined_counts("vgg16", vgg(VGG16))
    with pytest.raises(
        ValueError, match=r"'resnet56_a' is for layers of 3 different widths, got \[64, 128, 256, 512\]"
    ):
        predefined_counts("resnet56_a", vgg(VGG16))


@pytest.mark.parametrize(
    "score, found",
    [
        (torch.tensor([0.1, float("nan"), 0.3]), "NaN among them"),
        (torch.rand(3, 2), r"a torch.float32 of shape \(3, 2\)"),
        (torch.tensor(1.0), r"a torch.float32 of shape \(\)"),
        (torch.tensor([1j, 2.0]), r"a torch.complex64 of shape \(2,\)"),
        ([], r"a torch.float32 of shape \(0,\)"),
        ([[1.0], [2.0, 3.0]], r"\[\[1.0\], \[2.0, 3.0\]\]"),
        ("large", "'large'"),
        (None, "None"),
    ],
)
def test_scores_that_are_not_one_number_a_channel_are_refused_by_name(score, found):
    message = f"layer 'conv' needs one number a channel as its scores; there is {found}"
    with pytest.raises(ValueError, match=message):
        keep_largest({"conv": score}, {"conv": 2})
    with pytest.raises(ValueError, match=message):
        keep_largest_globally({"conv": score}, density=0.5)


def test_scores_may_be_lists_and_arrays():
    for score in ([0.1, 0.4, 0.3], np.array([0.1, 0.4, 0.3]), (0.1, 0.4, 0.3)):
        assert keep_largest({"conv": score}, {"conv": 2})["conv"].tolist() == [1, 2]
        assert keep_largest_globally({"conv": score}, density=0.34)["conv"].tolist() == [1]


@pytest.mark.parametrize("count", [2.5, 0.5, True, "2", None])
def test_counts_that_are_no_whole_numbers_are_refused_by_name(count):
    with pytest.raises(ValueError, match=f"layer 'conv' must keep a whole number of channels, got {count!r}"):
        keep_largest({"conv": torch.rand(4)}, {"conv": count})
    assert keep_largest({"conv": torch.tensor([3, 1, 2])}, {"conv": np.int64(1)})["conv"].tolist() == [0]


def test_no_scores_at_all_leave_nothing_to_choose_from():
    with pytest.raises(ValueError, match="no scores for layer 'conv'"):
        keep_largest({}, {"conv": 1})
    with pytest.raises(ValueError, match="no scores of any layer, so there are no channels to choose from"):
        keep_largest_globally({}, density=0.5)
